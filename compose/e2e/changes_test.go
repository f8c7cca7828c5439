package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// A change on one node must be on the others within a second, a top-up within 100 ms; the bounds allow for a busy machine.
const (
	soon      = time.Second
	soonSlack = 3 * time.Second
)

// What is changed on one node counts on all within a second: a key is disabled, a channel appears, a price moves. A login
// made on one node is valid on another, by cookie and by token.
func TestChangesReachEveryNode(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.open()
	s.addChannel("first", "upstream-key-1", nil)
	u := s.addUser("changing", 100_000_000, tokenLimit{quota: 50_000_000})
	c := newClients(t)
	ask := func(n *node, o order) seen {
		o.account = u
		return send(t.Context(), c.http, n.url(), o)
	}

	t.Run("login", func(t *testing.T) {
		other := s.nodes[2].url()
		var self struct{ ID int64 }
		s.root.at(other).must(http.MethodGet, "/api/user/self", nil, &self)
		s.root.cookies(other).must(http.MethodGet, "/api/user/self", nil, &self)
		if self.ID != s.root.id {
			t.Errorf("the other node takes the cookie for user %d", self.ID)
		}
		stranger := *s.root.at(other)
		stranger.token += "x"
		stranger.http = client
		if status, out, err := stranger.call(http.MethodGet, "/api/user/self", nil); err != nil || status != http.StatusUnauthorized || out.Success {
			t.Errorf("a forged token is taken: %d %+v %v", status, out, err)
		}
	})
	t.Run("new channel", func(t *testing.T) {
		o := order{prompt: 30, completion: 3, more: map[string]any{"model": "gpt-4o"}}
		if r := ask(s.nodes[1], o); r.status != http.StatusServiceUnavailable || r.code != "model_not_found" {
			t.Fatalf("a model without a channel: %d %q", r.status, r.code)
		}
		s.addChannel("second", "upstream-key-2", map[string]any{"models": "gpt-4o"})
		s.effective(t, func(n *node) error {
			if r := ask(n, o); !r.whole {
				return fmt.Errorf("status %d %q", r.status, r.code)
			}
			return nil
		})
	})
	t.Run("price", func(t *testing.T) {
		s.root.must(http.MethodPut, "/api/option/", map[string]any{"key": "ModelPrice", "value": `{"gpt-4o": 0.5}`}, nil)
		o := order{prompt: 30, completion: 3, more: map[string]any{"model": "gpt-4o"}}
		const perCall = 250_000
		s.effective(t, func(n *node) error {
			r := ask(n, o)
			var bill billed
			eventually(t, "the request is in the usage log", func() error {
				bills, err := s.books.bills()
				if err != nil {
					return err
				}
				var there bool
				if bill, there = bills[r.id]; !there {
					return fmt.Errorf("%+v is not", r)
				}
				return nil
			})
			if bill.quota != perCall {
				return fmt.Errorf("billed %d, want %d", bill.quota, perCall)
			}
			return nil
		})
	})
	t.Run("disabled key", func(t *testing.T) {
		u.login.must(http.MethodPut, "/api/token/?status_only=true", map[string]any{"id": u.token, "status": 2}, nil)
		s.effective(t, func(n *node) error {
			if r := ask(n, order{prompt: 30, completion: 3}); r.status != http.StatusUnauthorized {
				return fmt.Errorf("status %d %q", r.status, r.code)
			}
			return nil
		})
	})
}

// effective requires that a change counts at once on the node that took it, and soon on the others.
func (s *site) effective(t *testing.T, counts func(*node) error) {
	t.Helper()
	if err := counts(s.nodes[0]); err != nil {
		t.Errorf("the node that took the change does not know it: %v", err)
	}
	for _, n := range s.nodes[1:] {
		took := within(t, soonSlack, n.name+" knows the change", func() error { return counts(n) })
		t.Logf("%s knew it %s later", n.name, took)
	}
}

// Quota that an administrator gives works on the relay when the answer comes, or within 100 ms of it.
func TestTopUpIsEffectiveAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		s.addChannel("first", "upstream-key-1", nil)
		u := s.addUser("poor", 0, tokenLimit{unlimited: true})
		c := newClients(t)
		o := order{account: u, prompt: 30, completion: 3}
		last := s.nodes[len(s.nodes)-1].url()
		for round := range 3 {
			if r := c.ask(t.Context(), []string{last}, 0, o); r.status != http.StatusForbidden || r.code != "insufficient_user_quota" {
				t.Fatalf("round %d, without quota: status %d %q", round, r.status, r.code)
			}
			asked := time.Now()
			s.topUp(u, price(o.prompt, o.completion))
			answered := time.Since(asked)
			took := within(t, soon, "the top-up is effective on the other node", func() error {
				r := c.ask(t.Context(), []string{last}, 0, o)
				if !r.whole {
					return fmt.Errorf("status %d %q", r.status, r.code)
				}
				return nil
			})
			t.Logf("round %d: the top-up was answered after %s, a request with it was through %s later", round, answered, took)
		}
		s.books.settled(c.answered(), u)
	})
}
