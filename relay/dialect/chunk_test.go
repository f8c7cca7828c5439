package dialect

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"
)

// view is a Chunk with its text decoded, for comparison.
type view struct {
	Texts, Finishes                  []string
	Usage                            string
	HasChoices, NoChoices, Error, OK bool
	Tools                            int
}

func viewOf(c *Chunk, ok bool) view {
	v := view{Usage: string(c.Usage), HasChoices: c.HasChoices, NoChoices: c.NoChoices, Error: c.Error, Tools: c.ToolCalls, OK: ok}
	for _, t := range c.Texts {
		text := string(t.AppendTo(nil))
		if len(text) != t.Len() {
			panic(fmt.Sprintf("%q has %d bytes, Len says %d", text, len(text), t.Len()))
		}
		v.Texts = append(v.Texts, fmt.Sprintf("%d:%s", t.Choice, text))
	}
	for _, f := range c.Finishes {
		v.Finishes = append(v.Finishes, fmt.Sprintf("%d:%s", f.Choice, f.Reason))
	}
	return v
}

func TestChunkReader(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     view
	}{
		{"content", `{"id":"x","choices":[{"index":0,"delta":{"content":"Hi \"you\"\n\u4f60"},"finish_reason":null}]}`, view{Texts: []string{"0:Hi \"you\"\n你"}, HasChoices: true}},
		{"role only", `{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, view{HasChoices: true}},
		{"index last", `{"choices":[{"delta":{"content":"a"},"finish_reason":"stop","index":2}]}`, view{Texts: []string{"2:a"}, Finishes: []string{"2:stop"}, HasChoices: true}},
		{"two choices", `{ "choices" : [ {"index":0,"text":"a"} , {"index":1,"text":"b"} ] }`, view{Texts: []string{"0:a", "1:b"}, HasChoices: true}},
		{"usage only", `{"choices":[],"usage":{"prompt_tokens":1,"x":[{}]}}`, view{Usage: `{"prompt_tokens":1,"x":[{}]}`, HasChoices: true, NoChoices: true}},
		{"usage null", `{"choices":[{"delta":{}}],"usage":null}`, view{Usage: "null", HasChoices: true}},
		{"error", `{"error":{"message":"boom"}}`, view{Error: true}},
		{"error null", `{"error":null,"choices":[]}`, view{HasChoices: true, NoChoices: true}},
		{"message", `{"choices":[{"index":0,"message":{"role":"assistant","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"refusal":null}}]}`, view{Texts: []string{"0:a", "0:b"}, HasChoices: true}},
		{"reasoning under two names", `{"choices":[{"delta":{"reasoning":"r","reasoning_content":"r","content":null}}]}`, view{Texts: []string{"0:r"}, HasChoices: true}},
		{"tool calls", `{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"a\":"}},{"index":1,"function":{"arguments":"1}"}}]}}]}`, view{Texts: []string{"0:f", `0:{"a":`, "0:1}"}, Tools: 1, HasChoices: true}},
		{"old function call", `{"choices":[{"delta":{"function_call":{"name":"f","arguments":"x"}}}]}`, view{Texts: []string{"0:f", "0:x"}, Tools: 1, HasChoices: true}},
		{"embeddings", `{"object":"list","data":[{"embedding":[0.1,-2e5]}],"usage":{"prompt_tokens":3}}`, view{Usage: `{"prompt_tokens":3}`, HasChoices: true}},
		{"deep", `{"x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `,"error":"e"}`, view{Error: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.OK = true
			var r ChunkReader
			for range 2 { // the second time, from its template where there is one
				if diff := cmp.Diff(tc.want, viewOf(r.Read([]byte(tc.in)))); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
	for _, in := range []string{"", "x", "[]", `{"choices":[{"delta":{"content":"a"`, `{"a":1`, `{"a"}`, `{"a":}`, `{} x`, `{"choices":[{"delta":{"content":"a\`, "[DONE]"} {
		var r ChunkReader
		if c, ok := r.Read([]byte(in)); ok || len(c.Texts) > 0 {
			t.Errorf("%q was read: %+v", in, viewOf(c, ok))
		}
	}
}

// A payload that fits the template must be read as it would be without one.
func TestTemplate(t *testing.T) {
	var r ChunkReader
	chunk := func(content, tail string) string {
		return `{"id":"x","choices":[{"index":1,"delta":{"content":"` + content + `"},"finish_reason":null}]` + tail + `}`
	}
	r.Read([]byte(chunk("first", "")))
	for _, tc := range []struct {
		in   string
		fast bool
	}{
		{chunk("second", ""), true},
		{chunk(`a\"b\n\u00e9`, ""), true},
		{chunk(``, ""), true},
		{chunk(`a\\`, ""), true},
		{chunk(`a","role":"b`, ""), false}, // more members, not one string
		{chunk(`a"},"finish_reason":"stop"},{"delta":{"content":"b`, ""), false}, // another choice
		{chunk(`a`, `,"usage":{"prompt_tokens":1}`), false},
	} {
		if got := r.fits([]byte(tc.in)); got != tc.fast {
			t.Errorf("%s: fits %v, want %v", tc.in, got, tc.fast)
		}
		var plain ChunkReader
		want := viewOf(plain.Read([]byte(tc.in)))
		got := viewOf(r.Read([]byte(tc.in)))
		if tc.in == chunk("", "") {
			got.Texts = nil // an empty text, or none
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-walked +template):\n%s", tc.in, diff)
		}
		r.Read([]byte(chunk("again", "")))
	}
}

// OpenAI's padding differs from chunk to chunk and must neither cost a walk nor hide what else differs.
func TestPaddedTemplate(t *testing.T) {
	var r ChunkReader
	chunk := func(content, pad, tail string) []byte {
		return []byte(`{"choices":[{"delta":{"content":"` + content + `"},"finish_reason":null}],"obfuscation":"` + pad + `"` + tail + `}`)
	}
	r.Read(chunk("first", "xyz", ""))
	for _, tc := range []struct {
		in   []byte
		fast bool
	}{
		{chunk("second", "a", ""), true},
		{chunk(`se\"cond`, "", ""), true},
		{chunk("a", `b\"c`, ""), true},
		{chunk("a", "b", `,"usage":{"prompt_tokens":1}`), false},
		{chunk("a", `b","usage":{"prompt_tokens":1},"x":"`, ""), false},
	} {
		if got := r.fits(tc.in); got != tc.fast {
			t.Errorf("%s: fits %v, want %v", tc.in, got, tc.fast)
		}
		var plain ChunkReader
		if diff := cmp.Diff(viewOf(plain.Read(tc.in)), viewOf(r.Read(tc.in))); diff != "" {
			t.Errorf("%s (-walked +template):\n%s", tc.in, diff)
		}
		r.Read(chunk("again", "z", ""))
	}
}

func TestChunkReaderDoesNotAllocate(t *testing.T) {
	var r ChunkReader
	a := []byte(`{"id":"x","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"pad":"aa"}`)
	b := []byte(`{"id":"x","choices":[{"index":0,"delta":{"content":"b\n"},"finish_reason":null}],"pad":"bbb"}`)
	r.Read(a)
	r.Read(b)
	if n := testing.AllocsPerRun(100, func() { r.Read(a); r.Read(b); r.Read(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStreamEnd(t *testing.T) {
	var r ChunkReader
	c, _ := r.Read([]byte(`{"id":"c\"1","object":"chat.completion.chunk","created":17,"model":"m","choices":[]}`))
	h := c.Head()
	for _, tc := range []struct {
		name, got, want string
	}{
		{
			"chat", string(AppendLengthEnd(nil, ChatCompletions, h, []int{0, 2})),
			`data: {"id":"c\"1","object":"chat.completion.chunk","created":17,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}` + "\n\n" +
				`data: {"id":"c\"1","object":"chat.completion.chunk","created":17,"model":"m","choices":[{"index":2,"delta":{},"logprobs":null,"finish_reason":"length"}]}` + "\n\n",
		},
		{
			"completions, nothing seen", string(AppendLengthEnd(nil, Completions, StreamHead{}, []int{0})),
			`data: {"id":"","object":"text_completion","created":0,"model":"","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}` + "\n\n",
		},
		{
			"usage", string(AppendUsageChunk(nil, ChatCompletions, h, 3, 4)),
			`data: {"id":"c\"1","object":"chat.completion.chunk","created":17,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}` + "\n\n",
		},
	} {
		if tc.got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, tc.got, tc.want)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(tc.got), "\n\n") {
			if !json.Valid([]byte(strings.TrimPrefix(line, "data: "))) {
				t.Errorf("%s: not JSON: %s", tc.name, line)
			}
		}
	}
}

// FuzzChunk compares a reader that has a template with one that walks, and both with gjson on valid input.
func FuzzChunk(f *testing.F) {
	base := `{"id":"x","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}],"usage":null}`
	f.Add([]byte(fmt.Sprintf(base, "first")), []byte(fmt.Sprintf(base, `se\"cond`)))
	f.Add([]byte(fmt.Sprintf(base, "first")), []byte(fmt.Sprintf(base, `a"},"finish_reason":"stop"},{"delta":{"content":"b`)))
	f.Add([]byte(`{"choices":[{"text":"a"}],"obfuscation":"x","error":null}`), []byte(`{"choices":[{"text":"b"}],"obfuscation":"y\"","error":null}`))
	f.Add([]byte(`{"choices":[{"text":"a"}]}`), []byte(`{"choices":[{"text":"\ud83d\ude00\ud800"}],"usage":{"a":[1]}}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var with, without ChunkReader
		with.Read(first)
		got := viewOf(with.Read(second))
		want := viewOf(without.Read(second))
		got.Texts, want.Texts = dropEmpty(got.Texts), dropEmpty(want.Texts)
		if got.Usage == "" {
			got.Usage = strings.TrimPrefix(want.Usage, "null") + got.Usage // a template leaves out a null
		}
		if want.Usage == "null" {
			want.Usage = ""
		}
		if got.Usage == "null" {
			got.Usage = ""
		}
		if diff := cmp.Diff(want, got); diff != "" && json.Valid(first) && json.Valid(second) {
			t.Fatalf("after %q, %q (-walked +template):\n%s", first, second, diff)
		}
		if text, ok := taken(&with, second); ok && json.Valid(first) && json.Valid(second) {
			if diff := cmp.Diff(want, viewOf(&Chunk{Texts: []Text{text}, HasChoices: true}, true)); diff != "" {
				t.Fatalf("after %q, %q is more than text (-walked +taken):\n%s", first, second, diff)
			}
		}
		if !json.Valid(second) || !gjson.ParseBytes(second).IsObject() {
			return
		}
		if !want.OK {
			t.Fatalf("%s was not read", second)
		}
		var obj map[string]json.RawMessage
		if json.Unmarshal(second, &obj) == nil && len(obj) == strings.Count(string(second), ":") {
			if u, ok := obj["usage"]; ok && want.Usage != "" && want.Usage != string(u) {
				t.Fatalf("usage %q of %s", want.Usage, second)
			}
		}
	})
}

// taken is the text of a payload that Next takes as an event.
func taken(r *ChunkReader, payload []byte) (text Text, ok bool) {
	choice, ok := r.Usual()
	if !ok {
		return text, false
	}
	raw, n := r.Next(slices.Concat([]byte("data: "), payload, []byte("\n\n")))
	return Text{Choice: choice, Raw: raw, plain: true}, n > 0 && len(raw) > 0
}

func dropEmpty(texts []string) (out []string) {
	for _, s := range texts {
		if _, text, _ := strings.Cut(s, ":"); text != "" {
			out = append(out, s)
		}
	}
	return out
}

func FuzzDecoded(f *testing.F) {
	f.Add(`a\n\u00e9\ud83d\ude00\ud800\"`)
	f.Fuzz(func(t *testing.T, raw string) {
		got := AppendDecoded(nil, raw)
		var want string
		if json.Unmarshal([]byte(`"`+raw+`"`), &want) == nil && strings.ToValidUTF8(raw, "") == raw && string(got) != want {
			t.Fatalf("%q decodes to %q, want %q", raw, got, want)
		}
		if json.Valid([]byte(`"`+raw+`"`)) && decodedLen(raw) != len(got) {
			t.Fatalf("%q: length %d, decoded %d", raw, decodedLen(raw), len(got))
		}
		if out := appendString(nil, string(got)); !json.Valid(out) {
			t.Fatalf("%q written as %s", got, out)
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	chunk := `{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]%s}`
	for name, tails := range map[string][2]string{"template": {"", ""}, "padded": {`,"obfuscation":"a"`, `,"obfuscation":"bc"`}, "walked": {`,"pad":"a"`, `,"pad":"bc"`}} {
		b.Run(name, func(b *testing.B) {
			in := [2][]byte{[]byte(fmt.Sprintf(chunk, tails[0])), []byte(fmt.Sprintf(chunk, tails[1]))}
			var r ChunkReader
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := r.Read(in[i&1]); !ok {
					b.Fatal("not read")
				}
				i++
			}
		})
	}
}
