package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// growthOptions are the flags of bench growth beside those of every bench.
type growthOptions struct {
	accounts []int
	channels []int
	tokens   int
}

// growthUsers is the number of users beside which the channels grow.
const growthUsers = 1000

// openingPatience bounds how long a node may take to make accounts of what it finds in the database, and to apply them: some
// thousand a second.
const openingPatience = 15 * time.Minute

// benchGrowth measures whether a request costs more when there are more users, tokens and channels, and what a large database costs at
// start and in memory: on real engines if their addresses are in the environment, else embedded.
func benchGrowth(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var o benchOptions
	var g growthOptions
	flags := newFlags("bench growth", "Cost per request with more users, tokens and channels; memory and start on a large database (make bench-growth).", stderr)
	flags.DurationVar(&o.duration, "duration", 3*time.Second, "of one measurement")
	flags.IntVar(&o.concurrency, "c", 32, "clients at once, each request with the key of another token")
	flags.IntVar(&o.runs, "runs", 3, "measurements of each size, in turn; medians are printed, with the spread")
	accounts := flags.String("accounts", "10,1000,100000", "numbers of users, each with a token, separated by commas; empty: none")
	channels := flags.String("channels", "1000", "numbers of channels beside one, with "+strconv.Itoa(growthUsers)+" users; empty: none")
	flags.IntVar(&g.tokens, "tokens", 1_000_000, "tokens of the database whose start is measured; 0: none")
	flags.BoolVar(&o.verbose, "v", false, "show what the processes log")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	var err error
	if g.accounts, err = sizes("growth: -accounts", *accounts); err != nil {
		return err
	}
	if g.channels, err = sizes("growth: -channels", *channels); err != nil {
		return err
	}
	if o.duration < 100*time.Millisecond || o.concurrency < 1 || o.runs < 1 || g.tokens < 0 {
		return usagef("bench growth: -duration from 100ms, -c and -runs from 1 and -tokens from 0 are needed")
	}
	o.answerBytes, o.chunks = 1024, 1
	dir, err := os.MkdirTemp("", "ledgerline-bench-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{o: o, dir: dir, getenv: getenv, out: stdout, errs: stderr}
	defer b.close()
	return b.growth(ctx, &g)
}

// sizes reads a list of numbers.
func sizes(flag, list string) ([]int, error) {
	var out []int
	for text := range strings.SplitSeq(list, ",") {
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, usagef("bench %s %q: numbers from 1 are needed, separated by commas", flag, list)
		}
		out = append(out, n)
	}
	return out, nil
}

func (b *bench) growth(ctx context.Context, g *growthOptions) error {
	var err error
	if b.upstream, err = b.start(ctx, "mock upstream", "bench", "upstream"); err != nil {
		return err
	}
	var targets []target
	add := func(users, tokens, channels int) error {
		t, err := b.grown(ctx, fmt.Sprintf("%d users, %d channels", users, channels), users, tokens, channels)
		targets = append(targets, t)
		return err
	}
	for _, n := range g.accounts {
		if err := add(n, n, 1); err != nil {
			return err
		}
	}
	for _, n := range g.channels {
		if err := add(growthUsers, growthUsers, n); err != nil {
			return err
		}
	}
	if len(targets) > 0 {
		rows, err := b.measureAll(ctx, targets, kindPlain)
		if err != nil {
			return err
		}
		b.print(rows, kindPlain)
	}
	if g.tokens > 0 {
		return b.largeStart(ctx, g.tokens)
	}
	return nil
}

// grown starts a node on a database with so many users, tokens and channels, and waits until it has made accounts of them.
func (b *bench) grown(ctx context.Context, name string, users, tokens, channels int) (target, error) {
	env, err := b.grownDatabase(ctx, name, users, tokens, channels)
	if err != nil {
		return target{}, fmt.Errorf("make a database of %s: %w", name, err)
	}
	t, err := b.startNode(ctx, name, "", env, env["KAFKA_BROKERS"] != "")
	if err != nil {
		return t, err
	}
	t.tokens = tokens
	opening, cancel := context.WithTimeout(ctx, openingPatience)
	defer cancel()
	return t, b.opened(opening, env, users+tokens)
}

// grownDatabase makes a database as New API would have left it.
func (b *bench) grownDatabase(ctx context.Context, name string, users, tokens, channels int) (map[string]string, error) {
	env := map[string]string{
		"DATA_DIR": filepath.Join(b.dir, name), "PORT": "0", "BATCH_UPDATE_ENABLED": "true", "BATCH_UPDATE_INTERVAL": "1",
		"RELAY_MAX_IDLE_CONNS_PER_HOST": strconv.Itoa(2 * b.o.concurrency), "RELAY_MAX_IDLE_CONNS": strconv.Itoa(4 * b.o.concurrency),
	}
	engines, err := b.engineEnvironment(ctx)
	if err != nil {
		return nil, err
	}
	for k, v := range engines {
		env[k] = v
	}
	if _, err := b.seed(ctx, env); err != nil { // the schema, and the first channel
		return nil, err
	}
	db, err := openBench(env)
	if err != nil {
		return nil, err
	}
	exec := func(ctx context.Context, statement string) error {
		_, err := db.ExecContext(ctx, statement)
		return err
	}
	err = seedAccounts(ctx, exec, users, tokens)
	if err == nil {
		err = b.seedChannels(ctx, exec, channels-1)
	}
	return env, errors.Join(err, db.Close())
}

// openBench opens the database of an environment beside the node.
func openBench(env map[string]string) (*sql.DB, error) {
	driver, dsn := "mysql", env["SQL_DSN"]
	if dsn == "" {
		driver, dsn = "sqlite", "file:"+filepath.ToSlash(filepath.Join(env["DATA_DIR"], "ledgerline.db"))+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return db, nil
}

// seedChannels adds n channels that are like the first one.
func (b *bench) seedChannels(ctx context.Context, exec func(ctx context.Context, statement string) error, n int) error {
	err := insertRows(ctx, exec, "INSERT INTO channels (id, type, `key`, status, name, weight, base_url, models, `group`, priority) VALUES ", n, func(s *strings.Builder, i int) {
		fmt.Fprintf(s, "(%d,1,'mock-key',1,'mock%d',0,'%s','%s','default',0)", benchFirst+i, i, b.upstream.url, demoModel)
	})
	if err != nil {
		return err
	}
	return insertRows(ctx, exec, "INSERT INTO abilities (`group`, model, channel_id, enabled, priority, weight) VALUES ", n, func(s *strings.Builder, i int) {
		fmt.Fprintf(s, "('default','%s',%d,1,0,0)", demoModel, benchFirst+i)
	})
}

// opened waits until the opening balances of that many accounts are applied, so that they are not measured.
func (b *bench) opened(ctx context.Context, env map[string]string, accounts int) error {
	db, err := openBench(env)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for {
		var n int
		err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM ledger_accounts WHERE slot = 0 AND kind IN ('user','token') AND pending_adopt = 0").Scan(&n)
		if err != nil {
			return fmt.Errorf("count opened accounts: %w", err)
		}
		if n >= accounts {
			return nil
		}
		select {
		case <-time.After(openingPause):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d accounts are opened: %w", n, accounts, context.Cause(ctx))
		}
	}
}

// openingPause is how often the opened accounts are counted.
const openingPause = 500 * time.Millisecond

// largeStart measures the start of a node on a database with many tokens: the first one, which makes an account of each, and another.
func (b *bench) largeStart(ctx context.Context, tokens int) error {
	const name = "large"
	users := max(1, tokens/10)
	env, err := b.grownDatabase(ctx, name, users, tokens, 1)
	if err != nil {
		return fmt.Errorf("make a database of %d tokens: %w", tokens, err)
	}
	small, err := b.grownDatabase(ctx, "small", 1, 1, 1)
	if err != nil {
		return fmt.Errorf("make a small database: %w", err)
	}
	split := env["KAFKA_BROKERS"] != ""
	fmt.Fprintf(b.out, "\nstart on a database of %d users and %d tokens\n", users, tokens)
	for _, start := range []struct {
		what string
		env  map[string]string
	}{{"one user, one token", small}, {"first start, makes an account of each", env}, {"next start", env}} {
		begun := time.Now()
		t, err := b.startNode(ctx, start.what, "", start.env, split)
		if err != nil {
			return err
		}
		took := time.Since(begun)
		cpu, rss := procStat(t.child.pid())
		fmt.Fprintf(b.out, "  %s: ready after %s, %s CPU, %d MB in memory\n", start.what, took.Round(time.Millisecond), cpu.Round(clockTick), rss>>20)
		b.stopLast(split)
	}
	return nil
}

// stopLast stops the processes that startNode has started last.
func (b *bench) stopLast(split bool) {
	n := 1
	if split {
		n = 2
	}
	for range n {
		last := len(b.children) - 1
		b.children[last].stop()
		b.children = b.children[:last]
	}
}

// bearer is the key of a request: that of the target, or of any of its tokens.
func (t *target) bearer() string {
	if t.tokens == 0 {
		return t.key
	}
	return "sk-" + benchKey(1+rand.N(t.tokens))
}
