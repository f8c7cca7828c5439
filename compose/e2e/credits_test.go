package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ledgerline/ledger"
)

// member is a user who only uses the management API.
type member struct {
	name  string
	id    int64
	login *admin
	due   int64 // what the user must have in the end
}

func (s *site) addMember(name string) *member {
	s.t.Helper()
	m := &member{name: name}
	s.root.must(http.MethodPost, "/api/user/", map[string]any{"username": name, "password": "pw-" + name + "-123"}, nil)
	m.login = login(s.t, s.root.url, name, "pw-"+name+"-123")
	m.id = m.login.id
	return m
}

func (s *site) codes(quota int64, count int) (codes []string) {
	s.t.Helper()
	s.root.must(http.MethodPost, "/api/redemption/", map[string]any{"name": "gift", "quota": quota, "count": count}, &codes)
	return codes
}

// insisted calls until a node answers, each time at another one, and returns whether it said yes. A node that dies after its commit and
// before its answer has done what was asked: then the next one says no.
func (s *site) insisted(a *admin, n int, method, path string, body any) bool {
	yes := false
	eventually(s.t, method+" "+path+" is answered", func() error {
		n++
		status, out, err := a.at(s.nodes[n%len(s.nodes)].url()).call(method, path, body)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d, %s", status, out.Message)
		}
		yes = out.Success
		return err
	})
	return yes
}

// Fifty clients redeem one code at once, on all nodes: one of them gets its quota, once, and the log says the same.
func TestOneCodeFiftyClients(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		const members, clients, quota = 10, 50, 12345
		var all []*member
		for i := range members {
			all = append(all, s.addMember(fmt.Sprintf("member%d", i)))
		}
		for round, code := range s.codes(quota, 3) {
			var won atomic.Int64
			var together sync.WaitGroup
			begin := make(chan struct{})
			for c := range clients {
				together.Go(func() {
					<-begin
					m := all[c%members]
					status, out, err := m.login.at(s.nodes[c%len(s.nodes)].url()).call(http.MethodPost, "/api/user/topup", map[string]any{"key": code})
					switch {
					case err != nil || status != http.StatusOK:
						t.Errorf("client %d: status %d, %s, %v", c, status, out.Message, err)
					case out.Success:
						won.Add(1)
						atomic.AddInt64(&m.due, quota)
						if string(out.Data) != fmt.Sprint(quota) {
							t.Errorf("the winner got %s", out.Data)
						}
					case out.Message != "Redemption failed, please try again later":
						t.Errorf("client %d: %s", c, out.Message)
					}
				})
			}
			close(begin)
			together.Wait()
			if won.Load() != 1 {
				t.Errorf("round %d: %d clients were told that they redeemed the code", round, won.Load())
			}
		}
		s.membersHave(all)
		s.verified()
		s.replayed()
		s.membersHave(all)
	})
}

// membersHave requires that every store has what is due to everybody.
func (s *site) membersHave(all []*member) {
	s.t.Helper()
	want := map[ledger.Account]total{}
	for _, m := range all {
		want[ledger.Account{Kind: ledger.UserAccount, ID: m.id}] = total{Left: m.due}
	}
	eventually(s.t, "everybody has what is due", func() error {
		return errors.Join(s.books.columns(want), s.books.truth(want), s.books.counters(want))
	})
}

// Codes are redeemed, orders completed, users sign up with an invitation and rewards are taken over, while the nodes are
// killed in turn. Nobody's request is lost, though its answer may be, and every one of them counts once.
func TestCreditsUnderKills(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		const each, code, perUnit, bonus, invited, reward = 12, 777, 500_000, 1000, 200, 600_000
		for option, value := range map[string]int{"QuotaForNewUser": bonus, "QuotaForInvitee": invited, "QuotaForInviter": reward} {
			s.root.must(http.MethodPut, "/api/option/", map[string]any{"key": option, "value": fmt.Sprint(value)}, nil)
		}
		all := []*member{s.addMember("carol"), s.addMember("dave"), s.addMember("erin")}
		inviter := all[0]
		var aff string
		inviter.login.must(http.MethodGet, "/api/user/aff", nil, &aff)
		codes := s.codes(code, each)
		for i := range each {
			s.books.exec("INSERT INTO top_ups (user_id, amount, money, trade_no, payment_method, payment_provider, create_time, complete_time, status) "+
				"VALUES (?, 2, 14.6, ?, 'alipay', 'epay', 5, 0, 'pending')", all[i%len(all)].id, fmt.Sprint("TRADE", i))
		}
		work := make(chan int)
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for i := range work {
					m := all[i%len(all)]
					s.insisted(m.login, i, http.MethodPost, "/api/user/topup", map[string]any{"key": codes[i]})
					s.insisted(s.root, i, http.MethodPost, "/api/user/topup/complete", map[string]any{"trade_no": fmt.Sprint("TRADE", i)})
					s.insisted(&admin{t: t, http: client}, i, http.MethodPost, "/api/user/register", map[string]any{
						"username": fmt.Sprint("new", i), "password": "password1", "aff_code": aff,
					})
					s.insisted(inviter.login, i, http.MethodPost, "/api/user/aff_transfer", map[string]any{"quota": perUnit})
				}
			})
		}
		for i := range each {
			work <- i
			if i%3 == 2 {
				n := s.nodes[i/3%len(s.nodes)]
				n.kill()
				n.start()
				n.ready()
			}
		}
		close(work)
		workers.Wait()
		s.creditsAreExact(all, map[string]int64{"codes": each * code, "orders": each * 2 * perUnit, "newcomer": bonus + invited, "rewards": each * reward})
	})
}

// creditsAreExact holds the business tables against the balances.
func (s *site) creditsAreExact(all []*member, due map[string]int64) {
	s.t.Helper()
	for _, m := range all {
		m.due = s.books.number("SELECT COALESCE(SUM(quota), 0) FROM redemptions WHERE status = 3 AND used_user_id = ?", m.id) +
			s.books.number("SELECT COALESCE(SUM(amount), 0) * 500000 FROM top_ups WHERE status = 'success' AND user_id = ?", m.id) + due["newcomer"] - 200
	}
	for what, query := range map[string]string{
		"codes": "SELECT SUM(quota) FROM redemptions WHERE status = 3", "orders": "SELECT SUM(amount) * 500000 FROM top_ups WHERE status = 'success'",
		"rewards": "SELECT SUM(aff_history) FROM users",
	} {
		if got := s.books.number(query); got != due[what] {
			s.t.Errorf("%s: %d, want %d", what, got, due[what])
		}
	}
	inviter := all[0]
	inviter.due += due["rewards"] - s.books.number("SELECT aff_quota FROM users WHERE id = ?", inviter.id) // what was taken over
	newcomers := s.books.number("SELECT COUNT(*) FROM users WHERE inviter_id = ?", inviter.id)
	if count := s.books.number("SELECT aff_count FROM users WHERE id = ?", inviter.id); count != newcomers || newcomers != due["rewards"]/600_000 {
		s.t.Errorf("%d newcomers, %d are counted, want %d", newcomers, count, due["rewards"]/600_000)
	}
	for i := range newcomers {
		all = append(all, &member{
			id: s.books.number("SELECT id FROM users WHERE username = ?", fmt.Sprint("new", i)), due: due["newcomer"],
		})
	}
	s.membersHave(all)
	s.verified()
	if got := s.run("replay"); got.code != 0 || !strings.Contains(got.stdout, " 0 changed") {
		s.t.Errorf("replay: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s.membersHave(all)
}
