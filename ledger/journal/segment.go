package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"ledgerline/ledger"
)

// Segment file, integers little-endian:
//
//	0        8         12          16      24            40        48        56           60
//	+--------+---------+-----------+-------+-------------+---------+---------+------------+-----------+-----+
//	| magic  | version | header    | index | incarnation | created | highest | partitions | last seq  | CRC |
//	|        |         | bytes     |       |             | Unix ms | seq     | P          | P × 8     | 32C |
//	+--------+---------+-----------+-------+-------------+---------+---------+------------+-----------+-----+
//	| frame | frame | frame | … | zeros, in the newest segment while it is written                          |
//
// "highest seq" and "last seq" (per partition) are the sequences given out before this segment, so that the sequence and the
// chain of prev go on even if this is the only segment left.
//
// Frame:
//
//	0      4        8       12     16
//	+------+--------+-------+------+----------------+
//	| mark | length | batch | CRC  | body           |
//	|      | (body) |       | 32C  | (length bytes) |
//	+------+--------+-------+------+----------------+
//
// batch is the offset in this file of the first frame of the same write: everything before it was fsynced when this frame
// was written. So a frame that cannot be read is torn only if no readable frame behind it has a batch beyond it; otherwise it
// was durable once, and is damage. The CRC covers incarnation, segment index, offset, the fields before it and the body: a
// frame counts at its own place only, whatever an old block or a client's text may hold.
const (
	segmentMagic   = "LLJSEG\r\n"
	segmentVersion = 1
	segmentFixed   = 60

	frameMark   = 0x4A4C4CFF // FF "LLJ": FF never occurs in UTF-8 text
	frameHeader = 16
	// maxBody bounds one record: an event, its prefix, and room.
	maxBody = ledger.MaxEventBytes + 4<<10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentHeader is the first thing in a segment file.
type segmentHeader struct {
	Index   uint64
	Created int64 // Unix milliseconds
	Highest uint64
	Last    []uint64 // by partition
}

func headerBytes(partitions int) int64 { return segmentFixed + 8*int64(partitions) + 4 }

func (h *segmentHeader) encode(incarnation ledger.ID) []byte {
	b := make([]byte, 0, headerBytes(len(h.Last)))
	le := binary.LittleEndian
	b = append(b, segmentMagic...)
	b = le.AppendUint32(b, segmentVersion)
	b = le.AppendUint32(b, uint32(cap(b)))
	b = le.AppendUint64(b, h.Index)
	b = append(b, incarnation[:]...)
	b = le.AppendUint64(b, uint64(h.Created))
	b = le.AppendUint64(b, h.Highest)
	b = le.AppendUint32(b, uint32(len(h.Last)))
	for _, seq := range h.Last {
		b = le.AppendUint64(b, seq)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

var errHeader = errors.New("segment header cannot be read")

// decodeSegmentHeader reads the header at the start of a segment file. ErrNewer (wrapped): written by a newer version.
func decodeSegmentHeader(data []byte, incarnation ledger.ID) (segmentHeader, int64, error) {
	le := binary.LittleEndian
	if len(data) < segmentFixed || string(data[:8]) != segmentMagic {
		return segmentHeader{}, 0, errHeader
	}
	size := int64(le.Uint32(data[12:]))
	if size < segmentFixed+4 || size > headerBytes(maxPartitions) || size > int64(len(data)) {
		return segmentHeader{}, 0, errHeader
	}
	if crc32.Checksum(data[:size-4], castagnoli) != le.Uint32(data[size-4:]) {
		return segmentHeader{}, 0, errHeader
	}
	if v := le.Uint32(data[8:]); v != segmentVersion {
		return segmentHeader{}, 0, fmt.Errorf("segment of version %d: %w", v, ErrNewer)
	}
	h := segmentHeader{Index: le.Uint64(data[16:]), Created: int64(le.Uint64(data[40:])), Highest: le.Uint64(data[48:])}
	n := int64(le.Uint32(data[56:]))
	if ledger.ID(data[24:40]) != incarnation || headerBytes(int(n)) != size {
		return segmentHeader{}, 0, fmt.Errorf("%w: of another journal", errHeader)
	}
	h.Last = make([]uint64, n)
	for i := range h.Last {
		h.Last[i] = le.Uint64(data[segmentFixed+8*i:])
	}
	return h, size, nil
}

// segmentSalt starts the CRC of every frame of one segment.
func segmentSalt(incarnation ledger.ID, index uint64) uint32 {
	var b [24]byte
	copy(b[:], incarnation[:])
	binary.LittleEndian.PutUint64(b[16:], index)
	return crc32.Checksum(b[:], castagnoli)
}

// frameSum differs for the same frame at every other offset, and in every other segment: offsets are below 2^32.
func frameSum(salt uint32, offset int64, head, body []byte) uint32 {
	return crc32.Update(crc32.Update(salt, castagnoli, head), castagnoli, body) ^ uint32(offset)
}

// sealFrame fills in the header of the frame that occupies all of frame, at offset in its segment.
func sealFrame(frame []byte, salt uint32, offset, batch int64) {
	le := binary.LittleEndian
	le.PutUint32(frame, frameMark)
	le.PutUint32(frame[4:], uint32(len(frame)-frameHeader))
	le.PutUint32(frame[8:], uint32(batch))
	le.PutUint32(frame[12:], frameSum(salt, offset, frame[:12], frame[frameHeader:]))
}

// frame is one frame found in a segment.
type frame struct {
	Offset int64  // in the segment
	Batch  int64  // offset of the first frame of its write
	Body   []byte // aliases the data read
}

func (f frame) end() int64 { return f.Offset + frameHeader + int64(len(f.Body)) }

// The ways in which a frame cannot be read.
var (
	errShort  = errors.New("frame is cut short")
	errMark   = errors.New("no frame begins here")
	errLength = errors.New("frame has an impossible length")
	errSum    = errors.New("frame has a wrong checksum")
)

// decodeFrame reads the frame at the start of data, which lies at offset in its segment.
func decodeFrame(data []byte, salt uint32, offset int64) (frame, error) {
	le := binary.LittleEndian
	if len(data) < frameHeader {
		return frame{}, errShort
	}
	if le.Uint32(data) != frameMark {
		return frame{}, errMark
	}
	n, batch := int64(le.Uint32(data[4:])), int64(le.Uint32(data[8:]))
	if n > maxBody || batch > offset {
		return frame{}, errLength
	}
	if int64(len(data)) < frameHeader+n {
		return frame{}, errShort
	}
	body := data[frameHeader : frameHeader+n : frameHeader+n]
	if frameSum(salt, offset, data[:12], body) != le.Uint32(data[12:]) {
		return frame{}, errSum
	}
	return frame{Offset: offset, Batch: batch, Body: body}, nil
}

// gap is a stretch of a segment in which no frame can be read.
type gap struct {
	From, To int64
	Reason   error
	// Durable: it was fsynced once, because a frame behind it was written later.
	Durable bool
}

// walkFrames calls onFrame for every readable frame of data, a stretch of a segment that begins at offset, in order, and
// returns the gaps between them. A gap at the end reaches to the end of data.
func walkFrames(data []byte, salt uint32, offset int64, onFrame func(frame) error) ([]gap, error) {
	var (
		gaps []gap
		pos  int
	)
	for pos < len(data) {
		f, err := decodeFrame(data[pos:], salt, offset+int64(pos))
		if err != nil {
			next := nextFrame(data, salt, offset, pos+1)
			gaps = append(gaps, gap{From: offset + int64(pos), To: offset + int64(next), Reason: err})
			pos = next
			continue
		}
		for i := len(gaps) - 1; i >= 0 && !gaps[i].Durable; i-- {
			gaps[i].Durable = f.Batch > gaps[i].From
		}
		if err := onFrame(f); err != nil {
			return gaps, err
		}
		pos += frameHeader + len(f.Body)
	}
	return gaps, nil
}

var markBytes = binary.LittleEndian.AppendUint32(nil, frameMark)

// nextFrame returns the position, from or later, of the next readable frame in data; len(data) if there is none.
func nextFrame(data []byte, salt uint32, offset int64, from int) int {
	for from < len(data) {
		i := bytes.Index(data[from:], markBytes)
		if i < 0 {
			break
		}
		from += i
		if _, err := decodeFrame(data[from:], salt, offset+int64(from)); err == nil {
			return from
		}
		from++
	}
	return len(data)
}
