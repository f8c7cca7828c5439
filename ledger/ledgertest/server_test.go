//go:build unix

package ledgertest_test

import (
	"database/sql"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"ledgerline/ledger/ledgertest"
)

// Two tests on one shared engine do not see each other's data.

func TestRedisDatabasesAreSeparate(t *testing.T) {
	a, b := redisClient(t, ledgertest.Redis(t)), redisClient(t, ledgertest.Redis(t))
	if err := a.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("the other database has %d keys, %v", n, err)
	}
}

func TestRedisDatabaseIsEmptiedAndGivenBack(t *testing.T) {
	var first string
	t.Run("first", func(t *testing.T) {
		first = ledgertest.Redis(t)
		if err := redisClient(t, first).Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
	})
	if n, err := redisClient(t, first).DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("the database of a finished test has %d keys, %v", n, err)
	}
}

func redisClient(t *testing.T, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestMySQLDatabasesAreSeparate(t *testing.T) {
	var dsn string
	t.Run("inner", func(t *testing.T) {
		dsn = ledgertest.MySQL(t)
		if _, err := openMySQL(t, dsn).ExecContext(t.Context(), "CREATE TABLE t (n INT)"); err != nil {
			t.Fatal(err)
		}
		if _, err := openMySQL(t, ledgertest.MySQL(t)).ExecContext(t.Context(), "CREATE TABLE t (n INT)"); err != nil {
			t.Fatal(err)
		}
	})
	if err := openMySQL(t, dsn).PingContext(t.Context()); err == nil {
		t.Error("the database of a finished test is still there")
	}
}

func openMySQL(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestClickHouseDatabasesAreSeparate(t *testing.T) {
	for range 2 {
		o, err := clickhouse.ParseDSN(ledgertest.ClickHouse(t))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := clickhouse.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Exec(t.Context(), "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKafkaTopicTakesRecords(t *testing.T) {
	brokers, topic := ledgertest.KafkaTopic(t, 2)
	client := &kafka.Client{Addr: kafka.TCP(brokers...)}
	// The leader of a new topic may not know yet that it is: what clients have to live with, tests do too.
	deadline := time.Now().Add(30 * time.Second)
	for {
		res, err := client.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: topic, Partition: 1, RequiredAcks: kafka.RequireAll,
			Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("v"))}),
		})
		if err == nil && res.Error == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("produce: %v, %v", err, res)
		}
	}
}

func TestPrivateServer(t *testing.T) {
	s := ledgertest.StartRedis(t)
	client := redisClient(t, s.RedisURL())
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	before := s.PID()
	s.Restart()
	if s.PID() == before {
		t.Error("restart kept the process")
	}
	if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("a restarted Redis has %d keys, %v", n, err)
	}
}

func TestNodeModules(t *testing.T) {
	dir := ledgertest.NodeModules(t, "openai@7.57.0")
	cmd := exec.CommandContext(t.Context(), "node", "-e", "console.log(typeof require('openai').default)")
	cmd.Env = append(os.Environ(), "NODE_PATH="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "function" {
		t.Errorf("%s, %v", out, err)
	}
}
