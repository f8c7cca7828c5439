package relay_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// What prompts and outputs of the mock cost at the stack's prices.
func price(prompt, completion int64) int64 { return 10 * (prompt + 4*completion) }

// counted is what the prompt of chat() has by the tokenizer: text and role one token each, three around the message, three for the
// answer.
const counted = 8

// wantBill compares the event of a request.
func (n *node) wantBill(t *testing.T, r *reply, usage ledger.Usage, source ledger.Source, flags ...string) *ledger.Event {
	t.Helper()
	ev := n.event(r.request())
	if d := cmp.Diff(usage, *ev.Usage); d != "" {
		t.Errorf("usage (-want +got):\n%s", d)
	}
	if want := price(usage.Prompt, usage.Completion); ev.Charged != want || ev.Requests != 1 {
		t.Errorf("charged %d for %d requests, want %d for 1", ev.Charged, ev.Requests, want)
	}
	if ev.Source != source || !slices.Equal(ev.Flags, flags) {
		t.Errorf("source %q, flags %v, want %q, %v", ev.Source, ev.Flags, source, flags)
	}
	return ev
}

// withoutUsageOnly drops the events that carry usage and nothing else, as the relay does for a client that did not ask for them.
func withoutUsageOnly(stream string) string {
	var b strings.Builder
	for event := range strings.SplitAfterSeq(stream, "\n\n") {
		if !strings.Contains(event, `"choices":[],"usage":{`) {
			b.WriteString(event)
		}
	}
	return b.String()
}

// Wherever an upstream puts its usage, and whatever it puts there: the bill follows the rules of relay/meter, and the client
// gets the upstream's bytes but for the usage chunk that it did not ask for.
func TestUsageModes(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	up := s.newTee()
	n := s.start()
	a := n.account(10_000_000, 10_000_000)
	reported, own := ledger.Usage{Prompt: 40, Completion: 12}, ledger.Usage{Prompt: counted, Completion: 12}
	for _, c := range []struct {
		mode   relaytest.UsageMode
		usage  ledger.Usage
		source ledger.Source
		flags  []string // of a stream
		plain  []string
	}{
		{relaytest.UsageFinal, reported, ledger.SourceUpstream, nil, nil},
		{relaytest.UsageInside, reported, ledger.SourceUpstream, nil, nil},
		{relaytest.UsageCumulative, reported, ledger.SourceUpstream, nil, nil},
		{relaytest.UsageNever, own, ledger.SourceCounted, []string{"usage_missing"}, []string{"usage_missing"}},
		{relaytest.UsageNull, own, ledger.SourceCounted, []string{"usage_missing"}, []string{"usage_missing"}},
		{relaytest.UsageZero, own, ledger.SourceCounted, []string{"usage_zero"}, []string{"usage_zero"}},
		{relaytest.UsageNegative, own, ledger.SourceCounted, []string{"usage_negative"}, []string{"usage_negative"}},
		{relaytest.UsageAbsurd, own, ledger.SourceCounted, []string{"usage_absurd"}, []string{"usage_absurd"}},
		{relaytest.UsageDoubled, ledger.Usage{Prompt: 80, Completion: 24}, ledger.SourceUpstream, nil, nil},
		{relaytest.UsageTwice, reported, ledger.SourceUpstream, []string{"usage_repeated"}, nil},
		{relaytest.UsageLate, reported, ledger.SourceUpstream, []string{"usage_late"}, nil},
	} {
		script := "completion=12;prompt=40;usage=" + string(c.mode)
		t.Run(string(c.mode)+"/stream", func(t *testing.T) {
			got := n.post(a.key, chatPath, chat(script, streamed))
			_, sent := up.last()
			if got.body != withoutUsageOnly(sent) {
				t.Errorf("the client got\n%s\nof\n%s", got.body, sent)
			}
			n.wantBill(t, got, c.usage, c.source, c.flags...)
		})
		t.Run(string(c.mode)+"/stream, usage asked", func(t *testing.T) {
			got := n.post(a.key, chatPath, chat(script, streamed, `"stream_options":{"include_usage":true}`))
			_, sent := up.last()
			if got.body != sent {
				t.Errorf("the client got\n%s\nof\n%s", got.body, sent)
			}
			n.wantBill(t, got, c.usage, c.source, c.flags...)
		})
		t.Run(string(c.mode)+"/plain", func(t *testing.T) {
			got := n.post(a.key, chatPath, chat(script))
			if _, sent := up.last(); got.body != sent || got.status != 200 {
				t.Errorf("the client got %d\n%s\nof\n%s", got.status, got.body, sent)
			}
			n.wantBill(t, got, c.usage, c.source, c.plain...)
		})
	}
	if left := n.left(a.users, a.user); left != n.left(a.tokens, a.user) || left != 10_000_000-n.charged() {
		t.Errorf("the user has %d left, charged were %d", left, n.charged())
	}
}

// charged sums the log.
func (n *node) charged() (sum int64) {
	for _, ev := range n.clerk.usage() {
		sum += ev.Charged
	}
	return sum
}

// The endpoints: what goes up is the client's body byte for byte, what comes back the upstream's, and the event says who and
// what.
func TestEndpoints(t *testing.T) {
	s := newStack(t, relaytest.Script{Completion: 12, Prompt: 40, Usage: relaytest.UsageFinal, Finish: "stop", Cut: -1, Error: -1, Silence: -1, Garbage: -1, Burst: 1})
	up := s.newTee()
	n := s.start()
	a := n.account(10_000_000, -1)
	const odd = `, "unknown" :{"deep":[1,2.50e1,{"ü":"\u00fc"}]},  "metadata":{"mock":"completion=12;prompt=40"} }`
	for _, c := range []struct {
		path, body string
		charge     int64
		usage      ledger.Usage
	}{
		{chatPath, `{ "model":"` + model + `", "messages":[{"role":"user","content":"hi"}]` + odd, price(40, 12), ledger.Usage{Prompt: 40, Completion: 12}},
		{"/v1/completions", `{"model": "instruct","prompt":["hi"]` + odd, 2 * (40 + 12), ledger.Usage{Prompt: 40, Completion: 12}},
		{"/v1/embeddings", `{"model": "embedder","input":["one","two"]` + odd, 40, ledger.Usage{Prompt: 40}},
		{"/v1/embeddings", `{"model": "embedder","input":[[1,2,3]]` + odd, 40, ledger.Usage{Prompt: 40}},
		{chatPath, `{"model":"per-call","messages":[{"role":"user","content":"hi"}]` + odd, 1000, ledger.Usage{Prompt: 40, Completion: 12}},
		{chatPath, `{"model":"gratis","messages":[{"role":"user","content":"hi"}]` + odd, 0, ledger.Usage{Prompt: 40, Completion: 12}},
	} {
		got := n.post(a.key, c.path, c.body)
		request, response := up.last()
		if got.status != 200 || request != c.body || got.body != response {
			t.Errorf("%s: %d\nsent up  %s\nof       %s\npassed   %s\nof       %s", c.path, got.status, request, c.body, got.body, response)
			continue
		}
		up.mu.Lock()
		h := up.header
		up.mu.Unlock()
		if h.Get("Authorization") != "Bearer mock-key" || h.Get("X-Oneapi-Request-Id") != got.request() || h.Get("Cookie") != "" {
			t.Errorf("%s: the upstream got the headers %v", c.path, h)
		}
		ev := n.event(got.request())
		if ev.Charged != c.charge || !cmp.Equal(*ev.Usage, c.usage) || ev.Requests != 1 {
			t.Errorf("%s: charged %d for %+v, want %d for %+v", c.path, ev.Charged, ev.Usage, c.charge, c.usage)
		}
		if ev.User != a.user || ev.Token != a.token || ev.Channel != 1 || ev.Node != "node" || ev.Kind != ledger.KindUsageSettled ||
			ev.Request.Endpoint != c.path || ev.Request.Status != 200 || ev.Request.Group != "default" || ev.Request.TokenName != "key" {
			t.Errorf("%s: event %+v of %+v", c.path, ev, ev.Request)
		}
	}
	// A stream differs in one member.
	body := `{ "model":"` + model + `", "stream":true, "messages":[{"role":"user","content":"hi"}]` + odd
	n.post(a.key, chatPath, body)
	if request, _ := up.last(); request != `{"stream_options":{"include_usage":true},`+body[1:] {
		t.Errorf("sent up %s", request)
	}
	if left := n.left(a.tokens, a.user); left != -n.charged() {
		t.Errorf("an unlimited key stands at %d after charges of %d", left, n.charged())
	}
}

// FORCE_STREAM_OPTION=false: the relay asks for nothing, and drops nothing.
func TestUsageNotForced(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	up := s.newTee()
	n := s.start(func(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.ForceUsage = false } })
	a := n.account(10_000_000, -1)
	body := chat("completion=12;prompt=40", streamed)
	got := n.post(a.key, chatPath, body)
	if request, response := up.last(); request != body || got.body != response {
		t.Errorf("sent up %s, got %s", request, got.body)
	}
	n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: 12}, ledger.SourceCounted, "usage_missing")
}

// Every piece that the upstream flushes reaches the client before the next is made; the head says that nobody may buffer.
func TestStreamIsFlushed(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	next := make(chan string)
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.Header().Set("X-Request-Id", "req-upstream")
		for piece := range next {
			_, _ = io.WriteString(w, piece)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	n := s.start()
	a := n.account(10_000_000, -1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	first := contentChunk(" the")
	go func() { next <- first }()
	resp, err := n.http.Client().Do(n.newRequest(ctx, a.key, chatPath, chat("", streamed)))
	n.must(err)
	defer func() { _ = resp.Body.Close() }()
	want := map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
	for k, v := range want {
		if got := resp.Header.Get(k); got != v {
			t.Errorf("%s: %q, want %q", k, got, v)
		}
	}
	body := bufio.NewReader(resp.Body)
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(body, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v, want %q", got, err, want)
		}
	}
	read(first)
	for range 5 {
		piece := contentChunk(" the") + ": keep-alive\n\n"
		next <- piece
		read(piece)
	}
	end := finishChunk + ": done\n\n" + "data: [DONE]\n\n: really\n\n"
	next <- end
	close(next)
	read(end)
	if rest, err := io.ReadAll(body); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if ev := n.event(resp.Header.Get("X-Oneapi-Request-Id")); ev.Usage.Completion != 6 || ev.Request.Upstream != "req-upstream" || !ev.Request.Stream {
		t.Errorf("billed %+v, %+v", ev.Usage, ev.Request)
	}
}

const finishChunk = `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"

func contentChunk(text string) string {
	return `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null}]}` + "\n\n"
}

// An upstream that refuses stream_options is asked once more without, and never again with.
func TestStreamOptionsRefused(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	n := s.start()
	a := n.account(10_000_000, -1)
	ask := func() *reply {
		t.Helper()
		got := n.post(a.key, chatPath, chat("completion=12;prompt=40;reject", streamed))
		if got.status != 200 || !strings.HasSuffix(got.body, "data: [DONE]\n\n") {
			t.Fatalf("%d %s", got.status, got.body)
		}
		return got
	}
	n.wantBill(t, ask(), ledger.Usage{Prompt: counted, Completion: 12}, ledger.SourceCounted, "usage_missing")
	if asked := n.up.Report().Requests; asked != 2 {
		t.Errorf("the upstream was asked %d times, want 2", asked)
	}
	ask()
	if asked := n.up.Report().Requests; asked != 3 {
		t.Errorf("the upstream was asked %d times, want 3: it is remembered", asked)
	}
	// Another address is another upstream.
	other, err := relaytest.Start("", relaytest.Options{})
	n.must(err)
	t.Cleanup(func() { _ = other.Close() })
	n.sql("UPDATE channels SET base_url = ? WHERE id = 1", other.URL)
	n.must(n.catalog.Load(t.Context()))
	n.wantBill(t, n.post(a.key, chatPath, chat("completion=12;prompt=40", streamed)), ledger.Usage{Prompt: 40, Completion: 12}, ledger.SourceUpstream)
	// A 400 that the option cannot be blamed for is passed on.
	if got := n.post(a.key, chatPath, chat("status=400", streamed)); got.status != 400 || other.Report().Requests != 2 {
		t.Errorf("%d after %d requests", got.status, other.Report().Requests)
	}
}
