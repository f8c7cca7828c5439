package relay

import (
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"ledgerline/ledger"
	"ledgerline/relay/catalog"
	"ledgerline/relay/desk"
	"ledgerline/relay/dialect"
)

// exchange is one request on its way through the relay. It belongs to the goroutine that serves it.
type exchange struct {
	s  *Server
	w  http.ResponseWriter
	r  *http.Request
	rc *http.ResponseController

	// set by begin
	label   string // of the endpoint, in logs and metrics
	id      string
	start   time.Time
	dialect dialect.Dialect

	// set by authenticate, read, route
	endpoint  dialect.Endpoint
	token     *catalog.Token
	user      *catalog.User
	routes    *catalog.Routes
	groups    []string
	pinned    int64
	req       dialect.Request
	bodyTaken int64 // counted in bodies
	group     string
	quote     *ledger.Quote

	// set by admit
	ticket       *desk.Ticket
	paid         int64 // output tokens, all choices, that the hold pays for
	extends      bool  // the client named no bound: the hold grows with the stream
	lowered      bool  // a partial hold lowered max_tokens to limit
	limit        int64 // output tokens per choice
	promptTokens int64 // counted, -1: not yet

	// set while it is forwarded
	channel  *catalog.Channel
	sent     string // the model's name at the upstream
	upstream string // the upstream's own request id
	retries  int
	first    time.Time // first byte to the client
	watch    *watchdog // over the upstream of a stream

	// the outcome
	wrote      bool
	status     int
	code       string
	retryAfter int
	event      *ledger.Event
}

// processTag tells the requests of two processes of one second apart.
var processTag = func() string {
	var b [4]byte
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return hex.EncodeToString(b[:])
}()

// newRequestID has New API's form: time, a tag of the process, random characters; at most 64 characters.
func newRequestID(now time.Time) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 0, 48)
	b = now.UTC().AppendFormat(b, "20060102150405.000000000")
	copy(b[14:], b[15:])
	b = append(b[:23], processTag...)
	n := rand.Uint64()
	for range 8 {
		b = append(b, letters[n%uint64(len(letters))])
		n /= uint64(len(letters))
	}
	return string(b)
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request, label string) *exchange {
	x := &exchange{s: s, w: w, r: r, label: label, rc: http.NewResponseController(w), start: s.now(), promptTokens: -1}
	x.id = newRequestID(x.start)
	w.Header()["X-Oneapi-Request-Id"] = []string{x.id}
	s.metrics.inFlight.Inc()
	return x
}

// writeWithin bounds how long the following writes to the client may block. Not every connection has deadlines; then the
// server's own bounds hold. The bound stands until net/http has written what is left at the answer's end, and goes with it: the next
// request on this connection has its own.
func (x *exchange) writeWithin() {
	_ = x.rc.SetWriteDeadline(time.Now().Add(x.s.cfg.ClientTimeout))
}

// done writes the one wide record of the request.
func (x *exchange) done() {
	x.s.metrics.inFlight.Dec()
	x.s.bodies.taken.Add(-x.bodyTaken)
	x.s.metrics.observe(x)
	level := slog.LevelDebug
	if x.status >= http.StatusInternalServerError {
		level = slog.LevelInfo
	}
	if !x.s.log.Enabled(x.r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request", x.id), slog.String("endpoint", x.label), slog.Int("status", x.status),
		slog.String("code", x.code), slog.Duration("took", x.s.now().Sub(x.start)), slog.Int("retries", x.retries),
	}
	if x.user != nil {
		attrs = append(attrs, slog.Int64("user", x.user.ID), slog.Int64("token", x.token.ID))
	}
	if x.channel != nil {
		attrs = append(attrs, slog.Int64("channel", x.channel.ID))
	}
	if x.event != nil {
		attrs = append(attrs, slog.String("model", x.event.Request.Model), slog.Int64("charged", x.event.Charged),
			slog.Any("usage", x.event.Usage), slog.Any("flags", x.event.Flags))
	}
	x.s.log.LogAttrs(x.r.Context(), level, "request", attrs...)
}

// requestInfo is what the event says of the request, as far as it is known when the hold is taken.
func (x *exchange) requestInfo() ledger.Request {
	info := ledger.Request{
		ID: x.id, Username: x.user.Username, TokenName: x.token.Name, UserGroup: x.user.Group, Group: x.group,
		Model: x.req.Model, Endpoint: x.endpoint.Path(), Stream: x.req.Stream,
	}
	if x.user.RecordIP {
		info.IP = x.clientIP().String()
	}
	return info
}
