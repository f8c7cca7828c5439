// Package console is the management API: New API's paths, envelope and names, for scripts, dashboards and operators.
//
// It owns logins (session cookies, access tokens, passwords), and translates requests into the business transactions of
// ledger/sqlstore and the queries of ledger/usagelog. It never changes a balance: quota moves by events of the outbox
// (DESIGN 9). A write answers once it is in the database and effective on this node: the catalog is refreshed, and a change
// of quota is waited for, within bounds, until it is applied. Everything it needs to know of a login is in the database or
// signed with SESSION_SECRET, so every node that has the same secret takes over from another at any request.
//
// It is called by cmd, which mounts it beside the relay. A crash loses at most the answer: writes are single transactions.
//
//	console.go   what it is built from
//	routes.go    the paths, and who may call them
//	call.go      one request: envelope, paging, body, errors
//	auth.go      who is calling
//	ticket.go    the signed texts: session cookie, access token, refresh cookie
//	password.go  hashes
//	throttle.go  failed logins
//	effect.go    a write is effective before it is answered
//	the others   one family of endpoints each
package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
	"ledgerline/relay/catalog"
)

// Config is what a Console is built from.
type Config struct {
	Store   *sqlstore.Store
	Log     usagelog.Reader
	Catalog *catalog.Catalog
	// Secret is SESSION_SECRET. Every node that has the same one honours the logins of the others.
	Secret string
	// Kick wakes the mover of the outbox, so that a change of quota need not wait for its next look. nil: none.
	Kick func()
	// TestChannel sends a small request to a channel and returns how long the answer took. The model is the channel's to choose if it is
	// empty. nil: channels cannot be tested.
	TestChannel func(ctx context.Context, channel int64, model string) (time.Duration, error)
	// ListModels asks an upstream which models it has. nil: models cannot be asked for.
	ListModels  func(ctx context.Context, channel *catalog.Channel, key string) ([]string, error)
	Logger      *slog.Logger
	Version     string
	Master      bool   // for the audit trail of the status only: every node serves every endpoint
	FrontendURL string // FRONTEND_BASE_URL: pages of that origin may write with cookies, too; "" = none
	// DefaultToken is GENERATE_DEFAULT_TOKEN: who registers starts with an API key.
	DefaultToken bool
	// SecureCookies is SESSION_COOKIE_SECURE: cookies only travel over TLS.
	SecureCookies bool
	// StatusExtra adds members to the data of /api/status, such as the state of the journal. nil: none.
	StatusExtra func() map[string]any
	// ClientIP finds a request's client address behind proxies. nil: the peer's address.
	ClientIP func(*http.Request) netip.Addr
	Now      func() time.Time // nil: time.Now
}

// Console is the management API of one node. It is safe for concurrent use.
type Console struct {
	cfg      Config
	log      *slog.Logger
	now      func() time.Time
	tickets  *tickets
	throttle *throttle
	origins  *http.CrossOriginProtection
	started  time.Time
	prices   priceList
	isSetUp  atomic.Bool
	patience time.Duration // appliedWithin; tests have less
}

// New builds a Console.
func New(cfg Config) (*Console, error) {
	if cfg.Secret == "" {
		return nil, errors.New("build console: no secret to sign logins with")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Kick == nil {
		cfg.Kick = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientIP == nil {
		cfg.ClientIP = peer
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	c := &Console{
		cfg: cfg, log: cfg.Logger, now: cfg.Now, tickets: newTickets(cfg.Secret), throttle: newThrottle(cfg.Now),
		origins: http.NewCrossOriginProtection(), started: cfg.Now(), patience: appliedWithin,
	}
	if origin := strings.TrimRight(cfg.FrontendURL, "/"); origin != "" {
		if err := c.origins.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("build console: FRONTEND_BASE_URL: %w", err)
		}
	}
	return c, nil
}

func peer(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
