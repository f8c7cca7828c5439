package desk

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ledgerline/ledger"
)

// dutyPatience is how long the duties may stand still before the node stops saying that it lives: far longer than loadTimeout, by which
// every call of theirs to the counters or the database ends. What is left is a disk that hangs, and as long as a living node is waited for.
const dutyPatience = time.Minute

// runBeats says that the node lives, until ctx ends. It shares its goroutine with nothing, so that no sweep, adoption or closing of a
// journal that takes its time makes the node look dead. What a beat says is that somebody follows the epochs and closes what is to be closed:
// when the duties do not go on at all any more, it ends, and so do this node's holds in the end (DESIGN 7, dead nodes).
func (d *Desk) runBeats(ctx context.Context) {
	ticker := time.NewTicker(d.cfg.BeatEvery)
	defer ticker.Stop()
	complain := every{interval: 10 * time.Second}
	var still time.Duration // how long the duties have not moved
	turns, last := d.turns.Load(), d.now()
	for {
		now, moved := d.now(), d.turns.Load()
		// A node that was stopped as a whole does not count its own absence.
		if still += min(now.Sub(last), 2*d.cfg.BeatEvery); moved != turns {
			still = 0
		}
		turns, last = moved, now
		err := errDutiesHang
		if still < dutyPatience {
			err = d.beat(ctx)
		}
		if err != nil && ctx.Err() == nil && complain.due(now) {
			d.log.Warn("the node could not say that it lives; it is tried again", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

var errDutiesHang = fmt.Errorf("its periodic duties have not gone on for %s", dutyPatience)

// beat says once that the node lives, and learns what was given up.
func (d *Desk) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	books := d.books()
	ids := make([]ledger.ID, len(books))
	for i, b := range books {
		ids[i] = b.incarnation
	}
	gone, err := d.cfg.Bank.Heartbeat(ctx, ids)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	d.mu.Lock()
	d.gone = gone
	d.mu.Unlock()
	return nil
}

// heed does what follows when journals of this node were given up, as the last beat says. It is one of the duties, so that nothing is
// re-asserted or closed meanwhile. One that the last beat found closed, because it came beside the closing, is not in the books any more.
func (d *Desk) heed(ctx context.Context) error {
	d.mu.Lock()
	gone := d.gone
	d.gone = nil // if not all of it can be done, the next beat says it again
	d.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	for _, b := range d.books() {
		if b.gone.Load() || !slices.Contains(gone, b.incarnation) {
			continue
		}
		d.log.Error("this node's journal was given up while it was away; its open requests end, late charges follow",
			"incarnation", b.incarnation)
		// A journal that has failed is not replaced by a good one: the node takes nothing until it is restarted, and who starts then
		// closes this one.
		if b == d.current() && b.journal.Failed() == nil {
			if err := d.renew(ctx, b); err != nil {
				return err
			}
		}
		b.gone.Store(true)
	}
	return nil
}

// renew goes on as a new incarnation; the old one's requests end and its journal is closed like a dead node's.
func (d *Desk) renew(ctx context.Context, old *book) error {
	own, err := d.newBook(ctx)
	if err != nil {
		return fmt.Errorf("go on as a new incarnation: %w", err)
	}
	// First the new book, then the cut: a request that enters in between finds that its book is not the current one.
	d.mu.Lock()
	d.own = own
	d.adopted = append(d.adopted, old)
	d.mu.Unlock()
	for p := range d.views {
		v := &d.views[p]
		v.mu.Lock()
		for _, t := range v.tickets {
			if t.book == old && !t.free {
				t.cutNow()
			}
		}
		v.mu.Unlock()
	}
	d.startShipping(own)
	return nil
}
