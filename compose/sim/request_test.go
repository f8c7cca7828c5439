package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/relay/desk"
)

// request is one request of a client, and what the client and the upstream know of it: the outside oracle.
type request struct {
	n           int
	node        string
	disk        *disk
	p           *proc
	user, token int64
	plan        plan1

	admitted bool
	hold     ledger.ID
	event    ledger.ID
	got      int64 // chunks that the client received
	produced int64 // chunks that the upstream produced
	finished bool  // the client has the last byte
	charge   int64 // what its event said
	voided   bool
	weak     bool // the power went while it was open: its progress may be lost
	lost     bool // the disk with its journal never came back
	rotten   bool // its journal was damaged
}

// plan1 is what the client and the upstream are going to do.
type plan1 struct {
	chunks  int64
	slice   int64         // units asked for at a time
	think   time.Duration // of the upstream, before the first chunk
	pace    time.Duration // between chunks
	fails   bool          // the upstream fails before its first chunk
	more    int64         // units that the upstream reports beyond what it produced
	channel int64
	whole   bool // not a stream: it is priced and held at once
}

// promptUnits is the price of every prompt; a chunk costs one.
const promptUnits = 1

func (w *world) newRequest() {
	r := &request{
		n: len(w.requests), user: 1 + w.rand.Int64N(2), plan: plan1{
			chunks: w.rand.Int64N(9), slice: 1 + w.rand.Int64N(4), think: w.between(0, 1500*time.Millisecond), channel: 1 + w.rand.Int64N(2),
			fails: w.chance(.12), whole: w.chance(.4),
		},
	}
	r.token = 10*r.user + w.rand.Int64N(2)
	if w.chance(.05) {
		r.plan.pace = w.between(time.Second, 8*time.Second)
	} else if w.chance(.5) {
		r.plan.pace = w.between(time.Millisecond, 400*time.Millisecond)
	}
	if w.chance(.06) {
		r.plan.more = 1 + w.rand.Int64N(3)
	}
	if w.chance(.05) {
		w.poisons++
		r.plan.channel = poisonChannel + w.poisons
	}
	w.requests = append(w.requests, r)
	first := w.rand.IntN(len(w.nodes))
	for i := range w.nodes { // nginx: the next one, if this one is down
		n := w.nodes[(first+i)%len(w.nodes)]
		if n.running() {
			w.send(n, r)
			return
		}
	}
	w.counts.Sent++ // 502
}

// send sends a request to a node.
func (w *world) send(n *node, r *request) {
	w.counts.Sent++
	r.node, r.disk, r.p = n.name, n.disk, n.proc
	w.live++
	d := n.desk
	w.clients.Go(func() {
		r.serve(w, d)
		_ = r.p.doFinal(func() { w.live-- })
	})
}

// doFinal is a step that happens even if the process is dead: the test's own bookkeeping.
func (p *proc) doFinal(f func()) error {
	c := &call{p: p.w.outside, to: toClient, name: "end", exec: func() error { f(); return nil }, done: make(chan error, 1)}
	p.w.arrive(c)
	select {
	case err := <-c.done:
		return err
	case <-p.w.over:
		return errKilled
	}
}

// step is something that the client, the upstream or the handler does.
func (r *request) step(what string, f func()) error {
	return r.p.do(context.Background(), toClient, fmt.Sprintf("%s %d", what, r.n), func() error { f(); return nil })
}

// write is a step that sends something to the client; errClosed: the client is not there any more, or is sent away.
func (r *request) write(what string, f func()) error {
	return r.p.do(context.Background(), toClient, fmt.Sprintf("%s %d", what, r.n), func() error {
		if r.p.closed {
			return errClosed
		}
		f()
		return nil
	})
}

// serve is what the relay's handler does with the desk, in its order.
func (r *request) serve(w *world, d *desk.Desk) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	plan := &r.plan
	want := promptUnits + plan.slice
	if plan.whole {
		want = promptUnits + plan.chunks
	}
	t, err := d.Reserve(ctx, desk.Order{
		User: r.user, Token: r.token, TokenHeld: true, Min: min(promptUnits+1, want), Want: want,
		Open: journal.OpenRecord{Time: r.p.now().UnixMilli(), PromptTokens: promptUnits, Rating: rating, Request: ledger.Request{ID: fmt.Sprint(r.n)}},
	})
	if err != nil {
		_ = r.step("refused", func() { w.refused(r, err) })
		return
	}
	if r.step("admitted", func() { w.admitted(r, t.Hold()) }) != nil {
		return
	}
	cut := make(chan struct{})
	t.OnCut(func() { close(cut) })
	t.Forwarding(plan.channel)
	pause(plan.think, cut)
	if plan.fails {
		if r.step("upstream fails", func() { r.voided = true }) == nil {
			t.Void()
		}
		return
	}
	if !r.stream(ctx, w, t, cut) {
		return
	}
	r.settle(w, t)
}

// stream passes the answer on, chunk by chunk, and reports whether the request is to be settled.
func (r *request) stream(ctx context.Context, w *world, t *desk.Ticket, cut <-chan struct{}) bool {
	plan := &r.plan
	for n := int64(1); n <= plan.chunks; n++ {
		if t.WasCut() {
			break
		}
		if promptUnits+n > t.Amount() {
			if plan.whole { // a partial hold lowers max_tokens
				break
			}
			granted, _, err := t.Extend(ctx, promptUnits+n+plan.slice)
			if err != nil || !granted {
				break
			}
		}
		if r.step("produced", func() { r.produced = n }) != nil {
			return false
		}
		t.Progress(n, 0)
		if n == 1 || plan.whole {
			if err := t.Durable(ctx); err != nil {
				_ = r.step("not durable", func() { w.tell("request %d: %v", r.n, err) })
				return false // the client gets an error; the journal is recovered
			}
		}
		if !plan.whole {
			if err := r.write("chunk", func() { r.got = n }); err != nil {
				return errors.Is(err, errClosed)
			}
		}
		pause(plan.pace, cut)
	}
	return true
}

func pause(d time.Duration, cut <-chan struct{}) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-cut:
	}
}

// settle bills the request, and only then lets the last byte go (L1).
func (r *request) settle(w *world, t *desk.Ticket) {
	var ev ledger.Event
	err := r.step("settles", func() {
		r.event = w.newID('e')
		r.charge = promptUnits + r.produced + r.plan.more
		ev = ledger.Event{
			Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: r.event, Time: r.p.now().UnixMilli(), Node: r.node,
			User: r.user, Token: r.token, Channel: r.plan.channel, Charged: r.charge, Requests: 1, Request: &ledger.Request{ID: fmt.Sprint(r.n)},
		}
	})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := t.Settle(ctx, &ev); err != nil {
		_ = r.step("not settled", func() { w.tell("request %d: %v", r.n, err) })
		return
	}
	_ = r.write("last byte", func() {
		r.finished = true
		if r.plan.whole {
			r.got = r.produced
		}
		w.counts.Finished++
		w.tell("%s: request %d is finished: %d units for %s", r.node, r.n, r.charge, short(r.hold))
	})
}

// rating prices a prompt token and a chunk at one unit each.
var rating = ledger.Rating{Mode: ledger.ModeRatio, ModelRatio: "1", CompletionRatio: "1", GroupRatio: "1"}

func (w *world) refused(r *request, err error) {
	var refusal *desk.Refusal
	if errors.As(err, &refusal) {
		w.counts.Refused[refusal.Outcome]++
	} else {
		w.counts.Failed++
	}
	w.tell("%s: request %d of user %d, token %d: %v", r.node, r.n, r.user, r.token, err)
}

func (w *world) admitted(r *request, hold ledger.ID) {
	r.admitted, r.hold = true, hold
	w.counts.Admitted++
	w.tell("%s: request %d of user %d, token %d is hold %s", r.node, r.n, r.user, r.token, short(hold))
}

func (w *world) newID(kind byte) (id ledger.ID) {
	w.ids++
	id[0], id[14], id[15] = kind, byte(w.ids>>8), byte(w.ids)
	return id
}
