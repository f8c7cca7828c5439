package sqlstore

import (
	"encoding/json"
	"errors"
	"os"
	"testing"

	"ledgerline/ledger"
)

// TestOpeningIsResumedAnywhere kills the first start before every statement of it in turn, and lets the next one go on: there is one
// opening event for each user and key, whatever was there already.
func TestOpeningIsResumedAnywhere(t *testing.T) {
	s, dsn := newAPIDatabase(t)
	initialised(t, s)
	var want facts
	must(t, json.Unmarshal(value[[]byte](t)(os.ReadFile("testdata/newapi.facts.json")), &want))
	kills := 0
	for n, done := 1, false; !done; n++ {
		exec(t, s, "DELETE FROM ledger_accounts")
		exec(t, s, "DELETE FROM ledger_outbox")
		count := 0
		s.fault = func(string) error {
			if count++; count == n {
				return errKilled
			}
			return nil
		}
		_, err := s.OpenAccounts(t.Context())
		s.fault = nil
		if done = err == nil; !done && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		kills++
		value[OpenResult](t)(openMySQL(t, dsn).OpenAccounts(t.Context()))
		if k := number(t, s, "SELECT COUNT(DISTINCT event_key) FROM ledger_outbox WHERE kind = 'account.opened'"); k != int64(len(want.Users)+len(want.Tokens)) {
			t.Fatalf("killed before statement %d: %d opening events, want %d + %d", n, k, len(want.Users), len(want.Tokens))
		}
		if k := number(t, s, "SELECT COUNT(*) FROM ledger_accounts WHERE slot = -1"); k != int64(len(want.Channels)) {
			t.Fatalf("killed before statement %d: %d channels, want %d", n, k, len(want.Channels))
		}
	}
	if kills < 15 {
		t.Errorf("%d kills: the test has lost its point", kills)
	}
	pump(t, s, map[int]*logOf{})
	for _, u := range want.Users {
		diff(t, "user", balancesOf(t, s)[ledger.Account{Kind: ledger.UserAccount, ID: u.ID}], ledger.Balance{Granted: u.Quota + u.UsedQuota, Charged: u.UsedQuota, Requests: u.RequestCount})
	}
}

// TestNarrowColumnsSaturate: a balance and counters that cross 2^31 stand at the column's end meanwhile, no partition blocks, the truth
// stays in the accounts, and when the balance comes back the column is exact again.
func TestNarrowColumnsSaturate(t *testing.T) {
	s, _ := newAPIDatabase(t)
	exec(t, s, "ALTER TABLE users MODIFY quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0, MODIFY request_count int DEFAULT 0")
	exec(t, s, "ALTER TABLE tokens MODIFY remain_quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0")
	const end, u, k = 1<<31 - 1, 2, 4
	exec(t, s, "UPDATE users SET quota = ?, used_quota = ?, request_count = ? WHERE id = 2", int64(end-50), int64(end-30), int64(end-1))
	exec(t, s, "UPDATE tokens SET remain_quota = ?, used_quota = ? WHERE id = 4", int64(-end), int64(end-30))
	initialised(t, s)
	value[OpenResult](t)(s.OpenAccounts(t.Context()))
	logs := map[int]*logOf{}
	pump(t, s, logs)
	p := ledger.Partition(u, testPartitions)
	if logs[p] == nil {
		logs[p] = newLog(p)
	}
	columns := func() [5]int64 {
		t.Helper()
		var c [5]int64
		for i, q := range []string{
			"SELECT quota FROM users WHERE id = 2", "SELECT used_quota FROM users WHERE id = 2", "SELECT request_count FROM users WHERE id = 2",
			"SELECT remain_quota FROM tokens WHERE id = 4", "SELECT used_quota FROM tokens WHERE id = 4",
		} {
			c[i] = number(t, s, q)
		}
		return c
	}
	apply := func(e ledger.Event) FlushResult {
		t.Helper()
		logs[p].add(id(5), e)
		r := logs[p].flush(t, s)
		if r.Applied != 1 || len(r.Dead) > 0 {
			t.Fatalf("flush: %+v", r)
		}
		return r
	}
	grant := func(amount int64) ledger.Event {
		return ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: amount, Key: businessKey(u, "admin", ledgerName(amount+1e12))}
	}
	if r := apply(grant(4_000_000_000)); len(r.Saturated) != 1 {
		t.Errorf("a grant above the end: saturated %v", r.Saturated)
	}
	diff(t, "columns above the end", columns(), [5]int64{end, end - 30, end - 1, -end, end - 30})
	for range 3 { // each crosses another end: of used_quota, of request_count, of remain_quota
		if r := apply(usage(u, k, 1, 20)); len(r.Saturated) == 0 {
			t.Error("a charge of a saturated account is not said")
		}
	}
	diff(t, "columns after charges", columns(), [5]int64{end, end, end, -end - 1, end})
	if r := value[ScanResult](t)(s.ScanAll(t.Context())); r.Adopted != 0 || len(r.Alarms) != 0 {
		t.Errorf("the saturated columns are taken for edits: %+v", r)
	}
	balances := balancesOf(t, s)
	diff(t, "user", balances[ledger.Account{Kind: ledger.UserAccount, ID: u}], ledger.Balance{Granted: 2*end - 80 + 4_000_000_000, Charged: end + 30, Requests: end + 2})
	diff(t, "token", balances[ledger.Account{Kind: ledger.TokenAccount, ID: k}], ledger.Balance{Granted: -30, Charged: end + 30, Requests: 3})
	apply(grant(-4_000_000_000))
	if got := number(t, s, "SELECT quota FROM users WHERE id = 2"); got != end-50-60 {
		t.Errorf("the column is %d once it can hold the balance again, want %d", got, end-110)
	}
}
