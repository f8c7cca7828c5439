package ledgertest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

// CountersSteps is how long one random history is.
const CountersSteps = 40

// SameCounters makes a random history of calls, sensible ones and others, on two implementations, and requires the same answer
// after every step, and now and then the same contents. The history follows from seed alone. Each history wants a
// partition of its own that holds nothing yet.
func SameCounters(t testing.TB, seed uint64, partition int, a, b Counters) {
	t.Helper()
	h := &counterHistory{rand: rand.New(rand.NewPCG(seed, 0)), partition: partition, epoch: 1}
	var told []string
	for n := range CountersSteps {
		name, step := h.next()
		told = append(told, name)
		inA, inB := step(t.Context(), a), step(t.Context(), b)
		if inA == inB && n%8 == 7 {
			inA, inB = dumpCounters(t, a, partition), dumpCounters(t, b, partition)
		}
		if diff := cmp.Diff(inA, inB); diff != "" {
			t.Fatalf("seed %d, step %d: the two differ (-first +second):\n%s\nthe history:\n%s", seed, n, diff, strings.Join(told, "\n"))
		}
		checkHolds(t, a, partition, func() string { return fmt.Sprintf("seed %d:\n%s", seed, strings.Join(told, "\n")) })
	}
}

// counterHistory draws calls from small sets of names, so that they meet.
type counterHistory struct {
	rand      *rand.Rand
	partition int
	epoch     uint64
	offset    int64
}

type counterStep func(context.Context, Counters) string

func answer(v any, err error) string {
	if err != nil {
		return "error" // the words may differ
	}
	return fmt.Sprintf("%+v", v)
}

func (h *counterHistory) inc() ledger.ID { return counterID('a', h.rand.IntN(3)) }

func (h *counterHistory) hold() ledger.ID { return counterID('h', h.rand.IntN(8)) }

func (h *counterHistory) account() ledger.Account {
	kind := []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount}[h.rand.IntN(2)]
	return ledger.Account{Kind: kind, ID: int64(h.rand.IntN(2) + 1)}
}

// near returns the current epoch, mostly.
func (h *counterHistory) near() uint64 {
	if h.rand.IntN(20) == 0 {
		return h.epoch + uint64(h.rand.IntN(3)) - 1
	}
	return h.epoch
}

func (h *counterHistory) units() int64 {
	if h.rand.IntN(30) == 0 {
		return []int64{1<<53 - 1, 1 << 53, 1 << 62, -1 << 62, -1}[h.rand.IntN(5)]
	}
	return h.rand.Int64N(12)
}

func (h *counterHistory) next() (string, counterStep) {
	weights := []struct {
		weight int
		make   func() (string, counterStep)
	}{
		{30, h.reserve},
		{10, h.extend},
		{20, h.release},
		{12, h.load},
		{12, h.apply},
		{4, h.begin},
		{6, h.open},
		{5, h.reassert},
		{3, h.report},
		{1, h.drop},
		{6, h.read},
	}
	total := 0
	for _, w := range weights {
		total += w.weight
	}
	n := h.rand.IntN(total)
	for _, w := range weights {
		if n < w.weight {
			return w.make()
		}
		n -= w.weight
	}
	panic("weights do not add up")
}

func (h *counterHistory) reserve() (string, counterStep) {
	call := ledger.ReserveCall{
		Hold: h.hold(), Incarnation: h.inc(), Partition: h.partition, Epoch: h.near(),
		User: int64(h.rand.IntN(2) + 1), Token: int64(h.rand.IntN(3)), Min: h.rand.Int64N(4), Want: h.units(),
	}
	return fmt.Sprintf("reserve %+v", call), func(ctx context.Context, c Counters) string { return answer(c.Reserve(ctx, call)) }
}

func (h *counterHistory) extend() (string, counterStep) {
	call := ledger.ExtendCall{
		Hold: h.hold(), Incarnation: h.inc(), Partition: h.partition, Epoch: h.near(), To: h.units(),
	}
	return fmt.Sprintf("extend %+v", call), func(ctx context.Context, c Counters) string { return answer(c.Extend(ctx, call)) }
}

func (h *counterHistory) release() (string, counterStep) {
	calls := make([]ledger.ReleaseCall, h.rand.IntN(4))
	for i := range calls {
		calls[i] = ledger.ReleaseCall{
			Hold: h.hold(), Incarnation: h.inc(), Partition: h.partition, Epoch: h.near(), Charge: h.units() - 2,
		}
	}
	return fmt.Sprintf("release %+v", calls), func(ctx context.Context, c Counters) string { return answer(0, c.Release(ctx, calls)) }
}

func (h *counterHistory) load() (string, counterStep) {
	call := ledger.LoadCall{
		Partition: h.partition, Epoch: h.near(), Offset: max(0, h.offset+h.rand.Int64N(8)-2), Balances: map[ledger.Account]ledger.Balance{},
	}
	for range h.rand.IntN(4) {
		call.Balances[h.account()] = ledger.Balance{Granted: 3 * h.units(), Charged: h.units()}
	}
	return fmt.Sprintf("load %+v", call), func(ctx context.Context, c Counters) string { return answer(0, c.Load(ctx, call)) }
}

func (h *counterHistory) apply() (string, counterStep) {
	call := ledger.ApplyCall{Partition: h.partition, Epoch: h.near(), From: h.offset}
	if h.rand.IntN(8) == 0 {
		call.From = max(0, h.offset+h.rand.Int64N(5)-2)
	}
	call.To = call.From + h.rand.Int64N(6)
	for range h.rand.IntN(4) {
		sum := ledger.Sum{Account: h.account(), Granted: h.units() - 2, Charged: h.units(), Settled: h.units() - 3}
		if h.rand.IntN(8) == 0 {
			sum.Account.Kind = ledger.ChannelAccount
		}
		call.Sums = append(call.Sums, sum)
	}
	return fmt.Sprintf("apply %+v", call), func(ctx context.Context, c Counters) string {
		reply, err := c.Apply(ctx, call)
		if err == nil && reply.Done > h.offset {
			h.offset = reply.Done
		}
		return answer(reply, err)
	}
}

func (h *counterHistory) begin() (string, counterStep) {
	epoch, offset := h.near(), max(0, h.offset-h.rand.Int64N(3))
	if h.rand.IntN(4) > 0 || h.epoch == 1 {
		h.epoch++
		epoch, h.offset = h.epoch, offset
	}
	call := ledger.BeginCall{Partition: h.partition, Epoch: epoch, Opened: epoch - min(epoch, uint64(1+h.rand.IntN(6))), Offset: offset}
	return fmt.Sprintf("begin %+v", call), func(ctx context.Context, c Counters) string {
		return answer(c.Begin(ctx, call))
	}
}

func (h *counterHistory) open() (string, counterStep) {
	epoch, floor := h.near(), h.offset+h.rand.Int64N(3)
	return fmt.Sprintf("open %d at %d", epoch, floor), func(ctx context.Context, c Counters) string {
		return answer(c.OpenEpoch(ctx, h.partition, epoch, floor))
	}
}

func (h *counterHistory) reassert() (string, counterStep) {
	epoch, inc := h.near(), h.inc()
	holds := make([]ledger.OpenHold, h.rand.IntN(3))
	for i := range holds {
		holds[i] = ledger.OpenHold{
			Hold: h.hold(), Incarnation: inc, User: int64(h.rand.IntN(2) + 1), Token: int64(h.rand.IntN(3)), Amount: h.rand.Int64N(9),
		}
	}
	return fmt.Sprintf("re-assert %d %v %+v", epoch, inc, holds), func(ctx context.Context, c Counters) string {
		return answer(c.Reassert(ctx, h.partition, epoch, inc, holds))
	}
}

func (h *counterHistory) report() (string, counterStep) {
	epoch, incs := h.near(), []ledger.ID{h.inc(), h.inc()}[:h.rand.IntN(3)]
	return fmt.Sprintf("report %d %v", epoch, incs), func(ctx context.Context, c Counters) string {
		return answer(0, c.Report(ctx, h.partition, epoch, incs...))
	}
}

func (h *counterHistory) drop() (string, counterStep) {
	inc := h.inc()
	return fmt.Sprintf("drop %v", inc), func(ctx context.Context, c Counters) string {
		return answer(0, c.Drop(ctx, h.partition, inc))
	}
}

func (h *counterHistory) read() (string, counterStep) {
	inc, accounts := h.inc(), []ledger.Account{h.account(), h.account()}
	return fmt.Sprintf("read holds of %v and accounts %v", inc, accounts), func(ctx context.Context, c Counters) string {
		return answer(c.Holds(ctx, h.partition, inc)) + answer(c.Accounts(ctx, h.partition, accounts)) + answer(c.State(ctx, h.partition))
	}
}

// dumpCounters tells all that a partition's counters contain, as text.
func dumpCounters(t testing.TB, c Counters, partition int) string {
	t.Helper()
	states, err := c.State(t.Context(), partition)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = c.All(t.Context(), partition, func(a ledger.HotAccount) error {
		lines = append(lines, fmt.Sprintf("%+v", a))
		return nil
	}, func(h ledger.OpenHold) error {
		lines = append(lines, fmt.Sprintf("%+v", h))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return fmt.Sprintf("%+v\n", states[0]) + strings.Join(slices.Compact(lines), "\n")
}

// checkHolds requires that every account holds exactly what its open holds add up to.
func checkHolds(t testing.TB, c Counters, partition int, story func() string) {
	t.Helper()
	held, open := map[ledger.Account]int64{}, map[ledger.Account]int64{}
	err := c.All(t.Context(), partition, func(a ledger.HotAccount) error {
		held[a.Account] -= a.Held
		open[a.Account] -= a.OpenHolds
		return nil
	}, func(h ledger.OpenHold) error {
		for _, a := range []ledger.Account{{Kind: ledger.UserAccount, ID: h.User}, {Kind: ledger.TokenAccount, ID: h.Token}} {
			if a.ID != 0 {
				held[a] += h.Amount
				open[a]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for a := range maps.Keys(held) {
		if held[a] != 0 || open[a] != 0 {
			t.Fatalf("%s: the open holds add up to %d units and %d holds more than the account has\n%s", a, held[a], open[a], story())
		}
	}
}
