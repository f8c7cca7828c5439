package usagelog

import (
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"ledgerline/ledger"
)

// column is one column of an INSERT: its name, its type on the wire, and where its value is in a row. One of the functions is
// set. ClickHouse turns String into LowCardinality(String) by itself.
type column struct {
	name   string
	typ    string // UUID, String, Int64, Int32, UInt16 or UInt8
	id     func(*Row) ledger.ID
	number func(*Row) int64
	text   func(*Row) string
	bytes  func(*Row) []byte
}

func idColumn(name string, value func(*Row) ledger.ID) column {
	return column{name: name, typ: "UUID", id: value}
}

func textColumn(name string, value func(*Row) string) column {
	return column{name: name, typ: "String", text: value}
}

func intColumn(name, typ string, value func(*Row) int64) column {
	return column{name: name, typ: typ, number: value}
}

// The places of a row, first in both tables.
var placeColumns = []column{
	intColumn("part", "UInt16", func(r *Row) int64 { return int64(r.Partition) }),
	intColumn("log_gen", "UInt16", func(r *Row) int64 { return int64(r.Log) }),
	intColumn("log_offset", "Int64", func(r *Row) int64 { return r.Offset }),
	intColumn("created_at", "Int64", func(r *Row) int64 { return r.CreatedAt }),
}

// eventsTable are the columns of ledger_events.
var eventsTable = append(placeColumns[:len(placeColumns):len(placeColumns)],
	column{name: "event", typ: "String", bytes: func(r *Row) []byte { return r.Event }})

// usageTable are the columns of ledger_usage that are written.
var usageTable = append(placeColumns[:len(placeColumns):len(placeColumns)],
	idColumn("event_id", func(r *Row) ledger.ID { return r.EventID }),
	textColumn("kind", func(r *Row) string { return string(r.Kind) }),
	textColumn("moves", func(r *Row) string { return r.Moves }),
	idColumn("producer", func(r *Row) ledger.ID { return r.Producer }),
	intColumn("seq", "Int64", func(r *Row) int64 { return r.Seq }),
	intColumn("prev", "Int64", func(r *Row) int64 { return r.Prev }),
	textColumn("event_key", func(r *Row) string { return r.Key }),
	intColumn("granted", "Int64", func(r *Row) int64 { return r.Granted }),
	intColumn("charged", "Int64", func(r *Row) int64 { return r.Charged }),
	intColumn("requests", "Int64", func(r *Row) int64 { return r.Requests }),
	textColumn("node", func(r *Row) string { return r.Node }),
	intColumn("user_id", "Int64", func(r *Row) int64 { return r.UserID }),
	intColumn("type", "Int32", func(r *Row) int64 { return int64(r.Type) }),
	textColumn("content", func(r *Row) string { return r.Content }),
	textColumn("username", func(r *Row) string { return r.Username }),
	textColumn("token_name", func(r *Row) string { return r.TokenName }),
	textColumn("model_name", func(r *Row) string { return r.ModelName }),
	intColumn("quota", "Int64", func(r *Row) int64 { return r.Quota }),
	intColumn("prompt_tokens", "Int64", func(r *Row) int64 { return r.PromptTokens }),
	intColumn("completion_tokens", "Int64", func(r *Row) int64 { return r.CompletionTokens }),
	intColumn("use_time", "Int64", func(r *Row) int64 { return r.UseTime }),
	intColumn("is_stream", "UInt8", func(r *Row) int64 {
		if r.IsStream {
			return 1
		}
		return 0
	}),
	intColumn("channel_id", "Int64", func(r *Row) int64 { return r.ChannelID }),
	intColumn("token_id", "Int64", func(r *Row) int64 { return r.TokenID }),
	textColumn("group", func(r *Row) string { return r.Group }),
	textColumn("ip", func(r *Row) string { return r.IP }),
	textColumn("request_id", func(r *Row) string { return r.RequestID }),
	textColumn("upstream_request_id", func(r *Row) string { return r.UpstreamRequestID }),
	textColumn("other", func(r *Row) string { return r.Other }),
)

// namesOf lists columns as an INSERT names them.
func namesOf(columns []column) string {
	var names []string
	for _, c := range columns {
		names = append(names, "`"+c.name+"`")
	}
	return strings.Join(names, ", ")
}

// fill sends rows through a batch of the native protocol, a block at a time: the batch keeps its buffers between blocks.
func fill(batch driver.Batch, columns []column, rows []Row) error {
	for len(rows) > 0 {
		block := rows[:min(blockRows, len(rows))]
		rows = rows[len(block):]
		for i, c := range columns {
			if err := batch.Column(i).Append(c.values(block)); err != nil {
				return fmt.Errorf("column %s: %w", c.name, err)
			}
		}
		if err := batch.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// values returns a column as the slice that the driver takes.
func (c *column) values(rows []Row) any {
	switch c.typ {
	case "UUID":
		return gather(rows, func(r *Row) uuid.UUID { return uuid.UUID(c.id(r)) })
	case "Int64":
		return gather(rows, c.number)
	case "Int32":
		return gather(rows, func(r *Row) int32 { return int32(c.number(r)) })
	case "UInt16":
		return gather(rows, func(r *Row) uint16 { return uint16(c.number(r)) })
	case "UInt8":
		return gather(rows, func(r *Row) uint8 { return uint8(c.number(r)) })
	}
	if c.bytes != nil {
		return gather(rows, c.bytes)
	}
	return gather(rows, c.text)
}

func gather[T any](rows []Row, value func(*Row) T) []T {
	all := make([]T, len(rows))
	for i := range rows {
		all[i] = value(&rows[i])
	}
	return all
}
