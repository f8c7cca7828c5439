// Package upstream sends requests to LLM providers: it knows where a channel's API lives, how its key is presented, and
// how long each stage may take.
//
// It owns the connection pools: http1's for http addresses, http.Transport's for https (with HTTP/2), for what the environment sends
// through a proxy, and for what only it understands of a channel's address and headers. It neither retries nor bills: the relay decides what an answer means. A crash leaves
// nothing behind but the upstream's own work.
package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"ledgerline/relay/catalog"
	"ledgerline/relay/upstream/http1"
)

// Config bounds the stages of an upstream request. Zero values take the defaults named.
type Config struct {
	ConnectTimeout   time.Duration // TCP and TLS; 10 s
	FirstByteTimeout time.Duration // RELAY_TIMEOUT: until the response headers; 0 = none
	IdleConnTimeout  time.Duration // RELAY_IDLE_CONN_TIMEOUT; 90 s
	MaxIdle          int           // RELAY_MAX_IDLE_CONNS, of each of the two clients; 500
	MaxIdlePerHost   int           // RELAY_MAX_IDLE_CONNS_PER_HOST; 100
	SkipVerify       bool          // TLS_INSECURE_SKIP_VERIFY
}

// maxResponseHeader bounds an upstream's response headers (L7).
const maxResponseHeader = 256 << 10

// Client sends requests. It is safe for use by many goroutines.
type Client struct {
	transport *http.Transport
	direct    *http1.Client
	places    places
}

// New builds a client.
func New(cfg Config) *Client {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.ConnectTimeout, 10*time.Second)
	def(&cfg.IdleConnTimeout, 90*time.Second)
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 500
	}
	if cfg.MaxIdlePerHost == 0 {
		cfg.MaxIdlePerHost = 100
	}
	dialer := &net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 30 * time.Second}
	return &Client{
		transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            dialer.DialContext,
			TLSHandshakeTimeout:    cfg.ConnectTimeout,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: cfg.SkipVerify, MinVersion: tls.VersionTLS12}, //nolint:gosec // the operator asked for it by name
			ResponseHeaderTimeout:  cfg.FirstByteTimeout,
			IdleConnTimeout:        cfg.IdleConnTimeout,
			MaxIdleConns:           cfg.MaxIdle,
			MaxIdleConnsPerHost:    cfg.MaxIdlePerHost,
			MaxResponseHeaderBytes: maxResponseHeader,
			DisableCompression:     true, // streams pass byte-exact
			ForceAttemptHTTP2:      true,
			ReadBufferSize:         16 << 10, // a busy stream's chunks in one system call; the write buffer stays at 4 KiB
		},
		direct: http1.New(http1.Config{
			Dial: dialer.DialContext, HeadTimeout: cfg.FirstByteTimeout, IdleTimeout: cfg.IdleConnTimeout,
			MaxIdle: cfg.MaxIdle, MaxIdlePerHost: cfg.MaxIdlePerHost, MaxHead: maxResponseHeader,
		}),
	}
}

// Close closes idle connections.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.direct.Close()
}

// Call is one request to one channel.
type Call struct {
	Channel   *catalog.Channel
	Key       string
	Path      string // "/v1/chat/completions"
	Model     string // as sent; Azure puts it into the path
	Body      []byte
	Get       bool // GET, without the body
	Stream    bool
	RequestID string // passed on as X-Oneapi-Request-Id
}

// ErrUnsupported is returned for a channel type whose API the relay does not speak yet.
var ErrUnsupported = errors.New("the relay cannot serve this channel type yet")

// Do sends the call. The caller closes the body. Errors do not contain the key; they may contain the address, so they are for
// the log, not for clients.
func (c *Client) Do(ctx context.Context, call Call) (*http.Response, error) {
	at, err := c.places.of(call.Channel)
	if err != nil {
		return nil, err
	}
	var fields [maxFields]http1.Field
	header, usual := call.header(fields[:0])
	var resp *http.Response
	if at.direct && usual {
		resp, err = c.direct.Do(ctx, &http1.Request{
			Addr: at.addr, Host: at.host, Target: at.prefix + call.suffix(), Header: header, Body: call.Body, Get: call.Get,
		})
	} else {
		resp, err = c.roundTrip(ctx, at.base+call.suffix(), &call, header)
	}
	if err != nil {
		return nil, fmt.Errorf("send upstream request: %w", err)
	}
	return resp, nil
}

// roundTrip sends the call through http.Transport.
func (c *Client) roundTrip(ctx context.Context, target string, call *Call, header []http1.Field) (*http.Response, error) {
	method, body := http.MethodPost, io.Reader(bytes.NewReader(call.Body))
	if call.Get {
		method, body = http.MethodGet, http.NoBody
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("build the request: %w", err)
	}
	for _, f := range header {
		req.Header[f.Name] = []string{f.Value}
	}
	return c.transport.RoundTrip(req) //nolint:wrapcheck // Do says what was done
}

// maxFields are the header fields of most calls; more need memory of their own.
const maxFields = 10

// header appends the call's header fields. usual is false if a channel overrides one that says how the request is sent: only
// http.Transport knows them all.
func (call *Call) header(h []http1.Field) (fields []http1.Field, usual bool) {
	accept, auth, credential := "application/json", "Authorization", call.Key
	if call.Stream {
		accept = "text/event-stream"
	}
	if call.Channel.Type == TypeAzure {
		auth = "Api-Key"
	} else {
		credential = "Bearer " + credential
	}
	h = append(h, http1.Field{Name: "User-Agent", Value: "ledgerline"}, http1.Field{Name: "Content-Type", Value: "application/json"},
		http1.Field{Name: "Accept", Value: accept}, http1.Field{Name: auth, Value: credential},
		http1.Field{Name: "X-Oneapi-Request-Id", Value: call.RequestID})
	if call.Channel.Organization != "" {
		h = append(h, http1.Field{Name: "Openai-Organization", Value: call.Channel.Organization})
	}
	usual = true
	for k, v := range call.Channel.Headers {
		k = http.CanonicalHeaderKey(k)
		usual = usual && !unusual[k] && v != ""
		if i := slices.IndexFunc(h, func(f http1.Field) bool { return f.Name == k }); i >= 0 {
			h[i].Value = v
			continue
		}
		h = append(h, http1.Field{Name: k, Value: v})
	}
	return h, usual
}

// unusual are the fields that http.Transport sets, drops or obeys itself.
var unusual = map[string]bool{
	"Connection": true, "Content-Length": true, "Expect": true, "Host": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true,
	"Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// ReadAll reads a body of at most limit bytes; more is an error.
func ReadAll(r io.Reader, limit int64) ([]byte, error) { return readAll(r, limit, 0) }

// ReadAnswer is ReadAll for a whole answer, in a buffer of the size that the upstream announced.
func ReadAnswer(resp *http.Response, limit int64) ([]byte, error) {
	return readAll(resp.Body, limit, resp.ContentLength)
}

// maxTrusted bounds the memory taken on the word of an upstream, in bytes.
const maxTrusted = 1 << 20

func readAll(r io.Reader, limit, announced int64) ([]byte, error) {
	const least = 512
	// One byte more, so that the end is met before the buffer grows.
	body := make([]byte, 0, max(min(announced, maxTrusted, limit)+1, least))
	for {
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return nil, fmt.Errorf("read upstream body: %w", ErrTooLarge)
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, fmt.Errorf("read upstream body: %w", err)
		case len(body) == cap(body):
			body = append(body, 0)[:len(body)]
		}
	}
}

// ErrTooLarge marks an upstream body above its bound.
var ErrTooLarge = errors.New("the upstream's answer is larger than allowed")
