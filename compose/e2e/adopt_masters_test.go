package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger/ledgertest"
)

// TestMastersAdoptAtOnce: two masters start at once on what New API left, and are killed at once, again and again; in the end there is
// one opening balance for each user and key, and both serve.
func TestMastersAdoptAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real engines")
	}
	s := newSite(t)
	a := &adoption{site: s, newAPIDatabase: loadDump(t, "recorded", s.upstream.URL), facts: readFacts(t)}
	for name, value := range a.newAPIDatabase.env {
		s.env[name] = value
	}
	s.env["KAFKA_BROKERS"], s.env["REDIS_CONN_STRING"] = strings.Join(ledgertest.Kafka(t), ","), ledgertest.Redis(t)
	s.env["KAFKA_TOPIC"] = ledgertest.UniqueName("e2e")
	s.addNode(map[string]string{"NODE_TYPE": "master"})
	s.addNode(map[string]string{"NODE_TYPE": "master"})
	a.made = a.tables()
	a.before = a.contents(a.made)

	const kills = 6
	for i := range kills {
		var both sync.WaitGroup
		for _, n := range s.nodes {
			// The process alone, without waiting for it to serve: a kill must meet migrations and openings, too.
			env := s.environment(n.env)
			env["PORT"], env["NODE_NAME"], env["DATA_DIR"], env["JOURNAL_DIR"] = "0", n.name, n.dir+"/data", n.dir+"/journal"
			p := start(t, command{dir: n.dir, env: env})
			after := time.Duration(rand.N(int64(time.Duration(i+1) * 200 * time.Millisecond)))
			both.Go(func() {
				select {
				case <-time.After(after):
				case <-p.done:
				}
				p.kill()
			})
		}
		both.Wait()
	}
	var both sync.WaitGroup
	for _, n := range s.nodes {
		both.Go(n.start)
	}
	both.Wait()
	for _, n := range s.nodes {
		n.ready()
	}
	a.opened()
	eventually(t, "the usage log has the opening events", func() error {
		if n, want := a.number("SELECT COUNT(*) FROM ledger_usage WHERE kind = 'account.opened'"), int64(len(a.facts.Users)+len(a.facts.Tokens)); n != want {
			return fmt.Errorf("%d, want %d", n, want)
		}
		return nil
	})
	if n := a.number("SELECT COUNT(DISTINCT event_key) FROM ledger_usage WHERE kind = 'account.opened'"); n != int64(len(a.facts.Users)+len(a.facts.Tokens)) {
		t.Errorf("%d accounts were opened", n)
	}
	a.untouched("two masters and their ends", nil)
	paid := a.traffic()
	a.verified()
	a.untouched("traffic through both", paid)
}
