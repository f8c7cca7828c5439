package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "modernc.org/sqlite" // registers the driver
)

// Store is one database. It is safe for concurrent use.
type Store struct {
	dialect
	db    *sql.DB // reads, and writes on MySQL
	write *sql.DB // on SQLite one connection, so that writers queue here and not in a busy loop; else the same as db
	log   *slog.Logger
	now   func() time.Time

	secret string  // CRYPTO_SECRET
	sealer *sealer // nil without it

	name string // of the database, or the path of the file; part of lock names

	// fault, if set by a test, is asked before every statement and commit of a write transaction.
	fault func(statement string) error

	mu         sync.Mutex
	columns    map[string]columnRange // guarded by mu; nil until asked for
	partitions int                    // guarded by mu; 0 until known
	shapes     shapes                 // guarded by mu; nil until asked for
}

// Open connects to the database. It does not migrate: a master calls Migrate, a slave CheckSchema.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.fill()
	s := &Store{log: cfg.Logger, now: cfg.Now, secret: cfg.Secret}
	var err error
	if s.sealer, err = newSealer(cfg.Secret); err != nil {
		return nil, err
	}
	if isLocal(cfg.DSN) {
		err = s.openSQLite(cfg)
	} else {
		err = s.openMySQL(cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := s.db.PingContext(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return s, nil
}

func (s *Store) openSQLite(cfg Config) error {
	path, err := sqlitePath(cfg.SQLitePath)
	if err != nil {
		return err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if !cfg.ReadOnly {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return fmt.Errorf("open database: %w", err)
		}
	}
	s.dialect, s.name = dialectSQLite, path
	if s.db, err = sql.Open("sqlite", sqliteDSN(path, cfg.ReadOnly)); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if s.write, err = sql.Open("sqlite", sqliteDSN(path, cfg.ReadOnly)); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	s.write.SetMaxOpenConns(1)
	s.db.SetMaxOpenConns(8) // readers of one file: more only wait for the same two cores' page cache
	s.db.SetMaxIdleConns(8)
	return nil
}

func (s *Store) openMySQL(cfg Config) error {
	my, err := mysqlConfig(cfg.DSN)
	if err != nil {
		return err
	}
	connector, err := mysql.NewConnector(my)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	s.dialect, s.name = dialectMySQL, my.DBName
	s.db = sql.OpenDB(sessionConnector{connector, cfg.ReadOnly})
	s.write = s.db
	s.db.SetMaxOpenConns(cfg.MaxOpen)
	s.db.SetMaxIdleConns(cfg.MaxIdle)
	s.db.SetConnMaxLifetime(cfg.MaxLifetime)
	s.db.SetConnMaxIdleTime(silence / 2)
	return nil
}

// silence is how long the server bears a connection that says nothing. A process that hangs in the middle of a transaction (a
// machine that was paused) keeps its locks that long, and a partition stands still with them; by default it is 8 h. The pool closes
// what is idle before the server does.
const silence = 30 * time.Second

// unboundedSilence is for a connection that waits with a reason: the most that the server takes, in seconds.
const unboundedSilence = "SET SESSION wait_timeout = 31536000"

// sessionConnector prepares each new MySQL connection. READ COMMITTED: the transactions here lock the rows they decide
// on, and gap locks would only bring deadlocks. The SQL mode makes a value that does not fit an error, never a cut one (L6).
type sessionConnector struct {
	driver.Connector
	readOnly bool
}

var sessionStatements = []string{
	"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
	"SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', SESSION wait_timeout = " +
		strconv.Itoa(int(silence/time.Second)),
}

// Connect implements driver.Connector.
func (c sessionConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	statements := sessionStatements
	if c.readOnly {
		statements = append(statements[:len(statements):len(statements)], "SET SESSION TRANSACTION READ ONLY")
	}
	for _, q := range statements {
		if _, err := conn.(driver.ExecerContext).ExecContext(ctx, q, nil); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("prepare connection: %w", err)
		}
	}
	return conn, nil
}

// IsMySQL reports whether the database is MySQL or MariaDB; otherwise it is SQLite.
func (s *Store) IsMySQL() bool { return s.mysql }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.db.PingContext(ctx) }

// Close closes the connections.
func (s *Store) Close() error {
	var err error
	if s.write != nil && s.write != s.db {
		err = s.write.Close()
	}
	if s.db != nil {
		if e := s.db.Close(); err == nil {
			err = e
		}
	}
	return err
}
