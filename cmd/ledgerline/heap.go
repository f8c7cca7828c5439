package main

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How far the heap may grow before it is collected. A collection costs what lives, some milliseconds of CPU for ten megabytes, so the
// room for garbage is a matter of how fast garbage comes. A node lives on 10 to 20 MB and allocates 20 KB a request: at the runtime's
// own rule (collect at twice what lives) it would collect ten times a second under load. With a thousand slow streams it lives on
// 40 MB and allocates next to nothing: at that rule half of its memory would be garbage for minutes.
const (
	// heapBusy is the heap, garbage included, that a node may have under load, however little of it lives; more only at the usual rule.
	heapBusy = 64 << 20
	// heapQuiet is the least room for garbage, and a quarter of what lives if that is more.
	heapQuiet = 12 << 20
	// heapPause sets the room between the two: for each megabyte that lives, so much time passes until the next collection. Collecting
	// takes some 1% of a processor then.
	heapPause = 150 * time.Millisecond
	// heapLook is how often it is looked at.
	heapLook = 250 * time.Millisecond
	// heapMemory is how much of the pace of one look counts at the next: a pause of a second is not the end of a load.
	heapMemory = 0.75
	// usualPercent is the runtime's own GOGC.
	usualPercent = 100
)

// heapState is what the collector's setting follows.
type heapState struct {
	live   float64 // bytes found alive by the last collection
	stacks float64 // bytes of stacks, which the runtime counts like what lives
	pace   float64 // bytes allocated a second
}

// percent is the GOGC that leaves the room for garbage that the state calls for.
func (h *heapState) percent() int {
	most := max(heapBusy-h.live, h.live)
	least := max(heapQuiet, h.live/4)
	room := min(max(least, h.pace*heapPause.Seconds()*h.live/(1<<20)), most)
	const small = 4 << 20 // less is never alive once a node serves; before the first collection it is 0
	return int(100 * room / max(h.live+h.stacks, small))
}

// keepHeap sees to it until ctx ends, and gives back what only the start needed. An operator who sets GOGC or GOMEMLIMIT decides instead.
func keepHeap(ctx context.Context) {
	own := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(own)
	if own[0].Value.Uint64() != usualPercent || own[1].Value.Uint64() != math.MaxInt64 {
		return
	}
	defer debug.SetGCPercent(usualPercent)
	ticker := time.NewTicker(heapLook)
	defer ticker.Stop()
	debug.FreeOSMemory()
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(now)
	var h heapState
	last, before, percent := time.Now(), now[2].Value.Uint64(), usualPercent
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		metrics.Read(now)
		at, allocated := time.Now(), now[2].Value.Uint64()
		h.live, h.stacks = float64(now[0].Value.Uint64()), float64(now[1].Value.Uint64())
		h.pace = max(float64(allocated-before)/at.Sub(last).Seconds(), heapMemory*h.pace)
		last, before = at, allocated
		if want := h.percent(); want > percent*9/8 || want < percent*7/8 { // setting it stops the world for a moment
			percent = want
			debug.SetGCPercent(percent)
		}
	}
}
