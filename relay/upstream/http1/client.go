// Package http1 is a client of HTTP/1.1 over plain TCP for requests whose body is in memory: what http.Transport does for them
// with two goroutines a connection and a dozen hand-offs a request, the caller's goroutine does itself. The head of an answer
// is parsed by net/http; only the framing of bodies is this package's own, so that they are read from the connection straight into
// the caller's buffer.
//
// It owns its connections. It knows no TLS, no proxy and no redirect; relay/upstream leaves requests that need one to http.Transport,
// and the conformance suite holds both to the same behaviour. A crash leaves nothing behind but the server's own work.
//
//	client.go  requests, and when one is sent again
//	conn.go    one request on one connection: out, and the head of the answer in
//	body.go    an answer's body, and what becomes of the connection at its end
//	chunks.go  the chunked framing
//	pool.go    idle connections
package http1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// Config bounds a client. All counts and MaxHead must be positive.
type Config struct {
	Dial           func(ctx context.Context, network, addr string) (net.Conn, error)
	HeadTimeout    time.Duration // from the request's last byte to the end of the answer's head; 0 = none
	IdleTimeout    time.Duration // how long an unused connection is kept
	MaxIdle        int           // connections kept
	MaxIdlePerHost int
	MaxHead        int64 // of an answer, interim ones included, in bytes (L7)
}

// Client sends requests. It is safe for use by many goroutines.
type Client struct {
	cfg   Config
	pool  pool
	heads sync.Pool // of *heads
}

// New builds a client.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg}
	c.pool.init(&c.cfg)
	return c
}

// Close closes the idle connections; those in use close with the answers that they carry.
func (c *Client) Close() { c.pool.close() }

// Field is one header field of a request.
type Field struct{ Name, Value string }

// Request is one request. Host and Content-Length come from Host and Body; Header must not repeat them.
type Request struct {
	Addr   string // host:port to connect to
	Host   string // the Host field
	Target string // path and query, escaped
	Header []Field
	Body   []byte
	Get    bool // GET, without the body; else POST
}

// Do sends a request and returns the answer once its head is there, interim answers (1xx) skipped. The caller reads the body to
// its end or closes it, in one goroutine; both give the connection back. The end of ctx ends the request and the reading of
// the body with context.Cause.
//
// The request is sent once. Only what surely did not reach the server is sent again, and a GET to which a kept connection
// brought nothing: a POST may have been worked on, and billed.
func (c *Client) Do(ctx context.Context, r *Request) (*http.Response, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n := c.pool.get(r.Addr)
		kept := n != nil
		if !kept {
			dialed, err := c.cfg.Dial(ctx, "tcp", r.Addr)
			if err != nil {
				return nil, err //nolint:wrapcheck // it says what was done
			}
			n = newConn(c, r.Addr, dialed)
		}
		resp, err := n.do(ctx, r)
		// A kept connection that the server has just closed. The loop ends, for each turn uses one up.
		if err != nil && kept && ctx.Err() == nil && (errors.Is(err, errNotSent) || r.Get && errors.Is(err, errNoAnswer) && !errors.Is(err, os.ErrDeadlineExceeded)) {
			continue
		}
		return resp, err
	}
}

var (
	// errNotSent means that not a byte of the request was written.
	errNotSent = errors.New("the connection took nothing of the request")
	// errNoAnswer means that not a byte of an answer came.
	errNoAnswer = errors.New("the connection ended before an answer")
)

// check refuses what would end a line of the head. Values are not named: they may be secret.
func (r *Request) check() error {
	for i := range r.Header {
		f := &r.Header[i]
		if f.Name == "" {
			return errors.New("a header field without a name")
		}
		for j := range len(f.Name) {
			if !tokenByte[f.Name[j]] {
				return fmt.Errorf("header field name %s: letters, digits and - are allowed", strconv.Quote(f.Name))
			}
		}
		for j := range len(f.Value) {
			if b := f.Value[j]; b < ' ' && b != '\t' || b == 0x7f {
				return fmt.Errorf("value of header field %s: control characters are not allowed", f.Name)
			}
		}
	}
	for _, s := range []string{r.Host, r.Target} {
		for j := range len(s) {
			if s[j] <= ' ' || s[j] >= 0x7f {
				return errors.New("the address holds a character that must be escaped")
			}
		}
	}
	return nil
}

// tokenByte are the bytes of a header field's name (RFC 9110, 5.6.2).
var tokenByte = func() (t [256]bool) {
	for _, b := range []byte("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		t[b] = true
	}
	return t
}()

// appendHead appends the request line and the fields.
func (r *Request) appendHead(b []byte) []byte {
	if r.Get {
		b = append(b, "GET "...)
	} else {
		b = append(b, "POST "...)
	}
	b = append(append(b, r.Target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, r.Host...), "\r\n"...)
	for i := range r.Header {
		f := &r.Header[i]
		b = append(append(b, f.Name...), ": "...)
		b = append(append(b, f.Value...), "\r\n"...)
	}
	if !r.Get {
		b = strconv.AppendInt(append(b, "Content-Length: "...), int64(len(r.Body)), 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...)
}
