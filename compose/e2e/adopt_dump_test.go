package e2e

import (
	"compress/gzip"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "modernc.org/sqlite" // what a New API without SQL_DSN has

	"ledgerline/ledger/ledgertest"
)

// testdata/newapi.sql.gz is a database that New API made (commit 116255f0 of 2026-08-15, about v1.0.0-rc.24, on MariaDB 10.11),
// driven through its HTTP API against a mock upstream; newapi.facts.json says what is in it. All keys and names are made up.

// newAPIVersions turn the recorded database into what other versions and other operators have.
var newAPIVersions = map[string][]string{
	"recorded": nil,
	"int columns": {
		"ALTER TABLE users MODIFY quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0, MODIFY request_count int DEFAULT 0, MODIFY aff_quota int DEFAULT 0, MODIFY role int DEFAULT 1, MODIFY status int DEFAULT 1",
		"ALTER TABLE tokens MODIFY remain_quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0",
		"ALTER TABLE redemptions MODIFY quota int DEFAULT 100",
	},
	"v0.6.3": {
		"DROP TABLE auth_flows, authz_roles, casbin_rule, checkins, custom_oauth_providers, external_identity_claims, models, passkey_credentials, perf_metrics, prefill_groups, " +
			"subscription_orders, subscription_plans, subscription_pre_consume_records, system_instances, system_task_locks, system_tasks, two_fa_backup_codes, two_fas, " +
			"user_oauth_bindings, user_sessions, user_subscriptions, vendors",
		"ALTER TABLE users MODIFY quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0, MODIFY request_count int DEFAULT 0, DROP COLUMN discord_id, DROP COLUMN remark, DROP COLUMN stripe_customer, " +
			"DROP COLUMN created_at, DROP COLUMN last_login_at, DROP COLUMN auth_version",
		"ALTER TABLE tokens MODIFY remain_quota int DEFAULT 0, MODIFY used_quota int DEFAULT 0, MODIFY `key` char(48), DROP COLUMN cross_group_retry, DROP COLUMN auto_groups",
		"ALTER TABLE channels DROP COLUMN channel_info, DROP COLUMN settings, DROP COLUMN header_override, DROP COLUMN remark, DROP COLUMN param_override",
		"ALTER TABLE redemptions MODIFY quota int DEFAULT 100, DROP COLUMN expired_time",
		"ALTER TABLE top_ups DROP COLUMN payment_method, DROP COLUMN payment_provider",
		"ALTER TABLE logs DROP COLUMN ip, DROP COLUMN request_id, DROP COLUMN upstream_request_id, MODIFY quota int DEFAULT 0, MODIFY type int",
		"ALTER TABLE quota_data DROP COLUMN use_group, DROP COLUMN token_id, DROP COLUMN channel_id, DROP COLUMN node_name",
	},
	"other character sets": {
		"ALTER TABLE users CONVERT TO CHARACTER SET gbk",
		"ALTER TABLE tokens CONVERT TO CHARACTER SET utf8mb3 COLLATE utf8mb3_unicode_ci",
		"ALTER TABLE abilities CONVERT TO CHARACTER SET gbk",
		"ALTER TABLE options CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
		"ALTER TABLE logs CONVERT TO CHARACTER SET utf8mb3",
		"ALTER TABLE redemptions CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
	},
	"a fork with columns and tables of its own": {
		"ALTER TABLE users ADD COLUMN vip_until bigint DEFAULT 7, ADD COLUMN tenant varchar(10) NOT NULL DEFAULT 'x'",
		"ALTER TABLE tokens ADD COLUMN daily_limit bigint NOT NULL DEFAULT 0, ADD COLUMN note text",
		"ALTER TABLE channels ADD COLUMN region varchar(20) DEFAULT 'eu' FIRST",
		"CREATE TABLE invoices (id int PRIMARY KEY, body text)",
		"INSERT INTO invoices VALUES (1, 'one'), (2, NULL)",
		"CREATE VIEW rich AS SELECT id, quota FROM users WHERE quota > 1000000",
	},
	"odd rows": {
		"ALTER TABLE users MODIFY quota int DEFAULT 0, DROP INDEX username",
		"INSERT INTO users (id, username, password, quota, used_quota, request_count, status, role, `group`) VALUES (101, NULL, '', NULL, NULL, NULL, NULL, NULL, NULL), (102, 'alice', 'x', 2147483647, 5, 1, 1, 1, 'default'), (103, REPEAT('名', 191), '', -2147483648, 0, 0, 1, 1, 'no such group')",
		"SET SESSION sql_mode = ''",
		"INSERT INTO users (id, username, password, quota, deleted_at, setting) VALUES (104, 'zero', '', 77, '0000-00-00 00:00:00', '{not json')",
		"INSERT INTO tokens (id, user_id, `key`, status, name, remain_quota, unlimited_quota) VALUES (101, 999, 'orphan', 1, REPEAT('n', 191), 5, 0), (102, NULL, NULL, NULL, NULL, NULL, NULL), (103, 0, '', 1, '', -9223372036854775808, 1), (104, 102, 'full', 1, '', 9223372036854775807, 0)",
		"INSERT INTO channels (id, type, `key`, name, models, `group`, model_mapping, setting, other_info, status_code_mapping, weight, channel_info) VALUES " +
			"(101, 9999, '', NULL, NULL, NULL, '{broken', '[]', 'x', 'y', 18446744073709551615, NULL), (102, NULL, '\\n\\n', REPEAT('c', 191), ',,,', ',', '', '', '', '', NULL, '[1]')",
		"INSERT INTO abilities (`group`, model, channel_id, enabled) VALUES ('ghost', 'ghost', 12345, 1)",
		"INSERT INTO options VALUES ('GroupGroupRatio.x', '{broken'), ('AutomaticDisableStatusCodes', 'abc,401'), ('Unknown.Option', NULL), ('AutomaticDisableKeywords', NULL)",
		"INSERT INTO redemptions (id, user_id, `key`, status, quota) VALUES (101, NULL, NULL, NULL, NULL)",
		"INSERT INTO top_ups (id, user_id, trade_no, status) VALUES (101, NULL, NULL, NULL)",
		"INSERT INTO logs (id, created_at, type) VALUES (9999999, NULL, NULL)",
	},
}

// newAPIDatabase is a database that some New API left behind.
type newAPIDatabase struct {
	t    testing.TB
	db   *sql.DB
	env  map[string]string // how a node finds it
	file string            // SQLite
}

// loadDump loads the recorded database and turns it into a version's. Its channels lead to the upstream.
func loadDump(t testing.TB, version, upstream string) *newAPIDatabase {
	t.Helper()
	cfg, err := mysql.ParseDSN(ledgertest.MySQL(t))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SQL_DSN": cfg.FormatDSN()}
	cfg.MultiStatements, cfg.ParseTime = true, false
	db, err := sql.Open("mysql", cfg.FormatDSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1) // the statements below speak of their session
	d := &newAPIDatabase{t: t, db: db, env: env}
	d.exec(readDump(t))
	for _, q := range newAPIVersions[version] {
		d.exec(q)
	}
	d.exec("UPDATE channels SET base_url = '" + upstream + "' WHERE base_url LIKE 'http://127.0.0.1:22002%' AND status = 1")
	return d
}

func readDump(t testing.TB) string {
	t.Helper()
	f, err := os.Open("testdata/newapi.sql.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (d *newAPIDatabase) exec(q string, args ...any) {
	d.t.Helper()
	if _, err := d.db.ExecContext(d.t.Context(), q, args...); err != nil {
		d.t.Fatalf("%.200s: %v", q, err)
	}
}

// query returns rows as texts; nil is NULL.
func (d *newAPIDatabase) query(q string, args ...any) (columns []string, rows [][]any) {
	d.t.Helper()
	found, err := d.db.QueryContext(d.t.Context(), q, args...)
	if err != nil {
		d.t.Fatalf("%s: %v", q, err)
	}
	defer func() { _ = found.Close() }()
	if columns, err = found.Columns(); err != nil {
		d.t.Fatal(err)
	}
	for found.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := found.Scan(into...); err != nil {
			d.t.Fatalf("%s: %v", q, err)
		}
		for i, v := range row {
			switch v := v.(type) {
			case []byte:
				row[i] = string(v)
			case time.Time:
				row[i] = v.Format(time.RFC3339Nano)
			case nil:
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		rows = append(rows, row)
	}
	if err := found.Err(); err != nil {
		d.t.Fatalf("%s: %v", q, err)
	}
	return columns, rows
}

func (d *newAPIDatabase) number(q string, args ...any) (n int64) {
	d.t.Helper()
	if err := d.db.QueryRowContext(d.t.Context(), q, args...).Scan(&n); err != nil {
		d.t.Fatalf("%s: %v", q, err)
	}
	return n
}

// tables lists the tables that are not Ledgerline's, with how they were made.
func (d *newAPIDatabase) tables() map[string]string {
	d.t.Helper()
	made := map[string]string{}
	if d.file != "" {
		_, rows := d.query("SELECT name, COALESCE(sql, '') FROM sqlite_master WHERE tbl_name NOT LIKE 'ledger!_%' ESCAPE '!' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'")
		for _, r := range rows {
			made[r[0].(string)] = r[1].(string)
		}
		return made
	}
	_, rows := d.query("SHOW TABLES")
	for _, r := range rows {
		name := r[0].(string)
		if strings.HasPrefix(name, "ledger_") {
			continue
		}
		_, create := d.query("SHOW CREATE TABLE `" + name + "`")
		text := create[0][1].(string)
		before, after, found := strings.Cut(text, "AUTO_INCREMENT=") // how many rows were added is no change of the table
		if found {
			_, after, _ = strings.Cut(after, " ")
			text = before + after
		}
		made[name] = text
	}
	return made
}

// contents is every row of tables, by table and primary key, as column to text.
type contents map[string]map[string]map[string]any

// keysOf are the primary keys of the tables that have no id.
var keysOf = map[string][]string{"abilities": {"group", "model", "channel_id"}, "options": {"key"}}

func (d *newAPIDatabase) contents(tables map[string]string) contents {
	d.t.Helper()
	all := contents{}
	for name, made := range tables {
		if !strings.HasPrefix(made, "CREATE TABLE") {
			continue // an index or a view
		}
		columns, rows := d.query("SELECT * FROM `" + name + "`")
		all[name] = map[string]map[string]any{}
		for i, r := range rows {
			row := map[string]any{}
			for j, c := range columns {
				row[c] = r[j]
			}
			key := fmt.Sprint(i)
			if list := keysOf[name]; list != nil {
				key = ""
				for _, c := range list {
					key += fmt.Sprint("/", row[c])
				}
			} else if id, ok := row["id"]; ok {
				key = fmt.Sprint(id)
			}
			all[name][key] = row
		}
	}
	return all
}

// changes names every cell that differs, as table/key/column, with what it was and is. A row that is new or gone is table/key.
func (before contents) changes(after contents) map[string][2]any {
	out := map[string][2]any{}
	for table, rows := range before {
		for key, row := range rows {
			now, there := after[table][key]
			if !there {
				out[table+"/"+key] = [2]any{"a row", nil}
				continue
			}
			for c, was := range row {
				if now[c] != was {
					out[table+"/"+key+"/"+c] = [2]any{was, now[c]}
				}
			}
		}
		for key := range after[table] {
			if _, there := rows[key]; !there {
				out[table+"/"+key] = [2]any{nil, "a row"}
			}
		}
	}
	return out
}

// toSQLite copies the database into a file as GORM's SQLite driver makes one: integer, numeric, real, text and datetime columns,
// indexes beside the tables, times as texts with a zone.
func (d *newAPIDatabase) toSQLite() *newAPIDatabase {
	d.t.Helper()
	file := filepath.Join(d.t.TempDir(), "one-api.db")
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: file, RawQuery: "_pragma=busy_timeout(30000)"}).String())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = db.Close() })
	out := &newAPIDatabase{t: d.t, db: db, file: file, env: map[string]string{"SQLITE_PATH": file + "?_busy_timeout=30000"}}
	for _, name := range slices.Sorted(maps.Keys(d.tables())) {
		_, columns := d.query("SELECT column_name, data_type, column_type, is_nullable, column_default, extra, column_key FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position", name)
		var parts, keys []string
		for _, c := range columns {
			part, primary := sqliteColumn(c)
			parts = append(parts, part)
			if primary {
				keys = append(keys, "`"+c[0].(string)+"`")
			}
		}
		if len(keys) > 0 && !strings.Contains(strings.Join(parts, ","), "PRIMARY KEY") {
			parts = append(parts, "PRIMARY KEY ("+strings.Join(keys, ",")+")")
		}
		out.exec("CREATE TABLE `" + name + "` (" + strings.Join(parts, ",") + ")")
		_, indexes := d.query("SELECT index_name, MIN(non_unique), GROUP_CONCAT(CONCAT('`', column_name, '`') ORDER BY seq_in_index) FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = ? AND index_name <> 'PRIMARY' GROUP BY index_name", name)
		for _, i := range indexes {
			unique := map[any]string{"0": "UNIQUE ", "1": ""}[i[1]]
			out.exec("CREATE " + unique + "INDEX `" + name + "_" + i[0].(string) + "` ON `" + name + "`(" + i[2].(string) + ")")
		}
		names, rows := d.query("SELECT * FROM `" + name + "`")
		tx, err := db.BeginTx(d.t.Context(), nil)
		if err != nil {
			d.t.Fatal(err)
		}
		insert := "INSERT INTO `" + name + "` (`" + strings.Join(names, "`,`") + "`) VALUES (?" + strings.Repeat(",?", len(names)-1) + ")"
		for _, r := range rows {
			for i, c := range columns {
				if text, ok := r[i].(string); ok && c[1] == "datetime" {
					r[i] = text + "+00:00"
				}
			}
			if _, err := tx.ExecContext(d.t.Context(), insert, r...); err != nil {
				d.t.Fatalf("%s: %v", insert, err)
			}
		}
		if err := tx.Commit(); err != nil {
			d.t.Fatal(err)
		}
	}
	return out
}

// sqliteColumn returns a column as GORM declares it there, and whether it is in the primary key.
func sqliteColumn(c []any) (part string, primary bool) {
	name, kind, full := c[0].(string), c[1].(string), c[2].(string)
	if c[5] == "auto_increment" {
		return "`" + name + "` integer PRIMARY KEY AUTOINCREMENT", true
	}
	declared := map[string]string{
		"bigint": "integer", "int": "integer", "tinyint": "numeric", "double": "real", "decimal": full, "datetime": "datetime", "char": full, "varchar": full,
	}[kind]
	if declared == "" || full == "varchar(191)" {
		declared = "text"
	}
	part = "`" + name + "` " + declared
	if c[3] == "NO" {
		part += " NOT NULL"
	}
	if v, ok := c[4].(string); ok && v != "NULL" {
		part += " DEFAULT " + v
	}
	return part, c[6] == "PRI"
}

// newAPIFacts is what is in the recorded database.
type newAPIFacts struct {
	Users []struct {
		ID              int64
		Username, Group string
		Role, Status    int
		Quota           int64
		UsedQuota       int64 `json:"used_quota"`
		RequestCount    int64 `json:"request_count"`
		Deleted         bool
	}
	Tokens []struct {
		ID          int64
		UserID      int64 `json:"user_id"`
		Name, Group string
		Status      int
		RemainQuota int64 `json:"remain_quota"`
		UsedQuota   int64 `json:"used_quota"`
		Unlimited   bool
		ExpiredTime int64  `json:"expired_time"`
		ModelLimits string `json:"model_limits"`
		AllowIPs    string `json:"allow_ips"`
		Deleted     bool
	}
	Channels []struct {
		ID                     int64
		Name                   string
		Type, Status, Priority int
		Weight                 int
		Tag                    *string
		UsedQuota              int64 `json:"used_quota"`
		Models, Keys           int
		Groups                 []string
	}
	Abilities int
	Logs      struct {
		Count  int
		ByType []struct {
			Type, Count int
			Quota       int64
		} `json:"by_type"`
		ByUser []struct {
			UserID           int64 `json:"user_id"`
			Count            int
			Quota            int64
			PromptTokens     int64 `json:"prompt_tokens"`
			CompletionTokens int64 `json:"completion_tokens"`
		} `json:"consume_by_user"`
		ByToken []struct {
			TokenID int64 `json:"token_id"`
			Count   int
			Quota   int64
		} `json:"consume_by_token"`
		ByChannel []struct {
			ChannelID int64 `json:"channel_id"`
			Count     int
			Quota     int64
		} `json:"consume_by_channel"`
		ByModel []struct {
			ModelName string `json:"model_name"`
			Count     int
			Quota     int64
		} `json:"consume_by_model"`
	}
	Redemptions []struct {
		ID         int64
		Name       string
		Status     int
		Quota      int64
		UsedUserID int64 `json:"used_user_id"`
		Deleted    bool
	}
	TopUps []struct {
		ID, UserID int64
		Status     string
	} `json:"top_ups"`
	Options json.RawMessage
}

func readFacts(t testing.TB) *newAPIFacts {
	t.Helper()
	text, err := os.ReadFile("testdata/newapi.facts.json")
	if err != nil {
		t.Fatal(err)
	}
	f := &newAPIFacts{}
	if err := json.Unmarshal(text, f); err != nil {
		t.Fatal(err)
	}
	return f
}
