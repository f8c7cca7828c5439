package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/journal/journaltest"
)

// The errors that the world gives to the programs in it.
var (
	errKilled = errors.New("the process was killed")
	errLost   = errors.New("the answer was lost")
	errClosed = errors.New("the connection is closed")
	errDown   = errors.New("the server is down")
)

// world is one history: the processes, what they talk to, and the scheduler that all their calls go through.
//
// Every call of a shipping package to something outside (a file, the counters, the database, the log, a client) parks in
// proc.do. When everything is parked or waits for the clock (synctest.Wait), the scheduler, which is the only goroutine that
// runs then, lets one call happen, chosen by the seed: so the adversary comes between any two steps, everything outside is
// single-threaded, and the same seed is the same history. Time passes when no call is due.
type world struct {
	t     testing.TB
	seed  uint64
	rand  *rand.Rand
	begun time.Time
	cfg   config

	turn    sync.Mutex // guards all that is not said to have another guard: the scheduler has it unless it waits, and calls that cannot park take it
	mu      sync.Mutex // guards arrived
	arrived []*call
	wake    chan struct{}
	over    chan struct{} // closed when nothing is scheduled any more
	parked  []*call
	events  []event // what the scheduler does by itself, soonest first
	serial  uint64

	disks            []*disk
	hot              *hold.Local
	bank             *bank
	log              *logTwin
	usage            *usageTwin
	procs            []*proc
	nodes            []*node
	consumers        []*consumer
	down             map[target]time.Time // until when
	image            *hold.Image
	backup           *tables
	quiet            bool // no new faults: everything comes to an end
	restored, jumped bool
	rotten           map[ledger.ID]bool // incarnations whose journal was damaged

	outside    *proc // the test itself
	owner      map[ownerOf]*consumer
	skew       time.Duration // of the master's clock
	clients    sync.WaitGroup
	live       int // requests that are served
	took       time.Duration
	ids        uint64
	poisons    int64
	seq        uint64 // of the events that the world wrote itself
	prev       map[int]uint64
	beats      map[ledger.ID]beatAt // of the incarnations, as they were last seen to change
	begunDrain time.Time

	requests []*request
	opened   []ledger.EpochRecord // epochs that the counters opened
	stored   map[int]ledger.EpochRecord
	violated error
	counts   counts
	telled   sync.Mutex // guards story: programs log from their own goroutines
	story    []string
	telling  bool
	print    uint64 // fingerprint of all calls
	logger   *slog.Logger

	// Of directed histories: which call fails, and how long it and its answer take.
	fail      func(*call) bool
	slowCall  func(*call) time.Duration
	slowReply func(*call) time.Duration
}

// target is what a call goes to.
type target int

const (
	toDisk target = iota
	toCounters
	toBank
	toLog
	toUsage
	toClient
)

func (t target) String() string {
	return [...]string{"disk", "counters", "database", "log", "usage log", "client"}[t]
}

// call is one call on its way: parked, executed and not answered yet, or an orphan, which nobody waits for any more.
type call struct {
	p      *proc
	to     target
	name   string
	exec   func() error
	done   chan error
	due    time.Time
	gave   atomic.Bool // its caller gave up waiting
	orphan bool
	ran    bool // executed; its answer is due
	err    error
}

type event struct {
	at     time.Time
	serial uint64
	do     func()
}

// proc is one process.
type proc struct {
	w      *world
	index  int
	name   string
	dead   atomic.Bool
	frozen bool
	closed bool          // the connections of its clients
	skew   time.Duration // its wall clock is off by so much
	files  *journaltest.Process
	cancel context.CancelFunc
	done   chan struct{} // closed when all of it has ended
	rand   *rand.Rand    // for the calls that cannot park
	muted  time.Time     // nothing of it reaches the log before
	// diskless says that what it journals is gone with it.
	diskless bool
	// badSync says that the next fsync fails, badWrite that the next write is short.
	badSync, badWrite bool
}

func newWorld(t testing.TB, seed uint64) *world {
	seedIDs(seed)
	w := &world{
		t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 0x51)), begun: time.Now(), wake: make(chan struct{}, 1), over: make(chan struct{}), hot: hold.NewLocal(),
		down: map[target]time.Time{}, stored: map[int]ledger.EpochRecord{}, logger: slog.New(slog.DiscardHandler),
	}
	w.beats, w.rotten = map[ledger.ID]beatAt{}, map[ledger.ID]bool{}
	w.owner, w.prev = map[ownerOf]*consumer{}, map[int]uint64{}
	w.outside = &proc{w: w, index: -1, name: "test"}
	w.cfg = drawConfig(w.rand)
	w.bank = newBank(w.cfg.partitions)
	w.bank.refuse = refusePoison
	w.log = newLogTwin(w)
	w.usage = newUsageTwin()
	w.turn.Lock()
	return w
}

func (w *world) tell(format string, args ...any) {
	if w.telling {
		w.telled.Lock()
		defer w.telled.Unlock()
		w.story = append(w.story, fmt.Sprintf("%9.3fs  ", time.Since(w.begun).Seconds())+fmt.Sprintf(format, args...))
	}
}

func (w *world) chance(p float64) bool { return w.rand.Float64() < p }

func (w *world) violation(format string, args ...any) {
	if w.violated == nil {
		w.violated = fmt.Errorf(format, args...)
		w.tell("VIOLATION: %v", w.violated)
	}
}

// between returns a random duration in [from, to).
func (w *world) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rand.Int64N(int64(to-from)))
}

// after plans something.
func (w *world) after(d time.Duration, do func()) {
	w.serial++
	e := event{time.Now().Add(d), w.serial, do}
	at, _ := slices.BinarySearchFunc(w.events, e, func(a, b event) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.serial, b.serial)) })
	w.events = slices.Insert(w.events, at, e)
}

func (w *world) newProc(name string, d *disk) *proc {
	p := &proc{w: w, index: len(w.procs), name: name, done: make(chan struct{}), rand: rand.New(rand.NewPCG(w.seed, uint64(len(w.procs))))}
	if d != nil {
		p.files = d.Process()
	}
	w.procs = append(w.procs, p)
	return p
}

// now is the time by the wall clock of the process's machine.
func (p *proc) now() time.Time { return time.Now().Add(p.skew) }

// arrive hands a call to the scheduler.
func (w *world) arrive(c *call) {
	w.mu.Lock()
	w.arrived = append(w.arrived, c)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// do makes a call of the process. exec runs in the scheduler's goroutine, if at all: what it sets may be read only if do returned nil.
func (p *proc) do(ctx context.Context, to target, name string, exec func() error) error {
	if p.dead.Load() {
		return errKilled
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := &call{p: p, to: to, name: name, exec: exec, done: make(chan error, 1)}
	p.w.arrive(c)
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		c.gave.Store(true)
		return context.Cause(ctx)
	case <-p.w.over:
		return errKilled
	}
}

// at once makes a call whose caller holds a mutex: it cannot park, or synctest would wait for ever.
func (p *proc) atOnce(to target, exec func() error) error {
	if p.dead.Load() {
		return errKilled
	}
	p.w.turn.Lock()
	defer p.w.turn.Unlock()
	if time.Now().Before(p.w.down[to]) {
		return errDown
	}
	lossy := !p.w.quiet && p.rand.Float64() < .05
	if lossy && p.rand.IntN(2) == 0 {
		return errDown
	}
	err := exec()
	if err == nil && lossy {
		return errLost
	}
	return err
}

// run is the scheduler. It ends when finished says so, or something is violated.
func (w *world) run(finished func() bool) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for w.violated == nil {
		w.rest(synctest.Wait)
		w.collect()
		if c := w.choose(); c != nil {
			w.perform(c)
			// No two calls at one time: timers that are set after them never meet. Go draws lots where they do.
			w.rest(func() { time.Sleep(time.Nanosecond) })
			continue
		}
		now := time.Now()
		if len(w.events) > 0 && !w.events[0].at.After(now) {
			do := w.events[0].do
			w.events = w.events[1:]
			do()
			continue
		}
		if finished() {
			return
		}
		wait := time.Hour
		if len(w.events) > 0 {
			wait = w.events[0].at.Sub(now)
		}
		for _, c := range w.parked {
			if !c.p.frozen || c.orphan {
				wait = min(wait, c.due.Sub(now))
			}
		}
		timer.Reset(max(wait, 0))
		w.rest(func() {
			select {
			case <-w.wake:
			case <-timer.C:
			}
		})
	}
}

// rest lets the scheduler wait for others.
func (w *world) rest(wait func()) {
	w.turn.Unlock()
	defer w.turn.Lock()
	wait()
}

// collect takes the calls that arrived since it was last called, in an order that does not depend on the goroutines.
func (w *world) collect() {
	w.mu.Lock()
	fresh := w.arrived
	w.arrived = nil
	w.mu.Unlock()
	slices.SortStableFunc(fresh, func(a, b *call) int {
		return cmp.Or(cmp.Compare(a.p.index, b.p.index), strings.Compare(a.name, b.name))
	})
	for _, c := range fresh {
		c.due = time.Now().Add(w.delay(c))
		w.parked = append(w.parked, c)
	}
}

// delay is how long a call is on its way.
func (w *world) delay(c *call) time.Duration {
	if w.slowCall != nil {
		if d := w.slowCall(c); d > 0 {
			return d
		}
	}
	if w.quiet {
		return 0
	}
	switch x := w.rand.IntN(1000); {
	case c.to == toDisk && x < 3:
		return w.between(50*time.Millisecond, 3*time.Second) // a disk that hangs
	case c.to == toDisk || c.to == toClient || x < 800:
		return 0
	case x < 960:
		return w.between(0, 4*time.Millisecond)
	case x < 995:
		return w.between(10*time.Millisecond, time.Second)
	default:
		return w.between(time.Second, 14*time.Second) // longer than its caller waits, at times
	}
}

// choose returns one of the calls that are due, or nil.
func (w *world) choose() *call {
	now := time.Now()
	n := 0
	var found *call
	for _, c := range w.parked {
		if c.due.After(now) || c.p.frozen && !c.orphan {
			continue
		}
		if n++; n == 1 || w.rand.IntN(n) == 0 {
			found = c
		}
	}
	return found
}

// perform lets a call happen, or its answer arrive.
func (w *world) perform(c *call) {
	if !c.ran {
		c.ran = true
		w.execute(c)
		if w.slowReply != nil {
			if d := w.slowReply(c); d > 0 {
				c.due = time.Now().Add(d)
				return
			}
		}
		if !c.orphan && !c.gave.Load() && c.to != toDisk && c.to != toClient && !w.quiet && w.rand.IntN(400) == 0 {
			c.due = time.Now().Add(w.between(time.Millisecond, 12*time.Second)) // the answer takes its time
			return
		}
	}
	w.unpark(c)
	if !c.orphan {
		c.done <- c.err
	}
}

func (w *world) unpark(c *call) {
	i := slices.Index(w.parked, c)
	w.parked = slices.Delete(w.parked, i, i+1)
}

func (w *world) execute(c *call) {
	if time.Now().Before(w.down[c.to]) {
		c.err = errDown
		return
	}
	lossy := !w.quiet && c.to != toDisk && c.to != toClient && w.rand.IntN(150) == 0
	if lossy && w.rand.IntN(3) == 0 {
		c.err = errDown
		return
	}
	if w.fail != nil && w.fail(c) {
		c.err = errDown
		return
	}
	w.trace(c)
	if *tellCalls {
		w.tell("  %s → %s: %s", c.p.name, c.to, c.name)
	}
	c.err = c.exec()
	if c.err == nil && lossy {
		w.counts.Lost++
		c.err = errLost
	}
}

// trace adds a call to the fingerprint of the history: the same seed has the same.
func (w *world) trace(c *call) {
	kind, _, _ := strings.Cut(strings.TrimPrefix(c.name, "quota: "), " ")
	for _, b := range [...]int{c.p.index, int(c.to), len(kind), int(kind[0]), int(time.Since(w.begun))} {
		w.print = (w.print ^ uint64(b)) * 1099511628211
	}
}

// kill is kill -9. What the process had sent may still arrive.
func (w *world) kill(p *proc) {
	if p.dead.Load() {
		return
	}
	p.dead.Store(true)
	p.frozen = false
	for _, r := range w.requests {
		r.weak = r.weak || r.p == p && p.diskless && !r.finished
	}
	for _, c := range slices.Clone(w.parked) {
		if c.p != p || c.orphan {
			continue
		}
		if !c.ran && c.to == toDisk && strings.HasPrefix(c.name, "write ") && w.chance(.5) {
			_ = c.exec() // the system had the pages already
		}
		if late := !c.ran && c.to != toDisk && c.to != toClient && w.chance(.5); late {
			c.orphan = true
			c.due = c.due.Add(w.between(0, 5*time.Second))
			w.counts.Orphans++
		} else {
			w.unpark(c)
		}
		c.done <- errKilled
	}
	if p.files != nil {
		p.files.Kill()
	}
	p.cancel()
}

// dropGiven forgets the calls that nobody waits for, or lets them happen late: half of each.
func (w *world) dropGiven() {
	for _, c := range slices.Clone(w.parked) {
		if !c.orphan && c.gave.Load() {
			if c.ran || c.to == toDisk || w.chance(.5) {
				w.unpark(c)
			} else {
				c.orphan = true
				w.counts.Orphans++
			}
		}
	}
}

// shipped is told of every event that reaches the log.
func (w *world) shipped(*ledger.Record) {}

// end kills everything and waits until it is gone.
func (w *world) end() {
	w.quiet = true
	w.took = time.Since(w.begun)
	w.rest(synctest.Wait)
	w.collect()
	close(w.over)
	for _, p := range w.procs {
		w.kill(p)
	}
	w.rest(func() {
		for _, p := range w.procs {
			<-p.done
		}
		w.clients.Wait()
	})
}
