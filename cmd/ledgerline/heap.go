package main

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapFloor is how far the heap may grow before it is collected, however little of it lives. A node lives on 10 to 20 MB and
	// allocates 20 KB a request, so that at the runtime's own rule (collect at twice what lives) it would collect ten times a second
	// under load; a third of that costs nobody anything. It leaves 1,000 open streams, which need more than it, as they are.
	heapFloor = 64 << 20
	// heapLook is how often what lives is looked at.
	heapLook = time.Second
	// usualPercent is the runtime's own GOGC.
	usualPercent = 100
)

// keepHeap sees to heapFloor until ctx ends. An operator who sets GOGC or GOMEMLIMIT decides instead.
func keepHeap(ctx context.Context) {
	own := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(own)
	if own[0].Value.Uint64() != usualPercent || own[1].Value.Uint64() != math.MaxInt64 {
		return
	}
	ticker := time.NewTicker(heapLook)
	defer ticker.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := usualPercent
	for {
		metrics.Read(live)
		if want := heapPercent(live[0].Value.Uint64()); want > percent*9/8 || want < percent*7/8 { // setting it stops the world for a moment
			percent = want
			debug.SetGCPercent(percent)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			debug.SetGCPercent(usualPercent)
			return
		}
	}
}

// heapPercent is the GOGC at which a heap of which so much lives is collected at heapFloor, at least the usual one.
func heapPercent(live uint64) int {
	const least = 4 << 20 // less is never alive once a node serves; before the first collection it is 0
	return max(usualPercent, int(100*heapFloor/max(live, least))-100)
}
