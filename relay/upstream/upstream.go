// Package upstream sends requests to LLM providers: it knows where a channel's API lives, how its key is presented, and
// how long each stage may take.
//
// It owns the connection pool. It neither retries nor bills: the relay decides what an answer means. A crash leaves
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
	"net/url"
	"strconv"
	"time"

	"ledgerline/relay/catalog"
)

// Config bounds the stages of an upstream request. Zero values take the defaults named.
type Config struct {
	ConnectTimeout   time.Duration // TCP and TLS; 10 s
	FirstByteTimeout time.Duration // RELAY_TIMEOUT: until the response headers; 0 = none
	IdleConnTimeout  time.Duration // RELAY_IDLE_CONN_TIMEOUT; 90 s
	MaxIdle          int           // RELAY_MAX_IDLE_CONNS; 500
	MaxIdlePerHost   int           // RELAY_MAX_IDLE_CONNS_PER_HOST; 100
	SkipVerify       bool          // TLS_INSECURE_SKIP_VERIFY
}

// maxResponseHeader bounds an upstream's response headers (L7).
const maxResponseHeader = 256 << 10

// Client sends requests. It is safe for use by many goroutines.
type Client struct {
	transport *http.Transport
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
	return &Client{transport: &http.Transport{
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
	}}
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

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
	target, err := Target(call.Channel, call.Path, call.Model)
	if err != nil {
		return nil, err
	}
	var req *http.Request
	if call.Get {
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	} else {
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(call.Body))
	}
	if err != nil {
		return nil, fmt.Errorf("build upstream request: %w", err)
	}
	h := req.Header
	h["Content-Type"] = []string{"application/json"}
	if call.Stream {
		h["Accept"] = []string{"text/event-stream"}
	} else {
		h["Accept"] = []string{"application/json"}
	}
	if call.Channel.Type == TypeAzure {
		h["Api-Key"] = []string{call.Key}
	} else {
		h["Authorization"] = []string{"Bearer " + call.Key}
	}
	if call.Channel.Organization != "" {
		h["Openai-Organization"] = []string{call.Channel.Organization}
	}
	h["X-Oneapi-Request-Id"] = []string{call.RequestID}
	h["User-Agent"] = []string{"ledgerline"}
	for k, v := range call.Channel.Headers {
		req.Header.Set(k, v)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("send upstream request: %w", err)
	}
	return resp, nil
}

// Target returns the URL of an API path on a channel. Errors: ErrUnsupported, or a base_url that is no http(s) URL.
func Target(ch *catalog.Channel, path, model string) (string, error) {
	base := ch.BaseURL
	if base == "" {
		known, ok := bases[ch.Type]
		if !ok {
			return "", fmt.Errorf("channel %d of type %d: %w", ch.ID, ch.Type, ErrUnsupported)
		}
		base = known
	} else if !OpenAICompatible(ch.Type) {
		return "", fmt.Errorf("channel %d of type %d: %w", ch.ID, ch.Type, ErrUnsupported)
	}
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("channel %d: base_url %s is no http or https URL", ch.ID, strconv.Quote(base))
	}
	if ch.Type == TypeAzure {
		const version = "2025-04-01-preview" // AZURE_DEFAULT_API_VERSION
		return base + "/openai/deployments/" + url.PathEscape(model) + path[len("/v1"):] + "?api-version=" + version, nil
	}
	return base + path, nil
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
