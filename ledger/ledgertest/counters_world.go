package ledgertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ledgerline/ledger"
)

// CountersWorld drives an implementation as one node and one consumer would: requests reserve, extend, settle and void; their
// events go to a log, from there to a database and, after it, to the counters; credits come; accounts are loaded from the
// database; epochs end and are rebuilt; answers and releases are lost and repeated.
//
// It asserts, against the log and the holds that callers were granted and not against what the counters say of themselves,
// that nobody overspends (L3), and that granted and charged are what the log adds up to (L4).
func CountersWorld(t testing.TB, seed uint64, partition int, c Counters) {
	t.Helper()
	w := &counterWorld{
		TB: t, c: c, rand: rand.New(rand.NewPCG(seed, 1)), partition: partition,
		seed: seed, excess: map[ledger.Account]int64{}, open: map[ledger.ID]*worldHold{},
	}
	for _, a := range worldAccounts {
		w.log = append(w.log, worldEvent{sums: []ledger.Sum{{Account: a, Granted: map[ledger.AccountKind]int64{ledger.UserAccount: 40, ledger.TokenAccount: 25}[a.Kind]}}})
	}
	const steps = 300
	for range steps {
		w.step()
		w.check()
	}
	w.drain()
}

var worldAccounts = []ledger.Account{userU, tokenT, tokenT2}

type worldHold struct {
	token, amount int64
	epoch         uint64
}

type worldEvent struct {
	sums  []ledger.Sum // of one account each
	epoch uint64
}

type counterWorld struct {
	testing.TB
	c         Counters
	rand      *rand.Rand
	seed      uint64
	partition int
	epoch     uint64
	ids       int

	log    []worldEvent // the event log
	mysql  int64        // the database has everything below
	open   map[ledger.ID]*worldHold
	later  []ledger.ReleaseCall // releases on their way
	excess map[ledger.Account]int64
	story  []string
}

func (w *counterWorld) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

func (w *counterWorld) fail(format string, args ...any) {
	w.Helper()
	w.Fatalf("seed %d: %s\n%s", w.seed, fmt.Sprintf(format, args...), strings.Join(w.story, "\n"))
}

func (w *counterWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.fail("%v", err)
	}
}

func (w *counterWorld) step() {
	steps := []struct {
		weight int
		do     func()
	}{
		{12, w.reserve},
		{3, w.extend},
		{8, w.finish},
		{8, w.release},
		{2, w.commit},
		{6, w.apply},
		{1, w.credit},
		{1, w.rebuild},
	}
	n := w.rand.IntN(41)
	for _, s := range steps {
		if n < s.weight {
			s.do()
			return
		}
		n -= s.weight
	}
}

func (w *counterWorld) reserve() {
	w.ids++
	call := ledger.ReserveCall{
		Hold: counterID('h', w.ids), Incarnation: incA, Partition: w.partition, Epoch: w.epoch, User: userU.ID,
		Token: []int64{0, tokenT.ID, tokenT2.ID}[w.rand.IntN(3)], Min: 1, Want: 1 + w.rand.Int64N(9),
	}
	reply, err := w.c.Reserve(w.Context(), call)
	w.must(err)
	w.tell("reserve %d for token %d: %+v", call.Want, call.Token, reply)
	switch reply.Outcome {
	case ledger.OutcomeGranted:
		if w.rand.IntN(10) == 0 { // the answer is lost, and the same call comes again or is given up
			again, err := w.c.Reserve(w.Context(), call)
			w.must(err)
			if again.Amount != reply.Amount {
				w.fail("a repeated reserve was answered %+v", again)
			}
		}
		w.open[call.Hold] = &worldHold{call.Token, reply.Amount, w.epoch}
	case ledger.OutcomeNeedLoad:
		w.load()
	case ledger.OutcomeRefused, ledger.OutcomeBusy, ledger.OutcomeRebuilding, ledger.OutcomeGone:
	}
}

// load reads a snapshot of the database, of all accounts or some. It may be late.
func (w *counterWorld) load() {
	offset := max(0, w.mysql-w.rand.Int64N(3))
	balances := map[ledger.Account]ledger.Balance{}
	for _, a := range worldAccounts[w.rand.IntN(len(worldAccounts)):] {
		balances[a] = w.fold(a, offset)
	}
	w.tell("load %v at %d", balances, offset)
	w.must(w.c.Load(w.Context(), ledger.LoadCall{Partition: w.partition, Epoch: w.epoch, Offset: offset, Balances: balances}))
}

func (w *counterWorld) fold(a ledger.Account, to int64) (b ledger.Balance) {
	for _, ev := range w.log[:to] {
		for _, s := range ev.sums {
			if s.Account == a {
				b = b.Plus(ledger.Balance{Granted: s.Granted, Charged: s.Charged})
			}
		}
	}
	return b
}

// anyHold draws one of the open holds.
func (w *counterWorld) anyHold() (ledger.ID, *worldHold) {
	ids := make([]ledger.ID, 0, len(w.open))
	for id := range w.open {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return ledger.ID{}, nil
	}
	slices.SortFunc(ids, func(a, b ledger.ID) int { return slices.Compare(a[:], b[:]) })
	id := ids[w.rand.IntN(len(ids))]
	return id, w.open[id]
}

func (w *counterWorld) extend() {
	id, hold := w.anyHold()
	if hold == nil {
		return
	}
	reply, err := w.c.Extend(w.Context(), ledger.ExtendCall{
		Hold: id, Incarnation: incA, Partition: w.partition, Epoch: w.epoch, To: hold.amount + w.rand.Int64N(4),
	})
	w.must(err)
	w.tell("extend a hold of %d: %+v", hold.amount, reply)
	if reply.Outcome == ledger.OutcomeGranted {
		hold.amount = reply.Amount
	}
}

// finish voids a hold or bills it, now and then for one unit more than it was.
func (w *counterWorld) finish() {
	id, hold := w.anyHold()
	if hold == nil {
		return
	}
	delete(w.open, id)
	call := ledger.ReleaseCall{Hold: id, Incarnation: incA, Partition: w.partition, Epoch: hold.epoch, Charge: -1}
	if w.rand.IntN(4) > 0 {
		call.Charge = w.rand.Int64N(hold.amount + 1)
		if w.rand.IntN(10) == 0 {
			call.Charge = hold.amount + 1
		}
		ev := worldEvent{epoch: hold.epoch}
		for _, a := range worldAccounts {
			if a == userU || a.ID == hold.token {
				ev.sums = append(ev.sums, ledger.Sum{Account: a, Charged: call.Charge, Settled: call.Charge})
				w.excess[a] += max(0, call.Charge-hold.amount)
			}
		}
		w.log = append(w.log, ev)
	}
	w.tell("finish a hold of %d at %d", hold.amount, call.Charge)
	w.later = append(w.later, call)
}

func (w *counterWorld) release() {
	if len(w.later) == 0 {
		return
	}
	n := w.rand.IntN(len(w.later))
	w.must(w.c.Release(w.Context(), w.later[n:n+1]))
	w.tell("release at %d", w.later[n].Charge)
	if w.rand.IntN(10) > 0 {
		w.later = slices.Delete(w.later, n, n+1)
	}
}

func (w *counterWorld) commit() { w.mysql += w.rand.Int64N(int64(len(w.log)) - w.mysql + 1) }

func (w *counterWorld) credit() {
	a := worldAccounts[w.rand.IntN(len(worldAccounts))]
	w.tell("credit %s", a)
	w.log = append(w.log, worldEvent{sums: []ledger.Sum{{Account: a, Granted: 8}}})
}

// apply brings the counters forward, in halves where that is asked for.
func (w *counterWorld) apply() {
	states, err := w.c.State(w.Context(), w.partition)
	w.must(err)
	if done := states[0].Done; states[0].Present && done < w.mysql {
		w.applyRange(done, done+1+w.rand.Int64N(w.mysql-done))
	}
}

func (w *counterWorld) applyRange(from, to int64) {
	sums := map[ledger.Account]ledger.Sum{}
	for _, ev := range w.log[from:to] {
		for _, s := range ev.sums {
			if ev.epoch != w.epoch {
				s.Settled = 0
			}
			sum := sums[s.Account]
			sums[s.Account] = ledger.Sum{
				Account: s.Account, Granted: sum.Granted + s.Granted, Charged: sum.Charged + s.Charged, Settled: sum.Settled + s.Settled,
			}
		}
	}
	call := ledger.ApplyCall{Partition: w.partition, Epoch: w.epoch, From: from, To: to}
	for _, a := range worldAccounts {
		if sum, ok := sums[a]; ok {
			call.Sums = append(call.Sums, sum)
		}
	}
	reply, err := w.c.Apply(w.Context(), call)
	w.must(err)
	w.tell("apply %+v: %+v", call, reply)
	switch {
	case reply.SplitAt > from && reply.SplitAt < to && reply.Done == from:
		w.applyRange(from, reply.SplitAt)
		w.applyRange(reply.SplitAt, to)
	case reply.SplitAt != 0 || reply.Done != to:
		w.fail("apply of %d to %d was answered %+v", from, to, reply)
	}
}

// rebuild begins an epoch, takes the open holds over, and opens it at the end of the log.
func (w *counterWorld) rebuild() {
	w.epoch++
	ok, err := w.c.Begin(w.Context(), ledger.BeginCall{Partition: w.partition, Epoch: w.epoch, Offset: w.mysql})
	w.must(err)
	if !ok {
		w.fail("epoch %d did not begin", w.epoch)
	}
	holds := make([]ledger.OpenHold, 0, len(w.open))
	for id, h := range w.open {
		h.epoch = w.epoch
		holds = append(holds, ledger.OpenHold{Hold: id, Incarnation: incA, User: userU.ID, Token: h.token, Amount: h.amount})
	}
	accepted, err := w.c.Reassert(w.Context(), w.partition, w.epoch, incA, holds)
	w.must(err)
	w.must(w.c.Report(w.Context(), w.partition, w.epoch, incA))
	opened, err := w.c.OpenEpoch(w.Context(), w.partition, w.epoch, int64(len(w.log)))
	w.must(err)
	if !accepted || !opened {
		w.fail("epoch %d: holds accepted %v, opened %v", w.epoch, accepted, opened)
	}
	w.tell("epoch %d, %d holds, floor %d", w.epoch, len(holds), len(w.log))
}

func (w *counterWorld) check() {
	end := int64(len(w.log))
	for _, a := range worldAccounts {
		b := w.fold(a, end)
		used := b.Charged - w.excess[a]
		for _, h := range w.open {
			if a == userU || a.ID == h.token {
				used += h.amount
			}
		}
		if used > b.Granted {
			w.fail("%s: %d charged and held of %d", a, used, b.Granted)
		}
	}
	list, err := w.c.Accounts(w.Context(), w.partition, worldAccounts)
	w.must(err)
	for _, a := range list {
		if !a.Loaded {
			continue
		}
		if b := w.fold(a.Account, max(a.At, a.Done)); a.Granted != b.Granted || a.Charged != b.Charged {
			w.fail("%s has granted %d and charged %d at %d, the log says %+v", a.Account, a.Granted, a.Charged, max(a.At, a.Done), b)
		}
	}
	checkHolds(w, w.c, w.partition, func() string { return strings.Join(w.story, "\n") })
}

// drain lets everything arrive: then nothing is settled or held any more.
func (w *counterWorld) drain() {
	for len(w.open) > 0 {
		w.finish()
	}
	w.must(w.c.Release(w.Context(), w.later))
	w.mysql = int64(len(w.log))
	if states, err := w.c.State(w.Context(), w.partition); err != nil || !states[0].Present {
		w.must(err)
		w.rebuild()
	}
	for {
		states, err := w.c.State(w.Context(), w.partition)
		w.must(err)
		if states[0].Done == w.mysql {
			break
		}
		w.apply()
	}
	w.check()
	err := w.c.All(w.Context(), w.partition, func(a ledger.HotAccount) error {
		if a.Settled != 0 || a.Held != 0 || a.OpenHolds != 0 {
			return fmt.Errorf("in the end %s is %+v", a.Account, a)
		}
		return nil
	}, func(ledger.OpenHold) error { return errors.New("a hold is left in the end") })
	if err != nil {
		w.fail("%v", err)
	}
}
