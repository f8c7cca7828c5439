package relay_test

import (
	"testing"

	"ledgerline/ledger"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// One server of the counters is away: the ends of holds elsewhere get through, epochs elsewhere are followed, and what the refused
// requests leave to be done is bounded (L7). When it is back, what ended meanwhile is settled there, once.
func TestOneServerAway(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	b := n.account(start, start)
	for ledger.Partition(b.user, partitions) == ledger.Partition(a.user, partitions) {
		b = n.account(start, start)
	}
	there := ledger.Partition(b.user, partitions)
	open := n.stream(a.key, feeds)
	f.dead.Store(int64(ledger.Partition(a.user, partitions)) + 1)
	open.next <- wholeEnd
	close(open.next)
	if got := open.end(); got.status != 200 {
		t.Fatal(got.status, got.body)
	}
	n.await("the end to be set aside", func() bool { return n.desk.Backlog() > 0 })

	other := n.stream(b.key, feeds)
	other.next <- wholeEnd
	close(other.next)
	other.end()
	n.await("the other server to hear of the end", func() bool {
		hot, err := n.counters.Accounts(t.Context(), there, []ledger.Account{b.users})
		n.must(err)
		return hot[0].OpenHolds == 0 && hot[0].Held == 0
	})

	before := n.epoch(b.user)
	next, err := n.db.AllocateEpoch(t.Context(), there, before)
	n.must(err)
	_, err = n.counters.Begin(t.Context(), next)
	n.must(err)
	n.await("the node to join the other server's new epoch", func() bool {
		states, err := n.counters.State(t.Context(), there)
		n.must(err)
		return states[0].Epoch == next.Epoch && states[0].Open
	})
	n.ready()
	again := n.stream(b.key, feeds)
	again.next <- wholeEnd
	close(again.next)
	if got := again.end(); got.status != 200 {
		t.Error(got.status, got.body)
	}

	const refused = desk.MaxOpen / 3
	for range refused {
		if _, err := n.desk.Reserve(t.Context(), desk.Order{User: a.user, Min: 1, Want: 1}); err == nil {
			t.Fatal("a hold was granted by a server that is away")
		}
	}
	// Each waits in the queue and among the holds that the sweep must leave alone.
	if left := n.desk.Backlog(); left > desk.MaxOpen/2+100 {
		t.Errorf("%d ends wait after %d requests were refused", left, refused)
	}
	f.dead.Store(0)
	n.drain()
	for _, u := range []account{a, b} {
		if left := n.left(u.users, u.user); left != start-n.chargedTo(u) {
			t.Errorf("user %d has %d left after charges of %d", u.user, left, n.chargedTo(u))
		}
	}
}

// A server that hangs says nothing at all: the epochs of the others are followed all the same.
func TestOneServerHangs(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	there := (ledger.Partition(a.user, partitions) + 1) % partitions
	f.hangs.Store(true)
	f.dead.Store(int64(ledger.Partition(a.user, partitions)) + 1)
	next, err := n.db.AllocateEpoch(t.Context(), there, 1)
	n.must(err)
	_, err = n.counters.Begin(t.Context(), next)
	n.must(err)
	n.await("the node to join the other server's new epoch", func() bool {
		states, err := n.counters.State(t.Context(), there)
		n.must(err)
		return states[0].Epoch >= next.Epoch && states[0].Open
	})
	f.dead.Store(0)
	n.drain()
}

// The sweep goes past the partitions of a server that hangs.
func TestSweepPassesAServerThatHangs(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	for ledger.Partition(a.user, partitions) == 0 {
		a = n.account(start, start)
	}
	n.await("the account to be loaded", func() bool { return n.post(a.key, chatPath, chat("")).status == 200 })
	n.drain()
	p := ledger.Partition(a.user, partitions)
	f.hangs.Store(true)
	f.dead.Store(1) // partition 0
	n.holdUnknown(a)
	n.await("the unknown hold to be voided", func() bool {
		hot, err := n.counters.Accounts(t.Context(), p, []ledger.Account{a.users})
		n.must(err)
		return hot[0].OpenHolds == 0
	})
	f.dead.Store(0)
	n.drain()
}

// chargedTo is the sum of a user's bills.
func (n *node) chargedTo(a account) (sum int64) {
	for _, ev := range n.clerk.usage() {
		if ev.User == a.user {
			sum += ev.Charged
		}
	}
	return sum
}
