package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ledgerline/ledger"
)

// FlushCall applies the records of one partition from offset From up to, but not including, To.
type FlushCall struct {
	Partition int
	From, To  int64
	// Records are in offset order, all within the range; offsets that hold no record (control batches) are absent.
	Records []ledger.Record
	Now     time.Time
}

// FlushResult says what a committed flush did.
type FlushResult struct {
	Skipped    []int64 // offsets that were not applied, ascending: duplicates, used keys, dead letters
	Applied    int     // records applied
	Accounts   int     // accounts changed: rows that were written, however many records there were
	Duplicates int     // records skipped because their producer's mark had passed them
	Dead       []DeadLetter
	Holes      []HoleFound // records that must have been before one of these and never came: alarm (L6)
	Filled     int         // records that filled a hole
	Adopted    int         // hand edits found in New API's columns
	Saturated  []ledger.Account
	Restored   []string // keys whose outbox row was missing: the database had lost its transaction
	Alarms     []string // for people
}

// HoleFound is a gap in a producer's sequence.
type HoleFound struct {
	Producer ledger.ID
	Hole     ledger.Hole
	Offset   int64 // of the record that showed it
}

// flush is one call in work.
type flush struct {
	s      *Store
	tx     *Tx
	call   FlushCall
	result FlushResult

	partitions int
	placeOf    map[int64]int // user to partition, of this batch
	marks      map[ledger.ID]*mark
	keys       map[string]outboxKey // state of every key in the batch, as this transaction will leave it
	dead       map[ledger.ID]bool   // dead letters that a re-drive may still apply
	accounts   [3]map[int64]int     // the last plan's index, for its size
	undecoded  []int
}

// Flush applies a batch in one transaction (DESIGN 8 and 9):
//
//	lock the partition's row, compare the offset       → ErrFenced
//	read and lock marks, keys, dead letters of the batch
//	sum up; lock accounts; adopt hand edits; add; write through
//	store marks, dead letters, keys, position
//	COMMIT                                              ← the commit point
//
// A crash before the commit leaves nothing; after it, the caller finds itself fenced and reads the position. A transient error
// (IsTransient) is the caller's to repeat, with the same call.
func (s *Store) Flush(ctx context.Context, call FlushCall) (FlushResult, error) {
	f := &flush{s: s, call: call}
	err := f.check()
	if err == nil {
		err = s.once(ctx, func(tx *Tx) error { f.tx = tx; return f.run(ctx) })
	}
	if err != nil {
		return FlushResult{}, fmt.Errorf("flush partition %d [%d, %d): %w", call.Partition, call.From, call.To, err)
	}
	return f.result, nil
}

// check refuses calls that no state of the database could make right.
func (f *flush) check() error {
	if f.call.From < 0 || f.call.To < f.call.From {
		return errors.New("the range is not one")
	}
	next := f.call.From
	for i := range f.call.Records {
		r := &f.call.Records[i]
		if r.Offset < next || r.Offset >= f.call.To || r.Partition != f.call.Partition {
			return fmt.Errorf("record %d/%d is out of place", r.Partition, r.Offset)
		}
		if errors.Is(r.Err, ledger.ErrNewer) {
			return fmt.Errorf("record at %d: %w", r.Offset, r.Err)
		}
		next = r.Offset + 1
	}
	return nil
}

func (f *flush) run(ctx context.Context) error {
	offset, _, err := f.tx.lockPartition(ctx, f.call.Partition)
	if err != nil {
		return err
	}
	if offset != f.call.From {
		return fmt.Errorf("%w: it is %d", ErrFenced, offset)
	}
	if f.call.To == f.call.From {
		return nil
	}
	if f.partitions, err = f.s.partitionCount(ctx, f.tx); err != nil {
		return err
	}
	places, err := f.sift(ctx)
	if err != nil {
		return err
	}
	if err := f.loadKeys(ctx, places); err != nil {
		return err
	}
	for _, at := range f.undecoded {
		if err := f.bury(ctx, at, &permanentError{"undecodable", f.call.Records[at].Err.Error()}); err != nil {
			return err
		}
	}
	if len(places) > 0 {
		if err := f.settle(ctx, places); err != nil {
			return err
		}
	}
	if err := f.tx.storeMarks(ctx, f.call.Partition, f.marks); err != nil {
		return err
	}
	return f.storePosition(ctx)
}

// sift loads the marks of the batch's producers and decides for each record, once, whether it is new. It returns the
// places of those that are.
func (f *flush) sift(ctx context.Context) ([]int, error) {
	f.marks = map[ledger.ID]*mark{}
	f.placeOf = map[int64]int{}
	for i := range f.call.Records {
		if r := &f.call.Records[i]; r.Err == nil {
			if _, ok := f.marks[r.Event.Producer]; !ok {
				f.marks[r.Event.Producer] = &mark{}
			}
		}
	}
	if err := f.tx.loadMarks(ctx, f.call.Partition, f.marks); err != nil {
		return nil, err
	}
	places := make([]int, 0, len(f.call.Records))
	var last *mark
	var lastID ledger.ID
	for i := range f.call.Records {
		r := &f.call.Records[i]
		if r.Err != nil {
			f.undecoded = append(f.undecoded, i)
			continue
		}
		if last == nil || lastID != r.Event.Producer {
			last, lastID = f.marks[r.Event.Producer], r.Event.Producer
		}
		before := last.Mark
		last.changed = true
		switch last.See(r.Event.Seq, r.Event.Prev) {
		case ledger.SightDuplicate:
			f.result.Duplicates++
			f.result.Skipped = append(f.result.Skipped, r.Offset)
			continue
		case ledger.SightAfterHole:
			f.result.Holes = append(f.result.Holes, HoleFound{lastID, ledger.Hole{After: before, Through: r.Event.Prev}, r.Offset})
		case ledger.SightFillsHole:
			f.result.Filled++
		case ledger.SightNew:
		}
		places = append(places, i)
	}
	return places, nil
}

// loadKeys locks the outbox rows of the batch's keys and the dead letters that it would re-drive.
func (f *flush) loadKeys(ctx context.Context, places []int) error {
	var keys []string
	var ids []ledger.ID
	for _, at := range places {
		e := &f.call.Records[at].Event
		if e.Key != "" {
			keys = append(keys, e.Key)
		}
		if e.Redrive {
			keys = append(keys, redriveKey(e.ID))
			ids = append(ids, e.ID)
		}
	}
	var err error
	f.dead = map[ledger.ID]bool{}
	if len(keys) > 0 {
		slices.Sort(keys)
		if f.keys, err = f.tx.lockKeys(ctx, slices.Compact(keys)); err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		f.dead, err = f.tx.lockDead(ctx, ids)
	}
	return err
}

// partitionOf returns the partition of a user.
func (f *flush) partitionOf(user int64) int {
	p, ok := f.placeOf[user]
	if !ok {
		p = ledger.Partition(user, f.partitions)
		f.placeOf[user] = p
	}
	return p
}

// storePosition moves the partition's row: position, range and skipped offsets of this flush, last event.
func (f *flush) storePosition(ctx context.Context) error {
	slices.Sort(f.result.Skipped)
	q := "UPDATE ledger_partitions SET next_offset = ?, last_from = ?, last_to = ?, skipped = ?, updated_at = ?"
	args := []any{f.call.To, f.call.From, f.call.To, encodeOffsets(f.result.Skipped), f.call.Now.UnixMilli()}
	for i := len(f.call.Records) - 1; i >= 0; i-- {
		if r := &f.call.Records[i]; !r.Event.ID.IsZero() {
			q, args = q+", last_offset = ?, last_event = ?", append(args, r.Offset, r.Event.ID[:])
			break
		}
	}
	if _, err := f.tx.Exec(ctx, q+" WHERE part = ?", append(args, f.call.Partition)...); err != nil {
		return fmt.Errorf("store the position: %w", err)
	}
	return nil
}
