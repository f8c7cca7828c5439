package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"ledgerline/ledger/ledgertest"
)

// onRedis is a cluster whose counters are in the Redis that the variables name.
func onRedis(t *testing.T, variables map[string]string) *site {
	t.Helper()
	s := newSite(t)
	s.env["KAFKA_BROKERS"] = strings.Join(ledgertest.Kafka(t), ",")
	s.env["SQL_DSN"], s.env["LOG_SQL_DSN"] = ledgertest.MySQL(t), ledgertest.ClickHouse(t)
	for name, value := range variables {
		s.env[name] = value
	}
	s.threeNodes()
	s.open()
	return s
}

// The primary dies under load and Sentinel promotes its replica: new epochs, and every bill is right. What was the primary
// comes back as a replica, and is promoted in turn.
func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	primary := ledgertest.StartRedis(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(primary.Addr)
	if err != nil {
		t.Fatal(err)
	}
	replica := ledgertest.StartRedis(t, "--repl-diskless-sync-delay", "0", "--replicaof", host+" "+port)
	sentinel := ledgertest.StartSentinel(t, "counters", primary.Addr)
	watch := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr})
	defer func() { _ = watch.Close() }()
	// Longer than elsewhere: a sentinel that a loaded machine held up looks away for 30 s.
	const patience = 3 * patience
	serving := func() (*ledgertest.Server, error) {
		addr, err := watch.GetMasterAddrByName(t.Context(), "counters").Result()
		if err != nil {
			return nil, err
		}
		for _, one := range []*ledgertest.Server{primary, replica} {
			if one.Addr == net.JoinHostPort(addr[0], addr[1]) {
				return one, nil
			}
		}
		return nil, fmt.Errorf("no server has the address %v", addr)
	}
	synced := func() (is *ledgertest.Server) {
		within(t, patience, "the sentinel knows a replica that is in step", func() error {
			list, err := watch.Replicas(t.Context(), "counters").Result()
			if err != nil || len(list) != 1 || list[0]["master-link-status"] != "ok" || strings.Contains(list[0]["flags"], "down") {
				return fmt.Errorf("%v: %w", list, err)
			}
			is, err = serving()
			return err
		})
		return is
	}
	synced()
	s := onRedis(t, map[string]string{"REDIS_CONN_STRING": "redis://" + sentinel.Addr, "REDIS_MASTER_NAME": "counters"})
	users := s.cast(3)
	tr := s.background(8, users)
	tr.moreDone(t, 20)
	for range 2 {
		victim := synced() // a primary that was only slow may have been replaced before
		before := s.epochs()
		victim.Kill()
		within(t, patience, "new epochs are open on the promoted server", func() error {
			if is, err := serving(); err != nil || is == victim {
				return errors.Join(err, errors.New("nobody is promoted"))
			}
			if n := s.epochs(); n < before+partitions {
				return fmt.Errorf("%d epochs, %d before", n, before)
			}
			return nil
		})
		tr.moreDone(t, 20)
		victim.Start()
	}
	tr.stop()
	s.books.settled(tr.answered(), users...)
	s.verified()
}

// Partitions lie on three primaries of a Redis Cluster. Each dies in turn, and comes back empty: its partitions are rebuilt,
// and the others go on.
func TestRedisClusterLosesItsNodes(t *testing.T) {
	t.Parallel()
	// A cluster goes on serving the slots that it has.
	servers, url := ledgertest.StartRedisCluster(t, "--cluster-require-full-coverage", "no")
	s := onRedis(t, map[string]string{"REDIS_CONN_STRING": url})
	users := s.cast(3)
	tr := s.background(8, users)
	for _, server := range servers {
		tr.moreDone(t, 20)
		server.Kill()
		server.Start()
		tr.moreDone(t, 20)
	}
	tr.stop()
	s.books.settled(tr.answered(), users...)
	s.verified()
}

// A slave is added under traffic: nginx uses it as soon as it serves, clients that do not retry see nothing of it, and it is
// as good as the others.
func TestSlaveIsAddedUnderTraffic(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	third := s.nodes[2]
	third.port = ledgertest.Port(t)
	all := s.nodes
	s.nodes = all[:2]
	s.open()
	users := s.cast(2)
	nginx := ledgertest.StartNginx(t, func(port int, dir string) (string, error) { return balancer(all, port, dir) })
	c := newClients(t)
	var ending atomic.Bool
	var clients sync.WaitGroup
	orders := traceOrders(t, 200, users)
	for w := range 4 {
		clients.Go(func() {
			for i := w; !ending.Load(); i++ {
				r := send(t.Context(), c.http, nginx.URL(), orders[i%len(orders)])
				c.keep(r)
			}
		})
	}
	third.start()
	s.nodes = all
	used := func() error {
		if third.metric("ledgerline_relay_requests_total") < 20 {
			return errors.New("nginx does not use the new slave")
		}
		return nil
	}
	eventually(t, "the new slave takes its share", used)
	ending.Store(true)
	clients.Wait()
	for _, r := range c.all {
		if r.status != http.StatusOK || !r.whole {
			t.Errorf("a client noticed: status %d %q, whole %v", r.status, r.code, r.whole)
		}
	}
	s.books.settled(c.answered(), users...)
	s.verified()
}

// The usage log may lie on another MySQL server than the balances.
func TestUsageLogOnASecondMySQL(t *testing.T) {
	t.Parallel()
	second := ledgertest.StartMySQL(t)
	s := cluster(t)
	s.env["LOG_SQL_DSN"] = ledgertest.MySQLDatabase(t, second.MySQLDSN(""))
	s.open()
	users := s.cast(2)
	tr := s.background(6, users)
	tr.moreDone(t, 20)
	second.Stop()
	tr.moreDone(t, 20)
	second.Start()
	tr.moreDone(t, 20)
	tr.stop()
	s.books.settled(tr.answered(), users...)
	s.verified()
	if n := s.books.number("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'ledger_usage'"); n != 0 {
		t.Error("the usage log is on the first server, too")
	}
}

// LOG_SQL_CLICKHOUSE_TTL_DAYS lets rows expire that are older than a snapshot; what is younger stays, and verify is content.
func TestUsageRowsExpire(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.env["LOG_SQL_CLICKHOUSE_TTL_DAYS"] = "7"
	s.open()
	users := s.cast(2)
	c := newClients(t)
	s.play(c, 6, traceOrders(t, 60, users))
	s.books.settled(c.answered(), users...)
	eventually(t, "the table has a life of seven days", func() error {
		var text string
		if err := s.books.usage.QueryRowContext(t.Context(), "SHOW CREATE TABLE ledger_usage").Scan(&text); err != nil {
			return err
		}
		if !strings.Contains(text, "TTL ") || !strings.Contains(text, "toIntervalDay(7)") {
			return errors.New(text)
		}
		return nil
	})
	if n := s.books.number("SELECT COUNT(*) FROM ledger_snapshots"); n == 0 {
		t.Error("no snapshot was taken")
	}
	s.verified()
}
