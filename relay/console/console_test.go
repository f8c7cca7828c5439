package console

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

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
	"ledgerline/relay/catalog"
)

const testPartitions = 4

// site is a management API over a real SQLite database. What the outbox gives out is flushed by hand, as the consumer would.
type site struct {
	t       testing.TB
	store   *sqlstore.Store
	log     *usagelog.SQL
	catalog *catalog.Catalog
	clock   *clock
	console *Console
	http    *httptest.Server

	mu   sync.Mutex
	seqs map[int]uint64 // guarded by mu
}

// clock is a time that tests move. It runs on by itself, so that timers of the store stay in step.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

var clockless = time.Unix(1, 0)

const testSecret = "a secret of tests"

// newSite makes a database with the user root, and a console on it.
func newSite(t testing.TB) *site {
	t.Helper()
	clk := &clock{}
	dir := t.TempDir()
	store, err := sqlstore.Open(t.Context(), sqlstore.Config{SQLitePath: filepath.Join(dir, "db"), Now: clk.now})
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	check(t, store.Migrate(t.Context()))
	_, err = store.InitLog(t.Context(), sqlstore.LogInfo{Topic: "usage", Partitions: testPartitions})
	check(t, err)
	log, err := usagelog.OpenSQL(t.Context(), usagelog.Config{SQLitePath: filepath.Join(dir, "db"), Now: clk.now})
	check(t, err)
	t.Cleanup(func() { check(t, log.Close()) })
	check(t, log.Migrate(t.Context()))
	s := &site{t: t, store: store, log: log, clock: clk, seqs: map[int]uint64{}}
	_, err = store.EnsureRoot(t.Context(), func() (string, error) { return HashPassword("rootpass1") })
	check(t, err)
	s.apply()
	s.catalog = catalog.New(store, time.Hour, slog.New(slog.DiscardHandler))
	check(t, s.catalog.Load(t.Context()))
	s.console = s.node(t)
	s.http = serve(t, s.console)
	return s
}

// node makes one more node on the same database.
func (s *site) node(t testing.TB) *Console {
	t.Helper()
	c, err := New(Config{
		Store: s.store, Log: s.log, Catalog: s.catalog, Secret: testSecret, Kick: s.apply, Now: s.clock.now, Version: "v1", FrontendURL: "https://panel.example.com",
		ListModels:  func(context.Context, *catalog.Channel, string) ([]string, error) { return []string{"gpt-4o"}, nil },
		TestChannel: func(context.Context, int64, string) (time.Duration, error) { return 2 * time.Millisecond, nil },
		ClientIP: func(r *http.Request) netip.Addr {
			if ip, err := netip.ParseAddr(r.Header.Get("X-Test-Address")); err == nil {
				return ip
			}
			return netip.MustParseAddr("127.0.0.1")
		},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	check(t, err)
	return c
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) { w.t.Log(string(p)); return len(p), nil }

func serve(t testing.TB, c *Console) *httptest.Server {
	e := echo.New()
	e.HideBanner = true
	c.Mount(e)
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	return server
}

// apply moves the outbox through a log of its own into the balances and the usage log.
func (s *site) apply() {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := context.Background()
	for {
		rows, err := s.store.OutboxPending(ctx, 100)
		check(s.t, err)
		if len(rows) == 0 {
			return
		}
		for _, row := range rows {
			check(s.t, s.store.OutboxMoved(ctx, row.Key))
			s.append(row.Event)
		}
	}
}

// append journals and flushes one event. The caller holds mu.
func (s *site) append(e ledger.Event) {
	ctx := context.Background()
	part := ledger.Partition(e.User, testPartitions)
	at := s.seqs[part]
	e.Producer, e.Prev, e.Seq = ledger.ID{1}, at, at+1
	s.seqs[part]++
	value, err := e.Encode(nil)
	check(s.t, err)
	record := ledger.Record{Partition: part, Offset: int64(at), Value: value, Event: e}
	result, err := s.store.Flush(ctx, sqlstore.FlushCall{
		Partition: part, From: record.Offset, To: record.Offset + 1, Records: []ledger.Record{record}, Now: time.Now(),
	})
	check(s.t, err)
	if result.Applied != 1 {
		s.t.Errorf("event %s was not applied: %+v", value, result)
	}
	check(s.t, s.log.Append(ctx, usagelog.Batch{
		Partition: part, Rows: []usagelog.Row{usagelog.RowOf(&record)},
		Position: usagelog.Position{Offset: record.Offset + 1, LastEvent: e.ID, LastOffset: record.Offset, At: time.Now()},
	}))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// client is a caller: with a token, or with cookies, or with neither.
type client struct {
	site    *site
	base    string
	token   string
	cookies map[string]string
	headers map[string]string
}

func (s *site) client() *client {
	return &client{site: s, base: s.http.URL, cookies: map[string]string{}}
}

// reply is an answer: its status and its JSON body.
type reply struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
}

func (r reply) ok() bool { return r.status == http.StatusOK && r.body["success"] == true }

func (r reply) data() map[string]any {
	d, _ := r.body["data"].(map[string]any)
	return d
}

func (r reply) items() []any {
	list, _ := r.data()["items"].([]any)
	return list
}

// call sends a request. body is encoded as JSON, unless it is a string or nil. Cookies are kept as a browser would.
func (c *client) call(method, path string, body any) reply {
	t := c.site.t
	t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		check(t, err)
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, c.base+path, reader)
	check(t, err)
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", c.token)
	}
	for name, value := range c.headers {
		req.Header.Set(name, value)
	}
	for name, value := range c.cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	for _, cookie := range resp.Cookies() {
		if cookie.MaxAge < 0 {
			delete(c.cookies, cookie.Name)
		} else if c.cookies != nil {
			c.cookies[cookie.Name] = cookie.Value
		}
	}
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	out := reply{status: resp.StatusCode, header: resp.Header, raw: string(text)}
	if json.Unmarshal(text, &out.body) != nil {
		t.Errorf("%s %s answers %d with no JSON object: %s", method, path, resp.StatusCode, text)
	}
	return out
}

// must is call for what has to succeed.
func (c *client) must(method, path string, body any) reply {
	c.site.t.Helper()
	r := c.call(method, path, body)
	if !r.ok() {
		c.site.t.Fatalf("%s %s: %d %s", method, path, r.status, r.raw)
	}
	return r
}

// refused is call for what has to be refused with a status and, if it is not empty, a code.
func (c *client) refused(status int, code, method, path string, body any) reply {
	c.site.t.Helper()
	r := c.call(method, path, body)
	got, _ := r.body["code"].(string)
	if r.status != status || r.body["success"] == true || got != code {
		c.site.t.Errorf("%s %s: %d %s, want %d with code %q", method, path, r.status, r.raw, status, code)
	}
	return r
}

// login returns a client that logged in, with its access token.
func (s *site) login(name, password string) *client {
	s.t.Helper()
	c := s.client()
	r := c.must("POST", "/api/user/login", map[string]string{"username": name, "password": password})
	c.token, _ = r.data()["access_token"].(string)
	return c
}

func (s *site) root() *client { return s.login("root", "rootpass1") }

// user makes a user and logs it in.
func (s *site) user(name string, role int) (*client, int64) {
	s.t.Helper()
	s.root().must("POST", "/api/user/", map[string]any{"username": name, "password": "password1", "role": role})
	id, _, err := s.store.UserPassword(s.t.Context(), name)
	check(s.t, err)
	return s.login(name, "password1"), id
}
