package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
)

// follower feeds the sink from one partition, from one reading of its position to the next failure.
type follower struct {
	r         *Runner
	partition int
	logger    *slog.Logger

	applied  int64 // the position that the sink has stored
	pending  []ledger.Record
	reached  int64 // the offset after what is pending
	bytes    int   // fetched bytes that pending keeps alive
	due      time.Time
	looked   int64 // the tick of the last look, see Runner.tick
	lookBad  bool  // the last look failed
	progress bool  // something was applied
}

// run follows the partition. It returns ctx's error, ErrFenced, a *stop, or a failure that may pass.
func (f *follower) run(ctx context.Context) error {
	f.r.set(f.partition, func(s *Status) {
		if s.State != StateStopped { // a stopped partition stays one until it proves to be in order
			s.State, s.Reason = StateStarting, ""
		}
	})
	position, err := f.r.sink.Position(ctx, f.partition)
	if err != nil {
		return fmt.Errorf("read position: %w", err)
	}
	if err := f.compare(ctx, position); err != nil {
		return err
	}
	f.applied, f.reached = position.Offset, position.Offset
	f.r.set(f.partition, func(s *Status) { s.State, s.Reason, s.Offset = StateRunning, "", position.Offset })
	if err := f.lookNow(ctx); err != nil {
		return err
	}
	defer f.release()
	err = f.follow(ctx)
	if ctx.Err() != nil && len(f.pending) > 0 {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		_ = f.r.sink.Apply(last, f.partition, f.applied, f.reached, f.pending) // if it fails, the next owner does it
	}
	return err
}

type fetched struct {
	batch eventlog.Batch
	err   error
}

// follow fetches and applies until something fails. The fetcher works one response ahead.
func (f *follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	ahead := make(chan fetched)
	defer func() {
		cancel()
		for range ahead { // until the fetcher has closed it
		}
	}()
	go f.fetch(ctx, f.reached, ahead)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(f.untilNext())
		got, came, err := next(ctx, ahead, timer.C)
		if err != nil {
			return err
		}
		if came && got.err != nil {
			return errors.Join(f.flush(ctx), got.err)
		}
		if came {
			if err := f.take(ctx, got.batch); err != nil {
				return err
			}
		}
		if len(f.pending) > 0 && !time.Now().Before(f.due) {
			if err := f.flush(ctx); err != nil {
				return err
			}
		}
		if f.r.look != nil && f.looked < f.r.tick(time.Now()) {
			if err := f.lookNow(ctx); err != nil {
				return err
			}
		}
	}
}

// next waits for what was fetched or for the timer. What has come goes before what is due: the flush is larger then.
func next(ctx context.Context, ahead <-chan fetched, due <-chan time.Time) (got fetched, came bool, err error) {
	if err := ctx.Err(); err != nil {
		return got, false, err
	}
	select {
	case got := <-ahead:
		return got, true, nil
	default:
	}
	select {
	case <-ctx.Done():
		return got, false, ctx.Err()
	case got := <-ahead:
		return got, true, nil
	case <-due:
		return got, false, nil
	}
}

// untilNext returns how long there is nothing to do but wait for records.
func (f *follower) untilNext() time.Duration {
	wait := time.Hour
	if len(f.pending) > 0 {
		wait = time.Until(f.due)
	}
	if f.r.look != nil {
		wait = min(wait, time.Until(f.r.born.Add(time.Duration(f.looked+1)*f.r.cfg.LookEvery)))
	}
	return max(0, wait)
}

// fetch sends what the partition holds from offset on, until ctx ends or an error that it has sent.
func (f *follower) fetch(ctx context.Context, offset int64, ahead chan<- fetched) {
	defer close(ahead)
	for {
		batch, err := f.r.log.Fetch(ctx, f.partition, offset)
		select {
		case ahead <- fetched{batch, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		f.r.metrics.fetches.Inc()
		offset = batch.Next
		if len(batch.Records) > 0 && offset >= batch.End && !f.r.rest(ctx) {
			return
		}
	}
}

// take adds a batch to what is pending, and applies what is due by size, by urgency, or because the memory is needed.
func (f *follower) take(ctx context.Context, batch eventlog.Batch) error {
	f.r.set(f.partition, func(s *Status) { s.End = batch.End })
	if len(batch.Records) == 0 {
		return nil
	}
	f.bytes += batch.Bytes
	total := f.r.buffered.Add(int64(batch.Bytes))
	records, urgent := batch.Records, false
	var newer *ledger.Record
	for i := range records {
		record := &records[i]
		if errors.Is(record.Err, ledger.ErrNewer) {
			newer, records = record, records[:i]
			break
		}
		if record.Err != nil {
			f.r.metrics.undecodable.Inc()
		}
		urgent = urgent || f.r.cfg.Urgent(record)
	}
	for len(records) > 0 {
		n := min(len(records), f.r.cfg.MaxRecords-len(f.pending))
		f.add(records[:n:n])
		records = records[n:]
		if len(f.pending) >= f.r.cfg.MaxRecords {
			if err := f.flush(ctx); err != nil {
				return err
			}
		}
	}
	if newer != nil {
		return errors.Join(f.flush(ctx), f.newer(newer))
	}
	f.reached = batch.Next
	if urgent || total > int64(f.r.cfg.MaxBuffered) {
		return f.flush(ctx)
	}
	return nil
}

func (f *follower) add(records []ledger.Record) {
	if len(f.pending) == 0 {
		f.due = time.Now().Add(f.r.cfg.Interval - f.r.cfg.FetchEvery) // so long the first may have waited in the log
		f.r.set(f.partition, func(s *Status) { s.Oldest = made(&records[0]) })
		f.pending = records
	} else {
		f.pending = append(f.pending, records...)
	}
	f.reached = records[len(records)-1].Offset + 1
}

// made returns when the event of a record was made, or now if that is not known.
func made(record *ledger.Record) time.Time {
	if record.Err != nil {
		return time.Now()
	}
	return time.UnixMilli(record.Event.Time)
}

func (f *follower) newer(record *ledger.Record) error {
	return &stop{
		reason:  fmt.Sprintf("record %d was written by a newer version: update this binary; nothing is skipped meanwhile", record.Offset),
		err:     record.Err,
		looking: true,
	}
}

// flush applies what is pending, again and again until the sink has it, finds itself fenced, or ctx ends.
func (f *follower) flush(ctx context.Context) error {
	if len(f.pending) == 0 {
		return nil
	}
	for failures := 1; ; failures++ {
		start := time.Now()
		err := f.r.sink.Apply(ctx, f.partition, f.applied, f.reached, f.pending)
		if err == nil {
			f.r.metrics.flushed(len(f.pending), time.Since(start))
			break
		}
		if ctx.Err() != nil || errors.Is(err, ErrFenced) {
			return fmt.Errorf("apply %d records: %w", len(f.pending), err)
		}
		f.r.metrics.retries.Inc()
		f.r.set(f.partition, func(s *Status) { s.State, s.Reason = StateRetrying, err.Error() })
		wait := f.r.retryWait(failures)
		f.logger.Warn("records cannot be applied yet, trying again", "records", len(f.pending), "in", wait, "err", err)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
	f.progress = true
	f.applied = f.reached
	f.release()
	f.r.set(f.partition, func(s *Status) {
		s.State, s.Reason, s.Offset, s.Oldest = StateRunning, "", f.applied, time.Time{}
	})
	f.r.group.Committed(f.partition, f.applied)
	return f.lookNow(ctx)
}

// release forgets what was pending. The records are the sink's now, so their array is not used again.
func (f *follower) release() {
	f.r.buffered.Add(-int64(f.bytes))
	f.pending, f.bytes = nil, 0
}

// lookNow lets the sink look after itself. Only being fenced is an error.
func (f *follower) lookNow(ctx context.Context) error {
	if f.r.look == nil {
		return nil
	}
	err := f.r.look.Look(ctx, f.partition)
	f.looked = f.r.tick(time.Now())
	switch {
	case err == nil, ctx.Err() != nil:
		f.lookBad = false
	case errors.Is(err, ErrFenced):
		return fmt.Errorf("look: %w", err)
	default:
		f.r.metrics.lookErrors.Inc()
		if !f.lookBad {
			f.logger.Warn("looking failed, going on", "err", err)
		}
		f.lookBad = true
	}
	return nil
}

// idle waits for d, looking meanwhile if asked to.
func (f *follower) idle(ctx context.Context, d time.Duration, looking bool) {
	if !looking || f.r.look == nil {
		pause(ctx, d)
		return
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		if !pause(ctx, f.r.cfg.LookEvery) || f.lookNow(ctx) != nil {
			return
		}
	}
}

// compareAttempts is how often a position is compared with the log before the partition is stopped: just after an election the
// new leader may not know yet how far the log was acknowledged.
const compareAttempts = 4

// compare stops the partition unless the log is the one that the position was taken from.
func (f *follower) compare(ctx context.Context, position Position) error {
	for attempt := 1; ; attempt++ {
		err := f.compareOnce(ctx, position)
		var stopped *stop
		if !errors.As(err, &stopped) || attempt == compareAttempts {
			return err
		}
		if !pause(ctx, f.r.retryWait(attempt)) {
			return ctx.Err()
		}
	}
}

func (f *follower) compareOnce(ctx context.Context, position Position) error {
	first, end, err := f.r.log.Bounds(ctx, f.partition)
	if err != nil {
		return err
	}
	f.r.set(f.partition, func(s *Status) { s.End = end })
	why, err := differs(ctx, f.r.log, f.partition, position, first, end)
	if why != nil {
		return f.foreign(why)
	}
	if err == nil && !position.LastEvent.IsZero() && position.LastOffset < first {
		f.logger.Warn("the last record applied is no longer in the log, taking it for the same log", "offset", position.LastOffset, "first", first)
	}
	return err
}

// Foreign returns why a position cannot have been taken from the log that a partition has now: what stops a projection there until an operator
// adopts the log. nil: it can. What the log has dropped since is not held against it.
func Foreign(ctx context.Context, log Log, partition int, position Position) (why, err error) {
	first, end, err := log.Bounds(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("read the bounds of partition %d: %w", partition, err)
	}
	return differs(ctx, log, partition, position, first, end)
}

func differs(ctx context.Context, log Log, partition int, position Position, first, end int64) (why, err error) {
	if position.Offset < first || position.Offset > end {
		return fmt.Errorf("the position is %d, the log holds [%d, %d]", position.Offset, first, end), nil
	}
	if position.LastEvent.IsZero() || position.LastOffset < first {
		return nil, nil
	}
	record, err := log.ReadAt(ctx, partition, position.LastOffset)
	switch {
	case errors.Is(err, eventlog.ErrNoRecord), errors.Is(err, eventlog.ErrOutOfRange):
		return err, nil
	case err != nil:
		return nil, err
	case errors.Is(record.Err, ledger.ErrNewer): // an older binary than the one that applied it stops there by itself
	case record.Event.ID != position.LastEvent: // a dead letter may have an identity, too, and be the last there is
		return fmt.Errorf("record %d is event %s, but event %s was applied from there", position.LastOffset, record.Event.ID, position.LastEvent), nil
	}
	return nil, nil
}

func (f *follower) foreign(err error) error {
	return &stop{
		reason: fmt.Sprintf("this is not the log that the projection was built from (topic recreated, truncated or expired?); "+
			"if that is meant, run: ledgerline consume -adopt-log -projection %s -partition %d", f.r.cfg.Name, f.partition),
		err: err,
	}
}
