package quota

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// How long an epoch waits for an incarnation that does not report (DESIGN 7, epochs, step 3). Only time in which this consumer
// itself reached the database and the log counts, and it counts anew whenever that incarnation's events move.
const (
	patienceDead = 30 * time.Second
	patienceLive = 60 * time.Second
	// beatSilence is how long a heartbeat must stand still for its node to count as dead here; nodes beat every 3 s.
	beatSilence = 10 * time.Second
	// producersFresh is how long the list of incarnations may be used again while nothing is being rebuilt.
	producersFresh = time.Second
	// lookGap bounds the time that one look may count for, so that a consumer that was stopped does not count its own absence.
	lookGap = time.Second
)

// waiting is one partition's rebuild as this consumer has watched it.
type waiting struct {
	offset    int64 // the database's, as last seen here
	epoch     uint64
	lastLook  time.Time
	waited    map[ledger.ID]time.Duration // time that counted, by incarnation
	seq       map[ledger.ID]uint64        // newest sequence seen in the log
	moved     map[ledger.ID]bool          // seq moved since the last look
	beats     map[ledger.ID]beat
	producers []sqlstore.Producer
	fetched   time.Time
}

type beat struct {
	value uint64
	since time.Time
}

func (r *rebuild) of(partition int) *waiting {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waits[partition]
	if w == nil {
		w = &waiting{seq: map[ledger.ID]uint64{}, moved: map[ledger.ID]bool{}, beats: map[ledger.ID]beat{}}
		r.waits[partition] = w
	}
	return w
}

// saw notes which incarnations' events moved.
func (r *rebuild) saw(partition int, records []ledger.Record) {
	w := r.of(partition)
	for i := range records {
		ev := &records[i].Event
		if records[i].Err == nil && ev.Seq > w.seq[ev.Producer] {
			w.seq[ev.Producer] = ev.Seq
			w.moved[ev.Producer] = true
		}
	}
}

// Look implements consumers.Looker: it brings the counters to where the database is, and begins and opens epochs. It is
// called after each flush and whenever the partition is idle.
func (s *Sink) Look(ctx context.Context, partition int) error {
	states, err := s.counters.State(ctx, partition)
	if err != nil {
		return fmt.Errorf("look at the counters: %w", err)
	}
	st := &states[0]
	w := s.rebuild.of(partition)
	if err := s.refresh(ctx, w, st.Open); err != nil {
		return err
	}
	if st.Present && !st.Foreign && st.Open && !w.holdsGone(st) && st.Done >= w.offset {
		return nil
	}
	my, err := s.store.Partition(ctx, partition)
	if err != nil {
		return fmt.Errorf("read quota position: %w", err)
	}
	w.offset = my.Offset
	// The database no longer says what it skipped below the last range, so counters that lag behind it cannot be brought up to date.
	lost := st.Done < my.Offset && st.Done < my.LastFrom
	switch {
	case !st.Present || st.Foreign || lost || w.holdsGone(st):
		return s.beginEpoch(ctx, partition, st, lost)
	case !st.Open:
		if err := s.tryOpen(ctx, w, st); err != nil {
			return err
		}
	}
	if st.Done < my.Offset {
		return s.catchUp(ctx, st, &my)
	}
	return nil
}

// holdsGone reports whether the epoch names an incarnation that was given up.
func (w *waiting) holdsGone(st *ledger.Counters) bool {
	for i := range w.producers {
		if w.producers[i].State == sqlstore.ProducerGone && slices.Contains(st.Members, w.producers[i].ID) {
			return true
		}
	}
	return false
}

// refresh reads the list of incarnations again when it is stale, and how long each has been silent.
func (s *Sink) refresh(ctx context.Context, w *waiting, open bool) error {
	now := s.now()
	if open && now.Sub(w.fetched) < producersFresh {
		return nil
	}
	producers, err := s.store.Producers(ctx)
	if err != nil {
		return fmt.Errorf("read incarnations: %w", err)
	}
	w.producers, w.fetched = producers, now
	for i := range producers {
		p := &producers[i]
		if b, ok := w.beats[p.ID]; !ok || b.value != p.Beat {
			w.beats[p.ID] = beat{p.Beat, now}
		}
	}
	if len(w.beats) > 4*len(producers)+64 {
		w.forget()
	}
	return nil
}

// forget drops what is remembered of incarnations that are closed (L7).
func (w *waiting) forget() {
	known := map[ledger.ID]bool{}
	for i := range w.producers {
		known[w.producers[i].ID] = w.producers[i].State != sqlstore.ProducerClosed
	}
	for id := range w.beats {
		if !known[id] {
			delete(w.beats, id)
			delete(w.seq, id)
			delete(w.moved, id)
			delete(w.waited, id)
		}
	}
}

// beginEpoch allocates a number and begins the epoch, empty, at the database's offset.
func (s *Sink) beginEpoch(ctx context.Context, partition int, st *ledger.Counters, lost bool) error {
	epoch, offset, err := s.store.AllocateEpoch(ctx, partition, st.Epoch)
	if err != nil {
		return fmt.Errorf("allocate epoch: %w", err)
	}
	begun, err := s.counters.Begin(ctx, partition, epoch, offset)
	if err != nil {
		return fmt.Errorf("begin epoch %d: %w", epoch, err)
	}
	if begun {
		s.metrics.epochs.Inc()
		s.log.Info("a new counter epoch begins", "partition", partition, "epoch", epoch, "offset", offset,
			"missing", !st.Present, "foreign", st.Foreign, "behind", lost)
	}
	return nil
}

// tryOpen opens the rebuilding epoch once every incarnation has reported or has been waited for long enough.
func (s *Sink) tryOpen(ctx context.Context, w *waiting, st *ledger.Counters) error {
	_, end, err := s.logs.Bounds(ctx, st.Partition)
	if err != nil {
		return fmt.Errorf("read the end of the log: %w", err)
	}
	now := s.now()
	if w.epoch != st.Epoch {
		w.epoch, w.waited, w.lastLook = st.Epoch, map[ledger.ID]time.Duration{}, now
		clear(w.moved)
	}
	counted := min(now.Sub(w.lastLook), lookGap)
	w.lastLook = now
	for i := range w.producers {
		p := &w.producers[i]
		if p.State != sqlstore.ProducerLive || slices.Contains(st.Reports, p.ID) {
			continue
		}
		if w.moved[p.ID] {
			w.waited[p.ID] = 0
		}
		w.waited[p.ID] += counted
		patience := patienceLive
		if now.Sub(w.beats[p.ID].since) > beatSilence {
			patience = patienceDead
		}
		if w.waited[p.ID] < patience {
			clear(w.moved)
			return nil
		}
		s.log.Warn("an epoch opens without an incarnation that did not report", "partition", st.Partition, "epoch", st.Epoch, "incarnation", p.ID)
	}
	clear(w.moved)
	record := ledger.EpochRecord{Partition: st.Partition, Epoch: st.Epoch, End: end, Reporters: st.Reports, OpenedAt: now}
	if err := s.store.StoreEpoch(ctx, record); err != nil {
		return fmt.Errorf("store epoch %d: %w", st.Epoch, err)
	}
	opened, err := s.counters.OpenEpoch(ctx, st.Partition, st.Epoch, end)
	if err != nil {
		return fmt.Errorf("open epoch %d: %w", st.Epoch, err)
	}
	if opened {
		s.log.Info("a counter epoch is open", "partition", st.Partition, "epoch", st.Epoch, "end", end, "reports", len(st.Reports))
	}
	return nil
}

// catchUp gives the counters what they missed of the last range, from the log.
func (s *Sink) catchUp(ctx context.Context, st *ledger.Counters, my *sqlstore.PartitionState) error {
	to := min(my.Offset, st.Done+catchUpRecords)
	return s.applyRange(ctx, st, span{st.Done, to}, func(r span) ([]ledger.Sum, error) {
		t := newTally(my.Skipped, st.Epoch)
		err := s.logs.Read(ctx, st.Partition, r.from, r.to, func(part []ledger.Record) error {
			t.add(part, r)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read the log again for the counters: %w", err)
		}
		return t.sums(), nil
	})
}
