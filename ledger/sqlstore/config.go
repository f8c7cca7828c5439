package sqlstore

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Config says which database to use. The zero value of a number means New API's default.
type Config struct {
	// DSN is SQL_DSN: empty or with the prefix "local" it means SQLite at SQLitePath, otherwise it is a data source name
	// of go-sql-driver ("user:password@tcp(host:3306)/database").
	DSN string
	// SQLitePath is SQLITE_PATH, a file; a query part ("?_busy_timeout=…") is ignored.
	SQLitePath string

	// Secret is CRYPTO_SECRET: what API keys and keys of channels are sealed with, once they are (MigrateSecrets).
	Secret string

	MaxIdle     int           // SQL_MAX_IDLE_CONNS, default 100
	MaxOpen     int           // SQL_MAX_OPEN_CONNS, default 1000
	MaxLifetime time.Duration // SQL_MAX_LIFETIME, default 60 s

	// ReadOnly opens a database that must not be touched: every write fails, and a SQLite file keeps its journal mode.
	ReadOnly bool

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

// New API's pool numbers.
const (
	defaultMaxIdle     = 100
	defaultMaxOpen     = 1000
	defaultMaxLifetime = 60 * time.Second
)

func (c *Config) fill() {
	if c.MaxIdle == 0 {
		c.MaxIdle = defaultMaxIdle
	}
	if c.MaxOpen == 0 {
		c.MaxOpen = defaultMaxOpen
	}
	if c.MaxLifetime == 0 {
		c.MaxLifetime = defaultMaxLifetime
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

const allowedDSN = `allowed: empty or "local" for SQLite, or MySQL/MariaDB as "user:password@tcp(host:3306)/database"`

// CheckDSN reports what is wrong with a value of SQL_DSN, in one line that says what is allowed. It does not connect and
// never repeats the password.
func CheckDSN(dsn string) error {
	if isLocal(dsn) {
		return nil
	}
	_, err := mysqlConfig(dsn)
	return err
}

// isLocal reports whether New API's rule means SQLite.
func isLocal(dsn string) bool { return dsn == "" || strings.HasPrefix(dsn, "local") }

// mysqlConfig reads a DSN and sets what this package relies on, whatever the operator wrote: parsed times, utf8mb4,
// parameters interpolated by the driver (one round trip a statement), and matched rather than changed row counts.
func mysqlConfig(dsn string) (*mysql.Config, error) {
	if scheme, _, ok := strings.Cut(dsn, "://"); ok {
		switch strings.ToLower(scheme) {
		case "postgres", "postgresql":
			return nil, fmt.Errorf("SQL_DSN: PostgreSQL is not supported; %s", allowedDSN)
		case "clickhouse", "http", "https", "tcp":
			return nil, fmt.Errorf("SQL_DSN: %s:// names a ClickHouse server, which can only be LOG_SQL_DSN; %s", scheme, allowedDSN)
		}
		return nil, fmt.Errorf("SQL_DSN: scheme %q is not supported; %s", scheme, allowedDSN)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("SQL_DSN: %w; %s", err, allowedDSN)
	}
	if cfg.DBName == "" {
		return nil, errors.New("SQL_DSN: no database named; " + allowedDSN)
	}
	cfg.ParseTime = true
	cfg.InterpolateParams = true
	cfg.ClientFoundRows = true
	if err := cfg.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, fmt.Errorf("SQL_DSN: %w", err)
	}
	cfg.Collation = ""
	return cfg, nil
}

// sqliteDSN returns the data source name of a SQLite file: WAL with an fsync at each commit (L2 needs the commit to stay),
// and 30 s of patience with another process that writes.
func sqliteDSN(path string, readOnly bool) string {
	q := url.Values{}
	pragmas := []string{"busy_timeout(30000)", "journal_mode(WAL)", "synchronous(FULL)", "temp_store(MEMORY)"}
	if readOnly {
		pragmas = []string{"busy_timeout(30000)", "query_only(1)"}
		q.Set("mode", "ro")
	} else {
		q.Set("_txlock", "immediate")
	}
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	if !filepath.IsAbs(path) {
		u.Opaque, u.Path = (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath(), ""
	}
	return u.String()
}

// sqlitePath drops the query part that New API's default has.
func sqlitePath(path string) (string, error) {
	path, _, _ = strings.Cut(path, "?")
	path = strings.TrimPrefix(path, "file:")
	if path == "" || strings.Contains(path, ":memory:") {
		return "", fmt.Errorf("SQLITE_PATH: %q is not a file", path)
	}
	return path, nil
}
