package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/relaytest"
)

// What the demo is made of.
const (
	demoUsers = 5
	demoModel = "gpt-4o-mini"
	// demoQuota is what each user starts with: 20 US dollars.
	demoQuota = 10_000_000
	// demoTokenLimit is what each API key may spend of it.
	demoTokenLimit = 8_000_000
	// demoPatience bounds each wait of the demo: for epochs to open, for the projections to catch up.
	demoPatience = 60 * time.Second
	progressEach = 500 * time.Millisecond
)

type demoOptions struct {
	requests, concurrency, port int
	rate                        float64
	trace                       string
	once, verbose               bool
}

// demoCommand runs the whole pipeline on this machine against a mock upstream whose own records are the oracle.
func demoCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var o demoOptions
	flags := newFlags("demo", "The whole pipeline on this machine: mock upstream, real traffic, then a proof that all books agree.", stderr)
	flags.IntVar(&o.requests, "requests", 500, "requests to relay")
	flags.IntVar(&o.concurrency, "concurrency", 32, "clients at once")
	flags.Float64Var(&o.rate, "rate", 0, "requests a second; 0: as fast as they go")
	flags.StringVar(&o.trace, "trace", "", "CSV file TIMESTAMP,ContextTokens,GeneratedTokens; empty: the excerpt that ships")
	flags.IntVar(&o.port, "port", 0, "port to listen on; 0: a free one")
	flags.BoolVar(&o.once, "once", false, "end when the traffic is over; exit code 0 only if everything agrees")
	flags.BoolVar(&o.verbose, "v", false, "show the node's own log")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if o.requests < 1 || o.concurrency < 1 || o.concurrency > 10_000 || o.rate < 0 {
		return usagef("demo: -requests from 1, -concurrency from 1 to 10000 and -rate from 0 are needed")
	}
	if o.port < 0 || o.port > 65535 {
		return usagef("demo: -port %d: a whole number from 0 to 65535 is needed", o.port)
	}
	fmt.Fprintln(stdout, "Ledgerline demo: mock upstream → relay → journal → log → balances, usage log, hot counters → verify")
	dir, err := os.MkdirTemp("", "ledgerline-demo-")
	if err != nil {
		return fmt.Errorf("make a temporary data folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d, err := newDemo(ctx, o, dir, getenv, stdout, stderr)
	if err != nil {
		return err
	}
	defer d.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- d.node.run(ctx, func(ctx context.Context) error { return d.node.serve(ctx, d.listener, nil) })
	}()
	ok, err := d.show(ctx)
	if err == nil && !o.once {
		fmt.Fprintln(stdout, "\nServing until Ctrl-C.")
		<-ctx.Done()
		fmt.Fprintln(stdout, "\nStopping. The demo's data goes with it.")
	}
	stop()
	err = errors.Join(err, <-ended)
	if err == nil && !ok {
		return errReported
	}
	return err
}

// demo is the cast of the show.
type demo struct {
	o        demoOptions
	out      io.Writer
	dir      string
	upstream *relaytest.Server
	node     *node
	listener net.Listener
	users    []demoUser
}

type demoUser struct {
	id   int64
	name string
	key  string
}

func newDemo(ctx context.Context, o demoOptions, dir string, getenv func(string) string, stdout, stderr io.Writer) (*demo, error) {
	d := &demo{o: o, out: stdout, dir: dir}
	var err error
	d.upstream, err = relaytest.Start("", relaytest.Options{
		OraclePath: filepath.Join(dir, "oracle.jsonl"), Models: []string{demoModel},
	})
	if err != nil {
		return nil, err
	}
	level := slog.LevelError
	if o.verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	// The demo is embedded whatever the environment and a .env file say: nothing of it may reach a database of theirs.
	vars := map[string]string{"DATA_DIR": filepath.Join(dir, "data")}
	for _, name := range []string{"TZ", "DEBUG"} {
		if value := getenv(name); value != "" {
			vars[name] = value
		}
	}
	cfg, err := configOf(vars)
	if err != nil {
		return nil, errors.Join(err, d.upstream.Close())
	}
	var lc net.ListenConfig
	d.listener, err = lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", o.port))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("demo: port %d cannot be listened on: %w", o.port, err), d.upstream.Close())
	}
	if d.node, err = newNode(ctx, cfg, wholeNode, log); err != nil {
		return nil, errors.Join(err, d.listener.Close(), d.upstream.Close())
	}
	return d, nil
}

func (d *demo) close() {
	d.node.close()
	_ = d.upstream.Close() // its records have been read
}

// show sets the stage, relays the traffic and compares.
func (d *demo) show(ctx context.Context) (ok bool, err error) {
	if err := d.stage(ctx); err != nil {
		return false, err
	}
	traffic, err := d.traffic(ctx)
	if err != nil {
		return false, err
	}
	if err := d.drain(ctx); err != nil {
		return false, err
	}
	agree, err := d.table(ctx, traffic)
	if err != nil {
		return false, err
	}
	verdict, err := d.node.verify(ctx, demoPatience)
	if err != nil {
		return false, err
	}
	fmt.Fprintln(d.out)
	verdict.Print(d.out)
	if !agree {
		fmt.Fprintln(d.out, "\nThe bills DIFFER from what the mock upstream says it served.")
	} else {
		fmt.Fprintln(d.out, "\nEvery bill equals what the mock upstream says it served.")
	}
	if !d.o.once {
		d.invite()
	}
	return agree && verdict.OK(), nil
}

// stage makes users, keys and a channel, as an operator would, and waits until the node serves.
func (d *demo) stage(ctx context.Context) error {
	db := d.node.db
	_, err := db.CreateChannel(ctx, sqlstore.ChannelRow{
		Type: 1, Name: "mock", Key: "mock-key", BaseURL: d.upstream.URL, Models: demoModel, Group: "default", AutoBan: true,
	})
	if err != nil {
		return err
	}
	for i := range demoUsers {
		u := demoUser{name: fmt.Sprintf("demo%d", i+1)}
		u.id, err = db.CreateUser(ctx, sqlstore.NewUser{Username: u.name, Role: sqlstore.RoleUser, Quota: demoQuota, Note: "demo"})
		if err != nil {
			return err
		}
		t, _, err := db.CreateToken(ctx, sqlstore.TokenRow{UserID: u.id, Name: "demo", ExpiredTime: -1}, demoTokenLimit)
		if err != nil {
			return err
		}
		u.key = "sk-" + t.Key
		d.users = append(d.users, u)
	}
	d.node.desk.MoveNow()
	if err := d.node.catalog.Refresh(ctx); err != nil {
		return err
	}
	return d.wait(ctx, "the node to be ready", func(ctx context.Context) (bool, error) {
		if len(d.node.problems()) > 0 {
			return false, nil
		}
		waiting, _, err := db.OutboxBacklog(ctx)
		return waiting == 0, err
	})
}

// drain waits until every projection has every event.
func (d *demo) drain(ctx context.Context) error {
	return d.wait(ctx, "the projections to catch up", func(ctx context.Context) (bool, error) {
		if d.node.desk.InFlight() > 0 || d.node.desk.Backlog() > 0 {
			return false, nil
		}
		lag, err := d.node.lag(ctx)
		return lag == 0, err
	})
}

func (d *demo) wait(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, errors.Join(err, context.Cause(ctx)))
		case <-ticker.C:
		}
	}
}

// rows yields the trace once, from its beginning.
func (d *demo) rows() iter.Seq2[relaytest.TraceRow, error] {
	if d.o.trace == "" {
		return relaytest.Excerpt()
	}
	return func(yield func(relaytest.TraceRow, error) bool) {
		f, err := os.Open(d.o.trace)
		if err != nil {
			yield(relaytest.TraceRow{}, err)
			return
		}
		defer func() { _ = f.Close() }()
		for row, err := range relaytest.ReadTrace(f) {
			if !yield(row, err) {
				return
			}
		}
	}
}

func (d *demo) url() string { return "http://" + d.listener.Addr().String() }

// invite prints what to try next.
func (d *demo) invite() {
	fmt.Fprintf(d.out, "\nServer   %s\nAPI key  %s\nRoot     user root, password %s\n\ncurl %s/v1/chat/completions -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' -d '{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n",
		d.url(), d.users[0].key, d.node.rootPassword, d.url(), d.users[0].key, demoModel)
}

// demoTransport keeps a connection for every client of the demo.
func demoTransport(concurrency int) *http.Transport {
	return &http.Transport{MaxIdleConns: concurrency, MaxIdleConnsPerHost: concurrency, DisableCompression: true}
}
