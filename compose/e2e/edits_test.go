package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"ledgerline/ledger"
)

// handEdits is how many edits are made; every misfortune of a site gets its share.
const handEdits = 100

// A hundred balances are changed in SQL while traffic runs, nodes are killed, replays run and are killed, and the counters are
// lost. In the end every column, balance and counter is opening + edits − usage to the unit, each edit is one event of its
// amount, verify names nothing, and a replay changes nothing.
func TestHundredHandEdits(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			s := topology.site(t)
			s.env["SYNC_FREQUENCY"] = "1"
			s.open()
			users := s.cast(12)
			op := newOperator(s, users)
			tr := s.background(6, users[:6])
			tr.moreDone(t, 10)
			misfortunes := s.misfortunes()
			for i, happens := range misfortunes {
				var both sync.WaitGroup
				both.Go(func() { op.edit((i+1)*handEdits/len(misfortunes) - i*handEdits/len(misfortunes)) })
				happens()
				both.Wait()
				tr.moreDone(t, 5)
			}
			tr.stop()
			s.books.settled(tr.answered(), users...)
			op.eachOneEvent(handEdits)
			s.verified()
			if got := s.run("replay"); got.code != 0 || !strings.Contains(got.stdout, " 0 changed") {
				t.Errorf("replay: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			s.books.settled(tr.answered(), users...)
			s.verified()
		})
	}
}

// misfortunes are what happens to a site, one after another.
func (s *site) misfortunes() []func() {
	var out []func()
	kill := func(n *node) func() {
		return func() {
			n.kill()
			n.start()
			n.ready()
		}
	}
	replay := func(args ...string) func() { return func() { s.replayed(args...) } }
	cut := func(after time.Duration) func() { return func() { s.cutReplay(after) } }
	for _, n := range s.nodes {
		out = append(out, kill(n), replay())
	}
	out = append(out, cut(100*time.Millisecond), cut(400*time.Millisecond), replay("-source", "usagelog"))
	if s.embedded {
		n := s.nodes[0]
		return append(out, kill(n), func() {
			p := start(s.t, s.command("replay"))
			s.pause(p, 200*time.Millisecond)
			n.kill() // and the replay that it runs with it; one that had not begun yet finds the files free, and keeps them until it is done
			p.wait()
			n.start()
			n.ready()
		})
	}
	return append(out, s.loseCounters, func() { s.loseCounters(); kill(s.nodes[0])() })
}

// replayed runs a replay to its end.
func (s *site) replayed(args ...string) {
	s.t.Helper()
	if got := s.run(append([]string{"replay"}, args...)...); got.code != 0 {
		s.t.Errorf("replay %s: exit code %d\n%s%s", strings.Join(args, " "), got.code, got.stdout, got.stderr)
	}
}

// cutReplay kills a replay after some time.
func (s *site) cutReplay(after time.Duration) {
	s.t.Helper()
	p := start(s.t, s.command("replay"))
	s.pause(p, after)
	p.kill()
}

// pause lets a process run for a while, or to its end.
func (s *site) pause(p *process, at time.Duration) {
	select {
	case <-p.done:
	case <-time.After(at):
	}
}

// loseCounters empties Redis: every partition needs a new epoch.
func (s *site) loseCounters() {
	s.t.Helper()
	options, err := redis.ParseURL(s.env["REDIS_CONN_STRING"])
	if err != nil {
		s.t.Fatal(err)
	}
	c := redis.NewClient(options)
	defer func() { _ = c.Close() }()
	if err := c.FlushDB(s.t.Context()).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// operator edits balances with SQL.
type operator struct {
	s       *site
	rand    *rand.Rand
	targets []target
	next    int
	made    map[ledger.Account][]int64 // the amounts, in their order
}

// target is a balance to edit, and where the test keeps what it must be.
type target struct {
	ledger.Account
	table, column string
	due           *int64
}

func newOperator(s *site, users []*account) *operator {
	op := &operator{s: s, rand: rand.New(rand.NewPCG(1, 2)), made: map[ledger.Account][]int64{}}
	for _, u := range users {
		op.targets = append(
			op.targets,
			target{ledger.Account{Kind: ledger.UserAccount, ID: u.user}, "users", "quota", &u.granted},
			target{ledger.Account{Kind: ledger.TokenAccount, ID: u.token}, "tokens", "remain_quota", &u.limit},
		)
	}
	return op
}

// edit makes so many edits, each of the next balance whose earlier edit has been adopted: two edits between two looks would be
// one event, rightly.
func (op *operator) edit(count int) {
	t := op.s.t
	deadline := time.Now().Add(2 * patience)
	for count > 0 && time.Now().Before(deadline) {
		at := op.targets[op.next%len(op.targets)]
		op.next++
		change := op.rand.Int64N(2_000_000) - 1_000_000
		absolute := op.rand.IntN(2) == 0
		by, done, err := op.s.books.edit(at, change, absolute)
		switch {
		case err != nil && !passing(err):
			t.Errorf("edit %v: %v", at.Account, err)
			return
		case done:
			*at.due += by
			op.made[at.Account] = append(op.made[at.Account], by)
			count--
		}
		select {
		case <-time.After(5 * time.Millisecond): // an edit a hundred times a second would only meet itself
		case <-t.Context().Done():
			return
		}
	}
	if count > 0 {
		t.Errorf("%d edits could not be made: what was edited before is not adopted", count)
	}
}

// passing reports whether an error is one that a client of a busy database repeats after.
func passing(err error) bool {
	for _, text := range []string{"Deadlock", "Lock wait timeout", "SQLITE_BUSY", "database is locked"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// edit changes a column by an amount, or sets it to a figure that is about as far away, unless it was edited before and nobody has
// looked yet. It returns what it changed. All in one transaction, as careful people do it; a careless one's statement
// would do the same, but could not say by how much.
func (b *books) edit(at target, change int64, absolute bool) (by int64, done bool, err error) {
	ctx := b.t.Context()
	conn, err := b.db.Conn(ctx)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = conn.Close() }()
	begin, lock := "START TRANSACTION", " FOR UPDATE"
	if b.site.embedded {
		begin, lock = "BEGIN IMMEDIATE", ""
	}
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return 0, false, err
	}
	defer func() {
		if !done {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	var have, written int64
	if err := conn.QueryRowContext(ctx, "SELECT "+at.column+" FROM "+at.table+" WHERE id = ?"+lock, at.ID).Scan(&have); err != nil {
		return 0, false, err
	}
	err = conn.QueryRowContext(ctx, "SELECT written FROM ledger_accounts WHERE kind = ? AND id = ? AND slot = 0"+lock, string(at.Kind), at.ID).Scan(&written)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, false, err
	}
	if absolute {
		change = (have+change)/1000*1000 - have // a round figure
	}
	if have != written || change == 0 {
		return 0, false, nil
	}
	if absolute {
		_, err = conn.ExecContext(ctx, "UPDATE "+at.table+" SET "+at.column+" = ? WHERE id = ?", have+change, at.ID)
	} else {
		_, err = conn.ExecContext(ctx, "UPDATE "+at.table+" SET "+at.column+" = "+at.column+" + ? WHERE id = ?", change, at.ID)
	}
	if err == nil {
		_, err = conn.ExecContext(ctx, "COMMIT")
	}
	return change, err == nil, err
}

// eachOneEvent requires that the usage log has one event for each edit, of its amount, in its order, and none besides.
func (op *operator) eachOneEvent(want int) {
	op.s.t.Helper()
	edits := 0
	for _, list := range op.made {
		edits += len(list)
	}
	if edits != want {
		op.s.t.Errorf("%d edits were made, want %d", edits, want)
	}
	eventually(op.s.t, "each edit is one event", func() error {
		got, err := op.s.books.adopted()
		if err != nil {
			return err
		}
		events := 0
		for a, list := range got {
			events += len(list)
			if fmt.Sprint(list) != fmt.Sprint(op.made[a]) {
				return fmt.Errorf("%v was edited by %v, and the log has %v", a, op.made[a], list)
			}
		}
		if events != edits {
			return fmt.Errorf("%d edits, %d events", edits, events)
		}
		return nil
	})
}

// adopted returns the amounts of the events that edits became, in the order of the log.
func (b *books) adopted() (map[ledger.Account][]int64, error) {
	final := ""
	if !b.site.embedded {
		final = " FINAL"
	}
	rows, err := b.usage.QueryContext(b.t.Context(), "SELECT user_id, token_id, granted FROM ledger_usage"+final+
		" WHERE kind = 'credit.adopted' ORDER BY part, log_offset")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	got := map[ledger.Account][]int64{}
	for rows.Next() {
		var user, token, amount int64
		if err := rows.Scan(&user, &token, &amount); err != nil {
			return nil, err
		}
		a := ledger.Account{Kind: ledger.UserAccount, ID: user}
		if token != 0 {
			a = ledger.Account{Kind: ledger.TokenAccount, ID: token}
		}
		got[a] = append(got[a], amount)
	}
	return got, rows.Err()
}
