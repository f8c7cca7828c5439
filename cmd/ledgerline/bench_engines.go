package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-sql-driver/mysql"
)

// engineNames are what the processes behind the node's variables are called in the tables.
var engineNames = map[string]string{
	"KAFKA_BROKERS": "Kafka", "SQL_DSN": "MySQL", "REDIS_CONN_STRING": "Redis", "LOG_SQL_DSN": "ClickHouse",
}

// engineTimeout bounds one statement that makes or drops a database.
const engineTimeout = 30 * time.Second

// engineEnvironment maps the addresses of test engines to the node's variables, with databases and a topic of this run's
// own; nil if the engines are not all there.
func (b *bench) engineEnvironment(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	for name, from := range map[string]string{
		"KAFKA_BROKERS": "TEST_KAFKA_BROKERS", "SQL_DSN": "TEST_MYSQL_DSN", "REDIS_CONN_STRING": "TEST_REDIS_URL", "LOG_SQL_DSN": "TEST_CLICKHOUSE_DSN",
	} {
		v := b.getenv(from)
		if v == "" {
			return nil, nil //nolint:nilnil // there are none, and nothing is wrong
		}
		out[name] = v
	}
	name := "bench_" + strconv.FormatInt(time.Now().UnixNano(), 36)
	out["KAFKA_TOPIC"] = name
	redis, err := url.Parse(out["REDIS_CONN_STRING"])
	if err != nil {
		return nil, usagef("bench: TEST_REDIS_URL: %v", err)
	}
	b.redisDBs++ // the counters of two nodes that are no cluster must not meet
	redis.Path = "/" + strconv.Itoa(b.redisDBs)
	out["REDIS_CONN_STRING"] = redis.String()
	if out["SQL_DSN"], err = b.mysqlDatabase(ctx, out["SQL_DSN"], name); err != nil {
		return nil, err
	}
	if out["LOG_SQL_DSN"], err = b.clickhouseDatabase(ctx, out["LOG_SQL_DSN"], name); err != nil {
		return nil, err
	}
	return out, nil
}

// mysqlDatabase makes a database and returns its DSN. It is dropped when the run ends.
func (b *bench) mysqlDatabase(ctx context.Context, dsn, name string) (string, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return "", usagef("bench: TEST_MYSQL_DSN: %v", err)
	}
	cfg.DBName = ""
	server := cfg.FormatDSN()
	exec := func(ctx context.Context, statement string) error {
		db, err := sql.Open("mysql", server)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		_, err = db.ExecContext(ctx, statement)
		return errors.Join(err, db.Close())
	}
	if err := exec(ctx, "CREATE DATABASE `"+name+"` CHARACTER SET utf8mb4"); err != nil {
		return "", fmt.Errorf("create MySQL database: %w", err)
	}
	b.afterwards = append(b.afterwards, func() { _ = exec(context.WithoutCancel(ctx), "DROP DATABASE `"+name+"`") })
	cfg.DBName = name
	return cfg.FormatDSN(), nil
}

// clickhouseDatabase is the same for ClickHouse.
func (b *bench) clickhouseDatabase(ctx context.Context, dsn, name string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", usagef("bench: TEST_CLICKHOUSE_DSN: %v", err)
	}
	options, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		return "", usagef("bench: TEST_CLICKHOUSE_DSN: %v", err)
	}
	exec := func(ctx context.Context, statement string) error {
		conn, err := clickhouse.Open(options)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		return errors.Join(conn.Exec(ctx, statement), conn.Close())
	}
	if err := exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("create ClickHouse database: %w", err)
	}
	b.afterwards = append(b.afterwards, func() { _ = exec(context.WithoutCancel(ctx), "DROP DATABASE "+name+" SYNC") })
	u.Path = "/" + name
	return u.String(), nil
}
