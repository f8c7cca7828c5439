package dialect

import "bytes"

// eventKey and eventEnd are around the payload of an event that is one line.
const (
	eventKey = "data:"
	eventEnd = "\n\n"
)

// Usual tells whether events can be taken by Next, and of which choice their text is: Read has seen one piece of text in one line, and
// nothing beside it.
func (r *ChunkReader) Usual() (choice int, ok bool) {
	if len(r.before) == 0 || !r.line {
		return 0, false
	}
	return r.like.Texts[0].Choice, true
}

// Next takes the event at the beginning of an event stream if it is, byte for byte, what the last piece of text came in, and its text has no
// escapes. Only after Usual. It returns the text and the bytes of the event; 0 means no more than that it has to be scanned and read.
func (r *ChunkReader) Next(fed []byte) (text []byte, size int) {
	if len(fed) < len(eventKey)+1 || string(fed[:len(eventKey)]) != eventKey {
		return nil, 0
	}
	at := len(eventKey)
	if fed[at] == ' ' {
		at++
	}
	if !bytes.HasPrefix(fed[at:], r.before) {
		return nil, 0
	}
	at += len(r.before)
	end := at
	for ; end < len(fed) && fed[end] != '"'; end++ {
		if c := fed[end]; c < ' ' || c == '\\' {
			return nil, 0
		}
	}
	rest := fed[end:]
	if !bytes.HasPrefix(rest, r.after) {
		return nil, 0
	}
	rest = rest[len(r.after):]
	if len(r.tail) > 0 {
		if rest = rest[interior(rest):]; !bytes.HasPrefix(rest, r.tail) {
			return nil, 0
		}
		rest = rest[len(r.tail):]
	}
	if len(rest) < len(eventEnd) || string(rest[:len(eventEnd)]) != eventEnd {
		return nil, 0
	}
	return fed[at:end:end], len(fed) - len(rest) + len(eventEnd)
}
