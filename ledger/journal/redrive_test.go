package journal_test

import (
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/journal/journaltest"
)

// A re-driven usage event names the hold that its original settled, maybe one that is open in this very journal after a restore. It
// goes to the log as it is, ends no hold, and is nothing to release when the directory is recovered.
func TestRedriveEndsNoHold(t *testing.T) {
	disk := journaltest.NewDisk(1)
	process := disk.Process()
	j := create(t, config(process))
	wait(t)(j.Open(openRecord(1)))
	again := settleEvent(1)
	again.Redrive = true
	if _, err := j.Settle(settleEvent(2)); err == nil {
		t.Error("a hold that was never opened was settled")
	}
	if _, err := j.Settle(again); err == nil {
		t.Error("a re-drive settled a hold")
	}
	wait(t)(j.Event(again))
	if j.Slot(id(1)) == nil {
		t.Fatal("the re-drive closed a hold")
	}
	got := drain(t, j)
	if len(got) != 1 {
		t.Fatalf("%d events were shipped", len(got))
	}
	ev, err := ledger.Decode(got[0].Value)
	if err != nil || !ev.Redrive || ev.Hold == nil || ev.Hold.ID != id(1) || ev.Hold.Epoch != 7 {
		t.Fatalf("shipped %+v, %v", ev, err)
	}
	process.Kill()
	_, found := adopt(t, config(disk.Process()))
	if len(found.Opens) != 1 || len(found.Releases) != 0 {
		t.Fatalf("recovered opens %+v, releases %+v", found.Opens, found.Releases)
	}
}
