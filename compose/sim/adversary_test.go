package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"ledgerline/ledger"
)

// config is what is drawn before a history begins.
type config struct {
	partitions   int
	nodes        int
	ownDisks     bool // each node has its own
	requests     int
	faults       int
	span         time.Duration // of the time in which requests and faults begin
	lookEvery    time.Duration
	orphanAfter  time.Duration
	patienceDead time.Duration // as an epoch waits for a node that does not report
	patienceLive time.Duration
	maxRecords   int
	segmentBytes int64
	memoryBytes  int64
	grant        int64
	dull         bool // one node ships nothing for long in the end, too
	diskless     int  // so many nodes keep their own journal in memory
}

func drawConfig(r *rand.Rand) config {
	patience := time.Duration(2+r.IntN(6)) * time.Second
	return config{
		patienceDead: patience, patienceLive: 2 * patience,
		partitions: 1 + r.IntN(8)/7, nodes: 3 + r.IntN(4)/3, ownDisks: r.IntN(2) == 0, requests: 50 + r.IntN(30), faults: 5 + r.IntN(8),
		span: time.Duration(12+r.IntN(25)) * time.Second, lookEvery: time.Duration(100+r.IntN(300)) * time.Millisecond,
		orphanAfter: time.Duration(18+r.IntN(30)) * time.Second, maxRecords: 4 + r.IntN(60), segmentBytes: int64(4<<10 + r.IntN(12<<10)),
		memoryBytes: int64(1 + r.IntN(64<<10)), grant: pick(r, []int64{30, 60, 120, 400}), dull: r.IntN(12) == 0,
		diskless: max(0, r.IntN(8)-4),
	}
}

// fault is one kind of fault, with its weight.
type fault struct {
	name   string
	weight int
	do     func(*world)
}

var faults = []fault{
	{"a node is killed", 14, func(w *world) { w.killNode(pick(w.rand, w.nodes)) }},
	{"the power of a disk goes", 6, (*world).powerLoss},
	{"an fsync fails", 4, func(w *world) { w.breakDisk(func(p *proc) { p.badSync = true }) }},
	{"a write is short", 3, func(w *world) { w.breakDisk(func(p *proc) { p.badWrite = true }) }},
	{"a node is stopped", 8, (*world).freezeNode},
	{"a node stops in order", 5, (*world).leave},
	{"a node's events do not reach the log", 5, (*world).mute},
	{"a node is away while the counters are lost, longer than it is waited for", 12, (*world).strand},
	{"a disk is lost", 1, (*world).loseDisk},
	{"a sector rots under the journal of a node that dies", 3, (*world).rot},
	{"a consumer is killed", 9, (*world).killConsumer},
	{"a consumer is stopped and comes back as a zombie", 7, (*world).freezeConsumer},
	{"partitions are given to another consumer", 6, (*world).rebalance},
	{"the counters are flushed", 7, func(w *world) { w.hot.Flush() }},
	{"a stale replica of the counters is promoted", 5, (*world).promote},
	{"the database loses its last transactions", 7, (*world).restore},
	{"the database loses its last transactions, and the counters are lost with it", 3, func(w *world) { w.restore(); w.hot.Flush() }},
	{"a server is down", 8, (*world).outage},
	{"a clock jumps", 4, (*world).jump},
	{"old answers are dropped, old calls arrive late", 4, (*world).dropGiven},
}

func (w *world) strike() {
	sum := 0
	for i := range faults {
		sum += faults[i].weight
	}
	at := w.rand.IntN(sum)
	for i := range faults {
		if at -= faults[i].weight; at < 0 {
			w.tell("FAULT: %s", faults[i].name)
			w.counts.Faults++
			w.counts.ByFault[i]++
			faults[i].do(w)
			return
		}
	}
}

func (w *world) killNode(n *node) {
	if n.proc == nil || n.proc.dead.Load() {
		return
	}
	w.tell("%s is killed", n.name)
	w.kill(n.proc)
	n.desk = nil
	w.after(w.between(time.Millisecond, 12*time.Second), n.start)
}

// powerLoss kills every node on a disk; what was not fsynced may be gone.
func (w *world) powerLoss() {
	d := pick(w.rand, w.disks)
	for _, n := range w.nodes {
		if n.disk == d {
			w.killNode(n)
		}
	}
	for _, r := range w.requests {
		if r.disk == d && !r.finished {
			r.weak = true
		}
	}
	d.PowerLoss()
}

// breakDisk makes one call of a node fail. Its journal takes nothing any more, so somebody restarts it.
func (w *world) breakDisk(f func(*proc)) {
	n := pick(w.rand, w.nodes)
	if !n.running() {
		return
	}
	f(n.proc)
	p := n.proc
	w.after(w.between(2*time.Second, 10*time.Second), func() {
		p.badSync, p.badWrite = false, false
		if n.proc == p && n.desk != nil && n.desk.Failed() != nil {
			w.killNode(n)
		}
	})
}

func (w *world) freezeNode() {
	n := pick(w.rand, w.nodes)
	if n.proc == nil || n.proc.dead.Load() {
		return
	}
	p := n.proc
	p.frozen = true
	w.tell("%s is stopped", n.name)
	w.after(w.between(100*time.Millisecond, 50*time.Second), func() {
		w.tell("%s goes on", p.name)
		p.frozen = false
	})
}

// leave is SIGTERM: no new requests, some time for the open ones, then their connections are closed, and the desk is told.
func (w *world) leave() {
	n := pick(w.rand, w.nodes)
	if !n.running() || n.proc.frozen {
		return
	}
	w.tell("%s is asked to stop", n.name)
	n.leaving = true
	p := n.proc
	var finish func()
	finish = func() {
		if p.frozen {
			w.after(time.Second, finish)
			return
		}
		p.closed = true
		p.cancel()
	}
	w.after(w.between(0, 4*time.Second), finish)
}

// strand takes the node away that serves most, and then the counters, for longer than an epoch waits for it: what it still charges is late.
func (w *world) strand() {
	serves := map[*proc]int{}
	for _, r := range w.requests {
		if r.admitted && !r.finished && !r.voided {
			serves[r.p]++
		}
	}
	n := slices.MaxFunc(w.nodes, func(a, b *node) int { return cmp.Compare(serves[a.proc], serves[b.proc]) })
	if !n.running() {
		return
	}
	p, away := n.proc, w.cfg.patienceLive+w.between(4*time.Second, 12*time.Second)
	if w.chance(.5) {
		w.tell("%s reaches nothing of the log", n.name)
		p.muted = time.Now().Add(away)
	} else {
		w.tell("%s is stopped", n.name)
		p.frozen = true
		w.after(away, func() {
			w.tell("%s goes on", p.name)
			p.frozen = false
		})
	}
	w.after(w.between(0, 3*time.Second), w.hot.Flush)
	if w.chance(.3) { // and again when it comes back: it has slept through an epoch and finds the next one rebuilding
		w.after(away-w.between(0, time.Second), w.hot.Flush)
	}
}

func (w *world) mute() {
	n := pick(w.rand, w.nodes)
	if n.proc != nil {
		n.proc.muted = time.Now().Add(w.between(time.Second, 40*time.Second))
	}
}

// rot kills a node and damages a byte of its journal. What it had sent is in the log or never comes (desk.closeDoubtful). What was lost may have
// been what ended a request: such a one may have no bill, or that of a recovery, but never two (L2).
func (w *world) rot() {
	n := pick(w.rand, w.nodes)
	if !n.running() {
		return
	}
	p := n.proc
	w.killNode(n)
	for _, c := range slices.Clone(w.parked) {
		if c.p == p && c.orphan && strings.HasPrefix(c.name, "produce ") {
			w.unpark(c)
		}
	}
	for i := len(w.bank.producers) - 1; i >= 0; i-- {
		made := &w.bank.producers[i]
		dir := journalRoot + "/" + made.ID.String()
		names, err := n.disk.Process().List(dir)
		if made.Node != n.name || err != nil || slices.Contains(names, "retired") {
			continue
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ".seg") })
		if len(names) == 0 {
			return
		}
		name := dir + "/" + pick(w.rand, names)
		data, err := n.disk.ReadFile(name)
		if err != nil || len(data) == 0 {
			return
		}
		at := w.rand.Int64N(int64(len(data)))
		if err := n.disk.Flip(name, at, uint(w.rand.IntN(8))); err != nil {
			panic(err)
		}
		w.tell("byte %d of %s is damaged", at, name)
		w.rotten[made.ID] = true
		for _, r := range w.requests {
			r.rotten = r.rotten || r.p == p
		}
		return
	}
}

// loseDisk: its nodes go on with an empty one.
func (w *world) loseDisk() { w.lose(pick(w.rand, w.disks)) }

func (w *world) lose(d *disk) {
	d.lost = true
	fresh := w.newDisk()
	for _, r := range w.requests {
		r.lost = r.lost || r.disk == d
	}
	for _, n := range w.nodes {
		if n.disk == d {
			w.killNode(n)
			n.disk = fresh
		}
	}
}

func (w *world) killConsumer() {
	c := pick(w.rand, w.consumers)
	if c.proc.dead.Load() {
		return
	}
	w.tell("%s is killed", c.name)
	w.kill(c.proc)
	w.after(w.between(time.Millisecond, 6*time.Second), func() { c.start(); w.fill() })
	w.after(w.between(time.Millisecond, 7*time.Second), w.fill)
}

// freezeConsumer stops a consumer; the group gives its partitions to others, and it goes on as if it had not been away.
func (w *world) freezeConsumer() {
	c := pick(w.rand, w.consumers)
	p := c.proc
	if p.dead.Load() {
		return
	}
	p.frozen = true
	w.tell("%s is stopped", c.name)
	w.after(w.between(0, 8*time.Second), w.fill)
	w.after(w.between(50*time.Millisecond, 20*time.Second), func() {
		w.tell("%s goes on", p.name)
		p.frozen = false
		w.after(w.between(time.Millisecond, 2*time.Second), w.settleGroups)
	})
}

func (w *world) rebalance() {
	for n := range w.cfg.partitions {
		for _, usage := range []bool{false, true} {
			if w.chance(.6) {
				w.owner[ownerOf{n, usage}] = pick(w.rand, w.consumers)
			}
		}
	}
	w.settleGroups()
}

// ownerOf is a partition of a projection.
type ownerOf struct {
	n     int
	usage bool
}

func (c *consumer) group(usage bool) *group {
	if usage {
		return c.usage
	}
	return c.quota
}

// fill gives partitions whose owner is dead or stopped to somebody else. Who is stopped does not hear of it.
func (w *world) fill() {
	for n := range w.cfg.partitions {
		for _, usage := range []bool{false, true} {
			at := ownerOf{n, usage}
			o := w.owner[at]
			if o != nil && !o.proc.dead.Load() && !o.proc.frozen {
				o.give(o.group(usage), n)
				continue
			}
			for _, c := range w.consumers {
				if !c.proc.dead.Load() && !c.proc.frozen {
					w.owner[at] = c
					c.give(c.group(usage), n)
					break
				}
			}
		}
	}
}

// settleGroups tells every member what it owns.
func (w *world) settleGroups() {
	w.fill()
	for at, o := range w.owner {
		for _, c := range w.consumers {
			if c != o && !c.proc.dead.Load() && !c.proc.frozen {
				c.take(c.group(at.usage), at.n)
			}
		}
	}
}

func (w *world) promote() {
	if w.image != nil {
		w.hot.Promote(*w.image)
	}
}

// restore takes the database back; half of the time nodes and epochs are remembered all the same.
func (w *world) restore() {
	if w.backup == nil || w.jumped {
		return
	}
	w.restored = true
	producers, epochs := w.bank.producers, w.bank.epochs
	w.bank.tables = w.backup.clone()
	if w.chance(.5) {
		w.bank.producers, w.bank.epochs = producers, epochs
	} else {
		w.tell("its registry, too")
	}
}

func (w *world) outage() {
	to := pick(w.rand, []target{toCounters, toBank, toLog, toUsage})
	w.tell("the %s is down", to)
	w.down[to] = time.Now().Add(w.between(100*time.Millisecond, 15*time.Second))
}

// jump sets a clock. That of a consumer does not jump in histories in which the database goes back: an epoch's number is above the database's,
// the counters', and the clock's, and one of the three has to be good (DESIGN 7).
func (w *world) jump() {
	p := pick(w.rand, w.procs)
	if p.files == nil { // a consumer
		if w.restored {
			return
		}
		w.jumped = true
	}
	p.skew += pick(w.rand, []time.Duration{-time.Hour, time.Hour})
}

// life plans what happens beside faults: people, backups, the master's duties.
func (w *world) life() {
	every := func(from, to time.Duration, do func()) {
		var again func()
		again = func() {
			do()
			w.after(w.between(from, to), again)
		}
		w.after(w.between(0, to), again)
	}
	now := func() time.Time { return time.Now().Add(w.skew) }
	every(500*time.Millisecond, 1500*time.Millisecond, w.verify)
	every(time.Second, 2*time.Second, func() { w.bank.ScanAll(now()) })
	every(2*time.Second, 6*time.Second, func() {
		if w.quiet {
			return
		}
		image := w.hot.Save()
		w.image = &image
		backup := w.bank.clone()
		w.backup = &backup
	})
	acts := 2 + w.rand.IntN(6)
	if w.chance(.3) {
		acts = 40 // a busy day at the desk
	}
	if w.quiet {
		acts = 0 // a directed history leaves nothing to chance
	}
	for range acts {
		w.after(w.between(time.Second, w.cfg.span), func() { w.act(now()) })
	}
	every(2*time.Second, 5*time.Second, func() { w.redrive(now()) })
}

// act is what somebody does: a redemption, a credit, a hand edit, a replay.
func (w *world) act(now time.Time) {
	a := pick(w.rand, accounts)
	switch w.rand.IntN(8) {
	case 0, 1, 2:
		user, code := userOf(a), fmt.Sprintf("code%d", 1+w.rand.IntN(6))
		err := w.bank.Redeem(user, code, now)
		w.tell("user %d redeems %s: %v", user, code, err)
	case 3:
		w.serial++
		key := fmt.Sprintf("bonus:%d:%d", w.serial, userOf(a))
		err := w.bank.Outbox(ledger.Event{Kind: ledger.KindCreditGranted, User: userOf(a), Granted: 8}, key, now)
		w.tell("%s: %v", key, err)
	case 4, 5, 6:
		by := pick(w.rand, []int64{-7, 5, 10})
		w.bank.Edit(a, by)
		w.tell("somebody adds %d to %s", by, a)
	default:
		n := w.rand.IntN(w.cfg.partitions)
		p, offset := w.log.partitions[n], w.bank.parts[n].Offset
		if offset == 0 || offset > p.end() {
			return
		}
		balances := map[ledger.Account]ledger.Balance{}
		for a, b := range p.after[offset-1] {
			balances[a] = b
		}
		err := w.bank.Replay(n, offset, balances, now)
		w.tell("partition %d is replayed to %d: %v", n, offset, err)
	}
}

func (w *world) redrive(now time.Time) {
	for i := range w.bank.dead {
		if d := &w.bank.dead[i]; !d.Redriven && w.chance(.5) {
			err := w.bank.Redrive(d.Event, now)
			w.tell("the dead letter at %d/%d is re-driven: %v", d.Partition, d.Offset, err)
			return
		}
	}
}
