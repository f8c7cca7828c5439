package dialect

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/tidwall/gjson"
)

const hello = `"messages":[{"role":"user","content":"hi"}]`

func parse(t testing.TB, e Endpoint, body string) Request {
	t.Helper()
	r, p := Parse(e, []byte(body), DefaultLimits())
	if p != nil {
		t.Fatalf("%s: %+v", body, p)
	}
	return r
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name string
		e    Endpoint
		body string
		want Request
	}{
		{
			"chat", ChatCompletions,
			`{"model":"gpt-4o","user":"u7",` + hello + `,"max_tokens":12,"stream":true,"stream_options":{"include_usage":true},"n":2}`,
			Request{Model: "gpt-4o", User: "u7", Stream: true, IncludeUsage: true, MaxTokens: 12, Choices: 2, Outputs: 2, Messages: 1, TextBytes: 2},
		},
		{
			"nulls are absent", ChatCompletions,
			`{"model":"m",` + hello + `,"max_tokens":null,"stream":null,"stream_options":null,"n":null,"tools":null}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 1, TextBytes: 2},
		},
		{
			"both limits: the higher one", ChatCompletions,
			`{"model":"m",` + hello + `,"max_tokens":5,"max_completion_tokens":9}`,
			Request{Model: "m", MaxTokens: 9, Choices: 1, Outputs: 1, Messages: 1, TextBytes: 2},
		},
		{
			"escapes count as what they stand for", ChatCompletions,
			`{"\u006dodel":"m","messages":[{"role":"user","content":"\u4f60\ud83d\ude00\n\ud800"}]}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 1, TextBytes: 3 + 4 + 1 + 3},
		},
		{
			"parts", ChatCompletions,
			`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"abc"},{"type":"image_url","image_url":{"url":"data:x"}},{"type":"input_audio","input_audio":{"data":"` + strings.Repeat("A", 1280) + `"}}]},{"role":"assistant","content":null,"name":"x"}]}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 2, TextBytes: 3 + 3, MediaTokens: 4784 + 256 + 10, MediaTypical: 520 + 256},
		},
		{
			"gpt-4o-mini's images", ChatCompletions,
			`{"model":"gpt-4o-mini","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}]}`,
			Request{Model: "gpt-4o-mini", Choices: 1, Outputs: 1, Messages: 1, MediaTokens: 48169, MediaTypical: 520},
		},
		{
			"tools are prompt", ChatCompletions,
			`{"model":"m",` + hello + `,"tools":[{"a":1}]}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 1, TextBytes: 2 + 9},
		},
		{
			"completion", Completions,
			`{"model":"m","prompt":["ab","c"],"best_of":3,"n":2}`,
			Request{Model: "m", Choices: 2, Outputs: 6, Messages: 2, TextBytes: 3},
		},
		{
			"completion of tokens", Completions, `{"model":"m","prompt":[1,2,3]}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 1, TextBytes: 3},
		},
		{
			"completion of nothing", Completions, `{"model":"m"}`,
			Request{Model: "m", Choices: 1, Outputs: 1, Messages: 1},
		},
		{
			"embeddings", Embeddings, `{"model":"m","input":[[1,2],[3]],"stream":true}`,
			Request{Model: "m", Choices: 1, Messages: 2, TextBytes: 3},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := parse(t, tc.e, tc.body)
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(Request{}), cmpopts.IgnoreFields(Request{}, "Body", "Endpoint")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	chat := func(fields string) string { return `{"model":"m",` + hello + `,` + fields + `}` }
	for _, tc := range []struct {
		name  string
		e     Endpoint
		body  string
		param string // "" for what the middleware refuses
		text  string
	}{
		{"empty", ChatCompletions, ``, "", "invalid JSON"},
		{"cut short", ChatCompletions, `{"model":"m"`, "", "invalid JSON"},
		{"two values", ChatCompletions, `{} {}`, "", "invalid JSON"},
		{"a list", ChatCompletions, `[]`, "", "JSON object"},
		{"too deep", ChatCompletions, strings.Repeat(`[`, 1<<20), "", "deeper than the 128"},
		{"no model", ChatCompletions, `{` + hello + `}`, "", "Model name"},
		{"empty model", ChatCompletions, `{"model":"",` + hello + `}`, "", "Model name"},
		{"model is a number", ChatCompletions, `{"model":1,` + hello + `}`, "", "must be a string"},
		{"long model", ChatCompletions, `{"model":"` + strings.Repeat("m", 256) + `",` + hello + `}`, "", "1 to 255"},
		{"no messages", ChatCompletions, `{"model":"m"}`, "messages", "required"},
		{"empty messages", ChatCompletions, `{"model":"m","messages":[]}`, "messages", "required"},
		{"messages are a string", ChatCompletions, `{"model":"m","messages":"hi"}`, "messages", "required"},
		{"message is a string", ChatCompletions, `{"model":"m","messages":["hi"]}`, "messages", "role and content"},
		{"no role", ChatCompletions, `{"model":"m","messages":[{"content":"hi"}]}`, "messages.role", "required"},
		{"role is a number", ChatCompletions, `{"model":"m","messages":[{"role":1}]}`, "messages.role", "string"},
		{"content is a number", ChatCompletions, `{"model":"m","messages":[{"role":"user","content":1}]}`, "messages.content", "string or a list"},
		{"part is a string", ChatCompletions, `{"model":"m","messages":[{"role":"user","content":["x"]}]}`, "messages.content", "string or a list"},
		{"negative", ChatCompletions, chat(`"max_tokens":-5`), "max_tokens", "integer from 0 to 1073741824"},
		{"fraction", ChatCompletions, chat(`"max_tokens":1.5`), "max_tokens", "integer"},
		{"exponent", ChatCompletions, chat(`"max_tokens":1e3`), "max_tokens", "integer"},
		{"huge", ChatCompletions, chat(`"max_tokens":10000000000`), "max_tokens", "integer"},
		{"beyond int64", ChatCompletions, chat(`"max_tokens":99999999999999999999`), "max_tokens", "integer"},
		{"string", ChatCompletions, chat(`"max_completion_tokens":"5"`), "max_completion_tokens", "integer"},
		{"n zero", ChatCompletions, chat(`"n":0`), "n", "1 to 128"},
		{"n huge", ChatCompletions, chat(`"n":129`), "n", "1 to 128"},
		{"best_of", Completions, `{"model":"m","prompt":"x","best_of":-1}`, "best_of", "1 to 128"},
		{"too many answers", Completions, `{"model":"m","prompt":[` + strings.Repeat(`"a",`, 99) + `"a"],"n":100}`, "n", "10000 answers"},
		{"stream", ChatCompletions, chat(`"stream":"yes"`), "stream", "true or false"},
		{"stream_options", ChatCompletions, chat(`"stream_options":[1]`), "stream_options", "object"},
		{"include_usage", ChatCompletions, chat(`"stream_options":{"include_usage":1}`), "stream_options.include_usage", "true or false"},
		{"include_usage twice", ChatCompletions, chat(`"stream_options":{"include_usage":true,"include_usage":false}`), "stream_options.include_usage", "twice"},
		{"max_tokens twice", ChatCompletions, chat(`"max_tokens":1,"max_tokens":9000`), "max_tokens", "twice"},
		{"twice by another spelling", ChatCompletions, chat(`"max_tokens":1,"max\u005ftokens":9000`), "max_tokens", "twice"},
		{"model twice", ChatCompletions, chat(`"model":"x"`), "model", "twice"},
		{"no input", Embeddings, `{"model":"m"}`, "input", "required"},
		{"empty input", Embeddings, `{"model":"m","input":[]}`, "input", "required"},
		{"mixed input", Embeddings, `{"model":"m","input":[1,"a"]}`, "input", "one kind"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, p := Parse(tc.e, []byte(tc.body), DefaultLimits())
			if p == nil {
				t.Fatal("accepted")
			}
			code := "invalid_request"
			if tc.param == "" {
				code = ""
			}
			if p.Status != 400 || p.Param != tc.param || p.Code != code || p.Middleware != (tc.param == "") || !strings.Contains(p.Message, tc.text) {
				t.Errorf("got %+v", *p)
			}
		})
	}
	l := DefaultLimits()
	l.Messages = 2
	if _, p := Parse(Embeddings, []byte(`{"model":"m","input":["a","b","c"]}`), l); p == nil || p.Param != "input" {
		t.Errorf("three inputs of two allowed: %+v", p)
	}
}

func TestRewrite(t *testing.T) {
	const msg = `"messages": [ {"role":"user","content":"h\u0069"} ]`
	for _, tc := range []struct {
		name, body string
		edit       Edit
		want       string
	}{
		{"nothing", `{ "model":"m", ` + msg + ` }`, Edit{}, `{ "model":"m", ` + msg + ` }`},
		{"model", `{ "x":1, "model" : "m" , ` + msg + `}`, Edit{Model: `a"b`}, `{ "x":1, "model" : "a\"b" , ` + msg + `}`},
		{"same model", `{"model":"m",` + msg + `}`, Edit{Model: "m"}, `{"model":"m",` + msg + `}`},
		{"add a limit", `{"model":"m",` + msg + `}`, Edit{MaxTokens: 7}, `{"max_tokens":7,"model":"m",` + msg + `}`},
		{"add a limit for a reasoning model", `{"model":"o3-mini",` + msg + `}`, Edit{MaxTokens: 7}, `{"max_completion_tokens":7,"model":"o3-mini",` + msg + `}`},
		{"lower a limit", `{"model":"m","max_tokens": 100 ,` + msg + `}`, Edit{MaxTokens: 7}, `{"model":"m","max_tokens": 7 ,` + msg + `}`},
		{"keep a lower one", `{"model":"m","max_tokens": 5,` + msg + `}`, Edit{MaxTokens: 7}, `{"model":"m","max_tokens": 5,` + msg + `}`},
		{"lower the one that was used", `{"model":"m","max_completion_tokens":100,` + msg + `}`, Edit{MaxTokens: 7}, `{"model":"m","max_completion_tokens":7,` + msg + `}`},
		{"lower both", `{"max_completion_tokens":100,"model":"m","max_tokens":5,` + msg + `}`, Edit{MaxTokens: 3}, `{"max_completion_tokens":3,"model":"m","max_tokens":3,` + msg + `}`},
		{"a limit of null", `{"model":"m","max_tokens":null,` + msg + `}`, Edit{MaxTokens: 3}, `{"model":"m","max_tokens":3,` + msg + `}`},
		{"a limit of zero", `{"model":"m","max_tokens":0,` + msg + `}`, Edit{MaxTokens: 3}, `{"model":"m","max_tokens":3,` + msg + `}`},
		{"ask for usage", `{"model":"m","stream":true,` + msg + `}`, Edit{IncludeUsage: true}, `{"stream_options":{"include_usage":true},"model":"m","stream":true,` + msg + `}`},
		{"not without a stream", `{"model":"m",` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m",` + msg + `}`},
		{"asked already", `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + msg + `}`},
		{"declined", `{"model":"m","stream":true,"stream_options":{"include_usage": false},` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m","stream":true,"stream_options":{"include_usage": true},` + msg + `}`},
		{"other options", `{"model":"m","stream":true,"stream_options":{"x":1},` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m","stream":true,"stream_options":{"include_usage":true,"x":1},` + msg + `}`},
		{"empty options", `{"model":"m","stream":true,"stream_options":{ },` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m","stream":true,"stream_options":{"include_usage":true },` + msg + `}`},
		{"null options", `{"model":"m","stream":true,"stream_options":null,` + msg + `}`, Edit{IncludeUsage: true}, `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + msg + `}`},
		{"drop options", `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + msg + `}`, Edit{IncludeUsage: true, DropStreamOptions: true}, `{"model":"m","stream":true,` + msg + `}`},
		{"everything", ` {"stream":true,` + msg + `,"model":"m"}`, Edit{Model: "z", MaxTokens: 1, IncludeUsage: true}, ` {"max_tokens":1,"stream_options":{"include_usage":true},"stream":true,` + msg + `,"model":"z"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := parse(t, ChatCompletions, tc.body)
			got := string(r.Rewrite(tc.edit))
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if string(r.Body) != tc.body {
				t.Error("the client's body was changed")
			}
			if !json.Valid([]byte(got)) {
				t.Error("not JSON")
			}
		})
	}
}

func TestTexts(t *testing.T) {
	r := parse(t, ChatCompletions, `{"model":"m","tools":[1],"messages":[{"role":"user","content":[{"type":"text","text":"a\n"},{"type":"image_url","image_url":{"url":"x"}}]},{"role":"assistant","tool_calls":[{"id":"q"}]}]}`)
	var got []string
	r.Texts(func(s string) { got = append(got, s) })
	if diff := cmp.Diff([]string{"[1]", "user", "a\n", "assistant", `[{"id":"q"}]`}, got); diff != "" {
		t.Error(diff)
	}
	e := parse(t, Embeddings, `{"model":"m","input":["a","b"]}`)
	got = nil
	e.Texts(func(s string) { got = append(got, s) })
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" {
		t.Error(diff)
	}
	e = parse(t, Embeddings, `{"model":"m","input":[[1,2],[3]]}`)
	if n := e.TokenInputs(); n != 3 {
		t.Errorf("%d token inputs", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, body := range []string{
		`{"model":"m",` + hello + `,"stream":true,"stream_options":{"x":[]},"max_tokens":5}`,
		`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\ud83d\ude00"}]}],"n":2}`,
		`{"model":"m","prompt":["a"],"input":[[1]]}`, `{"model":"m","input":"x"}`, `[[[`, `{"a":"\"}`, `{"model":"\u00`,
	} {
		f.Add([]byte(body), "z", int64(3))
	}
	f.Fuzz(func(t *testing.T, body []byte, model string, limit int64) {
		for _, e := range []Endpoint{ChatCompletions, Completions, Embeddings} {
			r, p := Parse(e, body, DefaultLimits())
			if p != nil {
				if p.Status != 400 || p.Message == "" {
					t.Fatalf("refusal without reason: %+v", p)
				}
				continue
			}
			var bytes int64
			r.Texts(func(s string) { bytes += int64(len(s)) })
			if bytes > r.PromptBound() {
				t.Fatalf("%d bytes of text, bound %d: %s", bytes, r.PromptBound(), body)
			}
			edit := Edit{Model: strings.ToValidUTF8(model, ""), MaxTokens: max(limit, 0), IncludeUsage: true}
			checkRewrite(t, &r, edit)
		}
	})
}

// checkRewrite demands valid JSON in which exactly the edited fields differ.
func checkRewrite(t *testing.T, r *Request, edit Edit) {
	t.Helper()
	out := string(r.Rewrite(edit))
	if !gjson.Valid(out) {
		t.Fatalf("not JSON: %s", out)
	}
	edited := map[string]bool{"model": true, "max_tokens": true, "max_completion_tokens": true, "stream_options": true}
	members := func(text string) (list []string) {
		gjson.Parse(text).ForEach(func(k, v gjson.Result) bool {
			if !edited[k.Str] {
				list = append(list, k.Raw+":"+v.Raw)
			}
			return true
		})
		return list
	}
	if diff := cmp.Diff(members(string(r.Body)), members(out)); diff != "" {
		t.Fatal(diff)
	}
	if edit.Model != "" && gjson.Get(out, "model").Str != edit.Model {
		t.Fatalf("model %q in %s", edit.Model, out)
	}
	if r.Stream && !gjson.Get(out, "stream_options.include_usage").Bool() {
		t.Fatalf("no include_usage in %s", out)
	}
	if edit.MaxTokens > 0 && r.Endpoint.Generates() {
		again, p := Parse(r.Endpoint, []byte(out), Limits{Depth: 200, Messages: 1 << 20, ModelBytes: 1 << 20, OutputTokens: 1 << 62, Choices: 1 << 20})
		if p != nil || again.MaxTokens == 0 || again.MaxTokens > edit.MaxTokens {
			t.Fatalf("max_tokens %d, problem %+v: %s", again.MaxTokens, p, out)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	body := []byte(`{"model":"gpt-4o","messages":[{"role":"user","content":"` + strings.Repeat("word ", 200) + `"}],"stream":true,"max_tokens":100}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, p := Parse(ChatCompletions, body, DefaultLimits()); p != nil {
			b.Fatal(p)
		}
	}
}
