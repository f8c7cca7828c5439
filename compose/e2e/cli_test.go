package e2e

import (
	"database/sql"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // to spoil databases from outside
)

// What is wrong with a command line or an environment is said in one line that names it, with exit code 2, and nothing is
// touched.
func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want []string // parts of the last line of standard error
	}{
		{"subcommand", []string{"serv"}, nil, []string{`unknown command "serv"`}},
		{"flag", []string{"serve", "-prot", "1"}, nil, []string{"-prot"}},
		{"flag without a command", []string{"-prot"}, nil, []string{"-prot"}},
		{"argument", []string{"demo", "now"}, nil, []string{`unexpected argument "now"`}},
		{"demo requests", []string{"demo", "-requests", "0"}, nil, []string{"-requests"}},
		{"demo port", []string{"demo", "-port", "70000"}, nil, []string{"-port 70000", "0 to 65535"}},
		{"argument of version", []string{"version", "now"}, nil, []string{`unexpected argument "now"`}},
		{"verify wait", []string{"verify", "-wait", "-1s"}, nil, []string{"-wait -1s", "from 0"}},
		{"flag of another mode", []string{"import", "-plan", "-since", "30d"}, nil, []string{"-since", "-check-bills"}},
		{"place of logs", []string{"import", "-logs", "-from", "old.db"}, nil, []string{"-from", "file:PATH"}},
		{"replay source", []string{"replay", "-source", "tape"}, nil, []string{`"tape"`, "kafka or usagelog"}},
		{"journal verb", []string{"journal", "eat"}, nil, []string{`"eat"`, "list", "reship"}},
		{"no number", nil, map[string]string{"PORT": "http"}, []string{`PORT="http"`, "a whole number from 0 to 65535"}},
		{"port too large", nil, map[string]string{"PORT": "70000"}, []string{"PORT=70000", "0 to 65535"}},
		{"no bool", nil, map[string]string{"BATCH_UPDATE_ENABLED": "perhaps"}, []string{`BATCH_UPDATE_ENABLED="perhaps"`, "true or false"}},
		{"no duration", nil, map[string]string{"JOURNAL_KEEP": "a while"}, []string{`JOURNAL_KEEP="a while"`, "15m"}},
		{"out of range", nil, map[string]string{"SYNC_FREQUENCY": "0"}, []string{"SYNC_FREQUENCY=0", "1 to 86400"}},
		{"orphans", nil, map[string]string{"HOLD_ORPHAN_AFTER": "5s"}, []string{"HOLD_ORPHAN_AFTER=5s", "at least 10s"}},
		{"PostgreSQL", nil, map[string]string{"SQL_DSN": "postgres://u:secret@db/x"}, []string{"SQL_DSN", "PostgreSQL", "MySQL"}},
		{"ClickHouse as the database", nil, map[string]string{"SQL_DSN": "clickhouse://db:9000/x"}, []string{"SQL_DSN", "LOG_SQL_DSN"}},
		{"brokers", nil, map[string]string{"KAFKA_BROKERS": "kafka"}, []string{`KAFKA_BROKERS="kafka"`, "host:port"}},
		{"topic", nil, map[string]string{"KAFKA_TOPIC": "a b"}, []string{`KAFKA_TOPIC="a b"`, "249"}},
		{"Redis address", nil, map[string]string{"REDIS_CONN_STRING": "http://redis"}, []string{"REDIS_CONN_STRING"}},
		{"proxies", nil, map[string]string{"TRUSTED_PROXIES": "10.0.0.0/40"}, []string{"TRUSTED_PROXIES", "10.0.0.0/8"}},
		{"example secret", nil, map[string]string{"SESSION_SECRET": "random_string"}, []string{"SESSION_SECRET", "secret of your own"}},
		{"time zone", nil, map[string]string{"TZ": "Mars/Base"}, []string{`TZ="Mars/Base"`, "Asia/Shanghai"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := run(t, command{args: c.args, env: c.env})
			if got.code != 2 {
				t.Errorf("exit code %d, want 2", got.code)
			}
			last := lastLine(got.stderr)
			for _, part := range c.want {
				if !strings.Contains(last, part) {
					t.Errorf("the last line does not say %q: %s", part, got.stderr)
				}
			}
			if lines := strings.Count(got.stderr, "\n"); lines != 1 && strings.HasPrefix(c.name, "flag") {
				t.Errorf("%d lines: %s", lines, got.stderr)
			}
			if strings.Contains(got.stderr, "secret@") {
				t.Errorf("a password is shown: %s", got.stderr)
			}
			if strings.Contains(got.stderr, "goroutine ") {
				t.Errorf("it panicked: %s", got.stderr)
			}
		})
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// oneLine checks that a start failed with exit code 1 and one last line that says each of the parts.
func oneLine(t *testing.T, got ran, parts ...string) {
	t.Helper()
	if got.code != 1 {
		t.Errorf("exit code %d, want 1", got.code)
	}
	last := lastLine(got.stderr)
	if !strings.HasPrefix(last, "ledgerline: ") {
		t.Errorf("the last line is not the program's own: %s", got.stderr)
	}
	for _, part := range parts {
		if !strings.Contains(last, part) {
			t.Errorf("the last line does not say %q: %s", part, got.stderr)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	help := run(t, command{args: []string{"help"}})
	if help.code != 0 || !strings.Contains(help.stdout, "verify") || !strings.Contains(help.stdout, "serve") {
		t.Errorf("help: exit code %d, %q", help.code, help.stdout)
	}
	if v := run(t, command{args: []string{"version"}}); v.code != 0 || strings.TrimSpace(v.stdout) == "" {
		t.Errorf("version: exit code %d, %q", v.code, v.stdout)
	}
	if v := run(t, command{args: []string{"--version"}}); v.code != 0 || strings.TrimSpace(v.stdout) == "" {
		t.Errorf("--version: exit code %d, %q", v.code, v.stdout)
	}
	for line, part := range map[string]string{
		"serve -h": "-port", "verify -h": "-wait", "secrets -h": "-yes", "secrets migrate -h": "-yes", "migrate -h": "up to date", "bench -h": "consumers",
	} {
		h := run(t, command{args: strings.Fields(line)})
		if h.code != 0 || !strings.HasPrefix(h.stdout+h.stderr, "usage: ledgerline ") || !strings.Contains(h.stdout+h.stderr, part) {
			t.Errorf("%s: exit code %d, %q", line, h.code, h.stdout+h.stderr)
		}
	}
}

// A port that is taken, a data folder that cannot be used, a schema from the future: each stops the start with one line.
func TestStartsThatCannotBe(t *testing.T) {
	t.Parallel()
	t.Run("port taken", func(t *testing.T) {
		t.Parallel()
		ln, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		dir := t.TempDir()
		oneLine(t, run(t, command{dir: dir, env: map[string]string{"PORT": port}}), "PORT="+port, "another")
		if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
			t.Error("the start touched the data folder although the port was taken")
		}
	})
	t.Run("data folder is a file", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		oneLine(t, run(t, command{dir: dir, env: map[string]string{"PORT": "0"}}), "data folder", "DATA_DIR")
	})
	t.Run("journal folder is a file", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		file := filepath.Join(dir, "journal")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		oneLine(t, run(t, command{dir: dir, env: map[string]string{"PORT": "0", "JOURNAL_DIR": file}}), "JOURNAL_DIR")
	})
	t.Run("newer schema", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if got := run(t, command{dir: dir, args: []string{"migrate"}}); got.code != 0 {
			t.Fatalf("migrate: exit code %d: %s", got.code, got.stderr)
		}
		db, err := sql.Open("sqlite", filepath.Join(dir, "data", "ledgerline.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec("INSERT INTO " + versionTable(t, db) + " (version_id, is_applied) VALUES (9999, 1)"); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{nil, {"verify"}, {"migrate"}} {
			oneLine(t, run(t, command{dir: dir, args: args, env: map[string]string{"PORT": "0"}}), "9999", "newer")
		}
	})
	t.Run("database is not one", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "data", "ledgerline.db"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		oneLine(t, run(t, command{dir: dir, env: map[string]string{"PORT": "0"}}), "ledgerline.db")
	})
}

// versionTable finds the table in which the migrations are counted.
func versionTable(t *testing.T, db *sql.DB) string {
	t.Helper()
	var name string
	err := db.QueryRow("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%version_id%' AND sql LIKE '%is_applied%'").Scan(&name)
	if err != nil {
		t.Fatalf("find the table of migrations: %v", err)
	}
	return name
}
