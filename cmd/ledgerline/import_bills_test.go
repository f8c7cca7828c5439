package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/usagelog"
)

// The rows of the recorded database that are bills.
const recordedRows = 2868

// recordedDatabase loads the database that New API made.
func recordedDatabase(t *testing.T) (dsn string, db *sql.DB) {
	t.Helper()
	dsn = ledgertest.MySQL(t)
	db = openedSQL(t, "mysql", dsn)
	f, err := os.Open("../../ledger/testdata/newapi/newapi-mysql.sql.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context()) // the dump sets variables of its session
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for statement := range strings.SplitSeq(string(text), ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%v\n%.200s", err, statement)
		}
	}
	return dsn, db
}

func openedSQL(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Columns of the tables that a check reads, in one order everywhere.
var copiedTables = map[string][]string{
	"logs": {
		"id", "user_id", "created_at", "type", "content", "username", "token_name", "model_name", "quota", "prompt_tokens", "completion_tokens",
		"use_time", "is_stream", "channel_id", "token_id", "`group`", "ip", "request_id", "upstream_request_id", "other",
	},
	"options": {"`key`", "value"},
	"users":   {"id", "`group`"},
}

// copyTable copies rows with their columns as text and numbers.
func copyTable(t *testing.T, from *sql.DB, table string, insert func(row []any)) {
	t.Helper()
	columns := copiedTables[table]
	rows, err := from.QueryContext(t.Context(), "SELECT "+strings.Join(columns, ", ")+" FROM "+table+" ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		row := make([]any, len(columns))
		into := make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, v := range row {
			if text, ok := v.([]byte); ok {
				row[i] = string(text)
			}
		}
		insert(row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// recordedFile copies what a check reads into a SQLite file, as an old release of New API has it.
func recordedFile(t *testing.T, from *sql.DB) (path string, db *sql.DB) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "one-api.db")
	db = openedSQL(t, "sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path}).String())
	for table, columns := range copiedTables {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		exec := func(q string, args ...any) {
			t.Helper()
			if _, err := tx.ExecContext(t.Context(), q, args...); err != nil {
				t.Fatal(err)
			}
		}
		exec("CREATE TABLE " + table + " (" + strings.Join(columns, ", ") + ", PRIMARY KEY (" + columns[0] + "))")
		copyTable(t, from, table, func(row []any) {
			t.Helper()
			exec("INSERT INTO "+table+" VALUES (?"+strings.Repeat(", ?", len(row)-1)+")", row...)
		})
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return path, db
}

// recordedClickHouse copies the logs into ClickHouse, as New API makes the table there.
func recordedClickHouse(t *testing.T, from *sql.DB) (dsn string) {
	t.Helper()
	dsn = ledgertest.ClickHouse(t)
	o, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	err = conn.Exec(t.Context(), "CREATE TABLE logs (id Int64, user_id Int32, created_at Int64, type Int32, content String, username String, token_name String, "+
		"model_name String, quota Int32, prompt_tokens Int32, completion_tokens Int32, use_time Int32, is_stream UInt8, channel_id Int32, "+
		"token_id Int32, `group` String, ip String, request_id String, upstream_request_id String, other String) "+
		"ENGINE = MergeTree PARTITION BY toYYYYMM(toDateTime(created_at)) ORDER BY (created_at, request_id)")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO logs")
	if err != nil {
		t.Fatal(err)
	}
	number := func(v any) int64 {
		n, _ := v.(int64)
		return n
	}
	text := func(v any) string {
		s, _ := v.(string)
		return s
	}
	copyTable(t, from, "logs", func(r []any) {
		err := batch.Append(int64(0), int32(number(r[1])), number(r[2]), int32(number(r[3])), text(r[4]), text(r[5]), text(r[6]), text(r[7]),
			int32(number(r[8])), int32(number(r[9])), int32(number(r[10])), int32(number(r[11])), uint8(number(r[12])), int32(number(r[13])),
			int32(number(r[14])), text(r[15]), text(r[16]), text(r[17]), text(r[18]), text(r[19]))
		if err != nil {
			t.Fatal(err)
		}
	})
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	return dsn
}

// checked runs the command and returns its report and what it said.
func checked(t *testing.T, env map[string]string, args ...string) (view billsView, said string, err error) {
	t.Helper()
	var out, stderr bytes.Buffer
	err = importCommand(t.Context(), append([]string{"-check-bills", "-json"}, args...), envOf(env), &out, &stderr)
	if err == nil || errors.Is(err, errReported) {
		if err := json.Unmarshal(out.Bytes(), &view); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
	}
	return view, stderr.String(), err
}

// Every bill of the database that New API made agrees to the unit, wherever its logs are, and a check leaves no trace but the
// report that was asked for.
func TestCheckBillsOfTheRecordedDatabase(t *testing.T) {
	dsn, db := recordedDatabase(t)
	click := recordedClickHouse(t, db)
	t.Chdir(t.TempDir())
	file, fileDB := recordedFile(t, db)
	if err := fileDB.Close(); err != nil {
		t.Fatal(err)
	}
	elsewhere := ledgertest.MySQL(t)
	other := openedSQL(t, "mysql", elsewhere)
	for _, q := range []string{"CREATE TABLE logs LIKE `" + nameOf(t, db) + "`.logs", "INSERT INTO logs SELECT * FROM `" + nameOf(t, db) + "`.logs"} {
		if _, err := other.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	for name, env := range map[string]map[string]string{
		"MySQL":                        {"SQL_DSN": dsn},
		"logs in another MySQL":        {"SQL_DSN": dsn, "LOG_SQL_DSN": elsewhere},
		"logs in ClickHouse":           {"SQL_DSN": dsn, "LOG_SQL_DSN": click},
		"SQLite":                       {"SQLITE_PATH": file},
		"SQLite, logs in another base": {"SQLITE_PATH": file, "LOG_SQL_DSN": elsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			before := fingerprint(t, db, file)
			env["DATA_DIR"] = filepath.Join(t.TempDir(), "data")
			page := filepath.Join(t.TempDir(), "report.html")
			view, _, err := checked(t, env, "-html", page)
			if err != nil {
				t.Fatal(err)
			}
			if m := view.Outcomes[0]; !view.OK || view.Bills != recordedRows || m.Outcome != ledger.BillMatched || m.Bills != recordedRows || m.Charged != m.Today {
				t.Errorf("%+v", view)
			}
			if after := fingerprint(t, db, file); after != before {
				t.Errorf("the check changed a database:\nbefore %s\nafter  %s", before, after)
			}
			if _, err := os.Stat(env["DATA_DIR"]); err == nil {
				t.Error("a state file is left after the end")
			}
			text, err := os.ReadFile(page)
			if err != nil || !bytes.Contains(text, []byte("All 2,868 bills agree to the unit.")) {
				t.Errorf("the page lacks the verdict: %v", err)
			}
		})
	}
}

func nameOf(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT DATABASE()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

// fingerprint is of all that a database holds: its tables with their checksums, and the bytes of the file.
func fingerprint(t *testing.T, db *sql.DB, file string) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, name)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, table := range tables {
		var name string
		var checksum sql.NullInt64
		if err := db.QueryRowContext(t.Context(), "CHECKSUM TABLE `"+table+"`").Scan(&name, &checksum); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %d, ", table, checksum.Int64)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "file %x", sha256.Sum256(text))
	return b.String()
}

// smallDatabase is a SQLite file with bills of a cent each, in which quota is what the row was charged.
func smallDatabase(t *testing.T, bills int, change func(exec func(q string, args ...any))) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "one-api.db")
	db := openedSQL(t, "sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path}).String())
	exec := func(q string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE logs (id integer PRIMARY KEY, user_id integer, created_at bigint, type integer, model_name text, quota integer, " +
		"prompt_tokens integer, completion_tokens integer, `group` text, other text)")
	exec("CREATE TABLE options (`key` text PRIMARY KEY, value text)")
	exec("CREATE TABLE users (id integer PRIMARY KEY, `group` text)")
	exec("INSERT INTO users VALUES (1, 'default')")
	exec(`INSERT INTO options VALUES ('ModelRatio', '{"house": 2}'), ('ModelPrice', '{}')`)
	exec("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "+
		`INSERT INTO logs SELECT i, 1, 1764288000 + i, 2, 'house', 200, 100, 0, 'default', '{"model_ratio":2,"model_price":-1,"group_ratio":1,"completion_ratio":1}' FROM n`, bills)
	if change != nil {
		change(exec)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// What does not agree is told by its reason, with examples, the sum and an exit code; a span leaves out the rest.
func TestCheckBillsTellsReasons(t *testing.T) {
	t.Chdir(t.TempDir())
	file := smallDatabase(t, 20, func(exec func(string, ...any)) {
		exec("UPDATE logs SET quota = 201 WHERE id = 3")
		exec("UPDATE logs SET other = NULL, quota = 7 WHERE id = 4")
		exec(`UPDATE logs SET quota = 300, other = '{"model_ratio":3,"model_price":-1,"group_ratio":1,"completion_ratio":1}' WHERE id BETWEEN 5 AND 12`)
		exec("UPDATE logs SET user_id = 99, model_name = NULL, quota = 0, type = 5 WHERE id = 13")
	})
	env := map[string]string{"SQLITE_PATH": file}
	view, _, err := checked(t, env)
	if !errors.Is(err, errReported) {
		t.Fatalf("error %v, want exit code 1", err)
	}
	type line struct {
		Outcome               ledger.Agreement
		Bills, Charged, Today int64
		Difference            int64
		USD                   string
		Reason                string
		Examples              int
	}
	var got []line
	for _, r := range view.Reasons {
		got = append(got, line{r.Outcome, r.Bills, r.Charged, r.Today, r.Difference, r.DifferenceUSD, r.Reason, len(r.Examples)})
	}
	want := []line{
		{ledger.BillDiffers, 1, 201, 200, -1, "-0.000002", "neither today's options nor the row's own ratios give the quota", 1},
		{ledger.BillUnrated, 1, 7, 200, 193, "0.000386", "the row has no details (column other): ratios and cached tokens of that request are not known", 1},
		{ledger.BillRepriced, 8, 2400, 1600, -800, "-0.0016", "model ratio", maxExamples},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if view.OK || view.Bills != 19 || view.Outcomes[0].Bills != 9 {
		t.Errorf("%+v", view)
	}
	view, _, err = checked(t, env, "-since", "2025-11-28T00:00:14Z", "-until", "2025-11-28T00:00:20Z")
	if err != nil || view.Bills != 6 || view.Outcomes[0].Bills != 6 {
		t.Errorf("in a span: %v, %+v", err, view)
	}
	view, _, err = checked(t, env, "-since", "1h")
	if err != nil || view.Bills != 0 || !strings.Contains(view.Verdict, "no bills") {
		t.Errorf("of the last hour: %v, %+v", err, view)
	}
	var out bytes.Buffer
	if err := importCommand(t.Context(), []string{"-check-bills"}, envOf(env), &out, io.Discard); !errors.Is(err, errReported) {
		t.Errorf("error %v", err)
	}
	for _, part := range []string{
		"Bills that differ for no known reason: 1 of 19.", "prices changed since: model ratio", "bills: 8; charged 2400, today 1600: -800 quota units, -$0.0016",
		"row 3, 2025-11-28 00:00:03 UTC, house, group default: charged 201, today 200 (ratio: input 100, output 0; model ratio 2",
		"row 5, 2025-11-28 00:00:05 UTC, house, group default: charged 300, today 200; model ratio: then 3, now 2",
	} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the report lacks %q:\n%s", part, out.String())
		}
	}
}

// A check that was stopped goes on where it was, once over each bill; with other prices, another time or on demand it begins anew.
func TestCheckBillsGoesOn(t *testing.T) {
	t.Chdir(t.TempDir())
	const bills = 9000
	file := smallDatabase(t, bills, func(exec func(string, ...any)) { exec("UPDATE logs SET quota = 201 WHERE id % 1000 = 0") })
	env := map[string]string{"SQLITE_PATH": file}
	// stop runs a check until the first batch is written down, as a kill would leave it.
	stop := func() {
		t.Helper()
		cfg, err := loadConfig(envOf(env))
		if err != nil {
			t.Fatal(err)
		}
		call := &importCall{cfg: cfg, log: slog.New(slog.DiscardHandler), stdout: io.Discard, stderr: io.Discard}
		run, err := openBillsCheck(t.Context(), call, billsFlags{})
		if err != nil {
			t.Fatal(err)
		}
		defer run.close()
		at, _, err := run.logs.FindBills(t.Context(), run.state.Span)
		if err != nil {
			t.Fatal(err)
		}
		run.state.At, run.state.Next = at, at.First
		killed := errors.New("killed")
		err = run.logs.Bills(t.Context(), run.state.Span, at, func(bills []ledger.LoggedBill, next int64) error {
			if err := run.batch(t.Context(), bills, next); err != nil {
				t.Fatal(err)
			}
			if err := run.save(); err != nil {
				t.Fatal(err)
			}
			return killed
		})
		if !errors.Is(err, killed) {
			t.Fatal(err)
		}
	}
	fresh := func() billsView {
		t.Helper()
		view, _, err := checked(t, env, "-state", filepath.Join(t.TempDir(), "fresh"))
		if !errors.Is(err, errReported) {
			t.Fatal(err)
		}
		return view
	}
	ignoreRate := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Rate" }, cmp.Ignore())

	stop()
	view, said, err := checked(t, env)
	if !errors.Is(err, errReported) || !strings.Contains(said, "going on after ") {
		t.Errorf("error %v, said %q", err, said)
	}
	if diff := cmp.Diff(fresh(), view, ignoreRate, cmp.AllowUnexported(billsSumView{}, billsOutcomeView{}, billsReasonView{}, billsModelView{}, billsModel{})); diff != "" {
		t.Errorf("after a stop: %s", diff)
	}
	if view.Bills != bills || view.Outcomes[3].Bills != 9 {
		t.Errorf("%+v", view)
	}

	stop()
	if _, said, _ := checked(t, env, "-since", "2025-11-28"); !strings.Contains(said, "begins anew") {
		t.Errorf("with another time: said %q", said)
	}
	stop()
	if view, said, _ := checked(t, env, "-restart"); view.Bills != bills || strings.Contains(said, "going on") {
		t.Errorf("-restart: %d bills, said %q", view.Bills, said)
	}
	stop()
	db := openedSQL(t, "sqlite", file)
	if _, err := db.ExecContext(t.Context(), `UPDATE options SET value = '{"house": 4}' WHERE "key" = 'ModelRatio'`); err != nil {
		t.Fatal(err)
	}
	if view, said, _ := checked(t, env); !strings.Contains(said, "begins anew") || view.Bills != bills {
		t.Errorf("with other prices: %d bills, said %q", view.Bills, said)
	}
}

func TestCheckBillsRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	file := smallDatabase(t, 1, nil)
	strange := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(strange, []byte("my notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := smallDatabase(t, 1, func(exec func(string, ...any)) { exec(`UPDATE options SET value = '[1]' WHERE "key" = 'ModelRatio'`) })
	empty := smallDatabase(t, 1, func(exec func(string, ...any)) { exec("DROP TABLE logs") })
	foreign := smallDatabase(t, 1, func(exec func(string, ...any)) { exec("DROP TABLE options") })
	for _, c := range []struct {
		name string
		file string
		args []string
		want string
		use  bool // a mistake of the caller: exit code 2
	}{
		{"a time that is none", file, []string{"-since", "yesterday"}, `-since "yesterday"`, true},
		{"an age that is none", file, []string{"-until", "-3d"}, `-until "-3d"`, true},
		{"a span of nothing", file, []string{"-since", "2025-01-02", "-until", "2025-01-01"}, "is not after", true},
		{"a file of something else", file, []string{"-state", strange}, "is no state file", true},
		{"a malformed price", broken, nil, "option ModelRatio", false},
		{"no logs", empty, nil, "no table logs of New API's", false},
		{"no options", foreign, nil, "New API's database?", false},
		{"nowhere to write the page", file, []string{"-html", filepath.Join(strange, "x.html")}, "write the report", false},
	} {
		_, _, err := checked(t, map[string]string{"SQLITE_PATH": c.file}, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
			continue
		}
		if _, isUsage := errors.AsType[*usageError](err); isUsage != c.use {
			t.Errorf("%s: usage error %v, want %v", c.name, isUsage, c.use)
		}
	}
	if text, _ := os.ReadFile(strange); string(text) != "my notes" {
		t.Errorf("a file of somebody else's was changed: %q", text)
	}
}

// A report stays small whatever the log holds, and counts all the same.
func TestBillsReportIsBounded(t *testing.T) {
	checker, err := ledger.NewChecker(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newBillsReport(checker.Book(), "here", usagelog.BillSpan{})
	const bills = 5000
	for i := range bills {
		bill := ledger.LoggedBill{ID: int64(i), Model: fmt.Sprint("model-", i), Prompt: 1, Quota: 5, Other: fmt.Appendf(nil, `{"detail_%d":1}`, i)}
		out := checker.Check(&bill)
		r.add(&bill, &out)
	}
	if len(r.Models) > maxModels+1 || len(r.Reasons) > maxReasons+len(ledger.Agreements()) {
		t.Errorf("%d models, %d reasons", len(r.Models), len(r.Reasons))
	}
	counted := int64(0)
	for _, s := range r.Reasons {
		counted += s.Bills
	}
	if counted != bills || r.Models[furtherModels].Bills != bills-maxModels {
		t.Errorf("%d bills in the reasons, %d of further models", counted, r.Models[furtherModels].Bills)
	}
	page, err := r.page()
	if err != nil || len(page) > 1<<20 {
		t.Errorf("a page of %d bytes, %v", len(page), err)
	}
}

// Whatever names a log holds, they are text on the page.
func TestBillsPageEscapes(t *testing.T) {
	checker, err := ledger.NewChecker(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newBillsReport(checker.Book(), "<here>", usagelog.BillSpan{Since: 1, Until: 2})
	bill := ledger.LoggedBill{Model: "<script>alert(1)</script>", Group: `"><img>`, Quota: 5, Prompt: 1, CreatedAt: time.Now().Unix()}
	out := checker.Check(&bill)
	r.add(&bill, &out)
	page, err := r.page()
	if err != nil || bytes.Contains(page, []byte("<script")) || bytes.Contains(page, []byte("<img")) {
		t.Errorf("%v\n%s", err, page)
	}
}
