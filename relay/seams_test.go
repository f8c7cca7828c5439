package relay_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// usage makes the event of a request that the desk admitted.
func (n *node) usage(a account, request string, charged int64) *ledger.Event {
	n.Helper()
	return &ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: newTestID(n), Time: 1, Node: "node",
		User: a.user, Token: a.token, Charged: charged, Requests: 1,
		Request: &ledger.Request{ID: request}, Usage: &ledger.Usage{Prompt: 1}, Source: ledger.SourceUpstream, Rating: &ledger.Rating{},
	}
}

func newTestID(n *node) ledger.ID {
	n.Helper()
	id, err := ledger.ParseID("01890000-0000-7000-8000-" + hex12(seamIDs.Add(1)))
	n.must(err)
	return id
}

var seamIDs atomic.Uint64

func hex12(n uint64) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 12)
	for i := range out {
		out[11-i] = digits[n&15]
		n >>= 4
	}
	return string(out)
}

// A usage event that was dead-lettered is re-driven through the outbox. It keeps its hold, so that the counters take its charge out
// of settled; and the rows behind it are moved as well.
func TestRedrivenUsage(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(1000, -1)
	b := n.account(1000, -1)
	for ledger.Partition(b.user, partitions) == ledger.Partition(a.user, partitions) {
		b = n.account(1000, -1)
	}
	// a's request is charged to a key whose account belongs to another partition: nobody can apply that.
	ticket, err := n.desk.Reserve(t.Context(), desk.Order{User: a.user, Token: b.token, Min: 100, Want: 100})
	n.must(err)
	ev := n.usage(account{user: a.user, token: b.token}, "poisoned", 50)
	n.must(ticket.Settle(t.Context(), ev))
	n.await("the dead letter", func() bool {
		letters, err := n.db.DeadLetters(t.Context(), -1, 0, 10)
		n.must(err)
		return len(letters) == 1 && letters[0].Event == ev.ID
	})
	n.sql("UPDATE ledger_accounts SET part = ? WHERE kind = 'token' AND id = ?", ledger.Partition(a.user, partitions), b.token)
	n.must(n.db.Redrive(t.Context(), ev.ID))
	n.account(1, 1) // waits until the whole outbox is applied
	if left := n.left(a.users, a.user); left != 950 {
		t.Errorf("%d units are left of 1000 after a re-driven charge of 50", left)
	}
}

// A request that is free holds nothing, and may be charged all the same, for tool calls. The counters must see that charge:
// what was never in settled is not taken out of it.
func TestFreeRequestThatCosts(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(1000, 1000)
	for range 3 {
		ticket, err := n.desk.Reserve(t.Context(), desk.Order{User: a.user, Token: a.token, TokenHeld: true, Free: true})
		n.must(err)
		n.must(ticket.Settle(t.Context(), n.usage(a, "free", 300)))
	}
	if left := n.left(a.users, a.user); left != 100 {
		t.Errorf("%d units are left", left)
	}
	if left := n.left(a.tokens, a.user); left != 100 {
		t.Errorf("%d units are left to the key", left)
	}
	_, err := n.desk.Reserve(t.Context(), desk.Order{User: a.user, Token: a.token, TokenHeld: true, Min: 101, Want: 101})
	var refusal *desk.Refusal
	if !errors.As(err, &refusal) || refusal.Outcome != ledger.OutcomeRefused || refusal.Left != 100 {
		t.Errorf("a request of 101 units: %v", err)
	}
}

// late are counters that take no release while they are shut. They count the looks at the epochs: rounds of the node's duties.
type late struct {
	*hold.Local
	shut  atomic.Bool
	looks atomic.Int64
}

func (l *late) State(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	l.looks.Add(1)
	return l.Local.State(ctx, partitions...)
}

func (l *late) Release(ctx context.Context, calls []ledger.ReleaseCall) error {
	if l.shut.Load() {
		return errors.New("not now")
	}
	return l.Local.Release(ctx, calls)
}

// A node that was given up and renewed itself closes its old journal, but not before the counters took the end of every hold in it:
// dropped before, a charge that the quota consumer takes out of settled would never have been in it, and could be spent again.
func TestRenewedJournalWaitsForItsReleases(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	counters := &late{Local: s.counters}
	n := s.start(func(c *nodeConfig) { c.counters = counters })
	a := n.account(1000, -1)
	ticket, err := n.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 400, Want: 400})
	n.must(err)
	old := n.incarnations()[0]
	// No new epoch begins meanwhile: the quota consumer is slow.
	n.clerk.mu.Lock()
	counters.shut.Store(true)
	n.giveUp(old.ID)
	n.await("the node to renew itself", ticket.WasCut)
	n.must(ticket.Settle(t.Context(), n.usage(a, "cut", 400)))
	p := ledger.Partition(a.user, partitions)
	n.await("the event to be shipped", func() bool {
		_, end, err := n.events.Bounds(t.Context(), p)
		n.must(err)
		my, err := n.db.Partition(t.Context(), p)
		n.must(err)
		return end > my.Offset
	})
	before := counters.looks.Load()
	n.await("three rounds of the duties", func() bool { return counters.looks.Load() > before+3 })
	for _, inc := range n.incarnations() {
		if inc.ID == old.ID && inc.State == sqlstore.ProducerClosed {
			t.Error("the old journal was closed before its holds were released")
		}
	}
	counters.shut.Store(false)
	n.await("the old journal to be closed", func() bool { return n.incarnations()[0].State == sqlstore.ProducerClosed })
	n.clerk.mu.Unlock()
	n.ready()
	if left := n.left(a.users, a.user); left != 600 {
		t.Errorf("%d units are left", left)
	}
}

func (n *node) incarnations() []sqlstore.Producer {
	n.Helper()
	list, err := n.db.Producers(n.Context())
	n.must(err)
	return list
}

func (n *node) giveUp(id ledger.ID) {
	n.Helper()
	n.await("an incarnation to be given up", func() bool {
		for _, p := range n.incarnations() {
			if p.ID == id {
				gone, err := n.db.GiveUp(n.Context(), id, p.Beat)
				n.must(err)
				return gone
			}
		}
		return false
	})
}

// A journal that cannot be read for a moment is shipped again: all that was journaled reaches the log.
func TestShippingGoesOnAfterAFault(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	ship := s.ship()
	var calls atomic.Int64
	fault := errors.New("too many open files")
	n := s.start(func(c *nodeConfig) {
		c.ship = func(ctx context.Context, j *journal.Journal) error {
			if calls.Add(1) == 1 {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				if got, err := j.Next(ctx, 10); err != nil || len(got) == 0 {
					return err
				}
				return fault // after it took events that it never shipped
			}
			return ship(ctx, j)
		}
	})
	a := n.account(1000, 500)
	if left := n.left(a.users, a.user); left != 1000 {
		t.Errorf("%d units are left", left)
	}
}

// cutOff is a database that a node does not reach any more.
type cutOff struct {
	desk.Bank
	cut atomic.Bool
}

func (b *cutOff) Heartbeat(ctx context.Context, ids []ledger.ID) ([]ledger.ID, error) {
	if b.cut.Load() {
		return nil, errors.New("no route to host")
	}
	return b.Bank.Heartbeat(ctx, ids)
}

// A node that loses the database and nothing else goes on serving, is given up at last, and does not know it. It must not keep the
// others from serving; and when it has the database again, it goes on as a new incarnation.
func TestGivenUpWithoutTheDatabase(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	db := &cutOff{Bank: bank{s.db}}
	lost := s.start(func(c *nodeConfig) { c.desk = func(dc *desk.Config) { dc.Bank = db } })
	a := lost.account(1000, -1)
	other := s.start()
	ticket, err := lost.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 400, Want: 400})
	lost.must(err)
	before := lost.epoch(a.user)
	db.cut.Store(true)
	lost.giveUp(lost.incarnations()[0].ID)
	lost.await("the end of its request", ticket.WasCut)
	lost.must(ticket.Settle(t.Context(), lost.usage(a, "late", 10)))
	other.await("an epoch without it", func() bool {
		open, all := other.desk.Open()
		return open == all && other.epoch(a.user) > before
	})
	epoch := other.epoch(a.user)
	for range 20 {
		ticket, err := other.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 10, Want: 10})
		if err != nil {
			t.Fatalf("the other node: %v", err)
		}
		ticket.Void()
		if _, err := lost.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 1, Want: 1}); err == nil {
			t.Fatal("a node that was given up took a hold")
		}
	}
	if got := other.epoch(a.user); got != epoch {
		t.Errorf("epoch %d, and then %d", epoch, got)
	}
	db.cut.Store(false)
	lost.await("it to renew itself", func() bool {
		ticket, err := lost.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 1, Want: 1})
		if err == nil {
			ticket.Void()
		}
		return err == nil
	})
	if left := lost.left(a.users, a.user); left != 990 {
		t.Errorf("%d units are left", left)
	}
}

// An upstream's request id may be as long as its headers: the answer is billed all the same.
func TestLongUpstreamRequestID(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Request-Id", strings.Repeat(`"`, 200<<10)) // twice as long in JSON
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`)
	}))
	n := s.start()
	a := n.account(start, -1)
	got := n.post(a.key, chatPath, chat(""))
	if got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if ev := n.event(got.request()); len(ev.Request.Upstream) != 256 || ev.Charged != price(3, 1) {
		t.Errorf("an id of %d bytes, %d charged", len(ev.Request.Upstream), ev.Charged)
	}
	n.wantNothing(t, a, 1)
}
