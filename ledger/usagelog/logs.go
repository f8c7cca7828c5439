package usagelog

import (
	"slices"
	"strings"
	"sync"
)

// logsTable is what is known of New API's table `logs`: it is read beside ours and never changed. Older releases of New
// API have fewer columns.
type logsTable struct {
	mu      sync.Mutex
	columns []string // guarded by mu; nil: there is no such table
}

func (l *logsTable) set(columns []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.columns = columns
}

// selects returns the columns of an Entry, id first, as expressions over New API's table, and whether its rows can meet
// the conditions at all. read returns the expression for a column that is there.
func (l *logsTable) selects(w *where, read func(column string) string) (columns string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.columns == nil {
		return "", false
	}
	has := func(column string) bool { return slices.Contains(l.columns, strings.Trim(column, "`")) }
	for _, c := range w.columns {
		if !has(c) {
			return "", false
		}
	}
	var all []string
	for _, c := range strings.Split("id, "+entryColumns, ", ") {
		if !has(c) {
			c = emptyOf(c)
		}
		all = append(all, read(c))
	}
	return strings.Join(all, ", "), true
}

// columnsOf tells which columns a table has: New API's table these, ours all.
func (l *logsTable) columnsOf(table string) func(column string) bool {
	if table != "logs" {
		return func(string) bool { return true }
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	there := slices.Clone(l.columns)
	return func(column string) bool { return slices.Contains(there, strings.Trim(column, "`")) }
}

// emptyOf returns the value, as an expression, of a column that is not there or NULL.
func emptyOf(column string) string {
	if numeric[column] {
		return "0"
	}
	return "''"
}

// numeric are the columns of an Entry that are numbers.
var numeric = map[string]bool{
	"id": true, "user_id": true, "created_at": true, "type": true, "quota": true, "prompt_tokens": true,
	"completion_tokens": true, "use_time": true, "is_stream": true, "channel_id": true, "token_id": true,
}

func (l *logsTable) present() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.columns != nil
}
