package sqlstore

import (
	"strings"
	"testing"

	"ledgerline/ledger"
)

// A row that is deleted for good and put back by hand has the balance that the hand wrote, whatever was charged meanwhile. A
// row that is deleted softly is looked at like any other.
func TestEditOfDeletedRows(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u := userIn(0, 0)
		m := newMover()
		user(t, s, u)
		token(t, s, 5, u)
		l := newLog(0)
		m.logs[0] = l
		l.add(id(1), usage(u, 5, 0, 3))
		l.flush(t, s)
		exec(t, s, "DELETE FROM tokens WHERE id = 5")
		exec(t, s, "UPDATE users SET deleted_at = '2026-01-02 03:04:05', quota = 40")
		if r := value[ScanResult](t)(s.ScanAll(t.Context())); r.Adopted != 1 || len(r.Alarms) != 0 {
			t.Errorf("with one row gone and one deleted: %+v", r)
		}
		l.add(id(1), usage(u, 5, 0, 4)) // of a request that was under way
		l.flush(t, s)
		exec(t, s, "INSERT INTO tokens (id, user_id, `key`, name, remain_quota) VALUES (5, ?, 'k', 'n', 77)", u)
		if r := value[ScanResult](t)(s.ScanAll(t.Context())); r.Adopted != 1 || r.Opened != 0 {
			t.Errorf("with the row back: %+v", r)
		}
		m.apply(t, s)
		diff(t, "balances", balancesOf(t, s), map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: u}:  {Granted: 43, Charged: 7, Requests: 2},
			{Kind: ledger.TokenAccount, ID: 5}: {Granted: 84, Charged: 7, Requests: 2},
		})
		if user, token := number(t, s, "SELECT quota FROM users"), number(t, s, "SELECT remain_quota FROM tokens"); user != 36 || token != 77 {
			t.Errorf("the columns are %d and %d", user, token)
		}
	})
}

// A key that somebody gave to a user of another partition keeps its account where its events are. An edit of it can be no
// event of its new owner: a flush takes it for the old one's, a scan leaves it, a replay overwrites it, and both say so.
func TestEditOfForeignRows(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u, other := userIn(0, 0), userIn(1, 0)
		m := newMover()
		user(t, s, u)
		user(t, s, other)
		token(t, s, 5, u)
		l := newLog(0)
		m.logs[0] = l
		l.add(id(1), ledger.Event{Kind: ledger.KindTokenLimited, User: u, Token: 5, Account: ledger.TokenAccount, Granted: 50})
		l.flush(t, s)
		for _, owner := range []int64{other, 0} {
			exec(t, s, "UPDATE tokens SET user_id = ?, remain_quota = 20", owner)
			if r := value[ScanResult](t)(s.ScanAll(t.Context())); r.Adopted != 0 || len(r.Alarms) != 1 || number(t, s, "SELECT remain_quota FROM tokens") != 20 {
				t.Errorf("scan of a key of user %d: %+v", owner, r)
			}
			r, err := replayed(t, s, l, nil)
			if must(t, err); r.Adopted != 0 || len(r.Alarms) != 1 || !strings.Contains(r.Alarms[0], "token/5") || number(t, s, "SELECT remain_quota FROM tokens") != 50 {
				t.Errorf("replay of a key of user %d: %+v", owner, r)
			}
		}
		exec(t, s, "UPDATE tokens SET user_id = ?, remain_quota = 20", other)
		l.add(id(1), usage(u, 5, 0, 1))
		if r := l.flush(t, s); r.Adopted != 1 || len(r.Alarms) != 0 {
			t.Errorf("flush: %+v", r)
		}
		m.apply(t, s)
		if b := balancesOf(t, s)[ledger.Account{Kind: ledger.TokenAccount, ID: 5}]; b != (ledger.Balance{Granted: 20, Charged: 1, Requests: 1}) {
			t.Errorf("the key has %+v", b)
		}
	})
}
