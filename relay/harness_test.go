package relay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/catalog"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
	"ledgerline/relay/upstream"
)

const (
	partitions = 2
	// patience bounds every wait of a test for something that happens at once on a healthy machine.
	patience = 20 * time.Second
	model    = "gpt-4o-mini"
)

// stack is a cluster in one process: real stores, the embedded log, the in-process counters, a mock upstream and, in the place of
// the quota consumer, a clerk that tests can stop. Nodes are started on it.
type stack struct {
	testing.TB
	dir      string
	db       *sqlstore.Store
	broker   *eventlog.Embedded
	events   *eventlog.Client
	counters *hold.Local
	up       *relaytest.Server
	clerk    *clerk
	log      *slog.Logger
}

// newStack starts everything but nodes. The mock upstream serves gpt-4o-mini for group default through channel 1.
func newStack(t testing.TB, script relaytest.Script) *stack {
	t.Helper()
	s := &stack{TB: t, dir: t.TempDir(), counters: hold.NewLocal(), log: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		s.log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	var err error
	s.db, err = sqlstore.Open(t.Context(), sqlstore.Config{SQLitePath: filepath.Join(s.dir, "db")})
	s.must(err)
	t.Cleanup(func() { _ = s.db.Close() })
	s.must(s.db.Migrate(t.Context()))
	s.broker, err = eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: filepath.Join(s.dir, "log")})
	s.must(err)
	t.Cleanup(s.broker.Close)
	s.events, err = eventlog.NewClient(eventlog.Config{Brokers: []string{s.broker.Addr()}, Topic: "events"})
	s.must(err)
	t.Cleanup(s.events.Close)
	_, err = s.db.InitLog(t.Context(), sqlstore.LogInfo{Topic: "events", Partitions: partitions})
	s.must(err)
	_, err = s.events.EnsureTopic(t.Context(), partitions)
	s.must(err)
	// Whole prices, so that every token shows in a bill: a prompt token costs 10, an output token 40.
	s.options("ModelRatio", `{"`+model+`":10,"embedder":1,"instruct":2,"gratis":0,"gpt-4o":1.25,"gpt-4.1":1}`, "ModelPrice", `{"per-call":0.002}`)
	s.up, err = relaytest.Start("", relaytest.Options{Script: script})
	s.must(err)
	t.Cleanup(func() { _ = s.up.Close() })
	s.channel(sqlstore.ChannelRow{Name: "mock", BaseURL: s.up.URL, Models: model + ",embedder,instruct,gratis,per-call"})
	s.clerk = startClerk(s)
	return s
}

// testWriter sends the log of a node to the test's own, as long as the test runs.
type testWriter struct{ testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.Context().Err() == nil {
		w.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (s *stack) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// await polls until f returns true.
func (s *stack) await(what string, f func() bool) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			s.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// channel adds a channel; what the row leaves open is an enabled OpenAI channel of group default.
func (s *stack) channel(row sqlstore.ChannelRow) int64 {
	s.Helper()
	if row.Type == 0 {
		row.Type = upstream.TypeOpenAI
	}
	if row.Key == "" {
		row.Key = "mock-key"
	}
	if row.Models == "" {
		row.Models = model
	}
	row.AutoBan = true
	id, err := s.db.CreateChannel(s.Context(), row)
	s.must(err)
	return id
}

func (s *stack) options(pairs ...string) {
	s.Helper()
	for i := 0; i < len(pairs); i += 2 {
		s.must(s.db.SetOption(s.Context(), pairs[i], pairs[i+1]))
	}
}

// tee is a mock upstream that keeps the bytes of its last answer and of the request for it.
type tee struct {
	mu       sync.Mutex
	mock     *relaytest.Upstream
	request  []byte
	header   http.Header
	response bytes.Buffer
}

// newTee makes channel 1 lead to a mock whose bytes can be looked at.
func (s *stack) newTee() *tee {
	mock, err := relaytest.New(relaytest.Options{})
	s.must(err)
	s.Cleanup(func() { _ = mock.Close() })
	t := &tee{mock: mock}
	url := s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		t.mu.Lock()
		t.request, t.header = body, r.Header.Clone()
		t.response.Reset()
		t.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		mock.ServeHTTP(&teeWriter{w, t}, r)
	})
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", url)
	return t
}

func (t *tee) last() (request, response string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.request), t.response.String()
}

type teeWriter struct {
	http.ResponseWriter
	t *tee
}

func (w *teeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *teeWriter) Write(b []byte) (int, error) {
	w.t.mu.Lock()
	w.t.response.Write(b)
	w.t.mu.Unlock()
	return w.ResponseWriter.Write(b)
}

// upstreamOf starts a hand-written upstream and returns its address.
func (s *stack) upstreamOf(h http.HandlerFunc) string {
	server := httptest.NewServer(h)
	s.Cleanup(server.Close)
	return server.URL
}

// node is one relay node.
type node struct {
	*stack
	catalog *catalog.Catalog
	desk    *desk.Desk
	relay   *relay.Server
	http    *httptest.Server
	failed  chan relay.ChannelFailure
	metrics *prometheus.Registry
	leave   func()     // tells the desk to end
	ended   chan error // what it ended with
	stop    func()     // cleanly, once
}

// nodeConfig is what a test changes of a node.
type nodeConfig struct {
	fs       journal.FS
	root     string
	counters desk.Counters
	ship     desk.Ship
	relay    func(*relay.Config)
	desk     func(*desk.Config)
}

// start starts a node and waits until it serves.
func (s *stack) start(change ...func(*nodeConfig)) *node {
	s.Helper()
	n := s.launch(change...)
	n.ready()
	return n
}

// launch starts a node.
func (s *stack) launch(change ...func(*nodeConfig)) *node {
	s.Helper()
	n := &node{stack: s, failed: make(chan relay.ChannelFailure, 100), metrics: prometheus.NewRegistry()}
	n.catalog = catalog.New(s.db, time.Minute, s.log)
	s.must(n.catalog.Load(s.Context()))
	cfg := nodeConfig{
		root: filepath.Join(s.dir, "journal"), counters: s.counters, ship: s.ship(),
		relay: func(*relay.Config) {}, desk: func(*desk.Config) {},
	}
	for _, f := range change {
		f(&cfg)
	}
	dc := desk.Config{
		Node: "node", Partitions: partitions, Counters: cfg.counters, Bank: bank{s.db}, Outbox: outbox{s.db}, Ship: cfg.ship, HoldEnds: s.holdEnds, Logger: s.log,
		Journal:   journal.Config{FS: cfg.fs, Root: cfg.root, Partitions: partitions, Slots: 1024, Logger: s.log},
		BeatEvery: 20 * time.Millisecond, SweepEvery: 20 * time.Millisecond, AdoptEvery: 20 * time.Millisecond,
		Metrics: n.metrics,
	}
	cfg.desk(&dc)
	var err error
	n.desk, err = desk.New(s.Context(), dc)
	s.must(err)
	up := upstream.New(upstream.Config{ConnectTimeout: time.Second, MaxIdlePerHost: 100})
	rc := relay.Config{
		Catalog: n.catalog, Desk: n.desk, Upstream: up, Logger: s.log, Node: "node", Version: "test", ForceUsage: true,
		Metrics:       n.metrics,
		ChannelFailed: func(f relay.ChannelFailure) { n.failed <- f },
	}
	cfg.relay(&rc)
	n.relay = relay.New(rc)
	e := echo.New()
	n.relay.Mount(e)
	n.http = httptest.NewUnstartedServer(e)
	n.http.Config.MaxHeaderBytes = 64 << 10
	n.http.Listener, n.http.Config.ConnContext = relay.Gathering(n.http.Listener), relay.ConnContext
	n.http.Start()
	ctx, cancel := context.WithCancel(context.Background())
	n.leave, n.ended = cancel, make(chan error, 1)
	go func() { n.ended <- n.desk.Run(ctx, patience) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		n.http.CloseClientConnections()
		n.http.Close()
		cancel()
		select {
		case err := <-n.ended:
			if err != nil {
				s.Errorf("the desk ended with: %v", err)
			}
		case <-time.After(2 * patience):
			s.Error("the desk does not end")
		}
		up.Close()
	}
	s.Cleanup(n.stop)
	return n
}

func (s *stack) holdEnds(ctx context.Context, partition int, _ uint64, holds map[ledger.ID]bool) ([]ledger.ReleaseCall, error) {
	return s.events.HoldEnds(ctx, partition, 0, holds)
}

func (s *stack) ship() desk.Ship {
	shipper := eventlog.NewShipper(s.events, eventlog.ShipperConfig{Spacing: -1, Logger: s.log})
	return func(ctx context.Context, j *journal.Journal) error { return shipper.Ship(ctx, j) }
}

// metric returns the sum of a counter or gauge over its labels.
func (n *node) metric(name string) (sum float64) {
	n.Helper()
	families, err := n.metrics.Gather()
	n.must(err)
	found := false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		found = true
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	if !found {
		n.Fatalf("there is no metric %s", name)
	}
	return sum
}

func (n *node) ready() {
	n.Helper()
	n.await("open epochs", func() bool { open, all := n.desk.Open(); return open == all })
}

// account is a user with one key.
type account struct {
	user, token int64
	key         string
	users       ledger.Account
	tokens      ledger.Account
}

// account makes a user with quota and a key limited to limit (below 0: unlimited), and waits until both are in force.
func (n *node) account(quota, limit int64, change ...func(*sqlstore.TokenRow)) account {
	n.Helper()
	name := "u" + strings.ToLower(rand8())
	id, err := n.db.CreateUser(n.Context(), sqlstore.NewUser{Username: name, Role: sqlstore.RoleUser, Quota: quota})
	n.must(err)
	return n.key(id, limit, change...)
}

// key makes another key for a user.
func (n *node) key(user, limit int64, change ...func(*sqlstore.TokenRow)) account {
	n.Helper()
	row := sqlstore.TokenRow{UserID: user, Name: "key", ExpiredTime: -1, Unlimited: limit < 0}
	for _, f := range change {
		f(&row)
	}
	t, _, err := n.db.CreateToken(n.Context(), row, max(0, limit))
	n.must(err)
	n.settled()
	n.must(n.catalog.Refresh(n.Context()))
	return account{
		user: user, token: t.ID, key: "sk-" + t.Key,
		users: ledger.Account{Kind: ledger.UserAccount, ID: user}, tokens: ledger.Account{Kind: ledger.TokenAccount, ID: t.ID},
	}
}

// settled waits until the outbox is applied.
func (n *node) settled() {
	n.Helper()
	n.desk.MoveNow()
	n.await("the outbox to be applied", func() bool {
		count, _, err := n.db.OutboxBacklog(n.Context())
		n.must(err)
		return count == 0
	})
}

// left returns what an account has left in the database once everything that happened is applied there, and checks that
// the hot counters agree and hold nothing.
func (n *node) left(a ledger.Account, user int64) int64 {
	n.Helper()
	n.drain()
	p := ledger.Partition(user, partitions)
	_, balances, err := n.db.Balances(n.Context(), p, []ledger.Account{a})
	n.must(err)
	hot, err := n.counters.Accounts(n.Context(), p, []ledger.Account{a})
	n.must(err)
	if h := hot[0]; h.Loaded && (h.Held != 0 || h.OpenHolds != 0 || h.Settled != 0 || h.Granted-h.Charged != balances[a].Left()) {
		n.Errorf("%s: the counters say %+v, the database %+v", a, h, balances[a])
	}
	return balances[a].Left()
}

// drain waits until all that ended is in the database and the counters.
func (n *node) drain() {
	n.Helper()
	n.await("the requests to end", func() bool { return n.desk.InFlight() == 0 })
	n.await("releases and shipping", func() bool { return n.desk.Backlog() == 0 })
	n.clerk.catchUp()
}

// event waits for the event of a request.
func (n *node) event(request string) *ledger.Event {
	n.Helper()
	var found *ledger.Event
	n.await("the event of request "+request, func() bool { found = n.clerk.find(request); return found != nil })
	return found
}

// reply is an answer read whole.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

func (r *reply) request() string { return r.header.Get("X-Oneapi-Request-Id") }

// fault returns the code of an error answer.
func (r *reply) fault() string {
	var v struct{ Error struct{ Code string } }
	_ = json.Unmarshal([]byte(r.body), &v) // no JSON: no code
	return v.Error.Code
}

// post sends a request and reads the answer.
func (n *node) post(key, path, body string, headers ...string) *reply {
	n.Helper()
	return n.do(n.newRequest(n.Context(), key, path, body, headers...))
}

func (n *node) newRequest(ctx context.Context, key, path, body string, headers ...string) *http.Request {
	n.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, n.http.URL+path, strings.NewReader(body))
	n.must(err)
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

func (n *node) do(r *http.Request) *reply {
	n.Helper()
	resp, err := n.http.Client().Do(r)
	n.must(err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return &reply{resp.StatusCode, resp.Header, string(body), err}
}

const chatPath = "/v1/chat/completions"

// chat is the body of a chat request whose answer the script dictates; more are further members.
func chat(script string, more ...string) string {
	b := bytes.NewBufferString(`{"model":"` + model + `","messages":[{"role":"user","content":"hi"}],"user":"mock:` + script + `"`)
	for _, m := range more {
		b.WriteString("," + m)
	}
	return b.String() + "}"
}

const streamed = `"stream":true`

// bank and outbox fit the database to what the desk asks for.
type bank struct{ *sqlstore.Store }

func (b bank) RegisterProducer(ctx context.Context, id ledger.ID, node string) error {
	return b.Store.RegisterProducer(ctx, sqlstore.Producer{ID: id, Node: node})
}

func (b bank) Heartbeat(ctx context.Context, ids []ledger.ID) ([]ledger.ID, error) {
	return b.Store.Heartbeat(ctx, ids...)
}

type outbox struct{ db *sqlstore.Store }

func (o outbox) PendingOutbox(ctx context.Context, limit int) ([]desk.OutboxRow, error) {
	rows, err := o.db.OutboxPending(ctx, limit)
	out := make([]desk.OutboxRow, len(rows))
	for i := range rows {
		out[i] = desk.OutboxRow{Key: rows[i].Key, Event: rows[i].Event}
	}
	return out, err
}

func (o outbox) MovedOutbox(ctx context.Context, keys []string) error {
	return o.db.OutboxMoved(ctx, keys...)
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
