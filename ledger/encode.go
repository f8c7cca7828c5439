package ledger

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Encode appends the canonical JSON of e to dst: fields in the order of the struct, no white space, no HTML escaping. It is byte
// for byte what encoding/json writes, at a fraction of the cost: it runs once per request on the relay.
func (e *Event) Encode(dst []byte) ([]byte, error) {
	c := codec{out: dst}
	c.event(e)
	if c.err != nil {
		return nil, fmt.Errorf("encode event: %w", c.err)
	}
	if len(c.out)-len(dst) > MaxEventBytes {
		return nil, fmt.Errorf("encode event: %d bytes, more than %d", len(c.out)-len(dst), MaxEventBytes)
	}
	return c.out, nil
}

// Append appends the canonical JSON of r to dst, as it stands in an event.
func (r *Request) Append(dst []byte) []byte {
	c := codec{out: dst}
	c.request(r)
	return c.out
}

// Append appends the canonical JSON of r to dst, as it stands in an event.
func (r *Rating) Append(dst []byte) ([]byte, error) {
	c := codec{out: dst}
	c.rating(r)
	if c.err != nil {
		return nil, fmt.Errorf("encode rating: %w", c.err)
	}
	return c.out, nil
}

// AppendString appends s as a JSON string in canonical form: as encoding/json writes it without HTML escaping.
func AppendString(dst []byte, s string) []byte { return appendString(dst, s) }

// codec writes or reads the canonical form. Both directions walk the same list of fields, so they cannot drift apart; a test that
// fills every field by reflection keeps the list complete. Reading takes only what Encode writes, some ten times faster than
// encoding/json, which is asked about everything else; so strictness here costs time only.
type codec struct {
	out []byte // writing
	err error  // writing: what failed

	reading bool
	in      []byte // reading: the value …
	text    string // … and the same as a string, which the decoded strings share
	plain   bool   // in is ASCII without escapes
	pos     int
	first   bool     // no field of the object has been read yet
	bad     bool     // not canonical
	decoder *Decoder // where parts come from; nil: allocated singly
	parts   *eventParts
}

// eventParts are the objects inside an event, allocated together: a usage event has them all.
type eventParts struct {
	hold    HoldRef
	request Request
	usage   Usage
	rating  Rating
}

// Whether a field is left out when it is zero.
const (
	always = false
	omit   = true
)

func (c *codec) event(e *Event) {
	start := c.open()
	signed(c, `,"v":`, &e.Version, always)
	text(c, `,"kind":`, &e.Kind, always)
	c.id(`,"id":`, &e.ID)
	c.id(`,"producer":`, &e.Producer)
	c.uint64(`,"seq":`, &e.Seq)
	c.uint64(`,"prev":`, &e.Prev)
	signed(c, `,"time":`, &e.Time, always)
	text(c, `,"node":`, &e.Node, omit)
	signed(c, `,"user":`, &e.User, always)
	signed(c, `,"token":`, &e.Token, omit)
	signed(c, `,"channel":`, &e.Channel, omit)
	text(c, `,"account":`, &e.Account, omit)
	signed(c, `,"granted":`, &e.Granted, omit)
	signed(c, `,"charged":`, &e.Charged, omit)
	signed(c, `,"requests":`, &e.Requests, omit)
	text(c, `,"key":`, &e.Key, omit)
	c.bool(`,"redrive":`, &e.Redrive)
	text(c, `,"note":`, &e.Note, omit)
	if c.object(`,"hold":`, e.Hold != nil) {
		if c.reading {
			e.Hold = &c.parts.hold
		}
		c.hold(e.Hold)
	}
	if c.object(`,"request":`, e.Request != nil) {
		if c.reading {
			e.Request = &c.parts.request
		}
		c.request(e.Request)
	}
	if c.object(`,"usage":`, e.Usage != nil) {
		if c.reading {
			e.Usage = &c.parts.usage
		}
		c.usage(e.Usage)
	}
	text(c, `,"source":`, &e.Source, omit)
	c.strings(`,"flags":`, &e.Flags)
	if c.object(`,"rating":`, e.Rating != nil) {
		if c.reading {
			e.Rating = &c.parts.rating
		}
		c.rating(e.Rating)
	}
	c.close(start)
}

func (c *codec) hold(h *HoldRef) {
	start := c.open()
	c.id(`,"id":`, &h.ID)
	c.uint64(`,"epoch":`, &h.Epoch)
	signed(c, `,"amount":`, &h.Amount, always)
	c.bool(`,"token":`, &h.Token)
	c.close(start)
}

func (c *codec) request(r *Request) {
	start := c.open()
	text(c, `,"id":`, &r.ID, always)
	text(c, `,"username":`, &r.Username, omit)
	text(c, `,"token_name":`, &r.TokenName, omit)
	text(c, `,"user_group":`, &r.UserGroup, omit)
	text(c, `,"group":`, &r.Group, omit)
	text(c, `,"model":`, &r.Model, omit)
	text(c, `,"sent":`, &r.Sent, omit)
	text(c, `,"endpoint":`, &r.Endpoint, omit)
	c.bool(`,"stream":`, &r.Stream)
	signed(c, `,"status":`, &r.Status, omit)
	signed(c, `,"first_ms":`, &r.FirstMS, omit)
	signed(c, `,"total_ms":`, &r.TotalMS, omit)
	signed(c, `,"retries":`, &r.Retries, omit)
	text(c, `,"ip":`, &r.IP, omit)
	text(c, `,"upstream":`, &r.Upstream, omit)
	c.close(start)
}

func (c *codec) usage(u *Usage) {
	start := c.open()
	text(c, `,"semantics":`, &u.Semantics, omit)
	signed(c, `,"prompt":`, &u.Prompt, omit)
	signed(c, `,"completion":`, &u.Completion, omit)
	signed(c, `,"cache_read":`, &u.CacheRead, omit)
	signed(c, `,"cache_write":`, &u.CacheWrite, omit)
	signed(c, `,"cache_write_5m":`, &u.CacheWrite5m, omit)
	signed(c, `,"cache_write_1h":`, &u.CacheWrite1h, omit)
	signed(c, `,"image_in":`, &u.ImageIn, omit)
	signed(c, `,"image_out":`, &u.ImageOut, omit)
	signed(c, `,"audio_in":`, &u.AudioIn, omit)
	signed(c, `,"audio_out":`, &u.AudioOut, omit)
	signed(c, `,"reasoning":`, &u.Reasoning, omit)
	rare(c, `,"tools":`, &u.Tools)
	c.close(start)
}

func (c *codec) rating(r *Rating) {
	start := c.open()
	text(c, `,"book":`, &r.Book, omit)
	text(c, `,"mode":`, &r.Mode, omit)
	text(c, `,"model_ratio":`, &r.ModelRatio, omit)
	text(c, `,"completion_ratio":`, &r.CompletionRatio, omit)
	text(c, `,"cache_ratio":`, &r.CacheRatio, omit)
	text(c, `,"cache_write_ratio":`, &r.CacheWriteRatio, omit)
	text(c, `,"image_ratio":`, &r.ImageRatio, omit)
	text(c, `,"audio_ratio":`, &r.AudioRatio, omit)
	text(c, `,"audio_out_ratio":`, &r.AudioOutRatio, omit)
	text(c, `,"group_ratio":`, &r.GroupRatio, omit)
	c.bool(`,"group_special":`, &r.GroupSpecial)
	text(c, `,"model_price":`, &r.ModelPrice, omit)
	text(c, `,"quota_per_unit":`, &r.QuotaPerUnit, omit)
	text(c, `,"other":`, &r.Other, omit)
	text(c, `,"audio_in_price":`, &r.AudioInPrice, omit)
	text(c, `,"tier":`, &r.Tier, omit)
	c.bool(`,"saturated":`, &r.Saturated)
	rare(c, `,"tools":`, &r.Tools)
	c.close(start)
}

// open begins an object. Every field begins with a comma; close turns the first one into the brace.
func (c *codec) open() (start int) {
	if c.reading {
		c.expect('{')
		c.first = true
		return 0
	}
	return len(c.out)
}

func (c *codec) close(start int) {
	if c.reading {
		c.expect('}')
		c.first = false
		return
	}
	if len(c.out) == start {
		c.out = append(c.out, '{')
	} else {
		c.out[start] = '{'
	}
	c.out = append(c.out, '}')
}

// object reports whether there is an object to walk: writing, if present; reading, if its key comes next.
func (c *codec) object(key string, present bool) bool {
	if c.reading {
		if !c.match(key) {
			return false
		}
		if c.parts == nil {
			c.parts = c.newParts()
		}
		return true
	}
	if present {
		c.out = append(c.out, key...)
	}
	return present
}

func text[T ~string](c *codec, key string, v *T, omitted bool) {
	if c.reading {
		if c.match(key) {
			*v = T(c.readString())
		} else if !omitted {
			c.bad = true
		}
		return
	}
	if omitted && *v == "" {
		return
	}
	c.out = appendString(append(c.out, key...), string(*v))
}

func signed[T ~int | ~int64](c *codec, key string, v *T, omitted bool) {
	if c.reading {
		if c.match(key) {
			*v = T(c.readInt())
		} else if !omitted {
			c.bad = true
		}
		return
	}
	if omitted && *v == 0 {
		return
	}
	c.out = strconv.AppendInt(append(c.out, key...), int64(*v), 10)
}

func (c *codec) uint64(key string, v *uint64) {
	if c.reading {
		if !c.match(key) {
			c.bad = true
			return
		}
		*v = c.readUint()
		return
	}
	c.out = strconv.AppendUint(append(c.out, key...), *v, 10)
}

func (c *codec) bool(key string, v *bool) {
	if c.reading {
		if c.match(key) {
			*v = c.readTrue()
		}
		return
	}
	if *v {
		c.out = append(append(c.out, key...), "true"...)
	}
}

func (c *codec) id(key string, v *ID) {
	if c.reading {
		if !c.match(key) {
			c.bad = true
			return
		}
		*v = c.readID()
		return
	}
	c.out = append(c.out, key...)
	c.out = append(v.Append(append(c.out, '"')), '"')
}

func (c *codec) strings(key string, v *[]string) {
	if c.reading {
		if c.match(key) {
			*v = c.readStrings()
		}
		return
	}
	if len(*v) == 0 {
		return
	}
	c.out = append(c.out, key...)
	separator := byte('[')
	for _, s := range *v {
		c.out = appendString(append(c.out, separator), s)
		separator = ','
	}
	c.out = append(c.out, ']')
}

// rare writes a list that most events do not have through encoding/json. Reading one is left to encoding/json altogether.
func rare[T any](c *codec, key string, v *[]T) {
	if c.reading || len(*v) == 0 {
		return
	}
	list, err := marshalPlain(*v)
	if err != nil {
		c.err = err
		return
	}
	c.out = append(append(c.out, key...), list...)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as encoding/json writes it without HTML escaping.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		b := s[i]
		if b >= ' ' && b != '"' && b != '\\' && b < utf8.RuneSelf {
			i++
			continue
		}
		if b >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if (r != utf8.RuneError || size > 1) && r != '\u2028' && r != '\u2029' {
				i += size
				continue
			}
			dst = append(dst, s[start:i]...)
			switch r {
			case '\u2028', '\u2029': // end a line in JavaScript
				dst = append(dst, `\u202`...)
				dst = append(dst, hexDigits[r&0xf])
			default:
				dst = append(dst, `\ufffd`...)
			}
			i += size
			start = i
			continue
		}
		dst = append(dst, s[start:i]...)
		dst = appendEscaped(dst, b)
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendEscaped(dst []byte, b byte) []byte {
	switch b {
	case '"', '\\':
		return append(dst, '\\', b)
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&0xf])
}

// marshalPlain is json.Marshal without HTML escaping.
func marshalPlain(v any) ([]byte, error) {
	var w plainWriter
	enc := json.NewEncoder(&w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return w[:len(w)-1], nil // the encoder's newline
}

type plainWriter []byte

func (w *plainWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
