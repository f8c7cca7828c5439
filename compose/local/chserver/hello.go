package main

import (
	"bytes"
	"encoding/binary"
	"strconv"
)

// isHello tells the statement by which clickhouse-go asks who it talks to. It must be answered here, in a result of the
// protocol revision that the client names, and with a revision of 0: the engine writes all other results in revision 0.
func isHello(text []byte) bool {
	return bytes.HasPrefix(text, []byte("SELECT displayName(), version(), revision(), timezone()"))
}

// Revisions of the native format from which a block has a header, and a column a flag, that revision 0 lacks.
const (
	revisionBlockInfo           = 1
	revisionCustomSerialization = 54454
)

// hello encodes one row in the native format.
func (s *server) hello(clientRevision string) []byte {
	revision, _ := strconv.Atoi(clientRevision) // "" is 0, as for the engine
	var b []byte
	text := func(v string) { b = append(binary.AppendUvarint(b, uint64(len(v))), v...) }
	column := func(name, kind string) {
		text(name)
		text(kind)
		if revision >= revisionCustomSerialization {
			b = append(b, 0)
		}
	}
	if revision >= revisionBlockInfo {
		b = append(b, 1, 0)                      // field 1: is_overflows = false
		b = append(b, 2, 0xff, 0xff, 0xff, 0xff) // field 2: bucket_num = -1
		b = append(b, 0)
	}
	b = append(b, 4, 1) // columns, rows
	column("displayName()", "String")
	text("chserver")
	column("version()", "String")
	text(s.version)
	column("revision()", "UInt32")
	b = binary.LittleEndian.AppendUint32(b, 0)
	column("timezone()", "String")
	text(s.timezone)
	return b
}
