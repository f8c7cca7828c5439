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
	"strings"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"

	"ledgerline/ledger/ledgertest/engines"
)

// ports are those of `up` if they are free: each engine's own plus 10,000, so that they do not meet a server of the system.
var ports = map[engines.Kind]int{
	engines.Kafka:      19092,
	engines.MySQL:      13306,
	engines.Redis:      16379,
	engines.ClickHouse: 18123,
}

// database is the name of the one that `up` makes for ledgerline in MySQL and ClickHouse.
const database = "ledgerline"

// record is one engine that `up` started, as it stands in the state folder.
type record struct {
	Kind    engines.Kind    `json:"kind"`
	Addr    string          `json:"addr"`
	Process engines.Process `json:"process"`
}

func recordFile(dir string) string { return filepath.Join(dir, "running.json") }
func envFile(dir string) string    { return filepath.Join(dir, "env") }

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

// up starts the engines that do not run yet. The record is written before anything else can fail, so that `down` finds
// whatever was started.
func up(ctx context.Context, cache *engines.Cache, dir string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	old, err := load(dir)
	if err != nil {
		return err
	}
	var records []record
	options := make(map[engines.Kind]engines.Options)
	for _, kind := range engines.Kinds {
		o := engines.Options{Cache: cache, Dir: filepath.Join(dir, string(kind)), Detach: true}
		if port := ports[kind]; engines.PortFree(port) {
			o.Port = port
		}
		options[kind] = o
	}
	for _, r := range old {
		if r.Process.Running() {
			records = append(records, r)
			delete(options, r.Kind)
		}
	}
	servers, err := engines.StartAll(ctx, options)
	if err != nil {
		return err
	}
	for kind, s := range servers {
		process, err := s.Process()
		if err != nil {
			return errors.Join(err, engines.CloseAll(servers))
		}
		records = append(records, record{Kind: kind, Addr: s.Addr, Process: process})
	}
	if err := store(dir, records); err != nil {
		return errors.Join(err, engines.CloseAll(servers))
	}
	env, err := environment(ctx, records)
	if err != nil {
		return err
	}
	if err := os.WriteFile(envFile(dir), []byte(env), 0o644); err != nil {
		return fmt.Errorf("write the environment: %w", err)
	}
	if err := status(dir, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\nStart Ledgerline on them with:\n  set -a; . %s; set +a; go run ./cmd/ledgerline\nEnd them with: make down\n", env, envFile(dir))
	return nil
}

// environment makes the databases and returns the lines that point ledgerline at the engines, fit for a shell and for an
// env file.
func environment(ctx context.Context, records []record) (string, error) {
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
	return strings.Join([]string{
		"KAFKA_BROKERS=" + at[engines.Kafka].Addr,
		"SQL_DSN='" + at[engines.MySQL].MySQLDSN(database) + "'",
		"REDIS_CONN_STRING=" + at[engines.Redis].RedisURL(),
		"LOG_SQL_DSN=" + at[engines.ClickHouse].ClickHouseDSN(database),
	}, "\n") + "\n", nil
}

// status prints one line per engine.
func status(dir string, out io.Writer) error {
	records, err := load(dir)
	if err != nil {
		return err
	}
	for _, kind := range engines.Kinds {
		line := "stopped"
		for _, r := range records {
			if r.Kind == kind && r.Process.Running() {
				line = fmt.Sprintf("running  %s  pid %d  data and log in %s", r.Addr, r.Process.PID, filepath.Join(dir, string(kind)))
			}
		}
		fmt.Fprintf(out, "%-11s %s\n", kind, line)
	}
	return nil
}

// down ends the processes on record and nothing else.
func down(dir string, wipe bool, out io.Writer) error {
	records, err := load(dir)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := r.Process.Stop(); err != nil {
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
	for _, kind := range engines.Kinds {
		if err := os.RemoveAll(filepath.Join(dir, string(kind))); err != nil {
			return fmt.Errorf("remove the data of %s: %w", kind, err)
		}
	}
	return status(dir, out)
}
