package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Head is what the canonical form of an event begins with: enough to label a record without decoding it. The text
// fields alias the value they were read from.
type Head struct {
	Version  int
	Kind     []byte
	ID       []byte // 36 characters
	Producer []byte // 36 characters
	Seq      uint64
	Prev     uint64
	Time     int64 // Unix milliseconds
}

var errNotCanonical = errors.New("value does not begin as a canonical event does")

// PeekHead reads the head of a canonically encoded event. It looks only at the first fields, at their fixed places, and
// allocates nothing. Errors: value was not written by Encode.
func PeekHead(value []byte) (Head, error) {
	var h Head
	p := headParser{rest: value}
	h.Version = int(p.uint(`{"v":`))
	h.Kind = p.text(`,"kind":`)
	h.ID = p.text(`,"id":`)
	h.Producer = p.text(`,"producer":`)
	h.Seq = p.uint(`,"seq":`)
	h.Prev = p.uint(`,"prev":`)
	h.Time = int64(p.uint(`,"time":`))
	if p.bad || len(h.ID) != 36 || len(h.Producer) != 36 {
		return Head{}, fmt.Errorf("peek event: %w", errNotCanonical)
	}
	return h, nil
}

type headParser struct {
	rest []byte
	bad  bool
}

func (p *headParser) skip(literal string) bool {
	if p.bad || len(p.rest) < len(literal) || string(p.rest[:len(literal)]) != literal {
		p.bad = true
		return false
	}
	p.rest = p.rest[len(literal):]
	return true
}

func (p *headParser) text(label string) []byte {
	if !p.skip(label) || !p.skip(`"`) {
		return nil
	}
	end := bytes.IndexByte(p.rest, '"')
	if end < 0 || bytes.IndexByte(p.rest[:end], '\\') >= 0 {
		p.bad = true
		return nil
	}
	text := p.rest[:end]
	p.rest = p.rest[end+1:]
	return text
}

func (p *headParser) uint(label string) uint64 {
	if !p.skip(label) {
		return 0
	}
	n := 0
	for n < len(p.rest) && p.rest[n] >= '0' && p.rest[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(p.rest[:n]), 10, 64)
	if err != nil {
		p.bad = true
	}
	p.rest = p.rest[n:]
	return v
}
