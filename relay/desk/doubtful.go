package desk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// FlagJournalDamaged marks a recovered request whose journal had lost records that may have ended it: the log had no bill of it.
const FlagJournalDamaged = "journal_damaged"

// HoldEnds looks in the log for events of the partition that ended one of the holds, none of which lives in an epoch older than oldest.
type HoldEnds func(ctx context.Context, partition int, oldest uint64, holds map[ledger.ID]bool) ([]ledger.ReleaseCall, error)

// closeDoubtful ends the open requests of an adopted journal whose own end may be among what it lost, to damage or as a torn end. What the
// log has of them was billed: it is told to the counters, and the journal closes the hold without an event, so that nothing is billed twice
// (L2). The others are billed like any request of a dead node. It goes on until the log and the counters have answered, the journal has
// failed, or ctx ends: who adopts it next does it again, but for a torn end, of which that one sees nothing.
//
// What the dead process sent last is in the log by then, unless a broker keeps a request that it has received longer in its queue than a
// node takes to start: such an event would count beside the recovered one.
func (d *Desk) closeDoubtful(ctx context.Context, b *book, opens []journal.OpenState) {
	by := map[int][]journal.OpenState{}
	for i := range opens {
		p := ledger.Partition(opens[i].User, d.cfg.Partitions)
		by[p] = append(by[p], opens[i])
	}
	complain := every{interval: 10 * time.Second}
	for p, list := range by {
		// Each try reads the log again, which may be long.
		for wait := shipRetry; ; wait = min(2*wait, adoptEvery) {
			err := d.closeDoubtfulOf(ctx, b, p, list)
			if err == nil {
				break
			}
			if errors.Is(err, journal.ErrFailed) || errors.Is(err, journal.ErrClosed) {
				return // it is adopted anew
			}
			if ctx.Err() == nil && complain.due(d.now()) {
				d.log.Warn("requests of a damaged journal cannot be closed yet; it is tried again", "incarnation", b.incarnation, "error", err)
			}
			if !pause(ctx, wait) {
				return
			}
		}
	}
	b.doubtful.Store(false)
}

func (d *Desk) closeDoubtfulOf(ctx context.Context, b *book, partition int, opens []journal.OpenState) error {
	holds := make(map[ledger.ID]bool, len(opens))
	oldest := opens[0].Epoch
	for i := range opens {
		holds[opens[i].Hold] = true
		oldest = min(oldest, opens[i].Epoch)
	}
	ended, err := d.cfg.HoldEnds(ctx, partition, oldest, holds)
	if err != nil {
		return err
	}
	// First the counters, then the journal: after a crash in between both are done again, by hold id.
	if len(ended) > 0 {
		if err := d.cfg.Counters.Release(ctx, ended); err != nil {
			return fmt.Errorf("settle holds that the log has: %w", err)
		}
	}
	for _, call := range ended {
		if !holds[call.Hold] {
			continue // the log has it twice
		}
		delete(holds, call.Hold)
		_, voided, err := b.journal.Void(call.Hold)
		if errors.Is(err, journal.ErrNotOpen) {
			continue // an earlier try came this far
		}
		if err != nil {
			return fmt.Errorf("close hold that the log has: %w", err)
		}
		b.journal.Released(voided)
	}
	d.log.Warn("requests of a damaged journal were looked for in the log", "incarnation", b.incarnation, "partition", partition,
		"requests", len(opens), "billed_before", len(opens)-len(holds))
	for i := range opens {
		if !holds[opens[i].Hold] {
			continue
		}
		if err := d.billDoubtful(ctx, b, partition, &opens[i]); err != nil {
			return err
		}
	}
	return nil
}

// billDoubtful bills a request that neither the journal nor the log knows the end of.
func (d *Desk) billDoubtful(ctx context.Context, b *book, partition int, open *journal.OpenState) error {
	ev := recovered(open, d.now())
	ev.Flags = append(ev.Flags, FlagJournalDamaged)
	settled, err := b.journal.Settle(ev)
	if errors.Is(err, journal.ErrNotOpen) {
		return nil // an earlier try came this far
	}
	if err != nil {
		return fmt.Errorf("journal recovered usage: %w", err)
	}
	if err := settled.Wait(ctx); err != nil {
		return fmt.Errorf("make recovered usage durable: %w", err)
	}
	d.metrics.recovered.Inc()
	b.pending.Add(1)
	call := ledger.ReleaseCall{Hold: open.Hold, Incarnation: b.incarnation, Partition: partition, Epoch: open.Epoch, Charge: ev.Charged}
	select {
	case d.releases <- release{call: call, book: b, ending: settled}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
