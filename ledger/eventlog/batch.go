package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/segmentio/kafka-go/compress"
)

// maxInflated bounds what one compressed batch may grow to (L7).
const maxInflated = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A record batch, format 2, as brokers store it:
//
//	base offset 8 | length 4 | leader epoch 4 | magic 1 | crc 4 | attributes 2 | last offset delta 4 |
//	first timestamp 8 | max timestamp 8 | producer id 8 | producer epoch 2 | base sequence 4 | count 4 | records…
const (
	batchLengthEnd = 12
	batchCRCEnd    = 21
	batchHeader    = 61

	attributeCodec   = 0x07
	attributeControl = 0x20
)

var errBadRecords = errors.New("record batch is damaged")

// eachRecord calls fn with the offset and value of every record of data, a series of batches; the last one may be cut off, as
// brokers do. Values alias data unless a batch is compressed. It returns the offset after the last whole batch (0 if there is
// none). Records below from are skipped: brokers answer with whole batches.
func eachRecord(data []byte, from int64, fn func(offset int64, value []byte)) (next int64, err error) {
	for len(data) >= batchHeader {
		base := int64(binary.BigEndian.Uint64(data))
		length := int(int32(binary.BigEndian.Uint32(data[8:])))
		if length < batchHeader-batchLengthEnd {
			return next, fmt.Errorf("batch at offset %d: length %d: %w", base, length, errBadRecords)
		}
		if batchLengthEnd+length > len(data) {
			return next, nil
		}
		batch := data[:batchLengthEnd+length]
		data = data[len(batch):]
		if magic := batch[16]; magic != 2 {
			return next, fmt.Errorf("batch at offset %d: format %d, only 2 is known: %w", base, magic, errBadRecords)
		}
		if sum := crc32.Checksum(batch[batchCRCEnd:], castagnoli); sum != binary.BigEndian.Uint32(batch[17:]) {
			return next, fmt.Errorf("batch at offset %d: checksum differs: %w", base, errBadRecords)
		}
		after := base + int64(int32(binary.BigEndian.Uint32(batch[23:]))) + 1
		if after > from {
			if err := openBatch(batch, base, from, fn); err != nil {
				return next, err
			}
		}
		next = after
	}
	return next, nil
}

func openBatch(batch []byte, base, from int64, fn func(offset int64, value []byte)) error {
	attributes := binary.BigEndian.Uint16(batch[batchCRCEnd:])
	if attributes&attributeControl != 0 {
		return nil // a transaction marker: nobody of ours writes them, and they carry no event
	}
	body := batch[batchHeader:]
	if codec := compress.Compression(attributes & attributeCodec); codec != compress.None {
		inflated, err := inflate(codec, body)
		if err != nil {
			return fmt.Errorf("batch at offset %d: %w", base, err)
		}
		body = inflated
	}
	count := int(int32(binary.BigEndian.Uint32(batch[57:])))
	d := wire{b: body}
	for range count {
		record := wire{b: d.bytes(int(d.varint()))}
		if d.short {
			break
		}
		record.bytes(1) // attributes
		record.varint() // timestamp delta
		offset := base + record.varint()
		record.bytes(int(max(0, record.varint()))) // key
		size := record.varint()
		value := record.bytes(int(max(0, size)))
		if record.short {
			return fmt.Errorf("record at offset %d: %w", offset, errBadRecords)
		}
		if offset >= from {
			fn(offset, value)
		}
	}
	if d.short {
		return fmt.Errorf("batch at offset %d: fewer than its %d records: %w", base, count, errBadRecords)
	}
	return nil
}

func inflate(compression compress.Compression, body []byte) ([]byte, error) {
	codec := compression.Codec()
	if codec == nil {
		return nil, fmt.Errorf("compression %d is unknown: %w", compression, errBadRecords)
	}
	r := codec.NewReader(bytes.NewReader(body))
	defer r.Close()
	inflated, err := io.ReadAll(io.LimitReader(r, maxInflated+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(inflated) > maxInflated {
		return nil, fmt.Errorf("decompress: more than %d bytes: %w", maxInflated, errBadRecords)
	}
	return inflated, nil
}
