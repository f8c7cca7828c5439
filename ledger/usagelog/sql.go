package usagelog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "modernc.org/sqlite" // registers the driver

	"ledgerline/migrations"
)

// SQL is the usage log in MySQL, MariaDB or SQLite. It is safe for concurrent use.
//
// Rows of a batch and its position are one transaction. event_id is unique; a copy at a lower place takes the row over.
type SQL struct {
	mysql bool
	db    *sql.DB // reads, and writes on MySQL
	write *sql.DB // SQLite: one connection, so that writers of this process queue here
	log   *slog.Logger
	now   func() time.Time
	logs  logsTable // New API's table; read by queries, set by Open and Migrate
}

// readers bounds the connections that read one SQLite file: more only wait for the same page cache.
const readers = 8

// OpenSQL connects to a usage log in MySQL or SQLite.
func OpenSQL(ctx context.Context, cfg Config) (*SQL, error) {
	cfg.fill()
	s := &SQL{log: cfg.Logger, now: cfg.Now, mysql: !isLocal(cfg.DSN)}
	var err error
	if s.mysql {
		err = s.openMySQL(cfg)
	} else {
		err = s.openSQLite(cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := s.db.PingContext(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open usage log: %w", err)
	}
	if err := s.findLogs(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s *SQL) openMySQL(cfg Config) error {
	my, err := mysqlConfig(cfg.DSN)
	if err != nil {
		return err
	}
	connector, err := mysql.NewConnector(my)
	if err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	s.db = sql.OpenDB(connector)
	s.write = s.db
	s.db.SetMaxOpenConns(cfg.MaxOpen)
	s.db.SetMaxIdleConns(cfg.MaxIdle)
	s.db.SetConnMaxLifetime(cfg.MaxLifetime)
	return nil
}

func (s *SQL) openSQLite(cfg Config) error {
	path, _, _ := strings.Cut(cfg.SQLitePath, "?")
	path = strings.TrimPrefix(path, "file:")
	if path == "" || strings.Contains(path, ":memory:") {
		return fmt.Errorf("open usage log: SQLITE_PATH %q is not a file", cfg.SQLitePath)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	// WAL without an fsync per commit: rows and position are lost together with the power, and read from the log again.
	q := url.Values{}
	for _, p := range []string{"busy_timeout(30000)", "journal_mode(WAL)", "synchronous(NORMAL)", "temp_store(MEMORY)"} {
		q.Add("_pragma", p)
	}
	q.Set("_txlock", "immediate")
	dsn := (&url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}).String()
	if s.db, err = sql.Open("sqlite", dsn); err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	if s.write, err = sql.Open("sqlite", dsn); err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	s.db.SetMaxOpenConns(readers)
	s.db.SetMaxIdleConns(readers)
	s.write.SetMaxOpenConns(1)
	return nil
}

// Ping reports whether the database answers.
func (s *SQL) Ping(ctx context.Context) error { return s.db.PingContext(ctx) }

// Close closes the connections.
func (s *SQL) Close() error {
	var err error
	if s.write != nil && s.write != s.db {
		err = s.write.Close()
	}
	return errors.Join(err, s.db.Close())
}

func (s *SQL) schema() *schema {
	sc := &schema{
		files: migrations.UsageLogSQLite(),
		exec: func(ctx context.Context, statement string, args ...any) error {
			_, err := s.write.ExecContext(ctx, statement, args...)
			return err
		},
		version: s.schemaVersion,
		begin:   "CREATE TABLE IF NOT EXISTS ledger_usage_schema (version bigint NOT NULL PRIMARY KEY, applied_at bigint NOT NULL)",
		done:    "INSERT OR IGNORE INTO ledger_usage_schema (version, applied_at) VALUES (?, ?)",
	}
	if s.mysql {
		sc.files = migrations.UsageLogMySQL()
		sc.done = "INSERT IGNORE INTO ledger_usage_schema (version, applied_at) VALUES (?, ?)"
	}
	return sc
}

func (s *SQL) schemaVersion(ctx context.Context) (int, error) {
	kind, err := s.kindOf(ctx, "ledger_usage_schema")
	if err != nil || kind == "" {
		return 0, err
	}
	var version int
	err = s.db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM ledger_usage_schema").Scan(&version)
	return version, err
}

// Migrate implements Keeper.
func (s *SQL) Migrate(ctx context.Context) error {
	if err := s.schema().migrate(ctx, s.now().UnixMilli()); err != nil {
		return err
	}
	kind, err := s.kindOf(ctx, "logs")
	if err != nil {
		return fmt.Errorf("migrate usage log: %w", err)
	}
	if kind == "" {
		create := logsView("id", "ledger_usage")
		if s.mysql {
			create = strings.Replace(create, "CREATE VIEW IF NOT EXISTS", "CREATE OR REPLACE VIEW", 1)
		}
		if _, err := s.write.ExecContext(ctx, create); err != nil {
			return fmt.Errorf("migrate usage log: make view logs: %w", err)
		}
	}
	return s.findLogs(ctx)
}

// CheckSchema implements Keeper.
func (s *SQL) CheckSchema(ctx context.Context) error { return s.schema().check(ctx) }

// kindOf returns "table", "view", or "" if there is nothing of that name.
func (s *SQL) kindOf(ctx context.Context, name string) (string, error) {
	query := "SELECT type FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')"
	if s.mysql {
		query = "SELECT table_type FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
	}
	var kind string
	err := s.db.QueryRowContext(ctx, query, name).Scan(&kind)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look for %s: %w", name, err)
	case strings.Contains(strings.ToLower(kind), "view"):
		return "view", nil
	}
	return "table", nil
}

// findLogs looks at New API's table and its columns.
func (s *SQL) findLogs(ctx context.Context) error {
	kind, err := s.kindOf(ctx, "logs")
	if err != nil {
		return fmt.Errorf("open usage log: %w", err)
	}
	if kind != "table" {
		s.logs.set(nil)
		return nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT * FROM logs WHERE 1 = 0")
	if err != nil {
		return fmt.Errorf("open usage log: read columns of logs: %w", err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return fmt.Errorf("open usage log: read columns of logs: %w", err)
	}
	s.logs.set(columns)
	return rows.Err()
}
