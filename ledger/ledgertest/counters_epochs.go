package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"ledgerline/ledger"
)

func testApply(t *counterTest) {
	t.start(100, 50, 50)
	t.apply(100, 110, ledger.ApplyReply{Done: 110},
		ledger.Sum{Account: userU, Granted: 5, Charged: 3},
		ledger.Sum{Account: userV, Granted: 7},
		ledger.Sum{Account: ledger.Account{Kind: ledger.ChannelAccount, ID: 7}, Charged: 3})
	want := ledger.HotAccount{Account: userU, Loaded: true, Granted: 55, Charged: 3, At: 100, Done: 110}
	t.same("account", t.account(userU), want)
	t.same("an account that is not loaded", t.account(userV), ledger.HotAccount{Account: userV, Done: 110})
	// Loaded ahead of done: what its snapshot had already is not added.
	t.load(130, map[ledger.Account]ledger.Balance{userV: {Granted: 9, Charged: 1}})
	t.apply(110, 130, ledger.ApplyReply{Done: 130}, ledger.Sum{Account: userV, Charged: 1}, ledger.Sum{Account: userU, Charged: -2})
	t.same("account", t.account(userV), ledger.HotAccount{Account: userV, Loaded: true, Granted: 9, Charged: 1, At: 130, Done: 130})
	t.apply(130, 131, ledger.ApplyReply{Done: 131}, ledger.Sum{Account: userV, Charged: 1})
	// A repeated and a misplaced call change nothing but the floor.
	t.apply(130, 131, ledger.ApplyReply{Done: 131}, ledger.Sum{Account: userV, Charged: 1})
	t.apply(140, 150, ledger.ApplyReply{Done: 131}, ledger.Sum{Account: userV, Charged: 1})
	if s := t.state(); s.Floor != 150 || s.Done != 131 {
		t.Fatalf("floor %d, done %d; want 150, 131", s.Floor, s.Done)
	}
	t.same("account", t.account(userV), ledger.HotAccount{Account: userV, Loaded: true, Granted: 9, Charged: 2, At: 130, Done: 131})
	t.apply(131, 132, ledger.ApplyReply{Done: 132})
	if s := t.state(); s.Floor != 150 || s.Done != 132 {
		t.Fatalf("floor %d, done %d; want 150, 132", s.Floor, s.Done)
	}
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Loaded: true, Granted: 55, Charged: 1, At: 100, Done: 132})
}

func testApplySplit(t *counterTest) {
	t.start(100, 50, 50)
	t.reserve(t.call(1, 10, 10), granted(10))
	t.release(1, 10)
	t.load(104, map[ledger.Account]ledger.Balance{userV: {Granted: 9, Charged: 1}})
	t.load(102, map[ledger.Account]ledger.Balance{tokenT2: {Granted: 9}})
	sums := []ledger.Sum{
		{Account: userU, Charged: 10, Settled: 10}, {Account: userV, Charged: 1}, {Account: tokenT2, Charged: 2},
	}
	before := t.account(userU)
	t.apply(100, 110, ledger.ApplyReply{Done: 100, SplitAt: 102}, sums...)
	t.same("account", t.account(userU), before)
	if s := t.state(); s.Floor != 100 {
		t.Fatalf("floor %d, want 100", s.Floor)
	}
	t.apply(100, 102, ledger.ApplyReply{Done: 102}, sums[2]) // at its end: known already
	t.apply(102, 110, ledger.ApplyReply{Done: 102, SplitAt: 104}, sums...)
	t.apply(102, 104, ledger.ApplyReply{Done: 104}, sums[1])
	t.apply(104, 110, ledger.ApplyReply{Done: 110}, sums...)
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Loaded: true, Granted: 50, Charged: 10, At: 100, Done: 110})
	t.same("account", t.account(userV), ledger.HotAccount{Account: userV, Loaded: true, Granted: 9, Charged: 2, At: 104, Done: 110})
	t.same("account", t.account(tokenT2), ledger.HotAccount{Account: tokenT2, Loaded: true, Granted: 9, Charged: 2, At: 102, Done: 110})
}

func testApplySettled(t *counterTest) {
	t.start(100, 50, 50)
	t.reserve(t.call(1, 10, 10), granted(10))
	t.release(1, 10)
	t.epoch-- // sums of an older epoch
	t.apply(100, 101, ledger.ApplyReply{Done: 101}, ledger.Sum{Account: userU, Charged: 10, Settled: 10})
	t.epoch++
	if a := t.account(userU); a.Charged != 10 || a.Settled != 10 {
		t.Fatalf("charged %d, settled %d; want 10, 10", a.Charged, a.Settled)
	}
	t.apply(101, 102, ledger.ApplyReply{Done: 102}, ledger.Sum{Account: userU, Charged: 10, Settled: 10})
	if a := t.account(userU); a.Charged != 20 || a.Settled != 0 {
		t.Fatalf("charged %d, settled %d; want 20, 0", a.Charged, a.Settled)
	}
	// The event may come before the settle, for an account that nobody loaded, or loaded after the event.
	t.apply(102, 103, ledger.ApplyReply{Done: 103}, ledger.Sum{Account: userV, Charged: 4, Settled: 4})
	t.same("account", t.account(userV), ledger.HotAccount{Account: userV, Settled: -4, Done: 103})
	t.load(110, map[ledger.Account]ledger.Balance{tokenT2: {Granted: 9}})
	t.apply(103, 110, ledger.ApplyReply{Done: 110}, ledger.Sum{Account: tokenT2, Charged: 4, Settled: 4})
	want := ledger.HotAccount{Account: tokenT2, Loaded: true, Granted: 9, Settled: -4, At: 110, Done: 110}
	t.same("account", t.account(tokenT2), want)
}

func testApplyMany(t *counterTest) {
	t.begin(0)
	t.open(0)
	const n = 10_000
	balances := make(map[ledger.Account]ledger.Balance, n)
	sums := make([]ledger.Sum, n)
	accounts := make([]ledger.Account, n)
	for i := range n {
		a := ledger.Account{Kind: ledger.UserAccount, ID: int64(i + 1)}
		balances[a], accounts[i] = ledger.Balance{Granted: 1000}, a
		sums[i] = ledger.Sum{Account: a, Charged: int64(i), Settled: 1}
	}
	t.load(0, balances)
	t.apply(0, 5, ledger.ApplyReply{Done: 5}, sums...)
	list, err := t.c.Accounts(t.Context(), counterPartition, accounts)
	t.must(err)
	for i, a := range list {
		want := ledger.HotAccount{Account: accounts[i], Loaded: true, Granted: 1000, Charged: int64(i), Settled: -1, Done: 5}
		if a != want {
			t.Fatalf("account %+v, want %+v", a, want)
		}
	}
	seen := map[ledger.Account]bool{}
	t.must(t.c.All(t.Context(), counterPartition, func(a ledger.HotAccount) error {
		seen[a.Account] = true
		return nil
	}, func(ledger.OpenHold) error { return errors.New("a hold out of nowhere") }))
	if len(seen) != n {
		t.Fatalf("%d accounts listed of %d", len(seen), n)
	}
}

func testReassert(t *counterTest) {
	t.start(50, 100, 100)
	t.reassert(false, t.openHold(1, 10))
	t.held(userU, 0, 0)
	t.must(t.c.Report(t.Context(), counterPartition, t.epoch, incA))
	if s := t.state(); s.Reports != nil || s.Members != nil {
		t.Fatalf("an open epoch took a report or a member: %+v", s)
	}
	t.epoch++
	t.begin(50)
	unlimited := t.openHold(2, 5)
	unlimited.Token = 0
	t.reassert(true, t.openHold(1, 10), unlimited)
	t.reassert(true, t.openHold(1, 99), t.openHold(3, 1))
	t.held(userU, 16, 3)
	t.held(tokenT, 11, 2)
	accepted, err := t.c.Reassert(t.Context(), counterPartition, t.epoch, incB, nil)
	t.must(err)
	if !accepted {
		t.Fatal("an incarnation without holds was not accepted")
	}
	t.must(t.c.Report(t.Context(), counterPartition, t.epoch-1, incA))
	t.must(t.c.Report(t.Context(), counterPartition, t.epoch, incA, counterID('c', 1)))
	t.must(t.c.Report(t.Context(), counterPartition, t.epoch, incA))
	t.same("state", t.state(), ledger.Counters{
		Partition: counterPartition, Present: true, Epoch: t.epoch, Opened: t.epoch - 1, Floor: 50, Done: 50,
		Members: []ledger.ID{incA, incB}, Reports: []ledger.ID{incA, counterID('c', 1)},
	})
	holds, err := t.c.Holds(t.Context(), counterPartition, incA)
	t.must(err)
	t.same("holds", holds, []ledger.OpenHold{t.openHold(1, 10), unlimited, t.openHold(3, 1)})
	t.open(50)
	t.reassert(false, t.openHold(4, 1))
	t.release(1, 10)
	t.load(50, map[ledger.Account]ledger.Balance{userU: {Granted: 100}, tokenT: {Granted: 100}})
	want := ledger.HotAccount{Account: userU, Loaded: true, Granted: 100, Settled: 10, Held: 6, OpenHolds: 2, At: 50, Done: 50}
	t.same("account", t.account(userU), want)
	// A member by report alone becomes one by its first hold.
	reporter := t.call(6, 1, 1)
	reporter.Incarnation = counterID('c', 1)
	t.reserve(reporter, granted(1))
	if got := t.state().Members; !slices.Contains(got, reporter.Incarnation) {
		t.Fatalf("members %v without the one that just reserved", got)
	}
}

func testDrop(t *counterTest) {
	t.start(50, 100, 100)
	t.reserve(t.call(1, 10, 10), granted(10))
	t.reserve(t.call(2, 10, 10), granted(10))
	other := t.call(3, 10, 10)
	other.Incarnation = incB
	t.reserve(other, granted(10))
	t.must(t.c.Drop(t.Context(), counterPartition, incA))
	t.must(t.c.Drop(t.Context(), counterPartition, incA))
	t.held(userU, 10, 1)
	t.held(tokenT, 10, 1)
	t.reserve(t.call(4, 1, 1), outcome(ledger.OutcomeGone))
	t.reserve(t.call(1, 1, 1), outcome(ledger.OutcomeGone))
	t.extend(1, 20, outcome(ledger.OutcomeGone))
	t.release(1, 5)
	if a := t.account(userU); a.Settled != 0 {
		t.Fatalf("a dropped hold was settled at %d", a.Settled)
	}
	s := t.state()
	t.same("tombstones", s.Dropped, []ledger.ID{incA})
	t.same("members", s.Members, []ledger.ID{incA, incB})
	t.epoch++
	t.begin(50)
	t.same("tombstones of a new epoch", t.state().Dropped, []ledger.ID(nil))
	t.must(t.c.Drop(t.Context(), counterPartition, incA))
	t.reassert(false, t.openHold(1, 1))
	t.held(userU, 0, 0)
}

// testBeginWithout: one that was given up and does not know it keeps out of the epoch that was begun to be rid of it.
func testBeginWithout(t *counterTest) {
	t.start(50, 100, 100)
	t.reserve(t.call(1, 10, 10), granted(10))
	t.epoch++
	ok, err := t.c.Begin(t.Context(), ledger.BeginCall{Partition: counterPartition, Epoch: t.epoch, Offset: 60, Gone: []ledger.ID{incA}})
	t.must(err)
	if !ok {
		t.Fatal("the epoch did not begin")
	}
	t.reassert(false, t.openHold(1, 10))
	s := t.state()
	t.same("members", s.Members, []ledger.ID(nil))
	t.same("tombstones", s.Dropped, []ledger.ID{incA})
	t.open(60)
	t.load(60, map[ledger.Account]ledger.Balance{userU: {Granted: 100}, tokenT: {Granted: 100}})
	t.reserve(t.call(2, 1, 1), outcome(ledger.OutcomeGone))
	other := t.call(3, 10, 10)
	other.Incarnation = incB
	t.reserve(other, granted(10))
	t.held(userU, 10, 1)
}

func testExact(t *counterTest) {
	const big, maxUnits = int64(1) << 62, int64(1)<<53 - 1
	t.start(0, big+3, -big-5)
	t.same("account", t.account(tokenT).Granted, -big-5)
	user := t.call(1, 1, maxUnits)
	user.Token = 0
	t.reserve(user, granted(maxUnits))
	t.reserve(t.call(2, 1, 1), inTheWay(ledger.OutcomeRefused, tokenT, -maxUnits))
	t.apply(0, 1, ledger.ApplyReply{Done: 1}, ledger.Sum{Account: userU, Granted: -1, Charged: big - maxUnits - 9}, ledger.Sum{Account: tokenT, Granted: math.MaxInt64, Charged: -2})
	if a := t.account(userU); a.Granted != big+2 || a.Charged != big-maxUnits-9 || a.Held != maxUnits {
		t.Fatalf("user %+v", a)
	}
	if a := t.account(tokenT); a.Granted != big-6 || a.Charged != -2 {
		t.Fatalf("token %+v", a)
	}
	t.reserve(func() ledger.ReserveCall { c := t.call(3, 12, 12); c.Token = 0; return c }(), inTheWay(ledger.OutcomeBusy, userU, 11))
	t.reserve(t.call(3, 11, 11), granted(11))
	t.must(t.c.Release(t.Context(), []ledger.ReleaseCall{t.releaseCall(1, big), t.releaseCall(3, 11)}))
	if a := t.account(userU); a.Settled != big+11 || a.Held != 0 {
		t.Fatalf("user %+v", a)
	}
	t.apply(1, 2, ledger.ApplyReply{Done: 2}, ledger.Sum{Account: userU, Charged: -big, Settled: big + 12})
	if a := t.account(userU); a.Settled != -1 || a.Charged != -maxUnits-9 {
		t.Fatalf("user %+v", a)
	}
}

func testAll(t *counterTest) {
	t.start(5, 100, 100)
	t.reserve(t.call(1, 10, 10), granted(10))
	other := t.call(2, 10, 10)
	other.Incarnation, other.Token = incB, 0
	t.reserve(other, granted(10))
	accounts, holds := t.dump()
	t.same("accounts", accounts, map[ledger.Account]ledger.HotAccount{
		userU:  {Account: userU, Loaded: true, Granted: 100, Held: 20, OpenHolds: 2, At: 5, Done: 5},
		tokenT: {Account: tokenT, Loaded: true, Granted: 100, Held: 10, OpenHolds: 1, At: 5, Done: 5},
	})
	second := ledger.OpenHold{Hold: counterID('h', 2), Incarnation: incB, User: userU.ID, Amount: 10}
	t.same("holds", holds, map[ledger.ID]ledger.OpenHold{counterID('h', 1): t.openHold(1, 10), second.Hold: second})
	stop := errors.New("stop")
	err := t.c.All(t.Context(), counterPartition, func(ledger.HotAccount) error { return stop }, func(ledger.OpenHold) error { return nil })
	if !errors.Is(err, stop) {
		t.Fatalf("All returned %v, not the error of its callback", err)
	}
	err = t.c.All(t.Context(), counterPartition, func(ledger.HotAccount) error { return nil }, func(ledger.OpenHold) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatalf("All returned %v, not the error of its callback", err)
	}
}

func testNonsense(t *counterTest) {
	t.start(0, 100, 100)
	ctx := t.Context()
	bad := func(what string, change func(*ledger.ReserveCall)) {
		call := t.call(1, 1, 1)
		change(&call)
		if r, err := t.c.Reserve(ctx, call); err == nil {
			t.Errorf("reserve %s was answered: %+v", what, r)
		}
	}
	bad("without a hold", func(c *ledger.ReserveCall) { c.Hold = ledger.ID{} })
	bad("without an incarnation", func(c *ledger.ReserveCall) { c.Incarnation = ledger.ID{} })
	bad("without a user", func(c *ledger.ReserveCall) { c.User = 0 })
	bad("of a negative token", func(c *ledger.ReserveCall) { c.Token = -1 })
	bad("with min above want", func(c *ledger.ReserveCall) { c.Min = 2 })
	bad("of a negative amount", func(c *ledger.ReserveCall) { c.Min, c.Want = -2, -1 })
	bad("of more than 2^53", func(c *ledger.ReserveCall) { c.Want = 1 << 53 })
	bad("in a negative partition", func(c *ledger.ReserveCall) { c.Partition = -1 })
	for _, call := range []ledger.ApplyCall{
		{Partition: counterPartition, From: 5, To: 4},
		{Partition: counterPartition, From: -1, To: 4},
		{Partition: counterPartition, To: 1, Sums: []ledger.Sum{{Account: userU, Charged: 1}, {Account: userU, Charged: 2}}},
	} {
		if r, err := t.c.Apply(ctx, call); err == nil {
			t.Errorf("apply %+v was answered: %+v", call, r)
		}
	}
	for _, call := range []ledger.BeginCall{
		{Partition: counterPartition},
		{Partition: -1, Epoch: 1},
		{Partition: counterPartition, Epoch: 5, Offset: -1},
		{Partition: counterPartition, Epoch: 5, Opened: 5},
	} {
		if ok, err := t.c.Begin(ctx, call); err == nil {
			t.Errorf("%+v was answered: %v", call, ok)
		}
	}
	if _, err := t.c.Reassert(ctx, counterPartition, t.epoch, incA, []ledger.OpenHold{{Hold: counterID('h', 1), Amount: 1}}); err == nil {
		t.Error("a hold without a user was re-asserted")
	}
	if _, err := t.c.State(ctx, -1); err == nil {
		t.Error("the state of partition -1 was read")
	}
	t.held(userU, 0, 0)
}

// testHundred is promise P2: 64 clients at once, each retrying while it is told busy.
func testHundred(t *counterTest) {
	const requests, clients, price = 100, 64, 3
	t.start(0, requests*price, requests*price+1)
	var mu sync.Mutex
	served, next := 0, 0
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				mu.Lock()
				next++
				n := next
				mu.Unlock()
				reply, err := t.c.Reserve(t.Context(), t.call(n, price, price))
				if err != nil {
					t.Errorf("reserve: %v", err)
					return
				}
				switch reply.Outcome {
				case ledger.OutcomeGranted:
					mu.Lock()
					served++
					mu.Unlock()
					if err := t.c.Release(t.Context(), []ledger.ReleaseCall{t.releaseCall(n, price)}); err != nil {
						t.Errorf("release: %v", err)
					}
				case ledger.OutcomeRefused:
					return
				case ledger.OutcomeBusy:
				default:
					t.Errorf("reserve: %+v", reply)
					return
				}
			}
		})
	}
	wg.Wait()
	if served != requests {
		t.Fatalf("served %d requests of %d", served, requests)
	}
	want := ledger.HotAccount{Account: userU, Loaded: true, Granted: requests * price, Settled: requests * price}
	t.same("account", t.account(userU), want)
}

func testPartitions(t *counterTest) {
	t.start(0, 100, 100)
	states, err := t.c.State(t.Context(), 4, counterPartition, 12)
	t.must(err)
	if states[0].Present || !states[1].Present || states[2].Present {
		t.Fatalf("states of partitions 4, 3 and 12: %+v", states)
	}
	for i, p := range []int{4, counterPartition, 12} {
		if states[i].Partition != p {
			t.Fatalf("state %d is of partition %d, want %d", i, states[i].Partition, p)
		}
	}
	elsewhere := t.call(1, 1, 1)
	elsewhere.Partition = 4
	t.reserve(elsewhere, outcome(ledger.OutcomeRebuilding))
	ok, err := t.c.Begin(t.Context(), ledger.BeginCall{Partition: 4, Epoch: 1, Offset: 7})
	t.must(err)
	if s := t.state(); !ok || s.Epoch != t.epoch {
		t.Fatalf("an epoch of partition 4 began (%v) and partition 3 is at %d", ok, s.Epoch)
	}
}

func testNotify(t *counterTest) {
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- t.c.Watch(ctx, func(payload []byte) { heard <- fmt.Sprintf("%q %v", payload, payload == nil) })
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Fatalf("heard %s, want %s", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("heard nothing, want %s", want)
		}
	}
	next(`"" true`)
	// One after the other: two that are under way together may overtake each other.
	t.must(t.c.Notify(t.Context(), []byte("channel 5")))
	next(`"channel 5" false`)
	t.must(t.c.Notify(t.Context(), []byte{}))
	next(`"" false`)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("watch ended with %v", err)
	}
	t.must(t.c.Notify(t.Context(), []byte("nobody listens")))
}
