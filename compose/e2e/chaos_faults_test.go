package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// fault is one thing that goes wrong and is made good again.
type fault struct {
	name    string
	excerpt bool // part of make test
	play    func(g *stage)
}

// How many requests must come to their end while something is away that is not on their path (P3), and after everything.
const (
	meanwhile = 15
	goesOn    = 10
)

// faults are all that the suite knows, by what they are done to.
func faults() []fault {
	return []fault{
		{"relay: kill -9", true, (*stage).relayKilled},
		{"relay: SIGTERM", false, (*stage).relayStopped},
		{"relay: SIGSTOP beyond HOLD_ORPHAN_AFTER, then it comes back", true, (*stage).relayFrozen},
		{"relay: disk full under the journal", true, (*stage).diskFull},
		{"all relays and consumers restarted in turn, clients do not retry", true, (*stage).rollingRestart},
		{"consumer: kill -9", true, (*stage).workerKilled},
		{"consumer: SIGTERM", false, (*stage).workerStopped},
		{"consumer: SIGSTOP beyond its session, then it comes back", true, (*stage).workerFrozen},
		{"consumer: SIGSTOP inside its MySQL transaction for over 30 s", false, (*stage).workerFrozenInside},
		{"nginx: kill -9", false, (*stage).nginxKilled},
		{"Kafka: leader killed", true, (*stage).leaderKilled},
		{"Kafka: a broker restarted", false, (*stage).brokerRestarted},
		{"Kafka: all brokers killed", false, (*stage).kafkaKilled},
		{"Kafka: data folders emptied", false, (*stage).kafkaEmptied},
		{"Kafka: lines dead", false, func(g *stage) { g.hanging(g.brokerLines, true) }},
		{"Kafka: lines slow", false, func(g *stage) { g.slowed(g.brokerLines, 20*time.Millisecond) }},
		{"MySQL: kill -9", true, func(g *stage) { g.away(g.mysql.Kill, g.mysql.Start, true) }},
		{"MySQL: SIGTERM", false, func(g *stage) { g.away(g.mysql.Stop, g.mysql.Start, true) }},
		{"MySQL: SIGSTOP", false, func(g *stage) { g.away(g.mysql.Freeze, g.mysql.Thaw, true) }},
		{"MySQL: deadlocks and lock timeouts", true, (*stage).mysqlLocks},
		{"MySQL: restored from an older dump", true, (*stage).mysqlRestored},
		{"MySQL: promoted replica that lacks the last transactions", true, (*stage).mysqlPromoted},
		{"Redis: FLUSHALL", true, (*stage).redisFlushed},
		{"Redis: kill -9", true, func(g *stage) { g.away(g.redis.Kill, g.redis.Start, false) }},
		{"Redis: SIGSTOP", false, func(g *stage) { g.away(g.redis.Freeze, g.redis.Thaw, false) }},
		{"Redis: restart from a snapshot 30 s old", true, (*stage).redisRestored},
		{"ClickHouse: kill -9", true, func(g *stage) { g.away(g.click.Kill, g.click.Start, true) }},
		{"ClickHouse: SIGSTOP", false, func(g *stage) { g.away(g.click.Freeze, g.click.Thaw, true) }},
		{"ClickHouse: inserts refused", true, (*stage).insertsRefused},
		{"one relay loses Redis", true, (*stage).relayWithoutRedis},
		{"one node loses MySQL", false, (*stage).nodeWithoutMySQL},
		{"one consumer loses ClickHouse", false, func(g *stage) { g.cutOff(g.lines[g.pick(g.workers)].click) }},
		{"connections cut everywhere", true, (*stage).cutEverywhere},
		{"one node's lines dead", false, func(g *stage) { g.hanging(g.lines[g.pick(g.nodes)].all(), false) }},
		{"one node's lines slow", false, func(g *stage) { g.slowed(g.lines[g.pick(g.nodes)].all(), 20*time.Millisecond) }},
	}
}

func (g *stage) pick(from []*node) *node { return from[g.rng.IntN(len(from))] }

// served waits until so many more requests have come to their end.
func (g *stage) served(n int) { g.load.moreDone(g.t, n) }

// away plays an engine's absence. free says that requests must go on meanwhile.
func (g *stage) away(end, begin func(), free bool) {
	end()
	g.lasts(free)
	begin()
}

// lasts lets something that is away stay so for a while: a second at most in make test, else up to 15 s, which is longer than
// HOLD_ORPHAN_AFTER, and every fifth time up to 45 s, which is longer than sessions, transactions and most timeouts.
func (g *stage) lasts(free bool) {
	least, most := time.Duration(0), 15*time.Second
	switch {
	case *chaosFor == 0:
		most = time.Second
	case g.rng.IntN(5) == 0:
		least, most = most, 3*most
	}
	until := time.Now().Add(least + time.Duration(g.rng.Int64N(int64(most-least))))
	if free {
		g.served(meanwhile)
	}
	g.wait("it has lasted", func() error {
		if left := time.Until(until); left > 0 {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	})
	if free {
		g.served(1) // still
	}
}

func (g *stage) relayKilled() {
	n := g.pick(g.relays)
	n.kill()
	g.kills++
	g.served(meanwhile)
	n.start()
	n.ready()
}

func (g *stage) relayStopped() { g.restart(g.pick(g.relays)) }

// restart stops a node as an operator does, and starts it again.
func (g *stage) restart(n *node) {
	if code := n.terminate(); code != 0 {
		g.t.Errorf("%s: exit code %d after SIGTERM: %s", n.name, code, tail(n.stderr.String()))
	}
	n.start()
	n.ready()
}

// relayFrozen stops a relay in the middle of what it does until it is given up. It comes back, and writes.
func (g *stage) relayFrozen() {
	n := g.pick(g.relays)
	gone := func() int64 {
		return g.books.number("SELECT COUNT(*) FROM ledger_producers WHERE node = ? AND state = 'gone'", n.name)
	}
	closed := func() int64 {
		return g.books.number("SELECT COUNT(*) FROM ledger_producers WHERE node = ? AND state = 'closed'", n.name)
	}
	before, ended := gone(), closed()
	n.freeze()
	g.wait(n.name+" is given up", func() error {
		if gone() == before {
			return errors.New("it is not")
		}
		return nil
	})
	n.thaw()
	g.wait(n.name+" goes on as a new incarnation and closes the old one", func() error {
		if closed() == ended {
			return errors.New("it does not")
		}
		return nil
	})
	n.ready()
}

func (g *stage) wait(what string, ok func() error) { g.t.Helper(); eventually(g.t, what, ok) }

// diskFull fills the disk under a relay's journal. The relay refuses, the others serve; with room again it is restarted.
func (g *stage) diskFull() {
	n := g.full
	if n == nil {
		g.table.current().note = "needs root, for a small disk of its own"
		return
	}
	filler := filepath.Join(n.dir, "journal", "filler")
	if err := fill(filler); err != nil {
		g.t.Fatal(err)
	}
	g.wait(n.name+" says that its journal cannot be written", func() error {
		status, body, err := get(n.url() + "/readyz")
		if err != nil {
			return err
		}
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "journal") {
			return fmt.Errorf("status %d, %s", status, body)
		}
		return nil
	})
	g.served(meanwhile)
	if err := os.Remove(filler); err != nil {
		g.t.Fatal(err)
	}
	n.terminate()
	n.start()
	n.ready()
}

// fill writes a file until the disk is full.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for size := 1 << 20; size > 0; size >>= 1 {
		buf := make([]byte, size)
		for {
			if _, err := f.Write(buf); err != nil {
				break
			}
		}
	}
	return nil
}

// beating waits until every incarnation that lives has said so from now on: one that could not for as long as HOLD_ORPHAN_AFTER, because
// of an earlier fault, is about to be given up, which its clients notice.
func (g *stage) beating() {
	beats := func() (map[string]int64, error) {
		rows, err := g.books.db.QueryContext(g.t.Context(), "SELECT HEX(id), beat FROM ledger_producers WHERE state = 'live'")
		if err != nil {
			return nil, err
		}
		defer func() { _ = rows.Close() }()
		out := map[string]int64{}
		for rows.Next() {
			var id string
			var beat int64
			if err := rows.Scan(&id, &beat); err != nil {
				return nil, err
			}
			out[id] = beat
		}
		return out, rows.Err()
	}
	var before map[string]int64
	g.wait("every node says that it lives", func() error {
		now, err := beats()
		if err != nil {
			return err
		}
		if before == nil {
			before = now
		}
		for id, beat := range now {
			if old, known := before[id]; known && old == beat {
				return fmt.Errorf("%s does not", id)
			}
		}
		return nil
	})
}

// rollingRestart restarts every node in turn. Clients that ask once, through nginx, see nothing of it.
func (g *stage) rollingRestart() {
	g.beating()
	for _, n := range g.nodes {
		n.ready()
	}
	ctx, stop := context.WithCancel(g.t.Context())
	c := newClients(g.t)
	var all sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(g.rng.Uint64(), uint64(w)))
		all.Go(func() {
			for ctx.Err() == nil {
				o := g.order(rng, false)
				o.leave, o.cut = 0, 0
				one, done := context.WithTimeout(context.WithoutCancel(ctx), clientPatience)
				r := send(one, c.http, g.front, o)
				done()
				c.keep(r)
			}
		})
	}
	for _, n := range g.nodes {
		g.restart(n)
		if n.relays() {
			g.wait("nginx uses "+n.name+" again", func() error {
				if n.metric("ledgerline_relay_requests_total") == 0 {
					return errors.New("it does not")
				}
				return nil
			})
		}
	}
	stop()
	all.Wait()
	for _, r := range c.all {
		if r.status != http.StatusOK || !r.whole {
			g.t.Errorf("a rolling restart reached a client that does not retry: %+v", r)
		}
	}
	g.table.current().once += len(c.all)
	g.load.keep(c.all...)
}

func (g *stage) workerKilled() {
	n := g.pick(g.workers)
	n.kill()
	g.served(meanwhile)
	n.start()
	n.ready()
}

func (g *stage) workerStopped() { g.restart(g.pick(g.workers)) }

// workerFrozen stops a consumer until the other one has taken over its partitions and has caught up. Then it comes back in
// the middle of what it was writing.
func (g *stage) workerFrozen() {
	i := g.rng.IntN(len(g.workers))
	n, other := g.workers[i], g.workers[1-i]
	hasAll := func(want bool) func() error {
		return func() error {
			if owned := other.series("ledgerline_consumer_lag_records"); owned == 2*partitions != want {
				return fmt.Errorf("%s consumes %d partitions", other.name, owned)
			}
			return nil
		}
	}
	g.wait("the consumers share the partitions", hasAll(false))
	n.freeze()
	g.served(meanwhile)
	g.wait("the other consumer takes over", hasAll(true))
	g.drained(g.t)
	n.thaw()
}

func (g *stage) nginxKilled() {
	g.nginx.Kill()
	g.nginx.Start()
}

// hanging lets nothing through some lines for a while, and closes nothing.
func (g *stage) hanging(lines []*proxy, free bool) {
	for _, p := range lines {
		p.hang()
	}
	g.lasts(free)
	for _, p := range lines {
		p.heal()
	}
}

func (g *stage) slowed(lines []*proxy, by time.Duration) {
	for _, p := range lines {
		p.slow(by)
	}
	g.lasts(true)
	for _, p := range lines {
		p.heal()
	}
}

func (g *stage) redisClient() *redis.Client {
	g.t.Helper()
	options, err := redis.ParseURL(g.redis.RedisURL())
	if err != nil {
		g.t.Fatal(err)
	}
	return redis.NewClient(options)
}

func (g *stage) redisFlushed() {
	c := g.redisClient()
	defer func() { _ = c.Close() }()
	if err := c.FlushAll(g.t.Context()).Err(); err != nil {
		g.t.Fatal(err)
	}
}

// redisSaved writes a snapshot and puts it aside.
func (g *stage) redisSaved() {
	c := g.redisClient()
	defer func() { _ = c.Close() }()
	if err := c.Save(g.t.Context()).Err(); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(g.redis.Dir, redisDump), filepath.Join(g.redis.Dir, "older.rdb")); err != nil {
		g.t.Fatal(err)
	}
	g.saved = time.Now()
}

// redisRestored starts Redis on a snapshot that is half a minute old.
func (g *stage) redisRestored() {
	const age = 30 * time.Second
	if g.saved.IsZero() {
		g.redisSaved()
	}
	g.wait("the snapshot is old enough", func() error {
		if old := time.Since(g.saved); old < age {
			return fmt.Errorf("it is %s old", old)
		}
		return nil
	})
	g.redis.Kill()
	dump := filepath.Join(g.redis.Dir, redisDump)
	if err := os.Rename(filepath.Join(g.redis.Dir, "older.rdb"), dump); err != nil {
		g.t.Fatal(err)
	}
	g.saved = time.Time{}
	g.redis.Start()
	if err := os.Remove(dump); err != nil { // the next start is an empty one again
		g.t.Fatal(err)
	}
}

// insertsRefused makes ClickHouse answer inserts with "too many parts".
func (g *stage) insertsRefused() {
	set := func(what string) {
		for _, table := range []string{"ledger_usage", "ledger_events"} {
			if err := g.click.ClickHouseExec(g.t.Context(), "ALTER TABLE chaos."+table+" "+what); err != nil {
				g.t.Fatal(err)
			}
		}
	}
	set("MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 1")
	before := g.retries()
	g.served(meanwhile)
	g.wait("inserts are refused", func() error {
		if g.retries() == before {
			return errors.New("none is")
		}
		return nil
	})
	set("RESET SETTING parts_to_delay_insert, parts_to_throw_insert")
}

// retries is how many flushes of the consumers failed and were repeated.
func (g *stage) retries() (n float64) {
	for _, w := range g.workers {
		n += w.metric("ledgerline_consumer_retries_total")
	}
	return n
}

// cutOff leads a line nowhere for a while.
func (g *stage) cutOff(p *proxy) {
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	p.target("")
	g.lasts(true)
	p.target(to)
}

// relayWithoutRedis begins when nobody is about to be given up: a relay that lives and cannot report holds up an epoch for a minute.
func (g *stage) relayWithoutRedis() {
	g.beating()
	g.cutOff(g.lines[g.pick(g.relays)].redis)
}

func (g *stage) nodeWithoutMySQL() { g.cutOff(g.lines[g.pick(g.nodes)].mysql) }

// cutEverywhere closes all connections between nodes and engines, again and again.
func (g *stage) cutEverywhere() {
	for range 5 {
		for _, p := range g.brokerLines {
			p.cut()
		}
		for _, n := range g.nodes {
			for _, p := range g.lines[n].all() {
				p.cut()
			}
		}
		g.served(3)
	}
}

func execOn(ctx context.Context, dsn, statement string) error {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(ctx, statement)
	return err
}
