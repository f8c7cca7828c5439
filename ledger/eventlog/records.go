package eventlog

import (
	"encoding/binary"
	"strconv"
	"time"

	"ledgerline/ledger"
)

// recordEncoder writes the Kafka records of parcels. It keeps its buffers from one record to the next.
type recordEncoder struct {
	key  []byte
	text []byte // header values that are put together
	head []byte // the headers, encoded
}

// The parts of a record's headers that are always the same.
const (
	headerJSON = "application/json"
	headerSpec = "1.0"
)

// append appends the record of p, the n-th of its batch:
//
//	length | attributes 1 | timestamp delta | offset delta | key | value | header count | (name | value)…
//
// All numbers but the attributes are zigzag varints. The headers are those of ledger.Event.Headers: CloudEvents, binary mode.
func (r *recordEncoder) append(b []byte, n int, p *ledger.Parcel) []byte {
	r.key = strconv.AppendInt(r.key[:0], p.User, 10)
	r.head = append(r.head[:0], 7<<1) // the number of headers
	r.header("content-type", append(r.text[:0], headerJSON...))
	r.header("ce_specversion", append(r.text[:0], headerSpec...))
	r.header("ce_id", p.ID.Append(r.text[:0]))
	r.header("ce_source", p.Producer.Append(append(r.text[:0], "/ledgerline/"...)))
	r.header("ce_type", append(append(r.text[:0], "ledgerline."...), p.Kind...))
	r.header("ce_time", time.UnixMilli(p.Time).UTC().AppendFormat(r.text[:0], time.RFC3339Nano))
	r.header("ce_subject", append(append(r.text[:0], "user/"...), r.key...))

	length := 2 + varintSize(n) + varintSize(len(r.key)) + len(r.key) + varintSize(len(p.Value)) + len(p.Value) + len(r.head)
	b = binary.AppendVarint(b, int64(length))
	b = append(b, 0, 0) // attributes, and the same time as the batch
	b = binary.AppendVarint(b, int64(n))
	b = append(binary.AppendVarint(b, int64(len(r.key))), r.key...)
	b = append(binary.AppendVarint(b, int64(len(p.Value))), p.Value...)
	return append(b, r.head...)
}

func (r *recordEncoder) header(name string, value []byte) {
	r.text = value
	r.head = append(binary.AppendVarint(r.head, int64(len(name))), name...)
	r.head = append(binary.AppendVarint(r.head, int64(len(value))), value...)
}

// varintSize is how many bytes binary.AppendVarint takes for n, which is not negative.
func varintSize(n int) int {
	size := 1
	for n >>= 6; n > 0; n >>= 7 { // zigzag: the first byte has room for six bits
		size++
	}
	return size
}
