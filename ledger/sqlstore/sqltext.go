package sqlstore

import (
	"encoding/hex"
	"fmt"
	"strconv"

	"ledgerline/ledger"
)

// rowsPerStatement bounds multi-row statements (L7). Rows are written as literals of integers and hexadecimal bytes, never of
// text, so there are no placeholders to run out of; a row is at most some 200 bytes, so a statement stays far below MySQL's
// smallest default of max_allowed_packet (4 MB).
const rowsPerStatement = 2000

// statement builds SQL text with literals of numbers and ids, without an allocation for each.
type statement struct{ b []byte }

func (q *statement) text(s string) *statement { q.b = append(q.b, s...); return q }

func (q *statement) int(n int64) *statement { q.b = strconv.AppendInt(q.b, n, 10); return q }

func (q *statement) id(id ledger.ID) *statement {
	q.b = append(q.b, "x'"...)
	q.b = hex.AppendEncode(q.b, id[:])
	q.b = append(q.b, '\'')
	return q
}

// ints appends "1,2,3".
func (q *statement) ints(list []int64) *statement {
	for i, n := range list {
		if i > 0 {
			q.b = append(q.b, ',')
		}
		q.b = strconv.AppendInt(q.b, n, 10)
	}
	return q
}

func (q *statement) String() string { return string(q.b) }

// marks returns "?,?,?".
func marks(n int) string {
	b := make([]byte, 0, 2*n)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '?')
	}
	return string(b)
}

// chunks calls fn with stretches of list of at most rowsPerStatement.
func chunks[T any](list []T, fn func([]T) error) error {
	for len(list) > 0 {
		n := min(len(list), rowsPerStatement)
		if err := fn(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// idColumn scans a column of 16 bytes.
type idColumn struct{ ledger.ID }

// Scan implements sql.Scanner.
func (c *idColumn) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok || len(b) != len(c.ID) {
		return fmt.Errorf("an id column holds %d bytes of %T", len(b), src)
	}
	copy(c.ID[:], b)
	return nil
}
