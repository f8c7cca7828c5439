package sqlstore

import (
	"context"
	"fmt"
	"math"
	"strings"
)

// columnRange is what an integer column of New API's can hold: older versions have int where newer ones have bigint.
type columnRange struct{ low, high int64 }

// wide is the range of bigint; its lowest value is left out, because MySQL reads that literal as a decimal.
var wide = columnRange{-math.MaxInt64, math.MaxInt64}

func (r columnRange) clip(n int64) int64 { return min(max(n, r.low), r.high) }

func (r columnRange) holds(n int64) bool { return r.low <= n && n <= r.high }

// newAPIColumns are the columns that flushes write.
var newAPIColumns = []string{
	"users.quota", "users.used_quota", "users.request_count",
	"tokens.remain_quota", "tokens.used_quota", "channels.used_quota",
}

// column returns the range of "table.column". SQLite's integers have 64 bits whatever the declared type.
func (s *Store) column(name string) columnRange {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.columns[name]; ok {
		return r
	}
	return wide
}

// loadColumns reads the column types once. A column that is widened later is used to its old width until the next start.
func (s *Store) loadColumns(ctx context.Context, tx *Tx) error {
	s.mu.Lock()
	known := s.columns != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	columns := map[string]columnRange{}
	if s.mysql {
		q := "SELECT CONCAT(LOWER(table_name), '.', LOWER(column_name)), LOWER(data_type), LOWER(column_type) FROM information_schema.columns" +
			" WHERE table_schema = DATABASE() AND table_name IN ('users', 'tokens', 'channels')"
		err := tx.each(ctx, q, nil, func(scan func(...any) error) error {
			var name, kind, full string
			if err := scan(&name, &kind, &full); err != nil {
				return err
			}
			columns[name] = rangeOf(kind, strings.Contains(full, "unsigned"))
			return nil
		})
		if err != nil {
			return fmt.Errorf("read the types of New API's columns: %w", err)
		}
		for _, name := range newAPIColumns {
			if _, ok := columns[name]; !ok {
				return fmt.Errorf("the database has no column %s: is it New API's, and migrated?", name)
			}
		}
	}
	s.mu.Lock()
	s.columns = columns
	s.mu.Unlock()
	return nil
}

func rangeOf(kind string, unsigned bool) columnRange {
	bits := map[string]uint{"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "integer": 32}[kind]
	switch {
	case bits == 0 && unsigned:
		return columnRange{0, math.MaxInt64}
	case bits == 0:
		return wide
	case unsigned:
		return columnRange{0, 1<<bits - 1}
	}
	return columnRange{-1 << (bits - 1), 1<<(bits-1) - 1}
}

// raise returns an expression for a counter of table t raised by an expression of s, held within the counter's range and
// never overflowing on the way there.
func (s *Store) raise(table, column, step string) string {
	r := s.column(table + "." + column)
	have := "CAST(COALESCE(" + column + ", 0) AS " + s.signed + ")"
	return fmt.Sprintf("%[1]s = CASE WHEN %[3]s > 0 AND %[2]s > %[5]d - %[3]s THEN %[5]d WHEN %[3]s < 0 AND %[2]s < %[4]d - %[3]s THEN %[4]d ELSE %[2]s + %[3]s END",
		column, have, step, r.low, r.high)
}

// set returns an expression that sets a counter of table to an expression of s, held within the counter's range.
func (s *Store) set(table, column, value string) string {
	r := s.column(table + "." + column)
	return fmt.Sprintf("%s = %s(%d, %s(%d, %s))", column, s.least, r.high, s.greatest, r.low, value)
}
