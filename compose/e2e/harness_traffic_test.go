package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"ledgerline/relay/relaytest"
)

// order is one request that a client makes.
type order struct {
	account    *account
	stream     bool
	prompt     int64 // tokens that the upstream reports; the prompt is such that the relay's own estimate is the same
	completion int64
	delay      time.Duration // between the upstream's chunks
	leave      int64         // the client leaves a stream after so many chunks; 0: it stays
	cut        int64         // the upstream dies after so many chunks; 0: it does not
	more       map[string]any
}

// seen is what a client saw of its request in the end.
type seen struct {
	order  order
	id     string // request id, "" if no answer came
	status int    // 0: no answer
	code   string // of a refusal
	chunks int64  // content chunks of a stream, or completion tokens of a whole answer
	whole  bool   // the answer came to its end
	finish string
	tries  int
	ended  time.Time // when the client had what it got
}

// What the relay takes a prompt for when it must bill without the upstream's word: a token for four bytes, and four for the
// message around them.
const tokensPerMessage = 4

// body is the request as it goes out. What the upstream is to answer travels in metadata.
func (o *order) body() []byte {
	script := relaytest.DefaultScript()
	script.User, script.Prompt, script.Completion, script.Delay = o.account.name, o.prompt, o.completion, o.delay
	if o.cut > 0 {
		script.Cut = o.cut
	}
	in := map[string]any{
		"model": model, "stream": o.stream, "max_tokens": o.completion,
		"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("real", int(max(1, o.prompt-tokensPerMessage)))}},
		"metadata": map[string]any{"mock": script.String()},
	}
	for k, v := range o.more {
		in[k] = v
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	return b
}

// send makes one request of one node, once.
func send(ctx context.Context, c *http.Client, url string, o order) (s seen) {
	s = seen{order: o, tries: 1}
	defer func() { s.ended = time.Now() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(o.body()))
	if err != nil {
		return s
	}
	req.Header.Set("Authorization", "Bearer "+o.account.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return s
	}
	defer func() { _ = resp.Body.Close() }()
	s.id, s.status = resp.Header.Get("X-Oneapi-Request-Id"), resp.StatusCode
	if resp.StatusCode == http.StatusOK && o.stream {
		s.read(resp.Body)
		return s
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return s
	}
	if resp.StatusCode != http.StatusOK {
		s.code = gjson.GetBytes(text, "error.code").String()
		return s
	}
	s.chunks, s.whole = gjson.GetBytes(text, "usage.completion_tokens").Int(), true
	s.finish = gjson.GetBytes(text, "choices.0.finish_reason").String()
	return s
}

// read counts the content chunks of a stream; a chunk is a token.
func (s *seen) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		switch {
		case !ok:
		case string(data) == "[DONE]":
			s.whole = true
		default:
			choice := gjson.GetBytes(data, "choices.0")
			if choice.Get("delta.content").String() != "" {
				s.chunks++
			}
			if s.order.leave > 0 && s.chunks == s.order.leave {
				return
			}
			if reason := choice.Get("finish_reason").String(); reason != "" {
				s.finish = reason
			}
		}
	}
}

// comeBack reports whether a client that reads the answer's status tries again.
func (s *seen) comeBack() bool {
	return s.status == 0 || s.status == http.StatusTooManyRequests || s.status == http.StatusServiceUnavailable
}

// clients are many users of a site at once.
type clients struct {
	http *http.Client
	mu   sync.Mutex
	all  []seen
	open atomic.Int64
	done atomic.Int64 // answers that came to their end
}

func newClients(t testing.TB) *clients {
	c := &clients{http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// keep remembers what a client saw.
func (c *clients) keep(saw ...seen) {
	for i := range saw {
		if whole(&saw[i]) {
			c.done.Add(1)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, saw...)
}

// whole reports whether an answer came to its end.
func whole(r *seen) bool { return r.status == http.StatusOK && r.whole }

// ask makes a request, again at the next node for as long as the answer says so or the node is away, until ctx ends.
func (c *clients) ask(ctx context.Context, urls []string, n int, o order) seen {
	c.open.Add(1)
	defer c.open.Add(-1)
	var s seen
	for try := 1; ; try++ {
		s = send(ctx, c.http, urls[(n+try)%len(urls)], o)
		s.tries = try
		// Only a request that surely was not begun is made again, so that none is made twice: refusals, and no connection.
		c.keep(s)
		if !s.comeBack() || ctx.Err() != nil {
			return s
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return s
		}
	}
}

// ids are the requests that were answered with 200, whole or not.
func (c *clients) answered() []seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []seen
	for _, s := range c.all {
		if s.status == http.StatusOK {
			out = append(out, s)
		}
	}
	return out
}

// seen are all requests so far, as their clients saw them.
func (c *clients) seen() []seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]seen(nil), c.all...)
}

// urls are where clients go.
func (s *site) urls() (urls []string) {
	if s.front != "" {
		return []string{s.front}
	}
	for _, n := range s.nodes {
		if n.relays() {
			urls = append(urls, n.url())
		}
	}
	return urls
}

// traceOrders makes requests of the shipped trace for the given accounts in turn, every second a stream. Figures are cut to
// keep a test short; their spread stays.
func traceOrders(t testing.TB, count int, accounts []*account) []order {
	t.Helper()
	var out []order
	for row, err := range relaytest.Excerpt() {
		if err != nil {
			t.Fatal(err)
		}
		if len(out) == count {
			break
		}
		out = append(out, order{
			account: accounts[len(out)%len(accounts)], stream: (len(out)/len(accounts))%2 == 0,
			prompt: max(tokensPerMessage+1, row.Context%4000), completion: max(1, row.Generated%80),
		})
	}
	if len(out) < count {
		t.Fatalf("the trace has only %d rows", len(out))
	}
	return out
}

// play makes all requests, so many at once, and returns when all have an answer.
func (s *site) play(c *clients, at int, orders []order) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	work := make(chan int)
	var all sync.WaitGroup
	urls := s.urls()
	for range at {
		all.Go(func() {
			for i := range work {
				c.ask(ctx, urls, i, orders[i])
			}
		})
	}
	for i := range orders {
		select {
		case work <- i:
		case <-ctx.Done():
			s.t.Errorf("the traffic did not end within %s", 2*patience)
		}
	}
	close(work)
	all.Wait()
}

// stream of requests that goes on in the background, so that something is always under way.
type traffic struct {
	*clients
	stop func()
}

// background keeps up to `at` requests under way, with pauses between them so that the machine breathes.
func (s *site) background(at int, accounts []*account) *traffic {
	s.t.Helper()
	tr := &traffic{clients: newClients(s.t)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	ending := make(chan struct{})
	var all sync.WaitGroup
	urls, orders := s.urls(), traceOrders(s.t, 500, accounts)
	for w := range at {
		all.Go(func() {
			for i := w; ; i += at {
				o := orders[i%len(orders)]
				o.completion, o.delay = min(o.completion, 40), 2*time.Millisecond
				tr.ask(ctx, urls, i, o)
				select {
				case <-ending:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	var once sync.Once
	tr.stop = func() {
		once.Do(func() {
			close(ending)
			timer := time.AfterFunc(patience, cancel)
			all.Wait()
			timer.Stop()
			cancel()
		})
	}
	s.t.Cleanup(func() { cancel(); tr.stop() })
	return tr
}

// moreDone waits until so many more requests have come to their end.
func (tr *traffic) moreDone(t testing.TB, more int) {
	t.Helper()
	want := tr.done.Load() + int64(more)
	eventually(t, "the traffic goes on", func() error {
		if n := tr.done.Load(); n < want {
			return fmt.Errorf("%d of %d requests", n, want)
		}
		return nil
	})
}
