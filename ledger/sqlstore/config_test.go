package sqlstore

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"ledgerline/ledger/ledgertest"
)

func TestCheckDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"":                            "",
		"local":                       "",
		"local.db":                    "",
		"root:pw@tcp(db:3306)/oneapi": "",
		"root:pw@tcp(db:3306)/oneapi?loc=Local&parseTime=false": "",
		"postgres://u:secret@h/db":                              "PostgreSQL",
		"postgresql://u:secret@h/db":                            "PostgreSQL",
		"clickhouse://u:secret@h:9000/db":                       "LOG_SQL_DSN",
		"tcp://h:9000/secret":                                   "LOG_SQL_DSN",
		"mysql://u:secret@h/db":                                 "not supported",
		"root:secret@tcp(db:3306)/":                             "no database",
		"root:secret@tcp(db:3306":                               "SQL_DSN",
	} {
		err := CheckDSN(dsn)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", dsn, err)
			}
			continue
		}
		switch {
		case err == nil:
			t.Errorf("%q is accepted", dsn)
		case !strings.HasPrefix(err.Error(), "SQL_DSN: ") || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "allowed: "):
			t.Errorf("%q: %v", dsn, err)
		case strings.Contains(err.Error(), "secret"):
			t.Errorf("%q: the error tells the password: %v", dsn, err)
		}
	}
}

func TestDSNIsMadeReliable(t *testing.T) {
	cfg, err := mysqlConfig("root:pw@tcp(db:3306)/oneapi?parseTime=false&interpolateParams=false&charset=latin1")
	must(t, err)
	if dsn := cfg.FormatDSN(); !strings.Contains(dsn, "parseTime=true") || !strings.Contains(dsn, "interpolateParams=true") || !strings.Contains(dsn, "charset=utf8mb4") || !strings.Contains(dsn, "clientFoundRows=true") {
		t.Error(dsn)
	}
}

func TestSQLitePath(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"one-api.db?_busy_timeout=30000", "deep/er/a b%#.db"} {
		s := opened(t, Config{DSN: "local", SQLitePath: filepath.Join(dir, path)})
		must(t, s.Migrate(t.Context()))
		file, _, _ := strings.Cut(path, "?")
		if s.name != filepath.Join(dir, file) {
			t.Errorf("%q opened %q", path, s.name)
		}
		var mode string
		var sync int
		must(t, s.write.QueryRow("PRAGMA journal_mode").Scan(&mode))
		must(t, s.write.QueryRow("PRAGMA synchronous").Scan(&sync))
		if mode != "wal" || sync != 2 {
			t.Errorf("journal_mode %s, synchronous %d", mode, sync)
		}
	}
	if m, _ := filepath.Glob(filepath.Join(dir, "deep", "er", "a b%#.db*")); len(m) == 0 {
		t.Error("the file has another name")
	}
	for _, path := range []string{"", ":memory:", "?x"} {
		if _, err := Open(t.Context(), Config{SQLitePath: path}); err == nil {
			t.Errorf("%q is accepted", path)
		}
	}
}

// MySQL commits each DDL statement by itself: a master that is killed before a migration is noted runs it again.
func TestMigrateIsRepeatedAfterAKill(t *testing.T) {
	s := openMySQL(t, ledgertest.MySQL(t))
	must(t, s.Migrate(t.Context()))
	var newest int
	must(t, s.db.QueryRow("SELECT MAX(version_id) FROM "+migrationTable).Scan(&newest))
	for version := 0; version <= newest; version++ { // before 0 the table of versions is empty
		if _, err := s.db.Exec("DELETE FROM "+migrationTable+" WHERE version_id >= ?", version); err != nil {
			t.Fatal(err)
		}
		if err := s.Migrate(t.Context()); err != nil {
			t.Errorf("from version %d on once more: %v", version, err)
		}
		must(t, s.CheckSchema(t.Context()))
	}
}

func TestMigrateTwiceAndAtOnce(t *testing.T) {
	run := func(t *testing.T, stores [2]*Store) {
		var schema *SchemaError
		if err := stores[0].CheckSchema(t.Context()); !errors.As(err, &schema) || !errors.Is(err, ErrSchemaOlder) || schema.Database != 0 {
			t.Errorf("before: %v", err)
		}
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() { errs[i] = s.Migrate(t.Context()) })
		}
		wg.Wait()
		must(t, errors.Join(errs...))
		must(t, stores[0].Migrate(t.Context()))
		must(t, stores[1].CheckSchema(t.Context()))
		exec(t, stores[0], "INSERT INTO ledger_migrations (version_id, is_applied) VALUES (9000, 1)")
		for _, err := range []error{stores[0].Migrate(t.Context()), stores[0].CheckSchema(t.Context())} {
			if !errors.As(err, &schema) || !errors.Is(err, ErrSchemaNewer) || schema.Database != 9000 {
				t.Errorf("newer: %v", err)
			}
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		s := openSQLite(t)
		run(t, [2]*Store{s, opened(t, Config{SQLitePath: s.name})})
	})
	t.Run("mysql", func(t *testing.T) {
		dsn := ledgertest.MySQL(t)
		run(t, [2]*Store{openMySQL(t, dsn), openMySQL(t, dsn)})
	})
}

func TestLockIsHeldByOne(t *testing.T) {
	run := func(t *testing.T, stores [2]*Store) {
		ctx := t.Context()
		first, ok, err := stores[0].TryLock(ctx, "master")
		if must(t, err); !ok {
			t.Fatal("a free lock was not given")
		}
		for i, s := range stores {
			if _, ok, err := s.TryLock(ctx, "master"); ok || err != nil {
				t.Errorf("store %d: a second lock: %v, %v", i, ok, err)
			}
		}
		other, ok, err := stores[1].TryLock(ctx, "other")
		if must(t, err); !ok {
			t.Error("another name was refused")
		}
		other.Unlock()
		must(t, first.Held(ctx))
		first.Unlock()
		second, ok, err := stores[1].TryLock(ctx, "master")
		if must(t, err); !ok {
			t.Fatal("a lock that was given back is still held")
		}
		second.Unlock()
	}
	t.Run("sqlite", func(t *testing.T) {
		s := openSQLite(t)
		run(t, [2]*Store{s, opened(t, Config{SQLitePath: s.name})})
	})
	t.Run("mysql", func(t *testing.T) {
		dsn := ledgertest.MySQL(t)
		s := openMySQL(t, dsn)
		run(t, [2]*Store{s, openMySQL(t, dsn)})

		// A process that hangs keeps its locks for as long as its silence is borne.
		var borne int
		must(t, s.db.QueryRowContext(t.Context(), "SELECT @@SESSION.wait_timeout").Scan(&borne))
		if borne != int(silence.Seconds()) {
			t.Errorf("the server bears silence for %d s, want %s", borne, silence)
		}
		// A server that ends silent connections does not end the lock.
		hasty, ok, err := openMySQL(t, dsn).TryLock(t.Context(), "silent")
		if must(t, err); !ok {
			t.Fatal("a free lock was not given")
		}
		must(t, hasty.conn.QueryRowContext(t.Context(), "SELECT @@SESSION.wait_timeout").Scan(&borne))
		if year := 31_536_000; borne != year {
			t.Errorf("the server bears the silence of a lock for %d s, want %d", borne, year)
		}
		hasty.Unlock()

		lock, _, err := s.TryLock(t.Context(), "lost")
		must(t, err)
		killConnections(t, s)
		if err := lock.Held(t.Context()); err == nil {
			t.Error("a lock whose connection was killed is still held")
		}
		lock.Unlock()
	})
}

// killConnections ends every other connection to the database, as a failover does.
func killConnections(t *testing.T, s *Store) {
	t.Helper()
	ids := value[[]int64](t)(s.readIDs(t.Context(), "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"))
	if len(ids) == 0 {
		t.Fatal("no connection to kill")
	}
	for _, id := range ids {
		_, _ = s.db.ExecContext(t.Context(), new(statement).text("KILL ").int(id).String())
	}
}

func TestLogIsInitialisedOnce(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		want := LogInfo{Topic: "usage", ClusterID: "c", Partitions: testPartitions}
		diff(t, "second caller", value[LogInfo](t)(s.InitLog(t.Context(), LogInfo{Topic: "other", Partitions: 99})), want)
		diff(t, "stored", value[LogInfo](t)(s.Log(t.Context())), want)
		if n := len(value[[]PartitionState](t)(s.Partitions(t.Context()))); n != testPartitions {
			t.Errorf("%d partitions", n)
		}
		if _, err := s.Meta(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		must(t, s.SetMeta(t.Context(), "a", "1"))
		must(t, s.SetMeta(t.Context(), "a", "2"))
		if got := value[string](t)(s.Meta(t.Context(), "a")); got != "2" {
			t.Errorf("meta %q", got)
		}
	})
}

func TestOffsetsRoundTrip(t *testing.T) {
	for _, list := range [][]int64{nil, {5}, {5, 6, 7}, {0, 2, 3, 9}} {
		diff(t, "offsets", value[[]int64](t)(decodeOffsets(encodeOffsets(list))), list)
	}
	if text := encodeOffsets([]int64{5, 6, 7, 9}); text != "[5,3,9,1]" {
		t.Error(text)
	}
}

func FuzzDecodeOffsets(f *testing.F) {
	for _, seed := range []string{"[]", "[5,3,9,1]", "[1]", "[1,-1]", "[1,9999999999999]", "{}", "[9223372036854775807,2]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := decodeOffsets(text)
		if err != nil {
			return
		}
		if len(list) > maxSkipped {
			t.Fatalf("%d offsets", len(list))
		}
		if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			return
		}
		if again, err := decodeOffsets(encodeOffsets(list)); err != nil || !slices.Equal(again, list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
	})
}
