package usagelog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"ledgerline/ledger"
)

// Bounds of one INSERT (L7): the first keeps the number of parameters below SQLite's 32,766, the second the statement below
// any max_allowed_packet in use.
const (
	maxStatementRows  = 200
	maxStatementBytes = 512 << 10
)

// usageColumns are the columns of ledger_usage that are written, in the order of usageValues.
const usageColumns = "event_id, part, log_gen, log_offset, kind, moves, producer, seq, prev, event_key, granted, charged, " +
	"requests, node, " + entryColumns

// usageArgs is the number of usageColumns.
const usageArgs = 33

// usageValues appends the values of usageColumns.
func usageValues(dst []any, r *Row) []any {
	return append(dst, r.EventID[:], r.Partition, r.Log, r.Offset, string(r.Kind), r.Moves, r.Producer[:], r.Seq, r.Prev,
		r.Key, r.Granted, r.Charged, r.Requests, r.Node, r.UserID, r.CreatedAt, r.Type, r.Content, r.Username,
		r.TokenName, r.ModelName, r.Quota, r.PromptTokens, r.CompletionTokens, r.UseTime, r.IsStream, r.ChannelID, r.TokenID,
		r.Group, r.IP, r.RequestID, r.UpstreamRequestID, r.Other)
}

// A copy of an event differs from the row that is there in its place alone (and in who sent it). The lower place stays. A
// copy at the same place is written over the row: it is the same, unless somebody edited the row and a replay brings it back.
var (
	lowerPlaceSQLite = func() string {
		var set strings.Builder
		for i, c := range strings.Split(usageColumns, ", ") {
			if i > 0 {
				set.WriteString(", ")
			}
			set.WriteString(c + " = excluded." + c)
		}
		return " ON CONFLICT (event_id) DO UPDATE SET " + set.String() +
			" WHERE (excluded.log_gen, excluded.log_offset) <= (ledger_usage.log_gen, ledger_usage.log_offset)"
	}()
	// MySQL assigns from left to right and sees what it assigned, so the place comes last: what is assigned of it before the
	// last is the new row's or equal to it.
	lowerPlaceMySQL = func() string {
		const lower = "(VALUES(log_gen), VALUES(log_offset)) <= (log_gen, log_offset)"
		var set strings.Builder
		for _, c := range strings.Split(usageColumns, ", ") {
			if c != "log_gen" && c != "log_offset" {
				set.WriteString(c + " = IF(" + lower + ", VALUES(" + c + "), " + c + "), ")
			}
		}
		return " ON DUPLICATE KEY UPDATE " + set.String() +
			"log_offset = IF(" + lower + ", VALUES(log_offset), log_offset), log_gen = LEAST(log_gen, VALUES(log_gen))"
	}()
)

// Append implements Writer: one transaction.
func (s *SQL) Append(ctx context.Context, batches ...Batch) error {
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		for i := range batches {
			batches[i].place()
			if err := s.appendBatch(ctx, tx, &batches[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("append to usage log: %w", err)
	}
	return nil
}

func (s *SQL) appendBatch(ctx context.Context, tx *sql.Tx, b *Batch) error {
	if err := s.insertRows(ctx, tx, b); err != nil {
		return fmt.Errorf("insert rows: %w", err)
	}
	if err := s.insertEvents(ctx, tx, b); err != nil {
		return fmt.Errorf("insert events: %w", err)
	}
	for _, d := range b.Dead {
		if err := s.insertDead(ctx, tx, &d); err != nil {
			return fmt.Errorf("insert dead letter: %w", err)
		}
	}
	if err := s.storePosition(ctx, tx, b.Partition, b.Position); err != nil {
		return fmt.Errorf("store position: %w", err)
	}
	return nil
}

// transaction runs fn in a write transaction. READ COMMITTED: rows are known by unique keys, gap locks would only bring
// deadlocks.
func (s *SQL) transaction(ctx context.Context, fn func(*sql.Tx) error) error {
	var options *sql.TxOptions
	if s.mysql {
		options = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	tx, err := s.write.BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (s *SQL) insertRows(ctx context.Context, tx *sql.Tx, b *Batch) error {
	tail := lowerPlaceSQLite
	if s.mysql {
		tail = lowerPlaceMySQL
	}
	insert := inserter{tx: tx, head: "INSERT INTO ledger_usage (" + usageColumns + ") VALUES ", tail: tail, columns: usageArgs}
	for i := range b.Rows {
		r := &b.Rows[i]
		insert.args = usageValues(insert.args, r)
		if err := insert.added(ctx, len(r.Content)+len(r.Other)); err != nil {
			return err
		}
	}
	return insert.flush(ctx)
}

func (s *SQL) insertEvents(ctx context.Context, tx *sql.Tx, b *Batch) error {
	insert := inserter{
		tx: tx, columns: 5, tail: s.rewrite("part, log_gen, log_offset", "event"),
		head: "INSERT INTO ledger_events (part, log_gen, log_offset, created_at, event) VALUES ",
	}
	for i := range b.Rows {
		r := &b.Rows[i]
		insert.args = append(insert.args, r.Partition, r.Log, r.Offset, r.CreatedAt, r.Event)
		if err := insert.added(ctx, len(r.Event)); err != nil {
			return err
		}
	}
	return insert.flush(ctx)
}

// keep ends an INSERT so that a row that is there stays as it is.
func (s *SQL) keep(keys string) string {
	if s.mysql {
		first, _, _ := strings.Cut(keys, ",")
		return " ON DUPLICATE KEY UPDATE " + first + " = " + first
	}
	return " ON CONFLICT (" + keys + ") DO NOTHING"
}

// rewrite ends an INSERT so that a column of a row that is there becomes what it should be.
func (s *SQL) rewrite(keys, column string) string {
	if s.mysql {
		return " ON DUPLICATE KEY UPDATE " + column + " = VALUES(" + column + ")"
	}
	return " ON CONFLICT (" + keys + ") DO UPDATE SET " + column + " = excluded." + column
}

func (s *SQL) insertDead(ctx context.Context, tx *sql.Tx, d *DeadLetter) error {
	value := d.Value
	if value == nil {
		value = []byte{}
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO ledger_usage_dead (part, log_gen, log_offset, reason, value, created_at) "+ //nolint:gosec // tables and columns are our own, values are parameters
		"VALUES (?, ?, ?, ?, ?, ?)"+s.keep("part, log_gen, log_offset"),
		d.Partition, d.Log, d.Offset, clip(d.Reason, maxReasonBytes), value, d.At.UnixMilli())
	return err
}

// maxReasonBytes bounds the reason of a dead letter: a line for a person (L7).
const maxReasonBytes = 1000

// inserter gathers the rows of multi-row INSERTs.
type inserter struct {
	tx         *sql.Tx
	head, tail string
	columns    int
	args       []any
	bytes      int
}

// added tells that the arguments of one more row, of about that many bytes, are in args.
func (i *inserter) added(ctx context.Context, bytes int) error {
	i.bytes += bytes
	if len(i.args) < maxStatementRows*i.columns && i.bytes < maxStatementBytes {
		return nil
	}
	return i.flush(ctx)
}

func (i *inserter) flush(ctx context.Context) error {
	if len(i.args) == 0 {
		return nil
	}
	row := "(" + strings.Repeat("?,", i.columns-1) + "?)"
	query := i.head + strings.Repeat(row+",", len(i.args)/i.columns-1) + row + i.tail //nolint:gosec // tables and columns are our own, values are parameters
	if _, err := i.tx.ExecContext(ctx, query, i.args...); err != nil {
		return err
	}
	i.args, i.bytes = i.args[:0], 0
	return nil
}

// storePosition raises a position; a lower one changes nothing.
func (s *SQL) storePosition(ctx context.Context, tx *sql.Tx, partition int, p Position) error {
	lock := ""
	if s.mysql {
		lock = " FOR UPDATE"
	}
	have, err := scanPosition(tx.QueryRowContext(ctx, positionQuery+lock, partition))
	if err == nil && (p.Log < have.Log || p.Log == have.Log && p.Offset <= have.Offset) {
		return nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	query := "UPDATE ledger_usage_positions SET log_gen = ?, next_offset = ?, last_offset = ?, last_event = ?, updated_at = ? WHERE part = ?"
	if err != nil {
		query = "INSERT INTO ledger_usage_positions (log_gen, next_offset, last_offset, last_event, updated_at, part) VALUES (?, ?, ?, ?, ?, ?)"
	}
	_, err = tx.ExecContext(ctx, query, p.Log, p.Offset, p.LastOffset, p.LastEvent[:], s.now().UnixMilli(), partition)
	return err
}

const positionQuery = "SELECT log_gen, next_offset, last_offset, last_event, updated_at FROM ledger_usage_positions WHERE part = ?"

func scanPosition(row *sql.Row) (Position, error) {
	var p Position
	var event []byte
	var at int64
	if err := row.Scan(&p.Log, &p.Offset, &p.LastOffset, &event, &at); err != nil {
		return Position{}, err
	}
	if len(event) != len(ledger.ID{}) {
		return Position{}, fmt.Errorf("id of the last event has %d bytes", len(event))
	}
	p.LastEvent = ledger.ID(event)
	p.At = time.UnixMilli(at)
	return p, nil
}

// Position implements Writer.
func (s *SQL) Position(ctx context.Context, partition int) (Position, error) {
	p, err := scanPosition(s.db.QueryRowContext(ctx, positionQuery, partition))
	if errors.Is(err, sql.ErrNoRows) {
		return Position{LastOffset: -1}, nil
	}
	if err != nil {
		return Position{}, fmt.Errorf("read position of the usage log: %w", err)
	}
	return p, nil
}

// AdoptLog implements Writer.
func (s *SQL) AdoptLog(ctx context.Context, partition int, offset int64) error {
	have, err := s.Position(ctx, partition)
	if err != nil {
		return fmt.Errorf("adopt log: %w", err)
	}
	err = s.transaction(ctx, func(tx *sql.Tx) error {
		return s.storePosition(ctx, tx, partition, Position{Log: have.Log + 1, Offset: offset, LastOffset: -1})
	})
	if err != nil {
		return fmt.Errorf("adopt log: %w", err)
	}
	return nil
}
