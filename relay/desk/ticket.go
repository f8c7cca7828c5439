package desk

import (
	"context"
	"fmt"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// Ticket is one admitted request. Its methods are called by the goroutine that serves the request; the desk changes only its
// epoch, under the partition's lock. Exactly one of Settle and Void ends it.
type Ticket struct {
	desk      *Desk
	book      *book
	hold      ledger.ID
	partition int
	user      int64
	token     int64 // 0: not held
	free      bool
	slot      *journal.Slot
	opened    journal.Commit
	cut       chan struct{}
	onCut     func() // set by OnCut; called by the desk's own goroutine

	// Under views[partition].mu:
	epoch    uint64
	amount   int64
	reopened journal.Commit // the open record of the newest epoch
	ended    bool
}

// Hold returns the hold's id.
func (t *Ticket) Hold() ledger.ID { return t.hold }

// Amount returns the quota units held, as last extended.
func (t *Ticket) Amount() int64 {
	v := &t.desk.views[t.partition]
	v.mu.Lock()
	defer v.mu.Unlock()
	return t.amount
}

// OnCut sets what to call when the desk ends the request: an epoch was opened without this node, so nothing more may be
// streamed on the old hold. The handler then settles what was streamed. f must not block.
func (t *Ticket) OnCut(f func()) {
	v := &t.desk.views[t.partition]
	v.mu.Lock()
	defer v.mu.Unlock()
	t.onCut = f
	if t.WasCut() && f != nil {
		f()
	}
}

// WasCut reports whether the desk ended the request.
func (t *Ticket) WasCut() bool {
	select {
	case <-t.cut:
		return true
	default:
		return false
	}
}

// end the request from the desk's side, under the partition's lock.
func (t *Ticket) cutNow() bool {
	if t.WasCut() {
		return false
	}
	close(t.cut)
	if t.onCut != nil {
		t.onCut()
	}
	return true
}

// Durable waits until the open record is on disk. It must return nil before the first byte of the response is sent (L1).
func (t *Ticket) Durable(ctx context.Context) error {
	if err := t.opened.Wait(ctx); err != nil {
		return fmt.Errorf("make open record durable: %w", err)
	}
	return nil
}

// Forwarding notes the channel that the request is about to be sent to, so that recovery can name it.
func (t *Ticket) Forwarding(channel int64) { t.slot.SetForwarded(channel) }

// Progress raises what was streamed to the client: tokens, a chunk being one at least, and the content bytes if those tell more. It must be called before
// the chunk is sent: after a kill the charge is never below what the client has.
func (t *Ticket) Progress(tokens, bytes int64) { t.slot.RaiseProgress(tokens, bytes) }

// Extend raises the hold to a new total and reports whether it is granted. If not, left is what the poorer account still has
// beside its holds (0 if it is not known): the caller may ask for that much, and ends the stream with finish reason
// "length" when it is used up. While an epoch is rebuilding it waits, at most rebuildPatience. A fault (counters out of
// reach) is an error: nothing is granted then.
func (t *Ticket) Extend(ctx context.Context, to int64) (granted bool, left int64, err error) {
	if t.free {
		return true, 0, nil
	}
	v := &t.desk.views[t.partition]
	ctx, cancel := context.WithTimeout(ctx, rebuildPatience)
	defer cancel()
	for {
		v.mu.Lock()
		epoch, open, changed, mine := v.epoch, v.open, v.changed, t.epoch
		v.mu.Unlock()
		if !open || mine != epoch {
			select {
			case <-changed:
				continue
			case <-t.cut:
				return false, 0, nil
			case <-ctx.Done():
				return false, 0, nil
			}
		}
		reply, err := t.desk.cfg.Counters.Extend(ctx, ledger.ExtendCall{
			Hold: t.hold, Incarnation: t.book.incarnation, Partition: t.partition, Epoch: epoch, To: to,
		})
		if err != nil {
			return false, 0, fmt.Errorf("extend hold: %w", err)
		}
		switch reply.Outcome {
		case ledger.OutcomeGranted:
			v.mu.Lock()
			held := t.epoch == epoch
			if held {
				// In the slot before anything that it pays for is sent (DESIGN 6).
				t.amount = max(t.amount, reply.Amount)
				t.slot.SetTotal(t.amount)
			}
			v.mu.Unlock()
			if held {
				return true, 0, nil
			}
		case ledger.OutcomeRefused, ledger.OutcomeBusy:
			return false, max(0, reply.Left), nil
		case ledger.OutcomeNeedLoad:
			// A hold that was re-asserted into a new epoch may be on accounts that nobody has loaded since.
			if err := t.desk.loading.load(ctx, loadKey{t.partition, epoch}, reply.Missing); err != nil {
				return false, 0, err
			}
			if !pause(ctx, loadPause) {
				return false, 0, nil
			}
		case ledger.OutcomeRebuilding:
			if !pause(ctx, epochLook/4) {
				return false, 0, nil
			}
		default:
			return false, 0, nil
		}
	}
}

// Settle journals the usage event and waits until it is durable; only then may the last byte go out (L1). The hold is
// settled in the counters afterwards, in the background. ctx should outlive the client.
func (t *Ticket) Settle(ctx context.Context, ev *ledger.Event) error {
	v := &t.desk.views[t.partition]
	v.mu.Lock()
	if t.ended {
		v.mu.Unlock()
		panic("desk: a ticket was settled twice (L2)")
	}
	// A free request names its hold too, with nothing held: that is how the journal pairs it with its open record.
	ev.Hold = &ledger.HoldRef{ID: t.hold, Epoch: t.epoch, Amount: t.amount, Token: t.token != 0}
	epoch := t.epoch
	settled, err := t.book.journal.Settle(ev)
	if err == nil {
		t.end(v)
	}
	v.mu.Unlock()
	if err != nil {
		// The ticket stays in the books: its hold stays held, and the next start of the journal bills it.
		return fmt.Errorf("journal usage event: %w", err)
	}
	if err := settled.Wait(ctx); err != nil {
		// A disk that hangs may still take the record: then it will be applied, and the counters must hear of it too.
		charged := ev.Charged
		t.desk.late.Go(func() {
			if settled.Err() == nil {
				t.finish(settled, epoch, charged)
			}
		})
		return fmt.Errorf("make usage event durable: %w", err)
	}
	t.finish(settled, epoch, ev.Charged)
	return nil
}

// Void ends the request without a charge. The journal record needs no waiting: after a crash an unvoided open that
// streamed nothing is worth 0 all the same.
func (t *Ticket) Void() {
	v := &t.desk.views[t.partition]
	v.mu.Lock()
	if t.ended {
		v.mu.Unlock()
		panic("desk: a ticket was voided after it ended (L2)")
	}
	epoch := t.epoch
	_, voided, err := t.book.journal.Void(t.hold)
	if err == nil {
		t.end(v)
	}
	v.mu.Unlock()
	if err != nil {
		t.desk.log.Error("a void could not be journaled; the hold stays until the journal is recovered",
			"hold", t.hold, "error", err)
		return
	}
	t.finish(voided, epoch, -1)
}

// end takes the ticket off the books, under the partition's lock. Its hold counts as waiting until the counters took the release.
func (t *Ticket) end(v *view) {
	t.ended = true
	delete(v.tickets, t.hold)
	if !t.free {
		t.owe(v)
	}
	t.desk.open.Add(-1)
}

// owe notes, under the partition's lock, that the counters have to be told of the end of t's hold.
func (t *Ticket) owe(v *view) {
	v.waiting[t.hold] = struct{}{}
	t.book.pending.Add(1)
}

// finish tells the counters how the hold ended. ending is the journal's record of it, which stays until they know.
func (t *Ticket) finish(ending journal.Commit, epoch uint64, charge int64) {
	if t.free {
		t.book.journal.Released(ending)
		return
	}
	t.desk.queueRelease(t, ending, epoch, charge)
}
