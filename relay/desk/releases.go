package desk

import (
	"context"
	"sync"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// release is the end of a hold on its way to the counters.
type release struct {
	call   ledger.ReleaseCall
	book   *book
	ending journal.Commit // zero: the journal has none of it, or all of an adopted book are waited for together
	guess  bool           // a void of a hold that may not exist
}

// guessShare: voids on their way of holds that may not exist are at most so many of MaxOpen, one in four (L7). While the counters are
// away every request that is refused would add one; those beyond it are left to the sweep, which finds them if they do exist.
const guessShare = 4

// giveBack voids a hold that the counters may have and no request does.
func (d *Desk) giveBack(t *Ticket, epoch uint64) {
	if d.guesses.Add(1) > int64(d.cfg.MaxOpen/guessShare) {
		d.guesses.Add(-1)
		return
	}
	v := &d.views[t.partition]
	v.mu.Lock()
	t.owe(v)
	v.mu.Unlock()
	d.releases <- t.release(journal.Commit{}, epoch, -1, true)
}

// queueRelease queues the end of a hold, which is owed. The queue holds Config.MaxOpen calls, as many as there can be open requests, and the
// releaser as many that it cannot deliver; if the counters have been away for so long that all is full, the caller waits:
// that is the back-pressure.
func (d *Desk) queueRelease(t *Ticket, ending journal.Commit, epoch uint64, charge int64) {
	d.releases <- t.release(ending, epoch, charge, false)
}

func (t *Ticket) release(ending journal.Commit, epoch uint64, charge int64, guess bool) release {
	return release{book: t.book, ending: ending, guess: guess, call: ledger.ReleaseCall{
		Hold: t.hold, Incarnation: t.book.incarnation, Partition: t.partition, Epoch: epoch, Charge: charge,
	}}
}

// releaser sends settles and voids to the counters, pipelined. What fails is sent again, for as long as it takes: both are idempotent by
// hold id. A partition that fails, whose server is away, is set aside with all that comes for it and tried on its own, so that the
// others go on: their users would be refused for holds that have long ended.
type releaser struct {
	desk  *Desk
	aside map[int][]release // partitions that failed, and what waits for them behind what is being tried
	tried chan int          // a partition whose try has succeeded
	tries sync.WaitGroup
}

// runReleases delivers until ctx ends and the queue is empty. Then everything gets one bounded chance; what misses it is settled when the
// journal is adopted.
func (d *Desk) runReleases(ctx context.Context) {
	r := &releaser{desk: d, aside: map[int][]release{}, tried: make(chan int, d.cfg.Partitions)}
	batch := make([]release, 0, releaseBatch)
	for {
		queue := d.releases
		if d.aside.Load() >= int64(d.cfg.MaxOpen) {
			queue = nil // the queue fills up, and then whoever ends a request waits
		}
		batch = batch[:0]
		select {
		case one := <-queue:
			batch = append(batch, one)
		case p := <-r.tried:
			r.next(ctx, p)
			continue
		case <-ctx.Done():
			r.end(ctx)
			return
		}
		r.deliver(ctx, d.drainReleases(batch))
	}
}

func (d *Desk) drainReleases(batch []release) []release {
	for len(batch) < releaseBatch {
		select {
		case one := <-d.releases:
			batch = append(batch, one)
		default:
			return batch
		}
	}
	return batch
}

// end gives what is left one chance.
func (r *releaser) end(ctx context.Context) {
	for batch := r.desk.drainReleases(nil); len(batch) > 0; batch = r.desk.drainReleases(nil) {
		if r.desk.send(ctx, batch) != nil {
			r.desk.metrics.releaseRetries.Inc()
		}
	}
	r.tries.Wait()
}

// deliver sends what is not for a partition that is set aside.
func (r *releaser) deliver(ctx context.Context, batch []release) {
	d := r.desk
	fresh := make([]release, 0, len(batch))
	for _, one := range batch {
		p := one.call.Partition
		if list, is := r.aside[p]; is {
			r.aside[p] = append(list, one)
			d.aside.Add(1)
			continue
		}
		fresh = append(fresh, one)
	}
	if len(fresh) == 0 {
		return
	}
	err := d.send(ctx, fresh)
	if err == nil {
		return
	}
	d.metrics.releaseRetries.Inc()
	d.log.Warn("the hot counters did not take a batch of settles; each partition is tried again on its own", "holds", len(fresh), "error", err)
	by := map[int][]release{}
	for _, one := range fresh {
		by[one.call.Partition] = append(by[one.call.Partition], one)
	}
	for p, list := range by {
		r.aside[p] = list
		d.aside.Add(int64(len(list)))
		r.next(ctx, p)
	}
}

// next begins to try what waits for a partition that is set aside, or ends that if nothing does.
func (r *releaser) next(ctx context.Context, p int) {
	list := r.aside[p]
	if len(list) == 0 {
		delete(r.aside, p)
		return
	}
	n := min(len(list), releaseBatch)
	r.aside[p] = list[n:]
	r.tries.Go(func() {
		if r.desk.sendUntil(ctx, list[:n:n]) {
			r.desk.aside.Add(-int64(n))
			r.tried <- p
		}
	})
}

// sendUntil repeats a batch of one partition until the counters take it. It reports false if ctx ended before.
func (d *Desk) sendUntil(ctx context.Context, batch []release) bool {
	wait := 10 * time.Millisecond
	for d.send(ctx, batch) != nil {
		d.metrics.releaseRetries.Inc()
		if !pause(ctx, wait) {
			return false
		}
		wait = min(2*wait, time.Second)
	}
	return true
}

// send sends a batch once.
func (d *Desk) send(ctx context.Context, batch []release) error {
	calls := make([]ledger.ReleaseCall, len(batch))
	for i := range batch {
		calls[i] = batch[i].call
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	if err := d.cfg.Counters.Release(ctx, calls); err != nil {
		return err //nolint:wrapcheck // the caller says what was tried
	}
	d.released(batch)
	return nil
}

// released takes a batch that the counters took off the books.
func (d *Desk) released(batch []release) {
	endings := make(map[*book][]journal.Commit, 1)
	for i := range batch {
		one := &batch[i]
		if one.guess {
			d.guesses.Add(-1)
		}
		v := &d.views[one.call.Partition]
		v.mu.Lock()
		delete(v.waiting, one.call.Hold)
		v.mu.Unlock()
		endings[one.book] = append(endings[one.book], one.ending)
	}
	for b, list := range endings {
		if b.journal.Released(list...); b.pending.Add(-int64(len(list))) == 0 && b.recovered {
			b.journal.ReleasedRecovered()
		}
	}
}
