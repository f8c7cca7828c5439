package dialect

import "bytes"

// Chunk is what the meter needs to know of one payload: a whole answer, or one piece of a stream. Its slices alias the
// payload and are valid until the next Read.
type Chunk struct {
	Texts    []Text   // what the model wrote, in the order of the payload
	Finishes []Finish // choices that end here
	// Usage is the raw value of the usage field: nil if absent, "null" where the upstream fills the field later.
	Usage []byte
	// HasChoices tells a payload with a list of choices, or of data as embeddings have it; without one it is an error, a
	// ping or another API's shape.
	HasChoices bool
	// NoChoices tells a payload whose choices list is empty: it carries usage or provider notes, and no text.
	NoChoices bool
	Error     bool // an error object stands where an answer should
	ToolCalls int  // tool calls that begin here

	ID, Model, Created []byte // raw values, nil where a stream's later chunks do not need them
}

// Text is one piece of text.
type Text struct {
	Choice int    // index of the answer it belongs to
	Raw    []byte // interior of the JSON string, escapes as they came; AppendDecoded turns it into text
	at     int    // where Raw begins in the payload
	plain  bool   // Raw holds no escapes
	lead   bool   // it is the choice's main text, not reasoning or a tool call
}

// Len returns the UTF-8 bytes of the text.
func (t Text) Len() int {
	if t.plain {
		return len(t.Raw)
	}
	return decodedLen(t.Raw)
}

// AppendTo appends the text to dst.
func (t Text) AppendTo(dst []byte) []byte {
	if t.plain {
		return append(dst, t.Raw...)
	}
	return AppendDecoded(dst, t.Raw)
}

// Finish tells that a choice is complete, and why.
type Finish struct {
	Choice int
	Reason []byte // "stop", "length", "tool_calls", …; as it came
}

// templateMisses is after how many payloads in a row that fit no template the reader stops making new ones.
const templateMisses = 32

// padding is where OpenAI pads every chunk with random text, so that its size tells nothing of the token in it.
var padding = []byte(`"obfuscation":"`)

// ChunkReader reads the payloads of one answer. The chunks of a stream mostly differ in one string, so it remembers the
// bytes around the last one: a payload with the same bytes before and after, and the interior of a JSON string between
// them, has the same structure. Any other is walked through. Nothing is allocated in the steady state.
type ChunkReader struct {
	chunk  Chunk
	like   Chunk // what a payload that fits the template is
	before []byte
	after  []byte // up to and with the opening quote of the padding, if there is padding
	tail   []byte // from its closing quote
	line   bool   // the template is one line
	misses int
}

// Read reads one payload. False means that it is no JSON object; such a payload has no meaning here and passes as it is.
func (r *ChunkReader) Read(data []byte) (*Chunk, bool) {
	if r.fits(data) {
		return &r.like, true
	}
	c := &r.chunk
	*c = Chunk{Texts: c.Texts[:0], Finishes: c.Finishes[:0]}
	w := walker{b: data}
	w.top(c)
	if w.bad {
		*c = Chunk{Texts: c.Texts[:0], Finishes: c.Finishes[:0]}
		return c, false
	}
	r.learn(data)
	return c, true
}

// fits reports whether data is what the last piece of text came in, with another text; like has it then.
func (r *ChunkReader) fits(data []byte) bool {
	text, size := r.match(data)
	if size == 0 || size != len(data) {
		return false
	}
	t := &r.like.Texts[0]
	t.Raw, t.plain = text, bytes.IndexByte(text, '\\') < 0
	r.misses = 0
	return true
}

// match compares data with the template, whatever text and padding are. It returns the text and how many bytes of data that was; 0 if data
// begins with something else.
func (r *ChunkReader) match(data []byte) (text []byte, size int) {
	if len(r.before) == 0 || !bytes.HasPrefix(data, r.before) {
		return nil, 0
	}
	rest := data[len(r.before):]
	end := interior(rest)
	text, rest = rest[:end:end], rest[end:]
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
	return text, len(data) - len(rest)
}

// interior returns how far text can be the interior of a string: up to the quote that ends it, or the end.
func interior(text []byte) int {
	for i := 0; ; {
		q := bytes.IndexByte(text[i:], '"')
		if q < 0 {
			return len(text)
		}
		i += q
		b := i
		for b > 0 && text[b-1] == '\\' {
			b--
		}
		if (i-b)%2 == 0 {
			return i
		}
		i++
	}
}

// learn makes a template of the payload just read if it is one piece of one answer's text and nothing else.
func (r *ChunkReader) learn(data []byte) {
	c := &r.chunk
	if len(c.Texts) != 1 || !c.Texts[0].lead || len(c.Finishes) > 0 || c.Error || c.ToolCalls > 0 ||
		c.Usage != nil && string(c.Usage) != "null" || r.misses >= templateMisses {
		return
	}
	t := c.Texts[0]
	r.misses++
	r.before = append(r.before[:0], data[:t.at]...)
	after, tail := data[t.at+len(t.Raw):], []byte(nil)
	if i := bytes.Index(after, padding); i >= 0 {
		i += len(padding)
		after, tail = after[:i], after[i+interior(after[i:]):]
	}
	r.after, r.tail = append(r.after[:0], after...), append(r.tail[:0], tail...)
	r.line = bytes.IndexByte(data, '\n') < 0
	r.like = Chunk{Texts: append(r.like.Texts[:0], Text{Choice: t.Choice, lead: true}), HasChoices: true}
}

// top reads the outermost object.
func (w *walker) top(c *Chunk) {
	w.space()
	if !w.enter('{') {
		w.bad = true
		return
	}
	for w.more('}') {
		switch key := w.key(); string(key) {
		case "id":
			c.ID = w.value()
		case "model":
			c.Model = w.value()
		case "created":
			c.Created = w.value()
		case "usage":
			c.Usage = w.value()
		case "error":
			v := w.value()
			c.Error = len(v) > 0 && string(v) != "null" && string(v) != `""` && string(v) != "{}"
		case "choices":
			w.choices(c)
		case "data":
			if v := w.value(); len(v) > 2 && v[0] == '[' {
				c.HasChoices = true
			}
		default:
			w.value()
		}
	}
	if w.space(); w.i != len(w.b) {
		w.bad = true
	}
}

func (w *walker) choices(c *Chunk) {
	if !w.enter('[') {
		w.value()
		return
	}
	c.HasChoices, c.NoChoices = true, true
	for w.more(']') {
		c.NoChoices = false
		w.choice(c)
	}
}

func (w *walker) choice(c *Chunk) {
	if !w.enter('{') {
		w.value()
		return
	}
	texts, finishes, index := len(c.Texts), len(c.Finishes), 0
	for w.more('}') {
		switch key := w.key(); string(key) {
		case "index":
			index = number(w.value())
		case "delta", "message":
			w.message(c)
		case "text":
			w.text(c, true)
		case "finish_reason":
			if v := w.value(); len(v) > 2 && v[0] == '"' {
				c.Finishes = append(c.Finishes, Finish{Reason: v[1 : len(v)-1]})
			}
		default:
			w.value()
		}
	}
	for i := texts; i < len(c.Texts); i++ {
		c.Texts[i].Choice = index
	}
	for i := finishes; i < len(c.Finishes); i++ {
		c.Finishes[i].Choice = index
	}
}

// message reads a message or the delta of one.
func (w *walker) message(c *Chunk) {
	if !w.enter('{') {
		w.value()
		return
	}
	reasoned := false
	for w.more('}') {
		switch key := w.key(); string(key) {
		case "content":
			w.content(c)
		case "refusal":
			w.text(c, false)
		case "reasoning", "reasoning_content": // some upstreams send the same text under both names
			if n := len(c.Texts); reasoned {
				w.value()
			} else {
				w.text(c, false)
				reasoned = len(c.Texts) > n
			}
		case "tool_calls":
			if !w.enter('[') {
				w.value()
				break
			}
			for w.more(']') {
				w.toolCall(c)
			}
		case "function_call":
			w.function(c)
		default:
			w.value()
		}
	}
}

// content is a string, null, or a list of parts with a text each.
func (w *walker) content(c *Chunk) {
	if !w.enter('[') {
		w.text(c, true)
		return
	}
	for w.more(']') {
		if !w.enter('{') {
			w.value()
			continue
		}
		for w.more('}') {
			if string(w.key()) == "text" {
				w.text(c, false)
			} else {
				w.value()
			}
		}
	}
}

func (w *walker) toolCall(c *Chunk) {
	if !w.enter('{') {
		w.value()
		return
	}
	for w.more('}') {
		if string(w.key()) == "function" {
			w.function(c)
		} else {
			w.value()
		}
	}
}

// function reads a call; a name begins one, later pieces carry arguments only.
func (w *walker) function(c *Chunk) {
	if !w.enter('{') {
		w.value()
		return
	}
	for w.more('}') {
		switch key := w.key(); string(key) {
		case "name":
			n := len(c.Texts)
			if w.text(c, false); len(c.Texts) > n {
				c.ToolCalls++
			}
		case "arguments":
			w.text(c, false)
		default:
			w.value()
		}
	}
}

// text takes a string that is not empty as text.
func (w *walker) text(c *Chunk, lead bool) {
	v := w.value()
	if len(v) <= 2 || v[0] != '"' {
		return
	}
	raw := v[1 : len(v)-1]
	c.Texts = append(c.Texts, Text{Raw: raw, at: w.i - len(v) + 1, plain: bytes.IndexByte(raw, '\\') < 0, lead: lead})
}
