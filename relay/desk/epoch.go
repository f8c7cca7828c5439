package desk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// look follows the epochs of all partitions once.
func (d *Desk) look(ctx context.Context) error {
	partitions := make([]int, d.cfg.Partitions)
	for p := range partitions {
		partitions[p] = p
	}
	states, err := d.state(ctx, partitions...)
	var failed []error // one partition must not keep the others
	if err != nil {
		// Out of reach is not closed: requests fail at their own call, and nothing is re-asserted on a guess.
		states, err = d.statesOneByOne(ctx, partitions)
		failed = append(failed, err)
	}
	for i := range states {
		if err := d.follow(ctx, &states[i]); err != nil {
			failed = append(failed, fmt.Errorf("follow epoch of partition %d: %w", states[i].Partition, err))
		}
	}
	d.sawEpochs.Do(func() { close(d.looked) })
	return errors.Join(failed...)
}

func (d *Desk) state(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	return d.cfg.Counters.State(ctx, partitions...) //nolint:wrapcheck // the caller says what was tried
}

// lookAtOnce bounds the partitions that are looked at beside one another while some are out of reach.
const lookAtOnce = 32

// statesOneByOne returns the states that can be read: the partitions of other servers of a cluster go on when one is away.
func (d *Desk) statesOneByOne(ctx context.Context, partitions []int) ([]ledger.Counters, error) {
	var (
		mu     sync.Mutex
		states []ledger.Counters
		failed error
		all    errgroup.Group
	)
	all.SetLimit(lookAtOnce)
	for _, p := range partitions {
		all.Go(func() error {
			st, err := d.state(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fmt.Errorf("look at the epochs: %w", err) // one of them says enough
				return nil
			}
			states = append(states, st...)
			return nil
		})
	}
	_ = all.Wait()
	return states, failed
}

// follow brings the node's view of one partition up to what the counters say (DESIGN 7, epochs).
func (d *Desk) follow(ctx context.Context, st *ledger.Counters) error {
	v := &d.views[st.Partition]
	v.mu.Lock()
	epoch := v.epoch
	v.mu.Unlock()
	switch {
	case !st.Present || st.Foreign || st.Epoch < epoch:
		// Lost, or a stale answer, or a replica that lost the newest epoch: the consumer begins a higher one.
		v.mu.Lock()
		v.move(epoch, false)
		v.mu.Unlock()
	case st.Epoch > epoch && st.Open:
		d.missed(v, st)
	case st.Epoch > epoch:
		return d.reassert(ctx, v, st)
	case !st.Open:
		return d.report(ctx, v, st)
	default:
		v.mu.Lock()
		v.move(epoch, true)
		v.earlier = nil
		v.mu.Unlock()
	}
	return nil
}

// missed handles an epoch that opened without this node. No ticket of an older epoch can enter afterwards.
func (d *Desk) missed(v *view, st *ledger.Counters) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d.cutBefore(v, st.Partition, st.Epoch)
	v.earlier = nil
	v.move(st.Epoch, true)
}

// cutBefore ends, under the partition's lock, the requests whose holds are older than an epoch that was opened: they are not counted
// there, and others may have been given what they held. They are charged what was streamed, as late.
func (d *Desk) cutBefore(v *view, partition int, opened uint64) {
	cut := 0
	for _, t := range v.tickets {
		if !t.free && t.epoch < opened && t.cutNow() {
			cut++
		}
	}
	if cut > 0 {
		d.metrics.cut.Add(float64(cut))
		d.log.Warn("an epoch was opened without this node; its open requests of the partition end here",
			"partition", partition, "epoch", opened, "requests", cut)
	}
}

// reassert tells a rebuilding epoch of every hold that is open here, and journals an open record of the new epoch for each; but for
// those that an epoch was opened without while this node was away (L3). The partition's lock is held throughout, so no hold can slip in or out
// in between.
func (d *Desk) reassert(ctx context.Context, v *view, st *ledger.Counters) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	d.cutBefore(v, st.Partition, st.Opened)
	// Tickets of an earlier incarnation of this process (it was given up and went on as a new one) are being cut.
	own := d.current()
	holds := make([]ledger.OpenHold, 0, len(v.tickets))
	tickets := make([]*Ticket, 0, len(v.tickets))
	for _, hold := range slices.SortedFunc(maps.Keys(v.tickets), compareIDs) {
		t := v.tickets[hold]
		if t.free || t.book != own || t.epoch < st.Opened {
			continue
		}
		holds = append(holds, ledger.OpenHold{
			Hold: t.hold, Incarnation: own.incarnation, User: t.user, Token: t.token, Amount: t.amount,
		})
		tickets = append(tickets, t)
	}
	ok, err := d.cfg.Counters.Reassert(ctx, st.Partition, st.Epoch, own.incarnation, holds)
	if err != nil {
		return fmt.Errorf("re-assert %d holds: %w", len(holds), err)
	}
	if !ok {
		return nil // it opened, or a higher one began: the next look sees it
	}
	for _, t := range tickets {
		reopened, err := own.journal.Reopen(t.hold, st.Epoch, t.amount)
		if err != nil {
			// Not reported, so the epoch opens without this node, which then cuts its requests.
			return fmt.Errorf("journal re-asserted hold: %w", err)
		}
		t.epoch, t.reopened = st.Epoch, reopened
	}
	v.earlier = map[*book]uint64{own: own.journal.LastSeq(st.Partition)}
	v.move(st.Epoch, false)
	level := slog.LevelInfo
	if len(holds) == 0 {
		level = slog.LevelDebug // at every start, for every partition
	}
	d.log.Log(ctx, level, "holds re-asserted into a new epoch", "partition", st.Partition, "epoch", st.Epoch, "holds", len(holds))
	return nil
}

func compareIDs(a, b ledger.ID) int { return bytes.Compare(a[:], b[:]) }

// report tells the rebuilding epoch that this node is done: its re-asserted holds are durable, and all that it wrote
// earlier in this partition is in the log. It reports for the journals that it adopted as well, once no request of this
// process writes to them any more, and what is doubtful in them is settled. A report that was lost is repeated.
func (d *Desk) report(ctx context.Context, v *view, st *ledger.Counters) error {
	books := slices.DeleteFunc(d.books(), func(b *book) bool { return b.doubtful.Load() || b != d.current() && d.inUse(b) })
	v.mu.Lock()
	waits := make([]journal.Commit, 0, len(v.tickets))
	for _, t := range v.tickets {
		if !t.free && t.epoch == st.Epoch {
			waits = append(waits, t.reopened)
		}
	}
	var ready []ledger.ID
	for _, b := range books {
		seq, known := v.earlier[b]
		if !known && v.earlier != nil {
			seq = b.journal.LastSeq(st.Partition)
			v.earlier[b] = seq
		}
		if v.earlier != nil && b.journal.AckedThrough(st.Partition) >= seq && !slices.Contains(st.Reports, b.incarnation) {
			ready = append(ready, b.incarnation)
		}
	}
	v.mu.Unlock()
	if len(ready) == 0 {
		return nil
	}
	for _, c := range waits {
		if err := c.Wait(ctx); err != nil {
			return fmt.Errorf("make re-asserted holds durable: %w", err)
		}
	}
	if err := d.cfg.Counters.Report(ctx, st.Partition, st.Epoch, ready...); err != nil {
		return fmt.Errorf("report to epoch %d: %w", st.Epoch, err)
	}
	return nil
}

// sweep voids holds of this node's incarnation that it does not know: calls that were executed after their caller gave up. A server that
// hangs keeps its own partitions from it; if there are so many of them that ctx ends, the next sweep begins where this one stopped.
func (d *Desk) sweep(ctx context.Context) error {
	own := d.current()
	var failed []error
	first := d.sweepFrom
	for i := range d.views {
		p := (first + i) % len(d.views)
		if d.sweepFrom = p; ctx.Err() != nil {
			break
		}
		once, cancel := context.WithTimeout(ctx, lookPatience)
		if err := d.sweepPartition(once, p, own.incarnation); err != nil {
			failed = append(failed, fmt.Errorf("sweep holds of partition %d: %w", p, err))
		}
		cancel()
	}
	return errors.Join(failed...)
}

func (d *Desk) sweepPartition(ctx context.Context, p int, own ledger.ID) error {
	unknown, err := d.unknown(ctx, p, own, nil)
	if err == nil && len(unknown) > 0 {
		// A request that ended while the list was on its way is in it and not in the books. What is listed again is really
		// unknown: no hold comes back.
		unknown, err = d.unknown(ctx, p, own, unknown)
	}
	if err != nil || len(unknown) == 0 {
		return err
	}
	v := &d.views[p]
	v.mu.Lock()
	epoch := v.epoch
	v.mu.Unlock()
	calls := make([]ledger.ReleaseCall, 0, len(unknown))
	for id := range unknown {
		calls = append(calls, ledger.ReleaseCall{Hold: id, Incarnation: own, Partition: p, Epoch: epoch, Charge: -1})
	}
	if err := d.cfg.Counters.Release(ctx, calls); err != nil {
		return fmt.Errorf("void swept holds: %w", err)
	}
	d.metrics.swept.Add(float64(len(calls)))
	d.log.Warn("holds that nobody knew were voided", "partition", p, "holds", len(calls))
	return nil
}

// unknown lists the holds of an incarnation that the counters have and the books have not; if among is not nil, only
// those in it.
func (d *Desk) unknown(ctx context.Context, p int, incarnation ledger.ID, among map[ledger.ID]bool) (map[ledger.ID]bool, error) {
	held, err := d.cfg.Counters.Holds(ctx, p, incarnation)
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	v := &d.views[p]
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[ledger.ID]bool{}
	for _, h := range held {
		_, waits := v.waiting[h.Hold]
		if _, known := v.tickets[h.Hold]; !known && !waits && (among == nil || among[h.Hold]) {
			out[h.Hold] = true
		}
	}
	return out, nil
}

// every calls f at most once an interval, when due is passed the present time.
type every struct {
	interval time.Duration
	next     time.Time
}

func (e *every) due(now time.Time) bool {
	if now.Before(e.next) {
		return false
	}
	e.next = now.Add(e.interval)
	return true
}
