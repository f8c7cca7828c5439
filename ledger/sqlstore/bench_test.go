package sqlstore

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// BenchmarkFlush measures flushes of 10,000 usage events each, over more or fewer active accounts. Beside the time it
// reports events per second of this process's CPU time (DESIGN 12), which leaves MySQL's own out but holds SQLite's.
func BenchmarkFlush(b *testing.B) {
	const batch = 10_000
	for _, engine := range []string{"sqlite", "mysql"} {
		for _, users := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%s/users=%d", engine, users), func(b *testing.B) {
				var s *Store
				if engine == "sqlite" {
					s = openSQLite(b)
				} else {
					s = openMySQL(b, ledgertest.MySQL(b))
				}
				initialised(b, s)
				l := usageLog(b, s, users, batch)
				b.ReportAllocs()
				cpu := cpuTime()
				for b.Loop() {
					if _, err := s.Flush(context.Background(), l.call(0, batch)); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					rewind(b, s)
					b.StartTimer()
				}
				b.ReportMetric(float64(b.N)*batch/(cpuTime()-cpu).Seconds(), "events/cpu-s")
			})
		}
	}
}

// usageLog makes users with one token each in partition 0 and n usage events over them.
func usageLog(t testing.TB, s *Store, users, n int) *logOf {
	ids := make([]int64, users)
	must(t, s.Tx(context.Background(), func(tx *Tx) error {
		for i := range ids {
			u := userIn(0, 0) + int64(i)*0
			if i > 0 {
				u = ids[i-1] + 1
				for ledger.Partition(u, testPartitions) != 0 {
					u++
				}
			}
			ids[i] = u
			if _, err := tx.Exec(context.Background(), "INSERT INTO users (id, username, password, aff_code) VALUES (?, ?, 'x', ?)", u, ledgerName(u), ledgerName(u)); err != nil {
				return err
			}
			if _, err := tx.Exec(context.Background(), "INSERT INTO tokens (id, user_id, `key`) VALUES (?, ?, ?)", u, u, ledgerName(u)); err != nil {
				return err
			}
		}
		return nil
	}))
	channel(t, s, 1)
	l := newLog(0)
	for i := range n {
		l.add(id(uint64(1+i%3)), usage(ids[i*7%users], ids[i*7%users], 1, 10))
	}
	return l
}

// rewind makes the log new again for the consumer.
func rewind(t testing.TB, s *Store) {
	exec(t, s, "UPDATE ledger_partitions SET next_offset = 0")
	exec(t, s, "DELETE FROM ledger_watermarks")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
