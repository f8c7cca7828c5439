package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/relay/upstream/http1"
)

// patience bounds every wait of these tests.
const patience = 10 * time.Second

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// doer is a client under test.
type doer struct {
	do    func(ctx context.Context, r *http1.Request) (*http.Response, error)
	close func()
}

// clients are the client of this package and the one that it must behave like.
var clients = map[string]func(cfg http1.Config) doer{
	"http1": func(cfg http1.Config) doer {
		c := http1.New(cfg)
		return doer{c.Do, c.Close}
	},
	"http.Transport": func(cfg http1.Config) doer {
		tr := &http.Transport{
			DialContext: cfg.Dial, ResponseHeaderTimeout: cfg.HeadTimeout, IdleConnTimeout: cfg.IdleTimeout, MaxIdleConns: cfg.MaxIdle,
			MaxIdleConnsPerHost: cfg.MaxIdlePerHost, MaxResponseHeaderBytes: cfg.MaxHead, DisableCompression: true,
		}
		return doer{func(ctx context.Context, r *http1.Request) (*http.Response, error) {
			method, body := http.MethodPost, io.Reader(bytes.NewReader(r.Body))
			if r.Get {
				method, body = http.MethodGet, http.NoBody
			}
			req, err := http.NewRequestWithContext(ctx, method, "http://"+r.Addr+r.Target, body)
			if err != nil {
				return nil, err
			}
			for _, f := range r.Header {
				req.Header[f.Name] = []string{f.Value}
			}
			return tr.RoundTrip(req)
		}, tr.CloseIdleConnections}
	},
}

func config() http1.Config {
	var d net.Dialer
	return http1.Config{Dial: d.DialContext, IdleTimeout: time.Minute, MaxIdle: 10, MaxIdlePerHost: 10, MaxHead: 64 << 10}
}

// each runs a test against both clients, and sees that no goroutine is left.
func each(t *testing.T, cfg http1.Config, test func(t *testing.T, c doer)) {
	for name, build := range clients {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			c := build(cfg)
			test(t, c)
			c.close()
			until(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
		})
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(end) {
			stacks := make([]byte, 64<<10)
			t.Fatalf("waited in vain for %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// peer is the server's end of a connection.
type peer struct {
	net.Conn
	in *bufio.Reader
	n  int // which connection of the server it is, from 0
}

// request reads a request with its body; nil when the client has closed the connection.
func (p *peer) request() (*http.Request, []byte) {
	r, err := http.ReadRequest(p.in)
	if err != nil {
		return nil, nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil
	}
	return r, body
}

func (p *peer) say(s string) { _, _ = io.WriteString(p, s) }

// gone waits until the client has closed the connection.
func (p *peer) gone() bool {
	_, err := io.Copy(io.Discard, p.in)
	var timeout net.Error
	return err == nil || !errorsAs(err, &timeout) || !timeout.Timeout()
}

// server serves each connection by a function. It ends with the test's function, which has to end the connections.
type server struct {
	addr  string
	conns atomic.Int64
	ln    net.Listener
	open  sync.WaitGroup
}

func serve(t *testing.T, f func(p *peer)) *server {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	s := &server{addr: ln.Addr().String(), ln: ln}
	s.open.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p := &peer{c, bufio.NewReader(c), int(s.conns.Add(1)) - 1}
			_ = c.SetDeadline(time.Now().Add(patience))
			s.open.Go(func() {
				defer c.Close()
				f(p)
			})
		}
	})
	return s
}

// stop waits for the connections, so the client must have closed them.
func (s *server) stop() {
	s.ln.Close()
	s.open.Wait()
}

// answers serves every request of every connection with the same bytes.
func answers(t *testing.T, answer string) *server {
	return serve(t, func(p *peer) {
		for {
			if r, _ := p.request(); r == nil {
				return
			}
			p.say(answer)
		}
	})
}

func (s *server) post(body string) *http1.Request {
	return &http1.Request{Addr: s.addr, Host: s.addr, Target: "/v1/x", Header: []http1.Field{{Name: "X-A", Value: "b"}}, Body: []byte(body)}
}

func (s *server) get() *http1.Request {
	return &http1.Request{Addr: s.addr, Host: s.addr, Target: "/v1/x", Get: true}
}

// outcome is all that a caller sees of an answer.
type outcome struct {
	status int
	body   string
	head   bool // the error came with the head
	err    error
}

func (c doer) ask(ctx context.Context, r *http1.Request) outcome {
	resp, err := c.do(ctx, r)
	if err != nil {
		return outcome{head: true, err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return outcome{status: resp.StatusCode, body: string(body), err: err}
}

func padded(n int) string { return strings.Repeat("x", n) }
