package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"ledgerline/consumers"
	"ledgerline/consumers/quota"
	usagesink "ledgerline/consumers/usagelog"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
	"ledgerline/relay"
	"ledgerline/relay/catalog"
	"ledgerline/relay/console"
	"ledgerline/relay/desk"
	"ledgerline/relay/upstream"
)

// node is one process, built by hand from top to bottom:
//
//	config ─► database ─► event log ─► hot counters ─► usage log        (openStores)
//	             │             │             │             │
//	             ▼             └──────┬──────┴─────────────┘
//	          catalog ─► desk (journal, shipper) ─► relay, console ─► HTTP
//	                                  │
//	                     quota consumer, usage-log consumer
type node struct {
	cfg  *config
	role role
	log  *slog.Logger
	reg  *prometheus.Registry

	stores
	catalog  *catalog.Catalog
	upstream *upstream.Client
	desk     *desk.Desk
	relay    *relay.Server
	console  *console.Console
	quotas   *consumers.Runner
	usages   *consumers.Runner
	started  time.Time
	files    fileShares

	rootPassword string // of a root user that this start made
}

// stores are the four places that hold state. They are opened in this order and closed in the reverse one.
type stores struct {
	db       *sqlstore.Store
	broker   *eventlog.Embedded // nil in a cluster
	events   *eventlog.Client
	counters counters
	usage    usagelog.Store
	lock     *sqlstore.Lock // held by a node that must be alone
	log      sqlstore.LogInfo

	usageKept time.Duration // how long rows of the usage log live; 0: for ever
}

// counters is what a node needs of the hot counters; *hold.Redis and *hold.Local are all of it.
type counters interface {
	desk.Counters
	quota.Counters
	catalog.News
	Accounts(ctx context.Context, partition int, accounts []ledger.Account) ([]ledger.HotAccount, error)
	All(ctx context.Context, partition int, account func(ledger.HotAccount) error, open func(ledger.OpenHold) error) error
}

// newNode opens the stores and builds everything that runs on them. The caller closes it.
func newNode(ctx context.Context, cfg *config, r role, log *slog.Logger) (*node, error) {
	limit := openFiles()
	n := &node{cfg: cfg, role: r, log: log, reg: prometheus.NewRegistry(), started: time.Now(), files: shareFiles(limit)}
	if r.relays && limit < fewFiles {
		log.Warn("few files may be open at once, and connections are files: raise the limit (ulimit -n, LimitNOFILE)", "limit", limit,
			"client_connections", n.files.clients, "open_requests", n.files.requests)
	}
	n.files.fit(cfg)
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := makeFolders(cfg); err != nil {
		return nil, err
	}
	var err error
	if n.stores, err = openStores(ctx, cfg, log); err != nil {
		return nil, err
	}
	if err := n.build(ctx); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// makeFolders makes the folders that the node writes to.
func makeFolders(cfg *config) error {
	if cfg.keepsFiles() {
		if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
			return fmt.Errorf("make data folder (DATA_DIR=%s): %w", cfg.DataDir, err)
		}
	}
	if cfg.diskless() {
		return nil
	}
	if err := os.MkdirAll(cfg.JournalDir, 0o700); err != nil {
		return fmt.Errorf("make journal folder (JOURNAL_DIR=%s): %w", cfg.JournalDir, err)
	}
	return nil
}

func (n *node) build(ctx context.Context) error {
	if n.cfg.master() {
		if err := n.firstStart(ctx); err != nil {
			return err
		}
	}
	return n.buildRole(ctx)
}

// answerSpacing is the time between two departures to the log where the ends of answers wait for them.
const answerSpacing = 5 * time.Millisecond

// buildRelay builds the data plane and the management API.
func (n *node) buildRelay(ctx context.Context) error {
	n.catalog = catalog.New(n.db, time.Duration(n.cfg.SyncFrequency)*time.Second, n.log)
	if err := n.catalog.Load(ctx); err != nil {
		return err
	}
	n.sayUnserved(ctx)
	shipping := eventlog.ShipperConfig{Registerer: n.reg, Logger: n.log}
	if n.cfg.diskless() {
		shipping.Spacing = answerSpacing
	}
	shipper := eventlog.NewShipper(n.events, shipping)
	var err error
	n.desk, err = desk.New(ctx, desk.Config{
		Node: n.cfg.NodeName, Partitions: n.stores.log.Partitions, Journal: n.journalConfig(), Diskless: n.cfg.diskless(),
		Counters: n.counters, Bank: bank{n.db, n.cfg.diskless()}, Outbox: outbox{n.db}, Logger: n.log, Metrics: n.reg,
		Ship:     func(ctx context.Context, j *journal.Journal) error { return shipper.Ship(ctx, j) },
		HoldEnds: n.holdEnds, MaxOpen: n.files.requests,
		Probe: func(ctx context.Context, partition int) error {
			_, _, err := n.events.Bounds(ctx, partition)
			return err
		},
	})
	if err != nil {
		return err
	}
	n.upstream = upstream.New(n.upstreamConfig())
	n.relay = relay.New(n.relayConfig())
	return n.buildConsole()
}

// holdEnds implements desk.HoldEnds. A hold ends after the last epoch opened that is older than its own: there it was not known yet, or
// it was open.
func (n *node) holdEnds(ctx context.Context, partition int, oldest uint64, holds map[ledger.ID]bool) ([]ledger.ReleaseCall, error) {
	epochs, err := n.db.Epochs(ctx, partition)
	if err != nil {
		return nil, err
	}
	from := int64(0)
	for i := range epochs {
		if epochs[i].Epoch < oldest {
			from = max(from, epochs[i].End)
		}
	}
	return n.events.HoldEnds(ctx, partition, from, holds)
}

// parts are what answers HTTP beside probes and metrics.
func (n *node) parts() []relay.Routes {
	if !n.role.relays {
		return nil
	}
	return []relay.Routes{n.relay, n.console}
}

// journalSegment is the size of a journal's files: a whole one is read at once by recovery.
const journalSegment = 16 << 20

func (n *node) journalConfig() journal.Config {
	return journal.Config{
		Root: n.cfg.JournalDir, Partitions: n.stores.log.Partitions, MaxBytes: n.cfg.JournalMaxMB << 20,
		SegmentBytes: min(journalSegment, n.cfg.JournalMaxMB<<20/4), // the least number of segments that a journal has
		Slots:        desk.MaxOpen, Keep: n.cfg.JournalKeep, Logger: n.log,
	}
}

func seconds(s int) time.Duration { return time.Duration(s) * time.Second }

func (n *node) upstreamConfig() upstream.Config {
	return upstream.Config{
		FirstByteTimeout: seconds(n.cfg.RelayTimeout), IdleConnTimeout: seconds(n.cfg.RelayIdleTimeout),
		MaxIdle: n.cfg.RelayMaxIdle, MaxIdlePerHost: n.cfg.RelayMaxIdleHost, SkipVerify: n.cfg.SkipVerify,
	}
}

func (n *node) relayConfig() relay.Config {
	return relay.Config{
		Catalog: n.catalog, Desk: n.desk, Upstream: n.upstream, Logger: n.log, Metrics: n.reg, Node: n.cfg.NodeName, Version: version,
		MaxBody: n.cfg.MaxBodyMB << 20, MaxBodies: n.cfg.MaxBodiesMB << 20, MaxEvent: n.cfg.MaxEventMB << 20, StreamingTimeout: seconds(n.cfg.StreamingTimeout),
		RelayTimeout: seconds(n.cfg.RelayTimeout), OutputSlice: n.cfg.OutputSlice, ForceUsage: n.cfg.ForceUsage,
		TrustedProxies: n.cfg.trusted, ChannelFailed: n.channelFailed,
	}
}

func (n *node) buildConsole() error {
	secret, err := n.sessionSecret()
	if err != nil {
		return err
	}
	n.console, err = console.New(console.Config{
		Store: n.db, Log: n.usage, Catalog: n.catalog, Secret: secret, Kick: n.moveNow,
		TestChannel: console.NewChannelTester(n.catalog, n.upstream), ListModels: console.NewModelLister(n.upstream), Logger: n.log, Version: version,
		Master: n.cfg.master(), FrontendURL: n.cfg.FrontendURL, SecureCookies: n.cfg.CookieSecure, DefaultToken: n.cfg.DefaultToken, StatusExtra: n.statusExtra,
		ClientIP: func(r *http.Request) netip.Addr { return relay.ClientIP(r, n.cfg.trusted) },
	})
	if err != nil {
		return fmt.Errorf("build management API: %w", err)
	}
	return nil
}

// sessionSecret is SESSION_SECRET, or a random one that every login ends with at the next start.
func (n *node) sessionSecret() (string, error) {
	if n.cfg.SessionSecret != "" {
		return n.cfg.SessionSecret, nil
	}
	level := slog.LevelInfo
	if n.cfg.RedisURL != "" {
		level = slog.LevelWarn // it may have neighbours
	}
	n.log.Log(context.Background(), level, "SESSION_SECRET is not set: logins end when this process does, and are not valid on other nodes")
	return console.RandomPassword()
}

// statusExtra is what /api/status says beside New API's keys.
func (n *node) statusExtra() map[string]any {
	return map[string]any{"ledgerline": map[string]any{"ready": len(n.problems()) == 0, "problems": n.problems(), "mode": n.mode()}}
}

// buildConsumers builds the two projections. Credits and limit changes do not wait for the interval: a top-up works within
// 100 ms.
func (n *node) buildConsumers() error {
	urgent := func(r *ledger.Record) bool {
		return r.Err == nil && !r.Event.Kind.IsUsage() && r.Event.Kind != ledger.KindUsageAdjusted
	}
	var err error
	n.quotas, err = consumers.NewRunner(n.events, quota.New(quota.Config{
		Store: n.db, Counters: n.counters, Log: n.events, Logger: n.log, Metrics: n.reg,
	}), consumers.Config{
		Name: "quota", Group: n.cfg.KafkaTopic + "-quota", Partitions: n.stores.log.Partitions,
		Interval: n.cfg.flushInterval(), Urgent: urgent, Logger: n.log, Registerer: n.reg,
	})
	if err != nil {
		return fmt.Errorf("build quota consumer: %w", err)
	}
	tuned, gather := usagesink.ForSQL, time.Duration(0)
	if _, big := n.usage.(*usagelog.ClickHouse); big {
		tuned, gather = usagesink.ForClickHouse, usagesink.GatherClickHouse
	}
	tuned.Name, tuned.Group, tuned.Partitions = "usagelog", n.cfg.KafkaTopic+"-usagelog", n.stores.log.Partitions
	tuned.Logger, tuned.Registerer = n.log, n.reg
	n.usages, err = consumers.NewRunner(n.events, usagesink.New(usagesink.Config{Store: n.usage, Gather: gather}), tuned)
	if err != nil {
		return fmt.Errorf("build usage-log consumer: %w", err)
	}
	return nil
}

// run runs the node until ctx ends, then stops in the reverse order of the data flow: HTTP first, then the desk, which
// settles and ships, then the consumers.
func (n *node) run(ctx context.Context, serveHTTP func(ctx context.Context) error) error {
	consume, stopConsumers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopConsumers()
	var background errgroup.Group
	background.Go(func() error { keepHeap(consume); return nil })
	if n.role.consumes {
		background.Go(func() error { return n.quotas.Run(consume) })
		background.Go(func() error { return n.usages.Run(consume) })
		background.Go(func() error { return n.hurryForCredits(consume) })
	}
	if n.cfg.master() {
		background.Go(func() error { return n.masterDuties(consume) })
	}
	deskCtx, stopDesk := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDesk()
	drain := seconds(n.cfg.ShutdownTimeout)
	deskDone := make(chan error, 1)
	if n.role.relays {
		background.Go(func() error { return n.catalog.Run(consume) })
		background.Go(func() error { return n.catalog.Follow(consume, n.counters) })
		background.Go(func() error { return n.sweepJournals(consume) })
		go func() { deskDone <- n.desk.Run(deskCtx, drain) }()
	} else {
		deskDone <- nil
	}

	stopControl, err := n.startControl(ctx)
	if err == nil {
		n.awaitEpochs(ctx)
		err = serveHTTP(ctx)
		stopControl()
	}
	stopDesk()
	err = errors.Join(err, <-deskDone)
	if n.cfg.embedded() {
		n.drainConsumers(drain)
	}
	stopConsumers()
	return errors.Join(err, background.Wait())
}

// firstLook bounds the wait for the counters at a start. If they are away for longer, requests are told so.
const firstLook = 5 * time.Second

// awaitEpochs lets a node that has just started know the epochs before it takes its first request, which would be refused: a
// load balancer sends some as soon as the port takes connections.
func (n *node) awaitEpochs(ctx context.Context) {
	if n.desk == nil {
		return
	}
	timer := time.NewTimer(firstLook)
	defer timer.Stop()
	select {
	case <-n.desk.Looked():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// drainConsumers waits until the projections have all that is in the log, so that an embedded node stops with nothing
// left to do.
func (n *node) drainConsumers(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		lag, err := n.lag(ctx)
		if err == nil && lag == 0 || ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// lag is how many records the slower projection is behind the log, over all partitions.
func (n *node) lag(ctx context.Context) (int64, error) {
	var total int64
	for p := range n.stores.log.Partitions {
		_, end, err := n.events.Bounds(ctx, p)
		if err != nil {
			return 0, fmt.Errorf("read the end of the log: %w", err)
		}
		st, err := n.db.Partition(ctx, p)
		if err != nil {
			return 0, fmt.Errorf("read quota position: %w", err)
		}
		pos, err := n.usage.Position(ctx, p)
		if err != nil {
			return 0, fmt.Errorf("read usage-log position: %w", err)
		}
		total += max(0, end-min(st.Offset, pos.Offset))
	}
	return total, nil
}

func (n *node) close() {
	n.stores.close(n.log)
}

// bank and outbox fit the database to what the desk asks for.
type bank struct {
	*sqlstore.Store
	diskless bool
}

// RegisterProducer implements desk.Bank.
func (b bank) RegisterProducer(ctx context.Context, id ledger.ID, node string) error {
	return b.Store.RegisterProducer(ctx, sqlstore.Producer{ID: id, Node: node, Version: version, Diskless: b.diskless})
}

// Heartbeat implements desk.Bank.
func (b bank) Heartbeat(ctx context.Context, ids []ledger.ID) ([]ledger.ID, error) {
	return b.Store.Heartbeat(ctx, ids...)
}

type outbox struct{ db *sqlstore.Store }

// PendingOutbox implements desk.Outbox.
func (o outbox) PendingOutbox(ctx context.Context, limit int) ([]desk.OutboxRow, error) {
	rows, err := o.db.OutboxPending(ctx, limit)
	if err != nil {
		return nil, err
	}
	out := make([]desk.OutboxRow, len(rows))
	for i := range rows {
		out[i] = desk.OutboxRow{Key: rows[i].Key, Event: rows[i].Event}
	}
	return out, nil
}

// MovedOutbox implements desk.Outbox.
func (o outbox) MovedOutbox(ctx context.Context, keys []string) error {
	return o.db.OutboxMoved(ctx, keys...)
}

var (
	_ counters = (*hold.Redis)(nil)
	_ counters = (*hold.Local)(nil)
)

func dataPath(cfg *config, name string) string { return filepath.Join(cfg.DataDir, name) }
