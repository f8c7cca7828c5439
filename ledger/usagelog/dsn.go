package usagelog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-sql-driver/mysql"
)

const allowedDSN = `allowed: clickhouse://, tcp://, http:// or https:// with host, port and database for ClickHouse, ` +
	`"user:password@tcp(host:3306)/database" for MySQL or MariaDB, "local" for SQLite, or unset for the main database`

// CheckDSN reports what is wrong with a value of LOG_SQL_DSN, in one line that says what is allowed. It does not connect
// and never repeats the password.
func CheckDSN(dsn string) error {
	var err error
	switch {
	case isLocal(dsn):
	case IsClickHouse(dsn):
		_, err = clickhouseOptions(dsn)
	default:
		_, err = mysqlConfig(dsn)
	}
	return err
}

// isLocal reports whether New API's rule means SQLite.
func isLocal(dsn string) bool { return dsn == "" || strings.HasPrefix(dsn, "local") }

// IsClickHouse reports whether a DSN names ClickHouse.
func IsClickHouse(dsn string) bool {
	scheme, _, ok := strings.Cut(dsn, "://")
	if !ok {
		return false
	}
	switch strings.ToLower(scheme) {
	case "clickhouse", "tcp", "http", "https":
		return true
	}
	return false
}

// mysqlConfig reads a DSN and sets what this package relies on, whatever the operator wrote: utf8mb4, parameters
// interpolated by the driver (one round trip a statement), matched rather than changed row counts, and an error for a
// value that does not fit (L6).
func mysqlConfig(dsn string) (*mysql.Config, error) {
	if scheme, _, ok := strings.Cut(dsn, "://"); ok && !strings.ContainsAny(scheme, "@(/") {
		return nil, fmt.Errorf("LOG_SQL_DSN: scheme %q is not supported; %s", scheme, allowedDSN)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("LOG_SQL_DSN: %w; %s", err, allowedDSN)
	}
	if cfg.DBName == "" {
		return nil, errors.New("LOG_SQL_DSN: no database named; " + allowedDSN)
	}
	cfg.InterpolateParams = true
	cfg.ClientFoundRows = true
	if cfg.Params == nil {
		cfg.Params = map[string]string{}
	}
	cfg.Params["sql_mode"] = "'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'"
	if err := cfg.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, fmt.Errorf("LOG_SQL_DSN: %w", err)
	}
	cfg.Collation = ""
	return cfg, nil
}

// clickhouseOptions reads a DSN. https means TLS, as in New API. Rows go compressed unless the DSN says otherwise.
func clickhouseOptions(dsn string) (*clickhouse.Options, error) {
	if scheme, rest, _ := strings.Cut(dsn, "://"); strings.EqualFold(scheme, "https") && !strings.Contains(rest, "secure=") {
		separator := "?"
		if strings.Contains(rest, "?") {
			separator = "&"
		}
		dsn += separator + "secure=true"
	}
	o, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("LOG_SQL_DSN: %w; %s", err, allowedDSN)
	}
	if o.Compression == nil {
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	}
	o.Debug = false //nolint:staticcheck // a DSN may set it, and it would print to standard output
	return o, nil
}
