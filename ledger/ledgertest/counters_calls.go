package ledgertest

import (
	"slices"

	"ledgerline/ledger"
)

func testMissing(t *counterTest) {
	t.same("state", t.state(), ledger.Counters{Partition: counterPartition})
	t.reserve(t.call(1, 1, 1), outcome(ledger.OutcomeRebuilding))
	t.extend(1, 5, outcome(ledger.OutcomeRebuilding))
	t.release(1, 5)
	t.apply(0, 10, ledger.ApplyReply{Done: -1}, ledger.Sum{Account: userU, Charged: 5, Settled: 5})
	t.load(0, map[ledger.Account]ledger.Balance{userU: {Granted: 5}})
	ok, err := t.c.OpenEpoch(t.Context(), counterPartition, t.epoch, 0)
	t.must(err)
	accepted, err := t.c.Reassert(t.Context(), counterPartition, t.epoch, incA, nil)
	t.must(err)
	if ok || accepted {
		t.Fatalf("an epoch that is not there opened (%v) or took holds (%v)", ok, accepted)
	}
	t.must(t.c.Report(t.Context(), counterPartition, t.epoch, incA))
	t.must(t.c.Drop(t.Context(), counterPartition, incA))
	t.same("state", t.state(), ledger.Counters{Partition: counterPartition})
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Done: -1})
	t.must(t.c.Check(t.Context()))
}

func testBegin(t *counterTest) {
	t.start(40, 100, 100)
	t.reserve(t.call(1, 5, 5), granted(5))
	t.must(t.c.Drop(t.Context(), counterPartition, incB))
	for _, number := range []uint64{t.epoch, t.epoch - 1} {
		ok, err := t.c.Begin(t.Context(), ledger.BeginCall{Partition: counterPartition, Epoch: number, Offset: 90})
		t.must(err)
		if ok {
			t.Fatalf("epoch %d began in the place of %d", number, t.epoch)
		}
	}
	old := t.call(2, 5, 5)
	t.epoch++
	t.begin(50)
	t.same("state", t.state(), ledger.Counters{Partition: counterPartition, Present: true, Epoch: t.epoch, Opened: t.epoch - 1, Floor: 50, Done: 50})
	t.reserve(old, outcome(ledger.OutcomeRebuilding))
	t.reserve(t.call(2, 5, 5), outcome(ledger.OutcomeRebuilding))
	t.extend(1, 6, outcome(ledger.OutcomeRebuilding))
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Done: 50})
	t.open(50)
	t.reserve(old, outcome(ledger.OutcomeRebuilding))
	t.extend(1, 6, outcome(ledger.OutcomeGone))
}

// testOpened: holds that are older than an epoch that was opened do not come back (L3), so the next one says which that was: as the database
// knows, or as the counters before it knew.
func testOpened(t *counterTest) {
	begin := func(epoch, told, want uint64) {
		t.Helper()
		ok, err := t.c.Begin(t.Context(), ledger.BeginCall{Partition: counterPartition, Epoch: epoch, Opened: told})
		t.must(err)
		if s := t.state(); !ok || s.Epoch != epoch || s.Opened != want {
			t.Fatalf("epoch %d, told that %d was opened, began: %v; state %+v, want opened %d", epoch, told, ok, s, want)
		}
	}
	begin(10, 0, 0)
	begin(11, 0, 0) // 10 was never opened
	begin(12, 8, 8)
	begin(13, 7, 8) // what the counters knew
	t.epoch = 13
	t.open(0)
	if s := t.state(); s.Opened != 8 {
		t.Fatalf("open: %+v", s)
	}
	begin(14, 9, 13) // and that they were open
	begin(15, 14, 14)
	begin(16, 0, 14)
}

func testOpen(t *counterTest) {
	t.begin(50)
	for _, epoch := range []uint64{t.epoch - 1, t.epoch + 1} {
		if ok, err := t.c.OpenEpoch(t.Context(), counterPartition, epoch, 60); ok || err != nil {
			t.Fatalf("epoch %d opened in the place of %d: %v", epoch, t.epoch, err)
		}
	}
	t.open(45)
	if s := t.state(); !s.Open || s.Floor != 50 || s.Done != 50 {
		t.Fatalf("after opening below the floor: %+v", s)
	}
	if ok, err := t.c.OpenEpoch(t.Context(), counterPartition, t.epoch, 60); ok || err != nil {
		t.Fatalf("it opened twice: %v", err)
	}
	t.epoch++
	t.begin(50)
	t.open(70)
	if s := t.state(); !s.Open || s.Floor != 70 || s.Done != 50 {
		t.Fatalf("after opening at 70: %+v", s)
	}
}

func testNeedLoad(t *counterTest) {
	t.begin(0)
	t.open(0)
	missing := func(accounts ...ledger.Account) ledger.ReserveReply {
		return ledger.ReserveReply{Outcome: ledger.OutcomeNeedLoad, Missing: accounts}
	}
	t.reserve(t.call(1, 1, 1), missing(userU, tokenT))
	t.load(0, map[ledger.Account]ledger.Balance{userU: {Granted: 10}})
	t.reserve(t.call(1, 1, 1), missing(tokenT))
	unlimited := t.call(2, 1, 4)
	unlimited.Token = 0
	t.reserve(unlimited, granted(4))
	t.held(userU, 4, 1)
	other := t.call(3, 1, 1)
	other.User, other.Token = userV.ID, tokenT2.ID
	t.load(0, map[ledger.Account]ledger.Balance{tokenT2: {Granted: 10}})
	t.reserve(other, missing(userV))
}

func testLoad(t *counterTest) {
	t.begin(50)
	balance := map[ledger.Account]ledger.Balance{userU: {Granted: 10, Charged: 3}}
	t.load(60, balance)
	if t.account(userU).Loaded {
		t.Fatal("loaded while rebuilding")
	}
	t.open(60)
	t.load(59, balance)
	if t.account(userU).Loaded {
		t.Fatal("loaded from below the floor")
	}
	t.epoch++
	t.load(60, balance)
	if t.account(userU).Loaded {
		t.Fatal("loaded for another epoch")
	}
	t.epoch--
	t.load(60, balance)
	want := ledger.HotAccount{Account: userU, Loaded: true, Granted: 10, Charged: 3, At: 60, Done: 50}
	t.same("account", t.account(userU), want)
	t.load(70, map[ledger.Account]ledger.Balance{userU: {Granted: 20, Charged: 4}})
	t.same("account loaded twice", t.account(userU), want)
}

func testReserve(t *counterTest) {
	t.start(0, 10, 8)
	t.reserve(t.call(1, 1, 6), granted(6))
	t.held(userU, 6, 1)
	t.held(tokenT, 6, 1)
	t.release(1, -1)
	t.held(userU, 0, 0)
	// The token cannot pay 9: nothing stays on the user.
	t.reserve(t.call(2, 9, 9), inTheWay(ledger.OutcomeRefused, tokenT, 8))
	t.held(userU, 0, 0)
	t.held(tokenT, 0, 0)
	// Neither can pay: the user is named.
	t.reserve(t.call(2, 11, 12), inTheWay(ledger.OutcomeRefused, userU, 10))
	t.reserve(t.call(2, 0, 0), granted(0))
	t.held(tokenT, 0, 1)
	if got, want := t.state().Members, []ledger.ID{incA}; !slices.Equal(got, want) {
		t.Fatalf("members %v, want %v", got, want)
	}
	wrong := t.call(3, 1, 1)
	wrong.Epoch++
	t.reserve(wrong, outcome(ledger.OutcomeRebuilding))
}

func testRepeat(t *counterTest) {
	t.start(0, 10, 10)
	for range 3 {
		t.reserve(t.call(1, 1, 6), granted(6))
	}
	t.held(userU, 6, 1)
	t.extend(1, 9, granted(9))
	t.reserve(t.call(1, 1, 6), granted(9))
	t.held(tokenT, 9, 1)
}

func testPartial(t *counterTest) {
	t.start(0, 10, 8)
	t.reserve(t.call(1, 8, 20), granted(8))
	t.held(userU, 8, 1)
	t.release(1, -1)
	t.reserve(t.call(2, 9, 20), inTheWay(ledger.OutcomeRefused, tokenT, 8))
	t.reserve(t.call(2, 2, 9), granted(8)) // the user could pay 9
	t.release(2, -1)
	user := t.call(3, 10, 20)
	user.Token = 0
	t.reserve(user, granted(10))
	t.held(tokenT, 0, 0)
}

func testBusy(t *counterTest) {
	t.start(0, 10, 8)
	t.reserve(t.call(1, 1, 6), granted(6))
	t.reserve(t.call(2, 1, 3), inTheWay(ledger.OutcomeBusy, tokenT, 2)) // no partial hold beside an open one
	t.reserve(t.call(2, 1, 2), granted(2))
	t.reserve(t.call(3, 1, 3), inTheWay(ledger.OutcomeBusy, userU, 2))
	// Another token of the user has too little and nothing open: no wait will help.
	t.load(0, map[ledger.Account]ledger.Balance{tokenT2: {Granted: 2}})
	other := t.call(4, 3, 3)
	other.Token = tokenT2.ID
	t.reserve(other, inTheWay(ledger.OutcomeRefused, tokenT2, 2))
	other.Min = 1
	t.reserve(other, inTheWay(ledger.OutcomeBusy, userU, 2))
	t.release(1, 6)
	t.release(2, 2)
	t.reserve(t.call(5, 1, 1), inTheWay(ledger.OutcomeRefused, tokenT, 0))
}

func testExtend(t *counterTest) {
	t.start(0, 20, 10)
	t.reserve(t.call(1, 1, 4), granted(4))
	t.extend(1, 7, granted(7))
	t.extend(1, 7, granted(7))
	t.extend(1, 5, granted(7)) // an extension that comes late
	t.held(userU, 7, 1)
	t.held(tokenT, 7, 1)
	t.extend(1, 11, inTheWay(ledger.OutcomeRefused, tokenT, 3))
	t.held(userU, 7, 1)
	t.extend(2, 1, outcome(ledger.OutcomeGone))
	t.epoch++
	t.extend(1, 8, outcome(ledger.OutcomeRebuilding))
	t.epoch--
	other, err := t.c.Extend(t.Context(), ledger.ExtendCall{
		Hold: counterID('h', 1), Incarnation: incB, Partition: counterPartition, Epoch: t.epoch, To: 8,
	})
	t.must(err)
	t.same("extend by another incarnation", other, outcome(ledger.OutcomeGone))
	t.release(1, 9)
	t.extend(1, 8, outcome(ledger.OutcomeGone))
}

func testExtendUnloaded(t *counterTest) {
	t.begin(0)
	t.reassert(true, t.openHold(1, 4))
	t.open(0)
	t.extend(1, 4, granted(4))
	t.extend(1, 6, ledger.ReserveReply{Outcome: ledger.OutcomeNeedLoad, Missing: []ledger.Account{userU, tokenT}})
	t.load(0, map[ledger.Account]ledger.Balance{userU: {Granted: 10}, tokenT: {Granted: 10}})
	t.extend(1, 6, granted(6))
	t.held(userU, 6, 1)
}

func testRelease(t *counterTest) {
	t.start(0, 100, 100)
	for n := 1; n <= 4; n++ {
		t.reserve(t.call(n, 10, 10), granted(10))
	}
	t.release(1, 7)
	t.release(1, 7)  // repeated
	t.release(1, -1) // and contradicted
	wrong := t.releaseCall(2, 5)
	wrong.Epoch--
	elsewhere := t.releaseCall(2, 5)
	elsewhere.Incarnation = incB
	unknown := t.releaseCall(99, 5)
	t.must(t.c.Release(t.Context(), []ledger.ReleaseCall{wrong, elsewhere, unknown}))
	for _, a := range []ledger.Account{userU, tokenT} {
		want := ledger.HotAccount{Account: a, Loaded: true, Granted: 100, Settled: 7, Held: 30, OpenHolds: 3}
		t.same("account", t.account(a), want)
	}
	t.must(t.c.Release(t.Context(), []ledger.ReleaseCall{t.releaseCall(2, 25), t.releaseCall(3, -1), t.releaseCall(4, 0)}))
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Loaded: true, Granted: 100, Settled: 32})
	t.must(t.c.Release(t.Context(), nil))
	// In an epoch that rebuilds, a release works; the accounts need not be loaded.
	t.epoch++
	t.begin(0)
	t.reassert(true, t.openHold(5, 10))
	t.release(5, 6)
	t.same("account", t.account(userU), ledger.HotAccount{Account: userU, Settled: 6})
}
