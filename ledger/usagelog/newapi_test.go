package usagelog_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// The tables that New API makes: on MySQL in a collation that is not ours, on SQLite as an old release made it.
var newAPITables = map[string]string{
	"sqlite": "CREATE TABLE logs (id integer PRIMARY KEY AUTOINCREMENT, user_id integer, created_at bigint, type integer, content text, " +
		"username text DEFAULT '', token_name text DEFAULT '', model_name text DEFAULT '', quota integer DEFAULT 0, prompt_tokens integer DEFAULT 0, " +
		"completion_tokens integer DEFAULT 0, use_time integer DEFAULT 0, is_stream numeric, channel_id integer, channel_name text, " +
		"token_id integer DEFAULT 0, `group` text, other text)",
	"mysql": "CREATE TABLE logs (id bigint(20) NOT NULL AUTO_INCREMENT PRIMARY KEY, user_id bigint, created_at bigint, type bigint, content longtext, " +
		"username varchar(191) DEFAULT '', token_name varchar(191) DEFAULT '', model_name varchar(191) DEFAULT '', quota bigint DEFAULT 0, " +
		"prompt_tokens bigint DEFAULT 0, completion_tokens bigint DEFAULT 0, use_time bigint DEFAULT 0, is_stream tinyint(1), channel_id bigint, " +
		"channel_name longtext, token_id bigint DEFAULT 0, `group` varchar(191), ip varchar(191) DEFAULT '', request_id varchar(64) DEFAULT '', " +
		"upstream_request_id varchar(128) DEFAULT '', other longtext) DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
	"clickhouse": "CREATE TABLE logs (id Int64, user_id Int32, created_at Int64, type Int32, content String, username String, token_name String, " +
		"model_name String, quota Int32, prompt_tokens Int32, completion_tokens Int32, use_time Int32, is_stream UInt8, channel_id Int32, " +
		"token_id Int32, `group` String, ip String, request_id String, upstream_request_id String, other String) " +
		"ENGINE = MergeTree PARTITION BY toYYYYMM(toDateTime(created_at)) ORDER BY (created_at, request_id)",
}

// raw runs statements beside the store.
type raw struct {
	exec  func(statement string)
	count func(query string) int64
}

func rawOf(t *testing.T, cfg usagelog.Config) raw {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if usagelog.IsClickHouse(cfg.DSN) {
		o, err := clickhouse.ParseDSN(cfg.DSN)
		fail(err)
		conn, err := clickhouse.Open(o)
		fail(err)
		t.Cleanup(func() { _ = conn.Close() })
		return raw{
			exec: func(statement string) { t.Helper(); fail(conn.Exec(ctx, statement)) },
			count: func(query string) (n int64) {
				t.Helper()
				fail(conn.QueryRow(ctx, query).Scan(&n))
				return n
			},
		}
	}
	driver, dsn := "mysql", cfg.DSN
	if dsn == "" {
		path, _, _ := strings.Cut(cfg.SQLitePath, "?")
		driver, dsn = "sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: "_pragma=busy_timeout(10000)"}).String()
	}
	db, err := sql.Open(driver, dsn)
	fail(err)
	t.Cleanup(func() { _ = db.Close() })
	return raw{
		exec: func(statement string) { t.Helper(); _, err := db.ExecContext(ctx, statement); fail(err) },
		count: func(query string) (n int64) {
			t.Helper()
			fail(db.QueryRowContext(ctx, query).Scan(&n))
			return n
		},
	}
}

// requestAt makes the record of a request of user 1 at a second.
func requestAt(t testing.TB, offset, second int64, change func(*ledger.Event)) ledger.Record {
	t.Helper()
	e := ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: ledger.ID{0: 1, 1: byte(offset >> 16), 2: byte(offset >> 8), 3: byte(offset)},
		Producer: ledger.ID{9}, Seq: uint64(offset) + 1, Prev: uint64(offset), Time: second * 1000,
		User: 1, Token: 5, Channel: 6, Charged: 10, Requests: 1,
		Request: &ledger.Request{ID: fmt.Sprint("ours-", offset), Username: "ann", Model: "gpt-4o", Group: "default"},
		Usage:   &ledger.Usage{Prompt: 1, Completion: 2},
	}
	if change != nil {
		change(&e)
	}
	value, err := e.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := ledger.Record{Offset: offset, Value: value}
	if r.Event, r.Err = ledger.Decode(value); r.Err != nil {
		t.Fatal(r.Err)
	}
	return r
}

const day = 86400

// TestNewAPIRowsAreReadToo: a table of New API's stays, is listed together with ours, and counts in the summary.
func TestNewAPIRowsAreReadToo(t *testing.T) {
	const base = 1_764_288_000
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ctx, cfg := t.Context(), config(t)
			db := rawOf(t, cfg)
			db.exec(newAPITables[name])
			for i := range 10 {
				db.exec(fmt.Sprintf("INSERT INTO logs (user_id, created_at, type, content, username, model_name, quota, prompt_tokens, is_stream, token_id, channel_id, `group`, other) "+
					"VALUES (1, %d, 2, 'old-%d', 'ann', 'gpt-4o', 7, 3, 1, 5, 6, 'default', '')", base+2*i, i))
			}
			if name != "clickhouse" {
				db.exec("INSERT INTO logs (created_at, type, user_id) VALUES (NULL, NULL, 77)")
			}
			s := open(t, cfg)
			var records []ledger.Record
			for i := range int64(10) {
				records = append(records, requestAt(t, i, base+2*i+1, nil))
			}
			if err := (suite{s}).Append(ctx, 0, 10, records); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i := 9; i >= 0; i-- {
				want = append(want, fmt.Sprint("ours-", i), fmt.Sprint("old-", i))
			}
			var got []string
			for skip := 0; skip < 21; skip += 3 {
				list, err := s.List(ctx, usagelog.Filter{Type: usagelog.TypeConsume}, usagelog.Page{Skip: skip, Limit: 3})
				if err != nil {
					t.Fatal(err)
				}
				if list.Total != 20 || list.More {
					t.Errorf("total %d, more %v; want 20", list.Total, list.More)
				}
				for _, e := range list.Entries {
					got = append(got, e.Content+e.RequestID)
					if e.UserID != 1 || e.Username != "ann" || e.Type != usagelog.TypeConsume || e.Group != "default" {
						t.Errorf("row %+v", e)
					}
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			st, err := s.Stat(ctx, usagelog.Filter{Username: "ann"}, time.Unix(base+20, 0))
			if diff := cmp.Diff(usagelog.Stat{Quota: 170, RPM: 20, TPM: 60}, st); diff != "" || err != nil {
				t.Errorf("Stat %v (-want +got):\n%s", err, diff)
			}
			shares, err := s.Shares(ctx, usagelog.Filter{Username: "ann"}, usagelog.ByFlow)
			if err != nil || len(shares) != 1 && len(shares) != 2 {
				t.Fatalf("flow: %+v, %v", shares, err)
			}
			sum := shares[0]
			if len(shares) == 2 { // the node's name is in our rows only
				sum.Tokens, sum.Count, sum.Quota = sum.Tokens+shares[1].Tokens, sum.Count+shares[1].Count, sum.Quota+shares[1].Quota
			}
			if sum.Count != 20 || sum.Quota != 170 || sum.Tokens != 60 || sum.UserID != 1 || sum.Username != "ann" || sum.TokenID != 5 || sum.Group != "default" || sum.Hour != 0 {
				t.Errorf("flow: %+v", shares)
			}
			if rows, err := s.TokenLatest(ctx, 5); err != nil || len(rows) != 20 {
				t.Errorf("TokenLatest: %d rows, %v; want 20", len(rows), err)
			}
			list, err := s.List(ctx, usagelog.Filter{RequestID: "ours-3"}, usagelog.Page{Limit: 3})
			if err != nil || list.Total != 1 {
				t.Errorf("by request: %+v, %v; want one row", list, err)
			}
			if name != "clickhouse" {
				list, err := s.List(ctx, usagelog.Filter{User: 77}, usagelog.Page{Limit: 3})
				if err != nil || len(list.Entries) != 1 {
					t.Errorf("row of NULLs: %+v, %v", list, err)
				}
			}
			n, err := s.DeleteBefore(ctx, time.Unix(base+10, 0), time.Unix(base+10, 0))
			if err != nil || n < 10 {
				t.Errorf("DeleteBefore = %d, %v; want 10", n, err)
			}
			if n := db.count("SELECT CAST(COUNT(*) AS " + map[string]string{"clickhouse": "Int64", "mysql": "SIGNED", "sqlite": "integer"}[name] + ") FROM logs WHERE created_at > 0"); n != 5 {
				t.Errorf("%d of New API's rows left, want 5", n)
			}
		})
	}
}

// TestLogsView: on a fresh database the queries that were written for New API's table work.
func TestLogsView(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			s := open(t, cfg)
			r := requestAt(t, 0, 20*day, nil)
			for offset := range int64(2) { // a copy must not count
				r.Offset = offset
				if err := (suite{s}).Append(t.Context(), 0, offset+1, []ledger.Record{r}); err != nil {
					t.Fatal(err)
				}
			}
			db := rawOf(t, cfg)
			integer := map[string]string{"clickhouse": "toInt64(SUM(quota))", "mysql": "CAST(SUM(quota) AS SIGNED)", "sqlite": "SUM(quota)"}[name]
			if n := db.count("SELECT " + integer + " FROM logs WHERE type = 2 AND `group` = 'default' AND created_at >= 0 AND model_name = 'gpt-4o' AND channel_id = 6 AND is_stream = 0 AND id >= 0"); n != 10 {
				t.Errorf("sum over the view = %d, want 10", n)
			}
			again := open(t, cfg) // with the view there
			if list, err := again.List(t.Context(), usagelog.Filter{}, usagelog.Page{Limit: 9}); err != nil || list.Total != 1 {
				t.Errorf("List = %+v, %v; want one row", list, err)
			}
		})
	}
}

func TestDeleteBeforeKeepsWhatASnapshotNeeds(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s := open(t, config(t))
			var records []ledger.Record
			for i := range int64(40) {
				records = append(records, requestAt(t, i, (1000+i)*day, nil))
			}
			if err := (suite{s}).Append(ctx, 0, 40, records); err != nil {
				t.Fatal(err)
			}
			for _, needed := range []time.Time{{}, time.Unix(1009*day, 0)} {
				_, err := s.DeleteBefore(ctx, time.Unix(1010*day, 0), needed)
				if refused, ok := err.(*usagelog.RetentionError); !ok || !refused.Needed.Equal(needed) { //nolint:errorlint // exactly this error is wanted
					t.Errorf("needed %v: %v, want a RetentionError", needed, err)
				}
			}
			n, err := s.DeleteBefore(ctx, time.Unix(1010*day, 0), time.Unix(1010*day, 0))
			if err != nil || n != 10 {
				t.Errorf("DeleteBefore = %d, %v; want 10", n, err)
			}
			var offsets []int64
			err = s.Scan(ctx, 0, 0, 40, func(offset int64, _ []byte) error {
				offsets = append(offsets, offset)
				return nil
			})
			if err != nil || len(offsets) != 30 || offsets[0] != 10 {
				t.Errorf("events left: %v, %v; want 10 to 39", offsets, err)
			}
			if list, err := s.List(ctx, usagelog.Filter{}, usagelog.Page{}); err != nil || list.Total != 30 {
				t.Errorf("rows left: %+v, %v; want 30", list, err)
			}
		})
	}
}

func TestSchemaVersions(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ctx, cfg := t.Context(), config(t)
			fresh, err := usagelog.Open(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()
			if err := fresh.CheckSchema(ctx); !isErr(err, usagelog.ErrSchemaOlder) {
				t.Errorf("before Migrate: %v, want ErrSchemaOlder", err)
			}
			s := open(t, cfg)
			rawOf(t, cfg).exec("INSERT INTO ledger_usage_schema (version, applied_at) VALUES (99, 1)")
			if err := s.CheckSchema(ctx); !isErr(err, usagelog.ErrSchemaNewer) {
				t.Errorf("CheckSchema: %v, want ErrSchemaNewer", err)
			}
			if err := s.Migrate(ctx); !isErr(err, usagelog.ErrSchemaNewer) {
				t.Errorf("Migrate: %v, want ErrSchemaNewer", err)
			}
		})
	}
}
