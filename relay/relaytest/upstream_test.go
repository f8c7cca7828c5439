package relaytest

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/tidwall/gjson"
	"github.com/tiktoken-go/tokenizer"
)

func start(t testing.TB, opts Options) *Server {
	t.Helper()
	s, err := Start("", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// post sends a request and returns the answer with its body; the body's read error is the cut.
func post(t testing.TB, s *Server, path, script, body string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Oneapi-Request-Id", t.Name())
	req.Header.Set("Authorization", "Bearer sk-up")
	if script != "" {
		req.Header.Set(ScriptHeader, script)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

const streamBody = `{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}`

// record waits for the record of this test's request: the handler ends a moment after the client has its answer.
func record(t testing.TB, s *Server) Record {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if r, ok := s.Record(t.Name()); ok {
			return r
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no record")
	return Record{}
}

func payloads(body string) (list []string) {
	for line := range strings.SplitSeq(body, "\n") {
		if p, ok := strings.CutPrefix(line, "data: "); ok {
			list = append(list, p)
		}
	}
	return list
}

func TestWordsAreTokens(t *testing.T) {
	for _, enc := range []tokenizer.Encoding{tokenizer.Cl100kBase, tokenizer.O200kBase} {
		c, err := tokenizer.Get(enc)
		if err != nil {
			t.Fatal(err)
		}
		for n := range int64(2*len(words) + 1) {
			if got, err := c.Count(string(appendWords(nil, n))); err != nil || int64(got) != n {
				t.Fatalf("%s: %d words are %d tokens, %v", enc, n, got, err)
			}
		}
	}
}

func TestStream(t *testing.T) {
	s := start(t, Options{})
	_, body, err := post(t, s, "/v1/chat/completions", "prompt=40;completion=3;user=alice", streamBody)
	if err != nil {
		t.Fatal(err)
	}
	p := payloads(body)
	if len(p) != 1+3+1+1+1 || p[6] != "[DONE]" {
		t.Fatalf("%d payloads: %s", len(p), body)
	}
	for i, want := range []string{"", " the", " quick", " brown"} {
		if got := gjson.Get(p[i], "choices.0.delta.content").String(); got != want || !json.Valid([]byte(p[i])) {
			t.Errorf("payload %d: %s", i, p[i])
		}
	}
	if gjson.Get(p[4], "choices.0.finish_reason").String() != "stop" || gjson.Get(p[5], "choices.#").Int() != 0 ||
		gjson.Get(p[5], "usage.prompt_tokens").Int() != 40 || gjson.Get(p[5], "usage.completion_tokens").Int() != 3 {
		t.Errorf("end: %s", strings.Join(p[4:], "\n"))
	}
	want := Record{
		Seq: 1, Request: t.Name(), Endpoint: "/v1/chat/completions", Model: "gpt-4o", User: "alice", Key: "sk-up", Stream: true,
		Status: 200, Prompt: 40, Completion: 3, Chunks: 3, Reported: &Figures{40, 3}, Finished: true,
	}
	if diff := cmp.Diff(want, record(t, s), cmpopts.IgnoreFields(Record{}, "Upstream")); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Totals{Requests: 1, Finished: 1, Prompt: 40, Completion: 3, Chunks: 3}, s.Report().Users["alice"]); diff != "" {
		t.Errorf("alice (-want +got):\n%s", diff)
	}
}

func TestMaxTokensAndChoices(t *testing.T) {
	s := start(t, Options{})
	_, body, err := post(t, s, "/v1/completions", "completion=9;prompt=1", `{"model":"m","n":2,"max_tokens":4,"prompt":"x"}`)
	if err != nil || gjson.Get(body, "choices.1.text").String() != " the quick brown fox" ||
		gjson.Get(body, "choices.0.finish_reason").String() != "length" || gjson.Get(body, "usage.completion_tokens").Int() != 8 {
		t.Fatalf("%s, %v", body, err)
	}
	if r := record(t, s); r.Completion != 8 || !r.Finished {
		t.Errorf("%+v", r)
	}
}

func TestUsageModes(t *testing.T) {
	s := start(t, Options{})
	for mode, want := range map[UsageMode][]string{ // usage members in the order of the stream, nulls left out
		UsageFinal:      {"7/2"},
		UsageInside:     {"7/2"},
		UsageCumulative: {"7/1", "7/2", "7/2"},
		UsageNever:      nil,
		UsageNull:       nil,
		UsageZero:       {"0/0"},
		UsageNegative:   {"7/-3"},
		UsageDoubled:    {"14/4"},
		UsageAbsurd:     {"7/1000000000000000"},
		UsageTwice:      {"7/2", "7/2"},
		UsageLate:       {"7/2"},
	} {
		t.Run(string(mode), func(t *testing.T) {
			_, body, err := post(t, s, "/v1/chat/completions", "prompt=7;completion=2;usage="+string(mode), streamBody)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			p := payloads(body)
			for _, one := range p {
				if one != "[DONE]" && !json.Valid([]byte(one)) {
					t.Errorf("not JSON: %s", one)
				}
				if u := gjson.Get(one, "usage"); u.IsObject() {
					got = append(got, u.Get("prompt_tokens").String()+"/"+u.Get("completion_tokens").String())
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s\n%s", diff, body)
			}
			if late := p[len(p)-1] != "[DONE]"; late != (mode == UsageLate) {
				t.Errorf("last payload %s", p[len(p)-1])
			}
			if r := record(t, s); r.Completion != 2 || r.Prompt != 7 || (r.Reported == nil) != (want == nil) {
				t.Errorf("record %+v", r)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{APIKey: "sk-up"})
	chat := func(t *testing.T, script string) (*http.Response, string, error) {
		return post(t, s, "/v1/chat/completions", "completion=5;"+script, streamBody)
	}
	t.Run("status", func(t *testing.T) {
		resp, body, _ := chat(t, "status=429")
		if resp.StatusCode != 429 || gjson.Get(body, "error.type").String() != "rate_limit_error" || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if r := record(t, s); r.Status != 429 || r.Finished || r.Completion != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("reject", func(t *testing.T) {
		resp, body, _ := chat(t, "reject")
		if resp.StatusCode != 400 || !strings.Contains(body, "stream_options") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("cut", func(t *testing.T) {
		_, body, err := chat(t, "cut=2")
		if err == nil || len(payloads(body)) != 3 {
			t.Errorf("%v %s", err, body)
		}
		if r := record(t, s); !r.Cut || r.Finished || r.Completion != 2 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("error", func(t *testing.T) {
		_, body, err := chat(t, "error=2")
		p := payloads(body)
		if err != nil || len(p) != 4 || !gjson.Get(p[3], "error.message").Exists() {
			t.Errorf("%v %s", err, body)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		_, body, err := chat(t, "garbage=1")
		p := payloads(body)
		if err != nil || len(p) != 1+5+1+1+1+1 || json.Valid([]byte(p[2])) {
			t.Errorf("%v %s", err, body)
		}
	})
	t.Run("whole answer cut", func(t *testing.T) {
		if _, _, err := post(t, s, "/v1/chat/completions", "cut=0", `{"model":"m"}`); err == nil {
			t.Error("not cut")
		}
	})
	t.Run("not JSON", func(t *testing.T) {
		if resp, _, _ := post(t, s, "/v1/chat/completions", "", `{"model"`); resp.StatusCode != 400 {
			t.Error(resp.Status)
		}
	})
	t.Run("bad script", func(t *testing.T) {
		if resp, body, _ := chat(t, "usage=often"); resp.StatusCode != 400 || !strings.Contains(body, "usage=often") {
			t.Error(resp.Status, body)
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		other := start(t, Options{APIKey: "sk-other"})
		if resp, _, _ := post(t, other, "/v1/chat/completions", "", `{}`); resp.StatusCode != 401 {
			t.Error(resp.Status)
		}
	})
}

// The oracle must know what it wrote to a client that left in mid-stream, and a silent stream must end with its client.
func TestClientLeaves(t *testing.T) {
	s := start(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chat/completions", strings.NewReader(streamBody))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Oneapi-Request-Id", t.Name())
	req.Header.Set(ScriptHeader, "completion=9;silence=2")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	for n := 0; n < 3 && in.Scan(); {
		if strings.HasPrefix(in.Text(), "data: ") {
			n++
		}
	}
	if s.Report().Active != 1 {
		t.Errorf("active: %+v", s.Report())
	}
	cancel()
	if r := record(t, s); !r.Cut || r.Completion != 2 {
		t.Errorf("%+v", r)
	}
}

func TestEarly(t *testing.T) {
	s := start(t, Options{})
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/chat/completions", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(ScriptHeader, "early;completion=2")
	resp, err := http.DefaultClient.Do(req) // returns although the body was not sent
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if p := payloads(string(got)); err != nil || len(p) != 6 {
		t.Errorf("%v %s", err, got)
	}
	if err := feed.Close(); err != nil {
		t.Error(err)
	}
}

func TestScriptPlaces(t *testing.T) {
	s := start(t, Options{})
	for _, body := range []string{
		`{"model":"m","user":"mock:user=bob;prompt=5;completion=2"}`,
		`{"model":"m","metadata":{"mock":"user=bob;prompt=5;completion=2"},"user":"x"}`,
	} {
		if _, got, _ := post(t, s, "/v1/chat/completions", "", body); gjson.Get(got, "usage.total_tokens").Int() != 7 {
			t.Errorf("%s: %s", body, got)
		}
	}
	if n := s.Report().Users["bob"].Requests; n != 2 {
		t.Errorf("bob has %d", n)
	}
	post(t, s, "/v1/chat/completions", "", `{"model":"m","user":"carol"}`)
	if n := s.Report().Users["carol"].Requests; n != 1 {
		t.Errorf("carol has %d", n)
	}
}

func TestEmbeddingsAndModels(t *testing.T) {
	s := start(t, Options{Models: []string{"a"}})
	for in, want := range map[string]int64{`"x"`: 1, `["x","y"]`: 2, `[1,2,3]`: 1, `[[1],[2]]`: 2} {
		_, body, err := post(t, s, "/v1/embeddings", "prompt=6", `{"model":"e","input":`+in+`}`)
		if err != nil || gjson.Get(body, "data.#").Int() != want || gjson.Get(body, "usage.prompt_tokens").Int() != 6 || gjson.Get(body, "usage.completion_tokens").Int() != 0 {
			t.Errorf("%s: %s, %v", in, body, err)
		}
	}
	_, body, err := post(t, s, "/v1/embeddings", "prompt=6", `{"model":"e","input":"x","encoding_format":"base64"}`)
	vector, bad := base64.StdEncoding.DecodeString(gjson.Get(body, "data.0.embedding").String())
	if err != nil || bad != nil || len(vector) != 3*4 || math.Float32frombits(binary.LittleEndian.Uint32(vector)) != 0.1 {
		t.Errorf("base64: %s, %v %v", body, err, bad)
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/models", nil))
	if got := gjson.Get(rec.Body.String(), "data.0.id").String(); got != "a" {
		t.Errorf("%s", rec.Body)
	}
	rec = httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/oracle", nil))
	if gjson.Get(rec.Body.String(), "requests").Int() != 5 || gjson.Get(rec.Body.String(), "prompt").Int() != 30 {
		t.Errorf("%s", rec.Body)
	}
}

func TestOracleFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oracle.jsonl")
	for range 2 { // two runs of a mock share the file
		s, err := Start("", Options{OraclePath: path, Sync: true, ProgressEvery: 2})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			script := fmt.Sprintf("prompt=%d;completion=5", i+1)
			if i == 2 {
				script += ";cut=4"
			}
			post(t, s, "/v1/chat/completions", script, streamBody)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadOracle(path)
	if err != nil || len(got) != 6 {
		t.Fatalf("%d records, %v", len(got), err)
	}
	for i, r := range got {
		if r.Open || r.Prompt != int64(i%3+1) || r.Finished != (i%3 < 2) || r.Cut != (i%3 == 2) || r.Millis == 0 {
			t.Errorf("record %d: %+v", i, r)
		}
	}
	torn := `{"upstream":"a","open":true}` + "\n" + `{"upstream":"b","open":true}` + "\n" + `{"upstream":"a","completion":3}` + "\n" + `{"upst`
	got, err = readOracle(strings.NewReader(torn))
	if err != nil || len(got) != 2 || got[0].Completion != 3 || got[0].Open || !got[1].Open {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := readOracle(strings.NewReader("x\n{}\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("damage in the middle: %v", err)
	}
}

func TestParseScript(t *testing.T) {
	s, err := ParseScript(DefaultScript(), "user=a; prompt=1;completion=0;usage=late;finish=x;status=503;cut=1;error=2;silence=3;garbage=4;first=1s;delay=2ms;burst=8;reject;early")
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseScript(DefaultScript(), s.String())
	if diff := cmp.Diff(s, again); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if got := DefaultScript().String(); got != "" {
		t.Errorf("the default is written %q", got)
	}
	for _, bad := range []string{"x", "prompt=a", "delay=5", "usage=x", "status=", "burst"} {
		if _, err := ParseScript(DefaultScript(), bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestReverseProxy(t *testing.T) {
	s := start(t, Options{})
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(ReverseProxy(target, 4))
	defer proxy.Close()
	via := *s
	via.URL = proxy.URL
	_, body, err := post(t, &via, "/v1/chat/completions", "completion=3", streamBody)
	if err != nil || len(payloads(body)) != 7 {
		t.Errorf("%v %s", err, body)
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add("completion=12;prompt=40;usage=never;cut=3")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseScript(DefaultScript(), text)
		if err != nil {
			return
		}
		if again, err := ParseScript(DefaultScript(), s.String()); err != nil || again != s {
			t.Fatalf("%q: %+v, again %+v, %v", text, s, again, err)
		}
	})
}

// discard is a ResponseWriter that counts.
type discard struct {
	h http.Header
	n int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Flush()                      {}
func (d *discard) Write(b []byte) (int, error) { d.n += len(b); return len(b), nil }

func BenchmarkStream(b *testing.B) {
	u, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	const chunks = 256
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(streamBody))
		r.Header.Set(ScriptHeader, "completion=256")
		u.ServeHTTP(&discard{h: http.Header{}}, r)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/chunks, "ns/chunk")
}
