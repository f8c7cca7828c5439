package relay_test

import (
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// A node whose processors cannot keep up refuses what comes, says when to come back, and serves again once they can.
func TestRefusesWhenOverloaded(t *testing.T) {
	var queue atomic.Int64
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.Runnable = func() int { return int(queue.Load()) } }
	})
	a := n.account(start*100, -1)
	until := func(status int) *reply {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			got := n.do(n.newRequest(t.Context(), a.key, chatPath, chat("")))
			if got.status == status || time.Now().After(deadline) {
				return got
			}
		}
	}
	queue.Store(1 << 20)
	if got := until(503); got.status != 503 || got.fault() != "node_full" || got.header.Get("Retry-After") != "1" {
		t.Errorf("%d %s, Retry-After %q", got.status, got.body, got.header.Get("Retry-After"))
	}
	queue.Store(0)
	if got := until(200); got.status != 200 {
		t.Errorf("%d %s after the overload", got.status, got.body)
	}
	n.wantNothingHeld(a)
}
