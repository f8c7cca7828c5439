package quota

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// Registry is what the observer needs of the database; *sqlstore.Store satisfies it.
type Registry interface {
	Producers(ctx context.Context) ([]sqlstore.Producer, error)
	// GiveUp marks an incarnation as gone if it is live and its beat is still beat.
	GiveUp(ctx context.Context, id ledger.ID, beat uint64) (bool, error)
	PruneProducers(ctx context.Context, closedBefore time.Time) (int, error)
}

// keepMarks is how long the marks of a closed incarnation are kept (DESIGN 4): late duplicates of its events are still
// recognised that long.
const keepMarks = 7 * 24 * time.Hour

// disklessAfter is how long a node whose journal is in memory may be silent before it is given up, if HOLD_ORPHAN_AFTER is not shorter:
// the longer time lets a node come back and settle from its disk, and here there is none. It is as long as an epoch waits for a
// node that is alive, so that one which was only held up is not taken for dead.
const disklessAfter = patienceLive

// observeEvery is how often the heartbeats are read.
const observeEvery = 5 * time.Second

// Observe gives up nodes whose heartbeat has stood still for orphanAfter (HOLD_ORPHAN_AFTER; 0 = never), until ctx ends. The
// time counts only while the observer itself could read, and begins anew if it cannot write: while the database is away, nobody
// is given up. Two observers do no harm: an incarnation is given up only at the beat that was seen standing still.
func Observe(ctx context.Context, registry Registry, orphanAfter time.Duration, log *slog.Logger) error {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	o := observer{registry: registry, orphanAfter: orphanAfter, log: log, still: map[ledger.ID]*stillness{}}
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			err := o.look(ctx, now)
			if err != nil && ctx.Err() == nil && !failing {
				log.Warn("heartbeats cannot be observed; nobody is given up meanwhile", "error", err)
			}
			failing = err != nil
		}
	}
}

type observer struct {
	registry    Registry
	orphanAfter time.Duration
	log         *slog.Logger
	still       map[ledger.ID]*stillness
	last        time.Time
	pruned      time.Time
}

type stillness struct {
	beat   uint64
	lasted time.Duration
}

// patience is how long p may be silent; 0: for ever.
func (o *observer) patience(p *sqlstore.Producer) time.Duration {
	if p.Diskless && (o.orphanAfter == 0 || o.orphanAfter > disklessAfter) {
		return disklessAfter
	}
	return o.orphanAfter
}

func (o *observer) look(ctx context.Context, now time.Time) error {
	producers, err := o.registry.Producers(ctx)
	if err != nil {
		o.last = time.Time{}
		return fmt.Errorf("read incarnations: %w", err)
	}
	var counted time.Duration
	if !o.last.IsZero() {
		counted = min(now.Sub(o.last), 2*observeEvery)
	}
	o.last = now
	alive := map[ledger.ID]bool{}
	for i := range producers {
		p := &producers[i]
		if p.State != sqlstore.ProducerLive {
			continue
		}
		alive[p.ID] = true
		s := o.still[p.ID]
		if s == nil || s.beat != p.Beat {
			o.still[p.ID] = &stillness{beat: p.Beat}
			continue
		}
		s.lasted += counted
		if after := o.patience(p); after == 0 || s.lasted < after {
			continue
		}
		gone, err := o.registry.GiveUp(ctx, p.ID, p.Beat)
		if err != nil {
			// The database can be read and not written: then nobody can beat either.
			clear(o.still)
			return fmt.Errorf("give up incarnation %s: %w", p.ID, err)
		}
		if gone {
			o.log.Error("a node was silent for too long and is given up; its holds end with a new epoch", "incarnation", p.ID, "node", p.Node)
		}
	}
	for id := range o.still {
		if !alive[id] {
			delete(o.still, id)
		}
	}
	if now.Sub(o.pruned) > time.Hour {
		o.pruned = now
		if _, err := o.registry.PruneProducers(ctx, now.Add(-keepMarks)); err != nil {
			return fmt.Errorf("prune closed incarnations: %w", err)
		}
	}
	return nil
}
