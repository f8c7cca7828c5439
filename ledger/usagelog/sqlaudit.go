package usagelog

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"ledgerline/ledger"
)

// Totals implements Auditor.
func (s *SQL) Totals(ctx context.Context, from, to []int64, fn func(ledger.Account, ledger.Balance) error) error {
	at := make([]Position, len(to))
	for p := range to {
		var err error
		if at[p], err = s.Position(ctx, p); err != nil {
			return fmt.Errorf("sum usage log: %w", err)
		}
	}
	c, err := newCut(from, to, at)
	if err != nil {
		return err
	}
	signed := func(e string) string { return e }
	if s.mysql {
		signed = func(e string) string { return "CAST(" + e + " AS SIGNED)" } // sums are decimals there
	}
	total := sums{cut: c, keys: map[ledger.Account]ledger.Balance{}, fn: fn}
	err = s.each(ctx, c.keyed("ledger_usage", signed), func(rows *sql.Rows) error {
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
	for kind, query := range c.grouped("ledger_usage", signed) {
		err := s.each(ctx, query, func(rows *sql.Rows) error {
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

// each calls fn for each row of a query.
func (s *SQL) each(ctx context.Context, query string, fn func(*sql.Rows) error, args ...any) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// scanRows bounds one query of Scan (L7): it holds a connection, and on SQLite the write-ahead log, while fn works.
const scanRows = 2000

// Shown implements Auditor.
func (s *SQL) Shown(ctx context.Context, to []int64, fn func(ledger.Account, int64) error) error {
	at := make([]Position, len(to))
	for p := range to {
		var err error
		if at[p], err = s.Position(ctx, p); err != nil {
			return fmt.Errorf("look at shown quotas: %w", err)
		}
	}
	stretch, err := newCut(nil, to, at)
	if err != nil {
		return err
	}
	table, signed := "ledger_usage", func(e string) string { return e }
	if s.mysql {
		signed = func(e string) string { return "CAST(" + e + " AS SIGNED)" }
	}
	for kind, query := range stretch.shown(table, signed) {
		err := s.each(ctx, query, func(rows *sql.Rows) error {
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

// Scan implements Auditor.
func (s *SQL) Scan(ctx context.Context, partition int, from, to int64, fn func(offset int64, value []byte) error) error {
	at, err := s.Position(ctx, partition)
	if err != nil {
		return fmt.Errorf("scan usage log: %w", err)
	}
	if from < 0 {
		for log := range at.Log {
			if err := s.scanLog(ctx, Place{partition, log, 0}, math.MaxInt64, fn); err != nil {
				return err
			}
		}
	}
	return s.scanLog(ctx, Place{partition, at.Log, max(from, 0)}, to, fn)
}

func (s *SQL) scanLog(ctx context.Context, from Place, to int64, fn func(offset int64, value []byte) error) error {
	next := from.Offset
	for {
		n := 0
		err := s.each(ctx, fmt.Sprintf("SELECT log_offset, event FROM ledger_events WHERE part = ? AND log_gen = ? AND log_offset >= ? "+
			"AND log_offset < ? ORDER BY log_offset LIMIT %d", scanRows), func(rows *sql.Rows) error {
			var offset int64
			var value sql.RawBytes
			if err := rows.Scan(&offset, &value); err != nil {
				return err
			}
			n++
			next = offset + 1
			return fn(offset, value)
		}, from.Partition, from.Log, next, to)
		if err != nil {
			return fmt.Errorf("scan usage log: %w", err)
		}
		if n < scanRows {
			return nil
		}
	}
}

// DeadLetters implements Auditor.
func (s *SQL) DeadLetters(ctx context.Context, partition int, after int64, limit int) ([]DeadLetter, error) {
	at, err := s.Position(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of the usage log: %w", err)
	}
	var all []DeadLetter
	err = s.each(ctx, fmt.Sprintf("SELECT log_offset, reason, value, created_at FROM ledger_usage_dead WHERE part = ? AND log_gen = ? "+
		"AND log_offset > ? ORDER BY log_offset LIMIT %d", limit), func(rows *sql.Rows) error {
		d := DeadLetter{Place: Place{Partition: partition, Log: at.Log}}
		var ms int64
		if err := rows.Scan(&d.Offset, &d.Reason, &d.Value, &ms); err != nil {
			return err
		}
		d.At = time.UnixMilli(ms)
		all = append(all, d)
		return nil
	}, partition, at.Log, after)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of the usage log: %w", err)
	}
	return all, nil
}

// SetTTL implements Keeper. Rows of a SQL database do not expire by themselves, only by DeleteBefore.
func (s *SQL) SetTTL(context.Context, int, time.Time) error { return nil }

// deleteRows bounds one DELETE (L7): locks and undo of a small one harm nobody.
const deleteRows = 1000

// DeleteBefore implements Keeper.
func (s *SQL) DeleteBefore(ctx context.Context, before, needed time.Time) (int64, error) {
	if err := retained(before, needed); err != nil {
		return 0, err
	}
	tables := []string{"ledger_usage", "ledger_events"}
	if s.logs.present() {
		tables = append(tables, "logs")
	}
	var gone int64
	for _, table := range tables {
		n, err := s.deleteFrom(ctx, table, before.Unix())
		if table != "ledger_events" {
			gone += n
		}
		if err != nil {
			return gone, fmt.Errorf("delete from %s: %w", table, err)
		}
	}
	return gone, nil
}

func (s *SQL) deleteFrom(ctx context.Context, table string, before int64) (int64, error) {
	query := fmt.Sprintf("DELETE FROM %s WHERE rowid IN (SELECT rowid FROM %s WHERE created_at < ? LIMIT %d)", table, table, deleteRows) //nolint:gosec // tables and columns are our own, values are parameters
	if s.mysql {
		query = fmt.Sprintf("DELETE FROM %s WHERE created_at < ? LIMIT %d", table, deleteRows)
	}
	var gone int64
	for {
		result, err := s.write.ExecContext(ctx, query, before)
		if err != nil {
			return gone, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return gone, err
		}
		gone += n
		if n < deleteRows {
			return gone, nil
		}
	}
}
