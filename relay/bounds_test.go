package relay_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/relay"
	"ledgerline/relay/meter"
	"ledgerline/relay/relaytest"
)

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Bodies are bounded, compressed ones by what they unfold to, and what is wrong with one is said.
func TestBodies(t *testing.T) {
	const limit = 1 << 20
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.MaxBody = limit } })
	a := n.account(start*100, -1)
	fits := chat("", `"pad":"`+strings.Repeat("x", limit-300)+`"`)
	for name, c := range map[string]struct {
		body, encoding string
		chunked        bool
		status         int
		code           string
	}{
		"as large as allowed":         {fits, "", false, 200, ""},
		"as large as allowed, zipped": {zipped(t, fits), "gzip", true, 200, ""},
		"announced too large":         {fits + strings.Repeat(" ", 300), "", false, 413, "read_request_body_failed"},
		"too large":                   {fits + strings.Repeat(" ", 300), "", true, 413, "read_request_body_failed"},
		"a bomb":                      {zipped(t, fits+strings.Repeat(" ", 200<<20)), "gzip", false, 413, "read_request_body_failed"},
		"zipped noise":                {"no gzip at all", "gzip", false, 400, ""},
		"a zip cut short":             {zipped(t, fits)[:500], "gzip", false, 400, ""},
		"an unknown encoding":         {"x", "br", false, 400, ""},
		"identity":                    {chat(""), "identity", false, 200, ""},
		"too deep":                    {chat("", `"deep":`+strings.Repeat("[", 200_000)+strings.Repeat("]", 200_000)), "", false, 400, ""},
		"no number":                   {chat("", `"temperature":NaN`), "", false, 400, ""},
		"a number of 100 kB":          {chat("", `"temperature":1`+strings.Repeat("0", 100_000)), "", false, 200, ""},
		"no UTF-8":                    {chat("", `"pad":"`+"\xff\xfe\xc0\x80"+`"`), "", false, 200, ""}, // the upstream's to judge
		"NUL":                         {chat("") + "\x00", "", false, 400, ""},
		"a long model name":           {`{"model":"` + strings.Repeat("m", 100_000) + `","messages":[{"role":"user","content":"hi"}]}`, "", false, 400, ""},
		"a field twice":               {chat("", `"max_tokens":1`, `"max_tokens":1000`), "", false, 400, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			req := n.newRequest(t.Context(), a.key, chatPath, c.body)
			if c.chunked {
				req.ContentLength = -1
			}
			if c.encoding != "" {
				req.Header.Set("Content-Encoding", c.encoding)
			}
			if got := n.do(req); got.status != c.status || got.fault() != c.code {
				t.Errorf("%d %.300s, want %d %s", got.status, got.body, c.status, c.code)
			}
		})
	}
	n.wantNothingHeld(a)
}

// Large bodies are bounded together, too, for as long as they stay: a client beyond the bound is told to come back, and small
// requests are served.
func TestLargeBodiesTogether(t *testing.T) {
	const each = 2 << 20
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.MaxBody, rc.MaxBodies = each, 2*each+each/2 }
	})
	a := n.account(start*100, -1)
	var open []net.Conn
	for range 2 {
		conn := n.dial()
		_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", chatPath, a.key, each, strings.Repeat(" ", each-each/4))
		n.must(err)
		open = append(open, conn)
	}
	large := zipped(t, chat("", `"pad":"`+strings.Repeat("x", each-300)+`"`))
	ask := func() *reply {
		req := n.newRequest(t.Context(), a.key, chatPath, large)
		req.Header.Set("Content-Encoding", "gzip")
		return n.do(req)
	}
	n.await("a third large body is refused", func() bool {
		got := ask()
		return got.status == 503 && got.fault() == "node_full" && got.header.Get("Retry-After") != ""
	})
	if got := n.post(a.key, chatPath, chat("")); got.status != 200 {
		t.Errorf("a small request beside large ones: %d %s", got.status, got.body)
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	n.await("there is room again", func() bool { return ask().status == 200 })
	n.wantNothingHeld(a)
}

func (n *node) wantNothingHeld(a account) {
	n.Helper()
	n.left(a.users, a.user)
}

// dial opens a connection to the node that can be misused.
func (n *node) dial() net.Conn {
	n.Helper()
	conn, err := net.Dial("tcp", n.http.Listener.Addr().String())
	n.must(err)
	n.Cleanup(func() { _ = conn.Close() })
	n.must(conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// Clients that send slowly, or stop, are answered and let go.
func TestSlowSender(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.BodyTimeout = 100 * time.Millisecond }
	})
	a := n.account(start, -1)
	head := "POST " + chatPath + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + a.key + "\r\nContent-Length: 1000\r\n\r\n{"
	conn := n.dial()
	_, err := io.WriteString(conn, head)
	n.must(err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	n.must(err)
	body, err := io.ReadAll(resp.Body)
	n.must(err)
	got := &reply{resp.StatusCode, resp.Header, string(body), nil}
	if got.status != 408 || got.fault() != "read_request_body_failed" || !resp.Close {
		t.Errorf("%d %v %s", got.status, got.header, got.body)
	}
	conn = n.dial()
	_, err = io.WriteString(conn, head)
	n.must(err)
	n.must(conn.(*net.TCPConn).CloseWrite())
	resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
	n.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("a body that broke off: %d", resp.StatusCode)
	}
	if got := n.post(a.key, chatPath, chat(""), "X-Long", strings.Repeat("x", 10_000)); got.status != 200 {
		t.Errorf("a header of 10 kB: %d", got.status)
	}
	if got := n.post(a.key, chatPath, chat(""), "X-Long", strings.Repeat("x", 100_000)); got.status != 431 {
		t.Errorf("a header of 100 kB: %d", got.status)
	}
	flood := n.newRequest(t.Context(), a.key, chatPath, chat(""))
	for i := range 20_000 {
		flood.Header.Set(fmt.Sprintf("X-%d", i), "x")
	}
	if got := n.do(flood); got.status != 431 {
		t.Errorf("20,000 headers: %d", got.status)
	}
	if got := n.post(strings.Repeat("k", 10_000), chatPath, chat("")); got.status != 401 {
		t.Errorf("a key of 10 kB: %d", got.status)
	}
}

// A client that does not read is let go, and billed for what came; one that only pauses between requests is not.
func TestSlowReader(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.ClientTimeout = 100 * time.Millisecond }
	})
	a := n.account(start*1000, -1)
	conn := n.dial()
	n.must(conn.(*net.TCPConn).SetReadBuffer(4096))
	body := chat("completion=10000000;burst=100", streamed, `"max_tokens":10000000`)
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", chatPath, a.key, len(body), body)
	n.must(err)
	n.await("the request to be open", func() bool { return n.desk.InFlight() == 1 })
	n.await("the client to be let go", func() bool { return n.desk.InFlight() == 0 })
	n.drain()
	if events := n.clerk.usage(); len(events) != 1 || events[0].Usage.Completion < 10 || events[0].Usage.Completion > 5_000_000 {
		t.Errorf("events %+v", events)
	}
	// Deadlines do not outlive their request.
	for _, more := range []string{streamed, `"n":1`, `"max_tokens":-1`, streamed} {
		got := n.post(a.key, chatPath, chat("completion=3", more))
		if got.err != nil || got.status != 200 && got.status != 400 {
			t.Errorf("%s: %d %v", more, got.status, got.err)
		}
		time.Sleep(150 * time.Millisecond) // the pause is the test
	}
}

// An upstream that answers before it has read the request does not cut the stream.
func TestEarlyAnswer(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	script := relaytest.DefaultScript()
	script.Early, script.Completion = true, 20
	early, err := relaytest.Start("", relaytest.Options{Script: script})
	s.must(err)
	t.Cleanup(func() { _ = early.Close() })
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", early.URL)
	n := s.start()
	a := n.account(start*100, -1)
	var clients sync.WaitGroup
	for _, size := range []int{100, 10_000, 300_000, 3_000_000} {
		body := chat("", streamed, `"pad":"`+strings.Repeat("x", size)+`"`)
		for range 4 {
			clients.Go(func() {
				for range 20 {
					got := n.post(a.key, chatPath, body)
					if got.status != 200 || got.err != nil || strings.Count(got.body, `"content":" `) != 20 || !strings.HasSuffix(got.body, "data: [DONE]\n\n") {
						t.Errorf("%d bytes: %d %v %s", size, got.status, got.err, got.body)
						return
					}
				}
			})
		}
	}
	clients.Wait()
	n.drain()
	if events := n.clerk.usage(); len(events) != 4*4*20 {
		t.Errorf("%d events", len(events))
	}
}

// A stream takes a fixed amount of memory, however long it is, and many streams take little each. What is measured includes the
// client and the upstream, which live in the same process.
func TestMemoryOfStreams(t *testing.T) {
	const streams, pieces, perStream = 30, 20_000, 400 << 10
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(start*100_000, -1)
	heap := func() uint64 {
		for range 3 { // what a sync.Pool holds goes at the second one
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for _, model := range []string{"gpt-4o", "gpt-4"} {
		meter.CountText(model, "the vocabularies are the process's, not a stream's")
	}
	before := heap()
	open := make([]*http.Response, streams)
	var readers sync.WaitGroup
	for i := range open {
		// A hundred kilobytes of text each, more than is ever kept, in four megabytes of events; then silence.
		body := chat(fmt.Sprintf("completion=%d;silence=%d;burst=100", pieces, pieces), streamed, `"max_tokens":200000`)
		resp, err := n.http.Client().Do(n.newRequest(t.Context(), a.key, chatPath, body))
		n.must(err)
		open[i] = resp
		readers.Go(func() { skim(t, resp.Body, pieces) })
	}
	readers.Wait()
	after := heap()
	for _, resp := range open {
		_ = resp.Body.Close()
	}
	if used := (int64(after) - int64(before)) / streams; used > perStream {
		t.Errorf("a stream takes %d bytes", used)
	} else {
		t.Logf("a stream takes %d bytes", used)
	}
	n.await("the streams to end", func() bool { return n.desk.InFlight() == 0 })
}

// skim reads a stream until so many pieces of text have come.
func skim(t *testing.T, body io.Reader, pieces int) {
	t.Helper()
	lines := bufio.NewReaderSize(body, 64<<10)
	for pieces > 0 {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			t.Error(err)
			return
		}
		if bytes.Contains(line, []byte(`"content":" `)) {
			pieces--
		}
	}
}
