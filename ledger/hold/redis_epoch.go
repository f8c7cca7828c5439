package hold

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"ledgerline/ledger"
)

// State implements [Membership]. Nodes and consumers ask several times a second, so a server is asked once for all of its partitions:
// those of one call, and those of calls that come at about the same time. A cluster is asked for each, since its partitions lie in
// different slots: in one pipeline for those of one call, and by itself for other calls, which must not wait for a server that
// has nothing to do with them.
func (r *Redis) State(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	calls := make([]*call, len(partitions))
	for i, partition := range partitions {
		if err := checkPartition(partition); err != nil {
			return nil, fmt.Errorf("read the state of counters: %w", err)
		}
		calls[i] = &call{partition: partition}
	}
	if len(calls) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ControlTimeout)
	defer cancel()
	if r.cluster {
		r.look(ctx, calls)
	} else if err := r.share(ctx, calls); err != nil {
		return nil, fmt.Errorf("read the state of counters: %w", err)
	}
	states := make([]ledger.Counters, len(partitions))
	for i, c := range calls {
		err := c.err
		if err == nil {
			states[i], err = decodeState(c.partition, c.state)
		}
		if err != nil {
			return nil, fmt.Errorf("read the state of counters of partition %d: %w", c.partition, err)
		}
	}
	return states, nil
}

// share has calls answered by a trip that may be others', too. Who makes it is bound to it for as long as a hanging server takes, and
// a node that looks must be able to do its other duties: so that is a goroutine of its own, which ends with the trip.
func (r *Redis) share(ctx context.Context, calls []*call) error {
	done := make(chan error, 1)
	go func() { done <- r.looks.do(ctx, calls...) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for redis: %w", context.Cause(ctx)) // the calls are not ours any more
	}
}

// look makes one trip for the states of all partitions that are asked for.
func (r *Redis) look(ctx context.Context, calls []*call) {
	var requests []*request
	for _, c := range calls {
		if len(requests) == 0 || r.cluster {
			requests = append(requests, &request{})
		}
		q := requests[len(requests)-1]
		q.partitions = append(q.partitions, c.partition)
	}
	r.exec(ctx, ControlTimeout, stateScript, requests)
	for _, q := range requests {
		for i := range q.partitions {
			calls[i].state, calls[i].err = q.stateReply(i)
		}
		calls = calls[len(q.partitions):]
	}
}

// stateReply returns the reply to the i-th key of a request of stateScript.
func (q *request) stateReply(i int) ([]any, error) {
	if q.err != nil {
		return nil, q.err
	}
	if i < len(q.reply) {
		if reply, ok := q.reply[i].([]any); ok {
			return reply, nil
		}
	}
	return nil, errNoReply
}

func decodeState(partition int, reply []any) (ledger.Counters, error) {
	s := ledger.Counters{Partition: partition}
	if len(reply) == 0 {
		return s, nil
	}
	var numbers [6]int64 // epoch, open, opened, floor, done, foreign
	for i := range numbers {
		n, err := readInt(reply, i)
		if err != nil {
			return s, err
		}
		numbers[i] = n
	}
	s.Present, s.Epoch, s.Open, s.Opened = true, uint64(numbers[0]), numbers[1] == 1, uint64(numbers[2])
	s.Floor, s.Done, s.Foreign = numbers[3], numbers[4], numbers[5] == 1
	for i := len(numbers); i+1 < len(reply); i += 2 {
		name, err := readText(reply, i)
		if err != nil {
			return s, err
		}
		flags, err := readText(reply, i+1)
		if err != nil {
			return s, err
		}
		id, err := ledger.ParseID(name)
		if err != nil {
			return s, fmt.Errorf("incarnation %q: %w", name, errBadRecord)
		}
		incarnation{strings.Contains(flags, "m"), strings.Contains(flags, "r"), strings.Contains(flags, "d")}.list(&s, id)
	}
	sortState(&s)
	return s, nil
}

// Begin implements [Upkeep].
func (r *Redis) Begin(ctx context.Context, call ledger.BeginCall) (bool, error) {
	err := checkBegin(&call)
	if err == nil {
		args := []any{call.Epoch, call.Opened, call.Offset}
		for _, id := range call.Gone {
			args = append(args, id.String())
		}
		var ok bool
		if ok, err = r.yes(ctx, beginScript, call.Partition, args...); err == nil {
			return ok, nil
		}
	}
	return false, fmt.Errorf("begin epoch: %w", err)
}

// OpenEpoch implements [Upkeep].
func (r *Redis) OpenEpoch(ctx context.Context, partition int, epoch uint64, floor int64) (bool, error) {
	err := checkOpen(partition, epoch, floor)
	if err == nil {
		var ok bool
		if ok, err = r.yes(ctx, openScript, partition, epoch, floor); err == nil {
			return ok, nil
		}
	}
	return false, fmt.Errorf("open epoch: %w", err)
}

// Reassert implements [Membership]. More than a few thousand holds are sent in parts; it is accepted if all of them were.
func (r *Redis) Reassert(ctx context.Context, partition int, epoch uint64, inc ledger.ID, holds []ledger.OpenHold) (bool, error) {
	if err := checkReassert(partition, epoch, inc, holds); err != nil {
		return false, fmt.Errorf("re-assert holds: %w", err)
	}
	for {
		part := holds[:min(len(holds), maxPerScript)]
		args := make([]any, 0, 2+2*len(part))
		args = append(args, epoch, inc.String())
		for i := range part {
			args = append(args, part[i].Hold[:], encodeHold(&part[i]))
		}
		accepted, err := r.yes(ctx, reassertScript, partition, args...)
		if err != nil {
			return false, fmt.Errorf("re-assert holds: %w", err)
		}
		if holds = holds[len(part):]; !accepted || len(holds) == 0 {
			return accepted, nil
		}
	}
}

// Report implements [Membership].
func (r *Redis) Report(ctx context.Context, partition int, epoch uint64, incarnations ...ledger.ID) error {
	if err := checkEpoch(partition, epoch); err != nil {
		return fmt.Errorf("report to epoch: %w", err)
	}
	for part := range slices.Chunk(incarnations, maxPerScript) {
		args := []any{epoch}
		for _, id := range part {
			args = append(args, id.String())
		}
		if _, err := r.run(ctx, reportScript, partition, args...); err != nil {
			return fmt.Errorf("report to epoch: %w", err)
		}
	}
	return nil
}

// Apply implements [Upkeep].
func (r *Redis) Apply(ctx context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error) {
	sums, err := checkApply(&call)
	if err != nil {
		return ledger.ApplyReply{}, fmt.Errorf("apply sums: %w", err)
	}
	const usual = 36 // bytes of one packed sum
	packed := make([]byte, 0, usual*len(sums))
	for i := range sums {
		packed = appendSum(packed, &sums[i])
	}
	reply, err := r.run(ctx, applyScript, call.Partition, call.Epoch, call.From, call.To, packed)
	if err != nil {
		return ledger.ApplyReply{}, fmt.Errorf("apply sums: %w", err)
	}
	done, err := readInt(reply, 0)
	if err != nil {
		return ledger.ApplyReply{}, fmt.Errorf("apply sums: %w", err)
	}
	split, err := readInt(reply, 1)
	if err != nil {
		return ledger.ApplyReply{}, fmt.Errorf("apply sums: %w", err)
	}
	return ledger.ApplyReply{Done: done, SplitAt: split}, nil
}

// Drop implements [Upkeep].
func (r *Redis) Drop(ctx context.Context, partition int, inc ledger.ID) error {
	err := checkPartition(partition)
	if err == nil {
		_, err = r.run(ctx, dropScript, partition, inc.String())
	}
	if err != nil {
		return fmt.Errorf("drop incarnation: %w", err)
	}
	return nil
}
