package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"ledgerline/ledger/ledgertest"
)

func (g *stage) leaderKilled() {
	g.aside.Wait()
	b := g.brokers[g.leader()]
	b.Kill()
	g.lasts(true)
	g.comeBack(b)
}

// comeBack starts a broker while other things happen: the two others do its work.
func (g *stage) comeBack(b *ledgertest.Server) {
	g.aside.Go(func() {
		if err := b.Server.Start(context.WithoutCancel(g.t.Context())); err != nil {
			g.t.Error(err)
		}
	})
}

func (g *stage) brokerRestarted() {
	g.aside.Wait()
	b := g.brokers[g.rng.IntN(len(g.brokers))]
	b.Stop()
	g.served(meanwhile)
	g.comeBack(b)
}

func (g *stage) kafkaKilled() {
	g.aside.Wait()
	for _, b := range g.brokers {
		b.Kill()
	}
	g.lasts(true)
	g.startKafka()
}

// startKafka starts all brokers at once: none is ready without a majority.
func (g *stage) startKafka() {
	g.t.Helper()
	var all sync.WaitGroup
	errs := make([]error, len(g.brokers))
	for i, b := range g.brokers {
		all.Go(func() { errs[i] = b.Server.Start(context.WithoutCancel(g.t.Context())) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		g.t.Fatal(err)
	}
}

// kafkaEmptied loses the whole log, as when every broker's disk is gone. Requests go on (P3). The operator restarts a master, which
// makes the topic again, ships once more what the journals have kept, and tells both projections to go on with the new log: what
// was acknowledged and not yet applied is in none of the stores but the journals.
func (g *stage) kafkaEmptied() {
	g.aside.Wait()
	for _, b := range g.brokers {
		b.Kill()
	}
	g.served(meanwhile)
	for _, b := range g.brokers {
		if err := os.RemoveAll(filepath.Join(b.Dir, "data")); err != nil {
			g.t.Fatal(err)
		}
	}
	g.startKafka()
	g.restart(g.relays[0])
	var stopped []int
	for p := range partitions {
		if g.books.number("SELECT next_offset FROM ledger_partitions WHERE part = ?", p) > 0 {
			stopped = append(stopped, p)
		}
	}
	g.wait("both projections say that this is another log", func() error {
		var n float64
		for _, w := range g.workers {
			n += w.metric("ledgerline_consumer_stopped")
		}
		if int(n) != 2*len(stopped) {
			return fmt.Errorf("%v of %d are stopped", n, 2*len(stopped))
		}
		return nil
	})
	for _, n := range g.relays {
		g.reship(n, stopped)
	}
	for _, projection := range []string{"quota", "usagelog"} {
		for _, p := range stopped {
			if got := g.run("consume", "-adopt-log", "-projection", projection, "-partition", fmt.Sprint(p)); got.code != 0 {
				g.t.Fatalf("adopt the log: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
		}
	}
	g.drained(g.t)
}

// reship sends again all that a node's journals have kept.
func (g *stage) reship(n *node, of []int) {
	env := g.environment(n.env)
	env["JOURNAL_DIR"] = filepath.Join(n.dir, "journal")
	list := run(g.t, command{args: []string{"journal", "list"}, env: env})
	for line := range strings.Lines(list.stdout) {
		for _, p := range of {
			got := run(g.t, command{args: []string{"journal", "reship", "-partition", fmt.Sprint(p), "-producer", strings.Fields(line)[0]}, env: env})
			if got.code != 0 {
				g.t.Fatalf("reship: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
		}
	}
}
