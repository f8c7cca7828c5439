package dialect

import (
	"fmt"
	"strconv"

	"github.com/tidwall/gjson"
)

// Limits bounds what a request may ask for (L7).
type Limits struct {
	// Depth is how deeply a body may nest. Tool schemas seen in the wild stay below 40; recursive readers, ours and
	// the upstream's, must not be driven into their stack.
	Depth int
	// Messages is how many messages, prompts or inputs one request may carry.
	Messages int
	// ModelBytes bounds the model name, which becomes a database column and a log field.
	ModelBytes int
	// OutputTokens is the largest max_tokens that is taken for a wish and not for a mistake. It is far above what any
	// model writes, and small enough that its price cannot overflow an int64 (L8).
	OutputTokens int64
	// Choices bounds n, best_of and n × prompts: each is an answer that costs.
	Choices int64
}

// DefaultLimits returns the limits used when the operator sets none.
func DefaultLimits() Limits {
	return Limits{Depth: 128, Messages: 100_000, ModelBytes: 255, OutputTokens: 1 << 30, Choices: 2048}
}

// maxChoices is the largest n, as in OpenAI's API. The meter keeps state per choice.
const maxChoices = 128

// Request is what the relay needs to know about a client's body. The body itself is kept as it came.
type Request struct {
	Endpoint Endpoint
	Body     []byte // as received; Rewrite makes the one to send

	Model string
	User  string // the client's own end-user label, "" if none or not a string

	Stream       bool
	IncludeUsage bool // the client asked for the usage chunk: it must not be dropped

	MaxTokens int64 // output tokens per choice that the client allows; 0: it named no bound
	Choices   int64 // answers per prompt (n); ≥ 1
	Outputs   int64 // answers generated in all, those of best_of that are never shown included; 0 for embeddings

	Messages    int   // messages, prompts or inputs; ≥ 1
	TextBytes   int64 // UTF-8 bytes of everything a tokenizer would see
	MediaTokens int64 // bound for images, audio, video and files, by table
	// MediaTypical is what those cost as a rule: for counting a prompt, where MediaTokens is for bounding it.
	MediaTypical int64

	text      string // the body
	open      int    // offset just behind its opening brace
	model     field
	maxTokens field // max_tokens
	maxCompl  field // max_completion_tokens
	streamOpt field
	usageFlag field // stream_options.include_usage
	content   gjson.Result
	tools     []gjson.Result
	bestOf    int64
}

// field is where the value of a field lies in the body; the zero value is a field that is absent.
type field struct{ from, to int }

func (f field) present() bool { return f.to > 0 }

func at(v gjson.Result) field { return field{v.Index, v.Index + len(v.Raw)} }

// Parse reads the body of a request to e. A Problem names the field that is wrong and what is allowed; it is the
// client's mistake and costs nothing.
//
// A field that bears on money must not appear twice: readers disagree on which of the two counts, so the relay could
// reserve for one and the upstream obey the other.
func Parse(e Endpoint, body []byte, l Limits) (Request, *Problem) {
	r := Request{Endpoint: e, Body: body, Choices: 1, text: string(body)}
	if depthOf(r.text, l.Depth) > l.Depth {
		return r, badBody(fmt.Sprintf("JSON nests deeper than the %d levels allowed", l.Depth))
	}
	if !gjson.Valid(r.text) {
		return r, badBody("invalid JSON request body")
	}
	root := gjson.Parse(r.text)
	if !root.IsObject() {
		return r, badBody("the request body must be a JSON object")
	}
	r.open = root.Index + 1
	p := r.readFields(root, l)
	if p == nil {
		p = r.check(l)
	}
	return r, p
}

// moneyFields are the fields of which there may be only one.
var moneyFields = map[string]uint16{
	"model": 1, "stream": 2, "stream_options": 4, "max_tokens": 8, "max_completion_tokens": 16, "n": 32, "best_of": 64,
	"messages": 128, "prompt": 256, "input": 512, "tools": 1024, "functions": 2048, "response_format": 4096,
	"prediction": 8192, "suffix": 16384, "user": 32768,
}

func (r *Request) readFields(root gjson.Result, l Limits) (p *Problem) {
	var seen uint16
	root.ForEach(func(key, v gjson.Result) bool {
		bit, ok := moneyFields[key.Str]
		if !ok {
			return true
		}
		if seen&bit != 0 {
			p = invalid(key.Str, "appears twice; a field may be given once")
			return false
		}
		seen |= bit
		p = r.readField(key.Str, v, l)
		return p == nil
	})
	return p
}

func (r *Request) readField(key string, v gjson.Result, l Limits) (p *Problem) {
	null := v.Type == gjson.Null
	switch key {
	case "model":
		if r.model = at(v); v.Type != gjson.String || len(v.Str) > l.ModelBytes {
			return badBody(fmt.Sprintf("model must be a string of 1 to %d bytes", l.ModelBytes))
		}
		r.Model = v.Str
	case "user":
		if v.Type == gjson.String {
			r.User = v.Str
		}
	case "stream":
		if !null && !v.IsBool() {
			return invalid(key, "must be true or false")
		}
		r.Stream = v.Type == gjson.True
	case "stream_options":
		return r.readStreamOptions(v)
	case "max_tokens", "max_completion_tokens":
		n, p := integer(key, v, 0, l.OutputTokens)
		if r.MaxTokens = max(r.MaxTokens, n); key == "max_tokens" {
			r.maxTokens = at(v)
		} else {
			r.maxCompl = at(v)
		}
		return p
	case "n":
		if !null {
			r.Choices, p = integer(key, v, 1, min(maxChoices, l.Choices))
		}
	case "best_of":
		r.bestOf, p = integer(key, v, 1, min(maxChoices, l.Choices))
	case r.Endpoint.contentField():
		r.content = v
	case "tools", "functions", "response_format", "prediction", "suffix":
		if !null {
			r.tools = append(r.tools, v)
		}
	}
	return p
}

func (r *Request) readStreamOptions(v gjson.Result) (p *Problem) {
	if v.Type != gjson.Null && !v.IsObject() {
		return invalid("stream_options", "must be an object")
	}
	r.streamOpt = at(v)
	v.ForEach(func(key, val gjson.Result) bool {
		switch {
		case !v.IsObject() || key.Str != "include_usage":
		case r.usageFlag.present():
			p = invalid("stream_options.include_usage", "appears twice; a field may be given once")
		case !val.IsBool() && val.Type != gjson.Null:
			p = invalid("stream_options.include_usage", "must be true or false")
		default:
			r.usageFlag = at(val)
			r.IncludeUsage = val.Type == gjson.True
		}
		return p == nil
	})
	return p
}

// contentField names the field that carries what the model reads.
func (e Endpoint) contentField() string {
	switch e {
	case ChatCompletions:
		return "messages"
	case Completions:
		return "prompt"
	case Embeddings:
	}
	return "input"
}

// integer reads a whole number in [low, high]; null is 0, as if the field were absent.
func integer(key string, v gjson.Result, low, high int64) (int64, *Problem) {
	if v.Type == gjson.Null {
		return 0, nil
	}
	n, err := strconv.ParseInt(v.Raw, 10, 64)
	if v.Type != gjson.Number || err != nil || n < low || n > high {
		return 0, invalid(key, fmt.Sprintf("must be an integer from %d to %d", low, high))
	}
	return n, nil
}

// check judges the fields together.
func (r *Request) check(l Limits) *Problem {
	if r.Model == "" {
		return &Problem{Status: 400, Middleware: true, Message: "Model name not specified, model name cannot be empty"}
	}
	if r.Endpoint == Embeddings {
		r.Stream = false // there is nothing to stream, whatever the client wrote
	}
	if p := r.readContent(l); p != nil {
		return p
	}
	if r.Endpoint.Generates() {
		prompts := int64(1)
		if r.Endpoint == Completions {
			prompts = int64(r.Messages)
		}
		if r.Outputs = max(r.Choices, r.bestOf) * prompts; r.Outputs > l.Choices {
			return invalid("n", fmt.Sprintf("asks for %d answers in all, at most %d are allowed", r.Outputs, l.Choices))
		}
	}
	return nil
}

// OutputBound returns the most output tokens the client allows in all, 0 if it named no bound.
func (r *Request) OutputBound() int64 { return r.MaxTokens * r.Outputs }

// badBody refuses a body that cannot be read at all, in the words and shape of the middleware.
func badBody(why string) *Problem {
	return &Problem{Status: 400, Middleware: true, Message: "Invalid request: " + why}
}

// invalid refuses a field.
func invalid(param, why string) *Problem {
	return &Problem{Status: 400, Code: "invalid_request", Param: param, Message: "field " + param + " " + why}
}
