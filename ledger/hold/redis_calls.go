package hold

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ledgerline/ledger"
)

// way is how calls of some partitions get to Redis.
type way struct {
	*combiner
	down atomic.Bool // the last trip failed
}

// way returns that of a partition: a single server is reached by one for all. In a cluster each partition has its own, since a
// trip takes as long as its slowest server, and one that hangs must hold up its own partitions only.
func (r *Redis) way(partition int) *way {
	if !r.cluster {
		partition = 0
	}
	if w, ok := r.ways.Load(partition); ok {
		return w.(*way)
	}
	fresh := &way{}
	fresh.combiner = newCombiner(tripsAtOnce, func(calls []*call) { r.fly(fresh, calls) })
	w, _ := r.ways.LoadOrStore(partition, fresh)
	return w.(*way)
}

// send coalesces calls with those of other goroutines into trips.
func (r *Redis) send(ctx context.Context, calls ...*call) error {
	return r.sendWithin(ctx, 0, calls...)
}

func (r *Redis) sendWithin(ctx context.Context, company time.Duration, calls ...*call) error {
	// A timer that runs only while a call waits takes the place of a context with a deadline, which costs five more allocations.
	p := patience{company: company, whole: CallTimeout}
	if !r.cluster || len(calls) == 1 {
		return r.way(calls[0].partition).doWithin(ctx, p, calls...)
	}
	by := map[int][]*call{}
	for _, c := range calls {
		by[c.partition] = append(by[c.partition], c)
	}
	var all errgroup.Group
	for partition, list := range by {
		all.Go(func() error { return r.way(partition).doWithin(ctx, p, list...) })
	}
	return all.Wait() //nolint:wrapcheck // the caller says what was tried
}

// fly makes one trip: one script for all that one server answers for, in one pipeline. It does not end with the context of
// the caller whose turn it is, because it carries others' calls too.
func (r *Redis) fly(w *way, calls []*call) {
	slices.SortStableFunc(calls, func(a, b *call) int { return cmp.Compare(a.partition, b.partition) })
	var requests []*request
	for rest := calls; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].partition == rest[0].partition {
			n++
		}
		if len(requests) == 0 || r.cluster {
			requests = append(requests, &request{})
		}
		q := requests[len(requests)-1]
		q.partitions = append(q.partitions, rest[0].partition)
		q.args = append(q.args, appendCalls(make([]byte, 0, groupBytes+n*callBytes), rest[:n]))
		q.calls += n
		rest = rest[n:]
	}
	r.exec(context.Background(), TripTimeout, callsScript, requests)
	r.note(w, requests)
	for _, q := range requests {
		reply := q.text
		for _, c := range calls[:q.calls] {
			if c.err = q.err; c.err == nil {
				c.answer, reply, c.err = readAnswer(reply, &c.packedCall)
			}
		}
		calls = calls[q.calls:]
	}
}

func reserveCall(c *ledger.ReserveCall) *call {
	return &call{partition: c.Partition, packedCall: packedCall{
		kind: callReserve, hold: c.Hold, incarnation: c.Incarnation, epoch: c.Epoch, x: c.Min, y: c.Want, user: c.User, token: c.Token,
	}}
}

func extendCall(c *ledger.ExtendCall) *call {
	return &call{partition: c.Partition, packedCall: packedCall{
		kind: callExtend, hold: c.Hold, incarnation: c.Incarnation, epoch: c.Epoch, x: c.To,
	}}
}

func releaseCall(c *ledger.ReleaseCall) call {
	kind, charge := byte(callSettle), c.Charge
	if charge < 0 {
		kind, charge = callVoid, 0
	}
	return call{partition: c.Partition, packedCall: packedCall{
		kind: kind, hold: c.Hold, incarnation: c.Incarnation, epoch: c.Epoch, x: charge,
	}}
}

// Reserve implements [Admission].
func (r *Redis) Reserve(ctx context.Context, order ledger.ReserveCall) (ledger.ReserveReply, error) {
	if err := checkReserve(&order); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	c := reserveCall(&order)
	if err := r.send(ctx, c); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	reply, err := c.reply()
	if err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	return reply, nil
}

// Extend implements [Admission].
func (r *Redis) Extend(ctx context.Context, order ledger.ExtendCall) (ledger.ReserveReply, error) {
	if err := checkExtend(&order); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	c := extendCall(&order)
	if err := r.send(ctx, c); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	reply, err := c.reply()
	if err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	return reply, nil
}

// reply says what the answer to a reserve or an extension means.
func (c *call) reply() (ledger.ReserveReply, error) {
	if c.kind == callReserve {
		return c.answer.reply(c.user, c.token)
	}
	user, token, err := c.answer.accounts()
	if err != nil {
		return ledger.ReserveReply{}, err
	}
	return c.answer.reply(user, token)
}

// accounts returns the user and the token that an answer names, 0 for none.
func (a *answer) accounts() (user, token int64, err error) {
	for _, name := range []string{a.user, a.token} {
		if name == "" {
			continue
		}
		account, err := decodeField(name)
		if err != nil {
			return 0, 0, err
		}
		if account.Kind == ledger.UserAccount {
			user = account.ID
		} else {
			token = account.ID
		}
	}
	return user, token, nil
}

// reply says what an answer means for the accounts that are held.
func (a *answer) reply(user, token int64) (ledger.ReserveReply, error) {
	r := ledger.ReserveReply{Outcome: a.outcome}
	switch a.outcome {
	case ledger.OutcomeRebuilding, ledger.OutcomeGone:
		return r, nil
	case ledger.OutcomeGranted:
		r.Amount = a.n
		return r, nil
	case ledger.OutcomeNeedLoad:
		for place, account := range accountsOf(user, token) {
			if a.n&(1<<place) != 0 {
				r.Missing = append(r.Missing, account)
			}
		}
		return r, nil
	case ledger.OutcomeRefused, ledger.OutcomeBusy:
		if accounts := accountsOf(user, token); a.place >= 1 && a.place <= len(accounts) {
			r.Account, r.Left = accounts[a.place-1], a.n
			return r, nil
		}
	}
	return ledger.ReserveReply{}, fmt.Errorf("outcome %d of account %d: %w", a.outcome, a.place, errBadRecord)
}

// Release implements [Admission].
func (r *Redis) Release(ctx context.Context, calls []ledger.ReleaseCall) error {
	for i := range calls {
		if err := checkRelease(&calls[i]); err != nil {
			return fmt.Errorf("release hold: %w", err)
		}
	}
	for len(calls) > 0 {
		n := min(len(calls), MaxTrip)
		batch, list := make([]*call, n), make([]call, n)
		for i := range list {
			list[i] = releaseCall(&calls[i])
			batch[i] = &list[i]
		}
		if err := r.sendWithin(ctx, releasePatience, batch...); err != nil {
			return fmt.Errorf("release hold: %w", err)
		}
		calls = calls[n:]
	}
	return nil
}

// Load implements [Admission].
func (r *Redis) Load(ctx context.Context, call ledger.LoadCall) error {
	if err := checkLoad(&call); err != nil {
		return fmt.Errorf("load accounts: %w", err)
	}
	head := []any{call.Epoch, call.Offset}
	args := head
	for a, b := range call.Balances {
		if !counted(a) {
			continue
		}
		args = append(args, appendField(nil, a), appendInt64(appendInt64(nil, b.Granted), b.Charged))
		if len(args) > 2*maxPerScript {
			if _, err := r.run(ctx, loadScript, call.Partition, args...); err != nil {
				return fmt.Errorf("load accounts: %w", err)
			}
			args = head
		}
	}
	if _, err := r.run(ctx, loadScript, call.Partition, args...); err != nil {
		return fmt.Errorf("load accounts: %w", err)
	}
	return nil
}
