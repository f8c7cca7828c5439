// Package quota is the consumer that folds the log into MySQL's balances and keeps the hot counters in step (DESIGN 7, 8).
//
// It promises that every event changes the balances exactly once (L2): the effect and the offset are one transaction, and whoever
// lost the partition is fenced by the offset. The counters get the same sums afterwards, guarded by the offset; if they
// miss some, they get the rest from the log, and if they are lost, a new epoch begins, which opens when every incarnation
// has re-asserted its holds or was waited for long enough (L3). It runs in the runner's goroutine of the partition, so
// nothing here needs a lock between Apply and Look of one partition. A crash anywhere leaves MySQL at an offset and the
// counters at, before or (after a restore) beyond it: Look sorts that out. Its executable model is class Consumer of
// model/holds.py.
//
// Observe, one of the master's duties, gives up nodes that are silent for too long.
package quota

import (
	"cmp"
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
	AllocateEpoch(ctx context.Context, partition int, atLeast uint64) (ledger.BeginCall, error)
	StoreEpoch(ctx context.Context, record ledger.EpochRecord) (stored bool, err error)
	Producers(ctx context.Context) ([]sqlstore.Producer, error)
}

// Counters is the hot side; *hold.Redis and *hold.Local satisfy it.
type Counters interface {
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	Begin(ctx context.Context, call ledger.BeginCall) (bool, error)
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
	// miss is given to them later, at the price of a new epoch if it is much. statePatience is the same for a look.
	applyPatience = time.Second
	statePatience = 5 * time.Second
	// maxNarrow bounds the accounts that are remembered as warned about: more than these say no more than these.
	maxNarrow = 1000
)

// Sink is the quota projection: it implements consumers.Sink and consumers.Looker.
type Sink struct {
	store    Store
	counters Counters
	logs     Log
	log      *slog.Logger
	now      func() time.Time
	metrics  *metrics
	registry registry
	waits    waits

	narrowMu sync.Mutex
	narrow   map[ledger.Account]bool // guarded by narrowMu: warned about once, since every flush of theirs says it again
}

var (
	_ consumers.Sink   = (*Sink)(nil)
	_ consumers.Looker = (*Sink)(nil)
)

// Config is what a Sink is built from. Fields without a default are required.
type Config struct {
	Store    Store
	Counters Counters
	Log      Log
	Logger   *slog.Logger
	Metrics  prometheus.Registerer // nil: no metrics

	// How long an epoch waits for an incarnation that does not report: one whose heartbeat stands still, and one that beats. Zero:
	// patienceDead, patienceLive.
	PatienceDead, PatienceLive time.Duration
}

// New builds the sink.
func New(cfg Config) *Sink {
	patience := patience{cmp.Or(cfg.PatienceDead, patienceDead), cmp.Or(cfg.PatienceLive, patienceLive)}
	return &Sink{
		store: cfg.Store, counters: cfg.Counters, logs: cfg.Log, log: cfg.Logger, now: time.Now, metrics: newMetrics(cfg.Metrics),
		registry: registry{store: cfg.Store}, waits: waits{by: map[int]*waiting{}, patience: patience},
	}
}

// Position implements consumers.Sink. Whoever takes a partition over waits anew for those that do not report: their events may have
// moved meanwhile.
func (s *Sink) Position(ctx context.Context, partition int) (consumers.Position, error) {
	st, err := s.store.Partition(ctx, partition)
	if err != nil {
		return consumers.Position{}, fmt.Errorf("read quota position: %w", err)
	}
	w := s.waits.of(partition)
	w.done()
	w.offset = st.Offset
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
	// Committed. Whatever happens from here on is mended by Look.
	s.report(partition, &result)
	w := s.waits.of(partition)
	w.saw(records)
	w.offset = to
	callCtx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	err = s.step(callCtx, partition, span{from, to}, records, result.Skipped)
	if err != nil {
		s.metrics.missed.Inc()
		if !w.missed {
			s.log.Warn("the hot counters miss flushes; they get them later", "partition", partition, "from", from, "error", err)
		}
	}
	w.missed = err != nil
	return nil
}

func (s *Sink) report(partition int, r *sqlstore.FlushResult) {
	s.metrics.applied.Add(float64(r.Applied))
	s.metrics.written.Add(float64(r.Accounts))
	s.metrics.duplicates.Add(float64(r.Duplicates))
	s.metrics.dead.Add(float64(len(r.Dead)))
	s.metrics.holes.Add(float64(len(r.Holes)))
	s.metrics.adopted.Add(float64(r.Adopted))
	for i := range r.Dead {
		s.log.Error("an event was dead-lettered", "partition", partition, "offset", r.Dead[i].Offset, "reason", r.Dead[i].Reason)
	}
	for _, h := range r.Holes {
		s.log.Error("events are missing in the log; refill it with: ledgerline journal reship", "partition", partition,
			"producer", h.Producer, "after", h.Hole.After, "through", h.Hole.Through)
	}
	for _, a := range r.Alarms {
		s.log.Error("balance alarm", "partition", partition, "alarm", a)
	}
	if len(r.Restored) > 0 {
		s.log.Warn("the database had lost transactions that are in the log; they were done again", "partition", partition, "count", len(r.Restored), "first", r.Restored[0])
	}
	s.metrics.saturated.Add(float64(len(r.Saturated)))
	for _, a := range r.Saturated {
		if s.firstTime(a) {
			s.log.Warn("a balance does not fit New API's column, which stays at its limit; the ledger goes on counting", "partition", partition, "account", a.String())
		}
	}
}

// firstTime reports whether an account is to be warned about.
func (s *Sink) firstTime(a ledger.Account) bool {
	s.narrowMu.Lock()
	defer s.narrowMu.Unlock()
	if s.narrow[a] || len(s.narrow) >= maxNarrow {
		return false
	}
	if s.narrow == nil {
		s.narrow = map[ledger.Account]bool{}
	}
	s.narrow[a] = true
	return true
}

// step gives the counters what was committed, if they stand at its beginning.
func (s *Sink) step(ctx context.Context, partition int, r span, records []ledger.Record, skipped []int64) error {
	st, err := s.state(ctx, partition)
	if err != nil {
		return err
	}
	if !st.Present || st.Foreign || st.Done != r.from {
		return nil // Look decides
	}
	t := newTally(skipped, st.Epoch)
	return s.applyRange(ctx, &st, r, func(r span) ([]ledger.Sum, error) {
		t.clear()
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
	s.metrics.summed.Add(float64(len(sums)))
	if at := reply.SplitAt; at > r.from && at < r.to {
		return both(at)
	}
	return nil
}
