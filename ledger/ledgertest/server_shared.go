//go:build unix

package ledgertest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
)

// Kafka returns the brokers of a shared Kafka cluster. Topics do not make themselves: use KafkaTopic, or create some with
// names of the test's own ([UniqueName]).
func Kafka(t testing.TB) []string {
	t.Helper()
	return strings.Split(sharedKafka.get(t), ",")
}

// KafkaTopic returns the brokers of a shared Kafka cluster and a topic of the test's own with that many partitions and one
// replica. It is deleted when the test ends.
func KafkaTopic(t testing.TB, partitions int) (brokers []string, topic string) {
	t.Helper()
	brokers, topic = Kafka(t), UniqueName("topic")
	client := &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: setupTimeout}
	ctx, cancel := engineContext()
	defer cancel()
	made, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1}},
	})
	if err == nil {
		err = made.Errors[topic]
	}
	if err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	if err := awaitLeaders(ctx, client, topic, partitions); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	t.Cleanup(func() {
		ctx, cancel := engineContext()
		defer cancel()
		if _, err := client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
			t.Errorf("delete topic %s: %v", topic, err)
		}
	})
	return brokers, topic
}

// awaitLeaders returns when every partition of a new topic can be written to: brokers learn of it a moment after its creator.
func awaitLeaders(ctx context.Context, client *kafka.Client, topic string, partitions int) error {
	const poll = 10 * time.Millisecond
	for {
		ready := 0
		meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err == nil && len(meta.Topics) == 1 {
			for _, p := range meta.Topics[0].Partitions {
				if p.Error == nil && p.Leader.Port != 0 {
					ready++
				}
			}
		}
		if ready == partitions {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d partitions have a leader: %w", ready, partitions, ctx.Err())
		case <-time.After(poll):
		}
	}
}

// MySQL returns the DSN of an empty database of the test's own on a shared MySQL or MariaDB server. It is dropped when the
// test ends.
func MySQL(t testing.TB) (dsn string) {
	t.Helper()
	return MySQLDatabase(t, sharedMySQL.get(t))
}

// MySQLDatabase makes an empty database on the server that dsn names, returns its DSN, and drops it when the test ends, if
// the server can still be reached then.
func MySQLDatabase(t testing.TB, dsn string) string {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("parse the MySQL DSN: %v", err)
	}
	name := UniqueName("db")
	cfg.DBName = ""
	server := cfg.FormatDSN()
	if err := mysqlExec(server, "CREATE DATABASE `"+name+"` CHARACTER SET utf8mb4"); err != nil {
		t.Fatalf("create database %s: %v", name, err)
	}
	t.Cleanup(func() { _ = mysqlExec(server, "DROP DATABASE IF EXISTS `"+name+"`") })
	cfg.DBName = name
	return cfg.FormatDSN()
}

func mysqlExec(dsn, statement string) error {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// setupTimeout bounds one statement that makes or drops what a test works in.
const setupTimeout = 30 * time.Second

// redisClaim is how long a test keeps its database if it dies: longer than any test runs.
const redisClaim = time.Hour

// Redis returns the URL of an empty database of the test's own on a shared Redis server. It is emptied when the test ends.
// FLUSHALL, CONFIG and SCRIPT FLUSH reach the other tests, too: a test that needs them takes StartRedis.
func Redis(t testing.TB) (address string) {
	t.Helper()
	u, err := url.Parse(sharedRedis.get(t))
	if err != nil {
		t.Fatalf("parse the Redis URL: %v", err)
	}
	u.Path = "/0"
	claims := redisClient(t, u.String())
	ctx, cancel := engineContext()
	defer cancel()
	databases, err := claims.ConfigGet(ctx, "databases").Result()
	if err != nil {
		t.Fatalf("ask Redis for the number of its databases: %v", err)
	}
	n, err := strconv.Atoi(databases["databases"])
	if err != nil {
		t.Fatalf("read the number of Redis's databases: %v", err)
	}
	// Database 0 holds the claims, so that tests of several binaries share a server.
	for db := 1; db < n; db++ {
		key := "ledgertest:claim:" + strconv.Itoa(db)
		if _, err := claims.SetArgs(ctx, key, t.Name(), redis.SetArgs{Mode: "NX", TTL: redisClaim}).Result(); errors.Is(err, redis.Nil) {
			continue
		} else if err != nil {
			t.Fatalf("claim a Redis database: %v", err)
		}
		u.Path = "/" + strconv.Itoa(db)
		client := redisClient(t, u.String())
		if err := client.FlushDB(ctx).Err(); err != nil {
			t.Fatalf("empty a Redis database: %v", err)
		}
		t.Cleanup(func() {
			ctx, cancel := engineContext()
			defer cancel()
			client.FlushDB(ctx)
			claims.Del(ctx, key)
		})
		return u.String()
	}
	t.Fatalf("claim a Redis database: all %d are taken", n-1)
	return ""
}

func redisClient(t testing.TB, address string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(address)
	if err != nil {
		t.Fatalf("parse the Redis URL: %v", err)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	return client
}

// ClickHouse returns the DSN of an empty database of the test's own on a shared ClickHouse engine. It is dropped when the
// test ends.
func ClickHouse(t testing.TB) (dsn string) {
	t.Helper()
	return ClickHouseDatabase(t, sharedClick.get(t))
}

// ClickHouseDatabase makes an empty database on the server that dsn names, returns its DSN, and drops it when the test
// ends, if the server can still be reached then.
func ClickHouseDatabase(t testing.TB, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatalf("parse the ClickHouse DSN: %v", err)
	}
	name := UniqueName("db")
	u.Path = "/default"
	server := u.String()
	if err := clickhouseExec(server, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("create database %s: %v", name, err)
	}
	t.Cleanup(func() { _ = clickhouseExec(server, "DROP DATABASE IF EXISTS "+name+" SYNC") })
	u.Path = "/" + name
	return u.String()
}

func clickhouseExec(dsn, statement string) error {
	o, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	return conn.Exec(ctx, statement)
}

// UniqueName returns a name that no other test has, in lower-case letters, digits and underscores: for databases, topics
// and consumer groups. It begins with ll_ and the given word.
func UniqueName(word string) string {
	return "ll_" + word + "_" + strings.ToLower(rand.Text()[:12])
}
