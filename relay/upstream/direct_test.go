package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/relay/catalog"
	"ledgerline/relay/upstream"
)

// patience bounds what a test waits for.
const patience = 10 * time.Second

// call is one to an upstream at base. A channel with headers of its own is not spoken to directly.
func call(base, body string, headers ...string) upstream.Call {
	own := map[string]string{}
	for i := 0; i < len(headers); i += 2 {
		own[headers[i]] = headers[i+1]
	}
	return upstream.Call{
		Channel: &catalog.Channel{ID: 1, Type: upstream.TypeOpenAI, BaseURL: base, Organization: "org", Headers: own}, Key: "secret",
		Path: "/v1/chat/completions", Model: "m", Body: []byte(body), RequestID: "id-1",
	}
}

func client(t *testing.T, cfg upstream.Config) *upstream.Client {
	t.Helper()
	c := upstream.New(cfg)
	t.Cleanup(c.Close)
	return c
}

func ask(t *testing.T, c *upstream.Client, base, body string) string {
	t.Helper()
	resp, err := c.Do(t.Context(), call(base, body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// raw is an upstream that answers each connection's requests by hand.
func raw(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

// take reads one request of the connection.
func take(r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

// TestSameRequest: an upstream sees the same request, whichever way it was sent.
func TestSameRequest(t *testing.T) {
	type seen struct {
		Method, URI, Host, Body string
		Header                  http.Header
		Length                  int64
	}
	got := make(chan seen, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, r.Host, string(body), r.Header, r.ContentLength}
	}))
	t.Cleanup(s.Close)
	c := client(t, upstream.Config{})
	for _, stream := range []bool{false, true} {
		direct, standard := call(s.URL+"/api", "{}"), call(s.URL+"/api", "{}", "User-Agent", "ledgerline")
		direct.Stream, standard.Stream = stream, stream
		var two [2]seen
		for i, k := range []upstream.Call{direct, standard} {
			resp, err := c.Do(t.Context(), k)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			two[i] = <-got
		}
		if two[0].Body != "{}" || two[0].Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("the upstream saw %+v", two[0])
		}
		if diff := cmp.Diff(two[1], two[0]); diff != "" {
			t.Errorf("standard transport (-), direct (+):\n%s", diff)
		}
	}
}

// TestKeepsConnections: an answer read to its end leaves its connection to the next call, in any framing that has an end.
func TestKeepsConnections(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		reused bool
	}{
		"length":             {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true},
		"chunked":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", true},
		"informational":      {"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true},
		"says close":         {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false},
		"HTTP/1.0":           {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false},
		"more than it said":  {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", false},
		"chunks and rubbish": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nrubbish", false},
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			base := raw(t, func(c net.Conn, r *bufio.Reader) {
				conns.Add(1)
				for take(r) {
					fmt.Fprint(c, tc.answer)
				}
			})
			c := client(t, upstream.Config{})
			for range 3 {
				if got := ask(t, c, base, "{}"); got != "ok" {
					t.Fatalf("answer %q", got)
				}
			}
			if got := conns.Load() == 1; got != tc.reused {
				t.Errorf("%d connections for 3 calls", conns.Load())
			}
		})
	}
}

// TestUpstreamClosesIdle: a connection that the upstream closed while it was idle is not used, and no call fails for it.
func TestUpstreamClosesIdle(t *testing.T) {
	closed := make(chan struct{}, 10)
	base := raw(t, func(c net.Conn, r *bufio.Reader) {
		if take(r) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			c.Close()
			closed <- struct{}{}
		}
	})
	c := client(t, upstream.Config{})
	for range 5 {
		ask(t, c, base, "{}")
		<-closed
	}
}

// TestNotSentTwice: a request that the upstream may have got is not sent again when its connection breaks.
func TestNotSentTwice(t *testing.T) {
	var requests atomic.Int32
	base := raw(t, func(c net.Conn, r *bufio.Reader) {
		for take(r) {
			if requests.Add(1) == 2 {
				return // after a first answer on this connection, before the second
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := client(t, upstream.Config{})
	ask(t, c, base, "{}")
	if _, err := c.Do(t.Context(), call(base, "{}")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("the upstream got %d requests for 2 calls", n)
	}
}

// TestBrokenAnswers: what is not a whole answer is an error, never a shorter answer.
func TestBrokenAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":          "",
		"half a head":      "HTTP/1.1 200 OK\r\nContent-Le",
		"not HTTP":         "hello\r\n\r\n",
		"short of length":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
		"no last chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"huge head":        "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10) + "\r\n\r\n",
		"endless progress": strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 50),
	} {
		t.Run(name, func(t *testing.T) {
			base := raw(t, func(c net.Conn, r *bufio.Reader) {
				if take(r) {
					fmt.Fprint(c, answer)
				}
			})
			resp, err := client(t, upstream.Config{}).Do(t.Context(), call(base, "{}"))
			if err != nil {
				return
			}
			defer resp.Body.Close()
			if out, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("answer %q without an error", out)
			}
		})
	}
}

// TestEarlyRefusal: an upstream that refuses without reading the request is heard.
func TestEarlyRefusal(t *testing.T) {
	base := raw(t, func(c net.Conn, _ *bufio.Reader) {
		fmt.Fprint(c, "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	resp, err := client(t, upstream.Config{}).Do(t.Context(), call(base, strings.Repeat("x", 60<<10)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if out, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUnauthorized || string(out) != "no" || err != nil {
		t.Errorf("status %d, %q, %v", resp.StatusCode, out, err)
	}
}

// TestCancel: the context's end ends a call at every stage, and the upstream sees the connection close.
func TestCancel(t *testing.T) {
	for name, begin := range map[string]string{
		"before the head": "",
		"in the body":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			arrived, gone := make(chan struct{}), make(chan struct{})
			base := raw(t, func(c net.Conn, r *bufio.Reader) {
				take(r)
				fmt.Fprint(c, begin)
				close(arrived)
				_, _ = r.ReadByte() // until the client closes
				close(gone)
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("why")
			go func() {
				<-arrived
				cancel(why)
			}()
			resp, err := client(t, upstream.Config{}).Do(ctx, call(base, "{}"))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if !errors.Is(err, why) {
				t.Errorf("error %v instead of the context's cause", err)
			}
			waitFor(t, gone)
		})
	}
}

// TestCloseEndsWork: closing an answer before its end closes the connection, so that the upstream stops.
func TestCloseEndsWork(t *testing.T) {
	gone := make(chan struct{})
	base := raw(t, func(c net.Conn, r *bufio.Reader) {
		take(r)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
		_, _ = r.ReadByte()
		close(gone)
	})
	resp, err := client(t, upstream.Config{}).Do(t.Context(), call(base, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	waitFor(t, gone)
	if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read after close: %d, %v", n, err)
	}
}

// TestFirstByteTimeout bounds the wait for the head, not for the body.
func TestFirstByteTimeout(t *testing.T) {
	const timeout = 50 * time.Millisecond
	release := make(chan struct{})
	base := raw(t, func(c net.Conn, r *bufio.Reader) {
		for n := 0; take(r); n++ {
			if n == 0 {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
				<-release
				fmt.Fprint(c, "k")
			}
		}
	})
	c := client(t, upstream.Config{FirstByteTimeout: timeout})
	time.AfterFunc(2*timeout, func() { close(release) })
	if got := ask(t, c, base, "{}"); got != "ok" {
		t.Errorf("a slow body gave %q", got)
	}
	if _, err := c.Do(t.Context(), call(base, "{}")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a missing head gave %v", err)
	}
}

// TestNoHeaderInjection: a key with a line end reaches no upstream.
func TestNoHeaderInjection(t *testing.T) {
	base := raw(t, func(net.Conn, *bufio.Reader) {})
	k := call(base, "{}")
	k.Key = "secret\r\nX-Evil: 1"
	if _, err := client(t, upstream.Config{}).Do(t.Context(), k); err == nil || strings.Contains(err.Error(), "Evil") {
		t.Errorf("error %v", err)
	}
}

// TestIdleConnectionsExpire: idle connections are bounded in number and in time.
func TestIdleConnectionsExpire(t *testing.T) {
	var open atomic.Int32
	both := make(chan struct{}, 2)
	base := raw(t, func(c net.Conn, r *bufio.Reader) {
		open.Add(1)
		defer open.Add(-1)
		for take(r) {
			both <- struct{}{}
			for len(both) < cap(both) {
				time.Sleep(time.Millisecond) // polling: both calls are under way at once
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := client(t, upstream.Config{IdleConnTimeout: 200 * time.Millisecond, MaxIdlePerHost: 1})
	done := make(chan string, 2)
	for range 2 {
		go func() { done <- ask(t, c, base, "{}") }()
	}
	<-done
	<-done
	waitCount(t, &open, 1)
	waitCount(t, &open, 0)
}

func waitCount(t *testing.T, n *atomic.Int32, want int32) {
	t.Helper()
	for end := time.Now().Add(patience); n.Load() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are open instead of %d", n.Load(), want)
		}
	}
}

func waitFor(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("the upstream was not told")
	}
}

// BenchmarkDo is one call over a kept connection, answered by a server in the same process.
func BenchmarkDo(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("x", 1024))
	}))
	defer s.Close()
	c := upstream.New(upstream.Config{})
	defer c.Close()
	direct, standard := call(s.URL, "{}"), call(s.URL, "{}", "User-Agent", "ledgerline")
	for name, k := range map[string]upstream.Call{"direct": direct, "standard": standard} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := c.Do(b.Context(), k)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

// TestReadAnswer: the bound holds whatever the upstream announces, and what it announces costs no memory that it does not send.
func TestReadAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		body      string
		announced int64
		limit     int64
		err       error
	}{
		"as announced":       {strings.Repeat("x", 2000), 2000, 5000, nil},
		"not announced":      {strings.Repeat("x", 2000), -1, 5000, nil},
		"announced too much": {"x", 1 << 40, 1 << 40, nil},
		"at the limit":       {strings.Repeat("x", 2000), 2000, 2000, nil},
		"above the limit":    {strings.Repeat("x", 2001), -1, 2000, upstream.ErrTooLarge},
		"lied about it":      {strings.Repeat("x", 2001), 10, 2000, upstream.ErrTooLarge},
		"empty":              {"", 0, 2000, nil},
	} {
		resp := &http.Response{Body: io.NopCloser(strings.NewReader(tc.body)), ContentLength: tc.announced}
		got, err := upstream.ReadAnswer(resp, tc.limit)
		if !errors.Is(err, tc.err) || err == nil && (string(got) != tc.body || cap(got) > 2<<20) {
			t.Errorf("%s: %d bytes in %d, %v", name, len(got), cap(got), err)
		}
	}
}
