package sqlstore

import (
	"math"
	"strconv"
	"time"
)

// New API's tables are read as they are: a column may be wider than what it is read into, and in SQLite it may hold a value
// of any type. One odd row must not keep a node from starting (L6: it is read as far as it can be, and no more), so these
// scan anything.

// looseInt is a whole number: what is out of range is cut to it, what is no number is 0.
type looseInt struct {
	Int64 int64
	Valid bool // not NULL
}

// Scan implements sql.Scanner.
func (n *looseInt) Scan(src any) error {
	n.Int64, n.Valid = 0, src != nil
	switch v := src.(type) {
	case int64:
		n.Int64 = v
	case uint64:
		n.Int64 = int64(min(v, math.MaxInt64))
	case float64:
		n.Int64 = cutFloat(v)
	case bool:
		if v {
			n.Int64 = 1
		}
	case []byte:
		n.parse(string(v))
	case string:
		n.parse(v)
	}
	return nil
}

func (n *looseInt) parse(text string) {
	var err error
	if n.Int64, err = strconv.ParseInt(text, 10, 64); err == nil {
		return
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		n.Int64 = cutFloat(f)
	} else if b, err := strconv.ParseBool(text); err == nil && b {
		n.Int64 = 1
	}
}

// cutFloat returns the whole part of f, within the range of int64.
func cutFloat(f float64) int64 {
	switch {
	case f >= math.MaxInt64:
		return math.MaxInt64
	case f <= math.MinInt64:
		return math.MinInt64
	case f != f:
		return 0
	}
	return int64(f)
}

// looseBool is a truth value: any number but 0.
type looseBool struct{ Bool bool }

// Scan implements sql.Scanner.
func (b *looseBool) Scan(src any) error {
	var n looseInt
	err := n.Scan(src)
	b.Bool = n.Int64 != 0
	return err
}

// looseFloat is a number: what is none is 0.
type looseFloat struct{ Float64 float64 }

// Scan implements sql.Scanner.
func (f *looseFloat) Scan(src any) error {
	f.Float64 = 0
	switch v := src.(type) {
	case float64:
		f.Float64 = v
	case int64:
		f.Float64 = float64(v)
	case []byte:
		f.Float64, _ = strconv.ParseFloat(string(v), 64)
	case string:
		f.Float64, _ = strconv.ParseFloat(v, 64)
	}
	if math.IsNaN(f.Float64) || math.IsInf(f.Float64, 0) {
		f.Float64 = 0 // JSON has no word for it
	}
	return nil
}

// looseTime is a time: what does not read as one is the zero time.
type looseTime struct{ Time time.Time }

// timeLayouts are how New API's SQLite drivers and we write times.
var timeLayouts = []string{
	"2006-01-02 15:04:05.999999999-07:00", "2006-01-02T15:04:05.999999999-07:00", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04:05.999999999 -0700 MST", "2006-01-02",
}

// Scan implements sql.Scanner.
func (t *looseTime) Scan(src any) error {
	t.Time = time.Time{}
	text := ""
	switch v := src.(type) {
	case time.Time:
		t.Time = v
		return nil
	case []byte:
		text = string(v)
	case string:
		text = v
	}
	for _, layout := range timeLayouts {
		if at, err := time.Parse(layout, text); err == nil {
			t.Time = at
			return nil
		}
	}
	return nil
}
