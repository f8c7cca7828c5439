package sqlstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

var (
	histories = flag.Int("histories", 40, "random histories of hand edits on SQLite; a tenth of them on MySQL")
	firstSeed = flag.Uint64("seed", 1, "seed of the first random history")
)

// TestHandEditsRandomHistories runs what model/edits.py runs, against the real store: outbox, movers that are killed or
// lose their disk, hand edits, openings, redemptions, poison and its re-drive, replays, and a database that loses its last
// transactions. The oracle is ledger.Fold over the log.
func TestHandEditsRandomHistories(t *testing.T) {
	run := func(t *testing.T, s *Store, n int) {
		for i := range n {
			seed := *firstSeed + uint64(i)
			if err := newEditWorld(t, s, seed).run(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		s := initialised(t, openSQLite(t))
		exec(t, s, "PRAGMA synchronous = OFF")
		run(t, s, *histories)
	})
	t.Run("mysql", func(t *testing.T) {
		s := initialised(t, openMySQL(t, ledgertest.MySQL(t)))
		run(t, s, max(1, *histories/10))
	})
}

// editMover is a node's outbox mover with its journal.
type editMover struct {
	producer ledger.ID
	seq      uint64
	prev     map[int]uint64
	journal  []ledger.Event
	unmarked []string
}

type editWorld struct {
	t      *testing.T
	s      *Store
	rand   *rand.Rand
	clock  time.Time
	nextID uint64
	users  []int64
	logs   map[int]*logOf
	movers []*editMover
	spent  ledger.ID                // producer of usage
	edits  map[ledger.Account]int64 // that the database still has
	past   []editPast
}

type editPast struct {
	tables dump
	edits  map[ledger.Account]int64
}

const (
	editOpening, editUsed = 100, 40
	poisonChannel         = 13
)

func newEditWorld(t *testing.T, s *Store, seed uint64) *editWorld {
	w := &editWorld{
		t: t, s: s, rand: rand.New(rand.NewPCG(seed, 7)), clock: time.UnixMilli(1_800_000_000_000),
		users: []int64{userIn(0, 0), userIn(3, 0)}, logs: map[int]*logOf{}, edits: map[ledger.Account]int64{},
	}
	s.now = func() time.Time { return w.clock }
	emptied(t, s)
	for _, u := range w.users {
		exec(t, s, "INSERT INTO users (id, username, password, aff_code, quota, used_quota, request_count) VALUES (?, ?, 'x', ?, ?, ?, 4)", u, ledgerName(u), ledgerName(u), editOpening, editUsed)
		exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota, used_quota) VALUES (?, ?, ?, ?, ?)", 1000+u, u, ledgerName(u), editOpening, editUsed)
		p := ledger.Partition(u, testPartitions)
		w.logs[p] = newLog(p)
	}
	for code := range 8 {
		exec(t, s, "INSERT INTO redemptions (`key`, status, quota) VALUES (?, 1, 20)", "code"+strconv.Itoa(code))
	}
	channel(t, s, poisonChannel)
	channel(t, s, 1)
	poison(t, s, true)
	w.spent = w.id()
	w.movers = []*editMover{w.newMover(), w.newMover()}
	return w
}

// poison makes every flush that touches the poison channel fail, or stops that.
func poison(t *testing.T, s *Store, on bool) {
	exec(t, s, "DROP TRIGGER IF EXISTS poison")
	switch {
	case on && s.mysql:
		exec(t, s, "CREATE TRIGGER poison BEFORE UPDATE ON channels FOR EACH ROW BEGIN IF NEW.id = 13 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'poison'; END IF; END")
	case on:
		exec(t, s, "CREATE TRIGGER poison BEFORE UPDATE ON channels WHEN NEW.id = 13 BEGIN SELECT RAISE(ABORT, 'poison'); END")
	}
}

func (w *editWorld) id() ledger.ID { w.nextID++; return id(1<<40 | w.nextID) }

func (w *editWorld) newMover() *editMover {
	return &editMover{producer: w.id(), prev: map[int]uint64{}}
}

func (w *editWorld) anyAccount() (ledger.Account, int64) {
	u := w.users[w.rand.IntN(len(w.users))]
	if w.rand.IntN(3) == 0 {
		return ledger.Account{Kind: ledger.TokenAccount, ID: 1000 + u}, u
	}
	return ledger.Account{Kind: ledger.UserAccount, ID: u}, u
}

func (w *editWorld) column(a ledger.Account) (table, column string) {
	table, column, _ = strings.Cut(quotaColumn[a.Kind], ".")
	return table, column
}

// edit is somebody's UPDATE.
func (w *editWorld) edit() {
	a, _ := w.anyAccount()
	table, column := w.column(a)
	have := number(w.t, w.s, "SELECT "+column+" FROM "+table+" WHERE id = ?", a.ID)
	to := have + []int64{-7, 5, 10}[w.rand.IntN(3)]
	if w.rand.IntN(3) == 0 {
		to = []int64{0, 50, 300}[w.rand.IntN(3)]
	}
	exec(w.t, w.s, "UPDATE "+table+" SET "+column+" = ? WHERE id = ?", to, a.ID)
	w.edits[a] += to - have
}

func (w *editWorld) redeem() error {
	code, user := "code"+strconv.Itoa(w.rand.IntN(8)), w.users[w.rand.IntN(2)]
	err := w.s.Tx(context.Background(), func(tx *Tx) error {
		ctx := context.Background()
		n, err := tx.affected(ctx, "UPDATE redemptions SET status = 3, used_user_id = ? WHERE `key` = ? AND status = 1", user, code)
		if err != nil || n == 0 {
			return err
		}
		_, err = tx.Outbox(ctx, ledger.Event{Kind: ledger.KindCreditGranted, User: user, Granted: 20}, "redeem:"+code+":"+strconv.FormatInt(user, 10))
		return err
	})
	if errors.Is(err, ErrExists) {
		return nil
	}
	return err
}

func (w *editWorld) usage() {
	u := w.users[w.rand.IntN(2)]
	e := usage(u, 1000+u, 1, w.rand.Int64N(3)+1)
	if w.rand.IntN(5) == 0 {
		e.Channel = poisonChannel
	}
	e.ID = w.id()
	w.logs[ledger.Partition(u, testPartitions)].add(w.spent, e)
}

func (w *editWorld) move() error {
	m := w.movers[w.rand.IntN(2)]
	ctx := context.Background()
	if len(m.unmarked) > 0 {
		defer func() { m.unmarked = nil }()
		return w.s.OutboxMoved(ctx, m.unmarked...)
	}
	rows, err := w.s.OutboxPending(ctx, 1+w.rand.IntN(3))
	if err != nil {
		return err
	}
	for _, r := range rows {
		m.seq++
		p := ledger.Partition(r.Event.User, testPartitions)
		r.Event.Producer, r.Event.Seq, r.Event.Prev = m.producer, m.seq, m.prev[p]
		m.prev[p] = m.seq
		m.journal = append(m.journal, r.Event)
		m.unmarked = append(m.unmarked, r.Key)
	}
	return nil
}

func (w *editWorld) ship() {
	m := w.movers[w.rand.IntN(2)]
	if len(m.journal) == 0 {
		return
	}
	e := m.journal[0]
	w.logs[ledger.Partition(e.User, testPartitions)].put(e)
	if w.rand.Float64() < .85 {
		m.journal = m.journal[1:]
	}
}

func (w *editWorld) kill(diskLost bool) {
	i := w.rand.IntN(2)
	old := w.movers[i]
	w.movers[i] = w.newMover()
	if !diskLost {
		w.movers[i].journal = old.journal
	}
}

func (w *editWorld) flush() error {
	l := w.logs[ledger.Partition(w.users[w.rand.IntN(2)], testPartitions)]
	state, err := w.s.Partition(context.Background(), l.partition)
	if err != nil {
		return err
	}
	to := state.Offset + w.rand.Int64N(l.end()-state.Offset+1)
	_, err = w.s.Flush(context.Background(), l.call(state.Offset, to))
	return err
}

// fold folds a partition's log up to an offset.
func (w *editWorld) fold(l *logOf, to int64) (*ledger.Fold, []ledger.Event, error) {
	dead, err := w.s.DeadIndex(context.Background())
	if err != nil {
		return nil, nil, err
	}
	f := ledger.NewFold(dead)
	var counted []ledger.Event
	for i := range l.records[:to] {
		if f.Apply(&l.records[i]) {
			counted = append(counted, l.records[i].Event)
		}
	}
	return f, counted, nil
}

func (w *editWorld) replay() error {
	l := w.logs[ledger.Partition(w.users[w.rand.IntN(2)], testPartitions)]
	state, err := w.s.Partition(context.Background(), l.partition)
	if err != nil {
		return err
	}
	f, _, err := w.fold(l, state.Offset)
	if err != nil {
		return err
	}
	_, err = w.s.ReplayPartition(context.Background(), ReplayCall{Partition: l.partition, Offset: state.Offset, Balances: f.Balances()})
	return err
}

func (w *editWorld) redrive() error {
	list, err := w.s.DeadLetters(context.Background(), -1, -1, 100)
	list = slices.DeleteFunc(list, func(d DeadLetter) bool { return d.Redriven })
	if err != nil || len(list) == 0 {
		return err
	}
	err = w.s.Redrive(context.Background(), list[w.rand.IntN(len(list))].Event)
	if errors.Is(err, ErrExists) {
		return nil
	}
	return err
}

func (w *editWorld) remember() {
	w.past = append(w.past, editPast{dumpAll(w.t, w.s), maps.Clone(w.edits)})
	if len(w.past) > 6 {
		w.past = w.past[1:]
	}
}

func (w *editWorld) restore() {
	if len(w.past) == 0 {
		return
	}
	old := w.past[w.rand.IntN(len(w.past))]
	w.past = nil
	load(w.t, w.s, old.tables)
	w.edits = maps.Clone(old.edits)
}

func (w *editWorld) step(name string) error {
	w.clock = w.clock.Add(time.Duration(w.rand.Int64N(int64(4 * time.Second))))
	if w.rand.IntN(10) == 0 {
		w.clock = w.clock.Add(time.Minute)
	}
	var err error
	switch name {
	case "edit":
		w.edit()
	case "redeem":
		err = w.redeem()
	case "usage":
		w.usage()
	case "open":
		_, err = w.s.OpenAccounts(context.Background())
	case "scan":
		_, err = w.s.ScanAll(context.Background())
	case "flush":
		err = w.flush()
	case "replay":
		err = w.replay()
	case "move":
		err = w.move()
	case "ship":
		w.ship()
	case "kill":
		w.kill(false)
	case "disk_lost":
		w.kill(true)
	case "redrive":
		err = w.redrive()
	case "remember":
		w.remember()
	case "restore":
		w.restore()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (w *editWorld) run() error {
	names := []string{"edit", "redeem", "usage", "open", "scan", "flush", "replay", "move", "ship", "kill", "disk_lost", "redrive", "remember", "restore"}
	weights := []float64{3, 2, 4, .3, 2, 5, .5, 6, 5, .5, .2, .7, 1, .7}
	total := 0.0
	for _, x := range weights {
		total += x
	}
	for range 150 {
		x, i := w.rand.Float64()*total, 0
		for ; x > weights[i]; i++ {
			x -= weights[i]
		}
		if err := w.step(names[i]); err != nil {
			return err
		}
	}
	if err := w.drain(); err != nil {
		return err
	}
	return w.check()
}

// drain lets everything come to rest: no new edit, nothing lost, the poison's cause repaired and all dead letters re-driven.
func (w *editWorld) drain() error {
	poison(w.t, w.s, false)
	for range 200 {
		if err := w.step("open"); err != nil {
			return err
		}
		for range 3 {
			for _, name := range []string{"scan", "move", "move", "ship", "ship", "ship", "flush", "redrive"} {
				if err := w.step(name); err != nil {
					return err
				}
			}
		}
		w.clock = w.clock.Add(time.Minute)
		for _, l := range w.logs {
			state, err := w.s.Partition(context.Background(), l.partition)
			if err == nil {
				_, err = w.s.Flush(context.Background(), l.call(state.Offset, l.end()))
			}
			if err != nil {
				return err
			}
		}
		waiting := number(w.t, w.s, "SELECT COUNT(*) FROM ledger_dead_letters WHERE state = 'dead'")
		backlog, _, err := w.s.OutboxBacklog(context.Background())
		if err != nil {
			return err
		}
		if waiting == 0 && backlog == 0 && len(w.movers[0].journal)+len(w.movers[1].journal) == 0 {
			return nil
		}
	}
	return errors.New("never came to rest")
}

func (w *editWorld) check() error {
	want := map[ledger.Account]ledger.Balance{}
	truth, opened := map[ledger.Account]int64{}, map[ledger.Account]bool{}
	for _, l := range w.logs {
		f, counted, err := w.fold(l, l.end())
		if err != nil {
			return err
		}
		for a, b := range f.Balances() {
			if b = want[a].Plus(b); b.IsZero() {
				delete(want, a)
			} else {
				want[a] = b
			}
		}
		for _, e := range counted {
			for _, d := range e.Deltas(nil) {
				switch e.Kind {
				case ledger.KindCreditAdopted:
				case ledger.KindAccountOpened:
					opened[d.Account] = true
				default:
					truth[d.Account] += d.Balance.Left()
				}
			}
		}
	}
	if d := cmp.Diff(want, balancesOf(w.t, w.s)); d != "" {
		return fmt.Errorf("balances differ from fold(log) (-fold +stored):\n%s", d)
	}
	return w.s.Verify(context.Background(), func(v *VerifySnapshot) error {
		return v.Accounts(context.Background(), func(a VerifyAccount) error {
			if a.Kind == ledger.ChannelAccount {
				return nil
			}
			should := editOpening + truth[a.Account] + w.edits[a.Account]
			switch {
			case !a.Stored || a.Pending != 0 || a.Written != a.Column || a.Column != a.Balance.Left():
				return fmt.Errorf("%s never came to rest: %s", a.Account, show(a))
			case a.Column != should:
				return fmt.Errorf("%s: opening + credits + edits − usage = %d, but %s", a.Account, should, show(a))
			case a.Used != a.Balance.Charged+a.BaseUsed || a.Requests != 0 && a.Requests != a.Balance.Requests+a.BaseRequests || opened[a.Account] && a.BaseUsed != 0:
				return fmt.Errorf("%s used: %s", a.Account, show(a))
			}
			return nil
		})
	})
}

func show(a VerifyAccount) string {
	return fmt.Sprintf("balance %+v written %d pending %d column %d used %d base %d stored %v", a.Balance, a.Written, a.Pending, a.Column, a.Used, a.BaseUsed, a.Stored)
}

// dump is the content of every table.
type dump map[string][][]any

var dumpTables = []string{
	"users", "tokens", "channels", "redemptions", "top_ups", "ledger_meta", "ledger_partitions", "ledger_accounts", "ledger_watermarks",
	"ledger_producers", "ledger_epochs", "ledger_outbox", "ledger_dead_letters", "ledger_changes", "ledger_snapshots", "ledger_snapshot_chunks",
}

func dumpAll(t testing.TB, s *Store) dump {
	t.Helper()
	out := dump{}
	for _, table := range dumpTables {
		rows, err := s.db.Query("SELECT * FROM " + table + " ORDER BY 1, 2")
		must(t, err)
		names := value[[]string](t)(rows.Columns())
		for rows.Next() {
			row := make([]any, len(names))
			to := make([]any, len(names))
			for i := range row {
				to[i] = &row[i]
			}
			must(t, rows.Scan(to...))
			out[table] = append(out[table], row)
		}
		must(t, rows.Err())
		must(t, rows.Close()) //nolint:sqlclosecheck // closed here on purpose, before the next statement
	}
	return out
}

// load makes the database what it was when it was dumped.
func load(t testing.TB, s *Store, d dump) {
	t.Helper()
	must(t, s.Tx(context.Background(), func(tx *Tx) error {
		for _, table := range dumpTables {
			if _, err := tx.Exec(context.Background(), "DELETE FROM "+table); err != nil {
				return err
			}
			for _, row := range d[table] {
				if _, err := tx.Exec(context.Background(), "INSERT INTO "+table+" VALUES ("+marks(len(row))+")", row...); err != nil {
					return fmt.Errorf("%s: %w", table, err)
				}
			}
		}
		return nil
	}))
}

// emptied empties the database and makes it new.
func emptied(t testing.TB, s *Store) {
	t.Helper()
	exec(t, s, "DROP TRIGGER IF EXISTS poison")
	for _, table := range dumpTables {
		exec(t, s, "DELETE FROM "+table)
	}
	initialised(t, s)
}
