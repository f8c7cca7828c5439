package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/ledgertest/engines"
)

// composed runs Docker's Compose over a file with these variables, and returns what it makes of it.
func composed(t *testing.T, file string, vars map[string]string) (string, error) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs Docker's Compose")
	}
	cache, err := engines.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for name, value := range vars {
		fmt.Fprintf(&lines, "%s=%s\n", name, value)
	}
	env := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(env, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, err := cache.DockerCompose(t.Context(), "--env-file", env, "-f", file, "config")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The compose file is one, and says what it needs.
func TestComposeFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "compose.yaml")
	vars := map[string]string{"SESSION_SECRET": "one", "CRYPTO_SECRET": "two", "MYSQL_PASSWORD": "three", "CLICKHOUSE_PASSWORD": "four"}
	out, err := composed(t, file, vars)
	if err != nil {
		t.Fatalf("compose config: %v\n%s", err, out)
	}
	for _, part := range []string{
		"  master:", "  slave1:", "  slave2:", "  nginx:", "NODE_TYPE: master", "NODE_TYPE: slave", "KAFKA_BROKERS: kafka:9092", "master-data:/data",
		"slave1-logs:/app/logs", "stop_grace_period: 3m", "ledgerline:three@tcp(mysql:3306)/ledgerline",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not in what Compose makes of it:\n%s", part, out)
		}
	}
	delete(vars, "SESSION_SECRET")
	if out, err := composed(t, file, vars); err == nil || !strings.Contains(out, "set it in compose/.env") {
		t.Errorf("without SESSION_SECRET: %v\n%s", err, out)
	}
}

// What operators of New API have in their compose files starts a node in a folder of its own, as the image does in /data; two
// nodes need one line more. The slave sends browsers to the front end.
func TestEnvironmentOfNewAPI(t *testing.T) {
	t.Parallel()
	mysql := ledgertest.MySQL(t)
	cfg, _, _ := strings.Cut(mysql, "?") // theirs has no parameters
	const frontend = "https://panel.example.com"
	env := map[string]string{
		"SQL_DSN": cfg, "REDIS_CONN_STRING": strings.TrimSuffix(ledgertest.Redis(t), "/0"), "SESSION_SECRET": "of theirs", "SYNC_FREQUENCY": "60",
		"TZ": "Asia/Shanghai", "ERROR_LOG_ENABLED": "true", "BATCH_UPDATE_ENABLED": "true", "STREAMING_TIMEOUT": "300",
		"KAFKA_BROKERS": strings.Join(ledgertest.Kafka(t), ","), "KAFKA_TOPIC": ledgertest.UniqueName("theirs"), "KAFKA_PARTITIONS": strconv.Itoa(partitions),
	}
	s := newSite(t)
	s.env = env
	s.addNode(map[string]string{"NODE_TYPE": ""}) // a master is what nobody names
	s.addNode(map[string]string{"NODE_TYPE": "slave", "FRONTEND_BASE_URL": frontend})
	for _, n := range s.nodes {
		n.args, n.bare = []string{"--log-dir", filepath.Join(n.dir, "logs")}, true
	}
	s.open()
	u := s.cast(1)[0]
	c := newClients(t)
	s.play(c, 4, traceOrders(t, 40, []*account{u}))
	s.books.settled(c.answered(), u)
	for _, n := range s.nodes {
		if logs, err := os.ReadDir(filepath.Join(n.dir, "logs")); err != nil || len(logs) == 0 {
			t.Errorf("%s has no log: %v", n.name, err)
		}
		if _, err := os.Stat(filepath.Join(n.dir, "data", "journal")); err != nil {
			t.Errorf("%s keeps its journal elsewhere: %v", n.name, err)
		}
	}
	stay := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for i, want := range []int{http.StatusNotFound, http.StatusMovedPermanently} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.nodes[i].url()+"/console/token?tab=1", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := stay.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if place := resp.Header.Get("Location"); resp.StatusCode != want || want == http.StatusMovedPermanently && place != frontend+"/console/token?tab=1" {
			t.Errorf("%s: status %d, Location %q", s.nodes[i].name, resp.StatusCode, place)
		}
	}
}
