package eventlog

import (
	"bytes"
	"io"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger"
)

// records yields the Kafka records of parcels. It reuses one record: kafka-go is done with each before it asks for the
// next. One attempt uses one of these, since an attempt that timed out may still be encoding.
type records struct {
	parcels []ledger.Parcel
	next    int

	record  kafka.Record
	key     memory
	value   memory
	keyText []byte
	headers [7]kafka.Header
	text    []byte // backs the header values of the current record
}

// memory is a kafka.Bytes over a slice.
type memory struct{ bytes.Reader }

// Close implements io.Closer.
func (*memory) Close() error { return nil }

func newRecords(parcels []ledger.Parcel) *records { return &records{parcels: parcels} }

var (
	headerJSON = []byte("application/json")
	headerSpec = []byte("1.0")
)

// ReadRecord implements kafka.RecordReader. The headers are those of ledger.Event.Headers: CloudEvents, binary mode.
func (r *records) ReadRecord() (*kafka.Record, error) {
	if r.next == len(r.parcels) {
		return nil, io.EOF
	}
	p := &r.parcels[r.next]
	r.next++
	r.keyText = strconv.AppendInt(r.keyText[:0], p.User, 10)
	r.key.Reset(r.keyText)
	r.value.Reset(p.Value)

	b := r.text[:0]
	b = p.ID.Append(b)
	id := len(b)
	b = p.Producer.Append(append(b, "/ledgerline/"...))
	source := len(b)
	b = append(append(b, "ledgerline."...), p.Kind...)
	kind := len(b)
	b = time.UnixMilli(p.Time).UTC().AppendFormat(b, time.RFC3339Nano)
	at := len(b)
	b = append(append(b, "user/"...), r.keyText...)
	r.text = b
	r.headers = [...]kafka.Header{
		{Key: "content-type", Value: headerJSON},
		{Key: "ce_specversion", Value: headerSpec},
		{Key: "ce_id", Value: b[:id]},
		{Key: "ce_source", Value: b[id:source]},
		{Key: "ce_type", Value: b[source:kind]},
		{Key: "ce_time", Value: b[kind:at]},
		{Key: "ce_subject", Value: b[at:]},
	}
	r.record = kafka.Record{Key: &r.key, Value: &r.value, Headers: r.headers[:]}
	return &r.record, nil
}
