package usagelog

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"ledgerline/ledger"
)

// Totals implements Auditor.
func (c *ClickHouse) Totals(ctx context.Context, from, to []int64, fn func(ledger.Account, ledger.Balance) error) error {
	at := make([]Position, len(to))
	for p := range to {
		var err error
		if at[p], err = c.Position(ctx, p); err != nil {
			return fmt.Errorf("sum usage log: %w", err)
		}
	}
	stretch, err := newCut(from, to, at)
	if err != nil {
		return err
	}
	const table = "ledger_usage FINAL"
	signed := func(e string) string { return "toInt64(" + e + ")" }
	total := sums{cut: stretch, keys: map[ledger.Account]ledger.Balance{}, fn: fn}
	err = c.each(ctx, stretch.keyed(table, signed), func(rows driver.Rows) error {
		var k keyedRow
		if err := rows.Scan(k.fields()...); err != nil {
			return err
		}
		total.addKeyed(&k)
		return nil
	})
	if err != nil {
		return fmt.Errorf("sum usage log: %w", err)
	}
	for kind, query := range stretch.grouped(table, signed) {
		err := c.each(ctx, query, func(rows driver.Rows) error {
			account := ledger.Account{Kind: kind}
			var b ledger.Balance
			if err := rows.Scan(&account.ID, &b.Granted, &b.Charged, &b.Requests); err != nil {
				return err
			}
			return total.add(account, b)
		})
		if err != nil {
			return fmt.Errorf("sum usage log: %w", err)
		}
	}
	return total.rest()
}

// Shown implements Auditor.
func (c *ClickHouse) Shown(ctx context.Context, to []int64, fn func(ledger.Account, int64) error) error {
	at := make([]Position, len(to))
	for p := range to {
		var err error
		if at[p], err = c.Position(ctx, p); err != nil {
			return fmt.Errorf("look at shown quotas: %w", err)
		}
	}
	stretch, err := newCut(nil, to, at)
	if err != nil {
		return err
	}
	table, signed := "ledger_usage FINAL", func(e string) string { return "toInt64(" + e + ")" }
	for kind, query := range stretch.shown(table, signed) {
		err := c.each(ctx, query, func(rows driver.Rows) error {
			account, more := ledger.Account{Kind: kind}, int64(0)
			if err := rows.Scan(&account.ID, &more); err != nil {
				return err
			}
			return fn(account, more)
		})
		if err != nil {
			return fmt.Errorf("look at shown quotas: %w", err)
		}
	}
	return nil
}

// scanWindow bounds one query of Scan (L7), in records: about 20 MB.
const scanWindow = 20_000

// Scan implements Auditor. The table is sorted by place, so each query reads just its window.
func (c *ClickHouse) Scan(ctx context.Context, partition int, from, to int64, fn func(offset int64, value []byte) error) error {
	at, err := c.Position(ctx, partition)
	if err != nil {
		return fmt.Errorf("scan usage log: %w", err)
	}
	if from < 0 {
		for log := range at.Log {
			if err := c.scanLog(ctx, Place{partition, log, 0}, math.MaxInt64, fn); err != nil {
				return err
			}
		}
	}
	return c.scanLog(ctx, Place{partition, at.Log, max(from, 0)}, to, fn)
}

func (c *ClickHouse) scanLog(ctx context.Context, from Place, to int64, fn func(offset int64, value []byte) error) error {
	next := from.Offset
	for {
		n := 0
		query := fmt.Sprintf("SELECT log_offset, event FROM ledger_events WHERE part = %d AND log_gen = %d AND log_offset >= %d AND log_offset < %d "+
			"ORDER BY part, log_gen, log_offset LIMIT 1 BY log_offset LIMIT %d", from.Partition, from.Log, next, to, scanWindow)
		err := c.each(ctx, query, func(rows driver.Rows) error {
			var offset int64
			var value []byte
			if err := rows.Scan(&offset, &value); err != nil {
				return err
			}
			n++
			next = offset + 1
			return fn(offset, value)
		})
		if err != nil {
			return fmt.Errorf("scan usage log: %w", err)
		}
		if n < scanWindow {
			return nil
		}
	}
}

// DeadLetters implements Auditor.
func (c *ClickHouse) DeadLetters(ctx context.Context, partition int, after int64, limit int) ([]DeadLetter, error) {
	at, err := c.Position(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of the usage log: %w", err)
	}
	var all []DeadLetter
	query := fmt.Sprintf("SELECT log_offset, reason, value, created_at FROM ledger_usage_dead WHERE part = %d AND log_gen = %d AND log_offset > %d "+
		"ORDER BY log_offset LIMIT 1 BY log_offset LIMIT %d", partition, at.Log, after, limit)
	err = c.each(ctx, query, func(rows driver.Rows) error {
		d := DeadLetter{Place: Place{Partition: partition, Log: at.Log}}
		var ms int64
		if err := rows.Scan(&d.Offset, &d.Reason, &d.Value, &ms); err != nil {
			return err
		}
		d.At = time.UnixMilli(ms)
		all = append(all, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters of the usage log: %w", err)
	}
	return all, nil
}
