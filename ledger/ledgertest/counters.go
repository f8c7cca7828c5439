package ledgertest

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ledgerline/ledger"
)

// Counters is what the suite asks of an implementation of the hot counters (DESIGN 7); the methods are described in
// ledger/hold.
type Counters interface {
	CounterAdmission
	CounterEpochs
	CounterReads
}

// CounterAdmission is what a request calls.
type CounterAdmission interface {
	Reserve(context.Context, ledger.ReserveCall) (ledger.ReserveReply, error)
	Extend(context.Context, ledger.ExtendCall) (ledger.ReserveReply, error)
	Release(context.Context, []ledger.ReleaseCall) error
	Load(context.Context, ledger.LoadCall) error
}

// CounterEpochs is what nodes and the quota consumer call.
type CounterEpochs interface {
	Begin(context.Context, ledger.BeginCall) (bool, error)
	OpenEpoch(ctx context.Context, partition int, epoch uint64, floor int64) (bool, error)
	Reassert(ctx context.Context, partition int, epoch uint64, incarnation ledger.ID, holds []ledger.OpenHold) (bool, error)
	Report(ctx context.Context, partition int, epoch uint64, incarnations ...ledger.ID) error
	Apply(context.Context, ledger.ApplyCall) (ledger.ApplyReply, error)
	Drop(ctx context.Context, partition int, incarnation ledger.ID) error
}

// CounterReads is what nodes, consumers and verify read, and how they hear of changes.
type CounterReads interface {
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	Holds(ctx context.Context, partition int, incarnation ledger.ID) ([]ledger.OpenHold, error)
	Accounts(ctx context.Context, partition int, accounts []ledger.Account) ([]ledger.HotAccount, error)
	All(ctx context.Context, partition int, account func(ledger.HotAccount) error, hold func(ledger.OpenHold) error) error
	Check(context.Context) error
	Notify(ctx context.Context, payload []byte) error
	Watch(ctx context.Context, fn func(payload []byte)) error
}

// CountersSuite holds an implementation to every rule of the hot counters. create returns empty counters.
func CountersSuite(t *testing.T, create func(t *testing.T) Counters) {
	for _, c := range []struct {
		name string
		run  func(*counterTest)
	}{
		{"missing counters admit nobody", testMissing},
		{"an epoch begins only with a higher number", testBegin},
		{"an epoch opens once", testOpen},
		{"an epoch names the newest that was opened", testOpened},
		{"accounts that are not loaded are named", testNeedLoad},
		{"a load is held to the floor and the epoch", testLoad},
		{"a reserve takes from both accounts or none", testReserve},
		{"a repeated reserve is the same hold", testRepeat},
		{"a partial hold is the smallest of what is left", testPartial},
		{"open holds in the way make an account busy", testBusy},
		{"an extension names a total", testExtend},
		{"a re-asserted hold is extended once its accounts are loaded", testExtendUnloaded},
		{"a release counts once", testRelease},
		{"apply adds what an account does not know yet", testApply},
		{"apply splits at an account loaded within its range", testApplySplit},
		{"apply subtracts settled by epoch", testApplySettled},
		{"apply takes 10,000 accounts", testApplyMany},
		{"holds are re-asserted while rebuilding", testReassert},
		{"a dropped incarnation leaves a tombstone", testDrop},
		{"an incarnation that was given up cannot join", testBeginWithout},
		{"balances are exact in all of int64", testExact},
		{"all accounts and holds are listed", testAll},
		{"calls that make no sense are errors", testNonsense},
		{"an account for 100 requests serves 100", testHundred},
		{"partitions are apart", testPartitions},
		{"a change is told", testNotify},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(&counterTest{T: t, c: create(t), epoch: 1000})
		})
	}
}

// The names that the suite uses.
var (
	incA, incB     = counterID('a', 1), counterID('b', 1)
	userU, tokenT  = ledger.Account{Kind: ledger.UserAccount, ID: 7}, ledger.Account{Kind: ledger.TokenAccount, ID: 9}
	userV, tokenT2 = ledger.Account{Kind: ledger.UserAccount, ID: 8}, ledger.Account{Kind: ledger.TokenAccount, ID: 10}
)

func counterID(kind byte, n int) ledger.ID {
	return ledger.ID{0: kind, 6: 0x70, 8: 0x80, 14: byte(n >> 8), 15: byte(n)}
}

// counterTest drives one implementation on partition 3 with calls of one line.
type counterTest struct {
	*testing.T
	c     Counters
	epoch uint64
}

const counterPartition = 3

func (t *counterTest) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *counterTest) begin(offset int64) {
	t.Helper()
	ok, err := t.c.Begin(t.Context(), ledger.BeginCall{Partition: counterPartition, Epoch: t.epoch, Offset: offset})
	t.must(err)
	if !ok {
		t.Fatalf("epoch %d did not begin", t.epoch)
	}
}

func (t *counterTest) open(floor int64) {
	t.Helper()
	ok, err := t.c.OpenEpoch(t.Context(), counterPartition, t.epoch, floor)
	t.must(err)
	if !ok {
		t.Fatalf("epoch %d did not open", t.epoch)
	}
}

// start opens an epoch at an offset with user/7 and token/9 loaded at it.
func (t *counterTest) start(offset, user, token int64) {
	t.Helper()
	t.begin(offset)
	t.open(offset)
	t.load(offset, map[ledger.Account]ledger.Balance{userU: {Granted: user}, tokenT: {Granted: token}})
}

func (t *counterTest) load(offset int64, balances map[ledger.Account]ledger.Balance) {
	t.Helper()
	t.must(t.c.Load(t.Context(), ledger.LoadCall{Partition: counterPartition, Epoch: t.epoch, Offset: offset, Balances: balances}))
}

func (t *counterTest) call(hold int, least, want int64) ledger.ReserveCall {
	return ledger.ReserveCall{
		Hold: counterID('h', hold), Incarnation: incA, Partition: counterPartition, Epoch: t.epoch,
		User: userU.ID, Token: tokenT.ID, Min: least, Want: want,
	}
}

func (t *counterTest) reserve(call ledger.ReserveCall, want ledger.ReserveReply) {
	t.Helper()
	got, err := t.c.Reserve(t.Context(), call)
	t.must(err)
	t.same("reserve", got, want)
}

func (t *counterTest) extend(hold int, to int64, want ledger.ReserveReply) {
	t.Helper()
	got, err := t.c.Extend(t.Context(), ledger.ExtendCall{
		Hold: counterID('h', hold), Incarnation: incA, Partition: counterPartition, Epoch: t.epoch, To: to,
	})
	t.must(err)
	t.same("extend", got, want)
}

// release settles hold at charge, or voids it if charge is negative.
func (t *counterTest) release(hold int, charge int64) {
	t.Helper()
	t.must(t.c.Release(t.Context(), []ledger.ReleaseCall{t.releaseCall(hold, charge)}))
}

func (t *counterTest) releaseCall(hold int, charge int64) ledger.ReleaseCall {
	return ledger.ReleaseCall{
		Hold: counterID('h', hold), Incarnation: incA, Partition: counterPartition, Epoch: t.epoch, Charge: charge,
	}
}

func (t *counterTest) apply(from, to int64, want ledger.ApplyReply, sums ...ledger.Sum) {
	t.Helper()
	got, err := t.c.Apply(t.Context(), ledger.ApplyCall{
		Partition: counterPartition, Epoch: t.epoch, From: from, To: to, Sums: sums,
	})
	t.must(err)
	t.same("apply", got, want)
}

func (t *counterTest) state() ledger.Counters {
	t.Helper()
	states, err := t.c.State(t.Context(), counterPartition)
	t.must(err)
	return states[0]
}

func (t *counterTest) account(a ledger.Account) ledger.HotAccount {
	t.Helper()
	list, err := t.c.Accounts(t.Context(), counterPartition, []ledger.Account{a})
	t.must(err)
	return list[0]
}

// held asserts what is held and how many holds are open on an account.
func (t *counterTest) held(a ledger.Account, held, open int64) {
	t.Helper()
	if got := t.account(a); got.Held != held || got.OpenHolds != open {
		t.Fatalf("%s holds %d in %d holds, want %d in %d", a, got.Held, got.OpenHolds, held, open)
	}
}

func (t *counterTest) same(what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func granted(amount int64) ledger.ReserveReply {
	return ledger.ReserveReply{Outcome: ledger.OutcomeGranted, Amount: amount}
}

func inTheWay(o ledger.Outcome, a ledger.Account, left int64) ledger.ReserveReply {
	return ledger.ReserveReply{Outcome: o, Account: a, Left: left}
}

func outcome(o ledger.Outcome) ledger.ReserveReply { return ledger.ReserveReply{Outcome: o} }

func (t *counterTest) openHold(n int, amount int64) ledger.OpenHold {
	return ledger.OpenHold{Hold: counterID('h', n), Incarnation: incA, User: userU.ID, Token: tokenT.ID, Amount: amount}
}

func (t *counterTest) reassert(want bool, holds ...ledger.OpenHold) {
	t.Helper()
	got, err := t.c.Reassert(t.Context(), counterPartition, t.epoch, incA, holds)
	t.must(err)
	if got != want {
		t.Fatalf("re-assert accepted: %v, want %v", got, want)
	}
}

func (t *counterTest) dump() (map[ledger.Account]ledger.HotAccount, map[ledger.ID]ledger.OpenHold) {
	t.Helper()
	accounts, holds := map[ledger.Account]ledger.HotAccount{}, map[ledger.ID]ledger.OpenHold{}
	t.must(t.c.All(t.Context(), counterPartition, func(a ledger.HotAccount) error {
		accounts[a.Account] = a
		return nil
	}, func(h ledger.OpenHold) error {
		holds[h.Hold] = h
		return nil
	}))
	return accounts, holds
}
