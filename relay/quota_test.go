package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// A key with quota for exactly 100 requests serves exactly 100, whatever the concurrency, if clients that are told to come
// back do.
func TestExactlyHundred(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	cost := price(counted, 1)
	for name, a := range map[string]account{
		"key":  n.account(1_000_000, 100*cost),
		"user": n.account(100*cost, -1),
		"both": n.account(100*cost, 100*cost),
	} {
		t.Run(name, func(t *testing.T) {
			var served, busy atomic.Int64
			var clients sync.WaitGroup
			for range 64 {
				clients.Go(func() {
					for {
						got := n.post(a.key, chatPath, chat(fmt.Sprintf("completion=1;prompt=%d", counted), `"max_tokens":1`))
						switch {
						case got.status == 200:
							served.Add(1)
						case got.status == 429 && got.fault() == "quota_held" && got.header.Get("Retry-After") == "1":
							busy.Add(1)
							time.Sleep(time.Millisecond) // a client's own pause, shorter than it was asked for
						case got.status == 401 || got.status == 403:
							return
						default:
							t.Errorf("%d %s", got.status, got.body)
							return
						}
					}
				})
			}
			clients.Wait()
			if served.Load() != 100 {
				t.Errorf("served %d requests", served.Load())
			}
			poorer := a.tokens
			if name == "user" {
				poorer = a.users
			}
			if left := n.left(poorer, a.user); left != 0 {
				t.Errorf("%d units are left", left)
			}
			t.Logf("%d times busy", busy.Load())
		})
	}
	for _, name := range []string{"ledgerline_desk_swept_holds_total", "ledgerline_relay_excess_quota_total", "ledgerline_relay_in_flight"} {
		if got := n.metric(name); got != 0 {
			t.Errorf("%s is %g", name, got)
		}
	}
	if got := n.metric("ledgerline_relay_charged_quota_total"); got != float64(n.charged()) {
		t.Errorf("the metric of charges says %g, the log %d", got, n.charged())
	}
}

// Near the limit a hold is partial: what is left after the counted prompt buys output, to the token.
func TestPartialHold(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	up := s.newTee()
	n := s.start()
	for _, c := range []struct {
		name      string
		more      string // of the body
		pays      int64  // output tokens that the account pays for
		limit     string // in the body sent up
		generated int64
	}{
		{"no bound", `"temperature":1`, 5, `{"max_tokens":5,"model"`, 5},
		{"no bound, stream", streamed, 5, `"max_tokens":5`, 5},
		{"more than it pays", `"max_tokens":100`, 5, `"max_tokens":5}`, 5},
		{"more than it pays, stream", `"stream":true,"max_tokens":100`, 5, `"max_tokens":5}`, 5},
		{"the newer field", `"max_completion_tokens":100`, 5, `"max_completion_tokens":5}`, 5},
		{"less than it pays", `"max_tokens":3`, 5, `"max_tokens":3}`, 3},
		{"two answers", `"n":2`, 7, `"max_tokens":3`, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := n.account(1_000_000, price(counted, c.pays))
			got := n.post(a.key, chatPath, chat(fmt.Sprintf("completion=12;prompt=%d", counted), c.more))
			request, _ := up.last()
			if got.status != 200 || !strings.Contains(request, c.limit) {
				t.Fatalf("%d %s\nsent up %s, which should say %s", got.status, got.body, request, c.limit)
			}
			n.wantBill(t, got, ledger.Usage{Prompt: counted, Completion: c.generated}, ledger.SourceUpstream)
			if left, want := n.left(a.tokens, a.user), price(0, c.pays-c.generated); left != want {
				t.Errorf("%d units are left, want %d", left, want)
			}
		})
	}
	// Not even one token each: refused, and nothing stays held.
	a := n.account(1_000_000, price(counted, 2))
	if got := n.post(a.key, chatPath, chat("", `"n":3`)); got.status != 403 || got.fault() != "insufficient_user_quota" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := n.post(a.key, chatPath, chat("completion=2;prompt=8")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if left := n.left(a.tokens, a.user); left != 0 {
		t.Errorf("%d units are left", left)
	}
}

// chunkOf is one event of a stream as a client reads it.
type chunkOf struct {
	Choices []struct {
		Index  int
		Delta  struct{ Content string }
		Text   string
		Finish *string `json:"finish_reason"`
	}
	Usage *struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
		Total      int64 `json:"total_tokens"`
	}
	ID, Object, Model string
}

// read takes a stream apart: pieces of text by choice, finish reasons by choice, the usage, and whether it ended with [DONE].
func readStream(t *testing.T, body string) (pieces map[int]int, finish map[int]string, last *chunkOf, done bool) {
	t.Helper()
	pieces, finish = map[int]int{}, map[int]string{}
	for event := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(event, "data: ")
		if done || !ok {
			t.Fatalf("event %q in a stream that had ended: %v", event, done)
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		var c chunkOf
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content+choice.Text != "" {
				pieces[choice.Index]++
			}
			if choice.Finish != nil {
				if finish[choice.Index] != "" {
					t.Errorf("choice %d ended twice", choice.Index)
				}
				finish[choice.Index] = *choice.Finish
			}
		}
		last = &c
	}
	return pieces, finish, last, done
}

func slices64(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.OutputSlice = 64 } }

// A stream of unknown length goes on as long as the account pays: its hold grows ahead of it.
func TestHoldGrowsWithTheStream(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(slices64)
	a := n.account(1_000_000, 500_000)
	got := n.post(a.key, chatPath, chat("completion=1000;prompt=40", streamed))
	pieces, finish, _, done := readStream(t, got.body)
	if pieces[0] != 1000 || finish[0] != "stop" || !done {
		t.Fatalf("%v pieces, ended with %v, %v", pieces, finish, done)
	}
	ev := n.wantBill(t, got, ledger.Usage{Prompt: 40, Completion: 1000}, ledger.SourceUpstream)
	if held := ev.Hold.Amount; held < ev.Charged || held > price(100, 2000) {
		t.Errorf("%d units were held for a bill of %d", held, ev.Charged)
	}
	if left := n.left(a.tokens, a.user); left != 500_000-ev.Charged {
		t.Errorf("%d units are left", left)
	}
}

// A stream that outgrows its account ends cleanly, with everything it could pay for, charged to the unit.
func TestStreamOutgrowsTheQuota(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(slices64)
	const pays = 150
	quota := price(counted, pays)
	ask := `"stream":true,"stream_options":{"include_usage":true}`
	for _, c := range []struct {
		name         string
		user, token  int64
		path, script string
		more         string
		pieces       int // of each choice
		finish       string
	}{
		{"key", 1_000_000, quota, chatPath, "completion=1000", ask, pays, "length"},
		{"user", quota, -1, chatPath, "completion=1000", ask, pays, "length"},
		{"key poorer than user", quota + 1000, quota, chatPath, "completion=1000", ask, pays, "length"},
		{"user poorer than key", quota, quota + 1000, chatPath, "completion=1000", ask, pays, "length"},
		{"usage in every chunk", 1_000_000, quota, chatPath, "completion=1000;prompt=8;usage=cumulative", ask, pays, "length"},
		{"no usage asked", 1_000_000, quota, chatPath, "completion=1000", streamed, pays, "length"},
		{"two answers", 1_000_000, quota, chatPath, "completion=1000", ask + `,"n":2`, pays / 2, "length"},
		{"the last token is the last one paid", 1_000_000, quota, chatPath, "completion=150;prompt=8", ask, pays, "stop"},
		{"big bursts", 1_000_000, quota, chatPath, "completion=1000;burst=64", ask, pays, "length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := n.account(c.user, c.token)
			got := n.post(a.key, c.path, chat(c.script, c.more))
			if got.status != 200 || got.err != nil {
				t.Fatalf("%d, %v %s", got.status, got.err, got.body)
			}
			pieces, finish, last, done := readStream(t, got.body)
			for i := range pieces {
				if pieces[i] != c.pieces || finish[i] != c.finish {
					t.Errorf("answer %d has %d pieces and ended with %q, want %d and %q", i, pieces[i], finish[i], c.pieces, c.finish)
				}
			}
			if !done || last.ID == "" || last.Object != "chat.completion.chunk" || last.Model != model {
				t.Errorf("ended with %+v, done %v", last, done)
			}
			asked := strings.Contains(c.more, "include_usage")
			if u := last.Usage; asked && (u == nil || u.Prompt != counted || u.Completion != pays || u.Total != counted+pays) || !asked && u != nil {
				t.Errorf("ended with usage %+v", last.Usage)
			}
			if ev := n.event(got.request()); ev.Charged != quota || ev.Usage.Completion != pays || len(ev.Flags) > 0 {
				t.Errorf("charged %d for %+v, flags %v; want %d", ev.Charged, ev.Usage, ev.Flags, quota)
			}
			poorer := a.tokens
			if c.token < 0 || c.token > c.user {
				poorer = a.users
			}
			if left := n.left(poorer, a.user); left != 0 {
				t.Errorf("%d units are left", left)
			}
		})
	}
}

// Where tokens are shorter than usual, no more of them pass than are paid for.
func TestShortTokensAtTheEndOfTheQuota(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	piece := contentChunk("é") // one token of two bytes
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte(piece))
			_ = http.NewResponseController(w).Flush()
		}
	}))
	n := s.start(slices64)
	const pays = 150
	a := n.account(1_000_000, price(counted, pays))
	got := n.post(a.key, chatPath, chat("", streamed))
	if sent := strings.Count(got.body, piece); sent != pays {
		t.Errorf("%d tokens were sent, %d are paid for", sent, pays)
	}
	if left := n.left(a.tokens, a.user); left != 0 {
		t.Errorf("%d units are left", left)
	}
}

// Pieces of many tokens may cross the line: the one that does is not sent, and the account does not go below zero.
func TestBigPiecesAtTheEndOfTheQuota(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	const tokens = 50
	piece := contentChunk(strings.Repeat(" the", tokens))
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte(piece))
			_ = http.NewResponseController(w).Flush()
		}
	}))
	n := s.start(slices64)
	const pays = 825
	a := n.account(1_000_000, price(counted, pays))
	got := n.post(a.key, chatPath, chat("", streamed))
	sent := strings.Count(got.body, piece)
	if _, finish, _, done := readStream(t, got.body); finish[0] != "length" || !done {
		t.Errorf("ended with %v, %v", finish, done)
	}
	ev := n.event(got.request())
	if sent != pays/tokens || ev.Charged != price(counted, pays) {
		t.Errorf("%d pieces of %d tokens were sent and %d units charged of %d tokens' worth", sent, tokens, ev.Charged, pays)
	}
	if left := n.left(a.tokens, a.user); left != price(counted, pays)-ev.Charged {
		t.Errorf("%d units are left", left)
	}
}

// Many streams of one account share what it has: none goes below zero, all end cleanly.
func TestStreamsShareTheQuota(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(slices64)
	quota := price(8*counted, 3000)
	a := n.account(quota, -1)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				got := n.post(a.key, chatPath, chat("completion=1000;delay=50us;prompt=8", streamed))
				if got.status == 429 {
					time.Sleep(time.Millisecond) // a client's own pause
					continue
				}
				if got.status == 403 {
					return
				}
				if _, finish, _, done := readStream(t, got.body); got.status != 200 || !done || finish[0] == "" {
					t.Errorf("%d, ended with %v", got.status, finish)
				}
			}
		})
	}
	clients.Wait()
	if left := n.left(a.users, a.user); left < 0 || left != quota-n.charged() || left > price(counted, 1) {
		t.Errorf("%d units are left of %d after charges of %d", left, quota, n.charged())
	}
}

// When only open requests are in the way, the client is told to come back, and then served.
func TestBusy(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(1_000_000, price(counted, 50))
	ctx, leave := context.WithCancel(t.Context())
	first := n.newRequest(ctx, a.key, chatPath, chat("completion=12;silence=3", `"stream":true,"max_tokens":1000`))
	resp, err := n.http.Client().Do(first)
	n.must(err)
	defer func() { _ = resp.Body.Close() }()
	got := n.post(a.key, chatPath, chat("completion=2;prompt=8"))
	if got.status != 429 || got.fault() != "quota_held" || got.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", got.status, got.header, got.body)
	}
	leave()
	n.await("the first to end", func() bool { return n.desk.InFlight() == 0 && n.desk.Backlog() == 0 })
	if got := n.post(a.key, chatPath, chat("completion=2;prompt=8")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// A free model needs no quota; an unlimited key goes below zero in its own column, as in New API, but not its user.
func TestFreeAndUnlimited(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	poor := n.account(0, -1)
	body := strings.Replace(chat("completion=12;prompt=40"), model, "gratis", 1)
	for range 3 {
		if got := n.post(poor.key, chatPath, body); got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		} else if ev := n.event(got.request()); ev.Charged != 0 || ev.Requests != 1 || ev.Usage.Prompt != 40 {
			t.Errorf("event %+v", ev)
		}
	}
	if got := n.post(poor.key, chatPath, strings.Replace(chat("completion=12;prompt=40", streamed), model, "gratis", 1)); !strings.HasSuffix(got.body, "[DONE]\n\n") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if left := n.left(poor.users, poor.user); left != 0 {
		t.Errorf("%d units are left", left)
	}
	rich := n.account(price(counted, 5), -1)
	if got := n.post(rich.key, chatPath, chat("completion=5;prompt=8")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if left := n.left(rich.users, rich.user); left != 0 {
		t.Errorf("%d units are left", left)
	}
	if left := n.left(rich.tokens, rich.user); left != -price(counted, 5) {
		t.Errorf("the key stands at %d", left)
	}
	if got := n.post(rich.key, chatPath, chat("")); got.status != 403 || got.fault() != "insufficient_user_quota" {
		t.Errorf("%d %s", got.status, got.body)
	}
	// A key that has nothing left is refused as if it were not valid; so is one that was never given anything.
	spent := n.account(1_000_000, price(counted, 5))
	if got := n.post(spent.key, chatPath, chat("completion=5;prompt=8")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	n.drain()
	for _, key := range []string{spent.key, n.account(1_000_000, 0).key} {
		if got := n.post(key, chatPath, chat("")); got.status != 401 || got.fault() != "" {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
}

// A top-up works at once, for the request that waits for it.
func TestTopUp(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(0, -1)
	if got := n.post(a.key, chatPath, chat("")); got.status != 403 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	_, err := n.db.GrantQuota(t.Context(), a.user, price(counted, 5), "top-up")
	n.must(err)
	n.settled()
	n.clerk.catchUp()
	if got := n.post(a.key, chatPath, chat("completion=5;prompt=8")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if left := n.left(a.users, a.user); left != 0 {
		t.Errorf("%d units are left", left)
	}
}

// What an upstream reports beyond the hold is charged: it is what the operator pays (L3, first exception).
func TestMoreThanTheHold(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,"completion_tokens":1000}}`))
	}))
	n := s.start()
	a := n.account(1_000_000, -1, func(*sqlstore.TokenRow) {})
	got := n.post(a.key, chatPath, chat("", `"max_tokens":10`))
	ev := n.event(got.request())
	if ev.Charged != price(1000, 1000) || ev.Hold.Amount >= ev.Charged {
		t.Errorf("charged %d of a hold of %d", ev.Charged, ev.Hold.Amount)
	}
	if left := n.left(a.users, a.user); left != 1_000_000-ev.Charged {
		t.Errorf("%d units are left", left)
	}
	if got := n.metric("ledgerline_relay_excess_quota_total"); got != float64(ev.Charged-ev.Hold.Amount) {
		t.Errorf("the metric of excess says %g", got)
	}
}
