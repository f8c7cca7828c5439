package usagelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ledgerline/consumers"
	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// Config says what a sink writes to and how it gathers. Zero fields but Store take the defaults.
type Config struct {
	Store usagelog.Writer
	// Gather is how long the batch of one partition waits for those of others, to be stored together: an INSERT of
	// ClickHouse has a fixed cost, in the server long after it was answered.
	Gather time.Duration
	// GatherRows ends the wait: so many rows are worth an INSERT.
	GatherRows int
	Now        func() time.Time // the time of dead letters; nil means time.Now
}

const (
	// DefaultGatherRows is the size from which ClickHouse's cost per INSERT hardly matters.
	DefaultGatherRows = 10_000
	// GatherClickHouse keeps INSERTs at a few a second however many partitions this process owns.
	GatherClickHouse = 500 * time.Millisecond
	// appendTimeout bounds the storing of one group (L7): longer than any server takes that is not gone.
	appendTimeout = 2 * time.Minute
	// farewell is what is left of it once the partition that gathers was given away: its next owner waits.
	farewell = 2 * time.Second
)

// Runner settings for this sink. With them a row is in the usage log within about 3 s on ClickHouse, 0.3 s on SQL.
var (
	// ForClickHouse batches by 2.5 s, or 20,000 records: each INSERT makes a part, and every part is merged again and again. At
	// 3,000 events a second this takes half of the server's CPU that batches of 1 s took.
	ForClickHouse = consumers.Config{MaxRecords: 20_000, MaxBuffered: 64 << 20, Interval: 2500 * time.Millisecond, FetchEvery: 500 * time.Millisecond}
	// ForSQL batches by 200 ms, or 2,000 records: a transaction of more would hold its locks for long.
	ForSQL = consumers.Config{MaxRecords: 2_000, Interval: 200 * time.Millisecond}
)

// Sink is the usage log as a projection. Apply may be called for several partitions at once.
type Sink struct {
	cfg  Config
	turn chan struct{} // holds a token while a group is gathered and stored
	more chan struct{} // tells who gathers that more has come

	mu      sync.Mutex
	pending []*entry                  // guarded by mu; at most one per partition
	at      map[int]usagelog.Position // guarded by mu; the position of each partition, as last read or stored
}

// entry is one partition's batch on its way.
type entry struct {
	batch usagelog.Batch
	done  chan error // gets the outcome; buffered, so that nobody waits for one who left
}

// New returns a sink.
func New(cfg Config) *Sink {
	if cfg.GatherRows <= 0 {
		cfg.GatherRows = DefaultGatherRows
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sink{cfg: cfg, turn: make(chan struct{}, 1), more: make(chan struct{}, 1), at: map[int]usagelog.Position{}}
}

var _ consumers.Sink = (*Sink)(nil)

// Position implements consumers.Sink.
func (s *Sink) Position(ctx context.Context, partition int) (consumers.Position, error) {
	at, err := s.cfg.Store.Position(ctx, partition)
	if err != nil {
		return consumers.Position{}, err
	}
	s.mu.Lock()
	s.at[partition] = at
	s.mu.Unlock()
	return consumers.Position{Offset: at.Offset, LastEvent: at.LastEvent, LastOffset: at.LastOffset}, nil
}

// Apply implements consumers.Sink. Two consumers that apply the same records do no harm, so from is only compared with the
// position that this sink knows, which tells it from which log the records are.
func (s *Sink) Apply(ctx context.Context, partition int, from, to int64, records []ledger.Record) error {
	s.mu.Lock()
	at, known := s.at[partition]
	s.mu.Unlock()
	if !known || at.Offset != from {
		return fmt.Errorf("append to usage log at offset %d: %w", from, consumers.ErrFenced)
	}
	batch, err := s.batch(at, partition, to, records)
	if err != nil {
		return err
	}
	if err := s.store(ctx, &entry{batch: batch, done: make(chan error, 1)}); err != nil {
		return err
	}
	s.mu.Lock()
	s.at[partition] = batch.Position
	s.mu.Unlock()
	return nil
}

// batch turns records into what is stored: a pure function but for the time of dead letters.
func (s *Sink) batch(at usagelog.Position, partition int, to int64, records []ledger.Record) (usagelog.Batch, error) {
	b := usagelog.Batch{Partition: partition, Position: at, Rows: make([]usagelog.Row, 0, len(records))}
	for i := range records {
		r := &records[i]
		switch {
		case errors.Is(r.Err, ledger.ErrNewer):
			return b, fmt.Errorf("append offset %d to usage log: %w", r.Offset, r.Err)
		case r.Err != nil:
			b.Dead = append(b.Dead, usagelog.DeadLetter{
				Place:  usagelog.Place{Partition: partition, Offset: r.Offset},
				Reason: r.Err.Error(), Value: r.Value, At: s.cfg.Now(),
			})
		default:
			b.Rows = append(b.Rows, usagelog.RowOf(r))
			b.Position.LastEvent, b.Position.LastOffset = r.Event.ID, r.Offset
		}
	}
	b.Position.Offset = to
	return b, nil
}

// store hands the batch in and waits until it is stored: by another partition's goroutine that gathers, or by this one.
func (s *Sink) store(ctx context.Context, e *entry) error {
	s.mu.Lock()
	s.pending = append(s.pending, e)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		s.withdraw(e)
		return ctx.Err()
	case s.turn <- struct{}{}:
	}
	s.gather(ctx, e)
	<-s.turn
	return <-e.done
}

// withdraw takes a batch back that nobody has begun to store.
func (s *Sink) withdraw(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = slices.DeleteFunc(s.pending, func(p *entry) bool { return p == e })
}

// gather waits for the batches of other partitions, stores all, and tells each its outcome. It does nothing if own, the
// caller's batch, was stored by another one before it was its turn.
func (s *Sink) gather(ctx context.Context, own *entry) {
	timer := time.NewTimer(s.cfg.Gather)
	defer timer.Stop()
	rows, mine := s.waiting(own)
	if !mine {
		return
	}
	for ended := false; !ended && rows < s.cfg.GatherRows; rows, _ = s.waiting(own) {
		select {
		case <-timer.C:
			ended = true
		case <-ctx.Done():
			ended = true
		case <-s.more:
		}
	}
	s.mu.Lock()
	group := s.pending
	s.pending = nil
	s.mu.Unlock()
	// The group is not only the caller's: that this partition is given away must not keep the others from being stored.
	shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(farewell, cancel) })()
	s.append(shared, group)
}

// waiting returns how many rows are handed in, and whether own is among them.
func (s *Sink) waiting(own *entry) (rows int, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.pending {
		rows += len(e.batch.Rows)
		mine = mine || e == own
	}
	return rows, mine
}

// append stores a group. If that fails, each batch is tried by itself, so that one which cannot be stored does not take the
// others with it.
func (s *Sink) append(ctx context.Context, group []*entry) {
	batches := make([]usagelog.Batch, len(group))
	for i, e := range group {
		batches[i] = e.batch
	}
	err := s.cfg.Store.Append(ctx, batches...)
	for _, e := range group {
		if err != nil && len(group) > 1 {
			e.done <- s.cfg.Store.Append(ctx, e.batch)
		} else {
			e.done <- err
		}
	}
}
