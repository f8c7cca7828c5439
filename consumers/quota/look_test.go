package quota_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/consumers"
	"ledgerline/consumers/quota"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/sqlstore"
)

// lookFor looks once a second for as long as it says. beating nodes beat meanwhile.
func (r *rig) lookFor(d time.Duration, beating ...*producer) {
	r.t.Helper()
	for range d / time.Second {
		for _, n := range beating {
			_, err := r.store.Heartbeat(r.t.Context(), n.id)
			must(r.t, err)
		}
		r.clock.pass(time.Second)
		r.look(r.sink)
	}
}

func (r *rig) begin() uint64 {
	r.t.Helper()
	_, err := r.sink.Position(r.t.Context(), 0)
	must(r.t, err)
	r.look(r.sink)
	if st := r.state(); !st.Present || st.Foreign || st.Open {
		r.t.Fatalf("no epoch is being rebuilt: %+v", st)
	}
	return r.state().Epoch
}

func (r *rig) isOpen(want bool, when string) {
	r.t.Helper()
	if r.state().Open != want {
		r.t.Fatalf("%s: open is %v, want %v\n%s", when, !want, want, r.notes)
	}
}

func TestFirstEpochOpensWhenEverybodyReported(t *testing.T) {
	onEngines(t, func(r *rig) {
		a, b := r.node(1), r.node(2)
		a.put(credit(1, 100))
		epoch := r.begin()
		r.report(a)
		r.look(r.sink)
		r.isOpen(false, "one of two reported")
		b.put(limit(1, 1, 50))
		r.report(b)
		r.look(r.sink)
		r.isOpen(true, "both reported")
		epochs, err := r.store.Epochs(t.Context(), 0)
		must(r.t, err)
		if len(epochs) != 1 || epochs[0].Epoch != epoch || epochs[0].End != r.log.end() || len(epochs[0].Reporters) != 2 {
			r.t.Errorf("stored %+v, want epoch %d with end %d and two reporters", epochs, epoch, r.log.end())
		}
		if st := r.state(); st.Floor != r.log.end() || st.Done != 0 {
			r.t.Errorf("floor %d and done %d, want %d and 0", st.Floor, st.Done, r.log.end())
		}
		r.flush(r.sink, r.log.end())
		r.load(theUser, theToken)
		a.put(credit(1, 7))
		a.put(usage(1, 1, 5, nil))
		r.flush(r.sink, r.log.end())
		r.inStep(nil, theUser, theToken)
	})
}

func TestPatience(t *testing.T) {
	onEngines(t, func(r *rig) {
		dead, other, live := r.node(1), r.node(2), r.node(3)
		r.begin()
		r.report(live)
		r.lookFor(quota.PatienceDead-2*time.Second, live)
		r.isOpen(false, "the dead ones were waited for for too short a time")
		r.lookFor(5*time.Second, live)
		r.isOpen(true, "both dead ones were waited for, at the same time")
		if !strings.Contains(r.notes.String(), dead.id.String()) || !strings.Contains(r.notes.String(), other.id.String()) {
			r.t.Errorf("the log does not name who was not waited for:\n%s", r.notes)
		}

		r.lose()
		r.begin()
		r.report(dead, other)
		r.lookFor(quota.PatienceDead+5*time.Second, live)
		r.isOpen(false, "a node that beats is waited for longer")
		live.put(credit(1, 1)) // what it still has to ship moves
		r.flushOnly(r.log.end())
		r.lookFor(quota.PatienceLive-5*time.Second, live)
		r.isOpen(false, "it is waited for anew when its events move")
		live.seq--
		live.put(credit(1, 1)) // a duplicate is no movement
		r.flushOnly(r.log.end())
		r.lookFor(8*time.Second, live)
		r.isOpen(true, "a node that beats was waited for long enough")
	})
}

// flushOnly applies what is in the log as a runner does that goes on, without reading its position again.
func (r *rig) flushOnly(to int64) {
	r.t.Helper()
	my, err := r.store.Partition(r.t.Context(), 0)
	must(r.t, err)
	must(r.t, r.sink.Apply(r.t.Context(), 0, my.Offset, to, r.log.records[my.Offset:to]))
}

func TestOwnAbsenceDoesNotCount(t *testing.T) {
	r := localRig(t)
	r.node(1)
	r.begin()
	r.look(r.sink)
	for range 10 { // stopped for an hour, ten times
		r.clock.pass(time.Hour)
		r.look(r.sink)
	}
	r.isOpen(false, "the consumer was not there")
	r.log.err = errors.New("no broker")
	for range 60 {
		r.clock.pass(time.Second)
		if err := r.sink.Look(t.Context(), 0); !errors.Is(err, r.log.err) {
			t.Fatalf("Look = %v, want the broker's error", err)
		}
	}
	r.log.err = nil
	r.look(r.sink)
	r.isOpen(false, "the log was out of reach")
	if _, err := r.sink.Position(t.Context(), 0); err != nil { // it was taken over
		t.Fatal(err)
	}
	r.lookFor(quota.PatienceDead - 2*time.Second)
	r.isOpen(false, "who takes over waits anew")
	r.lookFor(4 * time.Second)
	r.isOpen(true, "at last")
}

func localRig(t *testing.T) *rig {
	counters := hold.NewLocal()
	return newRig(t, "", counters, counters.Flush, func() { counters.Promote(counters.Save()) })
}

// An incarnation that registered after the list of incarnations was read may have reserved in the epoch before.
func TestNewIncarnationIsWaitedFor(t *testing.T) {
	r := localRig(t)
	r.openEpoch()
	r.look(r.sink) // the list is fresh
	r.node(1)
	r.lose()
	r.begin()
	r.look(r.sink)
	r.isOpen(false, "the new incarnation has not reported")
}

func TestClosedAndGivenUpAreNotWaitedFor(t *testing.T) {
	onEngines(t, func(r *rig) {
		closed, gone, live := r.node(1), r.node(2), r.node(3)
		must(t, r.store.CloseProducer(t.Context(), closed.id))
		if ok, err := r.store.GiveUp(t.Context(), gone.id, 0); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.openEpoch(live)
	})
}

// A node that was given up and does not know it, because it reaches the counters and not the database, tries to join every epoch.
// One epoch without it is enough.
func TestGivenUpNodeThatDoesNotKnowIt(t *testing.T) {
	onEngines(t, func(r *rig) {
		lost, live := r.node(1), r.node(2)
		r.openEpoch(lost, live)
		if ok, err := r.store.GiveUp(t.Context(), lost.id, 0); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.clock.pass(time.Minute)
		r.look(r.sink)
		epoch := r.state().Epoch
		for range 5 {
			r.report(lost, live)
			r.look(r.sink)
		}
		if st := r.state(); st.Epoch != epoch || !st.Open || slices.Contains(st.Members, lost.id) {
			t.Errorf("epoch %d began without it, now there is %+v", epoch, st)
		}
	})
}

// A consumer that slept between taking a number and beginning its epoch begins it when the newer one was lost. Nodes that saw the
// newer one do not go back: a higher one must follow.
func TestOlderEpochDoesNotStay(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		slept, err := r.store.AllocateEpoch(t.Context(), 0, 0)
		must(t, err)
		newer := r.openEpoch(n)
		r.lose()
		if ok, err := r.counters.Begin(t.Context(), slept); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.clock.pass(time.Minute)
		if got := r.openEpoch(n); got <= newer {
			t.Errorf("epoch %d after epoch %d", got, newer)
		}
	})
}

// Other counters served for a while and are gone again, with nothing charged in them: an epoch of theirs was opened since, so that
// what these still charged in their own would count as late.
func TestEpochOfOtherCounters(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, 100))
		r.flush(r.sink, 1)
		r.openEpoch(n)
		elsewhere, err := r.store.AllocateEpoch(t.Context(), 0, 0)
		must(t, err)
		stored, err := r.store.StoreEpoch(t.Context(), ledger.EpochRecord{Epoch: elsewhere.Epoch, End: 1, OpenedAt: r.clock.now()})
		must(t, err)
		if !stored {
			t.Fatal("the epoch was not stored")
		}
		r.clock.pass(2 * time.Second)
		if got := r.openEpoch(n); got <= elsewhere.Epoch {
			t.Errorf("epoch %d, and the database has opened %d", got, elsewhere.Epoch)
		}
		r.load(theUser)
		r.inStep(nil, theUser)
	})
}

func TestLostCountersBeginAnEpoch(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, 100))
		r.flush(r.sink, 1)
		first := r.openEpoch(n)
		r.look(r.sink)
		if got := r.state().Epoch; got != first {
			t.Fatalf("epoch %d after a look at healthy counters, want %d", got, first)
		}
		r.lose()
		second := r.openEpoch(n)
		r.restart()
		if !r.state().Foreign {
			t.Fatalf("the counters are not foreign after a restart: %+v", r.state())
		}
		third := r.openEpoch(n)
		if first >= second || second >= third {
			t.Errorf("epochs %d, %d, %d do not rise", first, second, third)
		}
		r.load(theUser)
		r.inStep(nil, theUser)
	})
}

// flaky are counters that can be out of reach, and tell what was applied to them.
type flaky struct {
	quota.Counters
	away  bool
	calls []ledger.ApplyCall
}

var errAway = errors.New("connection refused")

func (f *flaky) State(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	if f.away {
		return nil, errAway
	}
	return f.Counters.State(ctx, partitions...)
}

func (f *flaky) Apply(ctx context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error) {
	if f.away {
		return ledger.ApplyReply{}, errAway
	}
	f.calls = append(f.calls, call)
	return f.Counters.Apply(ctx, call)
}

// flakySink replaces the rig's sink by one whose counters are flaky.
func (r *rig) flakySink() *flaky {
	f := &flaky{Counters: r.counters}
	r.sink = quota.New(quota.Config{Store: r.store, Counters: f, Log: r.log, Logger: testLogger(r.notes)})
	r.sink.SetNow(r.clock.now)
	return f
}

func TestCountersGetExactlyTheRestOfTheLastRange(t *testing.T) {
	onEngines(t, func(r *rig) {
		f := r.flakySink()
		n := r.node(1)
		n.put(credit(1, 100))
		n.put(limit(1, 1, 100))
		r.flush(r.sink, 2)
		epoch := r.openEpoch(n)
		r.load(theUser, theToken)

		f.away = true
		keyed := credit(1, 30)
		keyed.Key = "bonus:x:1"
		n.put(usage(1, 1, 1, nil)) // 2
		n.put(keyed)               // 3
		n.seq--                    //
		n.put(usage(1, 1, 9, nil)) // 4: a duplicate by its sequence
		r.log.damage()             // 5
		n.put(keyed)               // 6: its key is used
		n.put(usage(1, 1, 2, &ledger.HoldRef{ID: testID('h', 1), Epoch: epoch, Amount: 5, Token: true}))
		n.put(usage(1, 1, 4, nil)) // 8
		start := time.Now()
		r.flushOnly(r.log.end())
		if d := time.Since(start); d > 4*quota.ApplyPatience {
			t.Errorf("a flush without counters took %s", d)
		}
		if got := r.hot(theUser); got.Charged != 0 {
			t.Fatalf("the counters have %+v already", got)
		}
		// Another consumer had got as far as 4 when it died.
		_, err := r.counters.Apply(t.Context(), ledger.ApplyCall{Epoch: epoch, From: 2, To: 4, Sums: []ledger.Sum{
			{Account: theUser, Granted: 30, Charged: 1}, {Account: theToken, Charged: 1},
		}})
		must(t, err)
		f.away = false
		r.look(r.sink)
		if r.state().Epoch != epoch {
			t.Error("a new epoch began for what could be brought up to date")
		}
		r.inStep(nil, theUser, theToken)
		if got := r.hot(theUser).Settled; got != -2 {
			t.Errorf("settled is %d, want -2: the hold's own epoch has counted it before", got)
		}
		if reads := r.log.reads; reads == 0 {
			t.Error("the rest did not come from the log")
		}

		// Two flushes behind: the database no longer says what it skipped.
		f.away = true
		n.put(usage(1, 1, 1, nil))
		r.flushOnly(r.log.end())
		n.put(usage(1, 1, 1, nil))
		r.flushOnly(r.log.end())
		if strings.Count(r.notes.String(), "miss flushes") != 2 { // once per absence
			t.Errorf("logged:\n%s", r.notes)
		}
		f.away = false
		if r.openEpoch(n) == epoch {
			t.Error("no new epoch for counters that are out of reach")
		}
		r.load(theUser, theToken)
		r.inStep(nil, theUser, theToken)
	})
}

func TestAccountLoadedInTheMiddleOfARange(t *testing.T) {
	onEngines(t, func(r *rig) {
		f := r.flakySink()
		n := r.node(1)
		n.put(credit(1, 100))
		r.flush(r.sink, 1)
		epoch := r.openEpoch(n)
		for range 4 {
			n.put(usage(1, 1, 1, nil))
		}
		must(t, r.counters.Load(t.Context(), ledger.LoadCall{Epoch: epoch, Offset: 3, Balances: map[ledger.Account]ledger.Balance{theUser: {Granted: 100, Charged: 2}}}))
		f.calls = nil
		r.flushOnly(r.log.end())
		if len(f.calls) != 3 { // whole, below 3, from 3
			t.Errorf("%d calls: %+v", len(f.calls), f.calls)
		}
		r.load(theToken)
		r.inStep(nil, theUser, theToken)
	})
}

func TestManyAccountsAreSplit(t *testing.T) {
	onEngines(t, func(r *rig) {
		f := r.flakySink()
		n := r.node(1)
		r.openEpoch(n)
		r.load(theUser)
		const users = quota.MaxSums + 500
		for user := range int64(users) {
			n.put(usage(user+1, 0, user+1, nil))
		}
		r.flushOnly(r.log.end())
		most, sums := 0, 0
		for _, c := range f.calls {
			most, sums = max(most, len(c.Sums)), sums+len(c.Sums)
		}
		if len(f.calls) < 2 || most > quota.MaxSums || sums != users {
			t.Errorf("%d calls with at most %d sums, %d together; want several with at most %d, %d together", len(f.calls), most, sums, quota.MaxSums, users)
		}
		r.inStep(nil, theUser)
	})
}

func TestZombieIsFenced(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, 100))
		zombie := r.newSink()
		_, err := zombie.Position(t.Context(), 0)
		must(t, err)
		r.flush(r.sink, 1)
		epoch := r.openEpoch(n)
		r.load(theUser)
		n.put(usage(1, 1, 5, nil))
		r.flushOnly(2)
		before := r.hot(theUser)
		if err := zombie.Apply(t.Context(), 0, 0, 2, r.log.records); !errors.Is(err, consumers.ErrFenced) {
			t.Errorf("the zombie's flush = %v, want ErrFenced", err)
		}
		if err := zombie.Look(t.Context(), 0); !errors.Is(err, consumers.ErrFenced) {
			t.Errorf("the zombie's look = %v, want ErrFenced", err)
		}
		if after := r.hot(theUser); after != before || r.state().Epoch != epoch {
			t.Errorf("the zombie changed the counters: %+v, epoch %d; before %+v, epoch %d", after, r.state().Epoch, before, epoch)
		}
		r.inStep(nil, theUser)
	})
}

func TestRestoredDatabaseIsNotAppliedTwice(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, 100))
		n.put(limit(1, 1, 100))
		r.flush(r.sink, 2)
		r.openEpoch(n)
		r.load(theUser, theToken)
		for range 3 {
			n.put(usage(1, 1, 1, nil))
		}
		r.flushOnly(3)
		backup := dump(t, r.store, simTables)
		r.flushOnly(5)
		epoch := r.state().Epoch

		restore(t, r.store, backup)
		r.clock.pass(2 * time.Second)
		if err := r.sink.Look(t.Context(), 0); !errors.Is(err, consumers.ErrFenced) {
			t.Fatalf("Look = %v, want ErrFenced: the position went back and nothing comes", err)
		}
		_, err := r.sink.Position(t.Context(), 0)
		must(t, err)
		r.look(r.sink)
		n.put(usage(1, 1, 1, nil))
		r.flushOnly(4) // below where the counters are
		r.look(r.sink)
		if got := r.hot(theUser).Charged; got != 3 {
			t.Errorf("the counters have %d charged, want 3", got)
		}
		r.flushOnly(6) // across it
		r.look(r.sink)
		r.inStep(nil, theUser, theToken)
		if r.state().Epoch != epoch {
			t.Error("a new epoch began, and was not needed")
		}
	})
}

func TestGivenUpIncarnationEndsTheEpoch(t *testing.T) {
	onEngines(t, func(r *rig) {
		lost, n := r.node(1), r.node(2)
		epoch := r.openEpoch(lost, n)
		if ok, err := r.store.GiveUp(t.Context(), lost.id, 0); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.clock.pass(2 * time.Second) // the list of incarnations is read again
		next := r.openEpoch(n)
		if next == epoch {
			t.Fatal("the epoch goes on with the holds of an incarnation that was given up")
		}
		r.clock.pass(2 * time.Second)
		r.look(r.sink)
		if r.state().Epoch != next {
			t.Error("another epoch began for an incarnation that this one does not name")
		}
	})
}

func TestOlderEpochsNeverTouchSettled(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, 100))
		n.put(limit(1, 1, 100))
		r.flush(r.sink, 2)
		old := r.openEpoch(n)
		r.lose()
		r.openEpoch(n)
		r.load(theUser, theToken)
		n.put(usage(1, 1, 5, &ledger.HoldRef{ID: testID('h', 1), Epoch: old, Amount: 5, Token: true}))
		n.put(usage(1, 1, 7, &ledger.HoldRef{ID: testID('h', 2), Epoch: r.state().Epoch, Amount: 7}))
		r.flushOnly(r.log.end())
		r.inStep(nil, theUser, theToken)
		if user, token := r.hot(theUser).Settled, r.hot(theToken).Settled; user != -7 || token != 0 {
			t.Errorf("settled %d of the user and %d of the token, want -7 (its own epoch) and 0 (the token was not held)", user, token)
		}
	})
}

func TestDeadLetterAndItsRedrive(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		n.put(credit(1, math.MaxInt64-10))
		r.flush(r.sink, 1)
		r.openEpoch(n)
		r.load(theUser)
		n.put(credit(1, 100)) // leaves 64 bits
		n.put(usage(1, 1, 3, nil))
		r.flushOnly(3)
		letters, err := r.store.DeadLetters(t.Context(), -1, -1, 10)
		must(t, err)
		if len(letters) != 1 || letters[0].Offset != 1 || !strings.Contains(r.notes.String(), "dead-lettered") {
			t.Fatalf("dead letters: %+v\n%s", letters, r.notes)
		}
		if hot := r.hot(theUser); hot.Granted != math.MaxInt64-10 || hot.Charged != 3 {
			t.Errorf("the counters have %+v", hot)
		}
		n.put(credit(1, -5000))
		again := r.log.records[1].Event
		again.Redrive = true
		n.put(again)
		r.flushOnly(r.log.end())
		if hot := r.hot(theUser); hot.Granted != math.MaxInt64-10-5000+100 {
			t.Errorf("the counters have %+v after the re-drive", hot)
		}
		dead, err := r.store.DeadIndex(t.Context())
		must(t, err)
		r.inStep(dead, theUser)
	})
}

func TestAnotherLogBehindTheCounters(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		for range 4 {
			n.put(credit(1, 100))
		}
		r.flush(r.sink, 4)
		epoch := r.openEpoch(n)
		must(t, r.store.AdoptLog(t.Context(), 0, 2))
		second := r.openEpoch(n)
		if second == epoch {
			t.Fatal("the epoch goes on beyond the log that was adopted")
		}
		// The log was made anew, adopted and flushed from before anybody looked.
		must(t, r.store.AdoptLog(t.Context(), 0, 0))
		r.log.records = r.log.records[:0]
		n.put(credit(1, 1))
		r.flushOnly(1)
		if r.openEpoch(n) == second {
			t.Fatal("the epoch goes on beyond the end of the log")
		}
	})
}

// The log lost its last records after an epoch had waited for them, and the database was not so far yet, so nothing stops it. No account
// could be loaded until others had filled the gap, and those need accounts.
func TestLogEndsBelowTheFloor(t *testing.T) {
	onEngines(t, func(r *rig) {
		n := r.node(1)
		for range 4 {
			n.put(credit(1, 100))
		}
		r.flush(r.sink, 2)
		epoch := r.openEpoch(n)
		r.look(r.sink)
		if st := r.state(); st.Epoch != epoch || st.Floor != 4 {
			t.Fatalf("while the database is on its way there is %+v", st)
		}
		r.log.records = r.log.records[:3]
		r.flushOnly(3)
		if r.openEpoch(n) == epoch {
			t.Fatal("the epoch goes on with its floor beyond the end of the log")
		}
		r.load(theUser)
		r.inStep(nil, theUser)
	})
}

func TestNothingOpensWithoutTheDatabase(t *testing.T) {
	r := localRig(t)
	r.begin()
	must(t, r.store.Close())
	if err := r.sink.Look(t.Context(), 0); err == nil {
		t.Error("Look says nothing about a database that is away")
	}
	r.isOpen(false, "the database is away")
}

// A database that was restored while its clock was behind must not number an epoch below the one that the counters have.
func TestEpochIsNumberedAboveTheCounters(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.openEpoch()
		high := uint64(r.clock.at.Add(24 * time.Hour).UnixMilli())
		if ok, err := r.counters.Begin(t.Context(), ledger.BeginCall{Epoch: high}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.restart()
		if next := r.begin(); next <= high {
			t.Errorf("epoch %d begins after %d", next, high)
		}
	})
}

// A balance that New API's int column cannot hold is warned about once, and counted each time.
func TestNarrowColumnIsWarnedAboutOnce(t *testing.T) {
	counters := hold.NewLocal()
	r := newRig(t, ledgertest.MySQL(t), counters, counters.Flush, func() {})
	must(t, r.store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(t.Context(), "ALTER TABLE users MODIFY quota int DEFAULT 0")
		return err
	}))
	a := r.node(1)
	for range 3 {
		a.put(credit(1, 2_000_000_000))
		r.flush(r.sink, r.log.end())
	}
	if n := strings.Count(r.notes.String(), "does not fit New API's column"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, r.notes)
	}
}
