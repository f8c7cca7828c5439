package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"ledgerline/ledger"
)

// A database that was restored from a backup lacks its last transactions: usage, edits, a redeemed code, a completed order.
// What was in the log is applied again and its business rows with it, so that no code counts twice; an edit that the
// restored columns do not have is gone. In the end everything agrees.
func TestRestoredDatabase(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *site) {
		const quota = 4321
		users := s.cast(3) // SYNC_FREQUENCY is 60: the edits are found by flushes
		codes := s.codes(quota, 2)
		s.books.exec("INSERT INTO top_ups (user_id, amount, money, trade_no, payment_method, payment_provider, create_time, complete_time, status) "+
			"VALUES (?, 2, 14.6, 'TRADE', 'alipay', 'epay', 5, 0, 'pending')", users[1].user)
		op := newOperator(s, users)
		c := newClients(t)
		orders := traceOrders(t, 60, users)
		op.edit(3)
		s.play(c, 6, orders[:30])
		s.books.settled(c.answered(), users...)
		restore := s.backUp()
		lost := op.marked()

		op.edit(3)
		s.play(c, 6, orders[30:])
		users[0].login.must(http.MethodPost, "/api/user/topup", map[string]any{"key": codes[0]}, nil)
		s.root.must(http.MethodPost, "/api/user/topup/complete", map[string]any{"trade_no": "TRADE"}, nil)
		users[0].granted += quota
		users[1].granted += 2 * 500_000
		s.books.settled(c.answered(), users...)
		op.eachOneEvent(6)
		restore()
		lost()
		s.books.settled(c.answered(), users...)
		for i, want := range []bool{false, true} {
			_, out, err := users[2].login.call(http.MethodPost, "/api/user/topup", map[string]any{"key": codes[i]})
			if err != nil || out.Success != want {
				t.Errorf("code %d, which was redeemed: %v, is redeemed again: %v, %v", i, !want, out.Success, err)
			}
		}
		users[2].granted += quota
		if n := s.books.number("SELECT COUNT(*) FROM top_ups WHERE trade_no = 'TRADE' AND status = 'success' AND complete_time > 0"); n != 1 {
			t.Error("the order is pending again")
		}
		s.books.settled(c.answered(), users...)
		s.verified()
		s.replayed()
		s.books.settled(c.answered(), users...)
		s.verified()
	})
}

// marked returns what forgets the edits that were made since.
func (op *operator) marked() (lost func()) {
	had := map[ledger.Account]int64{}
	for _, at := range op.targets {
		had[at.Account] = sum(op.made[at.Account])
	}
	return func() {
		for _, at := range op.targets {
			*at.due -= sum(op.made[at.Account]) - had[at.Account]
		}
	}
}

func sum(list []int64) (n int64) {
	for _, x := range list {
		n += x
	}
	return n
}

// backUp copies the database, and returns what stops the nodes, puts the copy back and starts them.
func (s *site) backUp() (restore func()) {
	s.t.Helper()
	around := func(work func()) {
		for _, n := range s.nodes {
			n.kill()
		}
		work()
		for _, n := range s.nodes {
			n.start()
		}
		for _, n := range s.nodes {
			n.ready()
		}
	}
	if s.embedded {
		file := filepath.Join(s.nodes[0].dir, "data", "ledgerline.db")
		copied := filepath.Join(s.t.TempDir(), "backup.db")
		s.books.exec("VACUUM INTO ?", copied)
		return func() {
			around(func() {
				_ = s.books.db.Close()
				for _, rest := range []string{"-wal", "-shm"} {
					_ = os.Remove(file + rest)
				}
				text, err := os.ReadFile(copied)
				if err == nil {
					err = os.WriteFile(file, text, 0o600)
				}
				if err != nil {
					s.t.Fatal(err)
				}
			})
			s.books = openBooks(s)
		}
	}
	cfg, err := mysql.ParseDSN(s.env["SQL_DSN"])
	if err != nil {
		s.t.Fatal(err)
	}
	from, to := cfg.DBName, cfg.DBName+"_copy"
	s.books.exec("CREATE DATABASE " + to)
	s.t.Cleanup(func() { _, _ = s.books.db.ExecContext(context.Background(), "DROP DATABASE "+to) })
	tables := s.books.tables("")
	for _, t := range tables {
		s.books.exec(fmt.Sprintf("CREATE TABLE %s.%s LIKE %s.%s", to, t, from, t))
		s.books.exec(fmt.Sprintf("INSERT INTO %s.%s SELECT * FROM %s.%s", to, t, from, t))
	}
	return func() {
		around(func() {
			for _, t := range tables {
				s.books.exec(fmt.Sprintf("TRUNCATE TABLE %s.%s", from, t))
				s.books.exec(fmt.Sprintf("INSERT INTO %s.%s SELECT * FROM %s.%s", from, t, to, t))
			}
		})
	}
}

// tables lists the tables of the database of balances whose names begin so.
func (b *books) tables(begin string) (names []string) {
	b.t.Helper()
	rows, err := b.db.QueryContext(b.t.Context(), "SHOW TABLES")
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			b.t.Fatal(err)
		}
		if strings.HasPrefix(name, begin) {
			names = append(names, name)
		}
	}
	if err := rows.Err(); err != nil {
		b.t.Fatal(err)
	}
	return names
}
