package relay

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// A queue is an overload if it has been too long for a while, and soon if it was one just before; a burst is none, however often.
func TestOverload(t *testing.T) {
	queue := 0
	o := newOverload(func() int { return queue })
	long, now := o.limit+1, time.Now()
	// For so long a request looks every few milliseconds; want is what the last one is told.
	for i, c := range []struct {
		length int
		lasts  time.Duration
		want   bool
	}{
		{0, time.Second, false},
		{long, burst - 10*time.Millisecond, false}, // a burst
		{o.limit, queueLook, false},
		{long, burst - 10*time.Millisecond, false}, // another
		{long, 20 * time.Millisecond, true},
		{o.limit, queueLook, false},
		{long, 0, false},
		{long, again + 4*queueLook, true},
		{0, queueLook / 2, true}, // not looked at
		{0, queueLook, false},
		{long, again / 2, false},
		{0, recent, false},
		{long, burst - 10*time.Millisecond, false},
	} {
		queue = c.length
		got := o.refuses(now)
		for end := now.Add(c.lasts); now.Before(end); {
			now = now.Add(min(2*queueLook, end.Sub(now)))
			got = o.refuses(now)
		}
		if got != c.want {
			t.Errorf("step %d, a queue of %d for %s: refuses %v, want %v", i, c.length, c.lasts, got, c.want)
		}
	}
	// Nobody looked for a while: the queue may have been short.
	now, queue = now.Add(burst), long
	if o.refuses(now) {
		t.Error("a queue that nobody looked at counts as long all the while")
	}
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
		o.long(time.Now())
	}
}
