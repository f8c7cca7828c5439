package usagelog

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"ledgerline/ledger"
)

// source is one of the two tables that lists read.
type source struct {
	table   string
	columns string // of an Entry, id first
}

// sources returns the tables that can hold rows that meet the conditions.
func (s *SQL) sources(w *where) []source {
	all := []source{{"ledger_usage", "id, " + entryColumns}}
	if columns, ok := s.logs.selects(w, notNull); ok {
		all = append(all, source{"logs", columns})
	}
	return all
}

// notNull reads a column of New API, which may be NULL.
func notNull(column string) string { return "COALESCE(" + column + ", " + emptyOf(column) + ")" }

// rowKey is one row of a listing. The tables are joined by these numbers alone, because their texts may have different
// collations.
type rowKey struct {
	source int
	id     int64
}

// List implements Reader.
func (s *SQL) List(ctx context.Context, f Filter, page Page) (Listing, error) {
	w, err := f.conditions(engineSQL)
	if err != nil {
		return Listing{}, err
	}
	skip, limit, bound := page.limits(&f)
	sources := s.sources(&w)
	counted := 0
	for _, src := range sources {
		var n int
		query := fmt.Sprintf("SELECT COUNT(*) FROM (SELECT 1 AS one FROM %s%s LIMIT %d) AS counted", src.table, &w, bound+1-counted) //nolint:gosec // tables and columns are our own, values are parameters
		if err := s.db.QueryRowContext(ctx, query, w.args...).Scan(&n); err != nil {
			return Listing{}, fmt.Errorf("count usage log rows: %w", err)
		}
		counted += n
	}
	var list Listing
	list.Total, list.More = total(counted, bound)
	list.Entries, err = s.page(ctx, sources, &w, skip, limit)
	return list, err
}

// page returns rows newest first. It finds them by number, so that a deep page does not carry their texts along.
func (s *SQL) page(ctx context.Context, sources []source, w *where, skip, limit int) ([]Entry, error) {
	if limit <= 0 {
		return nil, nil
	}
	var parts []string
	var args []any
	for i, src := range sources {
		parts = append(parts, fmt.Sprintf("SELECT * FROM (SELECT %d AS source, created_at, id FROM %s%s ORDER BY created_at DESC, id DESC LIMIT %d) AS s%d",
			i, src.table, w, skip+limit, i))
		args = append(args, w.args...)
	}
	query := fmt.Sprintf("%s ORDER BY created_at DESC, source, id DESC LIMIT %d OFFSET %d", strings.Join(parts, " UNION ALL "), limit, skip)
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list usage log: %w", err)
	}
	defer rows.Close()
	var keys []rowKey
	for rows.Next() {
		var k rowKey
		var at sql.NullInt64
		if err := rows.Scan(&k.source, &at, &k.id); err != nil {
			return nil, fmt.Errorf("list usage log: %w", err)
		}
		keys = append(keys, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list usage log: %w", err)
	}
	return s.fetch(ctx, sources, keys)
}

// fetch returns the rows of keys, in their order; rows that went in between are left out.
func (s *SQL) fetch(ctx context.Context, sources []source, keys []rowKey) ([]Entry, error) {
	found := make(map[rowKey]Entry, len(keys))
	for i, src := range sources {
		var ids []string
		for _, k := range keys {
			if k.source == i {
				ids = append(ids, fmt.Sprint(k.id))
			}
		}
		if len(ids) == 0 {
			continue
		}
		query := fmt.Sprintf("SELECT %s FROM %s WHERE id IN (%s)", src.columns, src.table, strings.Join(ids, ","))
		if err := s.entries(ctx, query, nil, func(e Entry) { found[rowKey{i, e.ID}] = e }); err != nil {
			return nil, err
		}
	}
	all := make([]Entry, 0, len(keys))
	for _, k := range keys {
		if e, ok := found[k]; ok {
			all = append(all, e)
		}
	}
	return all, nil
}

// fields returns what an Entry is scanned into, id first.
func (e *Entry) fields() []any { return append([]any{&e.ID}, e.named()...) }

// named returns the fields of entryColumns.
func (e *Entry) named() []any {
	return []any{
		&e.UserID, &e.CreatedAt, &e.Type, &e.Content, &e.Username, &e.TokenName, &e.ModelName, &e.Quota, &e.PromptTokens,
		&e.CompletionTokens, &e.UseTime, &e.IsStream, &e.ChannelID, &e.TokenID, &e.Group, &e.IP, &e.RequestID,
		&e.UpstreamRequestID, &e.Other,
	}
}

func (s *SQL) entries(ctx context.Context, query string, args []any, add func(Entry)) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("read usage log rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e Entry
		if err := rows.Scan(e.fields()...); err != nil {
			return fmt.Errorf("read usage log rows: %w", err)
		}
		add(e)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read usage log rows: %w", err)
	}
	return nil
}

// Stat implements Reader.
func (s *SQL) Stat(ctx context.Context, f Filter, now time.Time) (Stat, error) {
	f.Type = TypeConsume
	w, err := f.conditions(engineSQL)
	if err != nil {
		return Stat{}, err
	}
	f.Start, f.End = now.Unix()-60, 0
	recent, err := f.conditions(engineSQL)
	if err != nil {
		return Stat{}, err
	}
	var sum Stat
	for _, src := range s.sources(&w) {
		var quota int64
		query := "SELECT COALESCE(SUM(quota), 0) FROM " + src.table + w.String()
		if err := s.db.QueryRowContext(ctx, query, w.args...).Scan(&quota); err != nil {
			return Stat{}, fmt.Errorf("sum usage log: %w", err)
		}
		var rpm, tpm int64
		query = "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0) + COALESCE(SUM(completion_tokens), 0) FROM " + src.table + recent.String()
		if err := s.db.QueryRowContext(ctx, query, recent.args...).Scan(&rpm, &tpm); err != nil {
			return Stat{}, fmt.Errorf("sum recent usage log: %w", err)
		}
		sum.Quota, sum.RPM, sum.TPM = sum.Quota+quota, sum.RPM+rpm, sum.TPM+tpm
	}
	return sum, nil
}

// TokenLatest implements Reader.
func (s *SQL) TokenLatest(ctx context.Context, token int64) ([]Entry, error) {
	w := where{engine: engineSQL}
	w.add("token_id", "= ?", token)
	return s.page(ctx, s.sources(&w), &w, 0, MaxTokenRows)
}

// Lookup implements Reader.
func (s *SQL) Lookup(ctx context.Context, requestID string) ([]Found, error) {
	if requestID == "" {
		return nil, nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT u.event_id, u.part, u.log_gen, u.log_offset, e.event, u.id, "+prefixed("u.", entryColumns)+ //nolint:gosec // tables and columns are our own, values are parameters
		" FROM ledger_usage u LEFT JOIN ledger_events e ON e.part = u.part AND e.log_gen = u.log_gen AND e.log_offset = u.log_offset"+
		fmt.Sprintf(" WHERE u.request_id = ? AND u.kind <> '%s' ORDER BY u.log_gen, u.log_offset LIMIT %d", KindImported, MaxFound), requestID)
	if err != nil {
		return nil, fmt.Errorf("look up request: %w", err)
	}
	defer rows.Close()
	var all []Found
	for rows.Next() {
		var f Found
		var id []byte
		var event sql.RawBytes
		if err := rows.Scan(append([]any{&id, &f.Partition, &f.Log, &f.Offset, &event}, f.fields()...)...); err != nil {
			return nil, fmt.Errorf("look up request: %w", err)
		}
		if len(id) == len(f.EventID) {
			f.EventID = ledger.ID(id)
		}
		f.Event = slices.Clone([]byte(event))
		all = append(all, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look up request: %w", err)
	}
	return all, nil
}

// prefixed puts prefix before each column of a list.
func prefixed(prefix, columns string) string {
	return prefix + strings.ReplaceAll(columns, ", ", ", "+prefix)
}
