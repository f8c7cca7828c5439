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
	const mb = 1 << 20
	for _, c := range []struct {
		what string
		heapState
		room float64 // for garbage, MB
	}{
		{"before the first collection", heapState{}, 12},
		{"idle", heapState{live: 10 * mb, stacks: 2 * mb}, 12},
		{"idle, a large catalog", heapState{live: 400 * mb, stacks: 2 * mb}, 100},
		{"some requests", heapState{live: 20 * mb, stacks: 2 * mb, pace: 10 * mb}, 30},
		{"under load", heapState{live: 14 * mb, stacks: 2 * mb, pace: 300 * mb}, 50},
		{"many streams, under load", heapState{live: 50 * mb, stacks: 20 * mb, pace: 300 * mb}, 50},
		{"a large catalog, under load", heapState{live: 400 * mb, stacks: 2 * mb, pace: 300 * mb}, 400},
	} {
		// The runtime leaves room for GOGC percent of what lives, stacks included.
		room := float64(c.percent()) / 100 * max(c.live+c.stacks, 4*mb) / mb
		if room < 0.95*c.room || room > c.room {
			t.Errorf("%s: room for %.1f MB of garbage, want %.1f", c.what, room, c.room)
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
