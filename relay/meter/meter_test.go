package meter

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/relay/dialect"
	"ledgerline/relay/relaytest"
	"ledgerline/relay/sse"
)

// serve plays a script on the mock upstream and returns the answer and what the oracle says of it.
func serve(t *testing.T, body, script string) (string, relaytest.Record) {
	t.Helper()
	u, err := relaytest.New(relaytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(body))
	r.Header.Set(relaytest.ScriptHeader, script)
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // exactly this error is wanted
				panic(p)
			}
		}()
		u.ServeHTTP(rec, r)
	}()
	return rec.Body.String(), u.Records()[0]
}

// feed runs a stream through the scanner into a meter and returns the steps.
func feed(t *testing.T, m *Meter, stream string) (steps []Step) {
	t.Helper()
	s := sse.NewScanner(0)
	if err := s.Feed([]byte(stream)); err != nil {
		t.Fatal(err)
	}
	for e, ok := s.Next(); ok; e, ok = s.Next() {
		steps = append(steps, m.Data(e.Data))
	}
	for e, ok := s.Flush(); ok; e, ok = s.Flush() {
		steps = append(steps, m.Data(e.Data))
	}
	return steps
}

func meter() *Meter {
	return New(Config{Model: "gpt-4o", Prompt: func() int64 { return 1000 }})
}

const (
	streamed = `{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[]}`
	asked    = `{"model":"gpt-4o","messages":[]}`
)

// TestAnomalies walks the table in the package comment against the mock upstream. A counted prompt is 1000.
func TestAnomalies(t *testing.T) {
	const up, counted = ledger.SourceUpstream, ledger.SourceCounted
	for _, tc := range []struct {
		name, script string
		stopped      bool
		want         Result
		usageOnly    int // payloads that can be dropped
		wholeToo     bool
	}{
		{name: "last chunk without choices", script: "usage=final", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop"}, usageOnly: 1, wholeToo: true},
		{name: "inside the last content chunk", script: "usage=inside", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop"}},
		{name: "cumulative", script: "usage=cumulative", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop"}},
		{name: "null", script: "usage=null", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 5}, Source: counted, Finish: "stop", Flags: []string{"usage_missing"}}, wholeToo: true},
		{name: "missing", script: "usage=never", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 5}, Source: counted, Finish: "stop", Flags: []string{"usage_missing"}}, wholeToo: true},
		{name: "zero", script: "usage=zero", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 5}, Source: counted, Finish: "stop", Flags: []string{"usage_zero"}}, usageOnly: 1, wholeToo: true},
		{name: "negative", script: "usage=negative", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 5}, Source: counted, Finish: "stop", Flags: []string{"usage_negative"}}, usageOnly: 1, wholeToo: true},
		{name: "absurd", script: "usage=absurd", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 5}, Source: counted, Finish: "stop", Flags: []string{"usage_absurd"}}, usageOnly: 1, wholeToo: true},
		{name: "doubled", script: "usage=doubled", want: Result{Usage: ledger.Usage{Prompt: 80, Completion: 10}, Source: up, Finish: "stop"}, usageOnly: 1, wholeToo: true},
		{name: "sent twice", script: "usage=twice", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop", Flags: []string{"usage_repeated"}}, usageOnly: 2},
		{name: "late", script: "usage=late", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop", Flags: []string{"usage_late"}}, usageOnly: 1},
		{name: "error before any text", script: "error=0", want: Result{Source: up, Failed: true, Flags: []string{"stream_error"}}},
		{name: "error in mid-stream", script: "error=3", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 3}, Source: counted, Flags: []string{"stream_error", "usage_missing"}}},
		{name: "error in mid-stream, reported", script: "usage=cumulative;error=3", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 3}, Source: up, Flags: []string{"stream_error"}}},
		{name: "ends without a finish reason", script: "cut=3", want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 3}, Source: counted, Flags: []string{"stream_truncated", "usage_missing"}}},
		{name: "ends before any text", script: "cut=0", want: Result{Source: up, Failed: true, Flags: []string{"stream_truncated"}}},
		{name: "stopped", script: "cut=3", stopped: true, want: Result{Usage: ledger.Usage{Prompt: 1000, Completion: 3}, Source: counted}},
		{name: "stopped before any text", script: "cut=0", stopped: true, want: Result{Usage: ledger.Usage{Prompt: 1000}, Source: counted}},
		{name: "not JSON in mid-stream", script: "garbage=2", want: Result{Usage: ledger.Usage{Prompt: 40, Completion: 5}, Source: up, Finish: "stop", Flags: []string{"payload_undecodable"}}, usageOnly: 1},
		{name: "nothing written", script: "completion=0", want: Result{Usage: ledger.Usage{Prompt: 40}, Source: up, Finish: "stop"}, usageOnly: 1, wholeToo: true},
		{name: "nothing written, missing", script: "completion=0;usage=never", want: Result{Usage: ledger.Usage{Prompt: 1000}, Source: counted, Finish: "stop", Flags: []string{"usage_missing"}}, wholeToo: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stream, rec := serve(t, streamed, "prompt=40;completion=5;"+tc.script)
			m := meter()
			dropped := 0
			for _, s := range feed(t, m, stream) {
				if s.UsageOnly {
					dropped++
				}
			}
			if dropped != tc.usageOnly {
				t.Errorf("%d payloads can be dropped, want %d", dropped, tc.usageOnly)
			}
			got := m.Finish(tc.stopped)
			if got.Chunks != rec.Completion || got.Chunks > m.Progress() {
				t.Errorf("%d pieces, progress %d; the mock wrote %d", got.Chunks, m.Progress(), rec.Completion)
			}
			check(t, tc.want, got)
			if !tc.wholeToo {
				return
			}
			body, _ := serve(t, asked, "prompt=40;completion=5;"+tc.script)
			m = meter()
			m.Body([]byte(body))
			check(t, tc.want, m.Finish(false))
		})
	}
}

func check(t *testing.T, want, got Result) {
	t.Helper()
	got.Chunks, got.Bytes = 0, 0
	if got.Failed {
		got.Usage = ledger.Usage{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The lines of the table that the mock does not play.
func TestMoreAnomalies(t *testing.T) {
	text := func(content, rest string) string {
		return `{"choices":[{"index":0,"delta":{"content":"` + content + `"},"finish_reason":null}]` + rest + `}`
	}
	usage := func(s string) string { return `{"choices":[],"usage":` + s + `}` }
	const good = `{"prompt_tokens":7,"completion_tokens":2}`
	const end = `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
	const up, counted = ledger.SourceUpstream, ledger.SourceCounted
	for _, tc := range []struct {
		name     string
		payloads []string
		want     Result
	}{
		{"impossible after a good one", []string{text("a", ""), usage(good), usage(`{"prompt_tokens":-1,"completion_tokens":9}`), end}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 2}, Source: up, Finish: "stop", Flags: []string{"usage_negative", "usage_repeated"}}},
		{"no input", []string{text("a", ""), end, usage(`{"completion_tokens":2}`)}, Result{Usage: ledger.Usage{Prompt: 1000, Completion: 2}, Source: counted, Finish: "stop", Flags: []string{"usage_no_input"}}},
		{"no output", []string{text("a", ""), end, usage(`{"prompt_tokens":7}`)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 1}, Source: counted, Finish: "stop", Flags: []string{"usage_no_output"}}},
		{"early", []string{text("one", `,"usage":{"prompt_tokens":7,"completion_tokens":1}`), text(" two three", ""), end}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 3}, Source: counted, Finish: "stop", Flags: []string{"usage_early"}}},
		{"early, but for all", []string{text("one", `,"usage":{"prompt_tokens":7,"completion_tokens":9}`), text(" two", ""), end}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 9}, Source: up, Finish: "stop"}},
		{"less than the text, after it", []string{text("one", `,"usage":{"prompt_tokens":7,"completion_tokens":1}`), text(" two three", ""), end, usage(good)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 2}, Source: up, Finish: "stop"}},
		{"growing from nothing", []string{text("a", `,"usage":{"prompt_tokens":7,"completion_tokens":0}`), text("b", `,"usage":`+good), end}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 2}, Source: up, Finish: "stop"}},
		{"exceeds the text", []string{text("a", ""), end, usage(`{"prompt_tokens":7,"completion_tokens":100}`)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 100}, Source: up, Finish: "stop", Flags: []string{"usage_exceeds_text"}}},
		{"hidden reasoning", []string{text("a", ""), end, usage(`{"prompt_tokens":7,"completion_tokens":100,"completion_tokens_details":{"reasoning_tokens":90}}`)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 100, Reasoning: 90}, Source: up, Finish: "stop"}},
		{"total does not add up", []string{text("a", ""), end, usage(`{"prompt_tokens":7,"completion_tokens":2,"total_tokens":1}`)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 2}, Source: up, Finish: "stop", Flags: []string{"usage_inconsistent_total"}}},
		{"not whole numbers", []string{text("a", ""), end, usage(`{"prompt_tokens":"7","completion_tokens":2.5}`)}, Result{Usage: ledger.Usage{Prompt: 1000, Completion: 1}, Source: counted, Finish: "stop", Flags: []string{"usage_malformed"}}},
		{"usage is no object", []string{text("a", ""), end, usage(`7`)}, Result{Usage: ledger.Usage{Prompt: 1000, Completion: 1}, Source: counted, Finish: "stop", Flags: []string{"usage_missing"}}},
		{"tool calls", []string{`{"choices":[{"delta":{"tool_calls":[{"function":{"name":"weather","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}`}, Result{Usage: ledger.Usage{Prompt: 1000, Completion: 2 + perToolCall}, Source: counted, Finish: "tool_calls", ToolCalls: 1, Flags: []string{"usage_missing"}}},
		{"pings", []string{`{"type":"ping"}`, "", text("a", ""), end, usage(good)}, Result{Usage: ledger.Usage{Prompt: 7, Completion: 2}, Source: up, Finish: "stop"}},
		{"nothing", nil, Result{Source: up, Failed: true, Flags: []string{"stream_truncated"}}},
		{"only [DONE]", []string{"[DONE]"}, Result{Source: up, Failed: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := meter()
			for _, p := range tc.payloads {
				m.Data([]byte(p))
			}
			check(t, tc.want, m.Finish(false))
		})
	}
}

func TestWholeAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		want       Result
	}{
		{"embeddings", `{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":6,"total_tokens":6}}`, Result{Usage: ledger.Usage{Prompt: 6}, Source: ledger.SourceUpstream}},
		{"embeddings without usage", `{"object":"list","data":[{"embedding":[0.1]}]}`, Result{Usage: ledger.Usage{Prompt: 1000}, Source: ledger.SourceCounted, Flags: []string{"usage_missing"}}},
		{"error with status 200", `{"error":{"message":"x"}}`, Result{Source: ledger.SourceUpstream, Failed: true, Flags: []string{"stream_error"}}},
		{"not JSON", `<html>`, Result{Source: ledger.SourceUpstream, Failed: true, Flags: []string{"payload_undecodable"}}},
		{"empty", ``, Result{Source: ledger.SourceUpstream, Failed: true, Flags: []string{"payload_undecodable"}}},
		{"no answer", `{}`, Result{Source: ledger.SourceUpstream, Failed: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := meter()
			m.Body([]byte(tc.body))
			check(t, tc.want, m.Finish(false))
		})
	}
}

func TestStepsAndChoices(t *testing.T) {
	m := meter()
	for i, tc := range []struct {
		in   string
		want Step
	}{
		{`{"id":"c1","created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`, Step{}},
		{`{"id":"c1","choices":[{"index":0,"delta":{"content":"aaaaaaaaaaaaaaaa"}},{"index":2,"delta":{"content":"b"},"finish_reason":"stop"}]}`, Step{Content: true, Finish: true}},
		{`{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}`, Step{UsageOnly: true}},
		{`{"error":{"message":"x"}}`, Step{Error: true}},
		{` [DONE]`, Step{Done: true}},
	} {
		if got := m.Data([]byte(tc.in)); got != tc.want {
			t.Errorf("payload %d: %+v, want %+v", i, got, tc.want)
		}
	}
	if diff := cmp.Diff([]int{0, 1, 3}, m.OpenChoices(4)); diff != "" {
		t.Errorf("open choices: %s", diff)
	}
	if h := m.Head(); h != (dialect.StreamHead{ID: `"c1"`, Model: `"m"`, Created: "5"}) {
		t.Errorf("head %+v", h)
	}
	if u, ok := m.Reported(); !ok || u.Prompt != 1 {
		t.Errorf("reported %+v, %v", u, ok)
	}
	if chunks, size := m.Content(); chunks != 2 || size != 17 || m.Progress() != 2 {
		t.Errorf("%d pieces of %d bytes, progress %d", chunks, size, m.Progress())
	}
}

// Each choice is counted by itself, however their chunks alternate.
func TestCountsChoicesApart(t *testing.T) {
	body := strings.Replace(streamed, `"stream"`, `"n":3,"stream"`, 1)
	stream, rec := serve(t, body, "completion=200;usage=never")
	m := meter()
	feed(t, m, stream)
	if got := m.Counted(); got != 600 {
		t.Errorf("counted %d under way", got)
	}
	if got := m.Finish(false); got.Usage.Completion != rec.Completion || rec.Completion != 600 {
		t.Errorf("counted %d, the mock wrote %d", got.Usage.Completion, rec.Completion)
	}
}

// A long answer is counted to the token although it is never in memory as a whole.
func TestLongAnswerInConstantMemory(t *testing.T) {
	stream, rec := serve(t, streamed, "completion=60000;usage=never")
	m := meter()
	feed(t, m, stream)
	if size := cap(m.first.buf); size > 2*keepText {
		t.Errorf("%d bytes kept", size)
	}
	if _, size := m.Content(); size < 3*keepText {
		t.Fatalf("the answer has %d bytes only", size)
	}
	if got := m.Finish(false); got.Usage.Completion != rec.Completion {
		t.Errorf("counted %d, the mock wrote %d", got.Usage.Completion, rec.Completion)
	}
}

func TestDataDoesNotAllocate(t *testing.T) {
	m := meter()
	var chunks [64][]byte
	for i := range chunks {
		chunks[i] = fmt.Appendf(nil, `{"id":"x","choices":[{"index":0,"delta":{"content":" w%d"},"finish_reason":null}],"usage":null}`, i)
	}
	for range 400 { // beyond the growth of the kept text
		for _, c := range chunks {
			m.Data(c)
		}
	}
	// Text that overflows is counted, which allocates: measure between.
	m.first.buf = m.first.buf[:0]
	if n := testing.AllocsPerRun(50, func() {
		for _, c := range chunks[:8] {
			m.Data(c)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzMeter(f *testing.F) {
	f.Add(`{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":-1}}`, `[DONE]`, false)
	f.Add(`{"choices":[],"usage":{"prompt_tokens":1e300}}`, `{"error":1}`, true)
	f.Fuzz(func(t *testing.T, a, b string, stopped bool) {
		m := meter()
		last := int64(0)
		for _, p := range []string{a, b, a} {
			m.Data([]byte(p))
			if m.Progress() < last {
				t.Fatal("progress went back")
			}
			last = m.Progress()
		}
		r := m.Finish(stopped)
		u := r.Usage
		for _, n := range []int64{u.Prompt, u.Completion, u.CacheRead, u.CacheWrite, u.ImageIn, u.ImageOut, u.AudioIn, u.AudioOut, u.Reasoning} {
			if n < 0 || n > dialect.MaxPlausibleTokens {
				t.Fatalf("%q %q: %+v", a, b, r)
			}
		}
	})
}

func BenchmarkData(b *testing.B) {
	var chunks [64][]byte
	for i := range chunks {
		chunks[i] = fmt.Appendf(nil, `{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"delta":{"content":" w%d"},"logprobs":null,"finish_reason":null}],"usage":null}`, i)
	}
	m := meter()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if i++; i%4096 == 0 {
			m = meter() // an answer of 4,096 chunks
		}
		m.Data(chunks[i%64])
		if m.Progress() == 0 {
			b.Fatal("no progress")
		}
	}
}

// BenchmarkStreamPath is all the relay's parsing of one chunk: scan, meter, gather for one write.
func BenchmarkStreamPath(b *testing.B) {
	chunk := []byte(`data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n")
	s := sse.NewScanner(0)
	m := meter()
	var out sse.Batch
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if i++; i%4096 == 0 {
			m = meter()
		}
		if err := s.Feed(chunk); err != nil {
			b.Fatal(err)
		}
		out.Reset()
		n := m.Run(s.Ahead(), math.MaxInt64, math.MaxInt64)
		out.Add(s.Ahead()[:n])
		s.Skip(n)
		for e, ok := s.Next(); ok; e, ok = s.Next() {
			m.Data(e.Data)
			out.Add(e.Raw)
		}
		if len(out.Bytes()) != len(chunk) {
			b.Fatal("bytes lost")
		}
	}
}
