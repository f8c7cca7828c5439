package sqlstore

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// newAPIDatabase is a database that New API made, migrated by us.
func newAPIDatabase(t *testing.T) (s *Store, dsn string) {
	t.Helper()
	dsn = ledgertest.MySQL(t)
	s = openMySQL(t, dsn)
	text := string(value[[]byte](t)(os.ReadFile("testdata/newapi.sql")))
	for _, q := range strings.Split(text, ";\n") {
		if strings.TrimSpace(q) != "" {
			exec(t, s, q)
		}
	}
	return s, dsn
}

// columnTypes returns the columns of New API's tables.
func columnTypes(t *testing.T, s *Store) []string {
	t.Helper()
	var list []string
	must(t, s.read(t.Context(), "SELECT CONCAT(table_name, '.', column_name, ' ', column_type) FROM information_schema.columns WHERE table_schema = DATABASE()"+
		" AND table_name IN ('users', 'tokens', 'channels', 'abilities', 'options', 'redemptions', 'top_ups') ORDER BY table_name, ordinal_position", nil,
		func(scan func(...any) error) error {
			var c string
			err := scan(&c)
			list = append(list, c)
			return err
		}))
	return list
}

type facts struct {
	Users []struct {
		ID           int64 `json:"id"`
		Quota        int64 `json:"quota"`
		UsedQuota    int64 `json:"used_quota"`
		RequestCount int64 `json:"request_count"`
	}
	Tokens []struct {
		ID          int64 `json:"id"`
		UserID      int64 `json:"user_id"`
		RemainQuota int64 `json:"remain_quota"`
		UsedQuota   int64 `json:"used_quota"`
	}
	Channels []struct {
		ID        int64 `json:"id"`
		UsedQuota int64 `json:"used_quota"`
	}
}

// pump moves the outbox to the log of each partition and applies it, until nothing is left.
func pump(t testing.TB, s *Store, logs map[int]*logOf) {
	t.Helper()
	mover := id(0xb0b)
	for {
		rows := value[[]OutboxRow](t)(s.OutboxPending(t.Context(), 100))
		if len(rows) == 0 {
			return
		}
		for _, r := range rows {
			p := ledger.Partition(r.Event.User, testPartitions)
			if logs[p] == nil {
				logs[p] = newLog(p)
			}
			logs[p].add(mover, r.Event)
			must(t, s.OutboxMoved(t.Context(), r.Key))
		}
		for _, l := range logs {
			l.flush(t, s)
		}
	}
}

func TestOpeningTakesOverNewAPIsDatabase(t *testing.T) {
	s, dsn := newAPIDatabase(t)
	before := columnTypes(t, s)
	initialised(t, s)
	diff(t, "columns of New API's tables", columnTypes(t, s), before)

	// Two masters at once, and a third time afterwards.
	stores := []*Store{s, openMySQL(t, dsn)}
	results := make([]OpenResult, 2)
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() { results[i], errs[i] = stores[i].OpenAccounts(t.Context()) })
	}
	wg.Wait()
	must(t, errs[0])
	must(t, errs[1])
	var want facts
	must(t, json.Unmarshal(value[[]byte](t)(os.ReadFile("testdata/newapi.facts.json")), &want))
	if n := results[0].Users + results[1].Users; n != len(want.Users) {
		t.Errorf("%d users opened, want %d", n, len(want.Users))
	}
	if n := results[0].Tokens + results[1].Tokens; n != len(want.Tokens) {
		t.Errorf("%d tokens opened, want %d", n, len(want.Tokens))
	}
	diff(t, "third opening", value[OpenResult](t)(s.OpenAccounts(t.Context())), OpenResult{})

	// A hand edit and a request come before the openings are applied.
	exec(t, s, "UPDATE users SET quota = quota + 1000 WHERE id = 2")
	logs := map[int]*logOf{}
	p := ledger.Partition(2, testPartitions)
	logs[p] = newLog(p)
	logs[p].add(id(5), usage(2, 0, 1, 77))
	logs[p].flush(t, s)
	pump(t, s, logs)

	balances := balancesOf(t, s)
	for _, u := range want.Users {
		expect := ledger.Balance{Granted: u.Quota + u.UsedQuota, Charged: u.UsedQuota, Requests: u.RequestCount}
		if u.ID == 2 {
			expect = expect.Plus(ledger.Balance{Granted: 1000, Charged: 77, Requests: 1})
			u.Quota, u.UsedQuota = u.Quota+1000-77, u.UsedQuota+77
		}
		diff(t, "user", balances[ledger.Account{Kind: ledger.UserAccount, ID: u.ID}], expect)
		if q, used := number(t, s, "SELECT quota FROM users WHERE id = ?", u.ID), number(t, s, "SELECT used_quota FROM users WHERE id = ?", u.ID); q != u.Quota || used != u.UsedQuota {
			t.Errorf("user %d: quota %d, used %d, want %d, %d", u.ID, q, used, u.Quota, u.UsedQuota)
		}
	}
	for _, k := range want.Tokens {
		diff(t, "token", balances[ledger.Account{Kind: ledger.TokenAccount, ID: k.ID}], ledger.Balance{Granted: k.RemainQuota + k.UsedQuota, Charged: k.UsedQuota})
		if q := number(t, s, "SELECT remain_quota FROM tokens WHERE id = ?", k.ID); q != k.RemainQuota {
			t.Errorf("token %d: %d left, want %d", k.ID, q, k.RemainQuota)
		}
	}
	for _, c := range want.Channels {
		if c.ID == 1 {
			c.UsedQuota += 77
		}
		if got := number(t, s, "SELECT used_quota FROM channels WHERE id = ?", c.ID); got != c.UsedQuota {
			t.Errorf("channel %d used %d, want %d", c.ID, got, c.UsedQuota)
		}
		if got := number(t, s, "SELECT SUM(charged) FROM ledger_accounts WHERE kind = 'channel' AND id = ?", c.ID); got != c.UsedQuota {
			t.Errorf("channel %d: accounts say %d, want %d", c.ID, got, c.UsedQuota)
		}
	}
	if n := number(t, s, "SELECT COUNT(*) FROM ledger_accounts WHERE pending_adopt <> 0 OR base_used <> 0 OR base_requests <> 0"); n != 0 {
		t.Errorf("%d accounts still wait for something", n)
	}
}

func TestScanOpensRowsThatSomebodyInserted(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		exec(t, s, "INSERT INTO users (id, username, password, quota, used_quota) VALUES (7, 'u', 'x', 50, 8)")
		exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota) VALUES (1, 7, 'k', 20)")
		exec(t, s, "INSERT INTO tokens (id, `key`, remain_quota) VALUES (2, 'k2', 20)") // nobody's
		r := value[ScanResult](t)(s.ScanAll(t.Context()))
		if r.Opened != 2 || r.Adopted != 0 {
			t.Errorf("%+v", r)
		}
		pump(t, s, map[int]*logOf{})
		diff(t, "balances", balancesOf(t, s), map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: 7}:  {Granted: 58, Charged: 8},
			{Kind: ledger.TokenAccount, ID: 1}: {Granted: 20},
		})
		if r := value[ScanResult](t)(s.ScanAll(t.Context())); r.Opened+r.Adopted != 0 {
			t.Errorf("at rest: %+v", r)
		}
	})
}

func TestScanGoesOnAboveItsLimit(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		for u := range int64(5) {
			user(t, s, u+1)
		}
		exec(t, s, "UPDATE users SET quota = 3")
		adopted, steps := 0, 0
		for after := int64(0); ; {
			r := value[ScanResult](t)(s.ScanEdits(t.Context(), ScanCall{Kind: ledger.UserAccount, After: after, Limit: 2}))
			adopted, steps = adopted+r.Adopted, steps+1
			if after = r.Next; after == 0 {
				break
			}
		}
		if adopted != 5 || steps != 3 {
			t.Errorf("%d edits in %d steps, want 5 in 3", adopted, steps)
		}
	})
}
