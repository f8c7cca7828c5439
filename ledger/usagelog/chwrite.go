package usagelog

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"ledgerline/ledger"
)

// Bounds of one INSERT (L7). ClickHouse refuses a block of more than 100 partitions (max_partitions_per_insert_block), and
// months are partitions: events whose clocks disagree that much go in several. A span of 30 days meets up to three months.
const (
	maxInsertRows  = 100_000
	maxInsertBytes = 64 << 20
	maxInsertSpans = 32
	spanSeconds    = 30 * 86400
)

// Append implements Writer.
func (c *ClickHouse) Append(ctx context.Context, batches ...Batch) error {
	if err := c.append(ctx, batches); err != nil {
		return fmt.Errorf("append to usage log: %w", err)
	}
	return nil
}

func (c *ClickHouse) append(ctx context.Context, batches []Batch) error {
	rows, dead := joined(batches)
	for len(rows) > 0 {
		part := rows[:insertable(rows)]
		rows = rows[len(part):]
		token := tokenOf(part)
		err := c.insert(ctx, "ledger_usage", usageColumns, token, func(b driver.Batch) error { return fillUsage(b, part) })
		if err != nil {
			return err
		}
		err = c.insert(ctx, "ledger_events", "part, log_gen, log_offset, created_at, event", token,
			func(b driver.Batch) error { return fillEvents(b, part) })
		if err != nil {
			return err
		}
	}
	if err := c.insertDead(ctx, dead); err != nil {
		return err
	}
	// The commit point: everything below the positions is stored by now.
	return c.storePositions(ctx, batches)
}

// joined puts the batches together, for one INSERT: each makes a part that must be merged later, and few large ones are
// much cheaper.
func joined(batches []Batch) (rows []Row, dead []DeadLetter) {
	if len(batches) == 1 {
		return batches[0].Rows, batches[0].Dead
	}
	n := 0
	for _, b := range batches {
		n += len(b.Rows)
	}
	rows = make([]Row, 0, n)
	for _, b := range batches {
		rows, dead = append(rows, b.Rows...), append(dead, b.Dead...)
	}
	return rows, dead
}

// insertable returns how many of the rows fit one INSERT, at least one.
func insertable(rows []Row) int {
	var spans []int64
	bytes := 0
	for i := range rows {
		r := &rows[i]
		bytes += len(r.Event) + len(r.Other) + len(r.Content)
		if span := r.CreatedAt / spanSeconds; !slices.Contains(spans, span) {
			spans = append(spans, span)
		}
		if i > 0 && (i == maxInsertRows || bytes > maxInsertBytes || len(spans) > maxInsertSpans) {
			return i
		}
	}
	return len(rows)
}

// tokenOf names what an INSERT holds: the events, and where they lie. A repeated INSERT of the same rows carries the same
// token, and ClickHouse drops it; that only saves work, copies collapse in any case.
func tokenOf(rows []Row) string {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a, 64 bit
	h := uint64(offset)
	for i := range rows {
		for _, b := range rows[i].EventID {
			h = (h ^ uint64(b)) * prime
		}
	}
	first, last := &rows[0], &rows[len(rows)-1]
	return fmt.Sprintf("%d-%d-%d-%d-%d-%016x", first.Partition, first.Log, first.Offset, last.Offset, len(rows), h)
}

// insert runs one INSERT; an empty token means none.
func (c *ClickHouse) insert(ctx context.Context, table, columns, token string, fill func(driver.Batch) error) error {
	if token != "" {
		ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
			"insert_deduplicate": 1, "insert_deduplication_token": token,
		}))
	}
	batch, err := c.conn.PrepareBatch(ctx, "INSERT INTO "+table+" ("+columns+")")
	if err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	defer func() { _ = batch.Close() }() // does nothing after Send
	if err := fill(batch); err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	return nil
}

// columns appends whole columns to a batch, in order.
type columns struct {
	batch driver.Batch
	next  int
	err   error
}

// column appends one column: value of each row.
func column[T any](c *columns, rows []Row, value func(*Row) T) {
	if c.err != nil {
		return
	}
	all := make([]T, len(rows))
	for i := range rows {
		all[i] = value(&rows[i])
	}
	c.err = c.batch.Column(c.next).Append(all)
	c.next++
}

// fillUsage appends the columns of usageColumns.
func fillUsage(batch driver.Batch, rows []Row) error {
	c := &columns{batch: batch}
	column(c, rows, func(r *Row) uuid.UUID { return uuid.UUID(r.EventID) })
	column(c, rows, func(r *Row) uint16 { return uint16(r.Partition) })
	column(c, rows, func(r *Row) uint16 { return uint16(r.Log) })
	column(c, rows, func(r *Row) int64 { return r.Offset })
	column(c, rows, func(r *Row) string { return string(r.Kind) })
	column(c, rows, func(r *Row) string { return r.Moves })
	column(c, rows, func(r *Row) uuid.UUID { return uuid.UUID(r.Producer) })
	column(c, rows, func(r *Row) int64 { return r.Seq })
	column(c, rows, func(r *Row) int64 { return r.Prev })
	column(c, rows, func(r *Row) string { return r.Key })
	column(c, rows, func(r *Row) int64 { return r.Granted })
	column(c, rows, func(r *Row) int64 { return r.Charged })
	column(c, rows, func(r *Row) int64 { return r.Requests })
	column(c, rows, func(r *Row) string { return r.Node })
	fillEntry(c, rows)
	return c.err
}

// fillEntry appends the columns of entryColumns.
func fillEntry(c *columns, rows []Row) {
	column(c, rows, func(r *Row) int64 { return r.UserID })
	column(c, rows, func(r *Row) int64 { return r.CreatedAt })
	column(c, rows, func(r *Row) int32 { return int32(r.Type) })
	column(c, rows, func(r *Row) string { return r.Content })
	column(c, rows, func(r *Row) string { return r.Username })
	column(c, rows, func(r *Row) string { return r.TokenName })
	column(c, rows, func(r *Row) string { return r.ModelName })
	column(c, rows, func(r *Row) int64 { return r.Quota })
	column(c, rows, func(r *Row) int64 { return r.PromptTokens })
	column(c, rows, func(r *Row) int64 { return r.CompletionTokens })
	column(c, rows, func(r *Row) int64 { return r.UseTime })
	column(c, rows, func(r *Row) uint8 {
		if r.IsStream {
			return 1
		}
		return 0
	})
	column(c, rows, func(r *Row) int64 { return r.ChannelID })
	column(c, rows, func(r *Row) int64 { return r.TokenID })
	column(c, rows, func(r *Row) string { return r.Group })
	column(c, rows, func(r *Row) string { return r.IP })
	column(c, rows, func(r *Row) string { return r.RequestID })
	column(c, rows, func(r *Row) string { return r.UpstreamRequestID })
	column(c, rows, func(r *Row) string { return r.Other })
}

func fillEvents(batch driver.Batch, rows []Row) error {
	c := &columns{batch: batch}
	column(c, rows, func(r *Row) uint16 { return uint16(r.Partition) })
	column(c, rows, func(r *Row) uint16 { return uint16(r.Log) })
	column(c, rows, func(r *Row) int64 { return r.Offset })
	column(c, rows, func(r *Row) int64 { return r.CreatedAt })
	column(c, rows, func(r *Row) []byte { return r.Event })
	return c.err
}

func (c *ClickHouse) insertDead(ctx context.Context, dead []DeadLetter) error {
	if len(dead) == 0 {
		return nil
	}
	return c.insert(ctx, "ledger_usage_dead", "part, log_gen, log_offset, reason, value, created_at", "", func(batch driver.Batch) error {
		for _, d := range dead {
			err := batch.Append(uint16(d.Partition), uint16(d.Log), d.Offset, clip(d.Reason, maxReasonBytes), string(d.Value), d.At.UnixMilli())
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *ClickHouse) storePositions(ctx context.Context, batches []Batch) error {
	return c.insert(ctx, "ledger_usage_positions", "part, log_gen, next_offset, last_offset, last_event, updated_at", "",
		func(batch driver.Batch) error {
			for _, b := range batches {
				p := b.Position
				err := batch.Append(uint16(b.Partition), uint16(p.Log), p.Offset, p.LastOffset, uuid.UUID(p.LastEvent), c.now().UnixMilli())
				if err != nil {
					return err
				}
			}
			return nil
		})
}

// Position implements Writer. The highest position counts, see Position.
func (c *ClickHouse) Position(ctx context.Context, partition int) (Position, error) {
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT toInt64(log_gen), next_offset, last_offset, last_event, updated_at "+
		"FROM ledger_usage_positions WHERE part = %d ORDER BY version DESC LIMIT 1", partition))
	if err != nil {
		return Position{}, fmt.Errorf("read position of the usage log: %w", err)
	}
	defer rows.Close()
	p := Position{LastOffset: -1}
	for rows.Next() {
		var log, at int64
		var event uuid.UUID
		if err := rows.Scan(&log, &p.Offset, &p.LastOffset, &event, &at); err != nil {
			return Position{}, fmt.Errorf("read position of the usage log: %w", err)
		}
		p.Log, p.LastEvent, p.At = int(log), ledger.ID(event), time.UnixMilli(at)
	}
	if err := rows.Err(); err != nil {
		return Position{}, fmt.Errorf("read position of the usage log: %w", err)
	}
	return p, nil
}

// AdoptLog implements Writer.
func (c *ClickHouse) AdoptLog(ctx context.Context, partition int, offset int64) error {
	have, err := c.Position(ctx, partition)
	if err == nil {
		err = c.storePositions(ctx, []Batch{{Partition: partition, Position: Position{Log: have.Log + 1, Offset: offset, LastOffset: -1}}})
	}
	if err != nil {
		return fmt.Errorf("adopt log: %w", err)
	}
	return nil
}
