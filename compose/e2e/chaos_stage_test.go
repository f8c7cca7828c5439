package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/ledgertest/engines"
)

// orphanAfter is HOLD_ORPHAN_AFTER of the stage, the least that is allowed.
const orphanAfter = 10 * time.Second

// stage is a site for chaos: three relays behind nginx, two processes that consume, three Kafka brokers, MariaDB, Redis and
// ClickHouse, and a proxy on every line between a node and an engine.
type stage struct {
	*site
	relays, workers []*node
	brokers         []*ledgertest.Server
	brokerLines     []*proxy
	lines           map[*node]lines
	office          lines // of the operator's commands and the books: they follow the engines, and are never cut
	nginx           *ledgertest.Server
	users           []*account
	tight           *account // has quota for fewer requests than it makes
	load            *traffic
	table           *faultTable
	rng             *rand.Rand
	kills           int            // relays ended by kill -9 so far
	full            *node          // the relay whose journal has a small disk of its own; nil: nobody may mount one
	aside           sync.WaitGroup // what comes back while other things happen
	saved           time.Time      // when Redis's snapshot was put aside; zero: there is none
}

// lines are the ways from one node to the engines. Kafka's are the brokers', since a broker tells everybody one address.
type lines struct{ mysql, redis, click *proxy }

func (l lines) all() []*proxy { return []*proxy{l.mysql, l.redis, l.click} }

// newStage starts everything, with some traffic's worth of users, keys and channels.
func newStage(t *testing.T, seed uint64) *stage { return newStageOf(t, seed, "") }

// newStageOf is newStage with another binary in all nodes.
func newStageOf(t *testing.T, seed uint64, binary string) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs real engines")
	}
	g := &stage{site: newSite(t), lines: map[*node]lines{}, rng: rand.New(rand.NewPCG(seed, 0)), table: newFaultTable(t, seed)}
	g.engines()
	g.env["KAFKA_TOPIC"], g.env["HOLD_ORPHAN_AFTER"] = ledgertest.UniqueName("chaos"), orphanAfter.String()
	g.env["JOURNAL_MAX_MB"], g.env["SHUTDOWN_TIMEOUT_SECONDS"] = "64", "30"
	// What may have to be shipped again is minutes old; the small disk below would not hold an hour of it.
	g.env["JOURNAL_KEEP"] = "5m"
	for _, kind := range []string{"master", "slave", "slave"} {
		g.relays = append(g.relays, g.half("relay", kind))
	}
	// Two masters do no harm, and the one must be able to give up the other.
	for _, kind := range []string{"master", "slave"} {
		g.workers = append(g.workers, g.half("consume", kind))
	}
	g.nodes = append(append([]*node(nil), g.relays...), g.workers...)
	for _, n := range g.nodes {
		n.binary = binary
	}
	if second := g.relays[1]; smallDisk(t, filepath.Join(second.dir, "journal")) {
		g.full = second
	}
	g.open()
	g.users = g.cast(3)
	g.tight = g.addUser("tight", 100_000_000, tokenLimit{quota: 20_000})
	g.nginx = ledgertest.StartNginx(t, g.balancer)
	g.front = g.nginx.URL()
	return g
}

// engines starts the engines, all at once.
func (g *stage) engines() {
	var all sync.WaitGroup
	var mu sync.Mutex
	all.Go(func() {
		g.brokers = ledgertest.StartKafkaBehind(g.t, 3, func(addr string) (string, error) {
			p := startProxy(g.t, addr)
			mu.Lock()
			defer mu.Unlock()
			g.brokerLines = append(g.brokerLines, p)
			return p.Addr, nil
		})
	})
	all.Go(func() { g.mysql = ledgertest.StartMySQL(g.t, mysqlArgs...) })
	// A dump is loaded at the start if there is one; none is written unless a test asks for it.
	all.Go(func() { g.redis = ledgertest.StartRedis(g.t, "--dbfilename", redisDump) })
	all.Go(func() { g.click = ledgertest.StartClickHouse(g.t) })
	all.Wait()
	if g.t.Failed() {
		g.t.FailNow()
	}
	addrs := make([]string, len(g.brokerLines))
	for i, p := range g.brokerLines {
		addrs[i] = p.Addr
	}
	g.env["KAFKA_BROKERS"] = strings.Join(addrs, ",")
	ledgertest.MySQLDatabase(g.t, g.mysql.MySQLDSN("")) // that the server takes statements
	if err := g.mysqlExec("CREATE DATABASE chaos CHARACTER SET utf8mb4"); err != nil {
		g.t.Fatal(err)
	}
	if err := g.click.ClickHouseExec(g.t.Context(), "CREATE DATABASE chaos"); err != nil {
		g.t.Fatal(err)
	}
	g.office = g.newLines()
	maps.Copy(g.env, g.office.environment())
}

// mysqlArgs make a lock that nobody gives back a matter of seconds, as an operator of a busy server has it.
var mysqlArgs = []string{"--innodb-lock-wait-timeout=2"}

// redisDump is the file that Redis loads at its start.
const redisDump = "dump.rdb"

func (g *stage) newLines() lines {
	return lines{startProxy(g.t, g.mysql.Addr), startProxy(g.t, g.redis.Addr), startProxy(g.t, g.click.Addr)}
}

func (l lines) environment() map[string]string {
	return map[string]string{
		"SQL_DSN":           "root@tcp(" + l.mysql.Addr + ")/chaos?parseTime=true",
		"REDIS_CONN_STRING": "redis://" + l.redis.Addr + "/0",
		"LOG_SQL_DSN":       "http://" + l.click.Addr + "/chaos",
	}
}

// half makes a node of one half, on lines of its own.
func (g *stage) half(command, kind string) *node {
	l := g.newLines()
	env := l.environment()
	env["NODE_TYPE"] = kind
	n := g.addNode(env)
	n.args, n.port = []string{command}, ledgertest.Port(g.t)
	g.lines[n] = l
	return n
}

// balancer makes nginx's configuration of the one that compose.yaml uses.
func (g *stage) balancer(port int, dir string) (string, error) {
	return balancer(g.relays, port, dir)
}

func balancer(relays []*node, port int, dir string) (string, error) {
	addrs := make([]string, len(relays))
	for i, n := range relays {
		addrs[i] = "127.0.0.1:" + strconv.Itoa(n.port)
	}
	return engines.NginxInFront(filepath.Join("..", "nginx.conf"), []string{"master", "slave1", "slave2"}, addrs, port, dir)
}

// begin starts the traffic: streams and plain requests, of clients of whom some leave, to an upstream that sometimes dies.
func (g *stage) begin(seed uint64) {
	const atOnce = 12
	all := newClients(g.t)
	if g.load != nil {
		all = g.load.clients // what they saw in earlier rounds stays in the books
	}
	g.load = &traffic{clients: all}
	ctx, cancel := context.WithCancel(context.WithoutCancel(g.t.Context()))
	ending := make(chan struct{})
	var workers sync.WaitGroup
	for w := range atOnce {
		rng := rand.New(rand.NewPCG(seed, uint64(w+1)))
		workers.Go(func() {
			for {
				one, done := context.WithTimeout(ctx, clientPatience)
				g.load.ask(one, []string{g.front}, 0, g.order(rng, w == 0))
				done()
				select {
				case <-ending:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	var once sync.Once
	g.load.stop = func() {
		once.Do(func() {
			close(ending)
			workers.Wait() // every request has a bound
			cancel()
		})
	}
	g.t.Cleanup(func() { cancel(); g.load.stop() })
}

// clientPatience is how long a client waits for an answer, with all its tries.
const clientPatience = 20 * time.Second

func (g *stage) order(rng *rand.Rand, tight bool) order {
	o := order{
		account: g.users[rng.IntN(len(g.users))], stream: rng.IntN(2) == 0,
		prompt: tokensPerMessage + 1 + rng.Int64N(1000), completion: 1 + rng.Int64N(40), delay: time.Duration(rng.IntN(8)) * time.Millisecond,
	}
	if tight {
		o.account = g.tight
	}
	if o.stream && o.completion > 2 {
		switch rng.IntN(12) {
		case 0:
			o.leave = 1 + rng.Int64N(o.completion-1)
		case 1:
			o.cut = 1 + rng.Int64N(o.completion-1)
		}
	}
	return o
}

// settle ends the traffic and holds all books against each other and against the upstream: per user, key and channel.
func (g *stage) settle() {
	g.t.Helper()
	g.load.stop()
	g.aside.Wait()
	accounts := append([]*account{g.tight}, g.users...)
	g.books.settled(g.load.answered(), accounts...)
	g.verified()
	g.noneOverspent(accounts)
	g.unbilled()
	for _, r := range g.load.all {
		if !g.bearable(r) {
			g.t.Errorf("a client was refused with %d %q", r.status, r.code)
		}
	}
}

// bearable reports whether an answer is one that a client may get while things break.
func (g *stage) bearable(r seen) bool {
	switch r.status {
	case 0, http.StatusOK, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	case http.StatusForbidden, http.StatusUnauthorized:
		return r.order.account == g.tight
	}
	return false
}

// noneOverspent requires that no key and no user has less than nothing (L3).
func (g *stage) noneOverspent(accounts []*account) {
	for _, u := range accounts {
		if left := g.books.number("SELECT quota FROM users WHERE id = ?", u.user); left < 0 {
			g.t.Errorf("the user %s is %d below zero", u.name, -left)
		}
		if u.limit == 0 {
			continue
		}
		if left := g.books.number("SELECT remain_quota FROM tokens WHERE id = ?", u.token); left < 0 {
			g.t.Errorf("the key of %s is %d below zero", u.name, -left)
		}
	}
}

// unbilled looks for what the upstream served and nobody was billed for. It can only be the work of a relay that was killed
// before its client had a byte, and before its open record was durable (L1).
func (g *stage) unbilled() {
	bills, err := g.books.bills()
	if err != nil {
		g.t.Fatal(err)
	}
	saw := map[string]bool{}
	for _, r := range g.load.answered() {
		saw[r.id] = true
	}
	n := 0
	for id := range g.books.served() {
		if _, billed := bills[id]; !billed {
			n++
			if saw[id] {
				g.t.Errorf("request %s was served and is not billed", id)
			}
		}
	}
	if n > g.kills*16 { // what a relay may have under way in that moment
		g.t.Errorf("%d requests were served and not billed, with %d relays killed", n, g.kills)
	}
	g.t.Logf("%d requests that reached the upstream and of which no client had a byte are not billed; %d relays were killed", n, g.kills)
}

// leader returns the index of the broker that leads partition 0 of the topic.
func (g *stage) leader() int {
	g.t.Helper()
	leader := 0
	eventually(g.t, "Kafka says who leads", func() error {
		transport := &kafka.Transport{DialTimeout: time.Second}
		defer transport.CloseIdleConnections()
		client := &kafka.Client{Addr: kafka.TCP(strings.Split(g.env["KAFKA_BROKERS"], ",")...), Timeout: 5 * time.Second, Transport: transport}
		meta, err := client.Metadata(g.t.Context(), &kafka.MetadataRequest{Topics: []string{g.env["KAFKA_TOPIC"]}})
		if err != nil {
			return err
		}
		for _, p := range meta.Topics[0].Partitions {
			if p.ID != 0 {
				continue
			}
			for i, line := range g.brokerLines {
				if line.Addr == fmt.Sprintf("%s:%d", p.Leader.Host, p.Leader.Port) {
					leader = i
					return nil
				}
			}
		}
		return errors.New("partition 0 has no leader")
	})
	return leader
}

// drained waits until both projections have what was in the log when it was called, whoever consumes.
func (g *stage) drained(t testing.TB) {
	t.Helper()
	ends := map[int]int64{}
	eventually(t, "Kafka says where the log ends", func() error {
		transport := &kafka.Transport{DialTimeout: time.Second}
		defer transport.CloseIdleConnections()
		client := &kafka.Client{Addr: kafka.TCP(strings.Split(g.env["KAFKA_BROKERS"], ",")...), Timeout: 5 * time.Second, Transport: transport}
		ask := map[string][]kafka.OffsetRequest{}
		for p := range partitions {
			ask[g.env["KAFKA_TOPIC"]] = append(ask[g.env["KAFKA_TOPIC"]], kafka.LastOffsetOf(p))
		}
		res, err := client.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Topics: ask})
		if err != nil {
			return err
		}
		for _, p := range res.Topics[g.env["KAFKA_TOPIC"]] {
			if p.Error != nil {
				return p.Error
			}
			ends[p.Partition] = p.LastOffset
		}
		return nil
	})
	eventually(t, "the consumers have caught up", func() error {
		for p, end := range ends {
			var offset int64
			if err := g.books.db.QueryRowContext(t.Context(), "SELECT next_offset FROM ledger_partitions WHERE part = ?", p).Scan(&offset); err != nil {
				return err
			}
			if offset < end {
				return fmt.Errorf("partition %d: %d of %d", p, offset, end)
			}
		}
		return nil
	})
}

// mysqlExec runs a statement on the server itself.
func (g *stage) mysqlExec(statement string) error {
	return execOn(g.t.Context(), g.mysql.MySQLDSN(""), statement)
}
