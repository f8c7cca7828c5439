package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
)

// Defaults and intervals.
const (
	// DefaultMaxRecords bounds one Apply: large enough to make statements worth their round trip.
	DefaultMaxRecords = 5000
	// DefaultMaxBuffered bounds what waits in all partitions of a runner together, in bytes as fetched; decoded it is about
	// three times that.
	DefaultMaxBuffered = 32 << 20
	// DefaultInterval is the longest that a record waits for others before it is applied.
	DefaultInterval = 200 * time.Millisecond
	// DefaultFetchEvery bounds the pause between fetches. A credit does not wait for it unless the Hurry that announces it is lost.
	DefaultFetchEvery = 200 * time.Millisecond
	// DefaultLookEvery is how often a Looker looks while nothing comes.
	DefaultLookEvery = 100 * time.Millisecond
	// DefaultRecheckEvery is how often a stopped partition is looked at again: somebody may have adopted the log, or dealt with
	// the record in its way.
	DefaultRecheckEvery = 10 * time.Second
	// hurryFor is how long a Hurry lasts: a credit is in the log a few tens of milliseconds after its node was asked for it.
	hurryFor = 300 * time.Millisecond

	retryMin = 100 * time.Millisecond // first pause after a failure
	retryMax = 5 * time.Second        // longest pause between attempts

	// farewell bounds the last flush of a partition that is given away or of a process that stops.
	farewell = 2 * time.Second
)

// Config says how a runner feeds its sink. Zero fields take the defaults.
type Config struct {
	Name        string        // the projection, for logs, metrics and commands: "quota"
	Group       string        // the Kafka consumer group
	Partitions  int           // P, as the ledger was created
	MaxRecords  int           // records of one Apply
	MaxBuffered int           // bytes waiting in all partitions together; more of them flush early
	Interval    time.Duration // the longest that a record waits in the log and here before it is applied
	// FetchEvery is the pause before the next fetch of a partition whose records have all been fetched: a broker's cost is that of
	// its requests, and records that are not due need not be here. What comes after a silence is fetched at once. It is
	// part of Interval; 0 means a quarter of that, at most DefaultFetchEvery.
	FetchEvery   time.Duration
	LookEvery    time.Duration
	RecheckEvery time.Duration             // of a stopped partition
	Urgent       func(*ledger.Record) bool // a record that must not wait for Interval; may be nil
	// Jitter returns a random duration from 0 to below its argument, for the pauses after failures; nil: math/rand. A simulation
	// gives one that repeats.
	Jitter     func(time.Duration) time.Duration
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Log is the event log as a runner reads it; *eventlog.Client is the real one.
type Log interface {
	Fetch(ctx context.Context, partition int, offset int64) (eventlog.Batch, error)
	Bounds(ctx context.Context, partition int) (first, end int64, err error)
	ReadAt(ctx context.Context, partition int, offset int64) (ledger.Record, error)
}

// Group gives a runner its partitions; *eventlog.Group is the real one.
type Group interface {
	// Run calls handle for each partition that is given to this process, in a goroutine of its own, with a context that ends when it is
	// taken away again. It returns when ctx has ended and every handle has returned.
	Run(ctx context.Context, handle func(ctx context.Context, partition int)) error
	// Committed notes how far the sink has come.
	Committed(partition int, offset int64)
}

// Runner feeds one sink from the partitions that its consumer group gives it.
type Runner struct {
	log      Log
	sink     Sink
	look     Looker // nil: the sink is none
	cfg      Config
	group    Group
	metrics  *metrics
	born     time.Time
	buffered atomic.Int64 // bytes waiting, all partitions

	mu      sync.Mutex
	status  map[int]*Status
	hurried time.Time     // until then nothing pauses between fetches
	hurry   chan struct{} // closed and replaced by Hurry
}

// State says what a partition is doing.
type State string

// The states of a partition.
const (
	StateStarting State = "starting" // position and log are being compared
	StateRunning  State = "running"
	StateRetrying State = "retrying" // something fails that may pass: Reason says what
	StateStopped  State = "stopped"  // it needs an operator: Reason says what for
)

// Status is the state of one partition that this process owns.
type Status struct {
	Partition int
	State     State
	Reason    string    // of StateRetrying and StateStopped
	Offset    int64     // everything below is in the sink
	End       int64     // end of the log when it was last seen
	Oldest    time.Time // when the oldest event that was read and not applied was made; zero: none
}

// NewRunner returns a runner that reads client's topic into sink, as a member of the Kafka consumer group that cfg names.
func NewRunner(client *eventlog.Client, sink Sink, cfg Config) (*Runner, error) {
	if cfg.Name == "" || cfg.Group == "" || cfg.Partitions < 1 {
		return nil, fmt.Errorf("configure consumer %q: name, group and partitions are needed", cfg.Name)
	}
	logger := cfg.Logger
	if logger != nil {
		logger = logger.With("projection", cfg.Name)
	}
	group := eventlog.NewGroup(client, eventlog.GroupConfig{ID: cfg.Group, Partitions: cfg.Partitions, Logger: logger})
	return NewRunnerOf(client, group, sink, cfg), nil
}

// NewRunnerOf returns a runner that reads log into sink, from the partitions that group gives it.
func NewRunnerOf(log Log, group Group, sink Sink, cfg Config) *Runner {
	if cfg.MaxRecords <= 0 {
		cfg.MaxRecords = DefaultMaxRecords
	}
	if cfg.MaxBuffered <= 0 {
		cfg.MaxBuffered = DefaultMaxBuffered
	}
	if cfg.Interval <= 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.FetchEvery <= 0 {
		cfg.FetchEvery = min(cfg.Interval/4, DefaultFetchEvery)
	}
	if cfg.LookEvery <= 0 {
		cfg.LookEvery = DefaultLookEvery
	}
	if cfg.RecheckEvery <= 0 {
		cfg.RecheckEvery = DefaultRecheckEvery
	}
	if cfg.Urgent == nil {
		cfg.Urgent = func(*ledger.Record) bool { return false }
	}
	if cfg.Jitter == nil {
		cfg.Jitter = func(n time.Duration) time.Duration { return rand.N(n) }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("projection", cfg.Name)
	r := &Runner{
		log: log, sink: sink, cfg: cfg, group: group, status: map[int]*Status{}, hurry: make(chan struct{}), born: time.Now(),
	}
	r.look, _ = sink.(Looker)
	r.metrics = newMetrics(cfg.Registerer, r)
	return r
}

// Run consumes until ctx ends, then leaves the group and returns nil. It returns an error only for a configuration that cannot
// work.
func (r *Runner) Run(ctx context.Context) error { return r.group.Run(ctx, r.own) }

// Hurry says that an urgent record is about to be in the log: for a moment nothing pauses between fetches.
func (r *Runner) Hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hurried = time.Now().Add(hurryFor)
	close(r.hurry)
	r.hurry = make(chan struct{})
}

// rest is the pause between fetches. It reports whether ctx is still alive.
func (r *Runner) rest(ctx context.Context) bool {
	r.mu.Lock()
	hurrying, hurry := time.Now().Before(r.hurried), r.hurry
	r.mu.Unlock()
	if hurrying {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(r.cfg.FetchEvery)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-hurry:
	}
	return true
}

// Status returns the state of the partitions that this process owns, in order.
func (r *Runner) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Status, 0, len(r.status))
	for _, s := range r.status {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Status) int { return a.Partition - b.Partition })
	return all
}

// tick numbers the moments at which partitions look. They look together, so that what they ask the counters is one question.
func (r *Runner) tick(now time.Time) int64 { return int64(now.Sub(r.born) / r.cfg.LookEvery) }

// set changes the status of a partition.
func (r *Runner) set(partition int, change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.status[partition]; s != nil {
		change(s)
	}
}

// stop is the error of a partition that needs an operator.
type stop struct {
	reason string
	err    error
	// looking says that the sink's position is good, so that it may go on looking after what it has.
	looking bool
}

func (s *stop) Error() string { return s.reason + ": " + s.err.Error() }
func (s *stop) Unwrap() error { return s.err }

// own feeds the sink from one partition until ctx ends, whatever happens.
func (r *Runner) own(ctx context.Context, partition int) {
	logger := r.cfg.Logger.With("partition", partition)
	r.mu.Lock()
	r.status[partition] = &Status{Partition: partition, State: StateStarting}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.status, partition)
	}()
	failures := 0
	for {
		f := &follower{r: r, partition: partition, logger: logger}
		start := time.Now()
		err := f.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.progress || time.Since(start) > retryMax {
			failures = 0
		}
		failures++
		wait := r.retryWait(failures)
		var stopped *stop
		switch {
		case errors.Is(err, ErrFenced):
			logger.Info("another consumer moved the position, reading it again")
		case errors.As(err, &stopped):
			wait = r.cfg.RecheckEvery
			r.alarm(logger, partition, stopped)
		default:
			logger.Warn("consuming failed, trying again", "in", wait, "err", err)
			r.set(partition, func(s *Status) { s.State, s.Reason = StateRetrying, err.Error() })
		}
		f.idle(ctx, wait, stopped != nil && stopped.looking)
	}
}

// alarm marks a partition as stopped, and logs it once.
func (r *Runner) alarm(logger *slog.Logger, partition int, stopped *stop) {
	reason := stopped.Error()
	news := false
	r.set(partition, func(s *Status) {
		news = s.State != StateStopped || s.Reason != reason
		s.State, s.Reason = StateStopped, reason
	})
	if news {
		logger.Error("partition stopped", "reason", stopped.reason, "err", stopped.err)
	}
}

// retryWait returns the pause after the given number of failures in a row: doubling, capped, jittered by half.
func (r *Runner) retryWait(failures int) time.Duration {
	wait := retryMax
	if failures < 7 {
		wait = min(retryMax, retryMin<<(failures-1))
	}
	return wait/2 + r.cfg.Jitter(wait/2+1)
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
