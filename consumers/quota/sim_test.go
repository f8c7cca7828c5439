package quota_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/sqlstore"
)

// The simulation is model/holds.py with the real consumer, the real database code and the real in-process counters in it:
// one partition, one user with two limited tokens, three nodes, two consumers. Nodes and adversary are those of the model (see
// there for what each step means); the consumers are stopped, crashed, or overtaken by the rest of the world between any two
// of their calls (sim_consumer_test.go). Time is a clock that each step moves.
//
// After every step nobody has more charged and held than was granted, late and excess charges and dead letters apart (L3), and
// every tenth step what verify would read holds. At the end MySQL = counters = fold of the log (L4), no hold is left, nothing was
// billed twice or short (P1).

var (
	simHistories = flag.Int("histories", 60, "random histories to run")
	simSeed      = flag.Uint64("seed", 1, "seed of the first one")
)

const (
	simSteps = 700
	// simMuteRounds is how long a mute node stays mute at the end: longer than anybody is waited for, at a second a round.
	simMuteRounds = 100
	simRounds     = 400
)

var simGrants = []struct {
	account ledger.Account
	amount  int64
}{{theUser, 40}, {theToken, 30}, {ledger.Account{Kind: ledger.TokenAccount, ID: 2}, 15}}

func TestRandomHistories(t *testing.T) {
	now := newClock()
	store := openStore(t, "", now.now)
	addUser(t, store, 1, 1, 2)
	fresh := dump(t, store, simAllTables)
	var total simCounts
	for n := range *simHistories {
		load(t, store, fresh)
		w := newSim(t, store, now, *simSeed+uint64(n))
		if err := w.run(); err != nil {
			t.Fatalf("seed %d: %v\n%s", w.seed, err, strings.Join(w.story[max(0, len(w.story)-60):], "\n"))
		}
		total.add(&w.counts)
	}
	t.Logf("%d histories hold: %+v", *simHistories, total)
	// A world in which these did not happen proves nothing.
	for what, n := range map[string]int{
		"late charges": total.late, "epochs begun": total.begun - *simHistories, "duplicates": total.duplicates, "re-driven": total.redriven,
		"calls between a consumer's calls": total.between, "crashes of consumers": total.crashes, "restores": total.restores,
	} {
		if n <= 0 && *simHistories >= 60 {
			t.Errorf("no %s in %d histories", what, *simHistories)
		}
	}
}

// simCounts says what happened, so that a test can say that it did.
type simCounts struct {
	events, late, begun, duplicates, redriven, between, crashes, restores int
}

func (c *simCounts) add(o *simCounts) {
	c.events += o.events
	c.late += o.late
	c.begun += o.begun
	c.duplicates += o.duplicates
	c.redriven += o.redriven
	c.between += o.between
	c.crashes += o.crashes
	c.restores += o.restores
}

// sim is class World.
type sim struct {
	t      *testing.T
	ctx    context.Context
	seed   uint64
	rand   *rand.Rand
	clock  *clock
	ids    uint64
	story  []string
	counts simCounts

	log      *memoryLog
	store    *sqlstore.Store
	hot      *hold.Local
	outbox   *producer
	registry map[ledger.ID]sqlstore.ProducerState
	owner    map[ledger.ID]ledger.ID // hold to incarnation
	billed   []*simBill
	streamed map[ledger.ID]int64 // the slots: what the client already has

	nodes     []*simNode
	dirs      []*simDir
	consumers []*simConsumer
	calls     []simCall // on their way
	slow      []simCall
	opened    []ledger.EpochRecord
	stored    ledger.EpochRecord // the last one; it counts when the counters open it
	image     *hold.Image
	backup    tables
	lastBeat  time.Time
	draining  bool
	depth     int // of steps inside of a consumer's step

	seen    map[ledger.ID]uint64
	places  []ledger.DeadState // what each offset of the log is to the dead-letter store
	deadNow map[ledger.ID]bool
}

// simBill is a usage event, and where the log has it first.
type simBill struct {
	event  ledger.Event
	poison bool
	offset int64 // -1: not shipped yet
}

func newSim(t *testing.T, store *sqlstore.Store, now *clock, seed uint64) *sim {
	w := &sim{
		t: t, ctx: t.Context(), seed: seed, rand: rand.New(rand.NewPCG(seed, 7)), clock: now, log: &memoryLog{}, store: store, hot: hold.NewLocal(),
		registry: map[ledger.ID]sqlstore.ProducerState{}, owner: map[ledger.ID]ledger.ID{}, streamed: map[ledger.ID]int64{},
		seen: map[ledger.ID]uint64{}, deadNow: map[ledger.ID]bool{},
	}
	w.outbox = &producer{id: w.id('o'), log: w.log}
	for _, g := range simGrants {
		e := credit(1, g.amount)
		if g.account.Kind == ledger.TokenAccount {
			e = limit(1, g.account.ID, g.amount)
		}
		w.append(w.outbox.event(e), false)
	}
	for range 3 {
		w.nodes = append(w.nodes, newSimNode(w))
	}
	w.consumers = []*simConsumer{newSimConsumer(w, "a"), newSimConsumer(w, "b")}
	return w
}

func (w *sim) id(kind byte) ledger.ID {
	w.ids++
	return testID(kind, w.ids)
}

func (w *sim) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf("%*s", 2*w.depth, "")+fmt.Sprintf(format, args...))
}

func (w *sim) chance(p float64) bool { return w.rand.Float64() < p }

// ok ends the test if a call failed that cannot.
func (w *sim) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("seed %d: %v", w.seed, err)
	}
}

// append puts an event into the log and notes what it is to the dead-letter store, by the log alone.
func (w *sim) append(e ledger.Event, poisoned bool) int64 {
	state := ledger.DeadNone
	switch {
	case w.seen[e.Producer] >= e.Seq:
		w.counts.duplicates++
	case e.Redrive && w.deadNow[e.ID]:
		state = ledger.DeadRedriven
		delete(w.deadNow, e.ID)
		w.counts.redriven++
	case poisoned && !e.Redrive:
		state = ledger.DeadOriginal
		w.deadNow[e.ID] = true
	}
	w.seen[e.Producer] = max(w.seen[e.Producer], e.Seq)
	w.places = append(w.places, state)
	return w.log.put(e)
}

// fold is what the log says below an offset.
func (w *sim) fold(to int64) map[ledger.Account]ledger.Balance {
	fold := ledger.NewFold(func(_ int, offset int64) ledger.DeadState { return w.places[offset] })
	for i := range w.log.records[:to] {
		fold.Apply(&w.log.records[i])
	}
	return fold.Balances()
}

// counters returns the state of the counters, and whether they are this server's.
func (w *sim) counters() (ledger.Counters, bool) {
	states, err := w.hot.State(w.ctx, 0)
	w.ok(err)
	return states[0], states[0].Present && !states[0].Foreign
}

// simSteps of the adversary, by weight.
func (w *sim) weights(consume float64) ([]string, []float64) {
	names := []string{
		"admit", "deliver", "receive", "again_or_give_up", "extend", "sweep", "install", "finish", "settle", "ship", "follow_epoch", "close_adopted",
		"kill", "restart", "freeze", "thaw", "mute", "speak", "consume", "consumer_crash", "flush", "promote", "remember", "give_up", "credit", "redrive",
		"slow", "restore", "remember_mysql",
	}
	return names, []float64{
		12, 24, 24, 1, 2, .5, 4, 6, 8, 8, 8, 2,
		.25, 1.5, .2, .8, .15, .4, consume, .6, .12, .15, 1, .2, .3, .5,
		.4, .1, .5,
	}
}

func (w *sim) choose(names []string, weights []float64) string {
	var sum float64
	for _, x := range weights {
		sum += x
	}
	at := w.rand.Float64() * sum
	for i, x := range weights {
		if at < x {
			return names[i]
		}
		at -= x
	}
	return names[len(names)-1]
}

func (w *sim) run() error {
	names, weights := w.weights(pick(w.rand, []float64{24, 24, 6, 2}))
	for n := range simSteps {
		w.step(w.choose(names, weights))
		if err := w.check(); err != nil {
			return err
		}
		if n%10 == 0 {
			if err := w.verify(); err != nil {
				return err
			}
		}
	}
	return w.drain()
}

// step does one thing.
func (w *sim) step(name string) {
	w.pass()
	node, consumer := pick(w.rand, w.nodes), pick(w.rand, w.consumers)
	switch name {
	case "consume", "consumer_crash":
		if consumer.busy {
			return // it is in the middle of a call
		}
		if name == "consume" {
			consumer.step()
		} else {
			consumer.crash()
		}
	case "flush":
		w.tell("the counters lose everything")
		w.hot.Flush()
	case "slow":
		if len(w.slow) > 0 {
			w.calls, w.slow = append(w.calls, w.slow[0]), w.slow[1:]
		}
	case "remember":
		image := w.hot.Save()
		w.image = &image
	case "promote":
		if w.image != nil {
			w.tell("a stale replica is promoted")
			w.hot.Promote(*w.image)
		}
	case "remember_mysql":
		if w.depth == 0 {
			w.backup = dump(w.t, w.store, simTables)
		}
	case "restore":
		if w.backup != nil {
			w.tell("the database is restored")
			load(w.t, w.store, w.backup)
			w.counts.restores++
		}
	case "deliver":
		w.deliver()
	case "give_up":
		w.giveUp()
	case "credit":
		w.credit()
	case "redrive":
		w.redrive()
	default:
		w.nodeStep(name, node)
	}
}

// pass moves the clock, most often a little. Nodes that run beat.
func (w *sim) pass() {
	w.clock.pass(time.Duration(w.rand.IntN(60)) * time.Millisecond)
	if w.chance(.15) {
		w.clock.pass(time.Duration(w.rand.IntN(5000)) * time.Millisecond)
	}
	if w.clock.at.Sub(w.lastBeat) > 3*time.Second {
		w.beat()
	}
}

func (w *sim) beat() {
	w.lastBeat = w.clock.at
	var ids []ledger.ID
	for _, n := range w.nodes {
		if n.alive && !n.frozen {
			ids = append(append(ids, n.inc), n.adopted...)
		}
	}
	_, err := w.store.Heartbeat(w.ctx, ids...)
	w.ok(err)
}

func (w *sim) credit() {
	e := credit(1, 8)
	e.Key = fmt.Sprintf("bonus:%d:1", len(w.log.records))
	e = w.outbox.event(e)
	w.append(e, false)
	if w.chance(.3) { // its row was moved again
		w.append(w.outbox.event(e), false)
	}
}

// redrive sends a dead letter again: its place in the log is where it is applied.
func (w *sim) redrive() {
	letters, err := w.store.DeadLetters(w.ctx, -1, -1, 100)
	w.ok(err)
	letters = slices.DeleteFunc(letters, func(d sqlstore.DeadLetter) bool { return d.Redriven })
	if len(letters) == 0 {
		return
	}
	e, err := ledger.Decode(pick(w.rand, letters).Value)
	w.ok(err)
	e.Redrive = true
	w.append(w.outbox.event(e), false)
}

// giveUp is the observer: one row in the database; the consumer sees it, whenever it looks.
func (w *sim) giveUp() {
	adoptedBy := func(inc ledger.ID, not *simNode) bool {
		return slices.ContainsFunc(w.nodes, func(o *simNode) bool { return o.alive && o != not && slices.Contains(o.adopted, inc) })
	}
	for _, n := range w.nodes {
		if n.alive && !n.frozen || w.registry[n.inc] != sqlstore.ProducerLive || adoptedBy(n.inc, nil) {
			continue
		}
		for _, inc := range append([]ledger.ID{n.inc}, n.adopted...) {
			if !adoptedBy(inc, n) {
				w.setGone(inc)
			}
		}
		return
	}
}

func (w *sim) setGone(inc ledger.ID) {
	list, err := w.store.Producers(w.ctx)
	w.ok(err)
	for i := range list {
		if list[i].ID == inc {
			gone, err := w.store.GiveUp(w.ctx, inc, list[i].Beat)
			w.ok(err)
			if gone {
				w.tell("%s is given up", short(inc))
				w.registry[inc] = sqlstore.ProducerGone
			}
		}
	}
}

// check is L3.
func (w *sim) check() error {
	st, here := w.counters()
	if !here || !st.Open {
		return nil
	}
	spent := map[ledger.Account]int64{}
	spend := func(token, amount int64) {
		spent[theUser] += amount
		spent[ledger.Account{Kind: ledger.TokenAccount, ID: token}] += amount
	}
	for _, b := range w.billed {
		switch {
		case b.poison:
		case w.late(b):
			w.counts.late++
		default:
			spend(b.event.Token, min(b.event.Charged, b.event.Hold.Amount))
		}
	}
	for _, n := range w.nodes {
		for _, r := range n.requests {
			if n.alive && r.epoch == st.Epoch {
				spend(r.token, r.amount)
			}
		}
	}
	granted := w.fold(w.log.end())
	for a, n := range spent {
		if limit := granted[a].Granted; n > limit {
			return fmt.Errorf("%s overspent: %d charged and held of %d", a, n, limit)
		}
	}
	return nil
}

func (w *sim) late(b *simBill) bool {
	return slices.ContainsFunc(w.opened, func(o ledger.EpochRecord) bool {
		return (b.offset < 0 || o.End <= b.offset) && b.event.Hold.Epoch < o.Epoch && !slices.Contains(o.Reporters, w.owner[b.event.Hold.ID])
	})
}

// verify reads what verify reads.
func (w *sim) verify() error {
	st, here := w.counters()
	if !here {
		return nil
	}
	for _, g := range simGrants {
		list, err := w.hot.Accounts(w.ctx, 0, []ledger.Account{g.account})
		w.ok(err)
		h := list[0]
		if !h.Loaded {
			continue
		}
		at := max(h.At, h.Done)
		if want := w.fold(at)[g.account]; h.Granted != want.Granted || h.Charged != want.Charged {
			return fmt.Errorf("verify: %s has %+v, the log says %+v at %d (epoch %d)", g.account, h, want, at, st.Epoch)
		}
	}
	return nil
}

// drain lets everything come to an end: no new fault; the network delivers what it still has; a mute node stays mute for a while.
func (w *sim) drain() error {
	w.draining = true
	opened := false
	for _, n := range w.nodes {
		n.frozen = false
	}
	w.calls = append(w.calls, w.slow...)
	for round := range simRounds {
		if round == simMuteRounds && !opened {
			return errors.New("admission stayed closed while one node was mute")
		}
		w.drainNodes(round >= simMuteRounds)
		for _, c := range w.consumers {
			c.step()
		}
		st, here := w.counters()
		opened = opened || here && st.Open
		if slices.ContainsFunc(w.dirs, func(d *simDir) bool { return d.owner == nil }) {
			w.nodes[0].kill() // a start adopts what is left
		}
		idle := len(w.calls) == 0 && !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return !n.idle() })
		my, err := w.store.Partition(w.ctx, 0)
		w.ok(err)
		if idle && here && st.Open && my.Offset == w.log.end() && st.Done == my.Offset && w.holds() == 0 {
			w.counts.events = int(w.log.end())
			return w.end()
		}
		if err := w.check(); err != nil {
			return err
		}
	}
	st, _ := w.counters()
	return fmt.Errorf("never drained: %d holds, counters %+v, log %d", w.holds(), st, w.log.end())
}

func (w *sim) drainNodes(unmute bool) {
	w.clock.pass(time.Second)
	w.beat()
	for len(w.calls) > 0 {
		w.deliver()
	}
	for i := range w.nodes {
		if !w.nodes[i].alive {
			w.nodes[i].restart()
		}
		n := w.nodes[i]
		if !n.alive {
			continue // it crashed in its recovery
		}
		n.mute = n.mute && !unmute
		n.finishAll()
	}
}

func (w *sim) holds() (n int) {
	w.ok(w.hot.All(w.ctx, 0, func(ledger.HotAccount) error { return nil }, func(ledger.OpenHold) error { n++; return nil }))
	return n
}

// end compares everything.
func (w *sim) end() error {
	for _, b := range w.billed {
		if b.event.Charged < w.streamed[b.event.Hold.ID] {
			return fmt.Errorf("%d units of hold %s were streamed and %d billed", w.streamed[b.event.Hold.ID], b.event.Hold.ID, b.event.Charged)
		}
	}
	billed := map[ledger.ID]bool{}
	for _, b := range w.billed {
		if billed[b.event.Hold.ID] {
			return fmt.Errorf("hold %s was billed twice", b.event.Hold.ID)
		}
		billed[b.event.Hold.ID] = true
	}
	want := w.fold(w.log.end())
	poisoned := slices.ContainsFunc(w.billed, func(b *simBill) bool { return b.poison })
	for _, g := range simGrants {
		_, have, err := w.store.Balances(w.ctx, 0, []ledger.Account{g.account})
		w.ok(err)
		if have[g.account] != want[g.account] {
			return fmt.Errorf("%s: the database has %+v, the log says %+v", g.account, have[g.account], want[g.account])
		}
		list, err := w.hot.Accounts(w.ctx, 0, []ledger.Account{g.account})
		w.ok(err)
		if h := list[0]; h.Settled != 0 && !poisoned || h.Held != 0 || h.OpenHolds != 0 {
			return fmt.Errorf("the counters kept something: %+v", h)
		}
	}
	return w.verify()
}

func short(id ledger.ID) string { return fmt.Sprintf("%c%d", id[0], id[15]|id[14]) }
