package audit_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"ledgerline/consumers/audit"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

const day = 24 * time.Hour

// keeper notes the life that rows were given; like ClickHouse's, it refuses one that would take what is needed.
type keeper struct {
	usagelog.Store
	now  func() time.Time
	days int
	from time.Time
}

func (k *keeper) SetTTL(_ context.Context, days int, needed time.Time) error {
	k.days, k.from = 0, needed
	if before := k.now().AddDate(0, 0, -days); days > 0 && before.After(needed) {
		return &usagelog.RetentionError{Before: before, Needed: needed}
	}
	k.days = days
	return nil
}

// calendar is a world whose time a test moves.
func calendar(t *testing.T) (*world, *time.Time, *keeper) {
	at := time.Date(2027, 1, 15, 8, 0, 0, 0, time.UTC)
	w := newWorld(t, func() time.Time { return at })
	return w, &at, &keeper{Store: w.usage, now: func() time.Time { return at }}
}

func (w *world) retain(k usagelog.Keeper, days int) error {
	return audit.Retain(w.t.Context(), audit.Retention{DB: w.db, Usage: k, Days: days, Log: slog.New(slog.DiscardHandler), Now: w.now})
}

func (w *world) snapshots() []sqlstore.SnapshotInfo {
	w.t.Helper()
	list, err := w.db.Snapshots(w.t.Context())
	must(w.t, err)
	return list
}

func TestRetainTakesAndDropsSnapshots(t *testing.T) {
	w, now, k := calendar(t)
	w.traffic(1)
	w.apply()
	const days = 10
	for hour := range 24 * 30 {
		must(t, w.retain(k, days))
		if k.days != days {
			t.Fatalf("hour %d: rows live %d days", hour, k.days)
		}
		list := w.snapshots()
		if n := len(list) / partitions; n > days+3 {
			t.Fatalf("hour %d: %d snapshots of a partition", hour, n)
		}
		*now = now.Add(6 * time.Hour)
	}
	perPartition := map[int][]time.Duration{}
	for _, s := range w.snapshots() {
		perPartition[s.Partition] = append(perPartition[s.Partition], now.Sub(s.TakenAt))
	}
	for p, ages := range perPartition {
		older := 0
		for _, age := range ages {
			if age > days*day {
				older++
			}
		}
		if older > 2 || len(ages) < days-1 {
			t.Errorf("partition %d has snapshots of the ages %v", p, ages)
		}
	}
	must(t, w.retain(k, 0))
	if k.days != 0 || !k.from.IsZero() {
		t.Errorf("without a TTL: %+v", k)
	}
}

// If no snapshot can be taken any more, rows stop expiring before the oldest that is needed is in danger.
func TestRetainStopsExpiryWithoutSnapshots(t *testing.T) {
	w, now, k := calendar(t)
	w.traffic(1)
	w.apply()
	must(t, w.retain(k, 4))
	w.sql("CREATE TRIGGER full BEFORE INSERT ON ledger_snapshots BEGIN SELECT RAISE(ABORT, 'disk full'); END")
	*now = now.Add(3 * day)
	if err := w.retain(k, 4); err == nil || k.days != 4 {
		t.Errorf("after 3 of 4 days: %v, rows live %d days; want an error, and 4", err, k.days)
	}
	*now = now.Add(2 * day)
	var refused *usagelog.RetentionError
	if err := w.retain(k, 4); !errors.As(err, &refused) || k.days != 0 {
		t.Errorf("after 5 of 4 days: %v, rows live %d days; want a refusal", err, k.days)
	}
	w.sql("DROP TRIGGER full")
	must(t, w.retain(k, 4))
	if k.days != 4 {
		t.Error("rows do not expire again")
	}
}

// With ClickHouse itself: the first snapshot lets rows expire, and nothing else does.
func TestRetainSetsTheLifeOfRows(t *testing.T) {
	usage, err := usagelog.Open(t.Context(), usagelog.Config{DSN: ledgertest.ClickHouse(t)})
	must(t, err)
	w := buildWorld(t, sqlstore.Config{SQLitePath: t.TempDir() + "/ledger.db"}, usage, hold.NewLocal(), time.Now)
	var refused *usagelog.RetentionError
	if err := usage.SetTTL(t.Context(), 7, time.Time{}); !errors.As(err, &refused) {
		t.Fatalf("a TTL without a snapshot: %v", err)
	}
	must(t, w.retain(usage, 7))
	must(t, w.retain(usage, 0))
}

// What is older than the snapshots is gone from the usage log and from the log: verify and replay begin at a snapshot. Dead letters and
// their re-drives lie on both sides of it.
func TestVerifyAndReplayBeginAtASnapshot(t *testing.T) {
	w, now, k := calendar(t)
	const days = 4
	user := w.users()[0]
	w.traffic(4)
	w.settle()
	w.send(credit(user, 1<<62))
	w.settle()
	over := credit(user, 1<<62)
	over.ID, over.Key = testID('x', 1), ""
	at := w.send(over)
	w.apply()
	old := now.Add(time.Hour)
	*now = old
	must(t, w.retain(k, days))

	*now = now.Add(2 * day)
	for _, u := range w.users() {
		w.send(usageOf(u, 100))
	}
	w.send(credit(user, -1<<61))
	w.send(credit(user, -1<<61-1))
	again := w.log.records[ledger.Partition(user, partitions)][at].Event
	again.Redrive = true
	w.send(again)
	w.send(usageOf(user, 9))
	w.settle()
	w.agrees()

	removed, err := w.usage.DeleteBefore(t.Context(), old, old)
	must(t, err)
	if removed == 0 {
		t.Fatal("no rows expired")
	}
	stores := w.stores()
	if v := w.verify(); v.OK() {
		t.Fatal("verify does not miss the rows that expired, though it was not told that they do")
	}
	stores.UsageKept = days * day
	check := func(when string) {
		t.Helper()
		v, err := auditAt(w, stores)
		must(t, err)
		if !v.OK() {
			t.Errorf("%s: %+v", when, v)
		}
	}
	check("the usage log begins at the snapshot")

	for _, s := range w.snapshots() {
		w.log.first[s.Partition] = s.Offset
	}
	check("the log does, too")

	for _, source := range []audit.Source{audit.FromUsage, audit.FromLog} {
		w.emptyBalances()
		r, err := audit.ReplayAt(t.Context(), stores, audit.ReplayOptions{Source: source, Target: audit.ToBalances}, *now)
		must(t, err)
		if r.Changed == 0 {
			t.Errorf("%s: %+v", source, r)
		}
		w.settle()
		check("after a replay from " + string(source))
	}
	w.sql("UPDATE ledger_accounts SET charged = charged + 1 WHERE kind = 'user'")
	if v, err := auditAt(w, stores); err != nil || v.OK() {
		t.Errorf("verify from a snapshot does not see an edit: %+v, %v", v, err)
	}
}

// auditAt verifies at the world's time.
func auditAt(w *world, s audit.Stores) (*audit.Verdict, error) {
	return audit.VerifyAt(w.t.Context(), s, 0, w.now())
}
