package relay

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// A queue is an overload once it has stood for a while, and then whenever it is too long again; a burst after calm is none.
func TestOverload(t *testing.T) {
	queue := 0
	o := newOverload(func() int { return queue })
	long, now := o.limit+1, time.Now()
	step := func(after time.Duration, length int, want bool) {
		t.Helper()
		now, queue = now.Add(after), length
		if got := o.refuses(now); got != want {
			t.Errorf("a queue of %d: refuses %v, want %v", length, got, want)
		}
	}
	step(0, 0, false)
	step(time.Second, long, false) // a burst
	step(queueLook/2, 0, false)    // not looked at
	step(burst-2*queueLook, long, false)
	step(2*queueLook, long, true)
	step(queueLook/2, 0, true) // not looked at
	step(queueLook, o.limit, false)
	step(burst/2, long, true) // there was no calm
	step(queueLook, o.limit, false)
	step(burst, long, false) // there was
	step(2*burst, long, false)
	step(burst/2, long, false)
	step(burst/2, long, true)
}

// The runtime counts the goroutines that have no processor.
func TestRunnableGoroutines(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const many = 500
	runnable := runnableGoroutines()
	var ended sync.WaitGroup
	for range many {
		ended.Go(runtime.Gosched)
	}
	if n := runnable(); n < many/2 {
		t.Errorf("%d goroutines are said to be runnable, %d were just made", n, many)
	}
	ended.Wait()
}

func BenchmarkOverload(b *testing.B) {
	o := newOverload(nil)
	b.ReportAllocs()
	for b.Loop() {
		o.look(time.Now())
	}
}
