package relay

import (
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// queuePerCPU is how many goroutines may wait for each processor. One runs for some 20 µs at a time, and a request waits some ten
	// times on its way: at 250 that is 50 ms. More in the queue would make every answer later and none more.
	queuePerCPU = 250
	// burst is how long the queue may be longer: what comes at once and is worked off in that time is no overload.
	burst = 500 * time.Millisecond
	// again is how long it may be longer for as long after an overload as recent says: the node is still being offered too much.
	again  = 5 * time.Millisecond
	recent = time.Second
	// queueLook is how often the queue is looked at: requests that are refused leave it in a few milliseconds, and then a processor idles.
	queueLook = time.Millisecond
	// unseen is the time without a request, and so without a look, after which nothing is known of the queue.
	unseen = 50 * time.Millisecond
)

// overload tells when more comes than the processors can do. Requests that wait for their upstream cost nothing, so it is not their
// number that counts, but the goroutines that could run and have no processor.
type overload struct {
	runnable func() int
	limit    int
	over     atomic.Bool

	mu    sync.Mutex // of who looks
	look  time.Time  // the last
	since time.Time  // the queue has been too long at every look since then; zero: it was short at the last
	last  time.Time  // when requests were last refused
}

func newOverload(runnable func() int) *overload {
	if runnable == nil {
		runnable = runnableGoroutines()
	}
	return &overload{runnable: runnable, limit: queuePerCPU * runtime.GOMAXPROCS(0)}
}

// refuses reports whether a request that arrives now must not be begun. It needs no goroutine of its own, which would have to wait
// for a processor like all others: the requests themselves look.
func (o *overload) refuses(now time.Time) bool {
	if o.mu.TryLock() {
		if now.Sub(o.look) >= queueLook {
			o.over.Store(o.long(now))
		}
		o.mu.Unlock()
	}
	return o.over.Load()
}

// long looks, and reports whether the queue has been too long for too long.
func (o *overload) long(now time.Time) bool {
	gap := now.Sub(o.look)
	o.look = now
	if o.runnable() <= o.limit {
		o.since = time.Time{}
		return false
	}
	if o.since.IsZero() || gap > unseen {
		o.since = now
	}
	patience := burst
	if now.Sub(o.last) < recent {
		patience = again
	}
	if now.Sub(o.since) < patience {
		return false
	}
	o.last = now
	return true
}

// runnableGoroutines asks the runtime. The function may not be called by two goroutines at once.
func runnableGoroutines() func() int {
	sample := []runtimemetrics.Sample{{Name: "/sched/goroutines/runnable:goroutines"}}
	return func() int {
		runtimemetrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
}
