package sqlstore

import (
	"testing"

	"ledgerline/ledger/ledgertest"
)

// TestCountersOfNewAPIAreAdopted: what New API counted while no node ran is adopted once; while one runs, on a database of our own, and at
// the end of a column, a difference stays for verify to name.
func TestCountersOfNewAPIAreAdopted(t *testing.T) {
	each := func(name string, own bool, fn func(t *testing.T, s *Store)) {
		t.Run(name, func(t *testing.T) {
			s := initialised(t, openMySQL(t, ledgertest.MySQL(t)))
			exec(t, s, "ALTER TABLE users MODIFY request_count int DEFAULT 0")
			exec(t, s, "INSERT INTO users (id, username, password, quota, used_quota, request_count) VALUES (1, 'u', '', 50, 8, 2147483647)")
			exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota, used_quota) VALUES (5, 1, 'k', 100, 8)")
			exec(t, s, "INSERT INTO channels (id, `key`, name, used_quota) VALUES (1, 'sk', 'c', 8)")
			must(t, s.SetMeta(t.Context(), adoptedMeta, map[bool]string{true: "false", false: "true"}[own]))
			value[OpenResult](t)(s.OpenAccounts(t.Context()))
			pump(t, s, map[int]*logOf{})
			exec(t, s, "UPDATE users SET used_quota = 18, request_count = 2147483640")
			exec(t, s, "UPDATE tokens SET used_quota = 18")
			exec(t, s, "UPDATE channels SET used_quota = 18")
			fn(t, s)
		})
	}
	adopted := func(t *testing.T, s *Store, want int) {
		t.Helper()
		if n := value[int](t)(s.AdoptCounters(t.Context())); n != want {
			t.Errorf("%d counters adopted, want %d", n, want)
		}
	}
	each("adopted", false, func(t *testing.T, s *Store) {
		adopted(t, s, 3)
		adopted(t, s, 0)
		if n := number(t, s, "SELECT base_used FROM ledger_accounts WHERE kind = 'user'"); n != 10 {
			t.Errorf("the user's counter is %d beyond the events, want 10", n)
		}
		if n := number(t, s, "SELECT SUM(charged) FROM ledger_accounts WHERE kind = 'channel'"); n != 18 {
			t.Errorf("the channel's accounts say %d, want 18", n)
		}
		if n := number(t, s, "SELECT SUM(granted - charged) FROM ledger_accounts WHERE kind <> 'channel'"); n != 150 {
			t.Errorf("the balances are %d, want 150: counters are no balances", n)
		}
		exec(t, s, "UPDATE ledger_accounts SET requests = 5000000000 WHERE kind = 'user'") // far beyond the column's end
		adopted(t, s, 0)
	})
	each("a node runs", false, func(t *testing.T, s *Store) {
		must(t, s.RegisterProducer(t.Context(), Producer{ID: id(1), Node: "n"}))
		adopted(t, s, 0)
	})
	each("our own database", true, func(t *testing.T, s *Store) { adopted(t, s, 0) })
}
