package usagelog

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"ledgerline/ledger"
)

// BillSpan is a stretch of New API's bills: rows of type consume, by the time they were made.
type BillSpan struct {
	Since int64 `json:"since,omitempty"` // Unix seconds; 0 = from the first
	Until int64 `json:"until,omitempty"` // Unix seconds, exclusive; 0 = to the last
}

// BillsAt is where reading bills begins and ends: ids, or in ClickHouse, whose rows have none, seconds. Both ends are read.
type BillsAt struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

// Bounds of a read (L7): billRows rows are in memory at once, with their JSON a few megabytes. What is cut off the JSON is no
// JSON any more; New API's has some hundred bytes, and a few thousand where it holds an expression.
const (
	billRows      = 4000
	maxOtherChars = 16_384
)

// billColumns are the columns of a bill, in the order of billFields.
var billColumns = []string{"id", "user_id", "created_at", "quota", "prompt_tokens", "completion_tokens", "model_name", "`group`", "request_id", "other"}

func billFields(b *ledger.LoggedBill) []any {
	return []any{&b.ID, &b.UserID, &b.CreatedAt, &b.Quota, &b.Prompt, &b.Completion, &b.Model, &b.Group, &b.RequestID, &b.Other}
}

// columnsOfBills reads what the table has: older releases have fewer columns.
func (l *Logs) columnsOfBills(read func(column string) string) string {
	all := make([]string, len(billColumns))
	for i, c := range billColumns {
		if !slices.Contains(l.table.columns, strings.Trim(c, "`")) {
			c = emptyOf(c)
		}
		if all[i] = read(c); c == "other" {
			all[i] = fmt.Sprintf("SUBSTRING(%s, 1, %d)", all[i], maxOtherChars)
		}
	}
	return strings.Join(all, ", ")
}

// conditions are the WHERE of a span's bills.
func (s BillSpan) conditions() string {
	return strings.TrimPrefix(fmt.Sprintf("%s AND type = %d", s.times(), TypeConsume), " AND ")
}

// times are the conditions on the time; empty if there are none.
func (s BillSpan) times() string {
	var where []string
	if s.Since > 0 {
		where = append(where, fmt.Sprintf("created_at >= %d", s.Since))
	}
	if s.Until > 0 {
		where = append(where, fmt.Sprintf("created_at < %d", s.Until))
	}
	return strings.Join(where, " AND ")
}

// FindBills says between which rows the bills of a span lie now; ok is false if there is no row. Rows that are written later are
// beyond the end, so that a report of a running New API is of one moment.
func (l *Logs) FindBills(ctx context.Context, span BillSpan) (at BillsAt, ok bool, err error) {
	var first, last sql.NullInt64
	if l.ch != nil {
		// An aggregate over no rows is 0 there; a second that is still running is left to a later check.
		var n uint64
		err = l.ch.conn.QueryRow(ctx, "SELECT count(), toInt64(min(created_at)), toInt64(least(max(created_at), toUnixTimestamp(now()) - 1)) FROM logs WHERE "+span.conditions()).
			Scan(&n, &first.Int64, &last.Int64)
		first.Valid = n > 0
	} else {
		// Without a condition this looks at two rows, with one on the time at a stretch of an index, and none of the type would be either.
		query := "SELECT MIN(id), MAX(id) FROM logs"
		if times := span.times(); times != "" {
			query += " WHERE " + times
		}
		err = l.db.QueryRowContext(ctx, query).Scan(&first, &last)
	}
	if err != nil {
		return at, false, fmt.Errorf("find the bills in New API's logs: %w", err)
	}
	return BillsAt{first.Int64, last.Int64}, first.Valid && first.Int64 <= last.Int64, nil
}

// Bills reads the bills of a span that lie within the bounds, in order, and calls fn with batches of them. next is where
// reading goes on after what fn was given so far: a BillsAt that begins there gives exactly the rest. It is 0 in the middle of
// a second of ClickHouse's: there is no going on from there.
func (l *Logs) Bills(ctx context.Context, span BillSpan, at BillsAt, fn func(bills []ledger.LoggedBill, next int64) error) error {
	read := l.billsSQL
	if l.ch != nil {
		read = l.billsClickHouse
	}
	if err := read(ctx, span, at, fn); err != nil {
		return fmt.Errorf("read the bills in New API's logs: %w", err)
	}
	return nil
}

func (l *Logs) billsSQL(ctx context.Context, span BillSpan, at BillsAt, fn func([]ledger.LoggedBill, int64) error) error {
	table := "logs"
	if l.mysql {
		table += " FORCE INDEX (PRIMARY)" // an index on the time would be sorted anew for every page
	}
	query := fmt.Sprintf("SELECT %s FROM %s WHERE id >= ? AND id <= ? AND %s ORDER BY id LIMIT %d",
		l.columnsOfBills(l.loose), table, span.conditions(), billRows)
	bills := make([]ledger.LoggedBill, 0, billRows)
	for next := at.First; next <= at.Last; {
		bills = bills[:0]
		err := (&SQL{db: l.db}).each(ctx, query, func(rows *sql.Rows) error {
			var b ledger.LoggedBill
			err := rows.Scan(billFields(&b)...)
			bills = append(bills, b)
			return err
		}, next, at.Last)
		if err != nil {
			return err
		}
		if len(bills) < billRows || bills[len(bills)-1].ID >= at.Last {
			return fn(bills, at.Last+1)
		}
		next = bills[len(bills)-1].ID + 1
		if err := fn(bills, next); err != nil {
			return err
		}
	}
	return nil
}

// billsClickHouse streams: the order is that of the table's key, so nothing is sorted.
func (l *Logs) billsClickHouse(ctx context.Context, span BillSpan, at BillsAt, fn func([]ledger.LoggedBill, int64) error) error {
	query := fmt.Sprintf("SELECT %s FROM logs WHERE created_at >= %d AND created_at <= %d AND %s ORDER BY created_at",
		l.columnsOfBills(typed), at.First, at.Last, span.conditions())
	bills := make([]ledger.LoggedBill, 0, billRows)
	err := l.ch.each(ctx, query, func(rows driver.Rows) error {
		var b ledger.LoggedBill
		var other string
		fields := billFields(&b)
		fields[len(fields)-1] = &other
		if err := rows.Scan(fields...); err != nil {
			return err
		}
		b.Other = []byte(other)
		if len(bills) >= billRows {
			next := b.CreatedAt
			if bills[len(bills)-1].CreatedAt == next {
				next = 0
			}
			if err := fn(bills, next); err != nil {
				return err
			}
			bills = bills[:0]
		}
		bills = append(bills, b)
		return nil
	})
	if err != nil {
		return err
	}
	return fn(bills, at.Last+1)
}
