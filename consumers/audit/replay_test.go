package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ledgerline/consumers/audit"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/sqlstore"
)

var fromLog = audit.ReplayOptions{Source: audit.FromLog, Target: audit.ToBalances}

func (w *world) replay(o audit.ReplayOptions) *audit.ReplayReport {
	w.t.Helper()
	r, err := audit.Replay(w.t.Context(), w.stores(), o)
	must(w.t, err)
	return r
}

// emptyBalances is what an operator does before a replay, at the worst: in one transaction, so that nobody takes it for hand edits.
func (w *world) emptyBalances() {
	w.t.Helper()
	must(w.t, w.db.Tx(w.t.Context(), func(tx *sqlstore.Tx) error {
		for _, q := range []string{
			"DELETE FROM ledger_accounts WHERE slot >= 0", "UPDATE users SET quota = 0, used_quota = 0, request_count = 0",
			"UPDATE tokens SET remain_quota = 0, used_quota = 0", "UPDATE channels SET used_quota = 0",
		} {
			if _, err := tx.Exec(w.t.Context(), q); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (w *world) emptyUsage() {
	w.t.Helper()
	for _, table := range []string{"ledger_usage", "ledger_events", "ledger_usage_positions", "ledger_usage_dead"} {
		w.usageSQL("DELETE FROM " + table + " WHERE part >= 0")
	}
}

func TestReplayRestoresEmptiedBalances(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(5)
		w.log.add(ledger.Record{Value: []byte("{"), Err: errors.New("no event")})
		w.again(0, 2)
		w.settle()
		w.agrees()
		for _, source := range []audit.Source{audit.FromLog, audit.FromUsage} {
			before, err := w.hot.State(t.Context(), 0)
			must(t, err)
			w.emptyBalances()
			if w.verify().OK() {
				t.Fatal("verify does not see that the balances are gone")
			}
			dry := w.replay(audit.ReplayOptions{Source: source, Target: audit.ToBalances, DryRun: true})
			if len(dry.Differences) == 0 || dry.Changed == 0 || w.verify().OK() {
				t.Errorf("%s: a dry run reports %+v", source, dry)
			}
			if r := w.replay(audit.ReplayOptions{Source: source, Target: audit.ToBalances}); r.Changed < 2*len(w.users()) || r.Events == 0 || r.Adopted != 0 {
				t.Errorf("%s: %+v", source, r)
			}
			after, err := w.hot.State(t.Context(), 0)
			must(t, err)
			if after[0].Epoch <= before[0].Epoch || after[0].Open {
				t.Errorf("%s: no new epoch began: %+v", source, after[0])
			}
			w.settle()
			w.agrees()
			if again := w.replay(audit.ReplayOptions{Source: source, Target: audit.ToBalances, DryRun: true}); again.Changed != 0 || len(again.Differences) != 0 {
				t.Errorf("%s: a dry run after the replay reports %+v", source, again)
			}
		}
	})
}

func TestReplayRestoresTheUsageLog(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(5)
		w.again(1, 2)
		w.log.add(ledger.Record{Value: []byte("{"), Err: errors.New("no event")}) // the last one of its partition
		w.settle()
		w.emptyUsage()
		if w.verify().OK() {
			t.Fatal("verify does not see that the usage log is gone")
		}
		w.replay(audit.ReplayOptions{Source: audit.FromLog, Target: audit.ToUsage})
		w.agrees()
		letters, err := w.usage.DeadLetters(t.Context(), 0, -1, 10)
		must(t, err)
		if len(letters) != 1 {
			t.Errorf("%d dead letters in the usage log, want 1", len(letters))
		}
		w.consume() // from the position that the replay stored
		w.send(usageOf(w.users()[0], 3))
		w.apply()
		w.agrees()
	})
}

// Traffic goes on, flush upon flush, while balances, counters and usage log are rebuilt.
func TestReplayUnderTraffic(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(5)
		w.settle()
		stop := w.keepGoing(false)
		defer stop()
		for _, o := range []audit.ReplayOptions{
			fromLog, {Source: audit.FromUsage, Target: audit.ToBalances}, {Source: audit.FromLog, Target: audit.ToUsage}, fromLog,
		} {
			if o.Target == audit.ToBalances {
				w.sql("UPDATE ledger_accounts SET charged = charged + 5 WHERE kind = 'user'")
			}
			w.replay(o)
		}
		v, err := audit.Verify(t.Context(), w.stores(), time.Minute)
		must(t, err)
		if !v.OK() {
			t.Errorf("%+v", v)
		}
	})
}

// A partition whose every look finds it further on is replayed under its lock.
func TestReplayFollowsAPartitionUnderItsLock(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(5)
	w.settle()
	user := w.users()[0]
	p := ledger.Partition(user, partitions)
	w.sql(fmt.Sprintf("UPDATE ledger_accounts SET charged = charged + 7 WHERE kind = 'user' AND id = %d", user))
	stores := w.stores()
	moving := &movingLog{memoryLog: w.log}
	moving.moved = func() { // between the last look at the position and the lock
		w.send(usageOf(user, 1))
		must(t, applyAll(t.Context(), w.log, w.balances, p))
	}
	stores.Log = moving
	r, err := audit.Replay(t.Context(), stores, fromLog)
	must(t, err)
	if r.Changed == 0 || moving.moved != nil {
		t.Errorf("%+v", r)
	}
	w.settle()
	w.agrees()
}

// movingLog lets the partition move after it was read once.
type movingLog struct {
	*memoryLog
	moved func()
}

func (l *movingLog) Read(ctx context.Context, partition int, from, to int64, fn func([]ledger.Record) error) error {
	err := l.memoryLog.Read(ctx, partition, from, to, fn)
	if moved := l.moved; moved != nil {
		l.moved = nil
		moved()
	}
	return err
}

// Somebody edited a balance by hand and nobody had looked: the replay adopts it, and takes nothing away.
func TestReplayAdoptsHandEdits(t *testing.T) {
	onEngines(t, func(w *world) {
		w.traffic(3)
		w.settle()
		user := w.users()[0]
		w.sql(fmt.Sprintf("UPDATE users SET quota = quota + 12345 WHERE id = %d", user))
		if r := w.replay(fromLog); r.Adopted != 1 || r.Changed != 0 {
			t.Fatalf("%+v, want one edit adopted and nothing changed", r)
		}
		rows, err := w.db.OutboxPending(t.Context(), 10)
		must(t, err)
		if len(rows) != 1 || rows[0].Event.Kind != ledger.KindCreditAdopted || rows[0].Event.Granted != 12345 {
			t.Fatalf("outbox: %+v", rows)
		}
		w.settle()
		w.agrees() // the column holds the edit already, as pending
		w.send(rows[0].Event)
		w.settle()
		w.agrees()
		_, balances, err := w.db.Balances(t.Context(), ledger.Partition(user, partitions), []ledger.Account{userAccount(user)})
		must(t, err)
		if got := w.replay(fromLog); got.Adopted != 0 || got.Changed != 0 {
			t.Errorf("a second replay: %+v", got)
		}
		if b := balances[userAccount(user)]; b.Granted%100_000 == 0 || w.verify().Exceptions.Overdrawn.Events != 0 {
			t.Errorf("balance %+v", b)
		}
	})
}

// brokenCounters die when an epoch is to begin.
type brokenCounters struct {
	hold.Counters
	broken bool
}

var errDied = errors.New("the process died here")

func (c *brokenCounters) Begin(ctx context.Context, call ledger.BeginCall) (bool, error) {
	if c.broken {
		return false, errDied
	}
	return c.Counters.Begin(ctx, call)
}

// A replay that dies between the balances and the counters is told by verify, and set right by another one.
func TestReplayKilledBetweenItsSteps(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(3)
	w.apply()
	w.sql("UPDATE ledger_accounts SET granted = granted + 50 WHERE kind = 'user'")
	w.settle() // the counters load the wrong balances
	stores := w.stores()
	counters := &brokenCounters{Counters: w.hot, broken: true}
	stores.Counters = counters
	if _, err := audit.Replay(t.Context(), stores, fromLog); !errors.Is(err, errDied) {
		t.Fatalf("Replay = %v", err)
	}
	v := w.verify()
	if v.OK() || !strings.Contains(fmt.Sprint(v.Differences), "hot counters") {
		t.Errorf("verify does not tell that the counters hold the old balances: %+v", v)
	}
	counters.broken = false
	_, err := audit.Replay(t.Context(), stores, fromLog)
	must(t, err)
	w.settle()
	w.agrees()
}

func TestReplayRefuses(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(3)
	w.settle()
	w.log.first = [partitions]int64{2, 2}
	if _, err := audit.Replay(t.Context(), w.stores(), fromLog); err == nil || !strings.Contains(err.Error(), "usagelog") {
		t.Errorf("a log that does not reach back: %v", err)
	}
	r := w.replay(audit.ReplayOptions{Source: audit.FromUsage, Target: audit.ToBalances})
	if r.Changed != 0 {
		t.Errorf("%+v", r)
	}
	w.log.first = [partitions]int64{}
	w.log.records[0][1].Err = fmt.Errorf("kind %q: %w", "x", ledger.ErrNewer)
	if _, err := audit.Replay(t.Context(), w.stores(), fromLog); !errors.Is(err, ledger.ErrNewer) {
		t.Errorf("a record that only a newer binary can count: %v", err)
	}
	if _, err := audit.Verify(t.Context(), w.stores(), 0); !errors.Is(err, ledger.ErrNewer) {
		t.Errorf("verify of such a record: %v", err)
	}
	for _, o := range []audit.ReplayOptions{
		{Source: "x", Target: audit.ToBalances},
		{Source: audit.FromLog, Target: "x"},
		{Source: audit.FromUsage, Target: audit.ToUsage},
		{Source: audit.FromLog, Target: audit.ToUsage, DryRun: true},
	} {
		if o.Check() == nil {
			t.Errorf("%+v passes", o)
		}
	}
	if err := fromLog.Check(); err != nil {
		t.Error(err)
	}
	dry := audit.ReplayOptions{Source: audit.FromLog, Target: audit.ToUsage, DryRun: true}
	if err := dry.Check(); err == nil || !strings.Contains(err.Error(), "-target usagelog") || !strings.Contains(err.Error(), "-dry-run") {
		t.Errorf("a dry run of the usage log: %v, want the flags that do not go together", err)
	}
}

func TestReplayTellsItsProgressAndPrints(t *testing.T) {
	w := newWorld(t, time.Now)
	w.traffic(2)
	w.settle()
	w.sql("UPDATE ledger_accounts SET charged = charged + 1 WHERE kind = 'token'")
	o := fromLog
	o.DryRun = true
	r := w.replay(o)
	var text strings.Builder
	r.Print(&text, true)
	token := tokenAccount(w.users()[0] * 10)
	for _, want := range []string{"DIFFERS", token.String(), "charged", "dry run", fmt.Sprintf("%d changed", len(w.users()))} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
}
