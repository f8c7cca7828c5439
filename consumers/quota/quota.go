// Package quota is the consumer that folds the log into MySQL's balances and keeps the hot counters in step (DESIGN 7, 8).
//
// It promises that every event changes the balances exactly once (L2): the effect and the offset are one transaction, and whoever
// lost the partition is fenced by the offset. The counters get the same sums afterwards, guarded by the offset; if they
// miss some, they get the rest from the log, and if they are lost, a new epoch begins. It runs in the runner's goroutine
// of the partition, so nothing here needs a lock between Apply and Look of one partition. A crash anywhere leaves MySQL at
// an offset and the counters at, before or (after a restore) beyond it: Look sorts that out.
package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/consumers"
	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// Store is the database side; *sqlstore.Store satisfies it.
type Store interface {
	Partition(ctx context.Context, partition int) (sqlstore.PartitionState, error)
	Flush(ctx context.Context, call sqlstore.FlushCall) (sqlstore.FlushResult, error)
	AllocateEpoch(ctx context.Context, partition int, atLeast uint64) (epoch uint64, offset int64, err error)
	StoreEpoch(ctx context.Context, record ledger.EpochRecord) error
	Producers(ctx context.Context) ([]sqlstore.Producer, error)
}

// Counters is the hot side; *hold.Redis and *hold.Local satisfy it.
type Counters interface {
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	Begin(ctx context.Context, partition int, epoch uint64, offset int64) (bool, error)
	OpenEpoch(ctx context.Context, partition int, epoch uint64, floor int64) (bool, error)
	Apply(ctx context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error)
}

// Log is the event log, for reading again what the counters missed; *eventlog.Client satisfies it.
type Log interface {
	Bounds(ctx context.Context, partition int) (first, end int64, err error)
	Read(ctx context.Context, partition int, from, to int64, fn func([]ledger.Record) error) error
}

// Bounds (L7).
const (
	// maxSums bounds the accounts in one script call, so that one call never blocks Redis for long.
	maxSums = 4000
	// catchUpRecords bounds the records read again from the log for one call.
	catchUpRecords = 20_000
	// applyPatience is how long a flush waits for counters that are out of reach before it goes on without them. What they
	// miss is given to them later, at the price of a new epoch if it is much.
	applyPatience = time.Second
)

// Sink is the quota projection: it implements consumers.Sink and consumers.Looker.
type Sink struct {
	store    Store
	counters Counters
	logs     Log
	log      *slog.Logger
	now      func() time.Time
	metrics  *metrics
	rebuild  rebuild
}

// New builds the sink.
func New(store Store, counters Counters, logs Log, log *slog.Logger, reg prometheus.Registerer) *Sink {
	return &Sink{
		store: store, counters: counters, logs: logs, log: log, now: time.Now, metrics: newMetrics(reg),
		rebuild: rebuild{waits: map[int]*waiting{}},
	}
}

// Position implements consumers.Sink.
func (s *Sink) Position(ctx context.Context, partition int) (consumers.Position, error) {
	st, err := s.store.Partition(ctx, partition)
	if err != nil {
		return consumers.Position{}, fmt.Errorf("read quota position: %w", err)
	}
	s.rebuild.of(partition).offset = st.Offset
	return consumers.Position{Offset: st.Offset, LastOffset: st.LastOffset, LastEvent: st.LastEvent}, nil
}

// Apply implements consumers.Sink: one transaction, then the counters.
func (s *Sink) Apply(ctx context.Context, partition int, from, to int64, records []ledger.Record) error {
	result, err := s.store.Flush(ctx, sqlstore.FlushCall{
		Partition: partition, From: from, To: to, Records: records, Now: s.now(),
	})
	if errors.Is(err, sqlstore.ErrFenced) {
		return fmt.Errorf("flush [%d,%d): %w", from, to, consumers.ErrFenced)
	}
	if err != nil {
		return fmt.Errorf("flush [%d,%d): %w", from, to, err)
	}
	s.report(partition, &result)
	s.rebuild.saw(partition, records)
	s.rebuild.of(partition).offset = to
	callCtx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	if err := s.step(callCtx, partition, from, to, records, result.Skipped); err != nil {
		s.metrics.missed.Inc()
		s.log.Warn("the hot counters missed a flush; they get it later", "partition", partition, "from", from, "to", to, "error", err)
	}
	return nil
}

func (s *Sink) report(partition int, r *sqlstore.FlushResult) {
	s.metrics.applied.Add(float64(r.Applied))
	s.metrics.duplicates.Add(float64(r.Duplicates))
	s.metrics.dead.Add(float64(len(r.Dead)))
	s.metrics.holes.Add(float64(len(r.Holes)))
	s.metrics.adopted.Add(float64(r.Adopted))
	for _, d := range r.Dead {
		s.log.Error("an event was dead-lettered", "partition", partition, "offset", d.Offset, "reason", d.Reason)
	}
	for _, h := range r.Holes {
		s.log.Error("events are missing in the log; refill it with: ledgerline journal reship", "partition", partition,
			"producer", h.Producer, "hole", fmt.Sprintf("%+v", h))
	}
	for _, a := range r.Alarms {
		s.log.Error("balance alarm", "partition", partition, "alarm", a)
	}
}

// step gives the counters what was committed, if they stand at from. A range is halved where an account was loaded in its middle,
// or where it touches too many accounts.
func (s *Sink) step(ctx context.Context, partition int, from, to int64, records []ledger.Record, skipped []int64) error {
	states, err := s.counters.State(ctx, partition)
	if err != nil {
		return fmt.Errorf("look at the counters: %w", err)
	}
	st := &states[0]
	if !st.Present || st.Foreign || st.Done != from {
		return nil // Look decides
	}
	return s.applyRange(ctx, st, span{from, to}, func(r span) ([]ledger.Sum, error) {
		t := newTally(skipped, st.Epoch)
		t.add(records, r)
		return t.sums(), nil
	})
}

// span is a range of offsets, to exclusive.
type span struct{ from, to int64 }

// applyRange gives the counters the sums of a range, halving it where it touches too many accounts and cutting it where an account
// was loaded in its middle.
func (s *Sink) applyRange(ctx context.Context, st *ledger.Counters, r span, sumsOf func(span) ([]ledger.Sum, error)) error {
	both := func(at int64) error {
		if err := s.applyRange(ctx, st, span{r.from, at}, sumsOf); err != nil {
			return err
		}
		return s.applyRange(ctx, st, span{at, r.to}, sumsOf)
	}
	sums, err := sumsOf(r)
	if err != nil {
		return err
	}
	if half := r.from + (r.to-r.from)/2; len(sums) > maxSums && half > r.from {
		return both(half)
	}
	reply, err := s.counters.Apply(ctx, ledger.ApplyCall{
		Partition: st.Partition, Epoch: st.Epoch, From: r.from, To: r.to, Sums: sums,
	})
	if err != nil {
		return fmt.Errorf("apply [%d,%d) to the counters: %w", r.from, r.to, err)
	}
	if at := reply.SplitAt; at > r.from && at < r.to {
		return both(at)
	}
	return nil
}

// tally adds up what records do to users and tokens.
type tally struct {
	skip   map[int64]bool
	epoch  uint64
	by     map[ledger.Account]*ledger.Sum
	deltas []ledger.Delta
}

func newTally(skipped []int64, epoch uint64) *tally {
	t := &tally{skip: make(map[int64]bool, len(skipped)), epoch: epoch, by: map[ledger.Account]*ledger.Sum{}}
	for _, o := range skipped {
		t.skip[o] = true
	}
	return t
}

// add takes the records of a range. Settled is the part of a charge that the hold's own epoch has counted in advance
// (DESIGN 7): events of other epochs never touch it.
func (t *tally) add(records []ledger.Record, r span) {
	for i := range records {
		rec := &records[i]
		if rec.Offset < r.from || rec.Offset >= r.to || rec.Err != nil || t.skip[rec.Offset] {
			continue
		}
		h := rec.Event.Hold
		t.deltas = rec.Event.Deltas(t.deltas[:0])
		for _, d := range t.deltas {
			if d.Account.Kind == ledger.ChannelAccount {
				continue
			}
			sum := t.by[d.Account]
			if sum == nil {
				sum = &ledger.Sum{Account: d.Account}
				t.by[d.Account] = sum
			}
			sum.Granted += d.Balance.Granted
			sum.Charged += d.Balance.Charged
			if h != nil && h.Epoch == t.epoch && (d.Account.Kind == ledger.UserAccount || h.Token) {
				sum.Settled += d.Balance.Charged
			}
		}
	}
}

func (t *tally) sums() []ledger.Sum {
	out := make([]ledger.Sum, 0, len(t.by))
	for _, v := range t.by {
		out = append(out, *v)
	}
	return out
}

// rebuild is what the consumer remembers while epochs are rebuilt, by partition.
type rebuild struct {
	mu    sync.Mutex
	waits map[int]*waiting
}
