package quota_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/consumers"
	"ledgerline/consumers/quota"
	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/sqlstore"
)

var (
	errCrash = errors.New("the process died here")
	errLost  = errors.New("the answer was lost")
)

// simConsumer is a process with the real sink in it, and does what the runner does. Between any two of its calls the rest of the world
// may go on, its process may die, or the answer may be lost.
type simConsumer struct {
	w      *sim
	name   string
	sink   *quota.Sink
	offset int64
	known  bool
	busy   bool // in the middle of a step
}

func newSimConsumer(w *sim, name string) *simConsumer {
	c := &simConsumer{w: w, name: name}
	c.start()
	return c
}

func (c *simConsumer) start() {
	c.known = false
	c.sink = quota.New(quota.Config{
		Store: &simStore{c.w.store, c}, Counters: &simCounters{c.w.hot, c}, Log: &simLog{c.w.log, c}, Logger: slog.New(slog.DiscardHandler),
	})
	c.sink.SetNow(c.w.clock.now)
}

func (c *simConsumer) crash() {
	c.w.tell("consumer %s crashes", c.name)
	c.w.counts.crashes++
	c.start()
}

func (c *simConsumer) step() {
	c.busy = true
	err := c.next()
	c.busy = false
	switch {
	case err == nil:
	case errors.Is(err, errCrash):
		c.crash()
	case errors.Is(err, consumers.ErrFenced):
		c.known = false
	case !errors.Is(err, errLost):
		c.w.t.Fatalf("seed %d: consumer %s: %v", c.w.seed, c.name, err)
	}
}

func (c *simConsumer) next() error {
	w := c.w
	if !c.known {
		at, err := c.sink.Position(w.ctx, 0)
		if err != nil {
			return err
		}
		c.offset, c.known = at.Offset, true
		return c.sink.Look(w.ctx, 0)
	}
	if end := w.log.end(); end > c.offset && w.chance(.6) {
		to := c.offset + 1 + w.rand.Int64N(end-c.offset)
		if err := c.sink.Apply(w.ctx, 0, c.offset, to, slices.Clone(w.log.records[c.offset:to])); err != nil {
			return err
		}
		c.offset = to
		if w.chance(.3) {
			return nil // the look comes later, or never
		}
	}
	if err := c.sink.Look(w.ctx, 0); err != nil {
		return err
	}
	if st, here := w.counters(); here && !st.Open && w.chance(.1) {
		return c.wait(pick(w.rand, []int{10, 35, 70}))
	}
	return nil
}

// wait looks for so many seconds, in which nobody else does anything but beat: somebody is waited for.
func (c *simConsumer) wait(seconds int) error {
	for range seconds {
		c.w.clock.pass(time.Second)
		if c.w.clock.at.Sub(c.w.lastBeat) > 3*time.Second {
			c.w.beat()
		}
		if err := c.sink.Look(c.w.ctx, 0); err != nil {
			return err
		}
		if st, here := c.w.counters(); !here || st.Open {
			return nil
		}
	}
	return nil
}

// before is called before each of the consumer's calls.
func (c *simConsumer) before() error {
	w := c.w
	if w.draining || w.depth >= 2 {
		return nil
	}
	if w.chance(.15) {
		w.depth++
		w.counts.between++
		names, weights := w.weights(24)
		for range w.rand.IntN(12) {
			w.step(w.choose(names, weights))
		}
		w.depth--
	}
	if w.chance(.01) {
		return errCrash
	}
	return nil
}

// after is called after each call that succeeded.
func (c *simConsumer) after(err error) error {
	if err == nil && !c.w.draining && c.w.chance(.01) {
		return errLost
	}
	return err
}

type simStore struct {
	*sqlstore.Store
	c *simConsumer
}

func (s *simStore) Partition(ctx context.Context, partition int) (sqlstore.PartitionState, error) {
	if err := s.c.before(); err != nil {
		return sqlstore.PartitionState{}, err
	}
	st, err := s.Store.Partition(ctx, partition)
	return st, s.c.after(err)
}

func (s *simStore) Flush(ctx context.Context, call sqlstore.FlushCall) (sqlstore.FlushResult, error) {
	if err := s.c.before(); err != nil {
		return sqlstore.FlushResult{}, err
	}
	r, err := s.Store.Flush(ctx, call)
	s.c.w.tell("%s flushes [%d,%d): skipped %v, %v", s.c.name, call.From, call.To, r.Skipped, err)
	return r, s.c.after(err)
}

func (s *simStore) AllocateEpoch(ctx context.Context, partition int, atLeast uint64) (ledger.BeginCall, error) {
	if err := s.c.before(); err != nil {
		return ledger.BeginCall{}, err
	}
	call, err := s.Store.AllocateEpoch(ctx, partition, atLeast)
	return call, s.c.after(err)
}

func (s *simStore) StoreEpoch(ctx context.Context, record ledger.EpochRecord) (bool, error) {
	if err := s.c.before(); err != nil {
		return false, err
	}
	stored, err := s.Store.StoreEpoch(ctx, record)
	if err == nil && stored && (record.Epoch > s.c.w.stored.Epoch || record.End >= s.c.w.stored.End) {
		s.c.w.stored = record
	}
	return stored, s.c.after(err)
}

func (s *simStore) Producers(ctx context.Context) ([]sqlstore.Producer, error) {
	if err := s.c.before(); err != nil {
		return nil, err
	}
	list, err := s.Store.Producers(ctx)
	return list, s.c.after(err)
}

type simCounters struct {
	*hold.Local
	c *simConsumer
}

func (s *simCounters) State(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	if err := s.c.before(); err != nil {
		return nil, err
	}
	st, err := s.Local.State(ctx, partitions...)
	return st, s.c.after(err)
}

func (s *simCounters) Begin(ctx context.Context, call ledger.BeginCall) (bool, error) {
	if err := s.c.before(); err != nil {
		return false, err
	}
	ok, err := s.Local.Begin(ctx, call)
	s.c.w.tell("%s begins epoch %d at %d, after %d: %v", s.c.name, call.Epoch, call.Offset, call.Opened, ok)
	if ok {
		s.c.w.counts.begun++
	}
	return ok, s.c.after(err)
}

func (s *simCounters) OpenEpoch(ctx context.Context, partition int, epoch uint64, floor int64) (bool, error) {
	if err := s.c.before(); err != nil {
		return false, err
	}
	ok, err := s.Local.OpenEpoch(ctx, partition, epoch, floor)
	s.c.w.tell("%s opens epoch %d at %d: %v", s.c.name, epoch, floor, ok)
	if ok {
		s.c.w.opened = append(s.c.w.opened, s.c.w.stored)
	}
	return ok, s.c.after(err)
}

func (s *simCounters) Apply(ctx context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error) {
	if err := s.c.before(); err != nil {
		return ledger.ApplyReply{}, err
	}
	reply, err := s.Local.Apply(ctx, call)
	s.c.w.tell("%s applies [%d,%d) of epoch %d: %+v", s.c.name, call.From, call.To, call.Epoch, reply)
	return reply, s.c.after(err)
}

type simLog struct {
	*memoryLog
	c *simConsumer
}

func (l *simLog) Bounds(ctx context.Context, partition int) (first, end int64, err error) {
	if err := l.c.before(); err != nil {
		return 0, 0, err
	}
	return l.memoryLog.Bounds(ctx, partition)
}

// poisonChannels begins the numbers of channels that a poison event names, each its own: the database refuses them until the event is
// re-driven.
const poisonChannels = 1000

const poisonTrigger = `CREATE TRIGGER poison BEFORE INSERT ON ledger_accounts
	WHEN NEW.kind = 'channel' AND NEW.id >= 1000 AND NOT EXISTS (
		SELECT 1 FROM ledger_dead_letters d WHERE d.state = 'redriven' AND CAST(d.value AS TEXT) LIKE '%"channel":' || NEW.id || ',%')
	BEGIN SELECT RAISE(ABORT, 'poison'); END`

// tables is the content of some tables of the database.
type tables map[string][][]any

// simTables is what a restore of the database takes back; registry and opened epochs are kept apart, as in the model.
var (
	simTables    = []string{"users", "tokens", "ledger_partitions", "ledger_accounts", "ledger_watermarks", "ledger_outbox", "ledger_dead_letters"}
	simAllTables = append([]string{"ledger_producers", "ledger_epochs"}, simTables...)
)

func dump(t testing.TB, store *sqlstore.Store, names []string) tables {
	t.Helper()
	out := tables{}
	must(t, store.View(t.Context(), func(tx *sqlstore.Tx) error {
		for _, name := range names {
			rows, err := tx.Query(t.Context(), "SELECT * FROM "+name)
			if err != nil {
				return err
			}
			columns, err := rows.Columns()
			if err != nil {
				return err
			}
			out[name] = [][]any{}
			for rows.Next() {
				row, to := make([]any, len(columns)), make([]any, len(columns))
				for i := range row {
					to[i] = &row[i]
				}
				if err := rows.Scan(to...); err != nil {
					return err
				}
				out[name] = append(out[name], row)
			}
			if err := rows.Err(); err != nil {
				return err
			}
		}
		return nil
	}))
	return out
}

// load makes the dumped tables what they were, and the database refuse poison.
func load(t testing.TB, store *sqlstore.Store, from tables) {
	t.Helper()
	exec := func(q string) {
		must(t, store.Tx(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.Exec(t.Context(), q); return err }))
	}
	exec("DROP TRIGGER IF EXISTS poison")
	restore(t, store, from)
	exec(poisonTrigger)
}

// restore makes the dumped tables what they were.
func restore(t testing.TB, store *sqlstore.Store, from tables) {
	t.Helper()
	must(t, store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
		for name, rows := range from {
			if _, err := tx.Exec(t.Context(), "DELETE FROM "+name); err != nil {
				return err
			}
			for _, row := range rows {
				marks := strings.TrimSuffix(strings.Repeat("?,", len(row)), ",")
				if _, err := tx.Exec(t.Context(), "INSERT INTO "+name+" VALUES ("+marks+")", row...); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		return nil
	}))
}
