// Package sse finds the events in a server-sent event stream without changing a byte of it.
//
// It owns the framing and nothing else: what a payload means is relay/dialect's business, what it costs is
// relay/meter's. The relay feeds it the upstream's bytes as they arrive and gets back whole events, each with all the
// bytes it was made of, so that one event can be dropped (a usage chunk the client did not ask for) or held back (the
// last one, until the journal is durable: L1) while every other byte passes as it came, in order.
//
// Promises: the Raw bytes of all events, in order, with Flush at the end, are the input, whatever its fragments; the
// payloads do not depend on the fragments either; nothing is allocated per event unless a payload spans several data
// lines; memory is bounded by one event (L7). It holds no state outside one stream, so a crash loses nothing of its own.
package sse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// DefaultMaxEventBytes bounds an unfinished event when the operator named no bound: the largest events known are
// inline images of a few MiB in base64, and one such buffer per stream is what a node can still afford.
const DefaultMaxEventBytes = 16 << 20

// keepCarryBytes is the largest buffer kept from one unfinished event to the next. One big event must not pin its
// memory for the rest of a long stream.
const keepCarryBytes = 64 << 10

// ErrTooLong means that an event grew past the bound before it ended.
var ErrTooLong = errors.New("event exceeds the bound")

var (
	bom      = []byte("\xef\xbb\xbf")
	donePay  = []byte("[DONE]")
	dataKey  = []byte("data")
	usualKey = []byte("data:")
	eventKey = []byte("event")
)

// Event is one event of the stream, or a stretch of it without a payload (a comment line, a lone blank line). Its
// slices alias the scanner's window: they are valid until the next Feed.
type Event struct {
	// Raw is every byte of the event, terminator included.
	Raw []byte
	// Data is the payload, several data lines being joined by line feeds; nil if the event has no data line.
	Data []byte
	// Name is the value of the event field, nil if there is none.
	Name []byte
}

// Done reports whether the payload is the [DONE] that ends OpenAI streams.
func (e Event) Done() bool {
	return len(e.Data) >= len(donePay) && bytes.Equal(bytes.TrimSpace(e.Data), donePay)
}

// span is a range of the window; the zero value is empty and absent.
type span struct {
	from, to int
	set      bool
}

func (s span) of(b []byte) []byte {
	if !s.set {
		return nil
	}
	return b[s.from:s.to:s.to]
}

// Scanner splits a stream into events. It is for one stream and one goroutine.
type Scanner struct {
	max   int
	win   []byte // what was fed and not yet handed out, unfinished bytes of earlier fragments in front
	carry []byte // backing of win while an event is unfinished
	own   bool   // win is carry, not the caller's fragment

	start int // of the current event in win
	line  int // of the current line
	scan  int // no line end lies in [line, scan)

	data   span   // payload of the only data line
	joined []byte // payload when there are several
	lines  int    // data lines so far
	name   span
	fields bool // a line other than a comment was seen in this event
	crlf   bool // the line before this one ended in CR LF
	begun  bool // the first line of the stream is behind us
}

// NewScanner returns a scanner that accepts unfinished events up to maxEventBytes; 0 or less means
// DefaultMaxEventBytes.
func NewScanner(maxEventBytes int) *Scanner {
	if maxEventBytes <= 0 {
		maxEventBytes = DefaultMaxEventBytes
	}
	return &Scanner{max: maxEventBytes}
}

// Feed hands the scanner the next bytes of the stream. It keeps p until the next Feed and copies only what is left of
// an unfinished event, so p must not change while Next is being called. Call it after Next returned false. The error is
// ErrTooLong with the bound; the stream cannot go on after it.
func (s *Scanner) Feed(p []byte) error {
	rest := s.win[s.start:]
	if len(rest) > s.max {
		return fmt.Errorf("scan event stream: %w of %d bytes", ErrTooLong, s.max)
	}
	if len(rest) == 0 {
		s.shift(s.start)
		s.win, s.own = p, false
		if cap(s.carry) > keepCarryBytes {
			s.carry = nil
		}
		return nil
	}
	if s.start > 0 || !s.own {
		s.carry = append(s.carry[:0], rest...)
		s.shift(s.start)
	}
	s.carry = append(s.carry, p...)
	s.own = true
	s.win = s.carry
	return nil
}

// FeedBehind is Feed for bytes that were read to buf[at:]. The scanner may put what is left of an unfinished event in front of them,
// which spares it a copy of the whole; what does not fit there is treated as Feed does. It keeps buf until the next Feed.
func (s *Scanner) FeedBehind(buf []byte, at int) error {
	rest := s.win[s.start:]
	if len(rest) == 0 || len(rest) > min(at, s.max) {
		return s.Feed(buf[at:])
	}
	from := at - copy(buf[at-len(rest):at], rest)
	s.shift(s.start)
	s.win, s.own = buf[from:], false
	return nil
}

// Next returns the next whole event of what was fed. False means that the rest is unfinished: Feed more, or Flush.
func (s *Scanner) Next() (Event, bool) {
	if e, ok := s.usual(); ok {
		return e, true
	}
	for {
		end, next, ok := s.lineEnd()
		if !ok {
			s.save()
			return Event{}, false
		}
		if s.splits(end) {
			return s.emit(s.line), true
		}
		blank := s.take(end)
		s.crlf = next-end == 2
		s.line, s.scan = next, next
		if blank || !s.fields {
			return s.emit(next), true
		}
	}
}

// Ahead returns what was fed and not handed out yet if an event begins there; nil if one has begun already. It is for a caller who knows
// what the next events are without a scan, and leaves them out with Skip.
func (s *Scanner) Ahead() []byte {
	if s.scan != s.start || !s.begun {
		return nil
	}
	return s.win[s.start:]
}

// Skip leaves out the first n bytes of Ahead: whole events, the last of which ends in two line feeds.
func (s *Scanner) Skip(n int) {
	if n == 0 {
		return // an event may have begun
	}
	s.start += n
	s.line, s.scan, s.crlf = s.start, s.start, false
}

// usual returns the next event if it is what nearly all of a stream are: one line of data, and a blank one. It finds nothing that the
// lines one by one would not say.
func (s *Scanner) usual() (e Event, ok bool) {
	if s.scan != s.start || !s.begun || !bytes.HasPrefix(s.win[s.start:], usualKey) {
		return e, false
	}
	rest := s.win[s.start:]
	lf := bytes.IndexByte(rest, '\n')
	if lf < 0 || lf+1 == len(rest) || rest[lf+1] != '\n' || bytes.IndexByte(rest[:lf], '\r') >= 0 {
		return e, false
	}
	from := len(usualKey)
	if rest[from] == ' ' {
		from++
	}
	e.Raw, e.Data = rest[:lf+2], rest[from:lf:lf]
	s.start += lf + 2
	s.line, s.scan, s.crlf = s.start, s.start, false
	return e, true
}

// Flush returns what the stream left unfinished when it ended, parsed as if it had been finished: line-based clients
// read it so. Call it until it returns false, which means that nothing is left.
func (s *Scanner) Flush() (Event, bool) {
	if s.start >= len(s.win) {
		return Event{}, false
	}
	end := len(s.win)
	if end > s.line && s.win[end-1] == '\r' {
		end--
	}
	if s.splits(end) {
		return s.emit(s.line), true
	}
	if s.line < end {
		s.take(end)
	}
	return s.emit(len(s.win)), true
}

// lineEnd finds the end of the current line: its end without terminator and the start of the next one.
func (s *Scanner) lineEnd() (end, next int, ok bool) {
	seg := s.win[s.scan:]
	lf := bytes.IndexByte(seg, '\n')
	if lf >= 0 {
		seg = seg[:lf]
	}
	cr := bytes.IndexByte(seg, '\r')
	switch {
	case cr < 0 && lf < 0:
		s.scan = len(s.win)
		return 0, 0, false
	case cr < 0:
		return s.scan + lf, s.scan + lf + 1, true
	case lf >= 0 && cr == lf-1:
		return s.scan + cr, s.scan + lf + 1, true
	}
	end = s.scan + cr
	if end+1 < len(s.win) {
		return end, end + 1, true
	}
	// CR is the last byte at hand; a LF may follow. Waiting for it delays nothing but the end of an event, and there
	// only a stream that ends its lines in CR LF is waited for. Elsewhere a LF to come is a blank line of its own.
	if end == s.line && !s.crlf && s.begun {
		return end, end + 1, true
	}
	s.scan = end
	return 0, 0, false
}

// splits reports whether the line that ends at end begins an event of its own although no blank line came before it:
// some upstreams separate their chunks by a single line end. The previous data line must be complete in itself.
func (s *Scanner) splits(end int) bool {
	if s.lines != 1 || end-s.line < len(dataKey)+1 || !bytes.HasPrefix(s.win[s.line:end], dataKey) ||
		s.win[s.line+len(dataKey)] != ':' {
		return false
	}
	d := bytes.TrimSpace(s.data.of(s.win))
	return bytes.Equal(d, donePay) || len(d) > 1 && d[0] == '{' && d[len(d)-1] == '}' && json.Valid(d)
}

// take reads the line that ends at end and reports whether it is blank.
func (s *Scanner) take(end int) (blank bool) {
	from := s.line
	if !s.begun {
		s.begun = true
		if bytes.HasPrefix(s.win[from:end], bom) {
			from += len(bom)
		}
	}
	if from == end {
		return true
	}
	line := s.win[from:end]
	if line[0] == ':' {
		return false
	}
	s.fields = true
	key, val := line, end
	if i := bytes.IndexByte(line, ':'); i >= 0 {
		key, val = line[:i], from+i+1
		if val < end && s.win[val] == ' ' {
			val++
		}
	}
	switch {
	case bytes.Equal(key, dataKey):
		s.addData(span{val, end, true})
	case bytes.Equal(key, eventKey):
		s.name = span{val, end, true}
	}
	return false
}

func (s *Scanner) addData(d span) {
	s.lines++
	if s.lines == 1 {
		s.data = d
		return
	}
	if s.lines == 2 {
		s.joined = append(s.joined[:0], s.data.of(s.win)...)
	}
	s.joined = append(append(s.joined, '\n'), d.of(s.win)...)
}

// emit hands out the bytes from the current event's start to end and begins the next event there.
func (s *Scanner) emit(end int) Event {
	e := Event{Raw: s.win[s.start:end], Data: s.data.of(s.win), Name: s.name.of(s.win)}
	if s.lines > 1 {
		e.Data = s.joined
		s.joined = nil // the caller holds it until the next Feed; several data lines are rare enough to pay for it
	}
	s.start = end
	s.line = max(s.line, end)
	s.scan = max(s.scan, end)
	s.data, s.name, s.lines, s.fields = span{}, span{}, 0, false
	return e
}

// save copies the unfinished bytes out of the caller's fragment, which it may overwrite before the next Feed. Bytes in
// carry stay where they are until then: events handed out before still lie in front of them.
func (s *Scanner) save() {
	rest := s.win[s.start:]
	if len(rest) == 0 || s.own {
		return
	}
	s.carry = append(s.carry[:0], rest...)
	s.win, s.own = s.carry, true
	s.shift(s.start)
}

// shift moves every offset back by n.
func (s *Scanner) shift(n int) {
	if n == 0 {
		return
	}
	s.start -= n
	s.line -= n
	s.scan -= n
	s.data.from, s.data.to = s.data.from-n, s.data.to-n
	s.name.from, s.name.to = s.name.from-n, s.name.to-n
}
