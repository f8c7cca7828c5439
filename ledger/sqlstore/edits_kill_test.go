package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// TestHandEditsKilledAnywhere runs a fixed history of hand edits, scans, flushes, replays and moves, and stops it before every
// statement and every COMMIT that any of its steps makes, BEGIN included, once with each of these misfortunes:
//
//	killed            the process dies there; its journal is found by the next start
//	disk lost         it dies there, and its journal with it
//	edit              somebody edits a balance there, in the middle of our transaction or as soon as its locks allow
//	edit, then killed both
//
// and, between any two steps, with a database that was restored from every earlier step. Whatever happens, once everything
// has come to rest: column = written = balance = opening + credits + edits − usage = fold(log), and each edit is one event.
func TestHandEditsKilledAnywhere(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		s := initialised(t, openSQLite(t))
		exec(t, s, "PRAGMA synchronous = OFF")
		operator := value[*sql.DB](t)(sql.Open("sqlite", "file:"+s.name+"?_txlock=immediate&_pragma=busy_timeout(0)"))
		t.Cleanup(func() { _ = operator.Close() })
		killAnywhere(t, s, operator, 1)
	})
	t.Run("mysql", func(t *testing.T) {
		s := initialised(t, openMySQL(t, ledgertest.MySQL(t)))
		killAnywhere(t, s, s.db, 10) // every tenth point of each misfortune, at another place for each: the code is the same
	})
}

func killAnywhere(t *testing.T, s *Store, operator *sql.DB, stride int) {
	w := newEditScript(t, s, operator)
	var past []*editScript
	points, runs := 0, 0
	for i, step := range editSteps {
		before := w.remember()
		for misfortune := range misfortunes {
			for n := 1; ; n++ {
				if (n+misfortune)%stride != 0 && n != 1 {
					continue
				}
				v := before.recall()
				struck, err := v.struck(step, misfortune, n)
				if err == nil {
					err = v.rest()
				}
				if err != nil {
					t.Fatalf("step %d (%s), statement %d, %s: %v", i, step.name, n, misfortuneNames[misfortune], err)
				}
				runs++
				if !struck {
					points += n - 1
					break
				}
			}
		}
		for j := len(past) - 1; j >= 0; j -= stride {
			v := before.recall()
			v.restored(past[j])
			if err := v.rest(); err != nil {
				t.Fatalf("before step %d (%s), restored from before step %d: %v", i, step.name, j, err)
			}
			runs++
		}
		past = append(past, before)
		w = before.recall()
		if err := w.do(step); err != nil {
			t.Fatalf("step %d (%s): %v", i, step.name, err)
		}
	}
	if err := w.rest(); err != nil {
		t.Fatalf("undisturbed: %v", err)
	}
	if w.made < 8 || points < 300*misfortunes {
		t.Errorf("%d edits, %d points: the test has lost its point", w.made, points)
	}
	t.Logf("%d steps, %d points to be struck at, %d histories", len(editSteps), points/misfortunes, runs)
}

// The misfortunes.
const (
	killed = iota
	diskLost
	edited
	editedAndKilled
	misfortunes
)

var misfortuneNames = []string{"killed", "killed and its disk lost", "an edit there", "an edit there and killed"}

// editStep is something that a process does, or an operator.
type editStep struct {
	name string
	do   func(w *editScript) error
}

var (
	stepScan   = editStep{"scan", func(w *editScript) error { _, err := w.s.ScanAll(w.ctx()); return err }}
	stepMove   = editStep{"move", (*editScript).move}
	stepFlush  = editStep{"ship and flush", (*editScript).flush}
	stepReplay = editStep{"replay", (*editScript).replay}
	stepRedeem = editStep{"redeem", func(w *editScript) error {
		_, _, err := w.s.Redeem(w.ctx(), w.user, "code")
		if errors.Is(err, ErrCodeUsed) {
			err = nil
		}
		return err
	}}
	stepLimit = editStep{"raise the limit", func(w *editScript) error {
		_, _, err := w.s.EditToken(w.ctx(), w.user, w.token, func(e *TokenEdit) error { e.Raise = 33; return nil })
		return err
	}}
	stepGrant = editStep{"grant", func(w *editScript) error {
		_, err := w.s.GrantQuota(w.ctx(), w.user, 11, "")
		return err
	}}
	stepOpen = editStep{"open", func(w *editScript) error { _, err := w.s.OpenAccounts(w.ctx()); return err }}
)

func stepEdit(kind ledger.AccountKind, text string) editStep {
	return editStep{text + " of " + string(kind), func(w *editScript) error { return w.edit(kind, text) }}
}

func stepUsage(charged int64) editStep {
	return editStep{"usage", func(w *editScript) error {
		w.ids++
		e := usage(w.user, w.token, 1, charged)
		e.ID = id(3<<40 | w.ids)
		w.log.add(id(9), e)
		return nil
	}}
}

// editSteps is the history. Every edit is looked at before the next of its account: by a scan, a flush or a replay in turn.
var editSteps = []editStep{
	stepOpen, stepMove, stepUsage(2), stepFlush,
	stepEdit(ledger.UserAccount, "quota = quota + 7"), stepScan, stepMove, stepFlush, // found by a scan
	stepEdit(ledger.TokenAccount, "remain_quota = 50"), stepUsage(3), stepFlush, stepMove, stepFlush, // by a flush
	stepEdit(ledger.UserAccount, "quota = 300"), stepReplay, stepUsage(1), stepMove, stepFlush, // by a replay
	stepRedeem, stepEdit(ledger.UserAccount, "quota = quota - 400"), stepUsage(5), stepFlush, stepMove, stepReplay, stepFlush, // below zero
	stepLimit, stepEdit(ledger.TokenAccount, "remain_quota = remain_quota - 9"), stepMove, stepScan, stepMove, stepFlush, stepReplay,
	stepEdit(ledger.TokenAccount, "remain_quota = -20"), stepGrant, stepScan, stepMove, stepUsage(4), stepFlush, // an unlimited key's
	stepEdit(ledger.UserAccount, "deleted_at = '2026-01-02 03:04:05', quota = quota + 100"), stepScan, stepMove, stepFlush, stepReplay, // deleted, softly
	stepEdit(ledger.UserAccount, "quota = 0"), stepEdit(ledger.TokenAccount, "remain_quota = 0"), stepUsage(6), stepReplay, stepFlush,
}

// editScript is the world of the history: one user with a key, the log of their partition, a node that moves the outbox, and
// an operator with a connection of his own. Beside the database all of it is in this struct, so that a step can be begun again.
type editScript struct {
	t        *testing.T
	s        *Store
	operator *sql.DB
	tables   dump // of remember

	user, token int64
	clock       time.Time
	log         *logOf
	mover       editMover
	ids         uint64
	edits       map[ledger.Account]int64 // that the database still has
	made        int                      // number of them
	merged      int                      // how many of them may have met another one in one look
}

const scriptOpening, scriptUsed, scriptCode = 100, 40, 20

func newEditScript(t *testing.T, s *Store, operator *sql.DB) *editScript {
	w := &editScript{
		t: t, s: s, operator: operator, user: userIn(1, 0), token: 5, clock: time.UnixMilli(1_800_000_000_000), log: newLog(1), edits: map[ledger.Account]int64{},
	}
	w.start()
	exec(t, s, "INSERT INTO users (id, username, password, quota, used_quota) VALUES (?, 'u', 'x', ?, ?)", w.user, scriptOpening, scriptUsed)
	exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota, used_quota) VALUES (?, ?, 'k', ?, ?)", w.token, w.user, scriptOpening, scriptUsed)
	exec(t, s, "INSERT INTO redemptions (`key`, status, quota) VALUES ('code', 1, ?)", scriptCode)
	channel(t, s, 1)
	return w
}

func (w *editScript) ctx() context.Context { return context.Background() }

// start is a process that begins: a producer of its own, which ships what the journals of its predecessors hold.
func (w *editScript) start() {
	w.ids++
	w.mover.producer, w.mover.seq, w.mover.prev, w.mover.unmarked = id(2<<40|w.ids), 0, map[int]uint64{}, nil
}

// remember keeps the state; recall makes it the database's again and returns a copy to go on with.
func (w *editScript) remember() *editScript {
	v := w.copied()
	v.tables = dumpAll(w.t, w.s)
	return v
}

func (w *editScript) recall() *editScript {
	load(w.t, w.s, w.tables)
	v := w.copied()
	v.s.now = func() time.Time { return v.clock }
	return v
}

func (w *editScript) copied() *editScript {
	v := *w
	log := *w.log
	log.records, log.seq = slices.Clone(log.records), maps.Clone(log.seq)
	v.log, v.edits, v.tables = &log, maps.Clone(w.edits), nil
	v.mover.prev, v.mover.journal, v.mover.unmarked = maps.Clone(w.mover.prev), slices.Clone(w.mover.journal), slices.Clone(w.mover.unmarked)
	return &v
}

func (w *editScript) do(step editStep) error {
	w.clock = w.clock.Add(time.Second)
	return step.do(w)
}

// struck does a step with a misfortune before its nth statement, and reports whether it had so many.
func (w *editScript) struck(step editStep, misfortune, n int) (struck bool, err error) {
	count, waiting := 0, false
	w.s.fault = func(string) error {
		count++
		if count == n {
			struck, waiting = true, misfortune == edited || misfortune == editedAndKilled
		}
		if waiting {
			done, err := w.intrude()
			if err != nil {
				return err
			}
			waiting = !done
		}
		if count == n && misfortune != edited {
			return errKilled
		}
		return nil
	}
	err = w.do(step)
	w.s.fault = nil
	if errors.Is(err, errKilled) {
		err = nil
		w.start()
		if misfortune == diskLost {
			w.mover.journal = nil
		}
	}
	if err == nil && waiting { // the transaction's locks were in the way
		var done bool
		if done, err = w.intrude(); err == nil && !done {
			err = errors.New("a lock outlived its transaction")
		}
	}
	return struck, err
}

// intrude is an edit that may come between any two statements. It reports false if a lock was in its way.
func (w *editScript) intrude() (bool, error) {
	err := w.edit(ledger.UserAccount, "quota = quota + 1000")
	const lockNoWait = 3572 // MySQL's; MariaDB calls it a timeout
	if said, ok := errors.AsType[*mysql.MySQLError](err); IsTransient(err) || ok && said.Number == lockNoWait {
		return false, nil
	}
	w.merged++
	return true, err
}

// edit changes a column as somebody with a SQL client would; it waits for no lock.
func (w *editScript) edit(kind ledger.AccountKind, set string) error {
	name, where := "quota FROM users", " WHERE id = "+fmt.Sprint(w.user)
	if kind == ledger.TokenAccount {
		name, where = "remain_quota FROM tokens", " WHERE id = "+fmt.Sprint(w.token)
	}
	tx, err := w.operator.BeginTx(w.ctx(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	lock := ""
	if w.s.mysql {
		lock = " FOR UPDATE NOWAIT"
	}
	var have, is int64
	if err := tx.QueryRowContext(w.ctx(), "SELECT "+name+where+lock).Scan(&have); err != nil {
		return err
	}
	table := "users"
	if kind == ledger.TokenAccount {
		table = "tokens"
	}
	if _, err := tx.ExecContext(w.ctx(), "UPDATE "+table+" SET "+set+where); err != nil {
		return err
	}
	if err := tx.QueryRowContext(w.ctx(), "SELECT "+name+where).Scan(&is); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if is != have {
		w.made++
	}
	w.edits[w.account(kind)] += is - have
	return nil
}

func (w *editScript) account(kind ledger.AccountKind) ledger.Account {
	if kind == ledger.TokenAccount {
		return ledger.Account{Kind: kind, ID: w.token}
	}
	return ledger.Account{Kind: kind, ID: w.user}
}

// move journals what waits in the outbox and marks it moved.
func (w *editScript) move() error {
	m := &w.mover
	rows, err := w.s.OutboxPending(w.ctx(), 10)
	if err != nil {
		return err
	}
	for _, r := range rows {
		m.seq++
		r.Event.Producer, r.Event.Seq, r.Event.Prev = m.producer, m.seq, m.prev[1]
		m.prev[1] = m.seq
		m.journal = append(m.journal, r.Event)
		m.unmarked = append(m.unmarked, r.Key)
	}
	if err := w.s.OutboxMoved(w.ctx(), m.unmarked...); err != nil {
		return err
	}
	m.unmarked = nil
	return nil
}

// flush ships the journal and applies what the log has.
func (w *editScript) flush() error {
	for _, e := range w.mover.journal {
		w.log.put(e)
	}
	w.mover.journal = nil
	state, err := w.s.Partition(w.ctx(), 1)
	if err == nil {
		_, err = w.s.Flush(w.ctx(), w.log.call(state.Offset, w.log.end()))
	}
	return err
}

func (w *editScript) fold(to int64) (*ledger.Fold, []ledger.Event) {
	f := ledger.NewFold(nil)
	var counted []ledger.Event
	for i := range w.log.records[:to] {
		if f.Apply(&w.log.records[i]) {
			counted = append(counted, w.log.records[i].Event)
		}
	}
	return f, counted
}

func (w *editScript) replay() error {
	state, err := w.s.Partition(w.ctx(), 1)
	if err != nil {
		return err
	}
	f, _ := w.fold(state.Offset)
	_, err = w.s.ReplayPartition(w.ctx(), ReplayCall{Partition: 1, Offset: state.Offset, Balances: f.Balances()})
	return err
}

// restored gives the world the database of an earlier one: its rows, its offsets, its outbox, and the edits it had.
func (w *editScript) restored(earlier *editScript) {
	load(w.t, w.s, earlier.tables)
	// An edit of the lost transactions may be in the log already, as an event that stays; the next look finds that the column
	// does not have it, and takes it back with another one.
	w.merged += 2 * w.made
	w.edits, w.made = maps.Clone(earlier.edits), earlier.made
}

// rest lets the running processes do their duties until nothing is left to do, and holds the books against the oracle.
func (w *editScript) rest() error {
	for range 8 {
		w.clock = w.clock.Add(2 * time.Minute) // leases end, what was moved and lost is moved again
		for _, step := range []editStep{stepOpen, stepScan, stepMove, stepFlush} {
			if err := step.do(w); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
		}
		backlog, _, err := w.s.OutboxBacklog(w.ctx())
		if err != nil {
			return err
		}
		if backlog == 0 {
			return w.check()
		}
	}
	return errors.New("never came to rest")
}

func (w *editScript) check() error {
	f, counted := w.fold(w.log.end())
	want := map[ledger.Account]int64{}
	adopted, redeemed := 0, 0
	for _, kind := range []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount} {
		want[w.account(kind)] = scriptOpening + w.edits[w.account(kind)]
	}
	for _, e := range counted {
		switch {
		case e.Kind == ledger.KindCreditAdopted:
			adopted++
			continue
		case e.Kind == ledger.KindAccountOpened:
			continue
		case e.Key == businessKey(w.user, "redeem", "code"):
			redeemed++
		}
		for _, d := range e.Deltas(nil) {
			want[d.Account] += d.Balance.Left()
		}
	}
	if adopted < w.made-w.merged || adopted > w.made+w.merged {
		return fmt.Errorf("%d edits became %d events", w.made, adopted)
	}
	if used := number(w.t, w.s, "SELECT COUNT(*) FROM redemptions WHERE status = 3 AND used_user_id = ?", w.user); used != int64(redeemed) {
		return fmt.Errorf("%d codes are used, %d are in the log", used, redeemed)
	}
	return w.s.Verify(w.ctx(), func(v *VerifySnapshot) error {
		return v.Accounts(w.ctx(), func(a VerifyAccount) error {
			b := f.Balance(a.Account)
			switch {
			case a.Kind == ledger.ChannelAccount:
				return nil
			case a.Balance != b:
				return fmt.Errorf("%s: fold(log) is %+v, but %s", a.Account, b, show(a))
			case !a.Stored || a.Pending != 0 || a.Written != a.Column || a.Column != a.Balance.Left():
				return fmt.Errorf("%s never came to rest: %s", a.Account, show(a))
			case a.Column != want[a.Account]:
				return fmt.Errorf("%s: opening + credits + edits − usage = %d, but %s", a.Account, want[a.Account], show(a))
			case a.Used != b.Charged+a.BaseUsed || a.BaseUsed != 0:
				return fmt.Errorf("%s used: %s", a.Account, show(a))
			}
			return nil
		})
	})
}
