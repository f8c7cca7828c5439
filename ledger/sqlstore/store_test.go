package sqlstore

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// each runs a test on every engine, on a fresh and migrated database with four partitions.
func each(t *testing.T, fn func(t *testing.T, s *Store)) {
	t.Run("sqlite", func(t *testing.T) { fn(t, initialised(t, openSQLite(t))) })
	t.Run("mysql", func(t *testing.T) { fn(t, initialised(t, openMySQL(t, ledgertest.MySQL(t)))) })
}

const testPartitions = 4

func openSQLite(t testing.TB) *Store {
	return opened(t, Config{SQLitePath: filepath.Join(t.TempDir(), "ledger.db")})
}

func openMySQL(t testing.TB, dsn string) *Store { return opened(t, Config{DSN: dsn}) }

func opened(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func initialised(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.InitLog(t.Context(), LogInfo{Topic: "usage", ClusterID: "c", Partitions: testPartitions}); err != nil {
		t.Fatal(err)
	}
	return s
}

// id makes a recognisable id.
func id(n uint64) ledger.ID {
	var out ledger.ID
	binary.BigEndian.PutUint64(out[8:], n)
	out[0] = 1
	return out
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// exec runs statements as somebody outside of Ledgerline would.
func exec(t testing.TB, s *Store, query string, args ...any) {
	t.Helper()
	if _, err := s.write.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func number(t testing.TB, s *Store, query string, args ...any) int64 {
	t.Helper()
	var n int64
	if err := s.db.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func diff(t testing.TB, what string, got, want any, opts ...cmp.Option) {
	t.Helper()
	if d := cmp.Diff(want, got, opts...); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// user makes a user with a zero balance and its account.
func user(t testing.TB, s *Store, id int64) {
	t.Helper()
	must(t, s.Tx(t.Context(), func(tx *Tx) error {
		if _, err := tx.Exec(t.Context(), "INSERT INTO users (id, username, password, aff_code) VALUES (?, ?, 'x', ?)", id, ledgerName(id), ledgerName(id)); err != nil {
			return err
		}
		return tx.EnsureAccount(t.Context(), ledger.Account{Kind: ledger.UserAccount, ID: id}, id)
	}))
}

// token makes a token with a zero balance and its account.
func token(t testing.TB, s *Store, id, user int64) {
	t.Helper()
	must(t, s.Tx(t.Context(), func(tx *Tx) error {
		if _, err := tx.Exec(t.Context(), "INSERT INTO tokens (id, user_id, `key`, name) VALUES (?, ?, ?, 'n')", id, user, ledgerName(id)); err != nil {
			return err
		}
		return tx.EnsureAccount(t.Context(), ledger.Account{Kind: ledger.TokenAccount, ID: id}, user)
	}))
}

func channel(t testing.TB, s *Store, id int64) {
	exec(t, s, "INSERT INTO channels (id, `key`, name) VALUES (?, 'sk', 'c')", id)
}

func ledgerName(id int64) string { return "n" + string(rune('a'+id%26)) + time.Duration(id).String() }

// logOf is the log of one partition as a test writes it.
type logOf struct {
	partition int
	records   []ledger.Record
	seq       map[ledger.ID]uint64
	ids       uint64
}

func newLog(partition int) *logOf { return &logOf{partition: partition, seq: map[ledger.ID]uint64{}} }

// add appends an event of a producer.
func (l *logOf) add(producer ledger.ID, e ledger.Event) *ledger.Record {
	e.Version, e.Producer, e.Prev, e.Seq = 1, producer, l.seq[producer], l.seq[producer]+1
	l.seq[producer]++
	if e.ID.IsZero() {
		l.ids++
		e.ID = id(uint64(l.partition)<<32 | l.ids)
	}
	if e.Time == 0 {
		e.Time = 1_700_000_000_000 + int64(len(l.records))*1000
	}
	return l.put(e)
}

// put appends an event as it is.
func (l *logOf) put(e ledger.Event) *ledger.Record {
	body, err := e.Encode(nil)
	if err != nil {
		panic(err)
	}
	l.records = append(l.records, ledger.Record{Partition: l.partition, Offset: int64(len(l.records)), Value: body, Event: e})
	return &l.records[len(l.records)-1]
}

func (l *logOf) end() int64 { return int64(len(l.records)) }

func (l *logOf) call(from, to int64) FlushCall {
	return FlushCall{Partition: l.partition, From: from, To: to, Records: l.records[from:to], Now: time.UnixMilli(1_800_000_000_000)}
}

// flush applies what is new and returns the result.
func (l *logOf) flush(t testing.TB, s *Store) FlushResult {
	t.Helper()
	state := value[PartitionState](t)(s.Partition(t.Context(), l.partition))
	return value[FlushResult](t)(s.Flush(t.Context(), l.call(state.Offset, l.end())))
}

func usage(user, token, channel, charged int64) ledger.Event {
	return ledger.Event{Kind: ledger.KindUsageSettled, User: user, Token: token, Channel: channel, Charged: charged, Requests: 1}
}

func balancesOf(t testing.TB, s *Store) map[ledger.Account]ledger.Balance {
	t.Helper()
	found := map[ledger.Account]ledger.Balance{}
	err := s.read(context.Background(), "SELECT kind, id, granted, charged, requests FROM ledger_accounts WHERE slot >= 0", nil, func(scan func(...any) error) error {
		var a ledger.Account
		var b ledger.Balance
		err := scan(&a.Kind, &a.ID, &b.Granted, &b.Charged, &b.Requests)
		if sum := found[a].Plus(b); !sum.IsZero() {
			found[a] = sum
		}
		return err
	})
	must(t, err)
	return found
}

// userIn returns the nth user id of a partition.
func userIn(partition, n int) int64 {
	for id := int64(1); ; id++ {
		if ledger.Partition(id, testPartitions) == partition {
			if n == 0 {
				return id
			}
			n--
		}
	}
}
