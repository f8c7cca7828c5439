// Package desk is a relay node's cash desk: it reserves a hold before a request goes upstream, journals what the request
// owes before its last byte is sent (L1), and settles the hold afterwards. It follows the counter epochs (DESIGN 7),
// closes the journals of dead nodes through the same functions as its own, and moves outbox rows into the log.
//
// The relay handler calls Reserve and the Ticket's methods; cmd calls Run. On a crash nothing is lost that a client was
// told of: the journal says what was open, what was streamed and what was settled, and the next start of any node that
// can lock the directory closes it. With Config.Diskless the log says it instead: what was answered whole is there, what was in
// mid-stream is gone, and its holds end when the incarnation is given up.
//
// One rule orders everything here: a partition's lock (view.mu) is held while a hold enters or leaves the books and while
// the books are re-asserted into a new epoch. So a hold is either in the list that a new epoch is told of, or it is
// reserved in that epoch, never neither.
//
// And one keeps a hold from coming back: an epoch names the newest that was opened before it. A hold that is older than that was not
// counted there, others may have been given what it held, and so it is not re-asserted: its request ends, and is charged as late. A node
// that was away cannot know otherwise what was opened without it, if that epoch is gone, too, by the time it comes back (L3).
package desk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// Counters is what the desk needs of the hot counters; *hold.Redis and *hold.Local satisfy it.
type Counters interface {
	Reserve(ctx context.Context, call ledger.ReserveCall) (ledger.ReserveReply, error)
	Extend(ctx context.Context, call ledger.ExtendCall) (ledger.ReserveReply, error)
	Release(ctx context.Context, calls []ledger.ReleaseCall) error
	Load(ctx context.Context, call ledger.LoadCall) error
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	Reassert(ctx context.Context, partition int, epoch uint64, incarnation ledger.ID, holds []ledger.OpenHold) (bool, error)
	Report(ctx context.Context, partition int, epoch uint64, incarnations ...ledger.ID) error
	Drop(ctx context.Context, partition int, incarnation ledger.ID) error
	Holds(ctx context.Context, partition int, incarnation ledger.ID) ([]ledger.OpenHold, error)
}

// Bank is what the desk needs of the database. None of it is on the path of a request, except Balances the first
// time that an account is seen in an epoch.
type Bank interface {
	// Balances reads the accounts of one partition, and the offset they stand at, from one snapshot of the primary.
	Balances(ctx context.Context, partition int, accounts []ledger.Account) (int64, map[ledger.Account]ledger.Balance, error)
	// RegisterProducer makes the incarnation known before its first event.
	RegisterProducer(ctx context.Context, incarnation ledger.ID, node string) error
	// Heartbeat raises the beat of the incarnations and reports those that were given up.
	Heartbeat(ctx context.Context, incarnations []ledger.ID) (gone []ledger.ID, err error)
	// CloseProducer marks an incarnation closed: it will write nothing more. sqlstore.ErrNotFound: it is not registered.
	CloseProducer(ctx context.Context, incarnation ledger.ID) error
}

// Ship ships the events of a journal to the log until ctx ends; it returns nil then. (*eventlog.Shipper).Ship does it.
type Ship func(ctx context.Context, source *journal.Journal) error

// Bounds, each with its reason (L7).
const (
	// MaxOpen bounds the open requests of a node (Config.MaxOpen), and with them the books, the release queue and the sweep.
	MaxOpen = 65536
	// epochLook is how often the epochs are looked at; a rebuild should take about a second.
	epochLook = 100 * time.Millisecond
	// lookPatience bounds one question for epochs, which takes a server microseconds. One that hangs must leave time for the others
	// within loadTimeout.
	lookPatience = time.Second
	// beatEvery is far below HOLD_ORPHAN_AFTER and below what the quota consumer takes for silence (10 s).
	beatEvery  = 3 * time.Second
	sweepEvery = time.Minute
	adoptEvery = 15 * time.Second
	// shipRetry is the pause before a journal that could not be read is shipped again.
	shipRetry = time.Second
	// releaseBatch bounds the settles and voids in one pipeline.
	releaseBatch = 512
	// loadAttempts and loadPause bound how long one Reserve tries to load missing accounts (2 s): a consumer that needs
	// longer to pass the floor is behind, and the client is told to come back.
	loadAttempts = 100
	loadPause    = 20 * time.Millisecond
	// loadTimeout bounds one query of balances.
	loadTimeout = 5 * time.Second
	// rebuildPatience is how long an extension waits for an epoch before the stream ends.
	rebuildPatience = 10 * time.Second
)

// Config is what a Desk is built from. Fields without a default are required.
type Config struct {
	Node       string // NODE_NAME
	Partitions int
	Journal    journal.Config
	// Diskless keeps the node's own journal in memory: an event counts as durable when the log has acknowledged it (JOURNAL=kafka).
	// What an earlier process left in Journal.Root is adopted all the same.
	Diskless bool
	Counters Counters
	Bank     Bank
	Ship     Ship
	Probe    Probe    // asked all the time if Diskless; nil: only events that wait tell that the log is away
	HoldEnds HoldEnds // asked when a damaged journal is adopted
	Outbox   Outbox
	Logger   *slog.Logger
	Metrics  prometheus.Registerer // nil: no metrics
	Now      func() time.Time      // nil: time.Now

	// MaxOpen bounds the open requests, and the memory that is set aside for their ends: some 100 B each. 0: the constant MaxOpen.
	MaxOpen int

	// How often the node looks at the epochs, says that it lives, voids holds of its own that it does not know (DESIGN 7, dead nodes), and looks
	// through JOURNAL_DIR for journals that nobody holds, and asks the log whether it answers. Zero: epochLook, beatEvery, sweepEvery, adoptEvery,
	// probeEvery.
	LookEvery, BeatEvery, SweepEvery, AdoptEvery, ProbeEvery time.Duration
}

// Desk is one node's cash desk. Make it with New, then Run it; Reserve may be called while Run runs.
type Desk struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	views   []view
	metrics *metrics

	releases chan release
	aside    atomic.Int64 // releases that the releaser could not deliver yet
	guesses  atomic.Int64 // releases on their way of holds that may not exist
	kickMove chan struct{}
	loading  loads

	// books by incarnation: the node's own one first, then the adopted ones that are being closed.
	mu      sync.Mutex
	own     *book
	adopted []*book
	ships   sync.WaitGroup  // shippers, and what hands the releases of adopted journals to the queue
	late    sync.WaitGroup  // settles whose fsync outlasted their request
	shipCtx context.Context //nolint:containedctx // the shippers outlive the request that adopted their journal
	gone    []ledger.ID     // what the last beat found given up, and the duties have not heeded
	open    atomic.Int64
	leaving atomic.Bool

	turns     atomic.Uint64 // raised whenever the duties have done something, for the heartbeats
	sweepFrom int           // where the next sweep begins; of the duties' goroutine alone

	looked    chan struct{} // closed once the epochs were looked at
	sawEpochs sync.Once
}

// view is what the node knows of one partition's epoch.
type view struct {
	logAway atomic.Bool // the log does not answer (Config.Probe)

	mu      sync.Mutex
	epoch   uint64
	open    bool
	earlier map[*book]uint64 // while rebuilding: what each journal must have shipped before the node reports for it
	tickets map[ledger.ID]*Ticket
	waiting map[ledger.ID]struct{} // reserves under way and releases not yet taken: the sweep must leave them alone
	changed chan struct{}          // closed and replaced whenever epoch or open changes
}

// move notes another state of the epoch and wakes whoever waits for one. The caller holds mu.
func (v *view) move(epoch uint64, open bool) {
	if v.epoch == epoch && v.open == open {
		return
	}
	v.epoch, v.open = epoch, open
	close(v.changed)
	v.changed = make(chan struct{})
}

// book is one journal that this process holds the lock of.
type book struct {
	incarnation ledger.ID
	journal     *journal.Journal
	stopShip    context.CancelFunc
	pending     atomic.Int64 // ended holds that the counters have not been told of
	recovered   bool         // adopted from a dead node
	gone        atomic.Bool  // given up by the observer
	doubtful    atomic.Bool  // requests in it wait for what the log says of them
	closeAfter  time.Time    // of the duties: when closing it may be tried again
}

// New builds a desk and opens its own journal. It registers the new incarnation before it returns, so that no event of
// an unknown producer ever reaches the log.
func New(ctx context.Context, cfg Config) (*Desk, error) {
	cfg.Journal.AwaitReleases = true
	cfg.MaxOpen = cmp.Or(cfg.MaxOpen, MaxOpen)
	d := &Desk{
		cfg: cfg, log: cfg.Logger, now: cfg.Now,
		views:    make([]view, cfg.Partitions),
		releases: make(chan release, cfg.MaxOpen),
		kickMove: make(chan struct{}, 1),
		metrics:  newMetrics(cfg.Metrics),
		looked:   make(chan struct{}),
	}
	d.loading = loads{now: d.loadNow, by: map[loadKey]*gathering{}}
	if d.now == nil {
		d.now = time.Now
	}
	d.cfg.LookEvery = cmp.Or(cfg.LookEvery, epochLook)
	d.cfg.BeatEvery = cmp.Or(cfg.BeatEvery, beatEvery)
	d.cfg.SweepEvery = cmp.Or(cfg.SweepEvery, sweepEvery)
	d.cfg.AdoptEvery = cmp.Or(cfg.AdoptEvery, adoptEvery)
	d.cfg.ProbeEvery = cmp.Or(cfg.ProbeEvery, probeEvery)
	for i := range d.views {
		d.views[i].tickets = map[ledger.ID]*Ticket{}
		d.views[i].waiting = map[ledger.ID]struct{}{}
		d.views[i].changed = make(chan struct{})
	}
	own, err := d.newBook(ctx)
	if err != nil {
		return nil, err
	}
	d.own = own
	d.register(cfg.Metrics)
	return d, nil
}

func (d *Desk) newBook(ctx context.Context) (*book, error) {
	incarnation, err := newID()
	if err != nil {
		return nil, err
	}
	if err := d.cfg.Bank.RegisterProducer(ctx, incarnation, d.cfg.Node); err != nil {
		return nil, fmt.Errorf("register journal incarnation: %w", err)
	}
	j, err := journal.Create(d.ownJournal(), incarnation)
	if err != nil {
		// Nobody will renew it, and every rebuild would wait for it. If this fails, too, it is given up like one that died.
		if closing := d.cfg.Bank.CloseProducer(ctx, incarnation); closing != nil {
			d.log.Warn("an incarnation without a journal stays registered until it is given up", "incarnation", incarnation, "error", closing)
		}
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &book{incarnation: incarnation, journal: j}, nil
}

// memorySegment is the size of a segment in memory: what is acknowledged goes sooner than from a disk, where files cost more.
const memorySegment = 1 << 20

// ownJournal is the configuration of the journal that the node writes itself. Each of those in memory has a memory of its own, which goes
// with it.
func (d *Desk) ownJournal() journal.Config {
	cfg := d.cfg.Journal
	if d.cfg.Diskless {
		cfg.FS, cfg.AwaitLog, cfg.SegmentBytes, cfg.Keep = journal.NewMemory(), true, memorySegment, 0
	}
	return cfg
}

func newID() (ledger.ID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return ledger.ID{}, fmt.Errorf("make id: %w", err)
	}
	return ledger.ID(id), nil
}

// current returns the book that new requests go to.
func (d *Desk) current() *book {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.own
}

func (d *Desk) books() []*book {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*book{d.own}, d.adopted...)
}

// ErrStopping is returned to requests that arrive while the node shuts down.
var ErrStopping = errors.New("the node is shutting down")

// Failed returns why the journal cannot be written, nil if it can.
func (d *Desk) Failed() error { return d.current().journal.Failed() }

// Open returns how many partitions have an open counter epoch on this node, and how many there are.
func (d *Desk) Open() (open, all int) {
	for p := range d.views {
		v := &d.views[p]
		v.mu.Lock()
		if v.open {
			open++
		}
		v.mu.Unlock()
	}
	return open, len(d.views)
}

// Looked is closed once Run has looked at the epochs for the first time. Until then every request is refused.
func (d *Desk) Looked() <-chan struct{} { return d.looked }

// Adopted returns how many journals beside its own the node holds, to close them.
func (d *Desk) Adopted() int { return len(d.books()) - 1 }

// InFlight returns how many requests are open.
func (d *Desk) InFlight() int64 { return d.open.Load() }

// Backlog is 0 when every event of this node's journals is in the log and every ended hold is released in the counters.
// Above 0 it is only a measure.
func (d *Desk) Backlog() int64 {
	n := int64(len(d.releases)) + d.aside.Load()
	for _, b := range d.books() {
		for p := range d.cfg.Partitions {
			if b.journal.AckedThrough(p) < b.journal.LastSeq(p) {
				n++
			}
		}
	}
	for p := range d.views {
		v := &d.views[p]
		v.mu.Lock()
		n += int64(len(v.waiting))
		v.mu.Unlock()
	}
	return n
}
