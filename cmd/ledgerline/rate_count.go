package main

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
	"github.com/tiktoken-go/tokenizer"
)

// Bills of answers without usage: New API counts their tokens itself, OpenAI's text models with a tokenizer, all other models, and
// what was streamed, by classes of characters (fact sheet 4.8). The classes here are our own, weighted so that the recorded counts
// come out nearly right; such bills are compared within a stated tolerance only.
const (
	// recountPercent and recountTokens are the tolerance: so far may our quota be from the recorded one, plus the price of
	// so many input and output tokens, and half a unit for the rounding.
	recountPercent = 10
	recountTokens  = 3

	messageTokens  = 3   // per message, and once for the reply (fact sheet 4.8)
	nameTokens     = 3   // per name
	toolTokens     = 8   // per declared tool
	toolCallTokens = 7   // per call in the answer
	mediaTokens    = 520 // per image of a model that is not OpenAI's
	lowImageTokens = 85  // per image in low detail of OpenAI's
	cutChunk       = 5   // characters in a chunk of the recording's upstream, where it was cut

	// usualAnswer is what the recording's upstream said wherever a bill names no text.
	usualAnswer = "Hello there, this is a mock answer."
)

// tolerable reports whether a bill of estimated tokens is near enough to the recorded one.
func (p priced) tolerable(theirs int64) bool {
	ours := p.bill.Quota
	return max(ours-theirs, theirs-ours)*200 <= theirs*2*recountPercent+p.slack*200+100
}

// classWeights are hundredths of a token: of a word or a number as a whole, of every other character by its class.
type classWeights struct {
	word, number, space, newline, ideograph, math, delimiter, symbol, sign, emoji int64
}

// Weights by maker, fitted to the recorded counts of eight texts.
var (
	usualWeights = classWeights{
		word: 103, number: 150, space: 41, newline: 50, ideograph: 86, math: 45, delimiter: 110, symbol: 35, sign: 60, emoji: 200,
	}
	claudeWeights = classWeights{
		word: 114, number: 190, space: 38, newline: 90, ideograph: 121, math: 48, delimiter: 125, symbol: 35, sign: 60, emoji: 200,
	}
	geminiWeights = classWeights{
		word: 103, number: 270, space: 41, newline: 50, ideograph: 69, math: 46, delimiter: 110, symbol: 35, sign: 60, emoji: 200,
	}
)

// estimate counts the tokens of a text by classes of characters.
func (w *classWeights) estimate(text string) int64 {
	var sum int64
	var run rune // 'a' in a word, '0' in a number
	for _, r := range text {
		was := run
		run = 0
		switch {
		case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul):
			sum += w.ideograph
		case unicode.IsLetter(r), unicode.IsMark(r):
			if run = 'a'; was != run {
				sum += w.word
			}
		case unicode.IsDigit(r):
			if run = '0'; was != run {
				sum += w.number
			}
		case r == '\n', r == '\t', r == '\r':
			sum += w.newline
		case unicode.IsSpace(r):
			sum += w.space
		case strings.ContainsRune("+-*<>^|~%", r):
			sum += w.math
		case strings.ContainsRune("/:?&=#", r):
			sum += w.delimiter
		case r < unicode.MaxASCII, r >= 0x3000 && r < 0x3040, r >= 0xFF00 && r < 0xFFF0: // the latter two: East Asian punctuation
			sum += w.symbol
		case r >= 0x1F000:
			sum += w.emoji
		default:
			sum += w.sign
		}
	}
	return (sum + 99) / 100
}

// weights are those of the model's maker.
func (in *billInput) weights() *classWeights {
	switch {
	case strings.Contains(in.Model, "claude"):
		return &claudeWeights
	case strings.HasPrefix(in.Model, "gemini"):
		return &geminiWeights
	}
	return &usualWeights
}

// tokenized reports whether New API counts with a tokenizer: OpenAI's text models.
func (in *billInput) tokenized() bool {
	for _, prefix := range []string{"gpt-", "chatgpt-", "o1", "o3", "o4"} {
		if strings.HasPrefix(in.Model, prefix) {
			return true
		}
	}
	return false
}

// count counts a text as New API would for this model.
func (in *billInput) count(text string) int64 {
	if !in.tokenized() {
		return in.weights().estimate(text)
	}
	vocabulary := tokenizer.Cl100kBase
	if strings.HasPrefix(in.Model, "gpt-4o") {
		vocabulary = tokenizer.O200kBase
	}
	return countText(text, vocabulary)
}

// countText counts tokens with one of OpenAI's vocabularies.
func countText(text string, vocabulary tokenizer.Encoding) int64 {
	if text == "" {
		return 0
	}
	codec, err := tokenizer.Get(vocabulary)
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
func (in *billInput) countPrompt() int64 {
	request := gjson.ParseBytes(in.Request)
	total := in.count(promptText(in.Request))
	messages := request.Get("messages").Array()
	switch {
	case strings.HasPrefix(in.Endpoint, "/v1/messages"): // Anthropic's form carries no overhead
	case len(messages) > 0:
		total += messageTokens * int64(len(messages)+1)
	case in.Endpoint == "/v1/completions", in.Endpoint == "/v1/moderations":
		total += messageTokens
	}
	for _, m := range messages {
		if m.Get("name").Exists() {
			total += nameTokens
		}
	}
	total += toolTokens * int64(len(request.Get("tools").Array()))
	media := int64(mediaTokens)
	if in.tokenized() {
		media = lowImageTokens
	}
	return total + media*int64(strings.Count(request.Get("messages").Raw, `"image_url":`))
}

// countAnswer estimates the output tokens of an answer. What was streamed is counted by classes for every model, except on the
// Responses endpoint.
func (in *billInput) countAnswer() int64 {
	count := in.count
	if in.Stream && in.Endpoint != "/v1/responses" {
		count = in.weights().estimate
	}
	text := usualAnswer
	if in.UpstreamText != nil {
		text = *in.UpstreamText
	}
	if cut := []rune(text); in.UpstreamCut > 0 && len(cut) > in.UpstreamCut*cutChunk {
		text = string(cut[:in.UpstreamCut*cutChunk])
	}
	total := count(text + in.UpstreamReasoning)
	for _, call := range in.UpstreamToolCalls {
		total += toolCallTokens + count(call.Function.Name+call.Function.Arguments)
	}
	return total
}

// promptText joins the texts of a request, a line each: the string values below the fields that hold prompts, the roles among them.
// The parameters of a tool count as Go prints them (map[type:object]), as the recorded counts show.
func promptText(request []byte) string {
	var b strings.Builder
	add := func(text string) {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(text)
	}
	var walk func(v gjson.Result, depth int)
	walk = func(v gjson.Result, depth int) {
		const deepest = 32 // deeper than any request of the API; guards the stack
		switch {
		case depth > deepest:
		case v.Type == gjson.String:
			add(v.Str)
		case v.IsObject(), v.IsArray():
			v.ForEach(func(key, v gjson.Result) bool {
				switch key.Str {
				case "type", "image_url", "source", "inlineData", "input_audio", "file":
				case "parameters":
					add(fmt.Sprint(v.Value()))
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
