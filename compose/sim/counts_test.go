package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ledgerline/ledger"
)

// counts says what happened in a history. Its fields are exported because a worker hands them over as JSON.
type counts struct {
	Sent, Admitted, Finished, Failed, Recovered int
	Refused                                     [ledger.OutcomeGone + 1]int
	Faults                                      int
	ByFault                                     [32]int
	Lost, Orphans, Duplicates, Epochs, GivenUp  int
	Late                                        int
}

// plus adds the sums of c up, all but what is a list in totals.
func (c *counts) plus(d *counts) {
	for i := range c.ByFault {
		c.ByFault[i] += d.ByFault[i]
	}
	for i := range c.Refused {
		c.Refused[i] += d.Refused[i]
	}
	c.Admitted += d.Admitted
	c.Finished += d.Finished
	c.Failed += d.Failed
	c.Recovered += d.Recovered
	c.Lost += d.Lost
	c.Orphans += d.Orphans
	c.Duplicates += d.Duplicates
	c.Epochs += d.Epochs
	c.GivenUp += d.GivenUp
	c.Late += d.Late
}

// totals adds histories up.
type totals struct {
	Histories                       int
	Sum                             counts
	Nodes, Requests, Faults, Events []int // of each history
	Seconds                         float64
	WithLate                        int // histories with a late charge
}

func (t *totals) add(w *world) {
	c := &w.counts
	events := 0
	for _, p := range w.log.partitions {
		events += len(p.records)
	}
	one := totals{
		Histories: 1, Sum: *c, Nodes: []int{w.cfg.nodes}, Requests: []int{c.Sent}, Faults: []int{c.Faults}, Events: []int{events},
		Seconds: w.took.Seconds(), WithLate: min(1, c.Late),
	}
	t.plus(&one)
}

// plus adds the totals of a worker.
func (t *totals) plus(o *totals) {
	t.Histories += o.Histories
	t.Sum.plus(&o.Sum)
	t.Nodes, t.Requests = append(t.Nodes, o.Nodes...), append(t.Requests, o.Requests...)
	t.Faults, t.Events = append(t.Faults, o.Faults...), append(t.Events, o.Events...)
	t.Seconds += o.Seconds
	t.WithLate += o.WithLate
}

// spread is the lowest, the middle and the highest of a list.
func spread(list []int) string {
	slices.Sort(list)
	return fmt.Sprintf("%d to %d, median %d", list[0], list[len(list)-1], list[len(list)/2])
}

func (t *totals) String() string {
	var b strings.Builder
	sum := &t.Sum
	each := func(n int) string { return fmt.Sprintf("%.1f", float64(n)/float64(t.Histories)) }
	fmt.Fprintf(&b, "%d histories hold\n", t.Histories)
	fmt.Fprintf(&b, "per history: nodes %s; requests %s; faults %s; events %s; virtual seconds %.0f\n",
		spread(t.Nodes), spread(t.Requests), spread(t.Faults), spread(t.Events), t.Seconds/float64(t.Histories))
	fmt.Fprintf(&b, "mean per history: %s admitted, %s finished, %s recovered, %s refused, %s busy, %s while rebuilding, %s failed; %s events twice, %s late\n",
		each(sum.Admitted), each(sum.Finished), each(sum.Recovered), each(sum.Refused[ledger.OutcomeRefused]), each(sum.Refused[ledger.OutcomeBusy]),
		each(sum.Refused[ledger.OutcomeRebuilding]), each(sum.Failed), each(sum.Duplicates), each(sum.Late))
	fmt.Fprintf(&b, "mean per history: %s answers lost, %s calls that arrived after their caller had gone, %s epochs, %s incarnations given up\n",
		each(sum.Lost), each(sum.Orphans), each(sum.Epochs), each(sum.GivenUp))
	fmt.Fprintf(&b, "late charges in %d histories\n", t.WithLate)
	for i := range faults {
		fmt.Fprintf(&b, "%8d × %s\n", sum.ByFault[i], faults[i].name)
	}
	return b.String()
}

// check sees to it that the histories were worth something.
func (t *totals) check(test *testing.T) {
	if t.Histories < 200 {
		return
	}
	for what, n := range map[string]int{
		"recovered requests": t.Sum.Recovered, "late charges": t.Sum.Late, "duplicates": t.Sum.Duplicates, "given up": t.Sum.GivenUp,
		"calls after their callers": t.Sum.Orphans, "lost answers": t.Sum.Lost, "busy": t.Sum.Refused[ledger.OutcomeBusy],
	} {
		if n == 0 {
			test.Errorf("no %s in %d histories", what, t.Histories)
		}
	}
	for i := range faults {
		if t.Sum.ByFault[i] == 0 {
			test.Errorf("never: %s", faults[i].name)
		}
	}
	if slices.Min(t.Nodes) < 3 || slices.Min(t.Requests) < 50 || slices.Min(t.Faults) < 5 {
		test.Errorf("nodes %s; requests %s; faults %s: below 3, 50 and 5", spread(t.Nodes), spread(t.Requests), spread(t.Faults))
	}
}
