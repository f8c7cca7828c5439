package ledger

import (
	"encoding/hex"
	"errors"
)

// ID names an event, a hold or a journal incarnation: 16 bytes, written as a UUID. The zero ID means "none".
// Callers make IDs (UUIDv7), since this package reads neither clock nor random source.
type ID [16]byte

var errBadID = errors.New("an id is a UUID of 36 characters")

// ParseID reads the canonical text form of an ID, 36 lower- or upper-case characters.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, errBadID
	}
	var packed [32]byte
	n := 0
	for i := range 36 {
		if s[i] != '-' {
			if n == len(packed) {
				return ID{}, errBadID
			}
			packed[n] = s[i]
			n++
		}
	}
	if _, err := hex.Decode(id[:], packed[:n]); err != nil || n != len(packed) {
		return ID{}, errBadID
	}
	return id, nil
}

// IsZero reports whether id is the zero ID.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the canonical text form.
func (id ID) String() string { return string(id.Append(make([]byte, 0, 36))) }

// Append appends the canonical text form of id to dst.
func (id ID) Append(dst []byte) []byte {
	dst = hex.AppendEncode(dst, id[0:4])
	for _, part := range [][]byte{id[4:6], id[6:8], id[8:10], id[10:16]} {
		dst = append(dst, '-')
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return id.Append(make([]byte, 0, 36)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
