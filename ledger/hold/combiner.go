package hold

import (
	"context"
	"errors"
	"fmt"
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

// errand is the calls that one goroutine waits for.
type errand struct {
	left int           // guarded by combiner.mu: calls without an answer
	done chan struct{} // closed when there are none
}

// combiner coalesces the calls of concurrent goroutines into few trips. It has no goroutine of its own: a caller waits for its
// answer or for its turn to fly, and who gets the turn takes along all that waits. So a lone call flies at once, and under
// load a trip carries what gathered while the last ones were on their way.
type combiner struct {
	fly   func(calls []*call)
	turns chan struct{} // one token per trip that may be on its way

	mu      sync.Mutex
	waiting []*call // at most MaxWaiting
	stats   Stats
}

func newCombiner(trips int, fly func([]*call)) *combiner {
	c := &combiner{fly: fly, turns: make(chan struct{}, trips)}
	for range trips {
		c.turns <- struct{}{}
	}
	return c
}

// do sends calls, in order within their partition, and returns when all are answered. The error is that of the first call that
// failed, or ctx's; in the latter case what has not left yet never will.
func (c *combiner) do(ctx context.Context, calls ...*call) error { return c.doWithin(ctx, 0, calls...) }

// doWithin is do for calls that nobody is in a hurry for: they leave with the next trip that somebody else needs, or, if there
// is none within patience, with one of their own.
func (c *combiner) doWithin(ctx context.Context, patience time.Duration, calls ...*call) error {
	c.mu.Lock()
	if len(c.waiting)+len(calls) > MaxWaiting {
		c.mu.Unlock()
		return ErrOverloaded
	}
	now := time.Now()
	e := &errand{left: len(calls), done: make(chan struct{})}
	for _, one := range calls {
		one.since, one.errand = now, e
	}
	c.waiting = append(c.waiting, calls...)
	c.mu.Unlock()
	if err := c.await(ctx, e, calls[len(calls)-1], patience); err != nil {
		c.abandon(calls)
		return fmt.Errorf("wait for redis: %w", err)
	}
	for _, one := range calls {
		if one.err != nil {
			return one.err
		}
	}
	return nil
}

// await flies until the errand is done or nothing of it waits any more: that is so once its last call was taken.
func (c *combiner) await(ctx context.Context, e *errand, last *call, patience time.Duration) error {
	turns := c.turns
	var alone <-chan time.Time
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		turns, alone = nil, timer.C
	}
	for {
		select {
		case <-e.done:
			return nil
		case <-alone:
			turns = c.turns
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-turns:
			batch := c.take(last)
			if batch == nil {
				turns = nil // others' trips have all of it: leave the turn to those who wait
			} else {
				c.fly(batch)
				c.land(batch)
			}
			c.turns <- struct{}{}
		}
	}
}

// take returns the calls of the next trip, or nil if one is not waiting any more.
func (c *combiner) take(one *call) []*call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one.taken {
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
	return batch
}

func (c *combiner) land(batch []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range batch {
		if one.err != nil {
			c.stats.Failures++
		}
		if one.errand.left--; one.errand.left == 0 {
			close(one.errand.done)
		}
	}
}

// abandon takes out what has not left yet.
func (c *combiner) abandon(calls []*call) {
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
