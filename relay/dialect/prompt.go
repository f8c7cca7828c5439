package dialect

import (
	"fmt"
	"strings"

	"github.com/tidwall/gjson"
)

// messageTokens is what a message can cost beside its text: role, separators and whatever else a chat template adds.
// Known templates take 3 to 7.
const messageTokens = 16

// roleBytes is the part of messageTokens that a role may take up; one that is longer is no role but text.
const roleBytes = 12

// mediaBound is the most tokens one part of a message is reckoned at: Tokens, and one more per BytesPerToken bytes of
// data that came inline (0: its size does not matter). Typical is what a part is billed at when the upstream reports
// nothing; New API's figures.
type mediaBound struct{ Tokens, BytesPerToken, Typical int64 }

// mediaBounds is the table of DESIGN's upper bound, by the type of the part. A bound that is too low costs no more
// than a hold that was priced too low: the charge follows what the upstream reports.
var mediaBounds = map[string]mediaBound{
	// The dearest formulas in use: 1,445 tokens (tiles at high detail), 1,600 and 4,784 (pixels ÷ 750).
	"image_url":   {Tokens: 4784, Typical: 520},
	"image":       {Tokens: 4784, Typical: 520},
	"input_image": {Tokens: 4784, Typical: 520},
	// 10 to 32 tokens a second; speech at 32 kbit/s is 5,300 bytes of base64 a second, other codecs more.
	"input_audio": {Tokens: 256, BytesPerToken: 128, Typical: 256},
	// Text and page images of a document: some 2,000 tokens a page of 20 KiB or more.
	"file":       {Tokens: 4096, BytesPerToken: 8, Typical: 4096},
	"input_file": {Tokens: 4096, BytesPerToken: 8, Typical: 4096},
	// 258 to 300 tokens a second of video at 1 frame a second.
	"video_url":   {Tokens: 8192, BytesPerToken: 64, Typical: 8192},
	"input_video": {Tokens: 8192, BytesPerToken: 64, Typical: 8192},
}

// miniImageTokens bounds an image for models of the gpt-4o-mini family, which count one at 33 times the tokens of
// gpt-4o (2,833 + 5,667 a tile, 8 tiles at most).
const miniImageTokens = 2833 + 8*5667

// PromptBound returns a number of tokens that the prompt cannot exceed: no tokenizer makes more tokens than there are
// bytes.
func (r *Request) PromptBound() int64 {
	return r.TextBytes + messageTokens*int64(r.Messages) + r.MediaTokens
}

// readContent checks the field that carries the prompt and adds up its bound.
func (r *Request) readContent(l Limits) *Problem {
	name := r.Endpoint.contentField()
	if p := r.readItems(name, l); p != nil {
		return p
	}
	if r.Messages > l.Messages {
		return invalid(name, fmt.Sprintf("has %d entries, at most %d are allowed", r.Messages, l.Messages))
	}
	for _, t := range r.tools {
		r.TextBytes += int64(len(t.Raw))
	}
	return nil
}

func (r *Request) readItems(name string, l Limits) (p *Problem) {
	v := r.content
	switch {
	case r.Endpoint == ChatCompletions:
		if !v.IsArray() {
			return invalid(name, "is required: a list of messages")
		}
		v.ForEach(func(_, m gjson.Result) bool {
			r.Messages++
			p = r.readMessage(m)
			return p == nil && r.Messages <= l.Messages
		})
	case v.Type == gjson.String:
		r.Messages = 1
		r.TextBytes += rawTextLen(v)
	case v.IsArray():
		return r.readPrompts(name, l)
	case r.Endpoint == Completions && v.Type == gjson.Null:
		r.Messages = 1 // the API's default is an empty document
		return nil
	default:
		return invalid(name, "is required: a string, or a list of strings or token numbers")
	}
	if p == nil && r.Messages == 0 {
		return invalid(name, "is required and must not be empty")
	}
	return p
}

// readPrompts reads a list of strings, of token lists, or of tokens (which is one prompt).
func (r *Request) readPrompts(name string, l Limits) (p *Problem) {
	tokens := false
	bad := func() { p = invalid(name, "must hold strings, token numbers or lists of token numbers, of one kind") }
	r.content.ForEach(func(_, v gjson.Result) bool {
		switch {
		case v.Type == gjson.String && !tokens:
			r.TextBytes += rawTextLen(v)
			r.Messages++
		case v.Type == gjson.Number && (tokens || r.Messages == 0):
			tokens = true
			r.Messages = 1
			r.TextBytes++ // a token is a token; PromptBound counts tokens
		case v.IsArray() && !tokens:
			r.Messages++
			r.TextBytes += int64(strings.Count(v.Raw, ",")) + 1
		default:
			bad()
		}
		return p == nil && r.Messages <= l.Messages
	})
	if p == nil && r.Messages == 0 {
		return invalid(name, "is required and must not be empty")
	}
	return p
}

func (r *Request) readMessage(m gjson.Result) (p *Problem) {
	if !m.IsObject() {
		return invalid("messages", "must hold objects with role and content")
	}
	role := false
	m.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "role":
			if role = v.Type == gjson.String; !role {
				p = invalid("messages.role", "must be a string")
			}
			r.TextBytes += max(0, rawTextLen(v)-roleBytes)
		case "content":
			p = r.readMessageContent(v)
		default: // names, tool calls, reasoning: the raw form is never shorter than its text
			r.TextBytes += int64(len(v.Raw))
		}
		return p == nil
	})
	if p == nil && !role {
		return invalid("messages.role", "is required in every message")
	}
	return p
}

func (r *Request) readMessageContent(v gjson.Result) (p *Problem) {
	switch {
	case v.Type == gjson.Null:
	case v.Type == gjson.String:
		r.TextBytes += rawTextLen(v)
	case v.IsArray():
		v.ForEach(func(_, part gjson.Result) bool {
			if !part.IsObject() {
				p = invalid("messages.content", "must be a string or a list of parts, each an object with a type")
				return false
			}
			r.readPart(part)
			return true
		})
	case v.IsObject():
		r.readPart(v)
	default:
		return invalid("messages.content", "must be a string or a list of parts, each an object with a type")
	}
	return p
}

// readPart adds one part of a message. One of an unknown type counts as the text it is written in.
func (r *Request) readPart(part gjson.Result) {
	kind := part.Get("type").String()
	bound, media := mediaBounds[kind]
	if !media {
		part.ForEach(func(key, v gjson.Result) bool {
			switch {
			case v.Type == gjson.String && key.Str == "text":
				r.TextBytes += rawTextLen(v)
			case key.Str != "type" || kind != "text":
				r.TextBytes += int64(len(v.Raw))
			}
			return true
		})
		return
	}
	if strings.Contains(kind, "image") && strings.Contains(r.Model, "4o-mini") {
		bound.Tokens = miniImageTokens
	}
	r.TextBytes += rawTextLen(part.Get("text"))
	r.MediaTypical += bound.Typical
	r.MediaTokens += bound.Tokens
	if bound.BytesPerToken > 0 {
		r.MediaTokens += int64(len(part.Raw)) / bound.BytesPerToken
	}
}

// rawTextLen returns the UTF-8 bytes of a string value.
func rawTextLen(v gjson.Result) int64 {
	if v.Type != gjson.String {
		return 0
	}
	return int64(decodedLen(v.Raw[1 : len(v.Raw)-1]))
}

// Texts calls yield with every text of the prompt that a tokenizer sees: contents, roles, names, tool calls and tool
// definitions (as they are written). Media are left out; MediaTokens bounds them.
func (r *Request) Texts(yield func(text string)) {
	for _, t := range r.tools {
		yield(t.Raw)
	}
	if r.Endpoint != ChatCompletions {
		if r.content.Type == gjson.String {
			yield(r.content.Str)
		}
		r.content.ForEach(func(_, v gjson.Result) bool {
			if v.Type == gjson.String && r.content.IsArray() {
				yield(v.Str)
			}
			return true
		})
		return
	}
	r.content.ForEach(func(_, m gjson.Result) bool {
		m.ForEach(func(key, v gjson.Result) bool {
			switch {
			case v.Type == gjson.String:
				yield(v.Str)
			case key.Str == "content":
				contentTexts(v, yield)
			case v.IsObject() || v.IsArray():
				yield(v.Raw)
			}
			return true
		})
		return true
	})
}

func contentTexts(v gjson.Result, yield func(string)) {
	one := func(part gjson.Result) {
		if _, media := mediaBounds[part.Get("type").String()]; media {
			return
		}
		part.ForEach(func(key, v gjson.Result) bool {
			switch {
			case v.Type == gjson.String && key.Str != "type":
				yield(v.Str)
			case v.IsObject() || v.IsArray():
				yield(v.Raw)
			}
			return true
		})
	}
	if v.IsObject() {
		one(v)
		return
	}
	v.ForEach(func(_, part gjson.Result) bool {
		if part.IsObject() {
			one(part)
		}
		return true
	})
}

// TokenInputs returns how many tokens of the prompt came as token numbers, which need no counting.
func (r *Request) TokenInputs() int64 {
	if r.Endpoint == ChatCompletions || !r.content.IsArray() {
		return 0
	}
	var n int64
	r.content.ForEach(func(_, v gjson.Result) bool {
		switch {
		case v.Type == gjson.Number:
			n++
		case v.IsArray():
			v.ForEach(func(_, _ gjson.Result) bool { n++; return true })
		}
		return true
	})
	return n
}
