package usagelog

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"ledgerline/ledger"
)

// Logs is a table `logs` of New API's, wherever it is. It is read and never written.
type Logs struct {
	db     *sql.DB     // MySQL or SQLite
	mysql  bool        // which of them
	ch     *ClickHouse // else
	table  logsTable
	closed func() error
}

// ErrNoLogs means that a database has no table `logs` of New API's.
var ErrNoLogs = errors.New("the database has no table logs of New API's")

// OpenLogs opens the table. A SQLite file that is not there is an error, and its journal mode stays. Errors: ErrNoLogs.
func OpenLogs(ctx context.Context, cfg Config) (*Logs, error) {
	cfg.fill()
	l := &Logs{mysql: !isLocal(cfg.DSN)}
	err := l.open(ctx, cfg)
	if err == nil {
		return l, nil
	}
	if l.closed != nil {
		_ = l.closed()
	}
	return nil, fmt.Errorf("open New API's logs: %w", err)
}

func (l *Logs) open(ctx context.Context, cfg Config) (err error) {
	if IsClickHouse(cfg.DSN) {
		if l.ch, err = OpenClickHouse(ctx, cfg); err != nil {
			return err
		}
		l.closed = l.ch.Close
		if !l.ch.logs.present() {
			return ErrNoLogs
		}
		l.table.set(l.ch.logs.columns)
		return nil
	}
	beside := &SQL{mysql: l.mysql}
	if l.mysql {
		err = beside.openMySQL(cfg)
	} else {
		beside.db, err = openSQLiteReadOnly(cfg.SQLitePath)
	}
	if err != nil {
		return err
	}
	l.db, l.closed = beside.db, beside.db.Close
	if err := l.db.PingContext(ctx); err != nil {
		return err
	}
	if err := beside.findLogs(ctx); err != nil {
		return err
	}
	if !beside.logs.present() {
		return ErrNoLogs
	}
	l.table.set(beside.logs.columns)
	return nil
}

// openSQLiteReadOnly opens a file that must be there and must not be touched.
func openSQLiteReadOnly(path string) (*sql.DB, error) {
	path, _, _ = strings.Cut(path, "?")
	path, err := filepath.Abs(strings.TrimPrefix(path, "file:"))
	if err != nil {
		return nil, err
	}
	q := url.Values{"_pragma": {"busy_timeout(30000)", "query_only(1)"}, "mode": {"ro"}}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}).String())
}

// Close closes the connections.
func (l *Logs) Close() error { return l.closed() }

// Place says which database it is; see Importer.
func (l *Logs) Place(ctx context.Context) (string, error) {
	if l.ch != nil {
		return l.ch.Place(ctx)
	}
	return sqlPlace(ctx, l.db, l.mysql)
}

// Columns returns the names of the table's columns.
func (l *Logs) Columns() []string { return l.table.columns }

// Count returns the number of rows.
func (l *Logs) Count(ctx context.Context) (n int64, err error) {
	if l.ch != nil {
		err = l.ch.conn.QueryRow(ctx, "SELECT toInt64(count()) FROM logs").Scan(&n)
	} else {
		err = l.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM logs").Scan(&n)
	}
	if err != nil {
		return 0, fmt.Errorf("count New API's logs: %w", err)
	}
	return n, nil
}

// LogSum is what rows of type consume add up to.
type LogSum struct{ Quota, Requests int64 }

// Consumed sums the rows of type consume by a column: user_id, token_id or channel_id.
func (l *Logs) Consumed(ctx context.Context, by string) (map[int64]LogSum, error) {
	sums := map[int64]LogSum{}
	add := func(scan func(...any) error) error {
		var id int64
		var sum LogSum
		err := scan(&id, &sum.Quota, &sum.Requests)
		sums[id] = sum
		return err
	}
	const query = "SELECT %s, %s, %s FROM logs WHERE type = %d GROUP BY 1"
	var err error
	switch {
	case l.ch != nil:
		err = l.ch.each(ctx, fmt.Sprintf(query, "toInt64("+by+")", "toInt64(sum(quota))", "toInt64(count())", TypeConsume), func(rows driver.Rows) error { return add(rows.Scan) })
	default:
		quota := "COALESCE(SUM(quota), 0)"
		if l.mysql {
			quota = "CAST(" + quota + " AS SIGNED)"
		}
		err = (&SQL{db: l.db}).each(ctx, fmt.Sprintf(query, "COALESCE("+by+", 0)", quota, "COUNT(*)", TypeConsume), func(rows *sql.Rows) error { return add(rows.Scan) })
	}
	if err != nil {
		return nil, fmt.Errorf("sum New API's logs by %s: %w", by, err)
	}
	return sums, nil
}

// Bounds of a copy (L7). A batch is what is in memory; the margin is how far a later run goes back: rows of transactions that
// were open beside a higher id, or of nodes whose clocks disagree, may have come in below what was read.
const (
	copyRows          = 5000
	marginRows        = 10_000
	marginSeconds     = 600
	maxCopiedText     = 1 << 20 // of content and other; New API's are some hundred bytes
	maxSameSecondRows = 1_000_000
)

// Copy reads the rows from a place on (what fn was given before, or 0) and calls fn with batches of them, in order, and the
// place to go on from. Rows may come again after an error or a kill, as they are: the id of a row is made of its columns.
func (l *Logs) Copy(ctx context.Context, from int64, fn func(rows []Row, next int64) error) error {
	var err error
	switch {
	case l.ch != nil && from == 0:
		err = l.copyClickHouse(ctx, math.MinInt64, fn)
	case l.ch != nil:
		err = l.copyClickHouse(ctx, from-marginSeconds, fn)
	default:
		err = l.copySQL(ctx, from-marginRows, fn)
	}
	if err != nil {
		return fmt.Errorf("copy New API's logs: %w", err)
	}
	return nil
}

// loose reads a column whatever is in it: NULL, or in SQLite a value of another type than the column's.
func (l *Logs) loose(column string) string {
	switch kind := "TEXT"; {
	case l.mysql:
		return notNull(column)
	case numeric[strings.Trim(column, "`")]:
		return "CAST(" + notNull(column) + " AS INTEGER)"
	default:
		return "CAST(" + notNull(column) + " AS " + kind + ")"
	}
}

func (l *Logs) copySQL(ctx context.Context, after int64, fn func([]Row, int64) error) error {
	columns, _ := l.table.selects(&where{}, l.loose)
	query := fmt.Sprintf("SELECT %s FROM logs WHERE id > ? ORDER BY id LIMIT %d", columns, copyRows)
	beside := &SQL{db: l.db}
	for {
		rows := make([]Row, 0, copyRows)
		if err := beside.entries(ctx, query, []any{after}, func(e Entry) {
			rows, after = append(rows, rowOf(&e, 0)), e.ID
		}); err != nil {
			return err
		}
		if len(rows) == 0 {
			return nil
		}
		if err := fn(rows, after); err != nil {
			return err
		}
		if len(rows) < copyRows {
			return nil
		}
	}
}

// copyClickHouse reads in the order of the table's key, then of all columns: rows have no id there, so equal ones must stand
// side by side to be told apart by number.
func (l *Logs) copyClickHouse(ctx context.Context, from int64, fn func([]Row, int64) error) error {
	columns, _ := l.table.selects(&where{}, typed)
	query := "SELECT " + columns + " FROM logs WHERE created_at >= ? ORDER BY created_at, request_id"
	if !strings.Contains(columns, "toString(request_id)") {
		query = strings.TrimSuffix(query, ", request_id")
	}
	for _, c := range l.table.columns {
		if strings.Contains(columns, c) && c != "created_at" && c != "request_id" {
			query += ", `" + c + "`"
		}
	}
	rows, second, last, copies := make([]Row, 0, copyRows), from, Entry{}, int64(0)
	err := l.ch.each(ctx, query, func(r driver.Rows) error {
		var e Entry
		if err := r.Scan(e.fields()...); err != nil {
			return err
		}
		if e.CreatedAt != second && len(rows) >= copyRows || len(rows) >= maxSameSecondRows {
			if err := fn(rows, second); err != nil {
				return err
			}
			rows = rows[:0]
		}
		if copies++; e != last {
			copies = 0
		}
		last, second = e, e.CreatedAt
		rows = append(rows, rowOf(&e, copies))
		return nil
	}, from)
	if err != nil || len(rows) == 0 {
		return err
	}
	return fn(rows, second)
}

// rowOf makes the row of a copied entry. copies tells entries apart that have no id and are equal.
func rowOf(e *Entry, copies int64) Row {
	row := Row{
		Partition: PartImported, Offset: e.ID, Kind: KindImported,
		UserID: e.UserID, CreatedAt: min(max(e.CreatedAt, 0), maxCreatedAt), Type: int(min(max(e.Type, math.MinInt32), math.MaxInt32)), Content: clip(e.Content, maxCopiedText),
		Username: clip(e.Username, maxNameBytes), TokenName: clip(e.TokenName, maxNameBytes), ModelName: clip(e.ModelName, maxNameBytes),
		Quota: e.Quota, PromptTokens: e.PromptTokens, CompletionTokens: e.CompletionTokens, UseTime: e.UseTime, IsStream: e.IsStream,
		ChannelID: e.ChannelID, TokenID: e.TokenID, Group: clip(e.Group, maxNameBytes), IP: clip(e.IP, maxNameBytes),
		RequestID: clip(e.RequestID, maxRequestBytes), UpstreamRequestID: clip(e.UpstreamRequestID, maxUpstreamBytes), Other: clip(e.Other, maxCopiedText),
	}
	row.EventID = copiedID(e, copies)
	return row
}

// copiedID makes a UUID (version 8) of everything in an entry, so that the same row has the same id wherever it is read.
func copiedID(e *Entry, copies int64) ledger.ID {
	text, err := json.Marshal(e)
	if err != nil {
		panic("usagelog: an entry does not encode: " + err.Error())
	}
	sum := sha256.Sum256(fmt.Appendf(text, " %d", copies))
	id := ledger.ID(sum[:len(ledger.ID{})])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id
}
