package sim

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"ledgerline/ledger"
)

// counts says what happened in a history.
type counts struct {
	sent, admitted, finished, failed, recovered int
	refused                                     [ledger.OutcomeGone + 1]int
	faults                                      int
	byFault                                     [32]int
	lost, orphans, duplicates, epochs, givenUp  int
	late                                        int
}

// totals adds histories up.
type totals struct {
	mu       sync.Mutex
	n        int
	sum      counts
	nodes    []int
	requests []int
	faults   []int
	seconds  float64
	events   int
}

func (t *totals) add(w *world) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	c := &w.counts
	t.nodes, t.requests, t.faults = append(t.nodes, w.cfg.nodes), append(t.requests, c.sent), append(t.faults, c.faults)
	for i := range c.byFault {
		t.sum.byFault[i] += c.byFault[i]
	}
	for i := range c.refused {
		t.sum.refused[i] += c.refused[i]
	}
	t.sum.admitted += c.admitted
	t.sum.finished += c.finished
	t.sum.failed += c.failed
	t.sum.recovered += c.recovered
	t.sum.lost += c.lost
	t.sum.orphans += c.orphans
	t.sum.duplicates += c.duplicates
	t.sum.epochs += c.epochs
	t.sum.givenUp += c.givenUp
	t.sum.late += c.late
	for _, p := range w.log.partitions {
		t.events += len(p.records)
	}
	t.seconds += w.took.Seconds()
}

// spread is the lowest, the middle and the highest of a list.
func spread(list []int) string {
	slices.Sort(list)
	return fmt.Sprintf("%d to %d, median %d", list[0], list[len(list)-1], list[len(list)/2])
}

func (t *totals) String() string {
	var b strings.Builder
	each := func(n int) string { return fmt.Sprintf("%.1f", float64(n)/float64(t.n)) }
	fmt.Fprintf(&b, "%d histories hold\n", t.n)
	fmt.Fprintf(&b, "per history: nodes %s; requests %s; faults %s; virtual seconds %.0f\n", spread(t.nodes), spread(t.requests), spread(t.faults), t.seconds/float64(t.n))
	fmt.Fprintf(&b, "mean per history: %s admitted, %s finished, %s recovered, %s refused, %s busy, %s while rebuilding, %s failed; %s events, %s of them twice, %s late\n",
		each(t.sum.admitted), each(t.sum.finished), each(t.sum.recovered), each(t.sum.refused[ledger.OutcomeRefused]), each(t.sum.refused[ledger.OutcomeBusy]),
		each(t.sum.refused[ledger.OutcomeRebuilding]), each(t.sum.failed), each(t.events), each(t.sum.duplicates), each(t.sum.late))
	fmt.Fprintf(&b, "mean per history: %s answers lost, %s calls that arrived after their caller had gone, %s epochs, %s incarnations given up\n",
		each(t.sum.lost), each(t.sum.orphans), each(t.sum.epochs), each(t.sum.givenUp))
	for i := range faults {
		fmt.Fprintf(&b, "%8d × %s\n", t.sum.byFault[i], faults[i].name)
	}
	return b.String()
}

// check sees to it that the histories were worth something.
func (t *totals) check(test *testing.T) {
	if t.n < 200 {
		return
	}
	for what, n := range map[string]int{
		"recovered requests": t.sum.recovered, "late charges": t.sum.late, "duplicates": t.sum.duplicates, "given up": t.sum.givenUp,
		"calls after their callers": t.sum.orphans, "lost answers": t.sum.lost, "busy": t.sum.refused[ledger.OutcomeBusy],
	} {
		if n == 0 {
			test.Errorf("no %s in %d histories", what, t.n)
		}
	}
	for i := range faults {
		if t.sum.byFault[i] == 0 {
			test.Errorf("never: %s", faults[i].name)
		}
	}
	if slices.Min(t.nodes) < 3 || slices.Min(t.requests) < 50 || slices.Min(t.faults) < 5 {
		test.Errorf("nodes %s; requests %s; faults %s: below 3, 50 and 5", spread(t.nodes), spread(t.requests), spread(t.faults))
	}
}
