package audit_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	_ "github.com/go-sql-driver/mysql" // registers the driver
	_ "modernc.org/sqlite"             // registers the driver

	"ledgerline/consumers"
	"ledgerline/consumers/audit"
	"ledgerline/consumers/quota"
	usagesink "ledgerline/consumers/usagelog"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

const partitions = 2

func testID(kind byte, n uint64) ledger.ID {
	var id ledger.ID
	id[0] = kind
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memoryLog is the log, in memory. What is below first has been deleted.
type memoryLog struct {
	mu      sync.Mutex
	records [partitions][]ledger.Record
	first   [partitions]int64
}

func (l *memoryLog) put(partition int, e ledger.Event) int64 {
	value, err := e.Encode(nil)
	if err != nil {
		panic(err)
	}
	return l.add(ledger.Record{Partition: partition, Value: value, Event: e})
}

func (l *memoryLog) add(r ledger.Record) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Offset = int64(len(l.records[r.Partition]))
	l.records[r.Partition] = append(l.records[r.Partition], r)
	return r.Offset
}

func (l *memoryLog) Bounds(_ context.Context, partition int) (first, end int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first[partition], int64(len(l.records[partition])), nil
}

func (l *memoryLog) slice(partition int, from, to int64) ([]ledger.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.first[partition] || to > int64(len(l.records[partition])) {
		return nil, eventlog.ErrOutOfRange
	}
	return l.records[partition][from:to:to], nil
}

func (l *memoryLog) Read(_ context.Context, partition int, from, to int64, fn func([]ledger.Record) error) error {
	if from >= to {
		return nil
	}
	records, err := l.slice(partition, from, to)
	if err != nil {
		return err
	}
	half := len(records) / 2
	if half > 0 {
		if err := fn(records[:half]); err != nil {
			return err
		}
	}
	return fn(records[half:])
}

func (l *memoryLog) ReadAt(_ context.Context, partition int, offset int64) (ledger.Record, error) {
	records, err := l.slice(partition, offset, offset+1)
	if err != nil {
		return ledger.Record{}, err
	}
	return records[0], nil
}

// world is a cluster: its stores, its two projections, and one node's incarnation that writes events.
type world struct {
	t     *testing.T
	db    *sqlstore.Store
	usage usagelog.Store
	hot   hold.Counters
	log   *memoryLog
	now   func() time.Time

	balances *quota.Sink
	rows     *usagesink.Sink
	usageSQL func(query string) // runs a statement on the log database

	mu   sync.Mutex // guards what follows
	node ledger.ID
	seq  uint64
	prev [partitions]uint64
	ids  uint64
}

// onEngines runs a test on what an embedded node has, and on what a cluster has.
func onEngines(t *testing.T, test func(w *world)) {
	t.Run("embedded", func(t *testing.T) { test(newWorld(t, time.Now)) })
	t.Run("cluster", func(t *testing.T) {
		dsn := ledgertest.ClickHouse(t)
		usage, err := usagelog.Open(t.Context(), usagelog.Config{DSN: dsn})
		must(t, err)
		counters, err := hold.NewRedis(hold.RedisConfig{URL: ledgertest.Redis(t)})
		must(t, err)
		t.Cleanup(func() { _ = counters.Close() })
		w := buildWorld(t, sqlstore.Config{DSN: ledgertest.MySQL(t)}, usage, counters, time.Now)
		w.usageSQL = func(query string) {
			options, err := clickhouse.ParseDSN(dsn)
			must(t, err)
			db := clickhouse.OpenDB(options)
			defer func() { _ = db.Close() }()
			_, err = db.ExecContext(t.Context(), query)
			must(t, err)
		}
		test(w)
	})
}

func newWorld(t *testing.T, now func() time.Time) *world {
	dir := t.TempDir()
	path := filepath.Join(dir, "usage.db")
	usage, err := usagelog.Open(t.Context(), usagelog.Config{SQLitePath: path, Now: now})
	must(t, err)
	w := buildWorld(t, sqlstore.Config{SQLitePath: filepath.Join(dir, "ledger.db"), Now: now}, usage, hold.NewLocal(), now)
	w.usageSQL = func(query string) {
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
		must(t, err)
		defer func() { _ = db.Close() }()
		_, err = db.ExecContext(t.Context(), query)
		must(t, err)
	}
	return w
}

func buildWorld(t *testing.T, cfg sqlstore.Config, usage usagelog.Store, counters hold.Counters, now func() time.Time) *world {
	db, err := sqlstore.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = db.Close(); _ = usage.Close() })
	must(t, db.Migrate(t.Context()))
	must(t, usage.Migrate(t.Context()))
	_, err = db.InitLog(t.Context(), sqlstore.LogInfo{Topic: "events", Partitions: partitions})
	must(t, err)
	w := &world{t: t, db: db, usage: usage, hot: counters, log: &memoryLog{}, now: now, node: testID('n', 1)}
	must(t, db.RegisterProducer(t.Context(), sqlstore.Producer{ID: w.node, Node: "node"}))
	w.consume()
	w.sql("INSERT INTO channels (id, `key`, name, used_quota) VALUES (3, 'sk', 'c', 70)") // New API's: it was used before
	for _, user := range w.users() {
		w.sql(fmt.Sprintf("INSERT INTO users (id, username, password, aff_code) VALUES (%d, 'u%d', 'x', 'u%d')", user, user, user))
		w.sql(fmt.Sprintf("INSERT INTO tokens (id, user_id, `key`, name) VALUES (%d, %d, 'k%d', 't')", user*10, user, user))
		must(t, db.Tx(t.Context(), func(tx *sqlstore.Tx) error {
			return errors.Join(tx.EnsureAccount(t.Context(), userAccount(user), user), tx.EnsureAccount(t.Context(), tokenAccount(user*10), user))
		}))
	}
	_, err = db.OpenAccounts(t.Context())
	must(t, err)
	return w
}

// consume starts both projections anew, as after a restart.
func (w *world) consume() {
	log := slog.New(slog.DiscardHandler)
	w.balances = quota.New(quota.Config{Store: w.db, Counters: w.hot, Log: w.log, Logger: log})
	w.rows = usagesink.New(usagesink.Config{Store: w.usage})
}

// users are two of each partition.
func (w *world) users() []int64 {
	var list []int64
	var found [partitions]int
	for id := int64(1); len(list) < 2*partitions; id++ {
		if p := ledger.Partition(id, partitions); found[p] < 2 {
			found[p]++
			list = append(list, id)
		}
	}
	return list
}

func userAccount(id int64) ledger.Account { return ledger.Account{Kind: ledger.UserAccount, ID: id} }

func tokenAccount(id int64) ledger.Account { return ledger.Account{Kind: ledger.TokenAccount, ID: id} }

var channelAccount = ledger.Account{Kind: ledger.ChannelAccount, ID: 3}

// send puts an event into the log, as the node's journal does, and returns its offset.
func (w *world) send(e ledger.Event) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := ledger.Partition(e.User, partitions)
	w.seq++
	w.ids++
	e.Version, e.Producer, e.Seq, e.Prev = ledger.EventVersion, w.node, w.seq, w.prev[p]
	w.prev[p] = w.seq
	if e.ID.IsZero() {
		e.ID = testID('e', w.ids)
	}
	if e.Time == 0 {
		e.Time = w.now().UnixMilli()
	}
	return w.log.put(p, e)
}

// again puts a record into the log once more, as it is.
func (w *world) again(partition int, offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	records, err := w.log.slice(partition, offset, offset+1)
	must(w.t, err)
	w.log.add(records[0])
}

func credit(user, amount int64) ledger.Event {
	return ledger.Event{Kind: ledger.KindCreditGranted, User: user, Granted: amount, Key: fmt.Sprintf("bonus:%d:%d", amount, user)}
}

func usageOf(user, charged int64) ledger.Event {
	return ledger.Event{Kind: ledger.KindUsageSettled, User: user, Token: user * 10, Channel: 3, Charged: charged, Requests: 1}
}

// traffic sends credits and some usage of everybody.
func (w *world) traffic(rounds int) {
	for _, user := range w.users() {
		w.send(credit(user, 1_000_000+int64(w.seq)))
		w.send(ledger.Event{Kind: ledger.KindTokenLimited, User: user, Token: user * 10, Granted: 500_000})
		for n := range rounds {
			w.send(usageOf(user, int64(10+n)))
		}
	}
}

// apply brings both projections to the end of the log.
func (w *world) apply() {
	w.t.Helper()
	for p := range partitions {
		must(w.t, applyAll(w.t.Context(), w.log, w.balances, p))
		must(w.t, applyAll(w.t.Context(), w.log, w.rows, p))
	}
}

func applyAll(ctx context.Context, log *memoryLog, sink consumers.Sink, p int) error {
	at, err := sink.Position(ctx, p)
	if err != nil {
		return err
	}
	_, end, _ := log.Bounds(ctx, p)
	if at.Offset == end {
		return nil
	}
	records, err := log.slice(p, at.Offset, end)
	if err != nil {
		return err
	}
	return sink.Apply(ctx, p, at.Offset, end, records)
}

// settle applies everything, opens the counters' epochs and loads every account.
func (w *world) settle() {
	w.t.Helper()
	w.apply()
	for p := range partitions {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(time.Minute); ; <-tick.C {
			must(w.t, w.balances.Look(w.t.Context(), p))
			must(w.t, w.report(w.t.Context(), p))
			st, err := w.hot.State(w.t.Context(), p)
			must(w.t, err)
			if st[0].Present && st[0].Open {
				break
			}
			if time.Now().After(deadline) {
				w.t.Fatalf("the epoch does not open: %+v", st)
			}
		}
		must(w.t, w.load(w.t.Context(), p))
	}
}

// report does what the node does in a rebuilding epoch: it has nothing to re-assert.
func (w *world) report(ctx context.Context, p int) error {
	st, err := w.hot.State(ctx, p)
	if err != nil || !st[0].Present || st[0].Open {
		return err
	}
	if _, err := w.hot.Reassert(ctx, p, st[0].Epoch, w.node, nil); err != nil {
		return err
	}
	return w.hot.Report(ctx, p, st[0].Epoch, w.node)
}

// load installs every account of a partition in the counters.
func (w *world) load(ctx context.Context, p int) error {
	var accounts []ledger.Account
	for _, user := range w.users() {
		if ledger.Partition(user, partitions) == p {
			accounts = append(accounts, userAccount(user), tokenAccount(user*10))
		}
	}
	offset, balances, err := w.db.Balances(ctx, p, accounts)
	if err != nil {
		return err
	}
	st, err := w.hot.State(ctx, p)
	if err != nil {
		return err
	}
	return w.hot.Load(ctx, ledger.LoadCall{Partition: p, Epoch: st[0].Epoch, Offset: offset, Balances: balances})
}

// sql runs a statement on the database, as somebody outside of Ledgerline would.
func (w *world) sql(query string) {
	w.t.Helper()
	must(w.t, w.db.Tx(w.t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.Exec(w.t.Context(), query); return err }))
}

func (w *world) stores() audit.Stores {
	return audit.Stores{DB: w.db, Log: w.log, Usage: w.usage, Counters: w.hot}
}

func (w *world) verify() *audit.Verdict {
	w.t.Helper()
	v, err := audit.Verify(w.t.Context(), w.stores(), 0)
	must(w.t, err)
	return v
}

// agrees asserts that verify finds nothing, having looked at everything.
func (w *world) agrees() *audit.Verdict {
	w.t.Helper()
	v := w.verify()
	if !v.OK() {
		w.t.Fatalf("verify: %+v", v)
	}
	if v.Accounts < 2*len(w.users()) || v.Hot < 2*len(w.users()) || v.Events == 0 {
		w.t.Fatalf("verify looked at too little: %+v", v)
	}
	return v
}

// offset returns the end of a user's partition.
func (w *world) end(user int64) int64 {
	_, end, _ := w.log.Bounds(w.t.Context(), ledger.Partition(user, partitions))
	return end
}
