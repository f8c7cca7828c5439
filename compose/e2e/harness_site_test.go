package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger/ledgertest"
	"ledgerline/relay/relaytest"
)

// model is what the tests ask for. Its price is that of New API's defaults: ratio 0.075, completion ratio 4.
const model = "gpt-4o-mini"

// price is what a request costs, by the formula of New API's documentation and without any code of the product: 0.075 units
// a prompt token, four times that a completion token, rounded half up, at least 1.
func price(prompt, completion int64) int64 {
	if prompt == 0 && completion == 0 {
		return 0
	}
	return max(1, ((prompt+4*completion)*75+500)/1000)
}

// site is one deployment: its stores, its nodes and its upstream.
type site struct {
	t        testing.TB
	embedded bool
	env      map[string]string // of every node
	upstream *relaytest.Server
	nodes    []*node
	root     *admin // once somebody has logged in
	password string // of root
	books    *books
	front    string // where clients go: a load balancer's address; "": to every node in turn
	// private engines, nil where they are shared
	kafka, mysql, redis, click *ledgertest.Server
}

// node is one node of a site. Its folders outlive its processes.
type node struct {
	site   *site
	name   string
	dir    string
	env    map[string]string
	binary string   // "": the one that is being tested
	bare   bool     // no folders are named: they are where the node puts them
	args   []string // the command, if the node is only one half: relay, consume
	port   int      // 0 until the first start
	*process
}

// newSite makes an upstream whose records are the oracle; stores and nodes come with embedded or cluster.
func newSite(t testing.TB) *site { return newSiteOf(t, filepath.Join(t.TempDir(), "oracle.jsonl")) }

// newSiteOf is newSite with a file of its own for the oracle's records; "": it keeps only sums.
func newSiteOf(t testing.TB, oracle string) *site {
	t.Helper()
	upstream, err := relaytest.Start("", relaytest.Options{OraclePath: oracle, Models: []string{model}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = upstream.Close() })
	return &site{t: t, upstream: upstream, env: map[string]string{
		// What a person edits by hand is adopted this soon; a change on a node must not need it to reach the others.
		"SYNC_FREQUENCY": "60", "KAFKA_PARTITIONS": "4", "SESSION_SECRET": "the e2e suite", "STREAMING_TIMEOUT": "60",
	}}
}

// embedded is a site of one node that needs nothing but its data folder.
func embedded(t testing.TB) *site {
	t.Helper()
	s := newSite(t)
	s.embedded = true
	s.addNode(nil)
	return s
}

// cluster is a site of three nodes, a master and two slaves, on shared engines.
func cluster(t testing.TB) *site {
	t.Helper()
	s := newSite(t)
	s.env["KAFKA_BROKERS"] = strings.Join(ledgertest.Kafka(t), ",")
	s.env["SQL_DSN"], s.env["REDIS_CONN_STRING"] = ledgertest.MySQL(t), ledgertest.Redis(t)
	s.env["LOG_SQL_DSN"] = ledgertest.ClickHouse(t)
	s.threeNodes()
	return s
}

// privateCluster is a cluster on engines of its own, to be stopped, frozen and emptied.
func privateCluster(t testing.TB) *site {
	t.Helper()
	s := newSite(t)
	s.kafka, s.mysql, s.redis, s.click = ledgertest.StartKafka(t), ledgertest.StartMySQL(t), ledgertest.StartRedis(t), ledgertest.StartClickHouse(t)
	s.env["KAFKA_BROKERS"], s.env["REDIS_CONN_STRING"] = s.kafka.Addr, s.redis.RedisURL()
	s.env["SQL_DSN"] = ledgertest.MySQLDatabase(t, s.mysql.MySQLDSN(""))
	s.env["LOG_SQL_DSN"] = ledgertest.ClickHouseDatabase(t, s.click.ClickHouseDSN("default"))
	s.threeNodes()
	return s
}

func (s *site) threeNodes() {
	s.env["KAFKA_TOPIC"] = ledgertest.UniqueName("e2e")
	s.addNode(map[string]string{"NODE_TYPE": "master"})
	s.addNode(map[string]string{"NODE_TYPE": "slave"})
	s.addNode(map[string]string{"NODE_TYPE": "slave"})
}

func (s *site) addNode(env map[string]string) *node {
	n := &node{site: s, name: "node" + strconv.Itoa(len(s.nodes)+1), dir: s.t.TempDir(), env: maps.Clone(env)}
	s.nodes = append(s.nodes, n)
	return n
}

// environment is what a command needs to work on the site; a node has some more.
func (s *site) environment(more map[string]string) map[string]string {
	env := maps.Clone(s.env)
	maps.Copy(env, more)
	return env
}

// start starts the node and returns when it says that it serves. Its port stays the same at every start.
func (n *node) start() {
	n.site.t.Helper()
	env := n.site.environment(n.env)
	env["PORT"], env["NODE_NAME"] = strconv.Itoa(n.port), n.name
	if !n.bare {
		env["DATA_DIR"], env["JOURNAL_DIR"] = filepath.Join(n.dir, "data"), filepath.Join(n.dir, "journal")
	}
	n.process = start(n.site.t, command{dir: n.dir, env: env, args: n.args, binary: n.binary})
	const mark = "serves http://127.0.0.1:"
	n.await(mark)
	_, after, _ := strings.Cut(n.stdout.String(), mark)
	digits, _, _ := strings.Cut(after, " ")
	port, err := strconv.Atoi(digits)
	if err != nil {
		n.site.t.Fatalf("%s does not say its port: %q", n.name, n.stdout.String())
	}
	n.port = port
}

// ready returns when the node can serve requests.
func (n *node) ready() {
	n.site.t.Helper()
	eventually(n.site.t, n.name+" is ready", func() error {
		if !n.running() {
			n.site.t.Fatalf("%s ended: %s", n.name, tail(n.stderr.String()))
		}
		status, body, err := get(n.url() + "/readyz")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("status %d, %s: %w", status, body, err)
		}
		return nil
	})
}

// relays reports whether the node serves clients.
func (n *node) relays() bool { return len(n.args) == 0 || n.args[0] != "consume" }

func (n *node) url() string { return "http://127.0.0.1:" + strconv.Itoa(n.port) }

// open starts every node, waits until all are ready, and logs in as root.
func (s *site) open() {
	s.t.Helper()
	for _, n := range s.nodes { // the master first: it migrates
		n.start()
	}
	for _, n := range s.nodes {
		n.ready()
	}
	s.password = rootPassword(s.nodes[0].stdout.String())
	if s.password == "" {
		s.t.Fatalf("the first start printed no root password: %q", s.nodes[0].stdout.String())
	}
	s.root = login(s.t, s.nodes[0].url(), "root", s.password)
	s.books = openBooks(s)
}

// rootPassword finds the password in what a first start prints.
func rootPassword(stdout string) string {
	_, after, found := strings.Cut(stdout, "root, password ")
	if !found {
		return ""
	}
	password, _, _ := strings.Cut(after, "\n")
	return strings.Fields(password)[0]
}

// run runs a command of the binary on the site's stores, as an operator would.
func (s *site) run(args ...string) ran {
	s.t.Helper()
	return run(s.t, s.command(args...))
}

func (s *site) command(args ...string) command {
	env := s.environment(nil)
	env["DATA_DIR"], env["JOURNAL_DIR"] = filepath.Join(s.nodes[0].dir, "data"), filepath.Join(s.nodes[0].dir, "journal")
	return command{args: args, env: env}
}

// client is for looks at a node; it keeps no connection, since nodes die here.
var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(url string) (status int, body string, err error) { return getWith(url, "") }

func getWith(url, authorization string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// metric returns a figure of a node's /metrics, summed over its labels.
func (n *node) metric(name string) (sum float64) {
	n.site.t.Helper()
	n.eachSeries(name, func(v float64) { sum += v })
	return sum
}

// series is how many values a figure has, one for each of its labels.
func (n *node) series(name string) (count int) {
	n.site.t.Helper()
	n.eachSeries(name, func(float64) { count++ })
	return count
}

func (n *node) eachSeries(name string, yield func(float64)) {
	n.site.t.Helper()
	_, body, err := get(n.url() + "/metrics")
	if err != nil {
		n.site.t.Fatalf("metrics of %s: %v", n.name, err)
	}
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			n.site.t.Fatalf("metric %q: %v", line, err)
		}
		yield(v)
	}
}
