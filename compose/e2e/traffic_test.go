package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// topologies are what the same tests run on.
var topologies = []struct {
	name string
	site func(testing.TB) *site
}{
	{"embedded", embedded},
	{"cluster", cluster},
}

// onBoth runs a test on the embedded stack and on three nodes with real engines.
func onBoth(t *testing.T, f func(t *testing.T, s *site)) {
	t.Helper()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			s := topology.site(t)
			s.open()
			f(t, s)
		})
	}
}

// cast makes the users, keys and channels that most tests use.
func (s *site) cast(users int) []*account {
	s.t.Helper()
	s.addChannel("first", "upstream-key-1", nil)
	s.addChannel("second", "upstream-key-2", map[string]any{"weight": 3})
	out := make([]*account, users)
	for i := range out {
		limit := tokenLimit{quota: 50_000_000}
		if i == 1 {
			limit = tokenLimit{unlimited: true}
		}
		out[i] = s.addUser(fmt.Sprintf("user%d", i+1), 100_000_000, limit)
	}
	return out
}

// The main thing: everything that clients did is billed once, exactly what the upstream served, in every store; and verify
// says so, as text and as JSON.
func TestTrafficIsBilledExactly(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		users := s.cast(4)
		c := newClients(t)
		s.play(c, 24, traceOrders(t, 400, users))
		for _, r := range c.all {
			if r.status != http.StatusOK || !r.whole {
				t.Errorf("a request failed: status %d %s, whole %v, try %d", r.status, r.code, r.whole, r.tries)
			}
		}
		s.books.settled(c.answered(), users...)
		s.verified()
		if s.embedded {
			s.nodes[0].terminate() // what it had in its process is gone; the rest must agree all the same
			s.verified()
		}
		if got := s.run("verify", "-json"); got.code != 0 || !strings.Contains(got.stdout, `"ok": true`) {
			t.Errorf("verify -json: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		}
	})
}

// A key with quota for exactly 100 requests serves exactly 100, with 64 clients at once over all nodes, when those that are
// told to wait come back.
func TestQuotaForExactlyAHundred(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		s.addChannel("only", "upstream-key", nil)
		o := order{prompt: 40, completion: 20, delay: time.Millisecond}
		one := price(o.prompt, o.completion)
		u := s.addUser("hundred", 100_000_000, tokenLimit{quota: 100 * one})
		c := newClients(t)
		var orders []order
		for i := range 130 {
			o.account, o.stream = u, i%2 == 0
			orders = append(orders, o)
		}
		s.play(c, 64, orders)
		var whole, waited int
		for _, r := range c.all {
			switch {
			case r.status == http.StatusOK && r.whole && r.finish != "length":
				whole++
			case r.status == http.StatusOK && r.whole && r.chunks == r.order.completion:
				whole++
			case r.status == http.StatusTooManyRequests:
				waited++
			case r.status == http.StatusForbidden && r.code == "pre_consume_token_quota_failed", r.status == http.StatusUnauthorized:
			default:
				t.Errorf("unexpected answer: status %d %q, %d chunks, finish %q", r.status, r.code, r.chunks, r.finish)
			}
		}
		if whole != 100 {
			t.Errorf("%d requests were served, want 100 (%d were told to wait)", whole, waited)
		}
		s.books.settled(c.answered(), u)
		if left := s.books.number("SELECT remain_quota FROM tokens WHERE id = ?", u.token); left != 0 {
			t.Errorf("%d units are left of the key, want none", left)
		}
	})
}
