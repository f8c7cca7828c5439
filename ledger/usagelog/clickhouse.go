package usagelog

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"ledgerline/migrations"
)

// ClickHouse is the usage log in ClickHouse, over its native protocol or HTTP. It is safe for concurrent use.
//
// Nothing is transactional there, so the order of writes makes the promise: rows, events, dead letters, and only then the
// position. Copies collapse when ClickHouse merges; until then lists take one row of each event and sums read FINAL.
type ClickHouse struct {
	conn  driver.Conn
	http  bool   // the protocol
	nonce string // of this process, in deduplication tokens
	log   *slog.Logger
	now   func() time.Time
	logs  logsTable // New API's table; read by queries, set by Open and Migrate
}

// OpenClickHouse connects to a usage log in ClickHouse.
func OpenClickHouse(ctx context.Context, cfg Config) (*ClickHouse, error) {
	cfg.fill()
	o, err := clickhouseOptions(cfg.DSN)
	if err != nil {
		return nil, err
	}
	if o.Settings == nil {
		o.Settings = clickhouse.Settings{}
	}
	for name, value := range settings {
		o.Settings[name] = value
	}
	o.TransportFunc = func(t *http.Transport) (http.RoundTripper, error) { return frameTransport{t}, nil }
	conn, err := clickhouse.Open(o)
	if err != nil {
		return nil, fmt.Errorf("open usage log: %w", err)
	}
	c := &ClickHouse{conn: conn, http: o.Protocol == clickhouse.HTTP, nonce: rand.Text(), log: cfg.Logger, now: cfg.Now}
	if err := conn.Ping(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open usage log: %w", err)
	}
	if err := c.findLogs(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// settings hold whatever the server's profile or the DSN says.
var settings = clickhouse.Settings{
	// An INSERT is answered when it is stored: with a profile's asynchronous inserts a position could overtake its rows (L2).
	"async_insert": 0,
	// A copy is in the same month as its event, so FINAL need not look across.
	"do_not_merge_across_partitions_select_final": 1,
}

// Ping reports whether ClickHouse answers.
func (c *ClickHouse) Ping(ctx context.Context) error { return c.conn.Ping(ctx) }

// Close closes the connections.
func (c *ClickHouse) Close() error { return c.conn.Close() }

func (c *ClickHouse) schema() *schema {
	return &schema{
		files: migrations.ClickHouse(),
		exec: func(ctx context.Context, statement string, args ...any) error {
			return c.conn.Exec(ctx, statement, args...)
		},
		version: c.schemaVersion,
		begin: "CREATE TABLE IF NOT EXISTS ledger_usage_schema (version Int64, applied_at Int64) " +
			"ENGINE = ReplacingMergeTree ORDER BY version",
		done: "INSERT INTO ledger_usage_schema SELECT ?, ?",
	}
}

func (c *ClickHouse) schemaVersion(ctx context.Context) (int, error) {
	engine, err := c.engineOf(ctx, "ledger_usage_schema")
	if err != nil || engine == "" {
		return 0, err
	}
	var version int64
	err = c.conn.QueryRow(ctx, "SELECT max(version) FROM ledger_usage_schema").Scan(&version)
	return int(version), err
}

// engineOf returns the full engine clause of a table, or "" if there is none.
func (c *ClickHouse) engineOf(ctx context.Context, table string) (string, error) {
	rows, err := c.conn.Query(ctx, "SELECT engine_full = '' ? engine : engine_full FROM system.tables WHERE database = currentDatabase() AND name = "+
		literal(table))
	if err != nil {
		return "", fmt.Errorf("look for %s: %w", table, err)
	}
	defer rows.Close()
	var engine string
	for rows.Next() {
		if err := rows.Scan(&engine); err != nil {
			return "", fmt.Errorf("look for %s: %w", table, err)
		}
	}
	return engine, rows.Err()
}

// literal quotes a string for ClickHouse.
func literal(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// Migrate implements Keeper.
func (c *ClickHouse) Migrate(ctx context.Context) error {
	if err := c.schema().migrate(ctx, c.now().UnixMilli()); err != nil {
		return err
	}
	engine, err := c.engineOf(ctx, "logs")
	if err != nil {
		return fmt.Errorf("migrate usage log: %w", err)
	}
	if engine == "" {
		if err := c.conn.Exec(ctx, logsView("toInt64(0)", "ledger_usage FINAL")); err != nil {
			return fmt.Errorf("migrate usage log: make view logs: %w", err)
		}
	}
	return c.findLogs(ctx)
}

// CheckSchema implements Keeper.
func (c *ClickHouse) CheckSchema(ctx context.Context) error { return c.schema().check(ctx) }

// findLogs looks at New API's table and its columns.
func (c *ClickHouse) findLogs(ctx context.Context) error {
	engine, err := c.engineOf(ctx, "logs")
	if err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	if engine == "" || engine == "View" {
		c.logs.set(nil)
		return nil
	}
	rows, err := c.conn.Query(ctx, "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'logs'")
	if err != nil {
		return fmt.Errorf("open usage log: read columns of logs: %w", err)
	}
	defer rows.Close()
	var columns []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return fmt.Errorf("open usage log: read columns of logs: %w", err)
		}
		columns = append(columns, name)
	}
	c.logs.set(columns)
	return rows.Err()
}

// SetTTL implements Keeper.
func (c *ClickHouse) SetTTL(ctx context.Context, days int, needed time.Time) error {
	var refused error
	if days > 0 {
		if refused = retained(retentionDays(c.now(), days), needed); refused != nil {
			days = 0
		}
	}
	for _, table := range []string{"ledger_usage", "ledger_events"} {
		if err := c.setTTL(ctx, table, days); err != nil {
			return fmt.Errorf("set TTL of %s: %w", table, err)
		}
	}
	return refused
}

// setTTL changes a table only if it must: a new TTL rewrites the table.
func (c *ClickHouse) setTTL(ctx context.Context, table string, days int) error {
	engine, err := c.engineOf(ctx, table)
	if err != nil {
		return err
	}
	switch {
	case days <= 0 && !strings.Contains(engine, " TTL "):
		return nil
	case days <= 0:
		return c.conn.Exec(ctx, "ALTER TABLE "+table+" REMOVE TTL")
	case strings.Contains(engine, fmt.Sprintf("toIntervalDay(%d)", days)):
		return nil
	}
	return c.conn.Exec(ctx, fmt.Sprintf("ALTER TABLE %s MODIFY TTL toDateTime(created_at, 'UTC') + toIntervalDay(%d)", table, days))
}

// DeleteBefore implements Keeper.
func (c *ClickHouse) DeleteBefore(ctx context.Context, before, needed time.Time) (int64, error) {
	if err := retained(before, needed); err != nil {
		return 0, err
	}
	counted := map[string]string{"ledger_usage": "ledger_usage FINAL"}
	tables := []string{"ledger_usage", "ledger_events"}
	if c.logs.present() {
		tables, counted["logs"] = append(tables, "logs"), "logs"
	}
	var gone int64
	condition := fmt.Sprintf(" WHERE created_at < %d", before.Unix())
	for _, table := range tables {
		if from, ok := counted[table]; ok {
			var n int64
			if err := c.conn.QueryRow(ctx, "SELECT toInt64(count()) FROM "+from+condition).Scan(&n); err != nil {
				return gone, fmt.Errorf("count rows of %s: %w", table, err)
			}
			gone += n
		}
		if err := c.conn.Exec(ctx, "ALTER TABLE "+table+" DELETE"+condition+" SETTINGS mutations_sync = 1"); err != nil {
			return gone, fmt.Errorf("delete from %s: %w", table, err)
		}
	}
	return gone, nil
}
