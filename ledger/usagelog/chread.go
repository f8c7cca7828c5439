package usagelog

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"ledgerline/ledger"
)

// each calls fn for each row of a query.
func (c *ClickHouse) each(ctx context.Context, query string, fn func(driver.Rows) error, args ...any) error {
	rows, err := c.conn.Query(ctx, query, args...)
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

// typed reads a column as the type of Entry's field, whatever width the table has.
func typed(column string) string {
	switch {
	case column == "is_stream":
		return "CAST(is_stream AS Bool)"
	case column == "0" || numeric[column]:
		return "toInt64(" + column + ")"
	}
	return "toString(" + column + ")"
}

// entryTyped are the columns of an Entry from ledger_usage, id first.
var entryTyped = func() string {
	all := []string{"toInt64(0)"}
	for _, c := range strings.Split(entryColumns, ", ") {
		all = append(all, typed(c))
	}
	return strings.Join(all, ", ")
}()

// newest orders rows of ledger_usage newest first, in the order of the sorting key as far as it goes, so that ClickHouse reads
// the days one after the other and stops at the limit. Without FINAL it may meet copies: one row of each event is taken.
const newest = " ORDER BY intDiv(created_at, 86400) DESC, created_at DESC, event_id DESC LIMIT 1 BY event_id"

// newestOld does so for New API's table.
const newestOld = " ORDER BY created_at DESC, request_id DESC"

// chKey is a row of a listing: of ours the id of the event, of New API's just that it is there.
type chKey struct {
	old     bool
	created int64
	user    int64
	event   string
}

// List implements Reader.
func (c *ClickHouse) List(ctx context.Context, f Filter, page Page) (Listing, error) {
	w, err := f.conditions(engineClickHouse)
	if err != nil {
		return Listing{}, err
	}
	skip, limit, bound := page.limits(&f)
	_, old := c.logs.selects(&w, typed)
	counted, err := c.count(ctx, fmt.Sprintf("SELECT event_id FROM ledger_usage%s LIMIT 1 BY event_id LIMIT %d", &w, bound+1), w.args)
	if err == nil && old && counted <= bound {
		var more int
		more, err = c.count(ctx, fmt.Sprintf("SELECT 1 FROM logs%s LIMIT %d", &w, bound+1-counted), w.args)
		counted += more
	}
	if err != nil {
		return Listing{}, fmt.Errorf("count usage log rows: %w", err)
	}
	var list Listing
	list.Total, list.More = total(counted, bound)
	list.Entries, err = c.page(ctx, &w, skip, limit)
	return list, err
}

func (c *ClickHouse) count(ctx context.Context, query string, args []any) (int, error) {
	var n uint64
	err := c.conn.QueryRow(ctx, "SELECT count() FROM ("+query+")", args...).Scan(&n)
	return int(n), err
}

// page returns rows newest first. It finds them by key, so that a search does not carry their texts along.
func (c *ClickHouse) page(ctx context.Context, w *where, skip, limit int) ([]Entry, error) {
	if limit <= 0 {
		return nil, nil
	}
	query := fmt.Sprintf("SELECT 0 AS old, created_at, user_id, toString(event_id) AS event FROM ledger_usage%s%s LIMIT %d", w, newest, skip+limit)
	args := w.args
	oldColumns, old := c.logs.selects(w, typed)
	if old {
		query = fmt.Sprintf("SELECT * FROM (SELECT * FROM (%s) UNION ALL SELECT * FROM (SELECT 1, toInt64(created_at), toInt64(user_id), '' FROM logs%s%s LIMIT %d)) "+
			"ORDER BY created_at DESC, old, event DESC LIMIT %d", query, w, newestOld, skip+limit, skip+limit)
		args = append(append([]any{}, w.args...), w.args...)
	}
	var keys []chKey
	oldSkip, n := 0, 0
	err := c.each(ctx, query, func(rows driver.Rows) error {
		var k chKey
		var isOld uint8
		if err := rows.Scan(&isOld, &k.created, &k.user, &k.event); err != nil {
			return err
		}
		k.old = isOld == 1
		switch n++; {
		case n > skip:
			keys = append(keys, k)
		case k.old:
			oldSkip++
		}
		return nil
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("list usage log: %w", err)
	}
	found, err := c.fetch(ctx, keys)
	if err != nil {
		return nil, err
	}
	var olds []Entry
	if old {
		query := fmt.Sprintf("SELECT %s FROM logs%s%s LIMIT %d OFFSET %d", oldColumns, w, newestOld, limit, oldSkip)
		if err := c.entries(ctx, query, func(e Entry) { olds = append(olds, e) }, w.args...); err != nil {
			return nil, err
		}
	}
	return inOrder(keys, found, olds), nil
}

// inOrder puts the rows that were found in the order of their keys; rows that went in between are left out.
func inOrder(keys []chKey, found map[string]Entry, olds []Entry) []Entry {
	all := make([]Entry, 0, len(keys))
	for _, k := range keys {
		if k.old {
			if len(olds) > 0 {
				all, olds = append(all, olds[0]), olds[1:]
			}
		} else if e, ok := found[k.event]; ok {
			all = append(all, e)
		}
	}
	return all
}

// fetch returns our rows among keys, by event id. The other columns are there for the primary index.
func (c *ClickHouse) fetch(ctx context.Context, keys []chKey) (map[string]Entry, error) {
	found := make(map[string]Entry, len(keys))
	var days, users, times, events []string
	for _, k := range keys {
		if !k.old {
			days = append(days, strconv.FormatInt(k.created/86400, 10))
			users = append(users, strconv.FormatInt(k.user, 10))
			times = append(times, strconv.FormatInt(k.created, 10))
			events = append(events, "toUUID("+literal(k.event)+")")
		}
	}
	if len(events) == 0 {
		return found, nil
	}
	query := fmt.Sprintf("SELECT toString(event_id), %s FROM ledger_usage WHERE intDiv(created_at, 86400) IN (%s) AND user_id IN (%s) "+
		"AND created_at IN (%s) AND event_id IN (%s) LIMIT 1 BY event_id",
		entryTyped, strings.Join(days, ","), strings.Join(users, ","), strings.Join(times, ","), strings.Join(events, ","))
	err := c.each(ctx, query, func(rows driver.Rows) error {
		var event string
		var e Entry
		if err := rows.Scan(append([]any{&event}, e.fields()...)...); err != nil {
			return err
		}
		found[event] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read usage log rows: %w", err)
	}
	return found, nil
}

func (c *ClickHouse) entries(ctx context.Context, query string, add func(Entry), args ...any) error {
	err := c.each(ctx, query, func(rows driver.Rows) error {
		var e Entry
		if err := rows.Scan(e.fields()...); err != nil {
			return err
		}
		add(e)
		return nil
	}, args...)
	if err != nil {
		return fmt.Errorf("read usage log rows: %w", err)
	}
	return nil
}

// Stat implements Reader.
func (c *ClickHouse) Stat(ctx context.Context, f Filter, now time.Time) (Stat, error) {
	f.Type = TypeConsume
	w, err := f.conditions(engineClickHouse)
	if err != nil {
		return Stat{}, err
	}
	f.Start, f.End = now.Unix()-60, 0
	recent, err := f.conditions(engineClickHouse)
	if err != nil {
		return Stat{}, err
	}
	tables := []string{"ledger_usage FINAL"}
	if _, ok := c.logs.selects(&w, typed); ok {
		tables = append(tables, "logs")
	}
	var sum Stat
	for _, table := range tables {
		var s Stat
		if err := c.conn.QueryRow(ctx, "SELECT toInt64(sum(quota)) FROM "+table+w.String(), w.args...).Scan(&s.Quota); err != nil {
			return Stat{}, fmt.Errorf("sum usage log: %w", err)
		}
		query := "SELECT toInt64(count()), toInt64(sum(prompt_tokens) + sum(completion_tokens)) FROM " + table + recent.String()
		if err := c.conn.QueryRow(ctx, query, recent.args...).Scan(&s.RPM, &s.TPM); err != nil {
			return Stat{}, fmt.Errorf("sum recent usage log: %w", err)
		}
		sum.Quota, sum.RPM, sum.TPM = sum.Quota+s.Quota, sum.RPM+s.RPM, sum.TPM+s.TPM
	}
	return sum, nil
}

// TokenLatest implements Reader.
func (c *ClickHouse) TokenLatest(ctx context.Context, token int64) ([]Entry, error) {
	w := where{engine: engineClickHouse}
	w.add("token_id", "= ?", token)
	return c.page(ctx, &w, 0, MaxTokenRows)
}

// Lookup implements Reader.
func (c *ClickHouse) Lookup(ctx context.Context, requestID string) ([]Found, error) {
	if requestID == "" {
		return nil, nil
	}
	var all []Found
	var places []string
	err := c.each(ctx, fmt.Sprintf("SELECT event_id, toInt64(part), toInt64(log_gen), log_offset, %s FROM ledger_usage WHERE request_id = ? AND kind <> '%s' "+
		"ORDER BY ledger_usage.log_gen, log_offset LIMIT 1 BY event_id LIMIT %d", entryTyped, KindImported, MaxFound), func(rows driver.Rows) error {
		var f Found
		var id uuid.UUID
		var part, log int64
		if err := rows.Scan(append([]any{&id, &part, &log, &f.Offset}, f.fields()...)...); err != nil {
			return err
		}
		f.EventID, f.Partition, f.Log = ledger.ID(id), int(part), int(log)
		all = append(all, f)
		places = append(places, fmt.Sprintf("(%d,%d,%d)", part, log, f.Offset))
		return nil
	}, requestID)
	if err != nil {
		return nil, fmt.Errorf("look up request: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	events := map[Place][]byte{}
	err = c.each(ctx, "SELECT toInt64(part), toInt64(log_gen), log_offset, event FROM ledger_events WHERE (part, log_gen, log_offset) IN ("+
		strings.Join(places, ",")+")", func(rows driver.Rows) error {
		var part, log, offset int64
		var event []byte
		if err := rows.Scan(&part, &log, &offset, &event); err != nil {
			return err
		}
		events[Place{int(part), int(log), offset}] = event
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up events of a request: %w", err)
	}
	for i := range all {
		all[i].Event = events[all[i].Place]
	}
	return all, nil
}
