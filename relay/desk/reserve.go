package desk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// Order is a request for a hold.
type Order struct {
	User      int64
	Token     int64
	TokenHeld bool  // the token is limited, so it is held too
	Free      bool  // the price is zero: nothing is held, the request is journaled all the same
	Min       int64 // quota units below which the request is refused
	Want      int64 // quota units of the upper bound
	// PreciseMin, if set, is called at most once, when the accounts cannot pay Want: it returns Min from the counted prompt
	// (the tokenizer runs only here).
	PreciseMin func() int64
	// Open is the template of the journal's open record; the desk fills in hold, epoch, amount and time.
	Open journal.OpenRecord
}

// Refusal says why no hold was given. It is not a fault: the client gets it in its dialect.
type Refusal struct {
	Outcome ledger.Outcome // Refused, Busy or Rebuilding
	Account ledger.Account
	Left    int64
	Need    int64
}

// Error implements error.
func (r *Refusal) Error() string {
	switch r.Outcome {
	case ledger.OutcomeBusy:
		return fmt.Sprintf("%s has %d units left beside open holds, %d needed", r.Account, r.Left, r.Need)
	case ledger.OutcomeRebuilding:
		return "the hot counters are being rebuilt"
	default:
		return fmt.Sprintf("%s has %d units left, %d needed", r.Account, r.Left, r.Need)
	}
}

// ErrFull is returned when the node has Config.MaxOpen open requests: try another node, or later.
var ErrFull = errors.New("the node is at its bound of open requests")

// Reserve takes a hold and journals its open record; the record may still be on its way to the disk (Ticket.Durable).
// Errors: *Refusal, ErrFull or journal.ErrFull, ErrStopping, or a fault (counters or database out of reach, journal failed).
func (d *Desk) Reserve(ctx context.Context, o Order) (*Ticket, error) {
	// Counted first: whoever leaves sees either the request or no request that is not refused.
	open := d.open.Add(1)
	if d.leaving.Load() {
		d.open.Add(-1)
		return nil, ErrStopping
	}
	if open > int64(d.cfg.MaxOpen) {
		d.open.Add(-1)
		return nil, ErrFull
	}
	t, err := d.reserve(ctx, &o)
	if err != nil {
		d.open.Add(-1)
		return nil, err
	}
	return t, nil
}

func (d *Desk) reserve(ctx context.Context, o *Order) (*Ticket, error) {
	b := d.current()
	if err := b.journal.Failed(); err != nil {
		return nil, fmt.Errorf("journal has failed: %w", err)
	}
	hold, err := newID()
	if err != nil {
		return nil, err
	}
	p := ledger.Partition(o.User, d.cfg.Partitions)
	if err := d.logAnswers(p); err != nil {
		return nil, err
	}
	t := &Ticket{
		desk: d, book: b, hold: hold, partition: p, user: o.User, free: o.Free, cut: make(chan struct{}),
	}
	if o.TokenHeld {
		t.token = o.Token
	}
	if o.Free {
		return t, d.enterFree(t, o)
	}
	v := &d.views[p]
	v.mu.Lock()
	v.waiting[hold] = struct{}{}
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.waiting, hold)
		v.mu.Unlock()
	}()
	if err := d.ask(ctx, t, o); err != nil {
		return nil, err
	}
	return t, nil
}

// enterFree books a ticket without a hold. It names no epoch: should it be charged after all (tool calls of a model that is free),
// nothing of it ever was in the counters' settled, and nothing may be taken out of it.
func (d *Desk) enterFree(t *Ticket, o *Order) error {
	for {
		err := d.enter(t, o, 0, 0)
		if !errors.Is(err, errOtherEpoch) {
			return err
		}
		t.book = d.current()
	}
}

// ask calls the counters until they give an answer that holds in the epoch that is current when it arrives.
func (d *Desk) ask(ctx context.Context, t *Ticket, o *Order) error {
	v := &d.views[t.partition]
	loaded, least := 0, o.Min
	for {
		v.mu.Lock()
		epoch, open := v.epoch, v.open
		v.mu.Unlock()
		t.book = d.current()
		if !open {
			return &Refusal{Outcome: ledger.OutcomeRebuilding}
		}
		call := ledger.ReserveCall{
			Hold: t.hold, Incarnation: t.book.incarnation, Partition: t.partition, Epoch: epoch,
			User: t.user, Token: t.token, Min: least, Want: max(o.Want, least),
		}
		if o.PreciseMin != nil {
			// Near the limit the first call must not hand out a partial hold priced by a guess: it asks for all or nothing.
			call.Min = call.Want
		}
		reply, err := d.cfg.Counters.Reserve(ctx, call)
		if err != nil {
			d.giveBack(t, epoch)
			return fmt.Errorf("reserve hold: %w", err)
		}
		switch reply.Outcome {
		case ledger.OutcomeGranted:
			err := d.enter(t, o, epoch, reply.Amount)
			if err == nil {
				return nil
			}
			d.giveBack(t, epoch)
			if !errors.Is(err, errOtherEpoch) {
				return err
			}
		case ledger.OutcomeNeedLoad:
			// Right after a rebuild the database has to pass the floor first; it does as soon as the consumer has caught up.
			if loaded++; loaded > loadAttempts {
				return &Refusal{Outcome: ledger.OutcomeRebuilding}
			}
			if loaded > 1 && !pause(ctx, loadPause) {
				return context.Cause(ctx)
			}
			if err := d.loading.load(ctx, loadKey{t.partition, epoch}, reply.Missing); err != nil {
				return err
			}
		case ledger.OutcomeRefused, ledger.OutcomeBusy:
			if o.PreciseMin != nil {
				least, o.PreciseMin = o.PreciseMin(), nil
				continue
			}
			return &Refusal{Outcome: reply.Outcome, Account: reply.Account, Left: reply.Left, Need: least}
		default:
			return &Refusal{Outcome: ledger.OutcomeRebuilding}
		}
	}
}

var errOtherEpoch = errors.New("the epoch, or the node's incarnation, changed while the hold was reserved")

// enter books the ticket and journals its open record, unless the epoch it was reserved in has ended, or the incarnation
// that it was reserved for: then the answer counts as lost (DESIGN 7).
func (d *Desk) enter(t *Ticket, o *Order, epoch uint64, amount int64) error {
	v := &d.views[t.partition]
	v.mu.Lock()
	defer v.mu.Unlock()
	if t.book != d.current() || !t.free && (v.epoch != epoch || !v.open) {
		return errOtherEpoch
	}
	rec := o.Open
	rec.Hold, rec.Epoch, rec.Amount = t.hold, epoch, amount
	rec.User, rec.Token, rec.TokenHeld = o.User, o.Token, o.TokenHeld && !o.Free
	rec.Node = d.cfg.Node
	opened, err := t.book.journal.Open(&rec)
	if err != nil {
		return fmt.Errorf("journal open record: %w", err)
	}
	t.slot, t.opened, t.epoch, t.amount = t.book.journal.Slot(t.hold), opened, epoch, amount
	v.tickets[t.hold] = t
	return nil
}

// pause waits and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
