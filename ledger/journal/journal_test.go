package journal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

const partitions = 4

// id makes an ID that is easy to read in a failure.
func id(n int) (i ledger.ID) {
	binary.BigEndian.PutUint64(i[8:], uint64(n))
	i[6] = 0x70
	return i
}

var incarnation = id(0xABC)

// config is a small journal in memory.
func config(fs journal.FS) journal.Config {
	return journal.Config{FS: fs, Root: "/data/journal", Partitions: partitions, SegmentBytes: 4 << 10, BlockBytes: 1 << 10, MaxBytes: 1 << 20, Slots: 64}
}

func create(t testing.TB, cfg journal.Config) *journal.Journal {
	t.Helper()
	j, err := journal.Create(cfg, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func adopt(t testing.TB, cfg journal.Config) (*journal.Journal, journal.Recovered) {
	t.Helper()
	j, rec, err := journal.Adopt(cfg, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, rec
}

func openRecord(n int) *journal.OpenRecord {
	return &journal.OpenRecord{
		Hold: id(n), Epoch: 7, Amount: int64(100 + n), User: int64(1 + n%5), Token: int64(10 + n%5), TokenHeld: n%2 == 0,
		Time: 1_700_000_000_000, Node: "n1", PromptTokens: 12,
		Request: ledger.Request{ID: fmt.Sprint("req", n), Model: "gpt-4o", Endpoint: "chat"},
		Rating:  ledger.Rating{Mode: "ratio", ModelRatio: "1.25", GroupRatio: "1"},
	}
}

func settleEvent(n int) *ledger.Event {
	o := openRecord(n)
	return &ledger.Event{
		Version: 1, Kind: ledger.KindUsageSettled, ID: id(1_000_000 + n), Time: 1_700_000_000_001, Node: "n1",
		User: o.User, Token: o.Token, Channel: 3, Charged: int64(n), Requests: 1,
		Hold:    &ledger.HoldRef{ID: o.Hold, Epoch: o.Epoch, Amount: o.Amount, Token: o.TokenHeld},
		Request: &o.Request, Usage: &ledger.Usage{Prompt: 12, Completion: 30}, Source: ledger.SourceUpstream, Rating: &o.Rating,
	}
}

func credit(n int, user int64) *ledger.Event {
	return &ledger.Event{
		Version: 1, Kind: ledger.KindCreditGranted, ID: id(2_000_000 + n), Time: 5, User: user, Granted: 1, Key: fmt.Sprint("k:", n),
	}
}

// wait makes a record durable.
func wait(t testing.TB) func(journal.Commit, error) {
	return func(c journal.Commit, err error) {
		t.Helper()
		if err == nil {
			err = c.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// drain hands out and acknowledges everything there is.
func drain(t testing.TB, j *journal.Journal) (all []ledger.Parcel) {
	t.Helper()
	for j.Stats().Depth > 0 {
		got, err := j.Next(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, got...)
		for _, p := range got {
			j.Acked(p.Partition, p.Seq)
		}
	}
	return all
}

// checkOrder holds that parcels are whole events in the producer's order, with an unbroken chain of prev.
func checkOrder(t testing.TB, parcels []ledger.Parcel, last map[int]uint64) {
	t.Helper()
	var seq uint64
	for _, p := range parcels {
		ev, err := ledger.Decode(p.Value)
		if err != nil {
			t.Fatalf("seq %d: %v", p.Seq, err)
		}
		same := ev.Producer == p.Producer && ev.Seq == p.Seq && ev.Prev == p.Prev && ev.ID == p.ID && ev.User == p.User &&
			ev.Kind == p.Kind && ev.Time == p.Time && p.Partition == ledger.Partition(ev.User, partitions)
		if !same || p.Producer != incarnation {
			t.Fatalf("parcel %+v holds %+v", p, ev)
		}
		if p.Seq <= seq {
			t.Fatalf("seq %d after %d", p.Seq, seq)
		}
		seq = p.Seq
		if last != nil {
			if p.Prev != last[p.Partition] {
				t.Fatalf("seq %d of partition %d: prev %d, want %d", p.Seq, p.Partition, p.Prev, last[p.Partition])
			}
			last[p.Partition] = p.Seq
		}
	}
}

func TestOpenSettleShipRetire(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	j := create(t, cfg)
	for n := range 20 {
		wait(t)(j.Open(openRecord(n)))
		j.Slot(id(n)).SetForwarded(3)
	}
	for n := range 10 {
		ev := settleEvent(n)
		wait(t)(j.Settle(ev))
		if ev.Seq != uint64(n+1) || ev.Producer != incarnation {
			t.Fatalf("event %d got seq %d of %s", n, ev.Seq, ev.Producer)
		}
	}
	for n := 10; n < 20; n++ {
		epoch, c, err := j.Void(id(n))
		wait(t)(c, err)
		if epoch != 7 {
			t.Fatalf("void: epoch %d", epoch)
		}
	}
	wait(t)(j.Event(credit(1, 2)))
	if j.Drained() || !errors.Is(j.Retire(), journal.ErrBusy) {
		t.Fatal("retired with events that are not shipped")
	}
	got := drain(t, j)
	checkOrder(t, got, map[int]uint64{})
	if len(got) != 11 {
		t.Fatalf("shipped %d events", len(got))
	}
	for p := range partitions {
		if j.AckedThrough(p) != j.LastSeq(p) {
			t.Fatalf("partition %d: acknowledged %d of %d", p, j.AckedThrough(p), j.LastSeq(p))
		}
	}
	if !j.Drained() {
		t.Fatal("not drained")
	}
	if err := j.Retire(); err != nil {
		t.Fatal(err)
	}
	if retired, err := journal.Retired(cfg, incarnation); err != nil || !retired {
		t.Errorf("Retired says %v, %v; want true", retired, err)
	}
	if _, _, err := journal.Adopt(cfg, incarnation); !errors.Is(err, journal.ErrRetired) {
		t.Fatalf("adopting a retired directory: %v", err)
	}
	if _, err := j.Next(t.Context(), 1); !errors.Is(err, io.EOF) {
		t.Fatalf("next after retire: %v", err)
	}
	if _, err := j.Open(openRecord(99)); !errors.Is(err, journal.ErrClosed) {
		t.Fatalf("open after retire: %v", err)
	}
	if err := journal.Sweep(cfg); err != nil {
		t.Fatal(err)
	}
	if ids, err := journal.Incarnations(cfg); err != nil || len(ids) != 0 {
		t.Fatalf("after sweep: %v %v", ids, err)
	}
}

func TestHoldIsClosedOnce(t *testing.T) {
	j := create(t, config(journaltest.NewDisk(1).Process()))
	wait(t)(j.Open(openRecord(1)))
	if _, err := j.Open(openRecord(1)); !errors.Is(err, journal.ErrAlreadyOpen) {
		t.Fatalf("second open: %v", err)
	}
	wait(t)(j.Reopen(id(1), 9, 150))
	ev := settleEvent(1)
	wait(t)(j.Settle(ev))
	if ev.Hold.Epoch != 9 {
		t.Fatalf("settled in epoch %d, reopened in 9", ev.Hold.Epoch)
	}
	got, err := j.Next(t.Context(), 10)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if shipped, err := ledger.Decode(got[0].Value); err != nil || shipped.Hold.Epoch != 9 {
		t.Fatalf("shipped %+v, %v", shipped.Hold, err)
	}
	if _, err := j.Settle(settleEvent(1)); !errors.Is(err, journal.ErrNotOpen) {
		t.Fatalf("second settle: %v", err)
	}
	if _, _, err := j.Void(id(1)); !errors.Is(err, journal.ErrNotOpen) {
		t.Fatalf("void after settle: %v", err)
	}
	if _, err := j.Reopen(id(1), 10, 1); !errors.Is(err, journal.ErrNotOpen) {
		t.Fatalf("reopen after settle: %v", err)
	}
	if j.Slot(id(1)) != nil {
		t.Fatal("a closed hold has a slot")
	}
}

func TestWhatCannotBeAppliedIsRefused(t *testing.T) {
	j := create(t, config(journaltest.NewDisk(1).Process()))
	wait(t)(j.Open(openRecord(1)))
	noUser, huge, noHold, negative := settleEvent(1), settleEvent(1), settleEvent(1), settleEvent(1)
	noUser.User, huge.Note, noHold.Hold, negative.Charged = 0, string(make([]byte, ledger.MaxEventBytes)), nil, -1
	for i, ev := range []*ledger.Event{noUser, huge, noHold, negative} {
		if _, err := j.Settle(ev); err == nil {
			t.Errorf("event %d was accepted", i)
		}
	}
	if _, err := j.Event(settleEvent(1)); err == nil {
		t.Error("Event took a settle")
	}
	long := openRecord(2)
	long.Request.Username = string(make([]byte, 100<<10))
	if _, err := j.Open(long); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("open record of 100 KB: %v", err)
	}
	wait(t)(j.Settle(settleEvent(1)))
	if got := drain(t, j); len(got) != 1 || got[0].Seq != 1 {
		t.Fatalf("refused events left a trace: %+v", got)
	}
}

func TestBounds(t *testing.T) {
	t.Run("slots", func(t *testing.T) {
		cfg := config(journaltest.NewDisk(1).Process())
		cfg.Slots = 3
		j := create(t, cfg)
		for n := range 3 {
			wait(t)(j.Open(openRecord(n)))
		}
		if _, err := j.Open(openRecord(3)); !errors.Is(err, journal.ErrFull) {
			t.Fatalf("fourth open: %v", err)
		}
		wait(t)(j.Settle(settleEvent(0)))
		wait(t)(j.Open(openRecord(3)))
	})
	t.Run("bytes", func(t *testing.T) {
		cfg := config(journaltest.NewDisk(1).Process())
		cfg.MaxBytes = 32 << 10
		j := create(t, cfg)
		opened := 0
		for ; ; opened++ {
			c, err := j.Open(openRecord(opened))
			if errors.Is(err, journal.ErrFull) {
				break
			}
			wait(t)(c, err)
		}
		if opened < 3 || opened > 8 {
			t.Fatalf("%d holds of 4 KB fit in 32 KB", opened)
		}
		for n := 0; ; n++ {
			c, err := j.Event(credit(n, 2))
			if errors.Is(err, journal.ErrFull) {
				break
			}
			if wait(t)(c, err); n > 1000 {
				t.Fatal("events are not bounded")
			}
		}
		for n := range opened {
			wait(t)(j.Reopen(id(n), 8, 1))
			wait(t)(j.Settle(settleEvent(n)))
		}
		if b := j.Stats().LiveBytes; b > cfg.MaxBytes {
			t.Fatalf("%d live bytes, bound %d", b, cfg.MaxBytes)
		}
		drain(t, j)
		eventually(t, func() bool { return j.Stats().LiveBytes < cfg.MaxBytes/2 })
		wait(t)(j.Open(openRecord(100)))
	})
}

// eventually polls what the journal's own goroutine will do soon.
func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come about in time")
		case <-tick():
		}
	}
}

func TestReship(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	cfg.Keep = deadline
	j := create(t, cfg)
	for n := range 60 {
		wait(t)(j.Open(openRecord(n)))
		wait(t)(j.Settle(settleEvent(n)))
	}
	first := drain(t, j)
	eventually(t, func() bool { return j.Stats().Segments < 3 && j.Stats().KeptBytes > 0 })
	all := ledger.Hole{After: 0, Through: math.MaxUint64}
	reship := func(partition int, hole ledger.Hole) (got []ledger.Parcel) {
		for p, err := range journal.Reship(config(disk.Process()), incarnation, partition, hole) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p)
		}
		return got
	}
	again := reship(-1, all)
	checkOrder(t, again, map[int]uint64{})
	if len(again) != len(first) {
		t.Fatalf("%d of %d events while the owner lives", len(again), len(first))
	}
	if err := j.Retire(); err != nil {
		t.Fatal(err)
	}
	if got := reship(-1, all); len(got) != len(first) {
		t.Fatalf("%d of %d events after retirement", len(got), len(first))
	}
	p := first[20].Partition
	for _, got := range reship(p, ledger.Hole{After: 10, Through: 30}) {
		if got.Partition != p || got.Seq <= 10 || got.Seq > 30 {
			t.Fatalf("got %d of partition %d", got.Seq, got.Partition)
		}
	}
	if err := journal.Sweep(cfg); err != nil {
		t.Fatal(err)
	}
	if got := reship(-1, all); len(got) != len(first) {
		t.Fatalf("sweep took kept segments: %d left", len(got))
	}
	cfg.Keep = 0
	if err := journal.Sweep(cfg); err != nil {
		t.Fatal(err)
	}
	if ids, _ := journal.Incarnations(cfg); len(ids) != 0 {
		t.Fatalf("left after sweep: %v", ids)
	}
}
