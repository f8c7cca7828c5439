// Package relay is the data plane: one request from bytes in to event out. It authenticates the key, chooses a channel,
// reserves a hold, forwards, streams back, meters, and has the usage event made durable before the last byte goes out (L1).
//
// On the way of a request it touches memory, the hot counters and the journal, never MySQL, Kafka or ClickHouse. What
// it promises about money is the desk's doing (relay/desk); this package decides what a request may cost and when it is over.
// A crash at any line is covered by the journal: see relay/desk.
//
//	server.go   what it is built from, the routes
//	auth.go     key → user, token, groups
//	admit.go    body → hold
//	attempt.go  channels, retries, upstream failures
//	stream.go   a streamed answer
//	readroom.go what it is read into
//	gather.go   how large pieces of it are sent
//	overload.go refusing what the processors cannot do
//	bodies.go   what large request bodies may take together
//	quota.go    keeping a stream of unknown length paid for
//	plain.go    an answer in one piece
//	settle.go   the meter's result → usage event
//	problems.go refusals and their codes
//	models.go   GET /v1/models
package relay

import (
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"ledgerline/relay/catalog"
	"ledgerline/relay/desk"
	"ledgerline/relay/dialect"
	"ledgerline/relay/upstream"
)

// Bounds, each with its reason (L7). Those that an operator may want to change are in Config.
const (
	// maxPlainAnswer bounds an answer in one piece: it is held in memory until its event is durable.
	maxPlainAnswer = 128 << 20
	// maxErrorBody bounds what is read of an upstream's failure.
	maxErrorBody = 64 << 10
	// plainTimeout bounds an answer in one piece, all tries together: its client may have gone long ago.
	plainTimeout = 30 * time.Minute
)

// Config is what a Server is built from. Zero numbers take the defaults named.
type Config struct {
	Catalog  *catalog.Catalog
	Desk     *desk.Desk
	Upstream *upstream.Client
	Logger   *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	Node     string
	Version  string

	MaxBody          int64         // MAX_REQUEST_BODY_MB in bytes, after decompression; 128 MiB
	MaxBodies        int64         // MAX_REQUEST_BODIES_MB in bytes: those of over 1 MiB together, MaxBody at least; 2 GiB
	MaxEvent         int           // STREAM_SCANNER_MAX_BUFFER_MB in bytes; 16 MiB
	StreamingTimeout time.Duration // STREAMING_TIMEOUT: silence between chunks; 300 s
	RelayTimeout     time.Duration // RELAY_TIMEOUT: the whole request, streams included; 0 = none
	OutputSlice      int64         // MAX_OUTPUT_TOKENS_DEFAULT: output tokens held at once when the client named no bound; 4096
	BodyTimeout      time.Duration // how long a client may take to send its body (slow loris); 2 min
	ClientTimeout    time.Duration // how long one write to a client may block before the client counts as gone; 1 min
	ForceUsage       bool          // FORCE_STREAM_OPTION
	TrustedProxies   []netip.Prefix

	// ChannelFailed is told of upstream failures that may disable a channel (New API's rules); it must not block.
	ChannelFailed func(f ChannelFailure)
	// Runnable counts the goroutines that wait for a processor, for one caller at a time; nil: as the runtime does.
	Runnable func() int
	Now      func() time.Time // nil: time.Now
}

// ChannelFailure is an upstream's answer that says that a channel, or one of its keys, is of no use any more.
type ChannelFailure struct {
	Channel  int64
	KeyIndex int
	Status   int
	Reason   string
}

// Server serves the relay endpoints.
type Server struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	limits  dialect.Limits
	load    *overload
	bodies  bodies
	charged atomic.Int64
	spare   readBuffers
	settles settling

	complaints rate.Sometimes // of what every request meets until somebody mends it

	// noUsageOption remembers, by channel, the address whose upstream refuses stream_options; bounded by the number of channels.
	noUsageOption sync.Map // int64 to string
}

// New builds a server.
func New(cfg Config) *Server {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 128 << 20
	}
	if cfg.MaxBodies == 0 {
		cfg.MaxBodies = 2 << 30
	}
	if cfg.StreamingTimeout == 0 {
		cfg.StreamingTimeout = 300 * time.Second
	}
	if cfg.OutputSlice == 0 {
		cfg.OutputSlice = 4096
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 2 * time.Minute
	}
	if cfg.ClientTimeout == 0 {
		cfg.ClientTimeout = time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ChannelFailed == nil {
		cfg.ChannelFailed = func(ChannelFailure) {}
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, now: cfg.Now, limits: dialect.DefaultLimits(), metrics: newMetrics(cfg.Metrics),
		load: newOverload(cfg.Runnable), bodies: bodies{limit: max(cfg.MaxBodies, cfg.MaxBody+1)},
	}
	return s
}

// Mount adds the relay's routes. Answers go to net/http's own writer: echo's, which wraps it, tells nobody that a flush failed.
func (s *Server) Mount(e *echo.Echo) {
	for _, ep := range []dialect.Endpoint{dialect.ChatCompletions, dialect.Completions, dialect.Embeddings} {
		e.POST(ep.Path(), func(c echo.Context) error {
			s.serve(c.Response().Writer, c.Request(), ep)
			return nil
		})
	}
	e.POST("/v1/engines/:model/embeddings", func(c echo.Context) error {
		s.serve(c.Response().Writer, c.Request(), dialect.Embeddings)
		return nil
	})
	e.GET("/v1/models", func(c echo.Context) error { s.listModels(c.Response(), c.Request()); return nil })
	e.GET("/v1/models/*", func(c echo.Context) error { s.oneModel(c.Response(), c.Request()); return nil })
	for _, path := range unimplemented {
		e.Any(path, func(c echo.Context) error { s.unimplemented(c.Response(), c.Request()); return nil })
	}
	e.RouteNotFound("/v1/*", func(c echo.Context) error {
		x := s.begin(c.Response(), c.Request(), "other")
		defer x.done()
		x.fail(notFound(c.Request()))
		return nil
	})
}

// unimplemented are the routes of New API's that it names and does not serve.
var unimplemented = []string{"/v1/files", "/v1/files/*", "/v1/fine-tunes", "/v1/fine-tunes/*", "/v1/images/variations"}

// unimplemented answers as New API does: key and model are looked at first.
func (s *Server) unimplemented(w http.ResponseWriter, r *http.Request) {
	x := s.begin(w, r, "other")
	defer x.done()
	p := x.authenticate()
	if p == nil {
		x.endpoint = dialect.Embeddings // any that has no messages
		if p = x.read(); p == nil || !p.Middleware {
			p = problem(http.StatusNotImplemented, "api_not_implemented", "this endpoint is not implemented")
		}
	}
	x.fail(p)
}

// serve relays one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, ep dialect.Endpoint) {
	x := s.begin(w, r, ep.String())
	x.endpoint = ep
	defer x.done()
	if s.load.refuses(x.start) {
		x.retryAfter = 1
		x.fail(full())
		return
	}
	if p := x.authenticate(); p != nil {
		x.fail(p)
		return
	}
	if p := x.read(); p != nil {
		x.fail(p)
		return
	}
	if p := x.route(); p != nil {
		x.fail(p)
		return
	}
	if p := x.admit(); p != nil {
		x.fail(p)
		return
	}
	x.relay()
}

// Charged returns the quota units that this process has charged since its start.
func (s *Server) Charged() int64 { return s.charged.Load() }
