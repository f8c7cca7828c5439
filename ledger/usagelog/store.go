package usagelog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ledgerline/ledger"
)

// Place is where a record lies.
type Place struct {
	Partition int
	Log       int
	Offset    int64
}

// Position is how far the usage log has come in one partition. Of all positions ever stored the highest (Log, Offset)
// is the position: whoever stored it had put everything below it in first, so a zombie that stores a lower one later
// takes nothing back.
type Position struct {
	// Log counts the logs that an operator adopted for this partition (AdoptLog). Offsets of another log start again, so
	// without it a position could move backwards, and offsets of two logs would mix.
	Log    int
	Offset int64 // everything below is in the usage log
	// LastEvent is the id of the last record below Offset that could be decoded, and LastOffset where it lies. A zero id
	// means that there is none.
	LastEvent  ledger.ID
	LastOffset int64
	At         time.Time // when it was stored; informative
}

// Batch is a stretch of one partition: its rows, its dead letters, and the position after them.
type Batch struct {
	Partition int
	Rows      []Row        // in any order; Append sets their Log to the position's
	Dead      []DeadLetter // likewise
	Position  Position
}

// place sets the log of everything in a batch. What is set already is only read: an attempt that failed may still be
// looking at it.
func (b *Batch) place() {
	for i := range b.Rows {
		if r := &b.Rows[i]; r.Log != b.Position.Log {
			r.Log = b.Position.Log
		}
	}
	for i := range b.Dead {
		if d := &b.Dead[i]; d.Log != b.Position.Log {
			d.Log = b.Position.Log
		}
	}
}

// DeadLetter is a record that could not be decoded (L6).
type DeadLetter struct {
	Place
	Reason string
	Value  []byte
	At     time.Time // when it was met
}

// Writer is what the usage-log consumer needs.
type Writer interface {
	// Append stores batches of different partitions: rows and dead letters first, the positions last. It may be repeated,
	// and two writers may append overlapping batches: rows are known by event id, the one at the lowest place stays. After
	// an error any part of it may have been stored, but no position before what it stands for.
	Append(ctx context.Context, batches ...Batch) error
	// Position returns the position of a partition; the zero Position with LastOffset -1 if nothing was stored yet.
	Position(ctx context.Context, partition int) (Position, error)
	// AdoptLog makes offset of a new log (the topic was recreated, say) the position. Rows of the log before stay.
	AdoptLog(ctx context.Context, partition int, offset int64) error
}

// Reader is what the console and the API need. List, Stat, Shares and TokenLatest read New API's table `logs`, too, if the log
// database has one.
type Reader interface {
	// List returns rows that match, newest first. Errors: ErrFilter.
	List(ctx context.Context, f Filter, page Page) (Listing, error)
	// Stat returns what the rows of type consume that match cost, and what was going on in the last 60 s.
	Stat(ctx context.Context, f Filter, now time.Time) (Stat, error)
	// Shares returns what the rows of type consume that match came to, told apart by hour and model or user, or by who used what.
	// Errors: ErrFilter, also if there are more than MaxShares.
	Shares(ctx context.Context, f Filter, by Split) ([]Share, error)
	// TokenLatest returns the newest rows of a token, at most MaxTokenRows.
	TokenLatest(ctx context.Context, token int64) ([]Entry, error)
	// Lookup returns the events of a request, oldest first, at most MaxFound.
	Lookup(ctx context.Context, requestID string) ([]Found, error)
}

// Auditor is what verify and replay need.
type Auditor interface {
	// Totals calls fn for each account with the exact sums of what events with from ≤ offset < to did to it: each
	// event once, each business key once. from and to hold an offset per partition of the current log; a nil from means
	// since ever, logs before the current one included. Accounts come in no order.
	Totals(ctx context.Context, from, to []int64, fn func(ledger.Account, ledger.Balance) error) error
	// Shown calls fn for each account of which rows below to show another quota than their events charged, and by how much in
	// sum. It finds what somebody changed in the column that people read.
	Shown(ctx context.Context, to []int64, fn func(account ledger.Account, more int64) error) error
	// Scan calls fn for each decodable record with from ≤ offset < to, in offset order, with its canonical JSON:
	// duplicates and re-driven copies are there as they are in the log. A negative from means since ever, logs before
	// the current one included, in their order. value is valid until fn returns.
	Scan(ctx context.Context, partition int, from, to int64, fn func(offset int64, value []byte) error) error
	// DeadLetters returns dead letters of the current log of a partition, from offset after+1 on, in order.
	DeadLetters(ctx context.Context, partition int, after int64, limit int) ([]DeadLetter, error)
}

// Keeper is what start and the master's duties need.
type Keeper interface {
	// Migrate brings the schema to this binary's version, forward only. It may be repeated and run by two at once.
	Migrate(ctx context.Context) error
	// CheckSchema returns nil, or an error that wraps ErrSchemaNewer or ErrSchemaOlder.
	CheckSchema(ctx context.Context) error
	// SetTTL makes rows expire the given number of days after their event; 0 keeps them. Rows since needed (the time of
	// the oldest snapshot; zero if all are needed) must stay: a TTL that would take them is refused with a
	// *RetentionError, and one that is set already is removed. Call it at start and once a day.
	SetTTL(ctx context.Context, days int, needed time.Time) error
	// DeleteBefore deletes the rows of events before a time, those of New API's logs too, and returns how many went. It
	// refuses with a *RetentionError if needed (see SetTTL) is earlier.
	DeleteBefore(ctx context.Context, before, needed time.Time) (int64, error)
	Ping(ctx context.Context) error
	Close() error
}

// Store is a usage log: *ClickHouse or *SQL.
type Store interface {
	Writer
	Reader
	Auditor
	Importer
	Keeper
}

var (
	_ Store = (*ClickHouse)(nil)
	_ Store = (*SQL)(nil)
)

// Errors of a Store.
var (
	// ErrFilter is wrapped by errors about a filter that is refused; their text may be shown to the user.
	ErrFilter = errors.New("filter is not allowed")
	// ErrSchemaNewer means that a newer release has migrated the log database.
	ErrSchemaNewer = errors.New("schema of the usage log is newer than this binary")
	// ErrSchemaOlder means that the master has not migrated the log database yet.
	ErrSchemaOlder = errors.New("schema of the usage log is older than this binary")
)

// RetentionError refuses to let rows go that the oldest snapshot needs: a replay could not start there any more.
type RetentionError struct {
	Before time.Time // rows before it would have gone
	Needed time.Time // rows since it are needed; zero: all
}

// Error implements error.
func (e *RetentionError) Error() string {
	if e.Needed.IsZero() {
		return fmt.Sprintf("refuse to delete usage log rows before %s: there is no snapshot, a replay needs them all",
			e.Before.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("refuse to delete usage log rows before %s: the oldest snapshot is of %s, take a newer one first",
		e.Before.UTC().Format(time.RFC3339), e.Needed.UTC().Format(time.RFC3339))
}

// retained returns a *RetentionError if rows since needed would go.
func retained(before, needed time.Time) error {
	if before.After(needed) {
		return &RetentionError{Before: before, Needed: needed}
	}
	return nil
}

// Config says where the usage log is.
type Config struct {
	// DSN is LOG_SQL_DSN, or SQL_DSN if that is unset: clickhouse://, tcp://, http:// or https:// means ClickHouse, empty
	// or with the prefix "local" SQLite at SQLitePath, anything else a go-sql-driver DSN of MySQL or MariaDB.
	DSN        string
	SQLitePath string // a file; a query part ("?_busy_timeout=…") is ignored

	// The pool of a SQL database: SQL_MAX_IDLE_CONNS (default 100), SQL_MAX_OPEN_CONNS (1000), SQL_MAX_LIFETIME (60 s).
	MaxIdle     int
	MaxOpen     int
	MaxLifetime time.Duration

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

func (c *Config) fill() {
	if c.MaxIdle == 0 {
		c.MaxIdle = 100
	}
	if c.MaxOpen == 0 {
		c.MaxOpen = 1000
	}
	if c.MaxLifetime == 0 {
		c.MaxLifetime = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Open connects to the usage log. It does not migrate: a master calls Migrate, a slave CheckSchema.
func Open(ctx context.Context, cfg Config) (Store, error) {
	if IsClickHouse(cfg.DSN) {
		return OpenClickHouse(ctx, cfg)
	}
	return OpenSQL(ctx, cfg)
}

// retentionDays turns days into the time before which rows go.
func retentionDays(now time.Time, days int) time.Time { return now.AddDate(0, 0, -days) }
