package http1

import (
	"errors"
	"io"
)

const (
	// maxLine bounds a line of the framing, and all trailers together, in bytes; net/http's bound.
	maxLine = 4 << 10
	// maxDigits is what a 64-bit size has at the most.
	maxDigits = 16
	// maxExcess bounds the framing beyond what small chunks need, in bytes; net/http's bound. A server that sends extensions without end
	// would keep a reader busy for nothing.
	maxExcess = 16 << 10
	// freeExcess is what each chunk may have of framing, beside twice its payload.
	freeExcess = 16
)

var errFraming = errors.New("the answer's chunked framing is malformed")

// The states of chunks: what the next byte belongs to.
const (
	inSize      = iota // the digits of a size
	inPad              // white space behind them
	inExtension        // ignored
	inSizeEnd          // the line feed of that line
	inData
	inDataCR
	inDataLF
	inTrailerStart
	inTrailer
	inEnd // the last line feed
)

// chunks takes the framing of "Transfer-Encoding: chunked" out of a body (RFC 9112, 7.1), as strict as net/http. The zero value is
// at the beginning of one. Extensions and trailers are ignored.
type chunks struct {
	state  int
	left   uint64 // bytes of the chunk: to come, or read so far of its size
	digits int
	line   int // bytes of this line, or of all trailers
	excess int64
}

// decode moves the payload in raw to its front and returns how much that is. used is how far the framing was understood; it is less
// than len(raw) only with an error. The error is io.EOF at the end of the body.
func (d *chunks) decode(raw []byte) (payload, used int, err error) {
	for used < len(raw) {
		if d.state == inData {
			n := int(min(d.left, uint64(len(raw)-used)))
			if payload != used {
				copy(raw[payload:], raw[used:used+n])
			}
			payload, used = payload+n, used+n
			if d.left -= uint64(n); d.left == 0 {
				d.state = inDataCR
			}
			continue
		}
		if n := d.usual(raw[used:]); n > 0 {
			used += n
			continue
		}
		err = d.step(raw[used])
		used++
		if err != nil {
			return payload, used, err
		}
	}
	return payload, used, nil
}

// usual takes the framing between two chunks in one step, if all of it is there and nothing in it is out of the ordinary: the end of one
// and a size of up to four digits, no extension behind it. It returns how many bytes that was; 0 leaves them to step.
func (d *chunks) usual(raw []byte) int {
	const most = len("\r\nffff\r\n")
	if d.state != inDataCR || len(raw) < most || raw[0] != '\r' || raw[1] != '\n' {
		return 0
	}
	size, i := uint64(0), 2
	for ; i < most-2; i++ {
		value, isDigit := hexDigit(raw[i])
		if !isDigit {
			break
		}
		size = size<<4 | uint64(value)
	}
	if size == 0 || raw[i] != '\r' || raw[i+1] != '\n' {
		return 0
	}
	d.state, d.left, d.digits, d.line = inSizeEnd, size, i-2, i-2
	_ = d.sizeEnd('\n') // so little framing is never too much
	return i + 2
}

// step takes one byte of framing.
func (d *chunks) step(b byte) error {
	switch d.state {
	case inSize, inPad, inExtension:
		return d.sizeLine(b)
	case inSizeEnd:
		return d.sizeEnd(b)
	case inDataCR:
		return d.expect(b, '\r', inDataLF)
	case inDataLF:
		d.digits, d.line = 0, 0
		return d.expect(b, '\n', inSize)
	case inEnd:
		if b != '\n' {
			return errFraming
		}
		return io.EOF
	}
	return d.trailer(b)
}

func (d *chunks) expect(b, want byte, next int) error {
	if b != want {
		return errFraming
	}
	d.state = next
	return nil
}

func (d *chunks) sizeLine(b byte) error {
	if b == '\r' {
		if d.digits == 0 {
			return errFraming
		}
		d.state = inSizeEnd
		return nil
	}
	if d.line++; d.line >= maxLine || b == '\n' {
		return errFraming
	}
	if d.state == inExtension {
		return nil
	}
	value, isDigit := hexDigit(b)
	switch {
	case isDigit && d.state == inSize:
		if d.digits++; d.digits > maxDigits {
			return errFraming
		}
		d.left = d.left<<4 | uint64(value)
	case b == ';' && d.state == inSize && d.digits > 0:
		d.state = inExtension
	case (b == ' ' || b == '\t') && d.digits > 0:
		d.state = inPad
	default:
		return errFraming
	}
	return nil
}

func hexDigit(b byte) (value byte, ok bool) {
	switch {
	case b >= '0' && b <= '9':
		return b - '0', true
	case b >= 'a' && b <= 'f':
		return b - 'a' + 10, true
	case b >= 'A' && b <= 'F':
		return b - 'A' + 10, true
	}
	return 0, false
}

// sizeEnd begins the chunk whose size is known now. One of size 0 is the end.
func (d *chunks) sizeEnd(b byte) error {
	const lineEnd = 2
	switch d.excess = max(0, d.excess+int64(d.line)+lineEnd-freeExcess-2*int64(min(d.left, 1<<40))); {
	case b != '\n' || d.excess > maxExcess:
		return errFraming
	case d.left == 0:
		d.state, d.line = inTrailerStart, 0
	default:
		d.state = inData
	}
	return nil
}

func (d *chunks) trailer(b byte) error {
	if d.line++; d.line > maxLine {
		return errFraming
	}
	switch {
	case d.state == inTrailerStart && b == '\r':
		d.state = inEnd
	case d.state == inTrailerStart && b == '\n': // net/http takes line feeds alone here, too
		return io.EOF
	case b == '\n':
		d.state = inTrailerStart
	default:
		d.state = inTrailer
	}
	return nil
}
