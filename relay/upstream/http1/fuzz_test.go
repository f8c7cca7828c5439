package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ledgerline/relay/upstream/http1"
)

// scripted is a connection whose server sends its bytes in fragments, whatever it is asked, and closes.
type scripted struct {
	net.Conn
	rest   []byte
	pieces []byte // sizes of the fragments, in turn
	turn   int
}

func (s *scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

func (s *scripted) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := len(s.rest)
	if len(s.pieces) > 0 {
		n = int(s.pieces[s.turn%len(s.pieces)]) + 1
		s.turn++
	}
	n = copy(p, s.rest[:min(n, len(s.rest))])
	s.rest = s.rest[n:]
	return n, nil
}

// FuzzAnswer reads whatever a server may send, in whatever fragments, and compares with net/http: the same status and body, and an
// error where it has one. Only its look at trailers is stricter.
func FuzzAnswer(f *testing.F) {
	for _, answer := range []string{
		whole, "HTTP/1.0 200 OK\r\n\r\nhello", "HTTP/1.1 100 Continue\r\n\r\n" + whole, "HTTP/1.1 204 No Content\r\n\r\n",
		chunked + "3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nX-T: 1\r\n\r\n", chunked + "a \r\n0123456789\r\n00\r\n\r\n", chunked + "ffffffffffffffff\r\nx",
		chunked + strings.Repeat("1;"+padded(2000)+"\r\nx\r\n", 10), chunked + "5\r\nhello\r\n0\r\n", chunked + "5\nhello\r\n0\r\n\r\n",
	} {
		f.Add([]byte(answer), []byte{})
		f.Add([]byte(answer), []byte{0})
		f.Add([]byte(answer), []byte{2, 30, 6})
	}
	f.Fuzz(func(t *testing.T, answer, pieces []byte) {
		cfg := config()
		cfg.MaxHead = 1 << 20
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			return &scripted{rest: answer, pieces: pieces}, nil
		}
		c := http1.New(cfg)
		defer c.Close()
		got := doer{do: c.Do}.ask(t.Context(), &http1.Request{Addr: "a:1", Host: "a", Target: "/"})
		want, trailers := standard(answer)
		switch {
		case got.status != want.status || got.head != want.head:
			t.Fatalf("status %d, %v; net/http has %d, %v", got.status, got.err, want.status, want.err)
		case got.err == nil && (want.err == nil || trailers) && got.body != want.body,
			got.err == nil && want.err != nil && !trailers, got.err != nil && want.err == nil:
			t.Fatalf("%q, %v; net/http has %q, %v", got.body, got.err, want.body, want.err)
		case !strings.HasPrefix(want.body, got.body) && !strings.HasPrefix(got.body, want.body):
			t.Fatalf("%q; net/http has %q", got.body, want.body)
		}
	})
}

// standard reads an answer with net/http. trailers says that it failed behind the last chunk.
func standard(answer []byte) (o outcome, trailers bool) {
	in := bufio.NewReaderSize(bytes.NewReader(answer), 8<<10) // a line of 4 KiB must fit, as with ours
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return outcome{head: true, err: err}, false
		}
		if resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != 101 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		last := bytes.LastIndex(answer, []byte("\n0")) // a head may end in line feeds alone
		trailers = err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && last >= 0
		return outcome{status: resp.StatusCode, body: string(body), err: err}, trailers
	}
}
