package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// WithVersion returns a segment that claims to be of another version.
func WithVersion(segment []byte, version uint32) []byte {
	b := bytes.Clone(segment)
	binary.LittleEndian.PutUint32(b[8:], version)
	end := binary.LittleEndian.Uint32(b[12:]) - 4
	binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli))
	return b
}
