package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestHeapPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 1500, 16 << 20: 300, 32 << 20: 100, 1 << 30: 100} {
		if got := heapPercent(live); got != want {
			t.Errorf("heapPercent(%d) = %d, want %d", live, got, want)
		}
	}
}

// The collector's setting follows what lives, and goes back when the node stops; one that the operator chose stays.
func TestKeepHeap(t *testing.T) {
	setting := func() int {
		now := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(now)
		return int(now[0].Value.Uint64())
	}
	defer debug.SetGCPercent(debug.SetGCPercent(usualPercent))
	run := func(until func() bool) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { keepHeap(ctx); close(done) }()
		for deadline := time.Now().Add(10 * time.Second); !until() && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		cancel()
		<-done
	}
	runtime.GC() // a test's heap is far below the floor
	seen := 0
	run(func() bool { seen = setting(); return seen > usualPercent })
	if seen <= usualPercent || setting() != usualPercent {
		t.Errorf("GOGC was %d while it ran and %d afterwards", seen, setting())
	}
	debug.SetGCPercent(50)
	ended := false
	run(func() bool { ended = true; return ended })
	if now := setting(); now != 50 {
		t.Errorf("the operator's GOGC=50 became %d", now)
	}
}
