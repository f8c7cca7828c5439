package usagelog

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
)

// blockRows is the size of one block on the wire: a few megabytes, which stay in the processor's cache while they are
// encoded and compressed. ClickHouse puts the blocks of an INSERT together again.
const blockRows = 1024

// blocks is the body of an INSERT over HTTP: rows in ClickHouse's Native format, in compressed frames. Over HTTP the driver's
// batches hold all columns of all rows, encoded anew, at more than twice the processor time of all else that the consumer does.
//
//	body   := frame*
//	frame  := checksum(16) method(1) size(4) raw size(4) LZ4(block)          see ch-go/compress
//	block  := uvarint columns, uvarint rows, column*
//	column := string name, string type, value*
//	value  := UUID: two halves, each little-endian | integer: little-endian | String: uvarint length, bytes
type blocks struct {
	columns []column
	rows    []Row // that are not encoded yet
	block   []byte
	frame   *compress.Writer
	rest    []byte // of the current frame
}

func newBlocks(columns []column, rows []Row) *blocks {
	return &blocks{columns: columns, rows: rows, frame: compress.NewWriter(compress.LevelZero, compress.LZ4)}
}

// Read implements io.Reader.
func (b *blocks) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		if len(b.rows) == 0 {
			return 0, io.EOF
		}
		rows := b.rows[:min(blockRows, len(b.rows))]
		b.rows = b.rows[len(rows):]
		b.block = appendBlock(b.block[:0], b.columns, rows)
		if err := b.frame.Compress(b.block); err != nil {
			return 0, fmt.Errorf("compress rows: %w", err)
		}
		b.rest = b.frame.Data
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// framed marks the context of an INSERT whose body is in frames.
type framed struct{}

// frameTransport tells ClickHouse that a body is in frames. As a setting of the call it would also go with the greeting that
// the driver sends on a new connection, and make that unreadable.
type frameTransport struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t frameTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if q := r.URL.Query(); r.Context().Value(framed{}) != nil && strings.HasPrefix(q.Get("query"), "INSERT") {
		q.Set("decompress", "1")
		r = r.Clone(r.Context())
		r.URL.RawQuery = q.Encode()
	}
	return t.RoundTripper.RoundTrip(r)
}

func appendBlock(dst []byte, columns []column, rows []Row) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(columns)))
	dst = binary.AppendUvarint(dst, uint64(len(rows)))
	for i := range columns {
		c := &columns[i]
		dst = appendText(dst, c.name)
		dst = appendText(dst, c.typ)
		dst = c.append(dst, rows)
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// append appends the values of a column.
func (c *column) append(dst []byte, rows []Row) []byte {
	switch {
	case c.id != nil:
		for i := range rows {
			id := c.id(&rows[i])
			dst = binary.LittleEndian.AppendUint64(dst, binary.BigEndian.Uint64(id[:8]))
			dst = binary.LittleEndian.AppendUint64(dst, binary.BigEndian.Uint64(id[8:]))
		}
	case c.text != nil:
		for i := range rows {
			dst = appendText(dst, c.text(&rows[i]))
		}
	case c.bytes != nil:
		for i := range rows {
			b := c.bytes(&rows[i])
			dst = append(binary.AppendUvarint(dst, uint64(len(b))), b...)
		}
	default:
		dst = c.appendNumbers(dst, rows)
	}
	return dst
}

func (c *column) appendNumbers(dst []byte, rows []Row) []byte {
	for i := range rows {
		n := c.number(&rows[i])
		switch c.typ {
		case "Int64":
			dst = binary.LittleEndian.AppendUint64(dst, uint64(n))
		case "Int32":
			dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
		case "UInt16":
			dst = binary.LittleEndian.AppendUint16(dst, uint16(n))
		default:
			dst = append(dst, uint8(n))
		}
	}
	return dst
}
