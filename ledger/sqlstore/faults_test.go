package sqlstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

var errKilled = errors.New("killed")

// killedAt runs fn with a kill before the nth statement, BEGIN and COMMIT included, for every n until fn succeeds. After
// each kill the database must be what it was.
func killedAt(t *testing.T, s *Store, what string, fn func() error) (statements int) {
	t.Helper()
	before := dumpAll(t, s)
	for n := 1; ; n++ {
		count := 0
		s.fault = func(string) error {
			if count++; count == n {
				return errKilled
			}
			return nil
		}
		err := fn()
		s.fault = nil
		if err == nil {
			return count
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("%s, killed before statement %d: %v", what, n, err)
		}
		if d := cmp.Diff(before, dumpAll(t, s)); d != "" {
			t.Fatalf("%s, killed before statement %d, left (-before +after):\n%s", what, n, d)
		}
	}
}

// Every write is one transaction: killed between any two statements, it leaves nothing.
func TestKilledBetweenStatements(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(1, 0)
		exec(t, s, "INSERT INTO users (id, username, password, quota) VALUES (?, 'u', 'x', 100)", u)
		exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota) VALUES (5, ?, 'k', 100)", u)
		channel(t, s, 1)
		channel(t, s, poisonChannel)
		poison(t, s, true)
		opened := false
		killedAt(t, s, "OpenAccounts", func() error {
			// Users, tokens and channels are opened in transactions of their own: look at the users' alone.
			if opened {
				return nil
			}
			err := s.Tx(ctx, func(tx *Tx) error { _, err := tx.open(ctx, ledger.UserAccount, []int64{u}); return err })
			opened = err == nil
			return err
		})
		value[OpenResult](t)(s.OpenAccounts(ctx))
		exec(t, s, "UPDATE users SET quota = quota + 7")
		l := newLog(1)
		rows := value[[]OutboxRow](t)(s.OutboxPending(ctx, 10))
		l.add(id(1), rows[0].Event)
		l.add(id(1), usage(u, 5, 1, 3))
		l.add(id(1), usage(u, 5, poisonChannel, 3))
		l.add(id(1), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 4, Key: businessKey(u, "redeem", "lost")})
		n := killedAt(t, s, "Flush", func() error { _, err := s.Flush(ctx, l.call(0, l.end())); return err })
		if n < 20 {
			t.Errorf("the flush had only %d statements: the test has lost its point", n)
		}
		bad := l.records[2].Event.ID
		killedAt(t, s, "Redrive", func() error { return s.Redrive(ctx, bad) })
		exec(t, s, "UPDATE tokens SET remain_quota = 1")
		killedAt(t, s, "ScanEdits", func() error {
			_, err := s.ScanEdits(ctx, ScanCall{Kind: ledger.TokenAccount, Limit: 10})
			return err
		})
		exec(t, s, "UPDATE tokens SET remain_quota = 2")
		killedAt(t, s, "ReplayPartition", func() error {
			_, err := s.ReplayPartition(ctx, ReplayCall{Partition: 1, Offset: l.end(), Balances: map[ledger.Account]ledger.Balance{}})
			return err
		})
		killedAt(t, s, "TakeSnapshot", func() error { _, err := s.TakeSnapshot(ctx, 1); return err })
		killedAt(t, s, "AllocateEpoch", func() error { _, err := s.AllocateEpoch(ctx, 1, 0); return err })
		killedAt(t, s, "Tx", func() error {
			return s.Tx(ctx, func(tx *Tx) error { tx.Changed("user", u); tx.Changed("user", u); return nil })
		})
	})
}

// Two consumers that believe they own one partition: each range is applied once.
func TestZombieIsFenced(t *testing.T) {
	run := func(t *testing.T, stores [2]*Store) {
		u := userIn(1, 0)
		user(t, stores[0], u)
		l := newLog(1)
		for range 300 {
			l.add(id(1), usage(u, 0, 0, 1))
		}
		var fenced atomic.Int64
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, s := range stores {
			wg.Go(func() {
				for from := int64(0); from < l.end(); {
					_, err := s.Flush(context.Background(), l.call(from, min(from+int64(7+i), l.end())))
					if err == nil {
						from = min(from+int64(7+i), l.end())
						continue
					}
					if !errors.Is(err, ErrFenced) && !IsTransient(err) {
						errs[i] = err
						return
					}
					fenced.Add(1)
					state, err := s.Partition(context.Background(), 1)
					if err != nil {
						errs[i] = err
						return
					}
					from = state.Offset
				}
			})
		}
		wg.Wait()
		must(t, errs[0])
		must(t, errs[1])
		if fenced.Load() == 0 {
			t.Error("the two never met")
		}
		diff(t, "balances", balancesOf(t, stores[0]), map[ledger.Account]ledger.Balance{{Kind: ledger.UserAccount, ID: u}: {Charged: 300, Requests: 300}})
	}
	t.Run("sqlite", func(t *testing.T) {
		s := initialised(t, openSQLite(t))
		run(t, [2]*Store{s, opened(t, Config{SQLitePath: s.name})})
	})
	t.Run("mysql", func(t *testing.T) {
		dsn := ledgertest.MySQL(t)
		run(t, [2]*Store{initialised(t, openMySQL(t, dsn)), openMySQL(t, dsn)})
	})
}

// Flushes of all partitions, which share channels, while somebody edits, scans and redeems: nothing is lost, and
// deadlocks, if any, are transient.
func TestConcurrentWriters(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		channel(t, s, 1)
		channel(t, s, 2)
		logs := map[int]*logOf{}
		for p := range testPartitions {
			user(t, s, userIn(p, 0))
			token(t, s, 100+int64(p), userIn(p, 0))
			logs[p] = newLog(p)
			for i := range 60 {
				logs[p].add(id(uint64(p+1)), usage(userIn(p, 0), 100+int64(p), int64(1+i%2), 2))
			}
		}
		var wg sync.WaitGroup
		var failures sync.Map
		retry := func(what string, fn func() error) {
			for {
				err := fn()
				if err == nil {
					return
				}
				if !IsTransient(err) {
					failures.Store(what, err)
					return
				}
			}
		}
		for p, l := range logs {
			wg.Go(func() {
				for from := int64(0); from < l.end(); from += 5 {
					retry("flush", func() error { _, err := s.Flush(ctx, l.call(from, from+5)); return err })
				}
			})
			wg.Go(func() {
				for range 10 {
					retry("edit", func() error {
						_, err := s.write.ExecContext(ctx, "UPDATE users SET quota = quota + 5 WHERE id = ?", userIn(p, 0))
						return err
					})
					retry("scan", func() error { _, err := s.ScanAll(ctx); return err })
				}
			})
		}
		wg.Wait()
		failures.Range(func(what, err any) bool { t.Errorf("%s: %v", what, err); return true })
		pump(t, s, logs)
		balances := balancesOf(t, s)
		for p := range testPartitions {
			diff(t, "user", balances[ledger.Account{Kind: ledger.UserAccount, ID: userIn(p, 0)}], ledger.Balance{Granted: 50, Charged: 120, Requests: 60})
			if q := number(t, s, "SELECT quota FROM users WHERE id = ?", userIn(p, 0)); q != -70 {
				t.Errorf("quota %d, want -70", q)
			}
		}
		if used := number(t, s, "SELECT SUM(used_quota) FROM channels"); used != 120*testPartitions {
			t.Errorf("channels used %d, want %d", used, 120*testPartitions)
		}
	})
}

// A hundred clients redeem one code at once: the unique key lets one through.
func TestOneKeyOnce(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		user(t, s, 7)
		var wg sync.WaitGroup
		var done, refused atomic.Int64
		for range 100 {
			wg.Go(func() {
				err := s.Tx(t.Context(), func(tx *Tx) error {
					_, err := tx.Outbox(t.Context(), ledger.Event{Kind: ledger.KindCreditGranted, User: 7, Granted: 20}, "redeem:CODE:7")
					return err
				})
				switch {
				case err == nil:
					done.Add(1)
				case errors.Is(err, ErrExists):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if done.Load() != 1 || refused.Load() != 99 {
			t.Errorf("%d done, %d refused", done.Load(), refused.Load())
		}
	})
}

// The number of statements of a flush depends on the kinds of things it touches, not on its events.
func TestStatementsGrowWithAccountsNotEvents(t *testing.T) {
	s := initialised(t, openSQLite(t))
	u := userIn(0, 0)
	user(t, s, u)
	count := func(events int) int {
		l := newLog(0)
		for range events {
			l.add(id(1), usage(u, 0, 1, 1))
		}
		n := 0
		s.fault = func(string) error { n++; return nil }
		defer func() { s.fault = nil }()
		_, err := s.Flush(t.Context(), l.call(0, l.end()))
		must(t, err)
		rewind(t, s)
		return n
	}
	one, many := count(1), count(5000)
	if one != many || many > 20 {
		t.Errorf("%d statements for one event, %d for 5,000", one, many)
	}
}
