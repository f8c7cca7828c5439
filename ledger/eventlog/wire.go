package eventlog

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// correlation is the id of every request: a connection carries one request at a time.
const correlation = 1

// appendRequestHeader appends what every request of ours begins with, after its length.
func appendRequestHeader(b []byte, key protocol.ApiKey, version uint16, clientID string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint32(b, correlation)
	return appendText(b, clientID)
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// readFrame reads one response, after its length, into reuse if it fits.
func readFrame(r io.Reader, call string, most int, reuse []byte) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("read %s response: %w", call, err)
	}
	n := int(int32(binary.BigEndian.Uint32(size[:])))
	if n < 4 || n > most {
		return nil, fmt.Errorf("read %s response: %d bytes announced, allowed are 4 to %d", call, n, most)
	}
	body := reuse
	if cap(body) < n {
		body = make([]byte, n)
	}
	body = body[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read %s response: %w", call, err)
	}
	return body, nil
}

// wire reads big-endian fields and remembers if there were too few bytes.
type wire struct {
	b     []byte
	short bool
}

func (d *wire) bytes(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.short, d.b = true, nil
		return nil
	}
	head := d.b[:n:n]
	d.b = d.b[n:]
	return head
}

func (d *wire) int16() int16 {
	if b := d.bytes(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (d *wire) int32() int32 {
	if b := d.bytes(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (d *wire) int64() int64 {
	if b := d.bytes(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (d *wire) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.short, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}
