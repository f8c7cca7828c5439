package meter

import (
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tiktoken-go/tokenizer"

	"ledgerline/relay/dialect"
)

// keepText bounds the text kept of a choice, in bytes, in the hope that the upstream's usage spares us counting it:
// some 16,000 tokens, more than all but a few answers have. Longer ones are counted piece by piece as they go by.
const keepText = 64 << 10

// keepSideText is the same for each choice after the first. With n = 128 a meter stays below 600 KiB.
const keepSideText = 4 << 10

// maxCounted bounds how much of a prompt is tokenized, in bytes: at the tokenizer's speed, a tenth of a second. What is
// beyond is reckoned at the same tokens per byte.
const maxCounted = 256 << 10

// counter counts the tokens of one choice's text across the borders of its chunks. The zero value is empty.
type counter struct {
	buf    []byte
	tokens int64
}

// add takes text, counting what does not fit into bound.
func (c *counter) add(model string, t *dialect.Text, bound int) {
	if need := len(c.buf) + len(t.Raw); need > cap(c.buf) && cap(c.buf) < bound { // doubling must not overshoot the bound
		grown := make([]byte, len(c.buf), min(max(2*cap(c.buf), need, 1<<10), max(bound, need)))
		copy(grown, c.buf)
		c.buf = grown
	}
	c.buf = t.AppendTo(c.buf)
	for len(c.buf) > bound {
		n := safeSplit(c.buf[:bound])
		c.tokens += count(model, string(c.buf[:n]))
		c.buf = c.buf[:copy(c.buf, c.buf[n:])]
	}
	if cap(c.buf) > 2*bound { // one huge piece must not pin its memory
		c.buf = append(make([]byte, 0, bound), c.buf...)
	}
}

// append takes text without escapes if there is room for it.
func (c *counter) append(text []byte, bound int) bool {
	if need := len(c.buf) + len(text); need > cap(c.buf) || need > bound {
		return false
	}
	c.buf = append(c.buf, text...)
	return true
}

// total counts the rest and returns all tokens.
func (c *counter) total(model string) int64 {
	c.tokens += count(model, string(c.buf))
	c.buf = c.buf[:0]
	return c.tokens
}

// safeSplit returns where b can be cut so that its halves have as many tokens as the whole: between a letter or digit
// and white space, where both encodings always begin a new piece. Text without such a place in its second half is cut at
// a rune's border, which costs a token or two.
func safeSplit(b []byte) int {
	for i := len(b) - 1; i > len(b)/2; i-- {
		if (b[i] == ' ' || b[i] == '\n') && isWord(b[i-1]) {
			return i
		}
	}
	n := len(b)
	for n > 1 && len(b)-n < utf8.UTFMax && !utf8.RuneStart(b[n-1]) {
		n--
	}
	if n > 1 {
		return n - 1
	}
	return len(b)
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// leastTokens returns how many tokens the text of one chunk has at least, raw being the inside of its JSON string: one, or as many as it has
// runs of letters and of digits. The tokenizers in use split between such runs before they look for tokens, so none has
// two of them; an apostrophe inside a word and what is not ASCII count as letters.
func leastTokens(raw []byte) int64 {
	n, before := int64(0), byte(other)
	for i := 0; i < len(raw); i++ {
		class := classes[raw[i]]
		switch class {
		case escape:
			if i++; i < len(raw) && raw[i] == 'u' {
				class, i = letter, i+4
			}
		case apostrophe:
			if before == letter {
				continue
			}
		}
		if class != before && (class == letter || class == digit) {
			n++
		}
		before = class
	}
	return max(1, n)
}

// The classes of a byte of text.
const (
	other = iota
	letter
	digit
	escape
	apostrophe
)

var classes = func() (t [256]byte) {
	for c := range t {
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf:
			t[c] = letter
		case c >= '0' && c <= '9':
			t[c] = digit
		}
	}
	t['\\'], t['\''] = escape, apostrophe
	return t
}()

// The vocabularies take 100 ms and some 20 MB each to build, so each is built when it is first needed.
var (
	cl100k = sync.OnceValue(func() tokenizer.Codec { return codec(tokenizer.Cl100kBase) })
	o200k  = sync.OnceValue(func() tokenizer.Codec { return codec(tokenizer.O200kBase) })
)

func codec(e tokenizer.Encoding) tokenizer.Codec {
	c, err := tokenizer.Get(e)
	if err != nil {
		panic("meter: an encoding that is compiled in: " + err.Error())
	}
	return c
}

// o200kModels are the name prefixes of the models that use o200k_base. All others, those of other makers included, are
// counted in cl100k_base.
var o200kModels = []string{"gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "chatgpt-4o", "o1", "o3", "o4", "gpt-oss"}

// count returns the tokens of text. The tokenizer fails on nothing but a bug of its own; a quarter of the bytes, the
// usual rule of thumb, stands in then.
func count(model, text string) int64 {
	if text == "" {
		return 0
	}
	c := cl100k
	for _, p := range o200kModels {
		if strings.HasPrefix(model, p) {
			c = o200k
			break
		}
	}
	n, err := c().Count(text)
	if err != nil {
		return max(1, int64(len(text))/4)
	}
	return int64(n)
}

// CountText returns the tokens of text in the encoding of model.
func CountText(model, text string) int64 {
	var p prompt
	p.add(model, text)
	return p.total()
}

// prompt counts texts up to maxCounted bytes and reckons the rest.
type prompt struct{ tokens, bytes, beyond int64 }

func (p *prompt) add(model, text string) {
	for len(text) > 0 {
		if p.bytes >= maxCounted {
			p.beyond += int64(len(text))
			return
		}
		n := len(text)
		if n > keepSideText { // in pieces, since the tokenizer takes 4 bytes of memory for each
			n = safeSplit([]byte(text[:keepSideText]))
		}
		p.tokens += count(model, text[:n])
		p.bytes += int64(n)
		text = text[n:]
	}
}

func (p *prompt) total() int64 {
	if p.beyond == 0 {
		return p.tokens
	}
	return p.tokens + p.beyond*p.tokens/p.bytes
}

// What a chat prompt costs beside its texts, in tokens, as OpenAI documents its own counting.
const (
	perMessage = 3 // the separators around a message
	perReply   = 3 // the opening of the answer
)

// CountPrompt counts the prompt tokens of a request: its texts by the tokenizer of its model, media by table. It takes
// up to a tenth of a second for a large prompt: it is for requests near the limit of their account, and for upstreams
// that report no usage.
func CountPrompt(r *dialect.Request) int64 {
	var p prompt
	r.Texts(func(text string) { p.add(r.Model, text) })
	n := p.total() + r.MediaTypical + r.TokenInputs()
	if r.Endpoint == dialect.ChatCompletions {
		n += perMessage*int64(r.Messages) + perReply
	}
	return n
}
