package ledger

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Decode reads an event. Errors: ErrNewer (wrapped) for an unknown kind or higher version, otherwise what is wrong; an event
// that is well formed and only cannot be applied comes with its error. The strings of the event share one copy of value, so
// keeping one of them keeps about a kilobyte: clone what goes into a long-lived map.
func Decode(value []byte) (Event, error) {
	var e Event
	err := decode(value, &e, nil)
	return e, err
}

// decoderBlock is how many events' objects a Decoder allocates at once.
const decoderBlock = 16

// Decoder decodes many events with fewer allocations than Decode. The zero value is ready; it is not safe for concurrent use.
type Decoder struct {
	blocks [][]eventParts
	used   int
}

// Decode reads value into e, which it overwrites, as Decode the function does.
func (d *Decoder) Decode(value []byte, e *Event) error { return decode(value, e, d) }

// Reset lets the decoder use the memory of all events it decoded again: they must not be used any more.
func (d *Decoder) Reset() { d.used = 0 }

// parts returns zeroed objects for one more event.
func (d *Decoder) parts() *eventParts {
	n := d.used
	d.used++
	if n/decoderBlock == len(d.blocks) {
		d.blocks = append(d.blocks, make([]eventParts, decoderBlock))
		return &d.blocks[n/decoderBlock][0]
	}
	p := &d.blocks[n/decoderBlock][n%decoderBlock]
	*p = eventParts{}
	return p
}

func decode(value []byte, e *Event, d *Decoder) error {
	*e = Event{}
	if len(value) > MaxEventBytes {
		return fmt.Errorf("decode event: %d bytes, more than %d", len(value), MaxEventBytes)
	}
	c := codec{reading: true, in: value, text: string(value), plain: isPlain(value), decoder: d}
	c.event(e)
	if c.bad || c.pos != len(value) {
		*e = Event{}
		if err := json.Unmarshal(value, e); err != nil {
			*e = Event{}
			if kind, version, newer := isNewer(value); newer {
				return fmt.Errorf("decode event of kind %s version %d: %w", kind, version, ErrNewer)
			}
			return fmt.Errorf("decode event: %w", err)
		}
	}
	if e.Version > EventVersion || e.Version > 0 && e.Kind != "" && !e.Kind.Known() {
		return fmt.Errorf("decode event of kind %q version %d: %w", e.Kind, e.Version, ErrNewer)
	}
	return e.Check()
}

// isNewer decides on an event that does not decode: one of a later version may have any fields, an unknown kind too.
func isNewer(value []byte) (kind string, version int, newer bool) {
	var head struct {
		V    int             `json:"v"`
		Kind json.RawMessage `json:"kind"`
	}
	if json.Unmarshal(value, &head) != nil {
		return "", 0, false
	}
	var known Kind
	unknown := json.Unmarshal(head.Kind, &known) == nil && !known.Known()
	return string(head.Kind), head.V, head.V > EventVersion || head.V > 0 && unknown
}

// isPlain reports whether b is printable ASCII without a backslash, so that every string in it ends at the next quote and
// stands for itself. It looks at eight bytes at a time.
func isPlain(b []byte) bool {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	var found uint64
	for len(b) >= 8 {
		w := binary.LittleEndian.Uint64(b)
		backslash := w ^ ones*'\\'
		found |= w | (w-ones*' ')&^w | (backslash-ones)&^backslash
		b = b[8:]
	}
	if found&highs != 0 {
		return false
	}
	for _, c := range b {
		if c < ' ' || c >= utf8.RuneSelf || c == '\\' {
			return false
		}
	}
	return true
}

func (c *codec) newParts() *eventParts {
	if c.decoder == nil {
		return &eventParts{}
	}
	return c.decoder.parts()
}

func (c *codec) expect(b byte) {
	if c.pos >= len(c.text) || c.text[c.pos] != b {
		c.bad = true
		return
	}
	c.pos++
}

// match reads key, `,"name":`, if it comes next; the first field of an object has no comma.
func (c *codec) match(key string) bool {
	if c.first {
		key = key[1:]
	}
	rest := c.text[c.pos:]
	last := len(key) - 1
	// Fields that are left out are told by their first letter, or else by where the key ends, before the comparison proper.
	if c.bad || len(rest) <= last || rest[last] != ':' || rest[:last] != key[:last] {
		return false
	}
	c.pos += len(key)
	c.first = false
	return true
}

func (c *codec) readString() string {
	c.expect('"')
	rest := c.text[c.pos:]
	if c.bad {
		return ""
	}
	if c.plain {
		end := strings.IndexByte(rest, '"')
		if end < 0 {
			c.bad = true
			return ""
		}
		c.pos += end + 1
		return rest[:end]
	}
	return c.readAnyString()
}

// readAnyString reads the rest of a string that may hold escapes and other letters than ASCII.
func (c *codec) readAnyString() string {
	start := c.pos
	plain := true
	for c.pos < len(c.in) {
		switch b := c.in[c.pos]; {
		case b == '"':
			raw := c.text[start:c.pos]
			c.pos++
			if plain || !strings.Contains(raw, `\`) && utf8.ValidString(raw) {
				return raw
			}
			var s string
			if json.Unmarshal(c.in[start-1:c.pos], &s) != nil {
				c.bad = true
			}
			return s
		case b == '\\':
			plain = false
			c.pos++
		case b < ' ':
			c.bad = true
			return ""
		case b >= utf8.RuneSelf:
			plain = false
		}
		c.pos++
	}
	c.bad, c.pos = true, len(c.in) // a backslash at the end has taken pos beyond it
	return ""
}

// readStrings reads a list of strings; an empty one is not canonical.
func (c *codec) readStrings() []string {
	c.expect('[')
	list := make([]string, 0, 2)
	for !c.bad {
		list = append(list, c.readString())
		if c.pos < len(c.text) && c.text[c.pos] == ']' {
			c.pos++
			return list
		}
		c.expect(',')
	}
	return nil
}

func (c *codec) readInt() int64 {
	negative := c.pos < len(c.text) && c.text[c.pos] == '-'
	if negative {
		c.pos++
	}
	u := c.readUint()
	switch {
	case !negative && u <= math.MaxInt64:
		return int64(u)
	case negative && u <= math.MaxInt64+1:
		return -int64(u)
	}
	c.bad = true
	return 0
}

func (c *codec) readUint() uint64 {
	start := c.pos
	var v uint64
	for c.pos < len(c.text) {
		d := uint64(c.text[c.pos]) - '0'
		if d > 9 {
			break
		}
		if v > (math.MaxUint64-d)/10 {
			c.bad = true
			return 0
		}
		v = v*10 + d
		c.pos++
	}
	if digits := c.pos - start; digits == 0 || digits > 1 && c.text[start] == '0' {
		c.bad = true
	}
	return v
}

func (c *codec) readTrue() bool {
	if !strings.HasPrefix(c.text[c.pos:], "true") {
		c.bad = true // canonical events leave false out
		return false
	}
	c.pos += len("true")
	return true
}

func (c *codec) readID() (id ID) {
	const size = 38 // with its quotes
	if len(c.text)-c.pos < size || c.text[c.pos] != '"' || c.text[c.pos+size-1] != '"' {
		c.bad = true
		return ID{}
	}
	id, err := ParseID(c.text[c.pos+1 : c.pos+size-1])
	if err != nil {
		c.bad = true
	}
	c.pos += size
	return id
}
