package quota

import (
	"context"
	"fmt"
	"slices"

	"ledgerline/consumers"
	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// Look implements consumers.Looker: it brings the counters to where the database is, and begins and opens epochs. It is
// called after each flush and whenever the partition is idle.
//
// The order of the reads is what makes it right beside another consumer, a zombie, or its own earlier self: the database's position
// first, then the counters, then, only if an epoch may be opened, the incarnations, and the end of the log last. So whatever the
// log holds up to that position names no epoch that is newer than the counters looked at, every incarnation that can hold
// something of an older epoch is on the list, and what those had in the log when they reported or closed lies before its end.
func (s *Sink) Look(ctx context.Context, partition int) error {
	w := s.waits.of(partition)
	st, err := s.state(ctx, partition)
	if err != nil {
		return err
	}
	producers, err := s.registry.list(ctx, s.now(), producersFresh)
	if err != nil {
		return err
	}
	now := s.now()
	strangers := w.strangers(&st, producers, now)
	inStep := st.Present && !st.Foreign && st.Open && st.Done == w.offset && st.Floor <= w.offset && !holdsGone(producers, &st) && len(strangers) == 0
	if inStep && now.Sub(w.checked) < positionFresh {
		return nil
	}
	my, err := s.store.Partition(ctx, partition)
	if err != nil {
		return fmt.Errorf("read quota position: %w", err)
	}
	if my.Offset != w.offset {
		return fmt.Errorf("the position is %d, not %d (another consumer, or a restored database): %w", my.Offset, w.offset, consumers.ErrFenced)
	}
	// Counters that the database does not speak of may have served meanwhile, in an epoch of their own: those of a node's own
	// process, where REDIS_CONN_STRING was left out. These are an epoch behind then, though nothing was charged there.
	if w.checked = now; inStep && st.Epoch >= my.Epoch {
		return nil
	}
	if st, err = s.state(ctx, partition); err != nil {
		return err
	}
	why, err := s.lost(ctx, &st, &my)
	if err != nil {
		return err
	}
	if why == "" && holdsGone(producers, &st) {
		why = "they name an incarnation that was given up"
	}
	if why == "" && len(strangers) > 0 {
		why = "they name an incarnation that the database has lost, and that nobody closes"
	}
	if why != "" {
		return s.beginEpoch(ctx, &st, append(given(producers), strangers...), why)
	}
	if !st.Open {
		if err := s.tryOpen(ctx, w, &st); err != nil {
			return err
		}
	}
	if st.Done < my.Offset {
		return s.catchUp(ctx, &st, &my)
	}
	return nil
}

// state looks at the counters of one partition.
func (s *Sink) state(ctx context.Context, partition int) (ledger.Counters, error) {
	ctx, cancel := context.WithTimeout(ctx, statePatience)
	defer cancel()
	states, err := s.counters.State(ctx, partition)
	if err != nil {
		return ledger.Counters{}, fmt.Errorf("look at the counters: %w", err)
	}
	return states[0], nil
}

// lost says why the counters cannot go on, or nothing.
func (s *Sink) lost(ctx context.Context, st *ledger.Counters, my *sqlstore.PartitionState) (string, error) {
	switch {
	case !st.Present:
		return "they are missing", nil
	case st.Foreign:
		return "they were begun on another server", nil
	case st.Epoch < my.Epoch:
		// Whoever took the number died, or a zombie began an older epoch after the newer one was lost: no node follows back.
		return "a later epoch was to begin", nil
	case st.Done < my.Offset && st.Done < my.LastFrom:
		// The database no longer says what it skipped below its last range.
		return "they are further behind than the last flush", nil
	case st.Done <= my.Offset && st.Floor <= my.Offset:
		return "", nil
	case st.Done > my.Offset && my.LastFrom == my.LastTo:
		return "the log was adopted behind them", nil
	}
	// A database that was restored to an older state applies again what the counters have. A log that was truncated or made anew does
	// not: its offsets mean other events.
	_, end, err := s.logs.Bounds(ctx, st.Partition)
	if err != nil {
		return "", fmt.Errorf("read the end of the log: %w", err)
	}
	if st.Done > end || st.Floor > end { // accounts are loaded from the floor on: without what it waits for, none is
		return "they are beyond the end of the log", nil
	}
	return "", nil
}

// holdsGone reports whether the epoch names an incarnation that was given up.
func holdsGone(producers []incarnation, st *ledger.Counters) bool {
	for i := range producers {
		if producers[i].State == sqlstore.ProducerGone && slices.Contains(st.Members, producers[i].ID) {
			return true
		}
	}
	return false
}

// given are the incarnations that were given up.
func given(producers []incarnation) (gone []ledger.ID) {
	for i := range producers {
		if producers[i].State == sqlstore.ProducerGone {
			gone = append(gone, producers[i].ID)
		}
	}
	return gone
}

// beginEpoch allocates a number and begins the epoch, empty, at the database's offset, and closed to those that are gone: one
// that still reaches the counters but not the database cannot know, and would join every epoch that was begun to be rid of it.
func (s *Sink) beginEpoch(ctx context.Context, st *ledger.Counters, gone []ledger.ID, why string) error {
	call, err := s.store.AllocateEpoch(ctx, st.Partition, st.Epoch)
	if err != nil {
		return fmt.Errorf("allocate epoch: %w", err)
	}
	call.Gone = gone
	begun, err := s.counters.Begin(ctx, call)
	if err != nil {
		return fmt.Errorf("begin epoch %d: %w", call.Epoch, err)
	}
	if begun {
		s.metrics.epochs.Inc()
		s.log.Info("a new counter epoch begins", "partition", st.Partition, "epoch", call.Epoch, "offset", call.Offset, "why", why)
	}
	return nil
}

// tryOpen opens the rebuilding epoch once every incarnation has reported or has been waited for long enough.
func (s *Sink) tryOpen(ctx context.Context, w *waiting, st *ledger.Counters) error {
	if _, _, err := s.logs.Bounds(ctx, st.Partition); err != nil {
		return fmt.Errorf("read the end of the log: %w", err)
	}
	now := s.now()
	producers, err := s.registry.list(ctx, now, rebuildFresh)
	if err != nil {
		return err
	}
	w.count(st, producers, now) // only here: the database and the log have both answered
	if _, ready := w.ready(st, producers, now); !ready {
		return nil
	}
	// An incarnation that registered a moment ago may have reserved in the epoch before: the list must be newer than this epoch.
	if producers, err = s.registry.list(ctx, now, 0); err != nil {
		return err
	}
	silent, ready := w.ready(st, producers, now)
	if !ready {
		return nil
	}
	_, end, err := s.logs.Bounds(ctx, st.Partition)
	if err != nil {
		return fmt.Errorf("read the end of the log: %w", err)
	}
	if ready, err = s.raiseFloor(ctx, st, end); err != nil || !ready {
		return err
	}
	record := ledger.EpochRecord{Partition: st.Partition, Epoch: st.Epoch, End: end, Reporters: st.Reports, OpenedAt: now}
	if stored, err := s.store.StoreEpoch(ctx, record); err != nil {
		return fmt.Errorf("store epoch %d: %w", st.Epoch, err)
	} else if !stored {
		return nil // a later one is about to begin; if it does not, the next look begins one
	}
	opened, err := s.counters.OpenEpoch(ctx, st.Partition, st.Epoch, end)
	if err != nil {
		return fmt.Errorf("open epoch %d: %w", st.Epoch, err)
	}
	if !opened {
		return nil
	}
	w.done()
	s.log.Info("a counter epoch is open", "partition", st.Partition, "epoch", st.Epoch, "end", end, "reports", len(st.Reports))
	if len(silent) > 0 {
		s.log.Warn("it was opened without incarnations that did not report in time; what they still charge is late",
			"partition", st.Partition, "epoch", st.Epoch, "incarnations", silent)
	}
	return nil
}

// raiseFloor raises the floor of a rebuilding epoch to the end at which it is about to be noted as opened, and reports whether it is rebuilding
// still. Whoever opens it from then on, a zombie that noted an earlier end or a call that was long on its way, opens it at this
// floor at least: what the note says is not late has been counted before anything is loaded (L3).
func (s *Sink) raiseFloor(ctx context.Context, st *ledger.Counters, end int64) (rebuilding bool, err error) {
	// Sums of nothing raise the floor and leave the rest as it is, wherever done may be.
	if _, err := s.counters.Apply(ctx, ledger.ApplyCall{Partition: st.Partition, Epoch: st.Epoch, From: end, To: end}); err != nil {
		return false, fmt.Errorf("raise the floor of epoch %d: %w", st.Epoch, err)
	}
	now, err := s.state(ctx, st.Partition)
	return err == nil && now.Present && !now.Foreign && now.Epoch == st.Epoch && !now.Open, err
}

// catchUp gives the counters what they missed of the last range, from the log.
func (s *Sink) catchUp(ctx context.Context, st *ledger.Counters, my *sqlstore.PartitionState) error {
	to := min(my.Offset, st.Done+catchUpRecords)
	t := newTally(my.Skipped, st.Epoch)
	s.waits.of(st.Partition).missed = false
	return s.applyRange(ctx, st, span{st.Done, to}, func(r span) ([]ledger.Sum, error) {
		t.clear()
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
