package relaytest

import (
	"net/http"
	"strconv"

	"github.com/tidwall/gjson"
)

// created is the time stamp of every answer: constant, so that answers can be compared.
const created = 1700000000

// absurdTokens is the completion of UsageAbsurd.
const absurdTokens = 1_000_000_000_000_000

// figures returns what the mock reports for so many tokens per choice, and whether it reports anything.
func (j *job) figures(tokens int64) (Figures, bool) {
	f := Figures{j.rec.Prompt, tokens * j.choices}
	switch j.script.Usage {
	case UsageNever, UsageNull:
		return f, false
	case UsageZero:
		f = Figures{}
	case UsageNegative:
		f.Completion = -f.Completion - 1
	case UsageDoubled:
		f = Figures{2 * f.Prompt, 2 * f.Completion}
	case UsageAbsurd:
		f.Completion = absurdTokens
	case UsageFinal, UsageInside, UsageCumulative, UsageTwice, UsageLate:
	}
	return f, true
}

// usage appends a usage member, its comma in front, and remembers it as reported.
func (j *job) usage(dst []byte, tokens int64) []byte {
	f, ok := j.figures(tokens)
	if !ok {
		if j.script.Usage == UsageNull {
			dst = append(dst, `,"usage":null`...)
		}
		return dst
	}
	j.rec.Reported = &f
	dst = strconv.AppendInt(append(dst, `,"usage":{"prompt_tokens":`...), f.Prompt, 10)
	dst = strconv.AppendInt(append(dst, `,"completion_tokens":`...), f.Completion, 10)
	dst = strconv.AppendInt(append(dst, `,"total_tokens":`...), f.Prompt+f.Completion, 10)
	return append(dst, '}')
}

// head appends the members that every answer begins with, its brace in front.
func (j *job) head(dst []byte, object string) []byte {
	dst = append(append(dst, `{"id":"chatcmpl-`...), j.rec.Upstream...)
	dst = append(append(dst, `","object":"`...), object...)
	dst = strconv.AppendInt(append(dst, `","created":`...), created, 10)
	dst = append(dst, `,"model":`...)
	return strconv.AppendQuote(dst, j.rec.Model)
}

// whole answers without a stream.
func (j *job) whole() {
	if j.script.Garbage >= 0 {
		j.write([]byte("<html>this is not JSON</html>"))
		return
	}
	b := append(j.head(nil, j.object), `,"choices":[`...)
	for c := range j.choices {
		if c > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"index":`...), c, 10)
		if j.object == "chat.completion" {
			b = append(appendWords(append(b, `,"message":{"role":"assistant","content":"`...), j.tokens), `"}`...)
		} else {
			b = append(appendWords(append(b, `,"text":"`...), j.tokens), '"')
		}
		b = append(append(append(b, `,"logprobs":null,"finish_reason":"`...), j.finish...), `"}`...)
	}
	b = append(j.usage(append(b, ']'), j.tokens), '}')
	j.rec.Completion = j.tokens * j.choices
	if j.script.Cut >= 0 {
		j.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		j.rec.Cut = true
		_, _ = j.w.Write(b[:len(b)/2])
		_ = http.NewResponseController(j.w).Flush()
		panic(http.ErrAbortHandler)
	}
	j.write(b)
}

// embed answers with a small vector per input, as numbers or as base64 of little-endian float32, which OpenAI's own clients ask for.
func (j *job) embed() {
	n, vector := 1, "[0.1,0.2,0.3]"
	if gjson.GetBytes(j.body, "encoding_format").String() == "base64" {
		vector = `"zczMPc3MTD6amZk+"`
	}
	if in := gjson.GetBytes(j.body, "input"); in.IsArray() && in.Get("0").Type != gjson.Number {
		n = int(in.Get("#").Int())
	}
	b := []byte(`{"object":"list","data":[`)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(strconv.AppendInt(append(b, `{"object":"embedding","index":`...), int64(i), 10), `,"embedding":`+vector+`}`...)
	}
	b = strconv.AppendQuote(append(b, `],"model":`...), j.rec.Model)
	j.choices = 0 // nothing is written
	j.write(append(j.usage(b, 0), '}'))
}

// write sends a whole answer.
func (j *job) write(b []byte) {
	j.w.Header().Set("Content-Type", "application/json")
	j.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, err := j.w.Write(b)
	j.rec.Finished, j.rec.Cut = err == nil, err != nil
}
