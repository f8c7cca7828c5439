package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ledgerline/ledger/ledgertest"
)

// The first start prints root's password, once, and the set-up is done; a restart prints none, and everything is still
// there. A stop leaves nothing to recover.
func TestFirstStart(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	s.open()
	n := s.nodes[0]
	_, body, err := get(n.url() + "/api/setup")
	if err != nil {
		t.Fatal(err)
	}
	var setup struct {
		Success bool
		Data    struct {
			Status bool `json:"status"`
		}
	}
	if err := json.Unmarshal([]byte(body), &setup); err != nil || !setup.Success || !setup.Data.Status {
		t.Errorf("/api/setup does not say that the set-up is done: %s", body)
	}
	if _, body, _ := get(n.url() + "/api/status"); !strings.Contains(body, `"success":true`) && !strings.Contains(body, `"success": true`) {
		t.Errorf("/api/status: %s", body)
	}
	if code := n.terminate(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	nothingToAdopt(t, s)

	n.start()
	n.ready()
	if text := n.stdout.String(); strings.Contains(text, "password") {
		t.Errorf("the second start speaks of a password: %q", text)
	}
	login(t, n.url(), "root", s.password)
}

// nothingToAdopt requires that no journal of the site waits for a start to close it.
func nothingToAdopt(t *testing.T, s *site) {
	t.Helper()
	for _, n := range s.nodes {
		env := s.environment(n.env)
		env["JOURNAL_DIR"] = filepath.Join(n.dir, "journal")
		got := run(t, command{args: []string{"journal", "list"}, env: env})
		if got.code != 0 || strings.Contains(got.stdout, "waits to be adopted") {
			t.Errorf("%s, journal list: exit code %d\n%s%s", n.name, got.code, got.stdout, got.stderr)
		}
	}
}

// An engine that is not there yet is waited for, and the wait is said.
func TestEnginesThatComeLate(t *testing.T) {
	t.Parallel()
	mysql, redis := ledgertest.StartMySQL(t), ledgertest.StartRedis(t)
	dsn := ledgertest.MySQLDatabase(t, mysql.MySQLDSN(""))
	mysql.Stop()
	redis.Stop()
	s := newSite(t)
	s.env["SQL_DSN"], s.env["REDIS_CONN_STRING"] = dsn, redis.RedisURL()
	n := s.addNode(nil)
	p := start(t, command{dir: n.dir, env: s.environment(map[string]string{"PORT": "0"})})
	for _, engine := range []struct {
		name  string
		begin func()
	}{{"SQL_DSN", mysql.Start}, {"REDIS_CONN_STRING", redis.Start}} {
		if err := p.stderr.await(t.Context(), "for="+engine.name); err != nil {
			t.Fatal(err)
		}
		engine.begin()
	}
	p.await("serves http://")
	if code := p.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	for _, away := range []struct{ name, value string }{
		{"KAFKA_BROKERS", "127.0.0.1:1"}, {"LOG_SQL_DSN", "http://127.0.0.1:1/logs"},
	} {
		p := start(t, command{env: s.environment(map[string]string{"PORT": "0", away.name: away.value, "KAFKA_TOPIC": ledgertest.UniqueName("away"), "SQL_DSN": ledgertest.MySQL(t)})})
		if err := p.stderr.await(t.Context(), "for="+away.name); err != nil {
			t.Fatal(err)
		}
		p.terminate() // it must not wait on
	}

	wrong := s.environment(map[string]string{"PORT": "0", "SQL_DSN": strings.Replace(dsn, "/ll_", "/no_", 1)})
	oneLine(t, run(t, command{env: wrong}), "SQL_DSN", "Unknown database")
}

// A second node on the same database that lacks Kafka or Redis stops with a line that names what to add.
func TestSecondNodeNeedsKafkaAndRedis(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.env["SQL_DSN"] = ledgertest.MySQL(t)
	first := s.addNode(nil)
	first.start()
	first.ready()
	second := s.environment(map[string]string{"PORT": "0"})
	oneLine(t, run(t, command{env: second}), "KAFKA_BROKERS", "REDIS_CONN_STRING")
	second["KAFKA_BROKERS"] = strings.Join(ledgertest.Kafka(t), ",")
	oneLine(t, run(t, command{env: second}), "KAFKA_BROKERS", "REDIS_CONN_STRING")
	second["REDIS_CONN_STRING"] = ledgertest.Redis(t)
	oneLine(t, run(t, command{env: second}), "KAFKA_BROKERS", "REDIS_CONN_STRING")
	if got := run(t, command{env: s.env, args: []string{"verify"}}); got.code != 1 || !strings.Contains(got.stderr, "DATA_DIR") {
		t.Errorf("verify from elsewhere: exit code %d, %s", got.code, got.stderr)
	}
	if status, body, err := get(first.url() + "/readyz"); err != nil || status != http.StatusOK {
		t.Errorf("the first node suffered: %d %s %v", status, body, err)
	}
}

// A node that lacks Kafka or Redis does not join a cluster that runs.
func TestLoneNodeStaysOutOfACluster(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.nodes = s.nodes[:1]
	s.nodes[0].start()
	s.nodes[0].ready()
	for _, missing := range []string{"KAFKA_BROKERS", "REDIS_CONN_STRING"} {
		env := s.environment(map[string]string{"PORT": "0", "NODE_TYPE": "slave"})
		delete(env, missing)
		got := run(t, command{env: env})
		if line := lastLine(got.stderr); got.code == 0 || !strings.Contains(line, missing) {
			t.Errorf("without %s: exit code %d, %s", missing, got.code, got.stderr)
		}
	}
}

// The demo does what it says: first lines at once, a table, a verdict, exit code 0; and 1 if the bills are not what the
// upstream served.
func TestDemo(t *testing.T) {
	t.Parallel()
	got := run(t, command{args: []string{"demo", "-once", "-requests", "200"}})
	if got.code != 0 {
		t.Fatalf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	at := -1
	for _, part := range []string{
		"Ledgerline demo", "requests 200/200", "upstream served", "demo1", "demo5", "verify: OK",
		"Every bill equals what the mock upstream says it served",
	} {
		i := strings.Index(got.stdout, part)
		if i < at || i < 0 {
			t.Errorf("%q is missing or out of order:\n%s", part, got.stdout)
		}
		at = max(at, i)
	}
}

// A bill that is not what the upstream served is found by the demo itself.
func TestDemoFindsAMismatch(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	p := start(t, command{args: []string{"demo", "-once", "-requests", "300", "-rate", "75"}, env: map[string]string{"TMPDIR": temp}})
	p.await("requests 1")
	databases, err := filepath.Glob(filepath.Join(temp, "ledgerline-demo-*", "data", "ledgerline.db"))
	if err != nil || len(databases) != 1 {
		t.Fatalf("the demo's database: %v, %v", databases, err)
	}
	db, err := sql.Open("sqlite", "file:"+databases[0]+"?_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "UPDATE ledger_accounts SET charged = charged + 1 WHERE kind = 'user' AND id = (SELECT id FROM users WHERE username = 'demo2')"); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, part := range []string{"DIFFERS", "NOT OK", "The bills DIFFER"} {
		if !strings.Contains(p.stdout.String(), part) {
			t.Errorf("the demo does not say %q:\n%s", part, p.stdout)
		}
	}
	if left, _ := os.ReadDir(temp); len(left) != 0 {
		t.Errorf("the demo left %d files behind", len(left))
	}
}

// The demo goes on serving until it is told to stop; the line it prints works.
func TestDemoServes(t *testing.T) {
	t.Parallel()
	p := start(t, command{args: []string{"demo", "-requests", "20"}})
	p.await("Serving until Ctrl-C")
	text := p.stdout.String()
	_, server, _ := strings.Cut(text, "Server   ")
	_, key, _ := strings.Cut(text, "API key  ")
	url, secret := strings.Fields(server)[0], strings.Fields(key)[0]
	c := newClients(t)
	answer := send(t.Context(), c.http, url, order{account: &account{name: "visitor", key: secret}, prompt: 20, completion: 5})
	if answer.status != http.StatusOK || !answer.whole || answer.chunks != 5 {
		t.Errorf("the printed key does not work: %+v", answer)
	}
	_, password, _ := strings.Cut(text, "root, password ")
	login(t, url, "root", strings.Fields(password)[0])
	if code := p.terminate(); code != 0 {
		t.Errorf("exit code %d: %s", code, fmt.Sprint(p.stderr))
	}
}
