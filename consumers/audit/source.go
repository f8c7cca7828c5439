package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/sqlstore"
)

// span is a range of offsets, to exclusive.
type span struct{ from, to int64 }

// usagePatience bounds the wait for a usage log that is behind the balances: it commonly is, by a second or two.
const usagePatience = time.Minute

// pollEvery is how often a store that lags is looked at.
const pollEvery = 20 * time.Millisecond

// beginning is where a fold of one partition begins: at a snapshot, or with nothing at offset 0.
type beginning struct {
	offset   int64
	snapshot *sqlstore.SnapshotInfo // nil: none
}

// errNoBeginning means that a source does not hold all events and there is no snapshot to begin at.
var errNoBeginning = errors.New("no snapshot to begin at")

// beginnings chooses where to begin in each partition.
type beginnings struct {
	Stores
	snapshots map[int][]sqlstore.SnapshotInfo // by partition, by offset
	now       time.Time
}

func newBeginnings(ctx context.Context, s Stores, now time.Time) (*beginnings, error) {
	list, err := s.DB.Snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	b := &beginnings{Stores: s, snapshots: map[int][]sqlstore.SnapshotInfo{}, now: now}
	for _, info := range list {
		b.snapshots[info.Partition] = append(b.snapshots[info.Partition], info)
	}
	return b, nil
}

// inLog returns where a fold of the log begins: at 0, or, if the log does not reach back so far or is not the first one, at the
// oldest snapshot that was taken of it. Errors: errNoBeginning.
func (b *beginnings) inLog(ctx context.Context, partition int) (beginning, error) {
	first, _, err := b.Log.Bounds(ctx, partition)
	if err != nil {
		return beginning{}, fmt.Errorf("read the bounds of partition %d: %w", partition, err)
	}
	usage, err := b.Usage.Position(ctx, partition)
	if err != nil {
		return beginning{}, fmt.Errorf("read the usage log's position: %w", err)
	}
	if first == 0 && usage.Log == 0 {
		return beginning{}, nil
	}
	for i := range b.snapshots[partition] {
		info := &b.snapshots[partition][i]
		ours, err := b.ofThisLog(ctx, info, first)
		if err != nil {
			return beginning{}, err
		}
		if ours {
			return beginning{info.Offset, info}, nil
		}
	}
	return beginning{}, fmt.Errorf("partition %d of the log begins at offset %d, after events that the balances have: %w", partition, first, errNoBeginning)
}

// ofThisLog reports whether a snapshot was taken of the log that is there, and reaches it.
func (b *beginnings) ofThisLog(ctx context.Context, info *sqlstore.SnapshotInfo, first int64) (bool, error) {
	if info.Offset < first {
		return false, nil
	}
	return b.holds(ctx, info.Partition, info.LastOffset, info.LastEvent)
}

// holds reports whether an event lies at an offset of the log, as far as can be told: a record that is gone tells nothing.
func (s Stores) holds(ctx context.Context, partition int, offset int64, event ledger.ID) (bool, error) {
	first, end, err := s.Log.Bounds(ctx, partition)
	if err != nil {
		return false, fmt.Errorf("read the bounds of partition %d: %w", partition, err)
	}
	switch {
	case event.IsZero() || offset < first:
		return true, nil
	case offset >= end:
		return false, nil
	}
	record, err := s.Log.ReadAt(ctx, partition, offset)
	switch {
	case errors.Is(err, eventlog.ErrNoRecord):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read record %d of partition %d: %w", offset, partition, err)
	}
	return record.Event.ID == event, nil
}

// inUsage returns where a fold of the usage log begins: at 0, or, if its rows expire, at the oldest snapshot whose rows
// surely did not. Without one nothing expires (Retain sees to that).
func (b *beginnings) inUsage(partition int) beginning {
	if b.UsageKept == 0 {
		return beginning{}
	}
	oldest := b.now.Add(snapshotMargin(b.UsageKept) - b.UsageKept)
	for i := range b.snapshots[partition] {
		if info := &b.snapshots[partition][i]; info.TakenAt.After(oldest) {
			return beginning{info.Offset, info}
		}
	}
	return beginning{}
}

// resume brings a fold to its beginning.
func (s Stores) resume(ctx context.Context, fold *ledger.Fold, at beginning) error {
	if at.snapshot == nil {
		return nil
	}
	snapshot, err := s.DB.LoadSnapshot(ctx, at.snapshot.ID)
	if err != nil {
		return fmt.Errorf("load the snapshot to begin at: %w", err)
	}
	fold.Resume(snapshot.Partition, snapshot.Balances, snapshot.Marks, snapshot.Keys)
	return nil
}

// readLog calls fn for each record of a range of the log.
func (s Stores) readLog(ctx context.Context, partition int, r span, fn func(*ledger.Record) error) error {
	err := s.Log.Read(ctx, partition, r.from, r.to, func(records []ledger.Record) error {
		for i := range records {
			if err := newer(&records[i]); err != nil {
				return err
			}
			if err := fn(&records[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read [%d, %d) of partition %d of the log: %w", r.from, r.to, partition, err)
	}
	return nil
}

// readUsage calls fn for each record of a range as the usage log has it. Under traffic the usage log is a second behind the balances for
// ever: what it lacks comes from the log, if that can be read.
func (s Stores) readUsage(ctx context.Context, partition int, r span, fn func(*ledger.Record) error) error {
	has, err := s.usageReaches(ctx, partition, r.to)
	if err != nil {
		return err
	}
	expired, err := s.redriven(ctx, partition, span{r.from, min(r.to, has)})
	if err != nil {
		return err
	}
	// catchUp calls fn for the re-drives below an offset that the usage log did not have.
	catchUp := func(offset int64) error {
		for ; len(expired) > 0 && expired[0].Offset < offset; expired = expired[1:] {
			if err := fn(&expired[0]); err != nil {
				return err
			}
		}
		return nil
	}
	var decoder ledger.Decoder
	rec := ledger.Record{Partition: partition}
	if err := s.Usage.Scan(ctx, partition, r.from, min(r.to, has), func(offset int64, value []byte) error {
		if err := catchUp(offset); err != nil {
			return err
		}
		if len(expired) > 0 && expired[0].Offset == offset {
			expired = expired[1:]
		}
		decoder.Reset()
		rec.Offset, rec.Value = offset, value
		rec.Err = decoder.Decode(value, &rec.Event)
		if err := newer(&rec); err != nil {
			return err
		}
		return fn(&rec)
	}); err != nil {
		return fmt.Errorf("scan [%d, %d) of partition %d of the usage log: %w", r.from, r.to, partition, err)
	}
	if err := catchUp(r.to); err != nil {
		return err
	}
	if has >= r.to {
		return nil
	}
	return s.readLog(ctx, partition, span{max(has, r.from), r.to}, fn)
}

// redriven returns the re-drives that were applied in a range, by offset, if rows of the usage log expire: a re-drive has the time of its
// original, and expires with it, wherever it lies. The dead-letter store has what it applied. Who sent the copy is not known, so it
// is made a producer of its own.
func (s Stores) redriven(ctx context.Context, partition int, r span) ([]ledger.Record, error) {
	if s.UsageKept == 0 {
		return nil, nil
	}
	var list []ledger.Record
	seen := map[int64]bool{}
	err := s.deadLetters(ctx, func(l *sqlstore.DeadLetter) error {
		if !l.Redriven || l.RedrivePartition != partition || l.RedriveOffset < r.from || l.RedriveOffset >= r.to || seen[l.RedriveOffset] {
			return nil
		}
		event, err := ledger.Decode(l.Value)
		if err != nil {
			return fmt.Errorf("decode the dead letter that was re-driven at %d: %w", l.RedriveOffset, err)
		}
		seen[l.RedriveOffset] = true
		event.Redrive, event.Producer, event.Seq, event.Prev = true, event.ID, 1, 0
		list = append(list, ledger.Record{Partition: partition, Offset: l.RedriveOffset, Value: l.Value, Event: event})
		return nil
	})
	slices.SortFunc(list, func(a, b ledger.Record) int { return cmp.Compare(a.Offset, b.Offset) })
	return list, err
}

// deadLetters calls fn for every dead letter, in order of partition and offset.
func (s Stores) deadLetters(ctx context.Context, fn func(*sqlstore.DeadLetter) error) error {
	const page = 500
	for partition, offset := -1, int64(-1); ; {
		letters, err := s.DB.DeadLetters(ctx, partition, offset, page)
		if err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		for i := range letters {
			partition, offset = letters[i].Partition, letters[i].Offset
			if err := fn(&letters[i]); err != nil {
				return err
			}
		}
		if len(letters) < page {
			return nil
		}
	}
}

// usageReaches returns how far the usage log has come, as soon as it has come to an offset or the log has the rest.
func (s Stores) usageReaches(ctx context.Context, partition int, offset int64) (int64, error) {
	for deadline := time.Now().Add(usagePatience); ; {
		position, err := s.Usage.Position(ctx, partition)
		if err != nil {
			return 0, fmt.Errorf("read the usage log's position: %w", err)
		}
		if position.Offset >= offset {
			return position.Offset, nil
		}
		first, end, err := s.Log.Bounds(ctx, partition)
		if err == nil && first <= position.Offset && offset <= end {
			return position.Offset, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the usage log has the events below offset %d, the balances those below %d: replay when it has caught up, or with -source kafka",
				position.Offset, offset)
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the usage log: %w", ctx.Err())
		}
	}
}

// newer returns the error of a record that only a newer binary can count.
func newer(r *ledger.Record) error {
	if r.Err != nil && errors.Is(r.Err, ledger.ErrNewer) {
		return fmt.Errorf("record %d: use the newer binary: %w", r.Offset, r.Err)
	}
	return nil
}
