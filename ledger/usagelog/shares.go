package usagelog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// MaxShares bounds the shares of one answer (L7): what people draw charts of has fewer.
const MaxShares = 20_000

// Split says what requests are told apart by.
type Split int

// The splits of New API's dashboard.
const (
	ByModel Split = iota // hour and model
	ByUser               // hour and user name
	ByFlow               // user, node, key, group, channel and model, of the whole time
)

// Share is what requests of one kind came to. What they were not told apart by is zero.
type Share struct {
	Hour      int64 // Unix seconds of its beginning
	UserID    int64
	Username  string
	Node      string // "" for rows that New API wrote
	TokenID   int64
	TokenName string
	Group     string
	ChannelID int64
	Model     string

	Tokens, Count, Quota int64
}

// shareColumns are what shares can be told apart by, in the order of Share.fields.
var shareColumns = []string{"created_at", "user_id", "username", "node", "token_id", "token_name", "`group`", "channel_id", "model_name"}

// tells reports whether a split tells rows apart by a column.
func (s Split) tells(column string) bool {
	switch s {
	case ByModel:
		return column == "created_at" || column == "model_name"
	case ByUser:
		return column == "created_at" || column == "username"
	case ByFlow:
		return column != "created_at"
	}
	return false
}

func (s *Share) fields() []any {
	return []any{&s.Hour, &s.UserID, &s.Username, &s.Node, &s.TokenID, &s.TokenName, &s.Group, &s.ChannelID, &s.Model, &s.Tokens, &s.Count, &s.Quota}
}

// shareSource is a table that shares are summed over: has says which columns there are, read is the expression for one.
type shareSource struct {
	table string
	has   func(column string) bool
	read  func(column string) string
}

// query returns the sums over one table; hour is the expression for the hour of a row.
func (s Split) query(from shareSource, w *where, hour, sums string) string {
	parts, group := make([]string, len(shareColumns)), []string(nil)
	for i, column := range shareColumns {
		if !s.tells(column) || !from.has(column) {
			parts[i] = from.read(emptyOf(column))
			continue
		}
		parts[i] = from.read(column)
		if column == "created_at" {
			parts[i] = hour
		}
		group = append(group, parts[i])
	}
	return fmt.Sprintf("SELECT %s, %s FROM %s%s GROUP BY %s LIMIT %d", strings.Join(parts, ", "), sums, from.table, w, strings.Join(group, ", "), MaxShares+1)
}

// gathered adds up shares that more than one table has.
type gathered map[Share]Share

func (g gathered) add(s Share) {
	key := s
	key.Tokens, key.Count, key.Quota = 0, 0, 0
	sum := g[key]
	s.Tokens, s.Count, s.Quota = s.Tokens+sum.Tokens, s.Count+sum.Count, s.Quota+sum.Quota
	g[key] = s
}

// list returns the shares by time, then by what they were told apart by.
func (g gathered) list() ([]Share, error) {
	if len(g) > MaxShares {
		return nil, fmt.Errorf("more than %d figures: ask for a shorter time: %w", MaxShares, ErrFilter)
	}
	all := make([]Share, 0, len(g))
	for _, s := range g {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Share) int {
		return cmp.Or(cmp.Compare(a.Hour, b.Hour), cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.Username, b.Username), cmp.Compare(a.TokenID, b.TokenID),
			cmp.Compare(a.ChannelID, b.ChannelID), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Group, b.Group), cmp.Compare(a.Node, b.Node), cmp.Compare(a.TokenName, b.TokenName))
	})
	return all, nil
}

// Shares implements Reader.
func (s *SQL) Shares(ctx context.Context, f Filter, by Split) ([]Share, error) {
	f.Type = TypeConsume
	w, err := f.conditions(engineSQL)
	if err != nil {
		return nil, err
	}
	read := func(column string) string {
		if column == "0" || column == "''" {
			return column
		}
		return notNull(column)
	}
	const hour = "created_at - created_at % 3600"
	const sums = "COALESCE(SUM(prompt_tokens), 0) + COALESCE(SUM(completion_tokens), 0), COUNT(*), COALESCE(SUM(quota), 0)"
	all := gathered{}
	for _, src := range s.sources(&w) {
		from := shareSource{src.table, s.logs.columnsOf(src.table), read}
		if err := s.gather(ctx, all, by.query(from, &w, hour, sums), w.args); err != nil {
			return nil, fmt.Errorf("sum usage log by hour: %w", err)
		}
	}
	return all.list()
}

func (s *SQL) gather(ctx context.Context, all gathered, query string, args []any) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var one Share
		if err := rows.Scan(one.fields()...); err != nil {
			return err
		}
		all.add(one)
	}
	return rows.Err()
}

// Shares implements Reader.
func (c *ClickHouse) Shares(ctx context.Context, f Filter, by Split) ([]Share, error) {
	f.Type = TypeConsume
	w, err := f.conditions(engineClickHouse)
	if err != nil {
		return nil, err
	}
	tables := []string{"ledger_usage FINAL"}
	if _, ok := c.logs.selects(&w, typed); ok {
		tables = append(tables, "logs")
	}
	const hour = "toInt64(intDiv(created_at, 3600) * 3600)"
	const sums = "toInt64(sum(prompt_tokens) + sum(completion_tokens)), toInt64(count()), toInt64(sum(quota))"
	all := gathered{}
	for _, table := range tables {
		from := shareSource{table, c.logs.columnsOf(table), typed}
		err := c.each(ctx, by.query(from, &w, hour, sums), func(rows driver.Rows) error {
			var one Share
			err := rows.Scan(one.fields()...)
			all.add(one)
			return err
		}, w.args...)
		if err != nil {
			return nil, fmt.Errorf("sum usage log by hour: %w", err)
		}
	}
	return all.list()
}
