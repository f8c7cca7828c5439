package desk

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ledgerline/ledger/journal"
)

const (
	// probeEvery is how often a node without a disk asks the log whether it is there, and how long one answer may take.
	probeEvery = time.Second
	// probePatience is how long the log may owe an answer before requests are refused: as long as an event may wait for it.
	probePatience = 3 * time.Second
	// probesAtOnce bounds the questions under way: a log that hangs answers none.
	probesAtOnce = 32
)

// Probe asks the log whether it answers for a partition.
type Probe func(ctx context.Context, partition int) error

// runProbes asks for every partition again and again, until ctx ends. Without it a node without a disk would learn that the log is away
// from requests that are under way already and whose end waits for it in vain; and it would learn anew from others once those have
// given up.
func (d *Desk) runProbes(ctx context.Context) {
	answered := make([]time.Time, d.cfg.Partitions)
	for p := range answered {
		answered[p] = d.now()
	}
	ticker := time.NewTicker(d.cfg.ProbeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		d.probeAll(ctx, answered)
	}
}

// probeAll asks once for every partition, and remembers when it last answered.
func (d *Desk) probeAll(ctx context.Context, answered []time.Time) {
	var all sync.WaitGroup
	slots := make(chan struct{}, probesAtOnce)
	for p := range answered {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			once, cancel := context.WithTimeout(ctx, d.cfg.ProbeEvery)
			defer cancel()
			err := d.cfg.Probe(once, p)
			switch v := &d.views[p]; {
			case ctx.Err() != nil:
			case err == nil:
				answered[p] = d.now()
				if v.logAway.Swap(false) {
					d.log.Info("the event log answers again", "partition", p)
				}
			case d.now().Sub(answered[p]) > probePatience && !v.logAway.Swap(true):
				d.log.Warn("the event log does not answer: requests of the partition are refused", "partition", p, "error", err)
			}
		})
	}
	all.Wait()
}

// logAnswers refuses a request whose bill could not be recorded while the log does not answer.
func (d *Desk) logAnswers(partition int) error {
	if d.views[partition].logAway.Load() {
		return fmt.Errorf("%w: partition %d", journal.ErrNoLog, partition)
	}
	return nil
}

// Unlogged returns how many partitions refuse requests because the log does not answer or acknowledge (Config.Diskless).
func (d *Desk) Unlogged() int {
	away := 0
	for p := range d.views {
		if d.views[p].logAway.Load() {
			away++
		}
	}
	return max(away, d.current().journal.Unlogged())
}
