package quota_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"ledgerline/consumers/quota"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/sqlstore"
)

// clock is what time the parts of a test think it is. It moves a little whenever it is asked, so that no two epochs are
// allocated in the same millisecond.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.UnixMilli(1_800_000_000_000)} }

func (c *clock) now() time.Time {
	c.at = c.at.Add(time.Millisecond)
	return c.at
}

func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

func testID(kind byte, n uint64) ledger.ID {
	var id ledger.ID
	id[0] = kind
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// memoryLog is a log of one partition, in memory: what a test writes is what the consumer reads, and it can be cut off or made anew.
type memoryLog struct {
	records []ledger.Record
	reads   int
	err     error // what its readers get, if not nil
}

// put appends an event as it is.
func (l *memoryLog) put(e ledger.Event) int64 {
	value, err := e.Encode(nil)
	if err != nil {
		panic(err)
	}
	l.records = append(l.records, ledger.Record{Offset: int64(len(l.records)), Value: value, Event: e})
	return int64(len(l.records)) - 1
}

// damage appends a record that cannot be decoded.
func (l *memoryLog) damage() {
	l.records = append(l.records, ledger.Record{Offset: l.end(), Value: []byte("{"), Err: fmt.Errorf("no event")})
}

func (l *memoryLog) end() int64 { return int64(len(l.records)) }

func (l *memoryLog) Bounds(context.Context, int) (first, end int64, err error) {
	return 0, l.end(), l.err
}

func (l *memoryLog) Read(_ context.Context, _ int, from, to int64, fn func([]ledger.Record) error) error {
	l.reads++
	if l.err != nil || from >= to {
		return l.err
	}
	half := from + (to-from)/2
	if half > from {
		if err := fn(l.records[from:half]); err != nil {
			return err
		}
	}
	return fn(l.records[half:to])
}

// producer writes events of one incarnation.
type producer struct {
	id  ledger.ID
	seq uint64
	log *memoryLog
}

// event completes an event with an identity.
func (p *producer) event(e ledger.Event) ledger.Event {
	e.Version, e.Producer, e.Prev, e.Seq = ledger.EventVersion, p.id, p.seq, p.seq+1
	p.seq++
	if e.ID.IsZero() {
		e.ID = testID('e', uint64(p.id[15])<<32|p.seq)
	}
	e.Time = 1_800_000_000_000 + int64(p.seq)
	return e
}

func (p *producer) put(e ledger.Event) int64 { return p.log.put(p.event(e)) }

func usage(user, token, charged int64, hold *ledger.HoldRef) ledger.Event {
	return ledger.Event{Kind: ledger.KindUsageSettled, User: user, Token: token, Charged: charged, Requests: 1, Hold: hold}
}

func credit(user, amount int64) ledger.Event {
	return ledger.Event{Kind: ledger.KindCreditGranted, User: user, Granted: amount}
}

func limit(user, token, amount int64) ledger.Event {
	return ledger.Event{Kind: ledger.KindTokenLimited, User: user, Token: token, Granted: amount}
}

// openStore opens a migrated database for a log of one partition: SQLite, or MySQL if a DSN is given.
func openStore(t testing.TB, dsn string, now func() time.Time) *sqlstore.Store {
	t.Helper()
	store, err := sqlstore.Open(t.Context(), sqlstore.Config{DSN: dsn, SQLitePath: filepath.Join(t.TempDir(), "ledger.db"), Now: now})
	must(t, err)
	t.Cleanup(func() { _ = store.Close() })
	must(t, store.Migrate(t.Context()))
	_, err = store.InitLog(t.Context(), sqlstore.LogInfo{Topic: "events", Partitions: 1})
	must(t, err)
	return store
}

// addUser makes a user and its tokens, with nothing on them.
func addUser(t testing.TB, store *sqlstore.Store, user int64, tokens ...int64) {
	t.Helper()
	must(t, store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
		name := fmt.Sprintf("user%d", user)
		if _, err := tx.Exec(t.Context(), "INSERT INTO users (id, username, password, aff_code) VALUES (?, ?, 'x', ?)", user, name, name); err != nil {
			return err
		}
		if err := tx.EnsureAccount(t.Context(), ledger.Account{Kind: ledger.UserAccount, ID: user}, user); err != nil {
			return err
		}
		for _, token := range tokens {
			_, err := tx.Exec(t.Context(), "INSERT INTO tokens (id, user_id, `key`, name) VALUES (?, ?, ?, 'n')", token, user, fmt.Sprintf("key%d", token))
			if err != nil {
				return err
			}
			if err := tx.EnsureAccount(t.Context(), ledger.Account{Kind: ledger.TokenAccount, ID: token}, user); err != nil {
				return err
			}
		}
		return nil
	}))
}

// rig is one consumer with everything around it. Its partition is 0 of 1.
type rig struct {
	t        *testing.T
	clock    *clock
	store    *sqlstore.Store
	counters hold.Counters
	log      *memoryLog
	sink     *quota.Sink
	lose     func() // makes the counters lose everything
	restart  func() // makes another server of the counters, with the same contents
	notes    *strings.Builder
}

var (
	theUser  = ledger.Account{Kind: ledger.UserAccount, ID: 1}
	theToken = ledger.Account{Kind: ledger.TokenAccount, ID: 1}
)

// onEngines runs a test on SQLite with the counters in the process, and on MySQL with Redis.
func onEngines(t *testing.T, test func(r *rig)) {
	t.Run("sqlite, in-process", func(t *testing.T) {
		counters := hold.NewLocal()
		test(newRig(t, "", counters, counters.Flush, func() { counters.Promote(counters.Save()) }))
	})
	t.Run("mysql, redis", func(t *testing.T) {
		server := ledgertest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
		counters, err := hold.NewRedis(hold.RedisConfig{URL: server.RedisURL()})
		must(t, err)
		t.Cleanup(func() { _ = counters.Close() })
		test(newRig(t, ledgertest.MySQL(t), counters, func() { flushAll(t, server.RedisURL()) }, server.Restart))
	})
}

func newRig(t *testing.T, dsn string, counters hold.Counters, lose, restart func()) *rig {
	r := &rig{t: t, clock: newClock(), counters: counters, log: &memoryLog{}, lose: lose, restart: restart, notes: &strings.Builder{}}
	r.store = openStore(t, dsn, r.clock.now)
	addUser(t, r.store, 1, 1, 2)
	r.sink = r.newSink()
	return r
}

// newSink returns another consumer of the same partition.
func (r *rig) newSink() *quota.Sink {
	sink := quota.New(quota.Config{Store: r.store, Counters: r.counters, Log: r.log, Logger: testLogger(r.notes)})
	sink.SetNow(r.clock.now)
	return sink
}

func testLogger(to *strings.Builder) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

func (r *rig) node(n uint64) *producer {
	p := &producer{id: testID('n', n), log: r.log}
	must(r.t, r.store.RegisterProducer(r.t.Context(), sqlstore.Producer{ID: p.id, Node: fmt.Sprint("node", n)}))
	return p
}

func (r *rig) look(sink *quota.Sink) {
	r.t.Helper()
	must(r.t, sink.Look(r.t.Context(), 0))
}

// flush applies what is in the log below to, as the runner does, without the look after it.
func (r *rig) flush(sink *quota.Sink, to int64) {
	r.t.Helper()
	at, err := sink.Position(r.t.Context(), 0)
	must(r.t, err)
	must(r.t, sink.Apply(r.t.Context(), 0, at.Offset, to, r.log.records[at.Offset:to]))
}

func (r *rig) state() ledger.Counters {
	r.t.Helper()
	states, err := r.counters.State(r.t.Context(), 0)
	must(r.t, err)
	return states[0]
}

// openEpoch brings the consumer to an open epoch to which the nodes report.
func (r *rig) openEpoch(nodes ...*producer) uint64 {
	r.t.Helper()
	_, err := r.sink.Position(r.t.Context(), 0)
	must(r.t, err)
	before := r.state().Epoch
	r.look(r.sink)
	epoch := r.state().Epoch
	if epoch <= before {
		r.t.Fatalf("no new epoch began: %+v\n%s", r.state(), r.notes)
	}
	r.report(nodes...)
	r.look(r.sink)
	if !r.state().Open {
		r.t.Fatalf("the epoch did not open: %+v\n%s", r.state(), r.notes)
	}
	return epoch
}

func (r *rig) report(nodes ...*producer) {
	r.t.Helper()
	for _, n := range nodes {
		_, err := r.counters.Reassert(r.t.Context(), 0, r.state().Epoch, n.id, nil)
		must(r.t, err)
		must(r.t, r.counters.Report(r.t.Context(), 0, r.state().Epoch, n.id))
	}
}

// load installs accounts as a node does whose reserve was answered with NeedLoad.
func (r *rig) load(accounts ...ledger.Account) {
	r.t.Helper()
	offset, balances, err := r.store.Balances(r.t.Context(), 0, accounts)
	must(r.t, err)
	must(r.t, r.counters.Load(r.t.Context(), ledger.LoadCall{Epoch: r.state().Epoch, Offset: offset, Balances: balances}))
}

func (r *rig) hot(a ledger.Account) ledger.HotAccount {
	r.t.Helper()
	list, err := r.counters.Accounts(r.t.Context(), 0, []ledger.Account{a})
	must(r.t, err)
	return list[0]
}

// inStep asserts that database and counters hold what the log says, as far as the accounts are loaded.
func (r *rig) inStep(dead func(int, int64) ledger.DeadState, accounts ...ledger.Account) {
	r.t.Helper()
	fold := ledger.NewFold(dead)
	for i := range r.log.records {
		fold.Apply(&r.log.records[i])
	}
	offset, balances, err := r.store.Balances(r.t.Context(), 0, accounts)
	must(r.t, err)
	if offset != r.log.end() || r.state().Done != offset {
		r.t.Errorf("the database is at %d, the counters at %d, the log ends at %d", offset, r.state().Done, r.log.end())
	}
	for _, a := range accounts {
		want, hot := fold.Balance(a), r.hot(a)
		if balances[a] != want {
			r.t.Errorf("%s: the database has %+v, the log says %+v", a, balances[a], want)
		}
		if !hot.Loaded || hot.Granted != want.Granted || hot.Charged != want.Charged {
			r.t.Errorf("%s: the counters have %+v, the log says %+v", a, hot, want)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func flushAll(t testing.TB, url string) {
	t.Helper()
	options, err := redis.ParseURL(url)
	must(t, err)
	client := redis.NewClient(options)
	defer func() { _ = client.Close() }()
	must(t, client.FlushAll(t.Context()).Err())
}
