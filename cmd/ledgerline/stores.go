package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-sql-driver/mysql"
	goredis "github.com/redis/go-redis/v9"

	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// Waiting for engines at start: an engine that is still starting is waited for; a configuration that cannot work is not.
const (
	engineWait    = 2 * time.Minute
	retryStart    = 250 * time.Millisecond
	retryCeiling  = 5 * time.Second
	saySlow       = 3 * time.Second // a first try that takes longer is said, too
	usageFile     = "usage.db"
	embeddedStore = "kafka"
)

// openStores opens the database, the event log, the hot counters and the usage log.
func openStores(ctx context.Context, cfg *config, log *slog.Logger) (s stores, err error) {
	defer func() {
		if err != nil {
			s.close(log)
		}
	}()
	if err = openDatabase(ctx, cfg, &s, log); err != nil {
		return s, err
	}
	if s.lock, err = claim(ctx, cfg, s.db, log); err != nil {
		return s, err
	}
	if err = openLog(ctx, cfg, &s, log); err != nil {
		return s, err
	}
	if s.counters, err = openCounters(ctx, cfg, log); err != nil {
		return s, err
	}
	err = patiently(ctx, log, "LOG_SQL_DSN", func(ctx context.Context) error {
		s.usage, err = openUsage(ctx, cfg, log)
		return err
	})
	if _, expires := s.usage.(*usagelog.ClickHouse); expires {
		s.usageKept = time.Duration(cfg.LogTTLDays) * 24 * time.Hour
	}
	return s, err
}

func openDatabase(ctx context.Context, cfg *config, s *stores, log *slog.Logger) error {
	_ = mysql.SetLogger(mysqlLog{log}) // it refuses only nil
	if err := cfg.hasDatabase(); err != nil {
		return err
	}
	open := func(ctx context.Context) (err error) {
		s.db, err = sqlstore.Open(ctx, sqlstore.Config{
			DSN: cfg.SQLDSN, SQLitePath: cfg.SQLitePath, MaxIdle: cfg.SQLMaxIdle, MaxOpen: cfg.SQLMaxOpen,
			MaxLifetime: time.Duration(cfg.SQLMaxLifetime) * time.Second, Secret: cfg.CryptoSecret, Logger: log,
		})
		return err
	}
	if isFile(cfg.SQLDSN) {
		if err := open(ctx); err != nil {
			return fmt.Errorf("the database file %s cannot be used (SQLITE_PATH, or DATA_DIR): %w", cfg.SQLitePath, err)
		}
	} else if err := patiently(ctx, log, "SQL_DSN", open); err != nil {
		return err
	}
	if err := prepareSchema(ctx, cfg, s.db, log); err != nil || cfg.looksOn {
		return err
	}
	if err := s.db.CheckSecret(ctx); err != nil {
		return usagef("CRYPTO_SECRET: %v", err)
	}
	return nil
}

// isFile reports whether a DSN means SQLite: a file needs no waiting for.
func isFile(dsn string) bool { return dsn == "" || strings.HasPrefix(dsn, "local") }

// hasDatabase refuses a database file that is not there to a command that only looks: it would find a new and empty one.
func (c *config) hasDatabase() error {
	if !c.looksOn || !isFile(c.SQLDSN) {
		return nil
	}
	if _, err := os.Stat(c.SQLitePath); errors.Is(err, fs.ErrNotExist) {
		return usagef("there is no database at %s: work in the node's folder, or set SQL_DSN, SQLITE_PATH or DATA_DIR as the node has them", c.SQLitePath)
	}
	return nil
}

// prepareSchema migrates on a master and waits for the master on a slave.
func prepareSchema(ctx context.Context, cfg *config, db *sqlstore.Store, log *slog.Logger) error {
	if cfg.looksOn {
		err := db.CheckSchema(ctx)
		if errors.Is(err, sqlstore.ErrSchemaOlder) {
			return fmt.Errorf("%w, or with ledgerline migrate", err)
		}
		return err
	}
	if cfg.master() {
		return db.Migrate(ctx)
	}
	err := patiently(ctx, log, "the database schema (a master migrates it)", db.CheckSchema)
	if errors.Is(err, sqlstore.ErrSchemaOlder) {
		return fmt.Errorf("%w; start a node with NODE_TYPE=master first", err)
	}
	return err
}

func openLog(ctx context.Context, cfg *config, s *stores, log *slog.Logger) error {
	brokers := cfg.KafkaBrokers
	if cfg.embedded() {
		broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: dataPath(cfg, embeddedStore), Logger: log})
		if err != nil {
			return err
		}
		s.broker, brokers = broker, []string{broker.Addr()}
	}
	var err error
	if s.events, err = eventlog.NewClient(eventlog.Config{Brokers: brokers, Topic: cfg.KafkaTopic}); err != nil {
		return err
	}
	info, err := s.db.InitLog(ctx, sqlstore.LogInfo{Topic: cfg.KafkaTopic, Partitions: cfg.KafkaPartitions})
	if err != nil {
		return fmt.Errorf("store the layout of the log: %w", err)
	}
	if info.Topic != cfg.KafkaTopic {
		return usagef("KAFKA_TOPIC=%q: this database's log is the topic %q; set it to that", cfg.KafkaTopic, info.Topic)
	}
	if info.Partitions != cfg.KafkaPartitions {
		log.Warn("KAFKA_PARTITIONS is ignored: the log keeps the number it was made with", "set", cfg.KafkaPartitions, "used", info.Partitions)
	}
	s.log = info
	return patiently(ctx, log, "KAFKA_BROKERS", func(ctx context.Context) error {
		warnings, err := s.events.EnsureTopic(ctx, info.Partitions)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			if !cfg.embedded() && !cfg.looksOn {
				log.Warn("the topic is less safe than it could be", "topic", info.Topic, "problem", w)
			}
		}
		return nil
	})
}

func openCounters(ctx context.Context, cfg *config, log *slog.Logger) (counters, error) {
	if cfg.RedisURL == "" {
		return hold.NewLocal(), nil
	}
	pool := cfg.RedisPoolSize
	if pool == 0 {
		pool = cfg.RedisConnPoolSize
	}
	goredis.SetLogger(redisLog{log})
	redis, err := hold.NewRedis(hold.RedisConfig{
		URL: cfg.RedisURL, Password: cfg.RedisPassword, MasterName: cfg.RedisMaster, PoolSize: pool, Logger: log,
	})
	if err != nil {
		return nil, usagef("REDIS_CONN_STRING: %v", err)
	}
	if err := patiently(ctx, log, "REDIS_CONN_STRING", redis.Check); err != nil {
		_ = redis.Close()
		return nil, err
	}
	return redis, nil
}

// redisLog takes the lines that go-redis would print to standard error by itself: what matters of them is in the errors.
type redisLog struct{ log *slog.Logger }

// Printf implements go-redis's logger.
func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, v...))
}

// mysqlLog takes the lines that the MySQL driver would print to standard error by itself: connections that broke.
type mysqlLog struct{ log *slog.Logger }

// Print implements the driver's logger.
func (l mysqlLog) Print(v ...any) { l.log.Debug("mysql driver", "message", fmt.Sprint(v...)) }

func openUsage(ctx context.Context, cfg *config, log *slog.Logger) (usagelog.Store, error) {
	store, err := usagelog.Open(ctx, usagelog.Config{
		DSN: cfg.usageDSN(), SQLitePath: dataPath(cfg, usageFile), MaxIdle: cfg.SQLMaxIdle, MaxOpen: cfg.SQLMaxOpen,
		MaxLifetime: time.Duration(cfg.SQLMaxLifetime) * time.Second, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if !cfg.master() {
		return store, nil
	}
	if err := store.Migrate(ctx); err != nil {
		_ = store.Close()
		return nil, err
	}
	return store, nil
}

// usageDSN names the usage log's database.
func (c *config) usageDSN() string {
	if c.LogSQLDSN == "" {
		return c.SQLDSN
	}
	return c.LogSQLDSN
}

// patiently repeats f while an engine is out of reach, at most engineWait, and says what it waits for.
func patiently(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) error {
	deadline := time.Now().Add(engineWait)
	slow := time.AfterFunc(saySlow, func() {
		log.Warn("waiting", "for", what, "at_most", engineWait, "error", "no answer yet")
	})
	defer slow.Stop()
	for wait, said := retryStart, false; ; wait = min(2*wait, retryCeiling) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !worthWaiting(err) || time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if !said {
			slow.Stop()
			log.Warn("waiting", "for", what, "at_most", engineWait, "error", err)
			said = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// worthWaiting reports whether an error may pass by itself: everything but what an operator has to change.
func worthWaiting(err error) bool {
	var usage *usageError
	return !errors.As(err, &usage) && !errors.Is(err, sqlstore.ErrSchemaNewer) && !errors.Is(err, hold.ErrUnfit) &&
		!errors.Is(err, eventlog.ErrFewPartitions) && !refusesLogin(err)
}

// refusesLogin reports whether an engine answered that the account, its password or the database in the address is wrong.
func refusesLogin(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch my.Number {
		case 1044, 1045, 1049, 1130: // no access to the database, wrong password, unknown database, host not allowed
			return true
		}
	}
	if ch, ok := errors.AsType[*clickhouse.Exception](err); ok {
		switch ch.Code {
		case 81, 192, 193, 194, 516: // unknown database, unknown user, wrong and missing password, authentication failed
			return true
		}
	}
	return goredis.HasErrorPrefix(err, "WRONGPASS") || goredis.HasErrorPrefix(err, "NOAUTH")
}

func (s *stores) close(log *slog.Logger) {
	if s.usage != nil {
		logClose(log, "usage log", s.usage.Close())
	}
	if c, ok := s.counters.(interface{ Close() error }); ok {
		logClose(log, "hot counters", c.Close())
	}
	if s.events != nil {
		s.events.Close()
	}
	if s.broker != nil {
		s.broker.Close()
	}
	if s.lock != nil {
		s.lock.Unlock()
	}
	if s.db != nil {
		logClose(log, "database", s.db.Close())
	}
}

func logClose(log *slog.Logger, what string, err error) {
	if err != nil {
		log.Warn("not closed cleanly; nothing is lost", "what", what, "error", err)
	}
}
