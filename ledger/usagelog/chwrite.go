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
	for i := range batches {
		batches[i].place()
	}
	rows, dead := joined(batches)
	for len(rows) > 0 {
		part := rows[:insertable(rows)]
		rows = rows[len(part):]
		if err := c.insert(ctx, "ledger_usage", usageTable, part); err != nil {
			return err
		}
		if err := c.insert(ctx, "ledger_events", eventsTable, part); err != nil {
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

// token names what an INSERT of this process holds: the events, and where they lie. A repeated INSERT of the same rows carries
// the same token, and ClickHouse drops it; that only saves work, copies collapse in any case. Another process has other
// tokens, because a replay must be able to put rows back that somebody deleted.
func (c *ClickHouse) token(rows []Row) string {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a, 64 bit
	h := uint64(offset)
	for i := range rows {
		for _, b := range rows[i].EventID {
			h = (h ^ uint64(b)) * prime
		}
	}
	first, last := &rows[0], &rows[len(rows)-1]
	return fmt.Sprintf("%s-%d-%d-%d-%d-%d-%016x", c.nonce, first.Partition, first.Log, first.Offset, last.Offset, len(rows), h)
}

// insert appends rows to a table. A token makes ClickHouse drop a repeated INSERT.
func (c *ClickHouse) insert(ctx context.Context, table string, columns []column, rows []Row) error {
	set := clickhouse.Settings{"insert_deduplicate": 1, "insert_deduplication_token": c.token(rows)}
	statement := "INSERT INTO " + table + " (" + namesOf(columns) + ")"
	var err error
	if c.http {
		ctx = context.WithValue(clickhouse.Context(ctx, clickhouse.WithSettings(set)), framed{}, true)
		err = c.conn.InsertFormat(ctx, "Native", statement, newBlocks(columns, rows))
	} else {
		ctx = clickhouse.Context(ctx, clickhouse.WithSettings(set))
		err = c.batch(ctx, statement, func(b driver.Batch) error { return fill(b, columns, rows) })
	}
	if err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	return nil
}

// batch runs an INSERT through the driver's own batches.
func (c *ClickHouse) batch(ctx context.Context, statement string, fill func(driver.Batch) error) error {
	batch, err := c.conn.PrepareBatch(ctx, statement)
	if err != nil {
		return err
	}
	defer func() { _ = batch.Close() }() // does nothing after Send
	if err := fill(batch); err != nil {
		return err
	}
	return batch.Send()
}

func (c *ClickHouse) insertDead(ctx context.Context, dead []DeadLetter) error {
	if len(dead) == 0 {
		return nil
	}
	const statement = "INSERT INTO ledger_usage_dead (part, log_gen, log_offset, reason, value, created_at)"
	err := c.batch(ctx, statement, func(batch driver.Batch) error {
		for _, d := range dead {
			err := batch.Append(uint16(d.Partition), uint16(d.Log), d.Offset, clip(d.Reason, maxReasonBytes), string(d.Value), d.At.UnixMilli())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("insert dead letters: %w", err)
	}
	return nil
}

func (c *ClickHouse) storePositions(ctx context.Context, batches []Batch) error {
	const statement = "INSERT INTO ledger_usage_positions (part, log_gen, next_offset, last_offset, last_event, updated_at)"
	err := c.batch(ctx, statement, func(batch driver.Batch) error {
		for _, b := range batches {
			p := b.Position
			err := batch.Append(uint16(b.Partition), uint16(p.Log), p.Offset, p.LastOffset, uuid.UUID(p.LastEvent), c.now().UnixMilli())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store positions: %w", err)
	}
	return nil
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
