package http1_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ledgerline/relay/upstream/http1"
)

func errorsAs[T any](err error, target *T) bool { return errors.As(err, target) }

const (
	whole   = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
)

// An answer's status and body, and whether its connection serves the next request.
func TestAnswers(t *testing.T) {
	const again, once = true, false
	cut, broken := io.ErrUnexpectedEOF, errors.New("any")
	for name, c := range map[string]struct {
		answer string
		status int // 0: an error with the head
		body   string
		err    error // of the body
		keeps  bool
	}{
		"length":                   {whole, 200, "hello", nil, again},
		"length, twice the same":   {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", nil, again},
		"empty":                    {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", nil, again},
		"no content":               {"HTTP/1.1 204 No Content\r\n\r\n", 204, "", nil, again},
		"not modified":             {"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, "", nil, again},
		"no reason":                {"HTTP/1.1 429 \r\nContent-Length: 2\r\n\r\nno", 429, "no", nil, again},
		"redirect":                 {"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", 302, "", nil, again},
		"chunks":                   {chunked + "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", 200, "hello", nil, again},
		"chunks, none":             {chunked + "0\r\n\r\n", 200, "", nil, again},
		"chunk extensions":         {chunked + "3;a=b\r\nhel\r\n02 \r\nlo\r\n0;end\r\n\r\n", 200, "hello", nil, again},
		"trailers":                 {chunked + "5\r\nhello\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n", 200, "hello", nil, again},
		"chunks win over a length": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, "hello", nil, again},
		"compressed is not opened": {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", nil, again},
		"interim":                  {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + whole, 200, "hello", nil, again},
		"connection: close":        {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", nil, once},
		"close, with an error":     {"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", 500, "no", nil, once},
		"HTTP/1.0":                 {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", nil, once},
		"HTTP/1.0, kept":           {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", nil, again},
		"behind the end":           {whole + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "hello", nil, once},
		"behind the last chunk":    {chunked + "5\r\nhello\r\n0\r\n\r\nmore", 200, "hello", nil, once},
		"switching protocols":      {"HTTP/1.1 101 Switching\r\n\r\n", 101, "", nil, once},
		"no HTTP":                  {"SSH-2.0-OpenSSH_9.6\r\n\r\n", 0, "", broken, once},
		"no status":                {"HTTP/1.1 OK\r\n\r\n", 0, "", broken, once},
		"a header without a colon": {"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", 0, "", broken, once},
		"a negative length":        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, "", broken, once},
		"two lengths":              {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 0, "", broken, once},
		"an unknown encoding":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 0, "", broken, once},
		"two encodings":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 0, "", broken, once},
		"a huge head":              {"HTTP/1.1 200 OK\r\nX-A: " + padded(70<<10) + "\r\n\r\n", 0, "", broken, once},
		"interim without end":      {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX-A: "+padded(1000)+"\r\n\r\n", 70) + whole, 0, "", broken, once},
		"a large head":             {"HTTP/1.1 200 OK\r\nX-A: " + padded(60<<10) + "\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", nil, again},
		"a size that is none":      {chunked + "3\r\nhel\r\nxx\r\n", 200, "hel", broken, once},
		"a size without a digit":   {chunked + "3\r\nhel\r\n;a\r\nlo\r\n", 200, "hel", broken, once},
		"a size too long":          {chunked + "3\r\nhel\r\n00000000000000002\r\nlo\r\n0\r\n\r\n", 200, "hel", broken, once},
		"bare line feeds":          {chunked + "3\r\nhel\r\n2\nlo\r\n0\r\n\r\n", 200, "hel", broken, once},
		"a chunk without its end":  {chunked + "3\r\nhelxx2\r\nlo\r\n0\r\n\r\n", 200, "hel", broken, once},
		"endless extensions":       {chunked + strings.Repeat("1;"+padded(3000)+"\r\nx\r\n", 7), 200, "xxxxx", broken, once},
		"an extension too long":    {chunked + "1;" + padded(5000) + "\r\nx\r\n", 200, "", broken, once},
		"trailers too long":        {chunked + "1\r\nx\r\n0\r\nX-T: " + padded(100<<10) + "\r\n\r\n", 200, "x", broken, once},
		"cut in the head":          {"HTTP/1.1 200 OK\r\nContent-Le", 0, "", cut, once},
		"cut in the body":          {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 200, "hello", cut, once},
		"cut in a chunk":           {chunked + "9\r\nhello", 200, "hello", cut, once},
		"cut between chunks":       {chunked + "5\r\nhello\r\n", 200, "hello", cut, once},
		"cut in a size":            {chunked + "5\r\nhello\r\n1", 200, "hello", cut, once},
		"cut before the last line": {chunked + "5\r\nhello\r\n0\r\n", 200, "hello", broken, once},
		"ended by closing":         {"HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello", nil, once},
	} {
		closes := c.err != nil || strings.HasPrefix(name, "ended") // the server ends the connection behind it
		t.Run(name, func(t *testing.T) {
			each(t, config(), func(t *testing.T, client doer) {
				s := serve(t, func(p *peer) {
					for {
						if r, _ := p.request(); r == nil {
							return
						}
						if p.say(c.answer); closes {
							return
						}
					}
				})
				defer s.stop()
				defer client.close()
				for range 2 {
					got := client.ask(t.Context(), s.post("{}"))
					if got.status != c.status || c.status == 0 != got.head || got.body != c.body {
						t.Errorf("%+v, want %d, %q", got, c.status, c.body)
					}
					if c.err == nil != (got.err == nil) || errors.Is(c.err, cut) && !got.head && !errors.Is(got.err, cut) {
						t.Errorf("error %v, want %v", got.err, c.err)
					}
				}
				if n, want := s.conns.Load(), map[bool]int64{again: 1, once: 2}[c.keeps]; n != want {
					t.Errorf("%d connections for two requests, want %d", n, want)
				}
			})
		})
	}
}

// What the server reads: requests of every size, on one connection.
func TestRequests(t *testing.T) {
	each(t, config(), func(t *testing.T, c doer) {
		type seen struct {
			head string
			body int
		}
		got := make(chan seen, 1)
		s := serve(t, func(p *peer) {
			for {
				r, body := p.request()
				if r == nil {
					return
				}
				if strings.Trim(string(body), "x") != "" {
					body = nil
				}
				got <- seen{fmt.Sprintf("%s %s %s %d %s", r.Method, r.RequestURI, r.Host, r.ContentLength, r.Header.Get("X-A")), len(body)}
				p.say(whole)
			}
		})
		defer s.stop()
		defer c.close()
		for _, n := range []int{0, 2, 1 << 10, 1<<10 + 1, 64 << 10, 64<<10 + 1, 3 << 20} {
			if o := c.ask(t.Context(), s.post(padded(n))); o.err != nil || o.body != "hello" {
				t.Fatalf("%d bytes: %+v", n, o)
			}
			if g, want := <-got, (seen{fmt.Sprintf("POST /v1/x %s %d b", s.addr, n), n}); g != want {
				t.Errorf("the server read %v, want %v", g, want)
			}
		}
		if o := c.ask(t.Context(), s.get()); o.err != nil {
			t.Fatal(o.err)
		}
		if g, want := <-got, (seen{"GET /v1/x " + s.addr + " 0 ", 0}); g != want {
			t.Errorf("the server read %v, want %v", g, want)
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// A server that answers before it has read the request, and reads no further, is heard.
func TestEarlyAnswer(t *testing.T) {
	cfg := config()
	cfg.HeadTimeout = patience
	each(t, cfg, func(t *testing.T, c doer) {
		heard := make(chan struct{})
		s := serve(t, func(p *peer) {
			_, err := http.ReadRequest(p.in)
			check(t, err)
			p.say("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
			<-heard
		})
		defer s.stop()
		defer close(heard)
		for range 2 {
			if o := c.ask(t.Context(), s.post(padded(32<<20))); o.status != 413 || o.body != "large" || o.err != nil {
				t.Errorf("%+v", o)
			}
		}
		if n := s.conns.Load(); n != 2 {
			t.Errorf("%d connections for two requests that were not read", n)
		}
	})
}

// What comes of a stream is handed over at once, and an interrupted head is put together.
func TestFragments(t *testing.T) {
	parts := []string{
		"HTTP/1.1 20", "0 OK\r\nTransfer-Encoding: chu", "nked\r\n\r", "\n1\r\na\r\n", "2\r\nbc\r\n3", "\r\ndef", "\r\n4\r\ngh", "ij\r\n0\r", "\n\r\n",
	}
	each(t, config(), func(t *testing.T, c doer) {
		want := []string{"a", "bc", "def", "gh", "ij"}
		if strings.HasSuffix(t.Name(), "http.Transport") {
			want = append(want[:3:3], "ghij") // it waits for a chunk that has begun
		}
		next := make(chan bool, len(parts))
		s := serve(t, func(p *peer) {
			if r, _ := p.request(); r == nil {
				return
			}
			for _, part := range parts {
				select {
				case <-next:
					p.say(part)
				case <-time.After(patience):
				}
			}
		})
		defer s.stop()
		defer c.close()
		for range 4 {
			next <- true
		}
		resp, err := c.do(t.Context(), s.post("{}"))
		check(t, err)
		defer resp.Body.Close()
		buf := make([]byte, 100)
		for _, part := range want {
			n, err := resp.Body.Read(buf)
			if string(buf[:n]) != part || err != nil {
				t.Fatalf("read %q, %v; want %q", buf[:n], err, part)
			}
			if next <- true; part == "def" && len(want) == 4 {
				next <- true
			}
		}
		if n, err := resp.Body.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %q, %v", buf[:n], err)
		}
	})
}

// The head of an answer has its time, from the request's end on; the body has as much as it needs.
func TestHeadTimeout(t *testing.T) {
	cfg := config()
	cfg.HeadTimeout = 50 * time.Millisecond
	each(t, cfg, func(t *testing.T, c doer) {
		s := serve(t, func(p *peer) {
			if p.n == 0 {
				p.request()
				p.say("HTTP/1.1 200 OK\r\n")
				if !p.gone() {
					t.Error("the connection stays open")
				}
				return
			}
			for {
				if r, _ := p.request(); r == nil {
					return
				}
				p.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
				time.AfterFunc(3*cfg.HeadTimeout, func() { p.say("llo") })
			}
		})
		defer s.stop()
		defer c.close()
		o := c.ask(t.Context(), s.post("{}"))
		var timeout net.Error
		if !o.head || !errors.As(o.err, &timeout) || !timeout.Timeout() {
			t.Errorf("without a head: %+v", o)
		}
		for range 2 {
			if o := c.ask(t.Context(), s.post(padded(100))); o.err != nil || o.body != "hello" {
				t.Errorf("a slow body: %+v", o)
			}
		}
	})
}

// A connection that the server closed while it was idle costs nothing; one that it closes on a request costs a POST, which may have
// been worked on, and not a GET.
func TestServerCloses(t *testing.T) {
	each(t, config(), func(t *testing.T, c doer) {
		var posts, gets int
		s := serve(t, func(p *peer) {
			p.request()
			if p.n == 1 {
				p.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") // and closes
				return
			}
			p.say(whole)
			if r, _ := p.request(); r != nil && r.Method == http.MethodPost {
				posts++
			} else if r != nil {
				gets++
			}
		})
		if o := c.ask(t.Context(), s.post("{}")); o.err != nil {
			t.Fatal(o.err)
		}
		if o := c.ask(t.Context(), s.post("{}")); o.err == nil || !o.head {
			t.Errorf("a POST whose connection ended without an answer: %+v", o)
		}
		if o := c.ask(t.Context(), s.get()); o.err != nil { // connection 1
			t.Fatal(o.err)
		}
		for range 2 { // connection 2, and 3 when that ends on the second request
			if o := c.ask(t.Context(), s.get()); o.err != nil || o.body != "hello" {
				t.Errorf("a GET: %+v", o)
			}
		}
		c.close()
		s.stop()
		if posts != 1 || gets != 1 || s.conns.Load() != 4 {
			t.Errorf("%d POSTs and %d GETs met a closing server, %d connections", posts, gets, s.conns.Load())
		}
	})
}

// A POST never goes out on a connection that the server has closed by then: it could not be repeated. http.Transport notices
// in its own time.
func TestClosedWhileIdle(t *testing.T) {
	c := http1.New(config())
	closed := make(chan error, 1)
	s := serve(t, func(p *peer) {
		p.request()
		p.say(whole)
		closed <- p.Close()
	})
	for range 20 {
		if o := (doer{do: c.Do}).ask(t.Context(), s.post("{}")); o.err != nil || o.body != "hello" {
			t.Fatalf("%+v", o)
		}
		check(t, <-closed)
	}
	c.Close()
	s.stop()
}

// The end of the context ends the request wherever it is, with its cause, and the connection.
func TestCancel(t *testing.T) {
	why := errors.New("why")
	for _, stage := range []string{"before", "request", "head", "interim", "body", "at the end"} {
		t.Run(stage, func(t *testing.T) {
			each(t, config(), func(t *testing.T, c doer) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				s := serve(t, func(p *peer) {
					if stage == "request" {
						_, _ = p.in.ReadByte()
						cancel(why)
						p.gone()
						return
					}
					p.request()
					switch stage {
					case "interim":
						p.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2")
					case "body":
						p.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
					case "at the end":
						p.say(whole)
						p.request()
						return
					}
					if stage != "body" {
						cancel(why)
					}
					if !p.gone() {
						t.Error("the connection stays open")
					}
				})
				defer s.stop()
				defer c.close()
				if stage == "before" {
					cancel(why)
				}
				body := "{}"
				if stage == "request" {
					body = padded(32 << 20)
				}
				resp, err := c.do(ctx, s.post(body))
				if stage == "at the end" {
					check(t, err)
					_, err = io.ReadAll(resp.Body)
					check(t, err)
					cancel(why) // too late to matter
					resp.Body.Close()
					return
				}
				if stage == "body" {
					check(t, err)
					buf := make([]byte, 5)
					_, err = io.ReadFull(resp.Body, buf)
					check(t, err)
					cancel(why)
					_, err = resp.Body.Read(buf)
					resp.Body.Close()
				}
				if !errors.Is(err, why) {
					t.Errorf("the error is %v", err)
				}
			})
		})
	}
}

// A body that is not wanted to its end costs the connection, and the server learns it.
func TestCloseEarly(t *testing.T) {
	each(t, config(), func(t *testing.T, c doer) {
		s := serve(t, func(p *peer) {
			p.request()
			p.say(chunked + "5\r\nhello\r\n")
			if !p.gone() {
				t.Error("the connection stays open")
			}
		})
		defer s.stop()
		for range 2 {
			resp, err := c.do(t.Context(), s.post("{}"))
			check(t, err)
			check(t, resp.Body.Close())
			if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
				t.Error("a closed body can be read")
			}
		}
	})
}

// atOnce makes requests whose connections are all in use together.
func atOnce(t *testing.T, c doer, s *server, n int) {
	t.Helper()
	var open []*http.Response
	for range n {
		resp, err := c.do(t.Context(), s.post("{}"))
		check(t, err)
		open = append(open, resp)
	}
	for _, resp := range open {
		_, err := io.ReadAll(resp.Body)
		check(t, err)
		check(t, resp.Body.Close())
	}
}

// At most so many connections are kept of a server, and of all; the oldest go.
func TestMaxIdle(t *testing.T) {
	cfg := config()
	cfg.MaxIdle, cfg.MaxIdlePerHost = 3, 2
	each(t, cfg, func(t *testing.T, c doer) {
		a, b := answers(t, whole), answers(t, whole)
		defer a.stop()
		defer b.stop()
		defer c.close()
		for _, step := range []struct {
			server *server
			conns  int64 // in all, after three requests at once
		}{{a, 3}, {a, 4}, {b, 3}, {a, 6}} { // two of a's are kept; one has to go for b's two
			if atOnce(t, c, step.server, 3); step.server.conns.Load() != step.conns {
				t.Errorf("%d connections, want %d", step.server.conns.Load(), step.conns)
			}
		}
	})
}

// An idle connection is not kept for ever.
func TestIdleTimeout(t *testing.T) {
	cfg := config()
	cfg.IdleTimeout = 50 * time.Millisecond
	each(t, cfg, func(t *testing.T, c doer) {
		for range 2 {
			s := answers(t, whole)
			atOnce(t, c, s, 2)
			s.stop() // the client closes them of its own accord
		}
	})
}

// No header field can end its line.
func TestHeaderInjection(t *testing.T) {
	each(t, config(), func(t *testing.T, c doer) {
		s := serve(t, func(*peer) { t.Error("it was sent") })
		defer s.stop()
		for _, f := range []http1.Field{{Name: "X-A", Value: "secret\r\nX-B: c"}, {Name: "X-A\r\nX-B", Value: "c"}, {Name: "", Value: "c"}, {Name: "X-A", Value: "\x00"}} {
			r := s.get()
			r.Header = []http1.Field{f}
			if o := c.ask(t.Context(), r); o.err == nil || strings.Contains(o.err.Error(), "secret") {
				t.Errorf("%q: %v", f, o.err)
			}
		}
	})
}
