package quota

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// How long an epoch waits for an incarnation that does not report, if Config says nothing else (DESIGN 7, epochs, step 3). Only time in which this consumer
// itself reached the database and the log counts, and it counts anew whenever that incarnation's events move.
const (
	patienceDead = 30 * time.Second
	patienceLive = 60 * time.Second
	// beatSilence is how long a heartbeat must stand still for its node to count as dead here; nodes beat every 3 s.
	beatSilence = 10 * time.Second
	// producersFresh is how long the list of incarnations may be used again while nothing is being rebuilt, rebuildFresh while
	// something is: all partitions of this process share it.
	producersFresh = time.Second
	rebuildFresh   = 100 * time.Millisecond
	// positionFresh is how long a partition in which nothing happens may go without a look at its position in the database: a
	// restored database must not wait for the next event.
	positionFresh = time.Second
	// lookGap bounds the time that one look may count for, so that a consumer that was stopped does not count its own absence.
	lookGap = time.Second
)

// incarnation is one entry of the registry.
type incarnation struct {
	sqlstore.Producer
	since time.Time // when this process first saw its present beat
}

// registry is the list of incarnations, as this process last read it. It is used from the goroutines of all partitions.
type registry struct {
	store Store

	mu        sync.Mutex // held while it is read, so that partitions that look at once read it once
	producers []incarnation
	read      time.Time
}

// list returns the incarnations, read again if what is known is as old as fresh. The list must not be changed.
func (r *registry) list(ctx context.Context, now time.Time, fresh time.Duration) ([]incarnation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.read.IsZero() && now.Sub(r.read) < fresh {
		return r.producers, nil
	}
	list, err := r.store.Producers(ctx)
	if err != nil {
		return nil, fmt.Errorf("read incarnations: %w", err)
	}
	before := make(map[ledger.ID]incarnation, len(r.producers))
	for _, p := range r.producers {
		before[p.ID] = p
	}
	next := make([]incarnation, len(list))
	for i := range list {
		next[i] = incarnation{list[i], now}
		if b, known := before[list[i].ID]; known && b.Beat == list[i].Beat {
			next[i].since = b.since
		}
	}
	r.producers, r.read = next, now
	return next, nil
}

// waiting is one partition as this consumer watches it. It is used from the partition's goroutine alone.
type waiting struct {
	offset  int64     // the database's, as Position read or Apply set it
	checked time.Time // when it was last compared with the database
	missed  bool      // the last flush did not reach the counters

	patience patience

	// unknown is how long each incarnation that the counters name has been missing in the database; seen is when that was last looked at.
	unknown map[ledger.ID]time.Duration
	seen    time.Time

	// While an epoch is rebuilt:
	epoch    uint64 // 0: none
	lastLook time.Time
	waited   map[ledger.ID]time.Duration // time that counted, by incarnation
	seq      map[ledger.ID]uint64        // newest sequence seen in the log, of those that sent something
}

// patience is how long an epoch waits for an incarnation that does not report.
type patience struct {
	dead, live time.Duration
}

// waits holds the partitions.
type waits struct {
	patience patience

	mu sync.Mutex
	by map[int]*waiting
}

func (w *waits) of(partition int) *waiting {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[partition] == nil {
		w.by[partition] = &waiting{patience: w.patience}
	}
	return w.by[partition]
}

// done forgets the rebuild.
func (w *waiting) done() { w.epoch, w.waited, w.seq = 0, nil, nil }

// saw notes which incarnations' events move: those are waited for anew.
func (w *waiting) saw(records []ledger.Record) {
	if w.epoch == 0 {
		return
	}
	for i := range records {
		ev := &records[i].Event
		if records[i].Err == nil && ev.Seq > w.seq[ev.Producer] {
			w.seq[ev.Producer] = ev.Seq
			delete(w.waited, ev.Producer)
		}
	}
}

// count adds the time since the last look to everyone who has not reported.
func (w *waiting) count(st *ledger.Counters, producers []incarnation, now time.Time) {
	if w.epoch != st.Epoch {
		w.epoch, w.lastLook = st.Epoch, now
		w.waited, w.seq = map[ledger.ID]time.Duration{}, map[ledger.ID]uint64{}
	}
	passed := min(now.Sub(w.lastLook), lookGap)
	w.lastLook = now
	for i := range producers {
		if due(&producers[i], st) {
			w.waited[producers[i].ID] += passed
		}
	}
}

// strangers are the incarnations that the epoch has named for as long as a living node is waited for, and that are neither in the database
// nor dropped. A database that lost its last transactions may have lost a registration: a node that lives registers anew with its
// next beat, and who adopts a journal closes it. If its disk is lost, too, nobody can give it up, and its holds would stay until the next
// epoch: so that is due, closed to them as to those that were given up. One that reaches the counters and not the database would join it
// otherwise, and so on for ever.
func (w *waiting) strangers(st *ledger.Counters, producers []incarnation, now time.Time) (lost []ledger.ID) {
	passed := min(now.Sub(w.seen), lookGap)
	w.seen = now
	var unknown map[ledger.ID]time.Duration
	for _, id := range st.Members {
		known := slices.ContainsFunc(producers, func(p incarnation) bool { return p.ID == id })
		if known || slices.Contains(st.Dropped, id) {
			continue
		}
		if unknown == nil {
			unknown = map[ledger.ID]time.Duration{}
		}
		if before, was := w.unknown[id]; was {
			unknown[id] = before + passed
		} else {
			unknown[id] = 0
		}
		if unknown[id] >= w.patience.live {
			lost = append(lost, id)
		}
	}
	w.unknown = unknown
	return lost
}

// due reports whether the epoch waits for an incarnation: one that was given up or closed is not waited for.
func due(p *incarnation, st *ledger.Counters) bool {
	return p.State == sqlstore.ProducerLive && !slices.Contains(st.Reports, p.ID)
}

// ready reports whether nobody has to be waited for any longer, and who did not report.
func (w *waiting) ready(st *ledger.Counters, producers []incarnation, now time.Time) (silent []ledger.ID, ready bool) {
	for i := range producers {
		p := &producers[i]
		if !due(p, st) {
			continue
		}
		patience := w.patience.live
		if now.Sub(p.since) > beatSilence {
			patience = w.patience.dead
		}
		if w.waited[p.ID] < patience {
			return nil, false
		}
		silent = append(silent, p.ID)
	}
	return silent, true
}
