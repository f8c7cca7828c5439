package relay_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

const start = 10_000_000

func impatient(c *nodeConfig) {
	c.relay = func(rc *relay.Config) { rc.StreamingTimeout = 150 * time.Millisecond }
}

// wantNothing checks that a request cost nothing and left nothing behind.
func (n *node) wantNothing(t *testing.T, a account, before int) {
	t.Helper()
	if left := n.left(a.users, a.user); left != start-n.charged() {
		t.Errorf("%d units are left after charges of %d", left, n.charged())
	}
	if events := n.clerk.usage(); len(events) != before {
		t.Errorf("billed %+v", events[len(events)-1])
	}
}

// A stream that ends badly costs what came of it, and nothing if nothing came; the client has every byte that came.
func TestStreamsThatEndBadly(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	up := s.newTee()
	n := s.start(impatient)
	a := n.account(start, -1)
	for _, c := range []struct {
		script string
		pieces int64 // billed; 0: nothing is
		flags  []string
	}{
		{"error=3", 3, []string{"stream_error", "usage_missing"}},
		{"error=0", 0, nil},
		{"cut=3", 3, []string{"stream_truncated", "usage_missing"}},
		{"cut=0", 0, nil},
		{"silence=3", 3, []string{"stream_truncated", "usage_missing"}},
		{"silence=0", 0, nil},
		{"garbage=3", 16, []string{"payload_undecodable"}},
		{"cut=16", 16, []string{"stream_truncated", "usage_missing"}},
		{"error=3;usage=cumulative;prompt=8", 3, []string{"stream_error"}},
	} {
		t.Run(c.script, func(t *testing.T) {
			before := len(n.clerk.usage())
			got := n.post(a.key, chatPath, chat("prompt=8;"+c.script, streamed))
			if _, sent := up.last(); got.status != 200 || got.body != withoutUsageOnly(sent) || len(sent) == 0 {
				t.Errorf("the client got %d\n%s\nof\n%s", got.status, got.body, sent)
			}
			if c.pieces == 0 {
				n.wantNothing(t, a, before)
				return
			}
			source := ledger.SourceCounted
			if !slices.Contains(c.flags, "usage_missing") {
				source = ledger.SourceUpstream
			}
			n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: c.pieces}, source, c.flags...)
			n.wantNothing(t, a, before+1)
		})
	}
}

// A request that fails before anything of it was sent gets an error, costs nothing, and holds nothing.
func TestRequestsThatFail(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	answers := map[string]func(w http.ResponseWriter, r *http.Request){
		"empty stream": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "text/event-stream") },
		"error in a 200": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"error":{"message":"overloaded","type":"server_error","code":"busy"}}`)
		},
		"never": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"choices":[`)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://203.0.113.1/", http.StatusFound)
		},
	}
	var answer string
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		answers[answer](w, r)
	}))
	n := s.start(impatient, func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) {
			rc.StreamingTimeout, rc.RelayTimeout = 150*time.Millisecond, 300*time.Millisecond
		}
	})
	a := n.account(start, start)
	for _, c := range []struct {
		answer, more, model string
		status              int
		code                string
	}{
		{"empty stream", streamed, model, 500, "empty_response"},
		{"empty stream", streamed, "per-call", 500, "empty_response"},
		{"empty stream", `"n":1`, model, 500, "bad_response_body"},
		{"error in a 200", `"n":1`, model, 500, "busy"},
		{"error in a 200", `"n":1`, "per-call", 500, "busy"},
		{"error in a 200", streamed, model, 500, "busy"},
		{"never", streamed, model, 500, "do_request_failed"},
		{"never", `"n":1`, model, 500, "do_request_failed"},
		{"cut", `"n":1`, model, 500, "bad_response"},
		{"redirect", `"n":1`, model, 502, "bad_response_status_code"},
	} {
		t.Run(c.answer+"/"+c.more+"/"+c.model, func(t *testing.T) {
			answer = c.answer
			got := n.post(a.key, chatPath, strings.Replace(chat("", c.more), model, c.model, 1))
			if got.status != c.status || got.fault() != c.code {
				t.Errorf("%d %s, want %d %s", got.status, got.body, c.status, c.code)
			}
			n.wantNothing(t, a, 0)
		})
	}
}

// A client that leaves in mid-stream is billed for what the upstream produced until it was stopped.
func TestClientLeavesStream(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(start, -1)
	ctx, leave := context.WithCancel(t.Context())
	resp, err := n.http.Client().Do(n.newRequest(ctx, a.key, chatPath, chat("completion=100000;delay=2ms", streamed)))
	n.must(err)
	buf := make([]byte, 2000)
	_, err = io.ReadFull(resp.Body, buf)
	n.must(err)
	leave()
	_ = resp.Body.Close()
	id := resp.Header.Get("X-Oneapi-Request-Id")
	ev := n.event(id)
	var rec relaytest.Record
	n.await("the upstream to be stopped", func() (ok bool) { rec, ok = n.up.Record(id); return ok })
	got := int64(strings.Count(string(buf), `"content":" `))
	if !rec.Cut || ev.Usage.Completion < got || ev.Usage.Completion > rec.Completion+1 || ev.Usage.Completion < rec.Completion-2 {
		t.Errorf("billed %+v; the client read %d pieces, the upstream served %+v", ev.Usage, got, rec)
	}
	if ev.Source != ledger.SourceCounted || len(ev.Flags) > 0 || ev.Usage.Prompt != counted {
		t.Errorf("source %q, flags %v, usage %+v", ev.Source, ev.Flags, ev.Usage)
	}
	n.wantNothing(t, a, 1)
}

// A client that leaves an answer in one piece, or a stream before it began.
func TestClientLeavesEarly(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(start, -1)
	leave := func(body string) {
		t.Helper()
		ctx, leave := context.WithCancel(t.Context())
		n.up.Report()
		before := n.up.Report().Active
		go func() {
			n.await("the upstream to be asked", func() bool { return n.up.Report().Active > before })
			leave()
		}()
		if resp, err := n.http.Client().Do(n.newRequest(ctx, a.key, chatPath, body)); err == nil {
			_ = resp.Body.Close()
			t.Error("it was answered")
		}
	}
	leave(chat("completion=5;prompt=40;first=100ms"))
	n.await("the bill", func() bool { return len(n.clerk.usage()) == 1 })
	if ev := n.clerk.usage()[0]; ev.Charged != price(40, 5) || ev.Source != ledger.SourceUpstream {
		t.Errorf("an answer in one piece was billed %+v", ev)
	}
	leave(chat("completion=5;prompt=40;first=10s", streamed))
	n.wantNothing(t, a, 1)
}

// An upstream that keeps its connection open behind [DONE] does not hold up the client, and what it reports there counts if it is quick.
func TestUpstreamStaysOpen(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, contentChunk(" the")+finishChunk+"data: [DONE]\n\n")
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, `data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9}}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	n := s.start()
	a := n.account(start, -1)
	begun := time.Now()
	got := n.post(a.key, chatPath, chat("", streamed))
	if took := time.Since(begun); took > patience/2 || got.body != contentChunk(" the")+finishChunk+"data: [DONE]\n\n" {
		t.Errorf("after %v: %s", took, got.body)
	}
	n.wantBill(t, got, ledger.Usage{Prompt: 9, Completion: 9}, ledger.SourceUpstream, "usage_late")
}

// What the relay keeps back is bounded, behind [DONE] and before it.
func TestMuchBehindTheEnd(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	comment := ": " + strings.Repeat("x", 100_000) + "\n\n"
	var body string
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, body)
	}))
	n := s.start()
	a := n.account(start, -1)
	body = contentChunk(" the") + finishChunk + strings.Repeat(comment, 5) + "data: [DONE]\n\n"
	if got := n.post(a.key, chatPath, chat("", streamed)); got.body != body {
		t.Errorf("%d bytes of %d arrived", len(got.body), len(body))
	}
	body = contentChunk(" the") + finishChunk + "data: [DONE]\n\n" + strings.Repeat(comment, 5)
	got := n.post(a.key, chatPath, chat("", streamed))
	if !strings.HasPrefix(body, got.body) || !strings.HasPrefix(got.body, contentChunk(" the")+finishChunk+"data: [DONE]\n\n") || len(got.body) > 300<<10 {
		t.Errorf("%d bytes of %d arrived", len(got.body), len(body))
	}
	n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: 1}, ledger.SourceCounted)
	n.wantNothing(t, a, 2)
}

// What looked like the end, and was kept back, goes before the text that comes behind it.
func TestTextBehindTheEnd(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	text := contentChunk(" the") + contentChunk(" end")
	for name, body := range map[string]string{
		"behind a finish": text + finishChunk + text + finishChunk + "data: [DONE]\n\n",
		"behind [DONE]":   text + "data: [DONE]\n\n" + text,
	} {
		t.Run(name, func(t *testing.T) {
			s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, body)
			}))
			n := s.start()
			a := n.account(start, -1)
			got := n.post(a.key, chatPath, chat("", streamed))
			if got.body != body {
				t.Errorf("the client got\n%s\nof\n%s", got.body, body)
			}
			n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: 4}, ledger.SourceCounted, "usage_missing")
		})
	}
}

// An event above the bound ends the stream; what came before is billed and was sent.
func TestEventTooLong(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, contentChunk(" the")+"data: "+strings.Repeat("x", 1<<20)+"\n\n")
	}))
	n := s.start(func(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.MaxEvent = 64 << 10 } })
	a := n.account(start, -1)
	got := n.post(a.key, chatPath, chat("", streamed))
	if got.body != contentChunk(" the") {
		t.Errorf("got %d bytes", len(got.body))
	}
	n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: 1}, ledger.SourceCounted)
}

// Requests over and over leave nothing behind in the counters, whatever becomes of them.
func TestNothingStaysHeld(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(impatient)
	a := n.account(start, start, func(*sqlstore.TokenRow) {})
	for i, script := range []string{"", "error=2", "cut=2", "status=500", "silence=1", "garbage=1", "usage=never", "status=429"} {
		for _, more := range []string{streamed, `"n":1`} {
			got := n.post(a.key, chatPath, chat(script+fmt.Sprintf(";prompt=%d", 10+i), more))
			if got.status == 0 {
				t.Error("no answer")
			}
		}
	}
	if user, token := n.left(a.users, a.user), n.left(a.tokens, a.user); user != start-n.charged() || token != user {
		t.Errorf("%d and %d are left after charges of %d", user, token, n.charged())
	}
}
