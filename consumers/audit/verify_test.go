package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/consumers"
	"ledgerline/consumers/audit"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/sqlstore"
)

// Whoever edits one unit in one store finds store, account and difference named.
func TestVerifyNamesWhatWasEdited(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(5)
		w.settle()
		w.agrees()
		user := w.users()[0]
		p := ledger.Partition(user, partitions)
		u, tok := userAccount(user), tokenAccount(user*10)
		hotEdit := func(sum ledger.Sum) func() {
			return func() {
				st, err := w.hot.State(w.t.Context(), p)
				must(w.t, err)
				_, err = w.hot.Apply(w.t.Context(), ledger.ApplyCall{Partition: p, From: st[0].Done, To: st[0].Done, Sums: []ledger.Sum{sum}})
				must(w.t, err)
			}
		}
		db := func(q string) func() { return func() { w.sql(q) } }
		where := fmt.Sprintf(" WHERE id = %d", user)
		account := func(a ledger.Account) string { return fmt.Sprintf(" WHERE kind = '%s' AND id = %d", a.Kind, a.ID) }
		for _, c := range []struct {
			store     string
			account   ledger.Account
			what      string
			by        int64
			edit, fix func()
		}{
			{"MySQL users.quota", u, "quota", 1, db("UPDATE users SET quota = quota + 1" + where), db("UPDATE users SET quota = quota - 1" + where)},
			{"MySQL users.used_quota", u, "used", -1, db("UPDATE users SET used_quota = used_quota - 1" + where), db("UPDATE users SET used_quota = used_quota + 1" + where)},
			{"MySQL users.request_count", u, "requests", 1, db("UPDATE users SET request_count = request_count + 1" + where), db("UPDATE users SET request_count = request_count - 1" + where)},
			{"MySQL tokens.remain_quota", tok, "quota", 1, db(fmt.Sprintf("UPDATE tokens SET remain_quota = remain_quota + 1 WHERE id = %d", tok.ID)), db(fmt.Sprintf("UPDATE tokens SET remain_quota = remain_quota - 1 WHERE id = %d", tok.ID))},
			{"MySQL tokens.used_quota", tok, "used", 1, db(fmt.Sprintf("UPDATE tokens SET used_quota = used_quota + 1 WHERE id = %d", tok.ID)), db(fmt.Sprintf("UPDATE tokens SET used_quota = used_quota - 1 WHERE id = %d", tok.ID))},
			{"MySQL channels.used_quota", channelAccount, "used", 1, db("UPDATE channels SET used_quota = used_quota + 1 WHERE id = 3"), db("UPDATE channels SET used_quota = used_quota - 1 WHERE id = 3")},
			{"MySQL ledger_accounts", u, "granted", 1, db("UPDATE ledger_accounts SET granted = granted + 1" + account(u)), db("UPDATE ledger_accounts SET granted = granted - 1" + account(u))},
			{"MySQL ledger_accounts", tok, "charged", 1, db("UPDATE ledger_accounts SET charged = charged + 1" + account(tok)), db("UPDATE ledger_accounts SET charged = charged - 1" + account(tok))},
			{"MySQL ledger_accounts", channelAccount, "requests", 1, db("UPDATE ledger_accounts SET requests = requests + 1" + account(channelAccount) + " AND slot = 0"), db("UPDATE ledger_accounts SET requests = requests - 1" + account(channelAccount) + " AND slot = 0")},
			{"MySQL ledger_accounts", u, "written", -1, db("UPDATE ledger_accounts SET pending_adopt = pending_adopt + 1" + account(u)), db("UPDATE ledger_accounts SET pending_adopt = pending_adopt - 1" + account(u))},
			{"hot counters", u, "granted", 1, hotEdit(ledger.Sum{Account: u, Granted: 1}), hotEdit(ledger.Sum{Account: u, Granted: -1})},
			{"hot counters", tok, "charged", -1, hotEdit(ledger.Sum{Account: tok, Charged: -1}), hotEdit(ledger.Sum{Account: tok, Charged: 1})},
		} {
			c.edit()
			w.differs(c.store, c.account, c.what, c.by)
			c.fix()
			w.agrees()
		}
		w.usageSQL("DELETE FROM ledger_usage WHERE kind = 'usage.settled' AND charged = 12 AND user_id = " + fmt.Sprint(user))
		w.differs("usage log", u, "charged", -12)
		w.differs("usage log", tok, "charged", -12)
		w.differs("usage log", channelAccount, "requests", -1)
	})
}

// differs asserts that verify names a difference.
func (w *world) differs(store string, account ledger.Account, what string, by int64) {
	w.t.Helper()
	v := w.verify()
	if v.OK() || !slices.ContainsFunc(v.Differences, func(d audit.Difference) bool {
		return d.Store == store && d.Account == account.String() && d.What == what && d.Got-d.Want == by
	}) {
		w.t.Errorf("verify does not name %s %s %s %+d: %+v", store, account, what, by, v)
	}
	var text strings.Builder
	v.Print(&text)
	for _, want := range []string{"NOT OK", store, account.String(), what, fmt.Sprintf("(%+d)", by)} {
		if !strings.Contains(text.String(), want) {
			w.t.Errorf("the printed verdict lacks %q:\n%s", want, text.String())
		}
	}
}

func TestVerifyNamesStrayHolds(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(1)
		w.settle()
		user := w.users()[0]
		p := ledger.Partition(user, partitions)
		closed := testID('n', 2)
		must(t, w.db.RegisterProducer(t.Context(), sqlstore.Producer{ID: closed, Node: "closed"}))
		for n, inc := range []ledger.ID{w.node, closed, testID('n', 3)} {
			st, err := w.hot.State(t.Context(), p)
			must(t, err)
			r, err := w.hot.Reserve(t.Context(), ledger.ReserveCall{Hold: testID('h', uint64(n)), Incarnation: inc, Partition: p, Epoch: st[0].Epoch, User: user, Min: 1, Want: 5})
			must(t, err)
			if r.Outcome != ledger.OutcomeGranted {
				t.Fatal(r)
			}
		}
		must(t, w.db.CloseProducer(t.Context(), closed))
		v := w.verify()
		if len(v.Differences) != 2 || v.Holds != 3 {
			t.Fatalf("%+v", v)
		}
		text := v.Differences[0].What + v.Differences[1].What
		if !strings.Contains(text, "closed incarnation "+closed.String()) || !strings.Contains(text, "unknown incarnation "+testID('n', 3).String()) {
			t.Errorf("%+v", v.Differences)
		}
	})
}

func TestVerifyTellsWhatLags(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(3)
	w.settle()
	user := w.users()[0]
	p := ledger.Partition(user, partitions)
	w.send(usageOf(user, 1))
	must(t, applyAll(t.Context(), w.log, w.balances, p))
	lags := func(what string) {
		t.Helper()
		v := w.verify()
		if v.OK() || len(v.Differences) > 0 || !strings.Contains(strings.Join(v.Lagging, "\n"), what) {
			t.Errorf("verify does not say that %s lags: %+v", what, v)
		}
	}
	lags("the usage log")
	w.apply()
	w.agrees()
	w.hot.(*hold.Local).Flush()
	lags(fmt.Sprintf("the hot counters of partition %d", p))
	w.settle()
	w.agrees()
	w.log.first[p] = 2
	lags(fmt.Sprintf("partition %d of the log begins at offset 2", p))
	w.log.first[p] = 0
	w.log.records[p] = w.log.records[p][:w.end(user)-1]
	lags("is not the one that the balances were made from")
}

func TestVerifyWaits(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(3)
	w.settle()
	w.send(usageOf(w.users()[0], 1))
	for p := range partitions {
		must(t, applyAll(t.Context(), w.log, w.balances, p))
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for p := range partitions {
			err = errors.Join(err, applyAll(context.WithoutCancel(t.Context()), w.log, w.rows, p))
		}
		done <- err
	}()
	v, err := audit.Verify(t.Context(), w.stores(), time.Minute)
	must(t, err)
	must(t, <-done)
	if !v.OK() {
		t.Errorf("%+v", v)
	}
}

// What L3 allows is no difference; it is counted and named.
func TestVerifyListsExceptions(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(2)
		w.settle()
		user := w.users()[0]
		p := ledger.Partition(user, partitions)
		old, err := w.hot.State(t.Context(), p)
		must(t, err)
		next, err := w.db.AllocateEpoch(t.Context(), p, old[0].Epoch)
		must(t, err)
		_, err = w.hot.Begin(t.Context(), next)
		must(t, err)
		must(t, w.db.CloseProducer(t.Context(), w.node))
		w.node = testID('n', 9) // only the new incarnation reports
		must(t, w.db.RegisterProducer(t.Context(), sqlstore.Producer{ID: w.node, Node: "node"}))
		w.settle()

		late := usageOf(user, 5)
		late.Hold = &ledger.HoldRef{ID: testID('h', 1), Epoch: old[0].Epoch, Amount: 9, Token: true}
		reporter := w.node
		w.node = testID('n', 1)
		w.send(late)
		w.node = reporter
		w.send(late) // of one who reported it is not late
		excess := usageOf(user, 25)
		excess.Hold = &ledger.HoldRef{ID: testID('h', 2), Epoch: next.Epoch, Amount: 20, Token: true}
		w.send(excess)
		lowered := credit(w.users()[1], -2_000_000)
		w.send(lowered)
		w.apply()
		v := w.agrees()
		e := v.Exceptions
		if e.Late != (audit.Tally{Events: 1, Quota: 5}) || e.Excess != (audit.Tally{Events: 1, Quota: 5}) || e.Overdrawn.Events != 1 || len(e.Examples) != 3 {
			t.Errorf("exceptions %+v, want one late charge of 5, one excess of 5, one user below zero, an example of each", e)
		}
	})
}

// A charge is late if any epoch that is newer than its own was opened without its incarnation: also one that slept through it and reported to the
// next.
func TestLateIsToldFromTheEpochs(t *testing.T) {
	slept, awake := testID('n', 1), testID('n', 2)
	epochs := []ledger.EpochRecord{
		{Epoch: 10, End: 0, Reporters: []ledger.ID{slept, awake}},
		{Epoch: 20, End: 100, Reporters: []ledger.ID{awake}},
		{Epoch: 30, End: 200, Reporters: []ledger.ID{slept, awake}},
	}
	for _, c := range []struct {
		producer ledger.ID
		epoch    uint64
		offset   int64
		want     bool
	}{
		{slept, 10, 99, false},
		{slept, 10, 100, true},
		{slept, 10, 250, true},
		{slept, 20, 250, false},
		{slept, 30, 250, false},
		{awake, 10, 150, false},
		{awake, 10, 250, false},
	} {
		r := ledger.Record{Offset: c.offset, Event: ledger.Event{Producer: c.producer, Hold: &ledger.HoldRef{Epoch: c.epoch, Amount: 1}}}
		if got := audit.Late(epochs, &r); got != c.want {
			t.Errorf("%+v: late is %v", c, got)
		}
	}
}

// A dead letter is in the log and the usage log and not in the balances; re-driven, it is in all of them, wherever verify looks from.
func TestVerifyCountsDeadLettersOnce(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(2)
		user := w.users()[0]
		p := ledger.Partition(user, partitions)
		w.settle()
		w.send(credit(user, math.MaxInt64-2_000_000-1_000_000))
		w.settle()
		over := credit(user, 5_000_000) // leaves 64 bits
		over.ID, over.Key = testID('x', 1), ""
		at := w.send(over)
		w.log.add(ledger.Record{Partition: p, Value: []byte("{"), Err: errors.New("no event")})
		w.apply()
		if v := w.agrees(); v.Exceptions.DeadLetters != 2 {
			t.Errorf("%d dead letters wait, want 2", v.Exceptions.DeadLetters)
		}
		w.send(credit(user, -6_000_000))
		w.apply()
		again := w.log.records[p][at].Event
		again.Redrive = true
		w.send(again)
		w.send(usageOf(user, 1))
		w.apply()
		v := w.agrees()
		if v.Exceptions.DeadLetters != 1 || v.Exceptions.Redriven.Events != 1 {
			t.Errorf("%+v, want one dead letter and one that was re-driven", v.Exceptions)
		}
	})
}

func TestVerifyCountsDuplicatesOnce(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(4)
		for p := range partitions {
			w.again(p, 0)
			w.again(p, 3)
		}
		user := w.users()[0]
		keyed := credit(user, 77)
		w.send(keyed)
		w.send(keyed) // moved again by another node: another event with the same key
		w.settle()
		w.agrees()
	})
}

// Under traffic, with epochs that are rebuilt all the time, verify never raises a false alarm.
func TestVerifyUnderTraffic(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(2)
		w.settle()
		stop := w.keepGoing(true)
		defer stop()
		for verdicts := range 6 {
			v, err := audit.Verify(t.Context(), w.stores(), time.Minute)
			must(t, err)
			if !v.OK() {
				t.Fatalf("after %d verdicts: %+v", verdicts, v)
			}
		}
	})
}

// keepGoing lets events flow into all projections until the returned function is called. With losses, the counters lose everything now and
// then.
func (w *world) keepGoing(losses bool) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var wg sync.WaitGroup
	loop := func(every time.Duration, f func() error) {
		wg.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if err := f(); err != nil && ctx.Err() == nil && !errors.Is(err, consumers.ErrFenced) && !sqlstore.IsTransient(err) {
					w.t.Errorf("traffic: %v", err)
					return
				}
			}
		})
	}
	n := 0
	loop(2*time.Millisecond, func() error {
		n++
		users := w.users()
		user := users[n%len(users)]
		e := usageOf(user, int64(n%50))
		if n%17 == 0 {
			e = credit(user, int64(100_000+n))
		}
		offset := w.send(e)
		if n%29 == 0 {
			w.again(ledger.Partition(user, partitions), offset)
		}
		return nil
	})
	for p := range partitions {
		loop(7*time.Millisecond, func() error {
			if err := applyAll(ctx, w.log, w.balances, p); err != nil {
				return err
			}
			return w.balances.Look(ctx, p)
		})
		loop(31*time.Millisecond, func() error { return applyAll(ctx, w.log, w.rows, p) })
		loop(5*time.Millisecond, func() error { return w.report(ctx, p) })
		loop(11*time.Millisecond, func() error { return w.load(ctx, p) })
		if losses {
			loop(400*time.Millisecond, func() error {
				st, err := w.hot.State(ctx, p)
				if err != nil {
					return err
				}
				call, err := w.db.AllocateEpoch(ctx, p, st[0].Epoch)
				if err != nil {
					return err
				}
				_, err = w.hot.Begin(ctx, call)
				return err
			})
		}
	}
	return func() { cancel(); wg.Wait() }
}
