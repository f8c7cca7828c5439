package dialect

import (
	"strings"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// Edit says what to change in a body on its way to the upstream. Zero fields keep what the client wrote.
type Edit struct {
	Model     string // the upstream's name of the model
	MaxTokens int64  // output tokens per choice; a lower bound of the client's stays as it is
	// IncludeUsage asks the upstream for usage in the stream.
	IncludeUsage bool
	// DropStreamOptions removes stream_options, for upstreams that refuse it. It wins over IncludeUsage.
	DropStreamOptions bool
}

// splice is one replacement in the body.
type splice struct {
	at  field // what to replace; an empty range inserts
	new string
}

// Rewrite returns the body with the edit done: Body itself if there is nothing to change, else a new slice. Every byte
// that the edit does not name stays as the client sent it.
func (r *Request) Rewrite(e Edit) []byte {
	var cuts [5]splice
	list := cuts[:0]
	if e.Model != "" && e.Model != r.Model {
		list = append(list, splice{r.model, string(appendString(nil, e.Model))})
	}
	if e.MaxTokens > 0 && r.Endpoint.Generates() {
		list = r.limitOutput(list, e.MaxTokens)
	}
	if e.IncludeUsage && !e.DropStreamOptions && r.Stream && !r.IncludeUsage {
		list = append(list, r.askUsage())
	}
	body := r.Body
	if len(list) > 0 {
		body = r.apply(list)
	}
	if e.DropStreamOptions && r.streamOpt.present() {
		out, err := sjson.DeleteBytes(body, "stream_options")
		if err != nil {
			panic("dialect: delete from a body that Parse accepted: " + err.Error())
		}
		return out
	}
	return body
}

// limitOutput lowers the fields the client used, or adds the one the model knows.
func (r *Request) limitOutput(list []splice, limit int64) []splice {
	text := string(appendInt(nil, limit))
	lowered := false
	for _, f := range []field{r.maxTokens, r.maxCompl} {
		if !f.present() || r.text[f.from:f.to] == "null" {
			continue
		}
		lowered = true
		if n := gjson.Parse(r.text[f.from:f.to]).Int(); n == 0 || n > limit {
			list = append(list, splice{f, text})
		}
	}
	switch {
	case lowered:
		return list
	case r.maxTokens.present(): // null
		return append(list, splice{r.maxTokens, text})
	case r.maxCompl.present():
		return append(list, splice{r.maxCompl, text})
	}
	return append(list, r.insert(r.open, `"`+r.outputField()+`":`+text))
}

// outputField names the field to add: reasoning models refuse max_tokens.
func (r *Request) outputField() string {
	if r.Endpoint == ChatCompletions {
		for _, prefix := range []string{"o1", "o3", "o4", "gpt-5"} {
			if strings.HasPrefix(r.Model, prefix) {
				return "max_completion_tokens"
			}
		}
	}
	return "max_tokens"
}

func (r *Request) askUsage() splice {
	const ask = `"include_usage":true`
	switch {
	case r.usageFlag.present():
		return splice{r.usageFlag, "true"}
	case !r.streamOpt.present():
		return r.insert(r.open, `"stream_options":{`+ask+`}`)
	case r.text[r.streamOpt.from] != '{': // null
		return splice{r.streamOpt, `{` + ask + `}`}
	}
	return r.insert(r.streamOpt.from+1, ask)
}

// insert puts a member at offset, just behind an opening brace.
func (r *Request) insert(offset int, member string) splice {
	if rest := strings.TrimLeft(r.text[offset:], " \t\r\n"); !strings.HasPrefix(rest, "}") {
		member += ","
	}
	return splice{field{offset, offset}, member}
}

// apply does the replacements, which do not overlap, in the order of their places.
func (r *Request) apply(list []splice) []byte {
	size := len(r.text)
	for i := range list { // at most five: an insertion sort keeps equal places in the order they were asked for
		size += len(list[i].new)
		for j := i; j > 0 && list[j].at.from < list[j-1].at.from; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
	out := make([]byte, 0, size)
	done := 0
	for _, s := range list {
		out = append(append(out, r.text[done:s.at.from]...), s.new...)
		done = s.at.to
	}
	return append(out, r.text[done:]...)
}
