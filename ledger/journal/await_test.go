package journal_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// memoryConfig is the journal of a node without a disk.
func memoryConfig() journal.Config {
	cfg := config(journal.NewMemory())
	cfg.AwaitLog = true
	return cfg
}

// settled reports whether a commit's fate is decided.
func settled(c journal.Commit) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// An event on a disk that dies with the process is durable when the log has it, not before (L1); an open record, which nobody would read
// again, is as soon as it is written.
func TestAwaitLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := create(t, memoryConfig())
		var commits []journal.Commit
		for n := range 10 {
			wait(t)(j.Open(openRecord(n)))
			c, err := j.Settle(settleEvent(n))
			if err != nil {
				t.Fatal(err)
			}
			commits = append(commits, c)
		}
		synctest.Wait()
		parcels, err := j.Next(t.Context(), 100)
		if err != nil || len(parcels) != 10 {
			t.Fatalf("%d events are handed out, %v; want all 10: they wait for the log only", len(parcels), err)
		}
		for n, c := range commits {
			if settled(c) {
				t.Fatalf("event %d counts as durable before the log has it", n)
			}
		}
		for i, p := range parcels {
			j.Acked(p.Partition, p.Seq)
			synctest.Wait()
			for n, c := range commits {
				if want := slices.ContainsFunc(parcels[:i+1], func(p ledger.Parcel) bool { return p.ID == id(1_000_000+n) }); settled(c) != want {
					t.Fatalf("after %d acknowledgements event %d is durable: %v, want %v", i+1, n, settled(c), want)
				}
			}
		}
		for n, c := range commits {
			if err := c.Wait(t.Context()); err != nil {
				t.Errorf("event %d: %v", n, err)
			}
		}
		if err := j.Retire(); err != nil {
			t.Errorf("retire: %v", err)
		}
	})
}

// A log that does not answer is said to those who come, and to nobody of another partition; it is served again after the first
// acknowledgement.
func TestNoLogRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := create(t, memoryConfig())
		wait(t)(j.Open(openRecord(0)))
		c, err := j.Settle(settleEvent(0))
		if err != nil {
			t.Fatal(err)
		}
		parcels, err := j.Next(t.Context(), 100)
		if err != nil || len(parcels) != 1 {
			t.Fatal(len(parcels), err)
		}
		other := 1
		for ledger.Partition(openRecord(other).User, partitions) == parcels[0].Partition {
			other++
		}
		time.Sleep(time.Second)        // of the bubble's clock
		wait(t)(j.Open(openRecord(5))) // the same user
		time.Sleep(3 * time.Second)
		if _, err := j.Open(openRecord(10)); !errors.Is(err, journal.ErrNoLog) {
			t.Fatalf("open = %v, want ErrNoLog", err)
		}
		wait(t)(j.Open(openRecord(other)))
		if n := j.Unlogged(); n != 1 {
			t.Errorf("%d partitions are unlogged, want 1", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait = %v, want the deadline", err)
		}
		if _, err := j.Settle(settleEvent(5)); err != nil {
			t.Errorf("a request under way must be able to end: %v", err)
		}
		more, err := j.Next(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		j.Acked(more[len(more)-1].Partition, more[len(more)-1].Seq)
		wait(t)(j.Open(openRecord(10)))
		if err := c.Wait(t.Context()); err != nil || j.Unlogged() != 0 {
			t.Errorf("wait = %v, %d partitions unlogged, want none", err, j.Unlogged())
		}
	})
}

// Who waits for the log when the journal ends is told that it may never come.
func TestAwaitLogEnds(t *testing.T) {
	j := create(t, memoryConfig())
	wait(t)(j.Open(openRecord(0)))
	c, err := j.Settle(settleEvent(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(t.Context()); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("wait = %v, want ErrClosed", err)
	}
}

// The file system in memory is one: a journal on it that is closed with work left is adopted like any other, by one owner at a time.
func TestMemoryIsAFileSystem(t *testing.T) {
	cfg := config(journal.NewMemory())
	j := create(t, cfg)
	const n = 200 // several segments
	for i := range n {
		wait(t)(j.Open(openRecord(i)))
		if i%2 == 0 {
			wait(t)(j.Settle(settleEvent(i)))
		}
		if i >= 40 && i%2 == 1 { // at most 64 are open
			_, _, err := j.Void(id(i))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	j.Slot(id(1)).RaiseProgress(3, 14)
	if _, _, err := journal.Adopt(cfg, incarnation); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("adopt = %v, want ErrLocked", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	again, found := adopt(t, cfg)
	if len(found.Opens) != 20 || len(found.Damage) != 0 || found.TornBytes != 0 {
		t.Fatalf("%d open, %v damage, %d torn; want 20 and nothing else", len(found.Opens), found.Damage, found.TornBytes)
	}
	for i := range found.Opens {
		o := &found.Opens[i]
		if o.Hold == id(1) && (o.Slot.Chunks != 3 || o.Slot.Bytes != 14) {
			t.Errorf("slot = %+v", o.Slot)
		}
		wait(t)(billAgain(again, o))
	}
	parcels := drain(t, again)
	if len(parcels) != n/2+20 {
		t.Errorf("%d events shipped, want %d", len(parcels), n/2+20)
	}
	checkOrder(t, parcels, map[int]uint64{})
	if err := again.Retire(); err != nil {
		t.Fatal(err)
	}
	if err := journal.Sweep(cfg); err != nil {
		t.Fatal(err)
	}
	if ids, err := journal.Incarnations(cfg); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v are left", ids, err)
	}
}

// billAgain bills what an adopted journal found open.
func billAgain(j *journal.Journal, o *journal.OpenState) (journal.Commit, error) {
	for n := range 1000 {
		if id(n) == o.Hold {
			return j.Settle(settleEvent(n))
		}
	}
	panic("unknown hold")
}
