package hold

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// State implements [Membership].
func (l *Local) State(_ context.Context, partitions ...int) ([]ledger.Counters, error) {
	states := make([]ledger.Counters, len(partitions))
	for i, partition := range partitions {
		if err := checkPartition(partition); err != nil {
			return nil, fmt.Errorf("read the state of counters: %w", err)
		}
		p, run := l.enter(partition)
		states[i] = p.state(partition, run)
		p.mu.Unlock()
	}
	return states, nil
}

func (c *counters) state(partition int, run string) ledger.Counters {
	s := ledger.Counters{Partition: partition}
	if c.epoch == 0 {
		return s
	}
	s.Present, s.Foreign = true, c.run != run
	s.Epoch, s.Open, s.Opened, s.Floor, s.Done = c.epoch, c.open, c.opened, c.floor, c.done
	for id, inc := range c.incarnations {
		inc.list(&s, id)
	}
	sortState(&s)
	return s
}

func (inc incarnation) list(s *ledger.Counters, id ledger.ID) {
	if inc.member {
		s.Members = append(s.Members, id)
	}
	if inc.reported {
		s.Reports = append(s.Reports, id)
	}
	if inc.dropped {
		s.Dropped = append(s.Dropped, id)
	}
}

func sortState(s *ledger.Counters) {
	for _, ids := range [][]ledger.ID{s.Members, s.Reports, s.Dropped} {
		slices.SortFunc(ids, compareIDs)
	}
}

func compareIDs(a, b ledger.ID) int { return bytes.Compare(a[:], b[:]) }

// Begin implements [Upkeep].
func (l *Local) Begin(_ context.Context, call ledger.BeginCall) (bool, error) {
	if err := checkBegin(&call); err != nil {
		return false, fmt.Errorf("begin epoch: %w", err)
	}
	p, run := l.enter(call.Partition)
	defer p.mu.Unlock()
	if p.epoch >= call.Epoch {
		return false, nil
	}
	opened := max(call.Opened, p.opened)
	if p.open {
		opened = max(opened, p.epoch)
	}
	p.counters = counters{
		epoch: call.Epoch, opened: opened, run: run, floor: call.Offset, done: call.Offset,
		accounts:     map[ledger.Account]*account{},
		incarnations: map[ledger.ID]incarnation{},
		holds:        map[ledger.ID]map[ledger.ID]*openHold{},
	}
	for _, id := range call.Gone {
		p.incarnations[id] = incarnation{dropped: true}
	}
	return true, nil
}

// rebuilding reports whether the epoch named is the one that is being rebuilt here.
func (c *counters) rebuilding(epoch uint64, run string) bool {
	return c.here(run) && !c.open && c.epoch == epoch
}

// OpenEpoch implements [Upkeep].
func (l *Local) OpenEpoch(_ context.Context, partition int, epoch uint64, floor int64) (bool, error) {
	if err := checkOpen(partition, epoch, floor); err != nil {
		return false, fmt.Errorf("open epoch: %w", err)
	}
	p, run := l.enter(partition)
	defer p.mu.Unlock()
	if !p.rebuilding(epoch, run) {
		return false, nil
	}
	p.floor, p.open = max(p.floor, floor), true
	return true, nil
}

// Reassert implements [Membership].
func (l *Local) Reassert(_ context.Context, partition int, epoch uint64, inc ledger.ID, holds []ledger.OpenHold) (bool, error) {
	if err := checkReassert(partition, epoch, inc, holds); err != nil {
		return false, fmt.Errorf("re-assert holds: %w", err)
	}
	p, run := l.enter(partition)
	defer p.mu.Unlock()
	if !p.rebuilding(epoch, run) || p.incarnations[inc].dropped {
		return false, nil
	}
	p.join(inc)
	for _, h := range holds {
		if p.holds[inc][h.Hold] == nil {
			p.hold(inc, h.Hold, openHold{h.User, h.Token, h.Amount})
		}
	}
	return true, nil
}

// Report implements [Membership].
func (l *Local) Report(_ context.Context, partition int, epoch uint64, incarnations ...ledger.ID) error {
	if err := checkEpoch(partition, epoch); err != nil {
		return fmt.Errorf("report to epoch: %w", err)
	}
	p, run := l.enter(partition)
	defer p.mu.Unlock()
	if !p.rebuilding(epoch, run) {
		return nil
	}
	for _, id := range incarnations {
		flags := p.incarnations[id]
		flags.reported = true
		p.incarnations[id] = flags
	}
	return nil
}

// Apply implements [Upkeep].
func (l *Local) Apply(_ context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error) {
	sums, err := checkApply(&call)
	if err != nil {
		return ledger.ApplyReply{}, fmt.Errorf("apply sums: %w", err)
	}
	p, run := l.enter(call.Partition)
	defer p.mu.Unlock()
	if !p.here(run) {
		return ledger.ApplyReply{Done: -1}, nil
	}
	if p.done != call.From {
		p.floor = max(p.floor, call.To)
		return ledger.ApplyReply{Done: p.done}, nil
	}
	if split := p.split(&call, sums); split != 0 {
		return ledger.ApplyReply{Done: p.done, SplitAt: split}, nil
	}
	for _, sum := range sums {
		if acc := p.accounts[sum.Account]; acc != nil && acc.at >= 0 && acc.at <= call.From {
			acc.granted += sum.Granted
			acc.charged += sum.Charged
		}
		if call.Epoch == p.epoch && sum.Settled != 0 {
			p.account(sum.Account).settled -= sum.Settled
		}
	}
	p.floor, p.done = max(p.floor, call.To), call.To
	return ledger.ApplyReply{Done: p.done}, nil
}

// split returns the lowest offset within the range at which one of its accounts was loaded, or 0.
func (c *counters) split(call *ledger.ApplyCall, sums []ledger.Sum) (lowest int64) {
	for _, sum := range sums {
		if at := c.peek(sum.Account).at; at > call.From && at < call.To && (lowest == 0 || at < lowest) {
			lowest = at
		}
	}
	return lowest
}

// Drop implements [Upkeep].
func (l *Local) Drop(_ context.Context, partition int, inc ledger.ID) error {
	if err := checkPartition(partition); err != nil {
		return fmt.Errorf("drop incarnation: %w", err)
	}
	p, run := l.enter(partition)
	defer p.mu.Unlock()
	if !p.here(run) {
		return nil
	}
	for id := range p.holds[inc] {
		p.release(inc, id)
	}
	flags := p.incarnations[inc]
	flags.dropped = true
	p.incarnations[inc] = flags
	return nil
}
