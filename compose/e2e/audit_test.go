package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// verdict is what verify -json prints.
type verdict struct {
	OK          bool `json:"ok"`
	Differences []struct {
		Store, Account, What string
		Want, Got            int64
	} `json:"differences"`
}

// named requires that verify finds exactly one account in difference, in that store, by that much.
func (s *site) named(store string, a ledger.Account, by int64) {
	s.t.Helper()
	got := s.run("verify", "-json")
	var v verdict
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil {
		s.t.Fatalf("verify -json: %v\n%s%s", err, got.stdout, got.stderr)
	}
	found := slices.ContainsFunc(v.Differences, func(d struct {
		Store, Account, What string
		Want, Got            int64
	},
	) bool {
		return strings.Contains(d.Store, store) && d.Account == a.String() && d.Got-d.Want == by
	})
	if got.code != 1 || v.OK || !found {
		s.t.Errorf("verify does not name %+d in %s of %v: exit code %d\n%s", by, store, a, got.code, got.stdout)
	}
	for _, d := range v.Differences {
		if d.Account != a.String() && !strings.HasPrefix(d.Store, "usage log") { // a row there is the user's, the key's and the channel's
			s.t.Errorf("verify names %s, which was not touched: %+v", d.Account, d)
		}
	}
	if text := s.run("verify"); !strings.Contains(text.stdout, store) || !strings.Contains(text.stdout, a.String()) || !strings.Contains(text.stdout, "NOT OK") {
		s.t.Errorf("verify does not say it to people: %s", text.stdout)
	}
}

// repaired requires that a command succeeds and verify is content afterwards.
func (s *site) repaired(args ...string) {
	s.t.Helper()
	if got := s.run(args...); got.code != 0 {
		s.t.Errorf("%s: exit code %d\n%s%s", strings.Join(args, " "), got.code, got.stdout, got.stderr)
	}
	s.verified()
}

// One unit changed behind the program's back, anywhere, is named by verify, with store, account and difference; replay
// repairs it.
func TestVerifyNamesAndReplayRepairs(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			s := topology.site(t)
			s.env["SYNC_FREQUENCY"] = "3600" // no scan adopts an edit before verify has seen it
			s.open()
			users := s.cast(2)
			c := newClients(t)
			s.play(c, 8, traceOrders(t, 40, users))
			s.books.settled(c.answered(), users...)
			u := users[0]
			user, token := ledger.Account{Kind: ledger.UserAccount, ID: u.user}, ledger.Account{Kind: ledger.TokenAccount, ID: u.token}
			channel := ledger.Account{Kind: ledger.ChannelAccount, ID: s.books.number("SELECT MIN(id) FROM channels WHERE used_quota > 0")}
			s.verified()
			s.books.exec("UPDATE ledger_accounts SET charged = charged + 1 WHERE kind = 'user' AND id = ?", u.user)
			s.named("MySQL ledger_accounts", user, 1)
			s.dryRunOnly(user)
			s.repaired("replay")
			s.books.exec("UPDATE tokens SET used_quota = used_quota - 1 WHERE id = ?", u.token)
			s.named("MySQL tokens.used_quota", token, -1)
			s.repaired("replay")
			s.books.exec("UPDATE users SET request_count = request_count + 1 WHERE id = ?", u.user)
			s.named("MySQL users.request_count", user, 1)
			s.repaired("replay", "-source", "usagelog")
			s.books.exec("UPDATE channels SET used_quota = used_quota + 1 WHERE id = ?", channel.ID)
			s.named("MySQL channels.used_quota", channel, 1)
			s.repaired("replay")
			for _, column := range []string{"charged", "quota"} {
				s.editUsage(column, u)
				s.named("usage log", user, 1)
				s.repaired("replay", "-target", "usagelog")
			}
			if !s.embedded {
				s.hotEdit(c, users, user)
			}
			s.handEdit(c, users)
		})
	}
}

// dryRunOnly requires that replay -dry-run tells of a difference and changes nothing.
func (s *site) dryRunOnly(a ledger.Account) {
	s.t.Helper()
	got := s.run("replay", "-dry-run")
	if got.code != 1 || !strings.Contains(got.stdout, a.String()) || !strings.Contains(got.stdout, "nothing was changed") {
		s.t.Errorf("replay -dry-run: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s.named("MySQL ledger_accounts", a, 1)
}

// editUsage changes the row of one request of the account.
func (s *site) editUsage(column string, u *account) {
	s.t.Helper()
	var request string
	query := "SELECT request_id FROM ledger_usage WHERE user_id = ? AND charged > 0 ORDER BY request_id LIMIT 1"
	if err := s.books.usage.QueryRowContext(s.t.Context(), query, u.user).Scan(&request); err != nil {
		s.t.Fatal(err)
	}
	statement := "UPDATE ledger_usage SET " + column + " = " + column + " + 1 WHERE request_id = ?"
	if !s.embedded {
		statement = "ALTER TABLE ledger_usage UPDATE " + column + " = " + column + " + 1 WHERE request_id = ? SETTINGS mutations_sync = 2"
	}
	if _, err := s.books.usage.ExecContext(s.t.Context(), statement, request); err != nil {
		s.t.Fatal(err)
	}
}

// hotEdit changes a counter in Redis.
func (s *site) hotEdit(c *clients, users []*account, a ledger.Account) {
	s.t.Helper()
	// The replays before this began new epochs: the account is there again once it is used.
	if answer := c.ask(s.t.Context(), s.urls(), 0, order{account: users[0], prompt: 50, completion: 10}); !answer.whole {
		s.t.Errorf("a request after replay: %+v", answer)
	}
	s.books.settled(c.answered(), users...)
	ledgertest.EditHotAccount(s.t, s.env["REDIS_CONN_STRING"], "ledgerline:", ledger.Partition(a.ID, partitions), a, 0, 1)
	s.named("hot counters", a, 1)
	s.repaired("replay")
}

// handEdit changes a balance as operators of New API do: verify sees it, the next look takes it for what it is, and from
// then on everything agrees with it.
func (s *site) handEdit(c *clients, users []*account) {
	s.t.Helper()
	u := users[0]
	s.books.exec("UPDATE users SET quota = quota + 1000 WHERE id = ?", u.user)
	s.named("MySQL users.quota", ledger.Account{Kind: ledger.UserAccount, ID: u.user}, 1000)
	u.granted += 1000
	if answer := c.ask(s.t.Context(), s.urls(), 0, order{account: u, prompt: 50, completion: 10}); !answer.whole {
		s.t.Errorf("a request after the edit: %+v", answer)
	}
	s.books.settled(c.answered(), users...)
	s.verified()
}

// A hand edit of an account that nobody uses is adopted within SYNC_FREQUENCY.
func TestHandEditIsAdopted(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	s.env["SYNC_FREQUENCY"] = "1"
	s.open()
	s.addChannel("first", "upstream-key-1", nil)
	u := s.addUser("idle", 5000, tokenLimit{quota: 700})
	s.books.exec("UPDATE users SET quota = quota - 1234 WHERE id = ?", u.user)
	s.books.exec("UPDATE tokens SET remain_quota = 99 WHERE id = ?", u.token)
	u.granted, u.limit = 5000-1234, 99
	s.books.settled(nil, u)
}

// The projections are emptied and Redis is flushed while traffic runs. Replay brings everything back, from the log and from
// the usage log, and in the end every column equals what the upstream served.
func TestReplayFromNothing(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"kafka", "usagelog"} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			s := cluster(t)
			s.open()
			users := s.cast(3)
			tr := s.background(6, users)
			tr.moreDone(t, 40)
			s.empty()
			if got := s.run("replay", "-dry-run", "-source", source); got.code != 1 {
				t.Errorf("replay -dry-run: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			if got := s.run("replay", "-source", source); got.code != 0 {
				t.Errorf("replay: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			tr.moreDone(t, 30)
			if source == "kafka" {
				s.emptyUsage()
				if got := s.run("replay", "-target", "usagelog"); got.code != 0 {
					t.Errorf("replay -target usagelog: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
				}
			}
			tr.stop()
			s.books.settled(tr.answered(), users...)
			s.verified()
		})
	}
}

// empty removes the balances and their copies in New API's columns, and all of Redis.
func (s *site) empty() {
	s.t.Helper()
	tx, err := s.books.db.BeginTx(s.t.Context(), &sql.TxOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, statement := range []string{
		"UPDATE users SET quota = 0, used_quota = 0, request_count = 0",
		"UPDATE tokens SET remain_quota = 0, used_quota = 0",
		"UPDATE channels SET used_quota = 0",
		"DELETE FROM ledger_accounts",
	} {
		if _, err := tx.ExecContext(s.t.Context(), statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
	if err := tx.Commit(); err != nil {
		s.t.Fatal(err)
	}
	s.loseCounters()
}

// emptyUsage removes every row of the usage log.
func (s *site) emptyUsage() {
	s.t.Helper()
	for _, table := range []string{"ledger_usage", "ledger_events"} {
		if _, err := s.books.usage.ExecContext(s.t.Context(), fmt.Sprintf("TRUNCATE TABLE %s", table)); err != nil {
			s.t.Fatal(err)
		}
	}
}
