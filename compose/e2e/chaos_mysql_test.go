package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"ledgerline/ledger/ledgertest"
)

// mysqlLocks takes the rows of an account in the wrong order, and holds on to them.
func (g *stage) mysqlLocks() {
	timeouts, deadlocks := 0, 0
	g.wait("consumers met deadlocks and lock timeouts", func() error {
		u := g.users[g.rng.IntN(len(g.users))]
		dead, err := g.lockRows(u, deadlocks >= 2)
		switch {
		case err != nil:
			return err
		case dead:
			deadlocks++
		default:
			timeouts++
		}
		if deadlocks < 2 || timeouts < 2 {
			return fmt.Errorf("%d deadlocks, %d timeouts", deadlocks, timeouts)
		}
		return nil
	})
}

// lockRows locks the account row of a user, as nobody does who follows the rules, until somebody waits for it, and then the
// user's row, which that one has. If hold is set it leaves the user's row alone and waits until the other one gives up.
func (g *stage) lockRows(u *account, hold bool) (dead bool, err error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	tx, err := g.books.db.BeginTx(ctx, &sql.TxOptions{})
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }()
	status := func(name string) int64 {
		return g.books.number("SELECT CAST(VARIABLE_VALUE AS SIGNED) FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = ?", name)
	}
	before, tried := status("Innodb_deadlocks"), g.retries()
	var id int64
	if err := tx.QueryRowContext(ctx, "SELECT id FROM ledger_accounts WHERE kind = 'user' AND id = ? FOR UPDATE", u.user).Scan(&id); err != nil {
		return false, err
	}
	g.wait("somebody waits for the row", func() error {
		if status("Innodb_row_lock_current_waits") == 0 {
			return errors.New("nobody does")
		}
		return nil
	})
	if hold {
		g.wait("it gives up", func() error {
			if g.retries() == tried {
				return errors.New("it still waits")
			}
			return nil
		})
		return false, nil
	}
	err = tx.QueryRowContext(ctx, "SELECT id FROM users WHERE id = ? FOR UPDATE", u.user).Scan(&id)
	const deadlock = 1213
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok && my.Number == deadlock {
		return true, nil
	}
	return status("Innodb_deadlocks") > before, nil
}

// mysqlCopy copies the data folder as a kill would leave it at this moment.
func (g *stage) mysqlCopy() string {
	g.t.Helper()
	to := g.t.TempDir()
	g.mysql.Freeze()
	out, err := exec.CommandContext(g.t.Context(), "cp", "-a", filepath.Join(g.mysql.Dir, "data"), to).CombinedOutput()
	g.mysql.Thaw()
	if err != nil {
		g.t.Fatalf("copy MySQL's data: %v: %s", err, out)
	}
	return to
}

// mysqlRestored puts an older state in the database's place, as one that was dumped and loaded.
func (g *stage) mysqlRestored() {
	older := g.mysqlCopy()
	g.served(3 * meanwhile)
	g.drained(g.t)
	g.mysql.Kill()
	data := filepath.Join(g.mysql.Dir, "data")
	if err := errors.Join(os.RemoveAll(data), os.Rename(filepath.Join(older, "data"), data)); err != nil {
		g.t.Fatal(err)
	}
	g.mysql.Start()
}

// mysqlPromoted sends everybody to another server that has all but the last transactions.
func (g *stage) mysqlPromoted() {
	replica := ledgertest.StartMySQLOn(g.t, g.mysqlCopy(), mysqlArgs...)
	g.served(meanwhile)
	g.drained(g.t)
	g.mysql.Kill()
	g.mysql = replica
	g.office.mysql.target(replica.Addr)
	for _, n := range g.nodes {
		g.lines[n].mysql.target(replica.Addr)
	}
}

// workerFrozenInside stops a process that consumes in the middle of a flush, with the locks of its transaction: on the partition's
// row, and on those of the accounts. MySQL ends the transaction when it has heard nothing for 30 s, the other consumer takes the
// partition over and catches up, and what comes back finds that its flush was not made.
func (g *stage) workerFrozenInside() {
	for _, n := range g.workers {
		g.lines[n].mysql.slow(20 * time.Millisecond) // a flush takes longer so, and is met
	}
	var n *node
	var thread int64
	g.wait("a consumer is stopped inside a transaction", seldom(func() error {
		n = g.pick(g.workers) // one of them may have no partition yet
		for _, id := range g.transactions(n) {
			n.freeze()
			if g.locked(id) {
				thread = id
				return nil
			}
			n.thaw()
		}
		return errors.New("it is not")
	}))
	for _, w := range g.workers {
		g.lines[w].mysql.heal()
	}
	began := time.Now()
	g.served(meanwhile)
	g.wait("MySQL ends the transaction", seldom(func() error {
		if g.openTransaction(thread) {
			return errors.New("it does not")
		}
		return nil
	}))
	ended := time.Since(began)
	g.drained(g.t)
	n.thaw()
	g.table.current().note = fmt.Sprintf("MySQL ended the transaction after %.0f s", ended.Seconds())
}

// transactions are those of a node that may be flushes, by the connection's id: they have locked a partition's row and those of a
// user, of a key, or of the accounts.
func (g *stage) transactions(n *node) (threads []int64) {
	rows, err := g.books.db.QueryContext(g.t.Context(), "SELECT p.ID, p.HOST FROM information_schema.INNODB_TRX t JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id WHERE t.trx_rows_locked > 2")
	if err != nil {
		return nil
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id int64
		var host string
		if rows.Scan(&id, &host) != nil {
			return nil
		}
		if _, port, _ := strings.Cut(host, ":"); g.lines[n].mysql.has(port) {
			threads = append(threads, id)
		}
	}
	if rows.Err() != nil {
		return nil
	}
	return threads
}

// openTransaction reports whether a connection has a transaction. Ask seldom.
func (g *stage) openTransaction(thread int64) bool {
	return g.books.number("SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = ?", thread) > 0
}

// locked reports whether a connection of a frozen node has an open transaction, and somebody keeps a partition's row locked: the
// consumers that run do so for some milliseconds only.
func (g *stage) locked(thread int64) bool {
	const looks = 10
	free := map[int]bool{}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for range looks {
		<-ticker.C
		for p := range partitions {
			var part int
			if g.books.db.QueryRowContext(g.t.Context(), "SELECT part FROM ledger_partitions WHERE part = ? FOR UPDATE NOWAIT", p).Scan(&part) == nil {
				free[p] = true
			}
		}
	}
	return len(free) < partitions && g.openTransaction(thread)
}
