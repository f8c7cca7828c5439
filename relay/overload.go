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
	// times on its way: at 1,000 that is 0.2 s. More in the queue would make every answer later and none more.
	queuePerCPU = 1000
	// burst is how long the queue may be longer, after it was short for as long: what comes at once and is worked off in that time is
	// no overload.
	burst = 500 * time.Millisecond
	// queueLook is how often the queue is looked at.
	queueLook = 10 * time.Millisecond
)

// overload tells when more comes than the processors can do. Requests that wait for their upstream cost nothing, so it is not their
// number that counts, but the goroutines that could run and have no processor.
type overload struct {
	runnable func() int
	limit    int
	over     atomic.Bool

	mu    sync.Mutex // of who looks
	due   time.Time
	since time.Time // the queue has never been short for a whole burst since then; zero: it is
	long  time.Time // when it was last seen too long
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
		if !now.Before(o.due) {
			o.look(now)
		}
		o.mu.Unlock()
	}
	return o.over.Load()
}

func (o *overload) look(now time.Time) {
	o.due = now.Add(queueLook)
	if now.Sub(o.long) >= burst {
		o.since = time.Time{}
	}
	if o.runnable() <= o.limit {
		o.over.Store(false)
		return
	}
	if o.long = now; o.since.IsZero() {
		o.since = now
	}
	o.over.Store(now.Sub(o.since) >= burst)
}

// runnableGoroutines asks the runtime. The function may not be called by two goroutines at once.
func runnableGoroutines() func() int {
	sample := []runtimemetrics.Sample{{Name: "/sched/goroutines/runnable:goroutines"}}
	return func() int {
		runtimemetrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
}
