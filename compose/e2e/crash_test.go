package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"ledgerline/ledger/ledgertest"
)

// A node that is killed in mid-traffic, streams open, loses nothing and charges nothing twice: what was finished is billed
// exactly, what was cut between what the client got and what the upstream produced. On the cluster every node is killed
// once, the one that consumes among them; on the embedded stack the log, the counters and the consumers die with the node.
func TestKillMinusNine(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		users := s.cast(3)
		tr := s.background(10, users)
		victims := s.nodes
		if s.embedded {
			victims = []*node{s.nodes[0], s.nodes[0], s.nodes[0]}
		}
		for _, n := range victims {
			tr.moreDone(t, 25)
			n.kill()
			if !s.embedded {
				tr.moreDone(t, 10) // the others go on
			}
			n.start()
			n.ready()
		}
		tr.moreDone(t, 25)
		tr.stop()
		s.books.settled(tr.answered(), users...)
		s.verified()
		for _, r := range tr.all {
			switch r.status {
			case 0, http.StatusOK, http.StatusServiceUnavailable, http.StatusTooManyRequests:
			default:
				t.Errorf("a client was refused with %d %s", r.status, r.code)
			}
		}
	})
}

// A node that is asked to stop finishes what is open, ships it, and leaves nothing for others to recover.
func TestStopLosesNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		users := s.cast(3)
		tr := s.background(8, users)
		tr.moreDone(t, 25)
		last := s.nodes[len(s.nodes)-1]
		if code := last.terminate(); code != 0 {
			t.Errorf("exit code %d: %s", code, tail(last.stderr.String()))
		}
		nothingToAdopt(t, s.only(last))
		last.start()
		last.ready()
		tr.moreDone(t, 10)
		tr.stop()
		for _, r := range tr.answered() {
			if !r.whole {
				t.Errorf("a request was cut by a clean stop: %+v", r)
			}
		}
		s.books.settled(tr.answered(), users...)
		bills, err := s.books.bills()
		if err != nil {
			t.Fatal(err)
		}
		for id, b := range bills {
			if b.kind != "usage.settled" {
				t.Errorf("request %s was %s after a clean stop", id, b.kind)
			}
		}
		for _, n := range s.nodes {
			if code := n.terminate(); code != 0 {
				t.Errorf("%s: exit code %d", n.name, code)
			}
		}
		nothingToAdopt(t, s)
		s.verified()
	})
}

// A node that says that it serves does: a load balancer sends it requests as soon as its port takes connections, and clients
// that do not retry must not see that it has just started.
func TestServesFromTheFirstRequest(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.open()
	u := s.cast(1)[0]
	c := newClients(t)
	last := s.nodes[2]
	last.port = ledgertest.Port(t)
	for round := range 3 {
		last.terminate()
		asked := make(chan seen)
		go func() {
			for {
				r := send(t.Context(), c.http, last.url(), order{account: u, prompt: 30, completion: 3})
				if r.status != 0 || t.Context().Err() != nil { // until it takes connections
					asked <- r
					return
				}
			}
		}()
		last.start()
		if r := <-asked; r.status != http.StatusOK || !r.whole {
			t.Errorf("start %d: the first request got status %d %q", round, r.status, r.code)
		}
	}
}

// What the starts of a node leave in JOURNAL_DIR goes when JOURNAL_KEEP has passed, on masters and on slaves.
func TestOldJournalsGo(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.env["JOURNAL_KEEP"] = "0s"
	s.open()
	for _, n := range s.nodes {
		for range 3 {
			n.terminate()
			n.start()
		}
		eventually(t, n.name+" has one journal, its own", func() error {
			list, err := filepath.Glob(filepath.Join(n.dir, "journal", "*"))
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%v: %w", list, err)
			}
			return nil
		})
	}
}

// only is the site seen as if it had just that node.
func (s *site) only(n *node) *site {
	one := *s
	one.nodes = []*node{n}
	return &one
}
