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
	text, n := r.match(fed[at:])
	if n == 0 || !bytes.HasPrefix(fed[at+n:], []byte(eventEnd)) {
		return nil, 0
	}
	for _, c := range text {
		if c < ' ' || c == '\\' {
			return nil, 0
		}
	}
	if len(r.tail) > 0 && bytes.ContainsAny(fed[:at+n], "\r\n") { // in the padding
		return nil, 0
	}
	return text, at + n + len(eventEnd)
}
