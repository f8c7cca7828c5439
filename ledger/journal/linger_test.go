package journal_test

import (
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger/journal/journaltest"
)

// An open waits for company, for a while: the event that settles it takes it along, whoever waits for it has it at once, and
// left alone it becomes durable all the same.
func TestOpensLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := create(t, config(journaltest.NewDisk(1).Process()))
		begun := time.Now()
		batches := func() int64 {
			synctest.Wait()
			return j.Stats().Batches
		}

		first, err := j.Open(openRecord(1))
		if err != nil || batches() != 0 {
			t.Fatalf("%d batches before anybody asked (%v)", batches(), err)
		}
		wait(t)(j.Settle(settleEvent(1)))
		if n := batches(); n != 1 || first.Err() != nil {
			t.Errorf("an open and its settle took %d batches (%v)", n, first.Err())
		}

		second, err := j.Open(openRecord(2))
		if wait(t)(second, err); batches() != 2 || time.Since(begun) != 0 {
			t.Errorf("%d batches, and a wait of %s for an open that was asked for", batches(), time.Since(begun))
		}

		third, err := j.Open(openRecord(3))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute / 2)
		if batches() != 3 {
			t.Errorf("%d batches: an open that nobody asked for is not written", batches())
		}
		if wait(t)(third, nil); time.Since(begun) != time.Minute/2 {
			t.Errorf("the open was not durable")
		}

		if _, _, err := j.Void(openRecord(3).Hold); err != nil || batches() != 3 {
			t.Errorf("a void did not linger: %d batches (%v)", batches(), err)
		}
		if err := j.Close(); err != nil || batches() != 4 {
			t.Errorf("%d batches after closing (%v)", batches(), err)
		}
	})
}
