package quota_test

import (
	"maps"
	"math"
	"slices"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// simDir is one locked folder of JOURNAL_DIR: a unit that any start may adopt, alone, when its owner is dead.
type simDir struct {
	owner   *simNode
	records []simRecord
	incs    []ledger.ID
	seq     map[ledger.ID]uint64
	acked   map[*simBill]bool
}

// simRecord is an open, a settled (bill is set) or a void record.
type simRecord struct {
	kind         string
	hold         ledger.ID
	token, total int64
	epoch        uint64
	bill         *simBill
}

// simRequest is one request that runs.
type simRequest struct {
	token, amount int64
	epoch         uint64
}

type simParcel struct {
	dir  *simDir
	bill *simBill
}

// simNode is a relay node. Folders and registry survive a kill; the rest is memory.
type simNode struct {
	w                   *sim
	inc                 ledger.ID
	adopted             []ledger.ID
	dir                 *simDir
	alive, frozen, mute bool
	epoch               uint64
	requests            map[ledger.ID]*simRequest
	waiting             map[ledger.ID]*ledger.ReserveCall
	replies             []simReply
	toShip              []simParcel
	earlier             []simParcel
	toSettle            []ledger.ReleaseCall
	snapshot            *ledger.LoadCall
}

// simCall is a call to the counters on its way; one of the two is set.
type simCall struct {
	node    *simNode
	reserve *ledger.ReserveCall
	extend  *ledger.ExtendCall
}

type simReply struct {
	call  simCall
	reply ledger.ReserveReply
}

func newSimNode(w *sim) *simNode {
	n := &simNode{w: w, alive: true, requests: map[ledger.ID]*simRequest{}, waiting: map[ledger.ID]*ledger.ReserveCall{}}
	n.dir = &simDir{owner: n, seq: map[ledger.ID]uint64{}, acked: map[*simBill]bool{}}
	w.dirs = append(w.dirs, n.dir)
	n.newIncarnation()
	return n
}

func (n *simNode) newIncarnation() {
	n.inc = n.w.id('n')
	n.w.ok(n.w.store.RegisterProducer(n.w.ctx, sqlstore.Producer{ID: n.inc, Node: "n"}))
	n.w.registry[n.inc] = sqlstore.ProducerLive
	n.dir.incs = append(n.dir.incs, n.inc)
}

func (w *sim) nodeStep(name string, n *simNode) {
	switch name {
	case "restart":
		if !n.alive {
			n.restart()
		}
	case "freeze":
		n.frozen = n.alive
	case "thaw":
		n.frozen = false
	case "mute":
		n.mute = true
	case "speak":
		n.mute = false
	}
	if !n.alive || n.frozen {
		return
	}
	switch name {
	case "admit":
		n.admit()
	case "receive":
		n.receive()
	case "again_or_give_up":
		n.againOrGiveUp()
	case "extend":
		n.extend()
	case "sweep":
		n.sweep()
	case "install":
		n.install()
	case "finish":
		n.finish()
	case "settle":
		n.settle()
	case "ship":
		n.ship()
	case "follow_epoch":
		n.followEpoch()
	case "close_adopted":
		n.closeAdopted()
	case "kill":
		n.kill()
	}
}

// someHold returns any of the holds, the same one for the same seed.
func someHold[V any](w *sim, of map[ledger.ID]V) ledger.ID { return pick(w.rand, sorted(of)) }

func sorted[V any](of map[ledger.ID]V) []ledger.ID {
	return slices.SortedFunc(maps.Keys(of), func(a, b ledger.ID) int { return slices.Compare(a[:], b[:]) })
}

func (n *simNode) admit() {
	st, here := n.w.counters()
	if !here || n.epoch != st.Epoch {
		return
	}
	hold := n.w.id('h')
	n.waiting[hold] = &ledger.ReserveCall{
		Hold: hold, Incarnation: n.inc, User: 1, Token: pick(n.w.rand, []int64{1, 2}), Min: 1, Want: pick(n.w.rand, []int64{1, 2, 3, 4, 8}),
	}
	n.w.owner[hold] = n.inc
	n.send(hold)
}

func (n *simNode) send(hold ledger.ID) {
	call := *n.waiting[hold]
	call.Epoch = n.epoch
	if n.w.chance(.05) {
		n.w.slow = append(n.w.slow, simCall{node: n, reserve: &call})
	} else {
		n.w.calls = append(n.w.calls, simCall{node: n, reserve: &call})
	}
}

func (n *simNode) extend() {
	if len(n.requests) == 0 || n.epoch == 0 {
		return
	}
	hold := someHold(n.w, n.requests)
	call := ledger.ExtendCall{Hold: hold, Incarnation: n.inc, Epoch: n.epoch, To: n.requests[hold].amount + 2}
	n.w.calls = append(n.w.calls, simCall{node: n, extend: &call})
}

// againOrGiveUp: no answer in time. The same id again, or the client has gone.
func (n *simNode) againOrGiveUp() {
	if len(n.waiting) == 0 {
		return
	}
	hold := someHold(n.w, n.waiting)
	if n.w.chance(.5) {
		n.send(hold)
		return
	}
	delete(n.waiting, hold)
	n.release(hold, -1, n.epoch)
}

func (n *simNode) release(hold ledger.ID, charge int64, epoch uint64) {
	n.toSettle = append(n.toSettle, ledger.ReleaseCall{Hold: hold, Incarnation: n.w.owner[hold], Epoch: epoch, Charge: charge})
}

// deliver executes a call. Its reply may be lost.
func (w *sim) deliver() {
	if len(w.calls) == 0 {
		return
	}
	i := w.rand.IntN(len(w.calls))
	call := w.calls[i]
	w.calls = slices.Delete(w.calls, i, i+1)
	if _, here := w.counters(); !here {
		return
	}
	var reply ledger.ReserveReply
	var err error
	if call.reserve != nil {
		reply, err = w.hot.Reserve(w.ctx, *call.reserve)
	} else {
		reply, err = w.hot.Extend(w.ctx, *call.extend)
	}
	w.ok(err)
	if call.node.alive && w.chance(.9) {
		call.node.replies = append(call.node.replies, simReply{call, reply})
	}
}

func (n *simNode) receive() {
	if len(n.replies) == 0 {
		return
	}
	i := n.w.rand.IntN(len(n.replies))
	r := n.replies[i]
	n.replies = slices.Delete(n.replies, i, i+1)
	if r.call.extend != nil {
		n.extended(r.call.extend, &r.reply)
		return
	}
	call := r.call.reserve
	if _, waits := n.waiting[call.Hold]; !waits || call.Epoch != n.epoch {
		return // answered before, given up, or of an ended epoch: it counts as lost
	}
	delete(n.waiting, call.Hold)
	if r.reply.Outcome == ledger.OutcomeNeedLoad {
		offset, balances, err := n.w.store.Balances(n.w.ctx, 0, r.reply.Missing)
		n.w.ok(err)
		n.snapshot = &ledger.LoadCall{Epoch: n.epoch, Offset: offset, Balances: balances}
	}
	if r.reply.Outcome != ledger.OutcomeGranted {
		return
	}
	if n.w.chance(.05) {
		n.kill() // between reserve and journal
		return
	}
	n.dir.records = append(n.dir.records, simRecord{kind: "open", hold: call.Hold, token: call.Token, total: r.reply.Amount, epoch: call.Epoch})
	n.requests[call.Hold] = &simRequest{call.Token, r.reply.Amount, call.Epoch}
}

func (n *simNode) extended(call *ledger.ExtendCall, reply *ledger.ReserveReply) {
	r := n.requests[call.Hold]
	if r == nil || reply.Outcome != ledger.OutcomeGranted || call.Epoch != n.epoch || reply.Amount <= r.amount {
		return
	}
	r.amount = reply.Amount
	n.w.streamed[call.Hold] = reply.Amount - 1
	n.dir.records = append(n.dir.records, simRecord{kind: "open", hold: call.Hold, token: r.token, total: reply.Amount, epoch: n.epoch})
}

// sweep voids the node's own holds that it does not know: calls that were executed after their void.
func (n *simNode) sweep() {
	if _, here := n.w.counters(); !here {
		return
	}
	holds, err := n.w.hot.Holds(n.w.ctx, 0, n.inc)
	n.w.ok(err)
	for _, h := range holds {
		_, runs := n.requests[h.Hold]
		_, waits := n.waiting[h.Hold]
		settles := slices.ContainsFunc(n.toSettle, func(c ledger.ReleaseCall) bool { return c.Hold == h.Hold })
		if !runs && !waits && !settles {
			n.w.ok(n.w.hot.Release(n.w.ctx, []ledger.ReleaseCall{{Hold: h.Hold, Incarnation: n.inc, Epoch: n.epoch, Charge: -1}}))
		}
	}
}

func (n *simNode) install() {
	if _, here := n.w.counters(); n.snapshot != nil && here {
		n.w.ok(n.w.hot.Load(n.w.ctx, *n.snapshot))
	}
	n.snapshot = nil
}

// bill journals a usage event. to is the folder it belongs to: an adopted one that recovery closes, in its own name.
func (n *simNode) bill(hold ledger.ID, r simRequest, amount int64, to *simDir) {
	amount = max(amount, min(r.amount, n.w.streamed[hold]))
	inc := to.incs[len(to.incs)-1]
	to.seq[inc]++
	e := usage(1, r.token, amount, &ledger.HoldRef{ID: hold, Epoch: r.epoch, Amount: r.amount, Token: true})
	e.Version, e.ID, e.Time, e.Producer, e.Seq, e.Prev = ledger.EventVersion, n.w.id('u'), n.w.clock.at.UnixMilli(), inc, to.seq[inc], to.seq[inc]-1
	b := &simBill{event: e, poison: n.w.chance(.03), offset: -1}
	if b.poison {
		b.event.Channel = int64(poisonChannels + n.w.ids)
	}
	n.w.billed = append(n.w.billed, b)
	to.records = append(to.records, simRecord{kind: "settled", hold: hold, bill: b})
	n.toShip = append(n.toShip, simParcel{to, b})
	n.release(hold, amount, r.epoch)
}

func (n *simNode) finish() {
	if len(n.requests) == 0 {
		return
	}
	hold := someHold(n.w, n.requests)
	r := *n.requests[hold]
	delete(n.requests, hold)
	if n.w.chance(.2) {
		n.dir.records = append(n.dir.records, simRecord{kind: "void", hold: hold, epoch: r.epoch})
		n.release(hold, -1, r.epoch)
		return
	}
	n.bill(hold, r, pick(n.w.rand, []int64{r.amount, n.w.rand.Int64N(r.amount + 1), r.amount + 1}), n.dir)
}

func (n *simNode) settle() {
	if _, here := n.w.counters(); len(n.toSettle) == 0 || !here {
		return
	}
	i := n.w.rand.IntN(len(n.toSettle))
	n.w.ok(n.w.hot.Release(n.w.ctx, n.toSettle[i:i+1]))
	if n.w.chance(.9) {
		n.toSettle = slices.Delete(n.toSettle, i, i+1)
	}
}

func (n *simNode) ship() {
	if len(n.toShip) == 0 || n.mute {
		return
	}
	p := n.toShip[0]
	offset := n.w.append(p.bill.event, p.bill.poison)
	if p.bill.offset < 0 {
		p.bill.offset = offset
	}
	if n.w.chance(.85) {
		p.dir.acked[p.bill] = true
		n.toShip = n.toShip[1:]
	}
}

func (n *simNode) followEpoch() {
	w := n.w
	st, here := w.counters()
	if !here {
		return
	}
	gone := w.registry[n.inc] == sqlstore.ProducerGone
	switch {
	case n.epoch != st.Epoch || gone:
		switch { // an epoch was opened without it: what is older ends, late
		case gone:
			n.end(math.MaxUint64)
			n.adopted = append(n.adopted, n.inc)
			clear(n.waiting)
			n.newIncarnation()
		case st.Open:
			n.end(st.Epoch)
		default:
			n.end(st.Opened)
		}
		if st.Open {
			n.epoch, n.earlier = st.Epoch, nil
			return
		}
		n.reassert(&st)
	case !st.Open && !slices.Contains(st.Reports, n.inc):
		if !slices.ContainsFunc(n.earlier, func(p simParcel) bool { return slices.Contains(n.toShip, p) }) {
			w.ok(w.hot.Report(w.ctx, 0, st.Epoch, append([]ledger.ID{n.inc}, n.adopted...)...))
		}
	}
}

// end ends the requests of epochs before the one named.
func (n *simNode) end(before uint64) {
	for _, hold := range sorted(n.requests) {
		if r := *n.requests[hold]; r.epoch < before {
			delete(n.requests, hold)
			n.bill(hold, r, n.w.rand.Int64N(r.amount+1), n.dir)
		}
	}
}

func (n *simNode) reassert(st *ledger.Counters) {
	var holds []ledger.OpenHold
	for hold, r := range n.requests {
		holds = append(holds, ledger.OpenHold{Hold: hold, Incarnation: n.inc, User: 1, Token: r.token, Amount: r.amount})
	}
	accepted, err := n.w.hot.Reassert(n.w.ctx, 0, st.Epoch, n.inc, holds)
	n.w.ok(err)
	if !accepted {
		return
	}
	for hold, r := range n.requests {
		r.epoch = st.Epoch
		n.dir.records = append(n.dir.records, simRecord{kind: "open", hold: hold, token: r.token, total: r.amount, epoch: st.Epoch})
	}
	n.epoch, n.earlier = st.Epoch, slices.Clone(n.toShip)
}

func (n *simNode) closeAdopted() {
	if _, here := n.w.counters(); len(n.adopted) == 0 || len(n.toShip) > 0 || len(n.toSettle) > 0 || !here {
		return
	}
	for _, inc := range n.adopted {
		n.w.ok(n.w.hot.Drop(n.w.ctx, 0, inc))
		n.w.ok(n.w.store.CloseProducer(n.w.ctx, inc))
		n.w.registry[inc] = sqlstore.ProducerClosed
	}
	n.adopted = nil
}

func (n *simNode) kill() {
	n.w.tell("the node of %s is killed", short(n.inc))
	n.alive, n.frozen, n.mute = false, false, false
	for _, d := range n.w.dirs {
		if d.owner == n {
			d.owner = nil
		}
	}
}

// restart recovers every unlocked folder that it gets: its own, others', or none.
func (n *simNode) restart() {
	w := n.w
	next := newSimNode(w)
	w.nodes[slices.Index(w.nodes, n)] = next
	var mine []*simDir
	for _, d := range w.dirs {
		if d.owner == nil && (w.draining || w.chance(.6)) {
			d.owner = next
			mine = append(mine, d)
			for _, inc := range d.incs {
				if w.registry[inc] != sqlstore.ProducerClosed {
					next.adopted = append(next.adopted, inc)
				}
			}
		}
	}
	for _, d := range mine {
		if w.chance(.3) {
			clear(d.acked) // acknowledgements were not noted: shipped again
		}
		if next.recover(d) {
			next.kill()
			return
		}
	}
}

// recover closes a folder, by hold, and reports whether the node crashed over it.
func (n *simNode) recover(d *simDir) (crashed bool) {
	opened, closed := map[ledger.ID]simRecord{}, map[ledger.ID]bool{}
	var order []ledger.ID
	for _, r := range d.records {
		if r.kind != "open" {
			closed[r.hold] = true
			continue
		}
		if _, known := opened[r.hold]; !known {
			order = append(order, r.hold)
		}
		opened[r.hold] = r // the last one names the epoch, and what was extended
	}
	for _, r := range slices.Clone(d.records) {
		switch r.kind {
		case "settled":
			if !d.acked[r.bill] {
				n.toShip = append(n.toShip, simParcel{d, r.bill})
			}
			n.release(r.hold, r.bill.event.Charged, r.bill.event.Hold.Epoch)
		case "void":
			n.release(r.hold, -1, r.epoch)
		}
	}
	for _, hold := range order {
		if closed[hold] {
			continue
		}
		r := opened[hold]
		n.bill(hold, simRequest{r.token, r.total, r.epoch}, n.w.rand.Int64N(r.total+1), d)
		if n.w.chance(.05) {
			return true
		}
	}
	return false
}

// finishAll does everything that a node has to do, once.
func (n *simNode) finishAll() {
	for len(n.replies) > 0 && n.alive {
		n.receive()
	}
	for len(n.waiting) > 0 {
		n.againOrGiveUp()
	}
	for len(n.requests) > 0 {
		n.finish()
	}
	if !n.alive {
		return
	}
	n.ship()
	n.settle()
	n.followEpoch()
	n.closeAdopted()
	n.sweep()
}

func (n *simNode) idle() bool {
	return n.alive && len(n.toShip) == 0 && len(n.toSettle) == 0 && len(n.adopted) == 0 && len(n.waiting) == 0 && len(n.requests) == 0
}
