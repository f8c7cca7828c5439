package desk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
)

// Run serves the desk until ctx ends: it ships the journals, follows the epochs, beats, sweeps, closes the journals of dead nodes and
// moves outbox rows. When ctx ends it refuses new requests, waits for the open ones at most until drain has passed, ships
// what is left, settles, and closes its incarnation: a rolling update leaves nothing to recover.
func (d *Desk) Run(ctx context.Context, drain time.Duration) error {
	shipCtx, stopShipping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopShipping()
	d.mu.Lock()
	d.shipCtx = shipCtx
	d.mu.Unlock()
	d.startShipping(d.current())
	beatCtx, stopBeats := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeats()
	var beats sync.WaitGroup
	beats.Go(func() { d.runBeats(beatCtx) })
	if err := d.adoptAll(ctx); err != nil {
		d.log.Error("journals of dead nodes could not be adopted; it is tried again", "error", err)
	}
	releaseCtx, stopReleases := context.WithCancel(context.WithoutCancel(ctx))
	var releases, mover sync.WaitGroup
	releases.Go(func() { d.runReleases(releaseCtx) })
	mover.Go(func() { d.runMover(ctx) })
	if d.cfg.Diskless && d.cfg.Probe != nil {
		mover.Go(func() { d.runProbes(ctx) })
	}
	d.duties(ctx)

	d.leaving.Store(true)
	mover.Wait() // it writes to the journal that is closed next
	err := d.leave(context.WithoutCancel(ctx), drain)
	stopBeats()
	beats.Wait()
	stopShipping()
	d.ships.Wait()
	d.late.Wait()
	stopReleases()
	releases.Wait()
	return err
}

// duties does the node's periodic work until ctx ends. One goroutine does it all but the heartbeats, so epochs, adoption and renewal
// never overlap: each may hold up the others, by loadTimeout for each call, or for as long as a disk does.
func (d *Desk) duties(ctx context.Context) {
	ticker := time.NewTicker(d.cfg.LookEvery)
	defer ticker.Stop()
	var looks, heeds every // at every tick
	sweeps, adopts := every{interval: d.cfg.SweepEvery}, every{interval: d.cfg.AdoptEvery}
	sweeps.due(d.now())
	adopts.due(d.now())
	complain := every{interval: 10 * time.Second}
	for ctx.Err() == nil {
		now := d.now()
		for _, duty := range []struct {
			when *every
			do   func(context.Context) error
		}{{&looks, d.look}, {&heeds, d.heed}, {&sweeps, d.sweep}, {&adopts, d.adoptAll}} {
			if !duty.when.due(now) {
				continue
			}
			if err := d.once(ctx, duty.do); err != nil && ctx.Err() == nil && complain.due(now) {
				d.log.Warn("a duty of the node failed; it is tried again", "error", err)
			}
		}
		d.closeAdopted(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// once does a duty once, within loadTimeout.
func (d *Desk) once(ctx context.Context, duty func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	defer d.turns.Add(1)
	return duty(ctx)
}

func (d *Desk) startShipping(b *book) {
	d.mu.Lock()
	ctx, stop := context.WithCancel(d.shipCtx)
	b.stopShip = stop
	d.mu.Unlock()
	d.ships.Go(func() { d.shipBook(ctx, b) })
}

// shipBook ships a journal until it is retired or closed, or ctx ends. A disk that cannot be read for a moment (no file descriptor
// left, say) must not end it: the journal would fill up, and this node would block every epoch that it has to report to.
func (d *Desk) shipBook(ctx context.Context, b *book) {
	complain := every{interval: 10 * time.Second}
	for {
		err := d.cfg.Ship(ctx, b.journal)
		if err == nil || ctx.Err() != nil || errors.Is(err, journal.ErrClosed) {
			return
		}
		d.metrics.shipFailures.Inc()
		if complain.due(d.now()) {
			d.log.Error("a journal cannot be shipped; it is tried again", "incarnation", b.incarnation, "error", err)
		}
		if !pause(ctx, shipRetry) {
			return
		}
		b.journal.Rewind()
	}
}

// adoptAll takes every journal of JOURNAL_DIR that nobody holds and closes its open requests, under its own incarnation
// and continuing its sequence (DESIGN 5).
func (d *Desk) adoptAll(ctx context.Context) error {
	ids, err := journal.Adoptable(d.cfg.Journal)
	if err != nil {
		return fmt.Errorf("look for journals to adopt: %w", err)
	}
	var failed []error // one that cannot be adopted must not keep the others
	for _, id := range ids {
		if err := d.adopt(ctx, id); err != nil {
			failed = append(failed, fmt.Errorf("adopt journal %s: %w", id, err))
		}
		d.turns.Add(1)
	}
	return errors.Join(failed...)
}

func (d *Desk) adopt(ctx context.Context, id ledger.ID) error {
	j, found, err := journal.Adopt(d.cfg.Journal, id)
	if errors.Is(err, journal.ErrLocked) || errors.Is(err, journal.ErrRetired) || errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else was quicker
	}
	if err != nil {
		return err
	}
	for _, damage := range found.Damage {
		d.metrics.damage.Inc()
		d.log.Error("a journal is damaged; what could not be read is kept in place", "incarnation", id, "damage", damage)
	}
	b := &book{incarnation: id, journal: j, recovered: true}
	releases := found.Releases
	var last journal.Commit
	var doubtful []journal.OpenState
	for i := range found.Opens {
		open := &found.Opens[i]
		if open.Doubtful {
			doubtful = append(doubtful, *open)
			continue
		}
		ev := recovered(open, d.now())
		last, err = j.Settle(ev)
		if err != nil {
			_ = j.Close()
			return fmt.Errorf("journal recovered usage: %w", err)
		}
		releases = append(releases, ledger.ReleaseCall{
			Hold: open.Hold, Incarnation: id, Partition: ledger.Partition(open.User, d.cfg.Partitions),
			Epoch: open.Epoch, Charge: ev.Charged,
		})
		d.metrics.recovered.Inc()
	}
	if len(found.Opens) > len(doubtful) {
		if err := last.Wait(ctx); err != nil {
			_ = j.Close()
			return fmt.Errorf("make recovered usage durable: %w", err)
		}
	}
	if b.pending.Store(int64(len(releases))); len(releases) == 0 {
		j.ReleasedRecovered()
	}
	b.doubtful.Store(len(doubtful) > 0)
	d.mu.Lock()
	d.adopted = append(d.adopted, b)
	d.mu.Unlock()
	d.startShipping(b)
	if len(doubtful) > 0 {
		d.ships.Go(func() { d.closeDoubtful(d.shipCtx, b, doubtful) })
	}
	d.ships.Go(func() {
		for _, call := range releases {
			select {
			case d.releases <- release{call: call, book: b}:
			case <-d.shipCtx.Done():
				return // the next start does it again
			}
		}
	})
	d.log.Info("a journal was adopted", "incarnation", id, "open_requests", len(found.Opens), "holds_to_release", len(releases))
	return nil
}

// closeAdopted retires adopted journals that are settled and shipped, and drops what is left of their incarnations. One that
// cannot be closed is tried again at the pace of adoption.
func (d *Desk) closeAdopted(ctx context.Context) {
	d.mu.Lock()
	adopted := append([]*book(nil), d.adopted...)
	d.mu.Unlock()
	for _, b := range adopted {
		if d.now().Before(b.closeAfter) {
			continue
		}
		if err := b.journal.Failed(); err != nil && b.recovered {
			// It will never be finished by this Journal; the directory can be adopted again, with what can be read of it.
			d.log.Warn("an adopted journal has failed and is adopted anew", "incarnation", b.incarnation, "error", err)
			b.stopShip()
			_ = b.journal.Close()
			d.letGo(b)
			continue
		}
		if !d.finished(b) {
			continue
		}
		err := d.once(ctx, func(ctx context.Context) error { return d.closeBook(ctx, b) })
		if err != nil && !errors.Is(err, journal.ErrClosed) { // closed: what failed before was its mark of retirement
			b.closeAfter = d.now().Add(d.cfg.AdoptEvery)
			d.log.Warn("an adopted journal could not be closed yet", "incarnation", b.incarnation, "error", err)
			continue
		}
		d.letGo(b)
	}
}

// letGo forgets an adopted journal that is closed, or that somebody may adopt again.
func (d *Desk) letGo(b *book) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adopted = slices.DeleteFunc(slices.Clone(d.adopted), func(other *book) bool { return other == b })
}

// inUse reports whether requests of this process still write to the book.
func (d *Desk) inUse(b *book) bool {
	for p := range d.views {
		v := &d.views[p]
		v.mu.Lock()
		for _, t := range v.tickets {
			if t.book == b {
				v.mu.Unlock()
				return true
			}
		}
		v.mu.Unlock()
	}
	return false
}

// finished reports whether a book is closed, settled and shipped: no request writes to it, the counters took the end of every hold, and
// all of it is durable and in the log. Dropping an incarnation before that would void a hold whose charge the quota
// consumer takes out of settled, and so give the charge back (L3). While requests of it are doubtful, ends of holds may be on
// their way to pending.
func (d *Desk) finished(b *book) bool {
	return !d.inUse(b) && !b.doubtful.Load() && b.pending.Load() <= 0 && b.journal.Drained()
}

// closeBook ends an incarnation whose requests are all closed, shipped and settled. The order matters: first the
// counters forget it (a tombstone refuses late reserves), then the database calls it closed, then its files are marked.
// A kill in between repeats the rest at the next adoption.
func (d *Desk) closeBook(ctx context.Context, b *book) error {
	for p := range d.cfg.Partitions {
		if err := d.cfg.Counters.Drop(ctx, p, b.incarnation); err != nil {
			return fmt.Errorf("drop holds of partition %d: %w", p, err)
		}
	}
	err := d.cfg.Bank.CloseProducer(ctx, b.incarnation)
	if errors.Is(err, sqlstore.ErrNotFound) {
		// The database lost its last transactions. The row has to be there, closed: the events of this incarnation still come.
		if err = d.cfg.Bank.RegisterProducer(ctx, b.incarnation, d.cfg.Node); err == nil {
			err = d.cfg.Bank.CloseProducer(ctx, b.incarnation)
		}
	}
	if err != nil {
		return fmt.Errorf("close incarnation: %w", err)
	}
	// Shipping ends by itself with the journal; if that is busy after all, it has to go on.
	if err := b.journal.Retire(); err != nil {
		return fmt.Errorf("retire journal: %w", err)
	}
	b.stopShip()
	return nil
}

// leave ends the node's own incarnation cleanly, within drain.
func (d *Desk) leave(ctx context.Context, drain time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	for d.busy() {
		if err := d.Failed(); err != nil {
			d.log.Error("the node stops with a journal that cannot be written; the next start finishes what is left", "error", err)
			d.closeFiles()
			return nil
		}
		if err := d.once(ctx, d.look); err != nil && ctx.Err() == nil {
			d.log.Warn("the node leaves while the counters are away", "error", err)
		}
		if err := d.once(ctx, d.heed); err != nil && ctx.Err() == nil {
			d.log.Warn("the node leaves while the database is away", "error", err)
		}
		if !pause(ctx, epochLook/10) {
			d.leaveWork()
			d.closeFiles()
			return nil
		}
	}
	if err := d.closeBook(ctx, d.current()); err != nil {
		d.log.Warn("the node's incarnation stays open for the next start to close", "error", err)
		d.closeFiles()
		return nil
	}
	for _, b := range d.books()[1:] {
		if err := b.journal.Close(); err != nil {
			return fmt.Errorf("close adopted journal: %w", err)
		}
	}
	return nil
}

// leaveWork says what the node leaves behind.
func (d *Desk) leaveWork() {
	log := d.log.With("open_requests", d.open.Load(), "unreleased", int64(len(d.releases))+d.aside.Load(), "unacknowledged", d.current().journal.Stats().Depth)
	if d.cfg.Diskless {
		// No answer of these went out whole. Their holds end when the incarnation is given up.
		log.Error("the node stops with events that the log has not acknowledged; they go with its memory")
		return
	}
	log.Warn("the node stops with work left in its journal; the next start finishes it")
}

// busy reports whether anything is left to do before the node's own incarnation can be closed.
func (d *Desk) busy() bool {
	return d.open.Load() > 0 || len(d.releases) > 0 || d.aside.Load() > 0 || !d.finished(d.current())
}

func (d *Desk) closeFiles() {
	for _, b := range d.books() {
		if err := b.journal.Close(); err != nil {
			d.log.Warn("a journal was not closed cleanly; nothing is lost", "incarnation", b.incarnation, "error", err)
		}
	}
}

// Abandon closes a desk that was never run, leaving nothing behind: its incarnation has written nothing.
func (d *Desk) Abandon(ctx context.Context) error {
	own := d.current()
	if err := d.cfg.Bank.CloseProducer(ctx, own.incarnation); err != nil {
		return fmt.Errorf("close incarnation: %w", err)
	}
	if err := own.journal.Retire(); err != nil {
		return fmt.Errorf("retire journal: %w", err)
	}
	return nil
}
