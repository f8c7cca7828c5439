package hold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// ErrOverloaded is returned when [MaxWaiting] calls wait for Redis already.
var ErrOverloaded = errors.New("too many calls wait for the hot counters")

// call is one call on its way to Redis and back.
type call struct {
	partition  int
	packedCall           // of lua/calls.lua
	since      time.Time // when it began to wait
	taken      bool      // guarded by combiner.mu: a trip has it, or its owner has gone
	errand     *errand   // that it is part of
	answer     answer    // of lua/calls.lua
	state      []any     // of lua/state.lua
	err        error
}

// errand is the calls that one goroutine waits for. All of it but the channel is guarded by combiner.mu.
type errand struct {
	last   *call // once it was taken nothing of the errand waits any more
	left   int   // calls without an answer
	eager  bool  // a turn may be handed to it
	late   bool  // it has waited for besideAfter: a turn may be handed to it while another trip is on its way
	handed bool  // it was given a turn, and has not used it
	flies  bool  // its goroutine is on a trip
	// signal tells its goroutine that it has a turn (false), or that all is answered (true). Nothing comes after that, and one turn at
	// the most before, so it never holds more than two.
	signal chan bool
}

const (
	// besideAfter is how long calls wait for a trip that is on its way before they make another beside it. A trip to a Redis nearby is back
	// in less: then the next carries all that gathered, which costs the server less a call. One trip that hangs holds up nobody for longer.
	besideAfter = time.Millisecond
	forever     = time.Duration(math.MaxInt64)
)

// patience says how long calls may wait.
type patience struct {
	company time.Duration // for a trip that somebody else needs, before they need one themselves
	whole   time.Duration // in all; 0: the context alone bounds it
}

// combiner coalesces the calls of concurrent goroutines into few trips. It has no goroutine of its own: a caller waits for its
// answer or for its turn to fly, and who gets the turn takes along all that waits. So a lone call flies at once, and under
// load a trip carries what gathered while the last one was on its way. A second trip begins beside it only for calls that it keeps
// waiting. A turn is handed to one errand that waits: were it offered to all, those whose calls are under way already would be woken for
// it, one after the other.
type combiner struct {
	fly   func(calls []*call)
	trips int // that may be on their way

	mu      sync.Mutex
	turns   int     // trips that may begin; not all of them while an eager errand waits that was handed none, none while a late one does
	waiting []*call // at most MaxWaiting
	stats   Stats
}

func newCombiner(trips int, fly func([]*call)) *combiner {
	return &combiner{fly: fly, trips: trips, turns: trips}
}

// do sends calls, in order within their partition, and returns when all are answered. The error is that of the first call that
// failed, or ctx's; in the latter case what has not left yet never will.
func (c *combiner) do(ctx context.Context, calls ...*call) error {
	return c.doWithin(ctx, patience{}, calls...)
}

// doWithin is do with a bound in time, beyond which it fails with context.DeadlineExceeded, and for calls that nobody is in a hurry for.
func (c *combiner) doWithin(ctx context.Context, p patience, calls ...*call) error {
	now := time.Now()
	e := &errand{last: calls[len(calls)-1], left: len(calls), eager: p.company == 0, signal: make(chan bool, 2)}
	for _, one := range calls {
		one.since, one.errand = now, e
	}
	c.mu.Lock()
	if len(c.waiting)+len(calls) > MaxWaiting {
		c.mu.Unlock()
		return ErrOverloaded
	}
	c.waiting = append(c.waiting, calls...)
	batch := c.next(e)
	c.mu.Unlock()
	if !c.travel(e, batch) {
		if err := c.await(ctx, e, p); err != nil {
			c.abandon(e, calls)
			return fmt.Errorf("wait for redis: %w", err)
		}
	}
	for _, one := range calls {
		if one.err != nil {
			return one.err
		}
	}
	return nil
}

// await waits, and flies whenever it is e's turn, until the errand is done.
func (c *combiner) await(ctx context.Context, e *errand, p patience) error {
	whole, beside := cmp.Or(p.whole, forever), p.company+besideAfter
	eager, late := p.company == 0, false
	waited := min(cmp.Or(p.company, beside), whole) // when the timer fires
	timer := time.NewTimer(waited)
	defer timer.Stop()
	for {
		select {
		case done := <-e.signal:
			if done {
				return nil
			}
		case <-timer.C:
			if waited == whole {
				return context.DeadlineExceeded
			}
			next := whole
			if eager, late = true, waited >= beside; !late {
				next = min(beside, whole)
			}
			timer.Reset(next - waited)
			waited = next
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.mu.Lock()
		e.eager, e.late = eager, late
		batch := c.next(e)
		c.mu.Unlock()
		if c.travel(e, batch) {
			return nil
		}
	}
}

// travel makes a trip with batch, if there is one, and more for as long as it is e's turn. It reports whether the errand is done.
func (c *combiner) travel(e *errand, batch []*call) (done bool) {
	for len(batch) > 0 {
		c.fly(batch)
		c.mu.Lock()
		c.land(e, batch)
		if batch = nil; e.last.taken {
			c.pass()
		} else {
			e.handed = true // it keeps its turn
			batch = c.next(e)
		}
		done = e.left == 0
		c.mu.Unlock()
	}
	return done
}

// next returns the calls of a trip that e is to make now, if it waits and has a turn or one is free; mu is held. A turn that it has no
// use for, because others' trips have all of it, goes to those who wait.
func (c *combiner) next(e *errand) []*call {
	switch {
	case e.last.taken && e.handed:
		e.handed = false
		c.pass()
		return nil
	case e.last.taken:
		return nil
	case e.handed:
		e.handed = false
	case e.eager && c.turns > 0 && (c.turns == c.trips || e.late):
		c.turns--
	default:
		return nil
	}
	n := min(len(c.waiting), MaxTrip)
	batch := c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	for _, other := range batch {
		other.taken = true
	}
	c.stats.Trips++
	c.stats.Calls += uint64(n)
	e.flies = true
	return batch
}

// pass hands a turn to the first that waits for one, with mu held. While another trip is on its way only those wait who are late.
func (c *combiner) pass() {
	alone := c.turns == c.trips-1
	for _, one := range c.waiting {
		if e := one.errand; (alone && e.eager || e.late) && !e.handed && !e.flies {
			e.handed = true
			e.signal <- false
			return
		}
	}
	c.turns++
}

// land notes the answers of e's trip, with mu held.
func (c *combiner) land(e *errand, batch []*call) {
	e.flies = false
	for _, one := range batch {
		if one.err != nil {
			c.stats.Failures++
		}
		if one.errand.left--; one.errand.left == 0 && one.errand != e {
			one.errand.signal <- true
		}
	}
}

// abandon takes out what has not left yet.
func (c *combiner) abandon(e *errand, calls []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := map[*call]bool{}
	for _, one := range calls {
		gone[one] = !one.taken
		one.taken = true
	}
	kept := make([]*call, 0, len(c.waiting))
	for _, one := range c.waiting {
		if !gone[one] {
			kept = append(kept, one)
		}
	}
	c.waiting = kept
	c.next(e) // a turn that it was handed goes on
}

func (c *combiner) read() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Waiting, s.Capacity = len(c.waiting), MaxWaiting
	if s.Waiting > 0 {
		s.Oldest = time.Since(c.waiting[0].since)
	}
	return s
}
