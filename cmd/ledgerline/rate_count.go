package main

import (
	"strings"

	"github.com/tidwall/gjson"
	"github.com/tiktoken-go/tokenizer"
)

// Bills of answers without usage: New API estimates their tokens, partly with a tokenizer, partly by classes of characters.
// Ours are counted with OpenAI's tokenizer, so such bills are compared within a stated tolerance only.
const (
	// recountPercent and recountTokens are the tolerance: so far may our quota be from the recorded one, plus the price of
	// so many input and output tokens.
	recountPercent = 35
	recountTokens  = 8

	messageTokens  = 3   // per message, and once for the reply (fact sheet 4.8)
	toolTokens     = 8   // per declared tool
	toolCallTokens = 7   // per call in the answer
	mediaTokens    = 520 // per image of a model that is not OpenAI's
	lowImageTokens = 85  // per image in low detail of OpenAI's
)

// tolerable reports whether a bill of estimated tokens is near enough to the recorded one.
func (p priced) tolerable(theirs int64) bool {
	ours := p.bill.Quota
	return max(ours-theirs, theirs-ours)*100 <= theirs*recountPercent+p.slack*100
}

// countText counts tokens with OpenAI's newer vocabulary, which also fits other makers' best.
func countText(text string) int64 {
	if text == "" {
		return 0
	}
	codec, err := tokenizer.Get(tokenizer.O200kBase)
	if err != nil {
		panic("ledgerline: the tokenizer's vocabulary is missing from the build: " + err.Error())
	}
	n, err := codec.Count(text)
	if err != nil {
		return int64(len(text)) / 4
	}
	return int64(n)
}

// countPrompt estimates the input tokens of a request.
func (in billInput) countPrompt() int64 {
	request := gjson.ParseBytes(in.Request)
	total := countText(promptText(in.Request))
	if messages := request.Get("messages").Array(); len(messages) > 0 {
		total += messageTokens * int64(len(messages)+1)
	}
	total += toolTokens * int64(len(request.Get("tools").Array()))
	media := int64(mediaTokens)
	if strings.HasPrefix(in.Model, "gpt-") || strings.HasPrefix(in.Model, "o1") || strings.HasPrefix(in.Model, "o3") {
		media = lowImageTokens
	}
	return total + media*int64(strings.Count(request.Get("messages").Raw, `"image_url":`))
}

// countAnswer estimates the output tokens of an answer.
func (in billInput) countAnswer() int64 {
	total := countText(in.UpstreamText) + countText(in.UpstreamReasoning)
	for _, call := range in.UpstreamToolCalls {
		total += toolCallTokens + countText(call.Function.Name+call.Function.Arguments)
	}
	return total
}

// promptText joins the texts of a request: the string values below the fields that hold prompts.
func promptText(request []byte) string {
	var b strings.Builder
	var walk func(v gjson.Result, depth int)
	walk = func(v gjson.Result, depth int) {
		const deepest = 32 // deeper than any request of the API; guards the stack
		switch {
		case depth > deepest:
		case v.Type == gjson.String:
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(v.Str)
		case v.IsObject(), v.IsArray():
			v.ForEach(func(key, v gjson.Result) bool {
				switch key.Str {
				case "role", "type", "image_url", "source", "inlineData", "input_audio", "file":
				default:
					walk(v, depth+1)
				}
				return true
			})
		}
	}
	for _, field := range []string{"system", "instructions", "messages", "prompt", "input", "query", "documents", "contents", "tools"} {
		walk(gjson.GetBytes(request, field), 0)
	}
	return b.String()
}
