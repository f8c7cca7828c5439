package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/relaytest"
)

// benchQuota is more than any run spends.
const benchQuota = 1_000_000_000_000

// benchWarmup is relayed before anything is measured: connections, epochs, caches.
const benchWarmup = time.Second

// benchCommand measures, in one run and against the same mock upstream: no proxy at all, Go's bare reverse proxy, and
// the relay with its bill on, embedded and, if the engines' addresses are in the environment, on real engines.
func benchCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "upstream", "proxy":
			return benchServer(ctx, args, stdout, stderr)
		case "node":
			return benchNode(ctx, args[1:], getenv, stdout, stderr)
		case "projection":
			return benchProjection(ctx, args[1:], getenv, stdout, stderr)
		case "consumers":
			return benchConsumers(ctx, args[1:], getenv, stdout, stderr)
		case "growth":
			return benchGrowth(ctx, args[1:], getenv, stdout, stderr)
		case "steps":
			return benchSteps(ctx, args[1:], getenv, stdout, stderr)
		}
	}
	o, err := benchFlags(args, stderr)
	if err != nil {
		return err
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o750); err != nil {
			return fmt.Errorf("make folder of profiles: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "ledgerline-bench-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{o: o, dir: dir, getenv: getenv, out: stdout, errs: stderr}
	defer b.close()
	return b.run(ctx)
}

// bench is one run.
type bench struct {
	o        benchOptions
	dir      string
	getenv   func(string) string
	out      io.Writer
	errs     io.Writer
	children []*child
	upstream *child
	redisDBs int  // used so far
	warmed   bool // see warmBroker

	afterwards []func() // done when the children have ended
}

func (b *bench) close() {
	for i := len(b.children) - 1; i >= 0; i-- {
		b.children[i].stop()
	}
	for _, f := range b.afterwards {
		f()
	}
}

// target is one thing to measure.
type target struct {
	name   string
	url    string
	key    string
	tokens int                // if above 0: each request has the key of one of so many tokens
	pids   map[string]int     // processes whose CPU counts, by name
	idle   map[string]float64 // what they use when nothing happens, CPU seconds a second
	child  *child             // the proxy or the relay; nil if there is none
}

// own are the processes of a target that are this program: what they still have to do after a load counts as its cost.
func (t *target) own() []int {
	var pids []int
	for _, name := range []string{"relay", "consumers"} {
		if pid := t.pids[name]; pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// What targets are called: nothing in between, the bare proxy, the relay of this build, and that of the build to compare with.
const (
	directName = "direct"
	proxyName  = "reverse proxy"
	relayName  = "relay"
	baseName   = "base"
)

func (b *bench) run(ctx context.Context) error {
	var err error
	if b.upstream, err = b.start(ctx, "mock upstream", "bench", "upstream"); err != nil {
		return err
	}
	targets, err := b.targets(ctx)
	if err != nil {
		return err
	}
	for _, what := range b.o.measure {
		if what == measureTables {
			err = b.tables(ctx, targets)
		} else {
			err = b.limits(ctx, targets, what)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tables measures throughput and CPU under a steady load.
func (b *bench) tables(ctx context.Context, targets []target) error {
	var report benchReport
	var all []benchRow
	for _, kind := range kinds {
		if b.o.kind != "" && b.o.kind != kind {
			continue
		}
		rows, err := b.measureAll(ctx, targets, kind)
		if err != nil {
			return err
		}
		if !b.o.json {
			b.print(rows, kind)
			b.printCompared(rows, kind)
		}
		report.add(rows)
		all = append(all, rows...)
	}
	if b.o.readme != "" {
		if err := b.writeFigures(all); err != nil {
			return err
		}
	}
	if b.o.json {
		return b.printJSON(&report)
	}
	return nil
}

// limits measures what the tables do not show: a lone client, many streams, many connections, too many requests.
func (b *bench) limits(ctx context.Context, targets []target, what string) error {
	if what == measureLatency {
		return b.latency(ctx, targets)
	}
	if what == measureStreams {
		return b.streams(ctx, targets)
	}
	measure := map[string]func(context.Context, *target) error{measureIdle: b.idleConnections, measureOverload: b.overload}[what]
	for i := range targets {
		if targets[i].pids["relay"] == 0 {
			continue
		}
		if err := measure(ctx, &targets[i]); err != nil {
			return fmt.Errorf("measure %s of %s: %w", what, targets[i].name, err)
		}
	}
	return nil
}

// targets starts what is to be measured.
func (b *bench) targets(ctx context.Context) ([]target, error) {
	want := func(name string) bool { return b.o.only == "" || slices.Contains(strings.Split(b.o.only, ","), name) }
	var out []target
	if want("direct") {
		out = append(out, target{name: directName, url: b.upstream.url, key: "none", pids: map[string]int{}})
	}
	if want("proxy") {
		args := []string{"bench", "proxy", "-target", b.upstream.url, "-idle", strconv.Itoa(b.o.idleConns())}
		if b.o.profile != "" {
			args = append(args, "-profile", b.profilePath(proxyName))
		}
		c, err := b.start(ctx, proxyName, args...)
		if err != nil {
			return nil, err
		}
		out = append(out, target{name: proxyName, url: c.url, key: "none", pids: map[string]int{"proxy": c.pid()}, child: c})
	}
	relays := map[string]string{relayName: ""}
	if b.o.base != "" {
		relays[baseName] = b.o.base
	}
	for _, name := range slices.Sorted(maps.Keys(relays)) {
		if want("embedded") {
			t, err := b.relay(ctx, name+", embedded", relays[name], nil)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
		engines, err := b.engineEnvironment(ctx)
		if err != nil {
			return nil, err
		}
		if engines != nil && want("engines") {
			t, err := b.relay(ctx, name+", engines", relays[name], engines)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return nil, usagef("bench: -only %q: direct, proxy, embedded or engines is needed; engines needs TEST_KAFKA_BROKERS, TEST_MYSQL_DSN, "+
			"TEST_REDIS_URL and TEST_CLICKHOUSE_DSN (make bench sets them)", b.o.only)
	}
	return out, nil
}

// relay starts a node of a build ("": this one), with a user, an unlimited key and a channel to the mock upstream in its database.
func (b *bench) relay(ctx context.Context, name, build string, engines map[string]string) (target, error) {
	idle := b.o.idleConns()
	if slices.Contains(b.o.measure, measureOverload) {
		idle = overloadClients
	}
	env := map[string]string{
		"DATA_DIR": filepath.Join(b.dir, name), "PORT": "0", "BATCH_UPDATE_ENABLED": "true", "BATCH_UPDATE_INTERVAL": "1",
		"RELAY_MAX_IDLE_CONNS_PER_HOST": strconv.Itoa(idle), "RELAY_MAX_IDLE_CONNS": strconv.Itoa(2 * idle),
	}
	for k, v := range engines {
		env[k] = v
	}
	if build != "" {
		env["INITIAL_ROOT_ACCESS_TOKEN"] = benchAccess
		t, err := b.startNode(ctx, name, build, env, engines != nil)
		if err == nil {
			t.key, err = b.seedBuild(ctx, t.url)
		}
		return t, err
	}
	key, err := b.seed(ctx, env)
	if err != nil {
		return target{}, err
	}
	t, err := b.startNode(ctx, name, build, env, engines != nil)
	t.key = key
	return t, err
}

// startNode starts a node of a build on what env names, and waits until it is ready.
func (b *bench) startNode(ctx context.Context, name, build string, env map[string]string, split bool) (target, error) {
	env = maps.Clone(env)
	// On engines the two halves of a node are processes of their own, so that the cost of the relay itself shows.
	role, others := "serve", map[string]int{}
	if split {
		if err := b.warmBroker(ctx, env["KAFKA_BROKERS"]); err != nil {
			return target{}, err
		}
		c, err := b.startBuild(ctx, name+", consumers", build, env, "consume")
		if err != nil {
			return target{}, err
		}
		role, others["consumers"] = "relay", c.pid()
		env["NODE_TYPE"] = "slave" // the consumers' process is the master
	}
	args := []string{role}
	if b.o.profile != "" {
		args = []string{"bench", "node", "-role", role, "-profile", b.profilePath(name)}
	}
	c, err := b.startBuild(ctx, name, build, env, args...)
	if err != nil {
		return target{}, err
	}
	t := target{name: name, url: c.url, pids: others, child: c}
	t.pids["relay"] = c.pid()
	for variable, engine := range engineNames {
		if addr := env[variable]; addr != "" {
			if pid := listenerOf(addr); pid > 0 {
				t.pids[engine] = pid
			}
		}
	}
	return t, waitReady(ctx, c.url)
}

// profilePath is where the profiles of a target are written, without their number and kind.
func (b *bench) profilePath(target string) string {
	return filepath.Join(b.o.profile, strings.NewReplacer(", ", "-", " ", "-").Replace(target))
}

// seed migrates the node's database and puts in what the load needs.
func (b *bench) seed(ctx context.Context, env map[string]string) (key string, err error) {
	cfg, err := loadConfig(func(name string) string { return env[name] })
	if err != nil {
		return "", err
	}
	n, err := newNode(ctx, cfg, wholeNode, discardLogger())
	if err != nil {
		return "", err
	}
	defer n.close()
	_, err = n.db.CreateChannel(ctx, sqlstore.ChannelRow{
		Type: 1, Name: "mock", Key: "mock-key", BaseURL: b.upstream.url, Models: demoModel, Group: "default",
	})
	if err != nil {
		return "", err
	}
	user, err := n.db.CreateUser(ctx, sqlstore.NewUser{Username: "bench" + strconv.FormatInt(time.Now().UnixNano(), 36)[6:], Role: sqlstore.RoleUser, Quota: benchQuota})
	if err != nil {
		return "", err
	}
	token, _, err := n.db.CreateToken(ctx, sqlstore.TokenRow{UserID: user, Name: "bench", ExpiredTime: -1}, benchQuota)
	if err != nil {
		return "", err
	}
	if err := n.desk.Abandon(ctx); err != nil {
		return "", err
	}
	return "sk-" + token.Key, nil
}

// benchServer is a process of its own, so that its CPU can be told apart.
func benchServer(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("bench "+args[0], "A server to measure with, on a free port, which it prints.", stderr)
	to, idle := new(string), new(int)
	if args[0] == "proxy" {
		flags.StringVar(to, "target", "", "`URL` of the proxy's upstream")
		flags.IntVar(idle, "idle", 64, "connections kept")
	}
	profile := flags.String("profile", "", "`path` of profiles between the signals USR1 and USR2, without -N.cpu and -N.allocs; empty: none")
	if err := parseFlags(flags, args[1:]); err != nil {
		return err
	}
	var handler http.Handler
	if args[0] == "upstream" {
		mock, err := relaytest.New(relaytest.Options{Models: []string{demoModel}})
		if err != nil {
			return err
		}
		handler = mock
	} else {
		u, err := url.Parse(*to)
		if err != nil || u.Host == "" {
			return usagef("bench proxy: -target %q: a URL is needed", *to)
		}
		handler = relaytest.ReverseProxy(u, *idle)
	}
	if *profile != "" {
		defer profileOnSignal(ctx, *profile, stderr)()
	}
	ln, err := listen(ctx, 0)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout}
	fmt.Fprintf(stdout, "serves http://%s\n", loopback(ln))
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
