package sqlstore

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"ledgerline/ledger"
)

// clock is a store's clock in the hands of a test.
func clock(s *Store) *time.Time {
	now := time.UnixMilli(1_800_000_000_000)
	s.now = func() time.Time { return now }
	return &now
}

func TestEpochNumbersOnlyRise(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		now := clock(s)
		allocate := func(atLeast uint64) uint64 {
			t.Helper()
			call, err := s.AllocateEpoch(ctx, 1, atLeast)
			if must(t, err); call.Partition != 1 || call.Offset != 0 || call.Opened != 0 {
				t.Errorf("%+v", call)
			}
			return call.Epoch
		}
		ms := uint64(now.UnixMilli())
		if e := allocate(0); e != ms+1 {
			t.Errorf("first %d", e)
		}
		if e := allocate(0); e != ms+2 {
			t.Errorf("above MySQL's: %d", e)
		}
		if e := allocate(ms + 50); e != ms+51 {
			t.Errorf("above Redis's: %d", e)
		}
		*now = now.Add(-time.Hour)
		if e := allocate(0); e != ms+52 {
			t.Errorf("a clock that went back: %d", e)
		}
		if _, err := s.AllocateEpoch(ctx, 99, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown partition: %v", err)
		}
	})
}

// An epoch that is opened is stored, unless a later one has a number: then that one was told which were opened before it.
func TestEpochsAreStored(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		now := clock(s)
		store := func(e ledger.EpochRecord, want bool) {
			t.Helper()
			if stored := value[bool](t)(s.StoreEpoch(ctx, e)); stored != want {
				t.Errorf("epoch %d of partition %d, stored: %v", e.Epoch, e.Partition, stored)
			}
		}
		first := value[ledger.BeginCall](t)(s.AllocateEpoch(ctx, 1, 0)).Epoch
		rec := ledger.EpochRecord{Partition: 1, Epoch: first, End: 100, Reporters: []ledger.ID{id(1), id(2)}, OpenedAt: *now}
		store(rec, true)
		zombie := rec
		zombie.End, zombie.Reporters = 90, nil
		store(zombie, true)
		next := value[ledger.BeginCall](t)(s.AllocateEpoch(ctx, 1, 0))
		if next.Opened != first || next.Epoch <= first {
			t.Errorf("after epoch %d was opened: %+v", first, next)
		}
		overtaken := rec
		overtaken.End = 110
		store(overtaken, false)
		restored := ledger.EpochRecord{Partition: 1, Epoch: next.Epoch + 5, End: 100, Reporters: []ledger.ID{}, OpenedAt: *now}
		store(restored, true) // the database has lost its number
		store(ledger.EpochRecord{Partition: 2, Epoch: 8, OpenedAt: *now}, true)
		diff(t, "epochs", value[[]ledger.EpochRecord](t)(s.Epochs(ctx, 1)), []ledger.EpochRecord{rec, restored})
		if n := len(value[[]ledger.EpochRecord](t)(s.Epochs(ctx, -1))); n != 3 {
			t.Errorf("%d epochs in all", n)
		}
		*now = now.Add(-time.Hour)
		if call := value[ledger.BeginCall](t)(s.AllocateEpoch(ctx, 1, 0)); call.Opened != restored.Epoch || call.Epoch != restored.Epoch+1 {
			t.Errorf("above an epoch that is open: %+v", call)
		}
	})
}

func TestProducersLifeCycle(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		now := clock(s)
		a := Producer{ID: id(1), Node: "n1", Addr: "h:1", Version: "v1", Diskless: true}
		must(t, s.RegisterProducer(ctx, a))
		must(t, s.RegisterProducer(ctx, a))
		must(t, s.RegisterProducer(ctx, Producer{ID: id(2), Node: "n2"}))
		if lost := value[[]ledger.ID](t)(s.Heartbeat(ctx, id(1), id(2), id(3))); len(lost) != 1 || lost[0] != id(3) {
			t.Errorf("lost %v", lost)
		}
		a.State, a.Beat, a.StartedAt, a.UpdatedAt = ProducerLive, 1, *now, *now
		diff(t, "producer", value[[]Producer](t)(s.Producers(ctx))[0], a)
		if ok, err := s.GiveUp(ctx, id(1), 0); ok || err != nil {
			t.Errorf("given up by an old beat: %v %v", ok, err)
		}
		if ok, err := s.GiveUp(ctx, id(1), 1); !ok || err != nil {
			t.Errorf("not given up: %v %v", ok, err)
		}
		if lost := value[[]ledger.ID](t)(s.Heartbeat(ctx, id(1))); len(lost) != 1 {
			t.Error("a producer that was given up beats on")
		}
		must(t, s.CloseProducer(ctx, id(1)))
		if err := s.RegisterProducer(ctx, a); !errors.Is(err, ErrExists) {
			t.Errorf("a closed producer registered: %v", err)
		}
		if err := s.CloseProducer(ctx, id(9)); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		l := newLog(0)
		l.add(id(1), usage(userIn(0, 0), 0, 0, 1))
		l.add(id(2), usage(userIn(0, 0), 0, 0, 1))
		l.flush(t, s)
		if n := value[int](t)(s.PruneProducers(ctx, *now)); n != 0 {
			t.Errorf("%d pruned too early", n)
		}
		if n := value[int](t)(s.PruneProducers(ctx, now.Add(time.Second))); n != 1 {
			t.Errorf("%d pruned", n)
		}
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_watermarks"); n != 1 {
			t.Errorf("%d marks left", n)
		}
	})
}

// What was given up is known for as long as it matters to epochs, and its marks stay until its disk cannot be expected any more.
func TestGoneProducersAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		now := clock(s)
		must(t, s.RegisterProducer(ctx, Producer{ID: id(1), Node: "disk"}))
		must(t, s.RegisterProducer(ctx, Producer{ID: id(2), Node: "none", Diskless: true}))
		must(t, s.RegisterProducer(ctx, Producer{ID: id(3), Node: "lives"}))
		l := newLog(0)
		for n := uint64(1); n <= 3; n++ {
			l.add(id(n), usage(userIn(0, 0), 0, 0, 1))
		}
		l.flush(t, s)
		for n := uint64(1); n <= 2; n++ {
			if ok, err := s.GiveUp(ctx, id(n), 0); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		for _, step := range []struct {
			after         time.Duration
			listed, marks int
		}{{goneKnown - time.Hour, 3, 3}, {2 * time.Hour, 1, 2}, {goneKept - goneKnown - 2*time.Hour, 1, 2}, {2 * time.Hour, 1, 1}} {
			*now = now.Add(step.after)
			_ = value[int](t)(s.PruneProducers(ctx, now.Add(-7*24*time.Hour)))
			if n := len(value[[]Producer](t)(s.Producers(ctx))); n != step.listed {
				t.Errorf("%s: %d are listed, want %d", step.after, n, step.listed)
			}
			if n := number(t, s, "SELECT COUNT(*) FROM ledger_watermarks"); n != int64(step.marks) {
				t.Errorf("%s: %d marks, want %d", step.after, n, step.marks)
			}
		}
	})
}

// The epochs that are remembered are bounded: the newest stay.
func TestOldEpochsAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		must(t, s.Tx(t.Context(), func(tx *Tx) error {
			for n := 1; n <= keepEpochs; n++ {
				_, err := tx.Exec(t.Context(), "INSERT INTO ledger_epochs (part, epoch, end_offset, reporters, opened_at) VALUES (1, ?, ?, '[]', 0), (2, ?, 0, '[]', 0)", n, n, n)
				if err != nil {
					return err
				}
			}
			return nil
		}))
		for n := keepEpochs + 1; n <= keepEpochs+3; n++ {
			value[bool](t)(s.StoreEpoch(t.Context(), ledger.EpochRecord{Partition: 1, Epoch: uint64(n), End: int64(n)}))
		}
		list := value[[]ledger.EpochRecord](t)(s.Epochs(t.Context(), 1))
		if len(list) != keepEpochs || list[0].Epoch != 4 || list[len(list)-1].Epoch != keepEpochs+3 {
			t.Errorf("%d epochs, from %d to %d", len(list), list[0].Epoch, list[len(list)-1].Epoch)
		}
		if n := len(value[[]ledger.EpochRecord](t)(s.Epochs(t.Context(), 2))); n != keepEpochs {
			t.Errorf("%d epochs of another partition", n)
		}
	})
}

func TestOutboxLeasesAndMovesAgain(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		now := clock(s)
		pending := func() int { t.Helper(); return len(value[[]OutboxRow](t)(s.OutboxPending(ctx, 10))) }
		add := func(key string) error {
			return s.Tx(ctx, func(tx *Tx) error {
				_, err := tx.Outbox(ctx, ledger.Event{Kind: ledger.KindCreditGranted, User: 7, Granted: 5}, key)
				return err
			})
		}
		must(t, add("admin:x:7"))
		must(t, add("admin:X:7")) // keys differ by case
		for _, key := range []string{"admin:x:7"} {
			if err := add(key); !errors.Is(err, ErrExists) {
				t.Errorf("%s again: %v", key, err)
			}
		}
		if err := add("admin:x"); err == nil {
			t.Error("a key without its user is accepted")
		}
		if _, _, err := s.OutboxBacklog(ctx); err != nil {
			t.Error(err)
		}
		rows := value[[]OutboxRow](t)(s.OutboxPending(ctx, 10))
		if len(rows) != 2 {
			t.Fatalf("%d rows", len(rows))
		}
		e := rows[0].Event
		if e.ID.IsZero() || e.Version != 1 || e.Key != rows[0].Key || e.Time != now.UnixMilli() || !e.Producer.IsZero() {
			t.Errorf("%+v", e)
		}
		if n := pending(); n != 0 {
			t.Errorf("%d rows while they are leased", n)
		}
		*now = now.Add(outboxLease)
		if n := pending(); n != 2 {
			t.Errorf("%d rows after the lease", n)
		}
		must(t, s.OutboxMoved(ctx, rows[0].Key))
		*now = now.Add(outboxLease)
		if n := pending(); n != 1 {
			t.Errorf("%d rows after one was moved", n)
		}
		*now = now.Add(outboxAgain)
		again := value[[]OutboxRow](t)(s.OutboxPending(ctx, 10))
		if len(again) != 2 {
			t.Errorf("%d rows a minute later", len(again))
		}
		diff(t, "the same event", again[0], rows[0], cmpopts.EquateEmpty())
		// A node whose clock is an hour ahead took them and died: the others do not wait for that hour.
		*now = now.Add(time.Hour)
		if n := pending(); n != 2 {
			t.Errorf("%d rows for the node whose clock is ahead", n)
		}
		*now = now.Add(-time.Hour)
		if n := pending(); n != 2 {
			t.Errorf("%d rows for the others", n)
		}
		if n, oldest, err := s.OutboxBacklog(ctx); n != 2 || oldest.IsZero() || err != nil {
			t.Errorf("backlog %d %v %v", n, oldest, err)
		}
		p := ledger.Partition(7, testPartitions)
		l := newLog(p)
		l.add(id(1), rows[0].Event)
		l.flush(t, s)
		must(t, s.OutboxMoved(ctx, rows[0].Key)) // too late: it stays applied
		if ok := value[bool](t)(s.OutboxApplied(ctx, rows[0].Key)); !ok {
			t.Error("not applied")
		}
		if _, err := s.OutboxApplied(ctx, "no:7"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
}

// Numbers of the change log become visible in order, however the writers overlap.
func TestChangesAreSeenInOrder(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					if err := s.Tx(ctx, func(tx *Tx) error {
						tx.Changed("user", 1)
						tx.Changed("token", 2)
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		var seen int64
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			for _, c := range value[[]Change](t)(s.Changes(ctx, seen, 1000)) {
				if c.Seq != seen+1 {
					t.Fatalf("change %d after %d", c.Seq, seen)
				}
				seen = c.Seq
			}
		}
		if last := value[int64](t)(s.LastChange(ctx)); seen != 160 || last != 160 {
			t.Errorf("saw %d, last %d", seen, last)
		}
		if n := value[int](t)(s.PruneChanges(ctx, time.Now().Add(time.Hour))); n != 160 {
			t.Errorf("%d pruned", n)
		}
		if last := value[int64](t)(s.LastChange(ctx)); last != 160 {
			t.Errorf("last %d after pruning", last)
		}
	})
}

func TestAdoptLog(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		l := newLog(0)
		l.add(id(1), usage(userIn(0, 0), 0, 0, 1))
		l.flush(t, s)
		old := value[SnapshotInfo](t)(s.TakeSnapshot(t.Context(), 0))
		other := value[SnapshotInfo](t)(s.TakeSnapshot(t.Context(), 1))
		for p := range 2 {
			value[bool](t)(s.StoreEpoch(t.Context(), ledger.EpochRecord{Partition: p, Epoch: 5, End: 1}))
		}
		must(t, s.AdoptLog(t.Context(), 0, 40))
		snapshots := value[[]SnapshotInfo](t)(s.Snapshots(t.Context()))
		if len(snapshots) != 2 || snapshots[0].ID == old.ID || snapshots[0].Offset != 40 || snapshots[0].Accounts != old.Accounts || snapshots[1].ID != other.ID {
			t.Errorf("snapshots %+v", snapshots)
		}
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_snapshot_chunks WHERE snapshot = ?", old.ID); n != 0 {
			t.Errorf("%d chunks of a snapshot that is gone", n)
		}
		if left := value[[]ledger.EpochRecord](t)(s.Epochs(t.Context(), -1)); len(left) != 1 || left[0].Partition != 1 {
			t.Errorf("epochs %+v", left)
		}
		diff(t, "position", value[PartitionState](t)(s.Partition(t.Context(), 0)), PartitionState{Offset: 40, LastFrom: 40, LastTo: 40, LastOffset: -1})
	})
}
