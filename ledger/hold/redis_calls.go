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

func newCall(partition int, packed *packedCall) *call {
	const usual = 128 // bytes of one packed call
	return &call{partition: partition, packed: packed.append(make([]byte, 0, usual)), done: make(chan struct{})}
}

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

func (r *Redis) sendWithin(ctx context.Context, patience time.Duration, calls ...*call) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if !r.cluster || len(calls) == 1 {
		return r.way(calls[0].partition).doWithin(ctx, patience, calls...)
	}
	by := map[int][]*call{}
	for _, c := range calls {
		by[c.partition] = append(by[c.partition], c)
	}
	var all errgroup.Group
	for p, list := range by {
		all.Go(func() error { return r.way(p).doWithin(ctx, patience, list...) })
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
		q.args = append(q.args, n)
		for _, c := range rest[:n] {
			q.args = append(q.args, c.packed)
		}
		q.calls += n
		rest = rest[n:]
	}
	r.exec(context.Background(), TripTimeout, callsScript, requests)
	r.note(w, requests)
	for _, q := range requests {
		for n, c := range calls[:q.calls] {
			if c.err = q.err; c.err != nil {
				continue
			}
			var ok bool
			if n < len(q.reply) {
				c.reply, ok = q.reply[n].([]any)
			}
			if !ok {
				c.err = errNoReply
			}
		}
		calls = calls[q.calls:]
	}
}

// Reserve implements [Admission].
func (r *Redis) Reserve(ctx context.Context, call ledger.ReserveCall) (ledger.ReserveReply, error) {
	if err := checkReserve(&call); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	c := newCall(call.Partition, &packedCall{
		kind: callReserve, hold: call.Hold, incarnation: call.Incarnation, epoch: call.Epoch,
		x: call.Min, y: call.Want, user: call.User, token: call.Token,
	})
	if err := r.send(ctx, c); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	reply, err := decodeReply(c.reply, accountsOf(call.User, call.Token))
	if err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	return reply, nil
}

// Extend implements [Admission].
func (r *Redis) Extend(ctx context.Context, call ledger.ExtendCall) (ledger.ReserveReply, error) {
	if err := checkExtend(&call); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	c := newCall(call.Partition, &packedCall{
		kind: callExtend, hold: call.Hold, incarnation: call.Incarnation, epoch: call.Epoch, x: call.To,
	})
	if err := r.send(ctx, c); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	// The reply names the accounts of the hold after its three numbers.
	var accounts []ledger.Account
	for at := 3; at < len(c.reply); at++ {
		field, err := readText(c.reply, at)
		if err != nil {
			return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
		}
		if field == "" {
			continue
		}
		account, err := decodeField(field)
		if err != nil {
			return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
		}
		accounts = append(accounts, account)
	}
	reply, err := decodeReply(c.reply, accounts)
	if err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	return reply, nil
}

func decodeReply(reply []any, accounts []ledger.Account) (ledger.ReserveReply, error) {
	code, err := readInt(reply, 0)
	if err != nil {
		return ledger.ReserveReply{}, err
	}
	r := ledger.ReserveReply{Outcome: ledger.Outcome(code)}
	if r.Outcome == ledger.OutcomeRebuilding || r.Outcome == ledger.OutcomeGone {
		return r, nil
	}
	n, err := readInt(reply, 1)
	if err != nil {
		return ledger.ReserveReply{}, err
	}
	switch r.Outcome {
	case ledger.OutcomeGranted:
		r.Amount = n
		return r, nil
	case ledger.OutcomeNeedLoad:
		for place, a := range accounts {
			if n&(1<<place) != 0 {
				r.Missing = append(r.Missing, a)
			}
		}
		return r, nil
	case ledger.OutcomeRefused, ledger.OutcomeBusy:
		place, err := readInt(reply, 2)
		if err == nil && place >= 1 && place <= int64(len(accounts)) {
			r.Account, r.Left = accounts[place-1], n
			return r, nil
		}
	case ledger.OutcomeRebuilding, ledger.OutcomeGone:
	}
	return ledger.ReserveReply{}, fmt.Errorf("outcome %d: %w", code, errBadRecord)
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
		batch := make([]*call, n)
		for i, c := range calls[:n] {
			packed := packedCall{kind: callSettle, hold: c.Hold, incarnation: c.Incarnation, epoch: c.Epoch, x: c.Charge}
			if c.Charge < 0 {
				packed.kind, packed.x = callVoid, 0
			}
			batch[i] = newCall(c.Partition, &packed)
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
