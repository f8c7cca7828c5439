//go:build unix

package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"
	"golang.org/x/sync/errgroup"

	"ledgerline/ledger/ledgertest/engines"
)

// ports are those of `up` if they are free: each engine's own plus 10,000, so that they do not meet a server of the system.
var ports = map[engines.Kind]int{
	engines.Kafka:      19092,
	engines.MySQL:      13306,
	engines.Redis:      16379,
	engines.ClickHouse: 18123,
}

// topologyFile notes what runs or ran last; secretFile keeps the secret of logins, see sessionSecret.
const (
	topologyFile = "topology"
	secretFile   = "session-secret"
)

// database is the name of the one that `up` makes for ledgerline in MySQL and ClickHouse.
const database = "ledgerline"

// record is one engine that `up` started, as it stands in the state folder.
type record struct {
	Kind    engines.Kind    `json:"kind"`
	Name    string          `json:"name"` // of the server: sentinels are Redis, too
	Addr    string          `json:"addr"`
	Dir     string          `json:"dir"` // data and log
	Process engines.Process `json:"process"`
}

func recordFile(dir string) string { return filepath.Join(dir, "running.json") }
func envFile(dir string) string    { return filepath.Join(dir, "env") }

// dataDir is where the data of a topology lies: each has its own, for a database speaks of the log that it was built from.
func dataDir(dir, topology string) string {
	if topology == single {
		return dir
	}
	return filepath.Join(dir, topology)
}

// load reads the record; none is an empty one.
func load(dir string) ([]record, error) {
	text, err := os.ReadFile(recordFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what runs: %w", err)
	}
	var records []record
	if err := json.Unmarshal(text, &records); err != nil {
		return nil, fmt.Errorf("read what runs from %s: %w", recordFile(dir), err)
	}
	return records, nil
}

func store(dir string, records []record) error {
	text, err := json.MarshalIndent(records, "", "  ")
	if err == nil {
		err = os.WriteFile(recordFile(dir), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("record what runs: %w", err)
	}
	return nil
}

// upOptions say what `up` starts.
type upOptions struct {
	dir, topology string
	binary        string // starts three nodes of it, and nginx; "": engines only
}

// up starts what does not run yet. The record is written after every step, so that `down` finds whatever was started.
func up(ctx context.Context, cache *engines.Cache, o upOptions, out io.Writer) error {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	if err := keepTopology(o); err != nil {
		return err
	}
	records, err := startEngines(ctx, cache, o)
	if err != nil {
		return err
	}
	env, err := environment(ctx, o.topology, records)
	if err != nil {
		return err
	}
	if err := os.WriteFile(envFile(o.dir), []byte(env), 0o644); err != nil {
		return fmt.Errorf("write the environment: %w", err)
	}
	end := "Start Ledgerline on them with:\n  set -a; . " + envFile(o.dir) + "; set +a; go run ./cmd/ledgerline\n"
	if o.binary != "" {
		records, err = startNodes(ctx, cache, dataDir(o.dir, o.topology), o.binary, env, records)
		if err := errors.Join(err, store(o.dir, records)); err != nil {
			return err
		}
		end = "Clients go to http://" + addresses(records, "nginx")[0] + "\n" + rootPassword(dataDir(o.dir, o.topology))
	}
	if err := status(o.dir, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\n%sEnd them with: make down\n", env, end)
	return nil
}

// startEngines starts the groups of which nothing runs, all at once, and anew those of which something is missing.
func startEngines(ctx context.Context, cache *engines.Cache, o upOptions) ([]record, error) {
	old, err := load(o.dir)
	if err != nil {
		return nil, err
	}
	records := slices.DeleteFunc(old, func(r record) bool { return !r.Process.Running() })
	var mu sync.Mutex
	var all errgroup.Group
	for _, g := range groupsOf(o.topology) {
		run, before := of(records, g.kind), of(old, g.kind)
		if len(run) > 0 && len(run) == len(before) {
			continue
		}
		for _, r := range run {
			if err := r.Process.Stop(); err != nil {
				return nil, err
			}
		}
		records = slices.DeleteFunc(records, func(r record) bool { return r.Kind == g.kind })
		all.Go(func() error {
			more, err := launch(ctx, cache, dataDir(o.dir, o.topology), g)
			mu.Lock()
			defer mu.Unlock()
			records = append(records, more...)
			return errors.Join(err, store(o.dir, records))
		})
	}
	err = all.Wait()
	return records, err
}

func of(records []record, kind engines.Kind) (some []record) {
	for _, r := range records {
		if r.Kind == kind {
			some = append(some, r)
		}
	}
	return some
}

// keepTopology refuses another topology than that of what runs.
func keepTopology(o upOptions) error {
	if err := checkTopology(o.topology); err != nil {
		return err
	}
	file := filepath.Join(o.dir, topologyFile)
	records, err := load(o.dir)
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(file); err == nil && string(was) != o.topology && slices.ContainsFunc(records, func(r record) bool { return r.Process.Running() }) {
		return fmt.Errorf("the topology %s runs: end it first (make down; its data stays)", was)
	}
	if err := os.WriteFile(file, []byte(o.topology), 0o644); err != nil {
		return fmt.Errorf("note the topology: %w", err)
	}
	return nil
}

// rootPassword is what the first start of the master printed, "" later.
func rootPassword(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, string(nodesKind), "master", "master.log"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "First start:") {
			return line
		}
	}
	return ""
}

// environment makes the databases and returns the lines that point ledgerline at the engines, fit for a shell and for an
// env file.
func environment(ctx context.Context, topology string, records []record) (string, error) {
	at := make(map[engines.Kind]*engines.Server)
	for _, r := range records {
		at[r.Kind] = &engines.Server{Addr: r.Addr}
	}
	db, err := sql.Open("mysql", at[engines.MySQL].MySQLDSN(""))
	if err != nil {
		return "", fmt.Errorf("open MySQL: %w", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS "+database+" CHARACTER SET utf8mb4"); err != nil {
		return "", fmt.Errorf("create the MySQL database: %w", err)
	}
	if err := at[engines.ClickHouse].ClickHouseExec(ctx, "CREATE DATABASE IF NOT EXISTS "+database); err != nil {
		return "", fmt.Errorf("create the ClickHouse database: %w", err)
	}
	lines := append([]string{
		"KAFKA_BROKERS=" + strings.Join(addresses(records, "kafka"), ","),
		"SQL_DSN='" + at[engines.MySQL].MySQLDSN(database) + "'",
		"LOG_SQL_DSN=" + at[engines.ClickHouse].ClickHouseDSN(database),
	}, redisEnvironment(topology, records)...)
	return strings.Join(lines, "\n") + "\n", nil
}

// status prints one line per server that runs or should run.
func status(dir string, out io.Writer) error {
	records, err := load(dir)
	if err != nil {
		return err
	}
	for _, kind := range append(slices.Clone(engines.Kinds), nodesKind, nginxKind) {
		some := of(records, kind)
		if len(some) == 0 && slices.Contains(engines.Kinds, kind) {
			fmt.Fprintf(out, "%-14s stopped\n", kind.Server())
		}
		for _, r := range some {
			line := "stopped"
			if r.Process.Running() {
				line = fmt.Sprintf("running  %s  pid %d  data and log in %s", r.Addr, r.Process.PID, r.Dir)
			}
			fmt.Fprintf(out, "%-14s %s\n", r.Name, line)
		}
	}
	return nil
}

// down ends the processes on record and nothing else: nginx, then nodes, then engines, each rank at once, for brokers that end one
// after the other wait for those that are gone.
func down(dir string, wipe bool, out io.Writer) error {
	records, err := load(dir)
	if err != nil {
		return err
	}
	for rank := range len(ranks) + 1 {
		var all errgroup.Group
		for _, r := range records {
			if rankOf(r.Kind) == rank {
				all.Go(r.Process.Stop)
			}
		}
		if err := all.Wait(); err != nil {
			return err
		}
	}
	for _, file := range []string{recordFile(dir), envFile(dir)} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what ran: %w", err)
		}
	}
	if !wipe {
		return status(dir, out)
	}
	names := []string{topologyFile, secretFile, string(nodesKind), string(nginxKind), sentinel, cluster}
	for _, kind := range engines.Kinds {
		names = append(names, string(kind))
	}
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove the data in %s: %w", name, err)
		}
	}
	return status(dir, out)
}

// ranks are the kinds that end before the engines, in order.
var ranks = []engines.Kind{nginxKind, nodesKind}

func rankOf(kind engines.Kind) int {
	if i := slices.Index(ranks, kind); i >= 0 {
		return i
	}
	return len(ranks)
}
