//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger/ledgertest/engines"
)

func local(t *testing.T, getenv func(string) string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	err = run(t.Context(), args, getenv, &out, &log)
	return out.String(), log.String(), err
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"fly"}, {"up", "now"}, {"run"}, {"run", "--"}, {"down", "-no-such-flag"}, {"up", "-topology", "round"}} {
		if _, _, err := local(t, os.Getenv, args...); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want the usage", args, err)
		}
	}
}

// What the environment names is not started, and the command's exit code is the run's.
func TestRunWithGivenAddresses(t *testing.T) {
	given := func(name string) string {
		if strings.HasPrefix(name, "TEST_") {
			return "given"
		}
		return os.Getenv(name)
	}
	_, log, err := local(t, given, "run", "--", "sh", "-c", "exit 7")
	if code, ok := errors.AsType[exitCode](err); !ok || code != 7 {
		t.Errorf("error %v, want exit code 7", err)
	}
	if !strings.Contains(log, "kafka is given by TEST_KAFKA_BROKERS") {
		t.Errorf("log: %s", log)
	}
}

// A run hands the addresses on, and afterwards nothing listens there.
func TestRunStopsItsEngines(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs the real engines")
	}
	file := filepath.Join(t.TempDir(), "env")
	none := func(string) string { return "" }
	for _, name := range testEnv {
		t.Setenv(name, "")
	}
	if _, log, err := local(t, none, "run", "--", "sh", "-c", `echo "$TEST_KAFKA_BROKERS $TEST_MYSQL_DSN $TEST_REDIS_URL $TEST_CLICKHOUSE_DSN" >`+file); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []string
	for _, word := range strings.Fields(string(text)) {
		_, port, _ := strings.Cut(word, "127.0.0.1:")
		addrs = append(addrs, "127.0.0.1:"+strings.TrimRight(port[:5], "/)?"))
	}
	if len(addrs) != len(testEnv) {
		t.Fatalf("the command saw %q", text)
	}
	for _, addr := range addrs {
		if reachable(t.Context(), addr) {
			t.Errorf("something still listens on %s", addr)
		}
	}
}

func TestUpAndDown(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs the real engines")
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		var out bytes.Buffer
		if err := down(dir, true, &out); err != nil {
			t.Error(err)
		}
	})
	out, log, err := local(t, os.Getenv, "up", "-dir", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	for _, name := range []string{"KAFKA_BROKERS=", "SQL_DSN=", "REDIS_CONN_STRING=", "LOG_SQL_DSN="} {
		if !strings.Contains(out, "\n"+name) {
			t.Errorf("up did not print %s:\n%s", name, out)
		}
	}
	first, err := load(dir)
	if err != nil || len(first) != len(engines.Kinds) {
		t.Fatalf("recorded %d engines, %v", len(first), err)
	}
	for _, r := range first {
		if !reachable(t.Context(), r.Addr) {
			t.Errorf("%s does not listen on %s", r.Kind, r.Addr)
		}
		if r.Name != r.Kind.Server() {
			t.Errorf("%s runs, and would be called %s if it did not", r.Name, r.Kind.Server())
		}
	}

	// Killing one by hand: the next up starts that one and leaves the others alone.
	if err := first[0].Process.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, _, err = local(t, os.Getenv, "status", "-dir", dir); err != nil || strings.Count(out, "stopped") != 1 {
		t.Errorf("status with one stopped: %v\n%s", err, out)
	}
	if _, log, err := local(t, os.Getenv, "up", "-dir", dir); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	second, err := load(dir)
	if err != nil || len(second) != len(engines.Kinds) {
		t.Fatalf("recorded %d engines, %v", len(second), err)
	}
	for _, a := range first[1:] {
		for _, b := range second {
			if a.Kind == b.Kind && a != b {
				t.Errorf("%s was started again: %+v, then %+v", a.Kind, a, b)
			}
		}
	}

	if _, _, err := local(t, os.Getenv, "down", "-dir", dir); err != nil {
		t.Fatal(err)
	}
	for _, r := range second {
		if r.Process.Running() || reachable(t.Context(), r.Addr) {
			t.Errorf("%s still runs after down", r.Kind)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "mysql")); err != nil {
		t.Errorf("down took the data: %v", err)
	}
	if _, _, err := local(t, os.Getenv, "down", "-wipe", "-dir", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "mysql")); err == nil {
		t.Error("down -wipe left the data")
	}
}

// What does not run is named as what would: by its server.
func TestStatusOfNothing(t *testing.T) {
	out, _, err := local(t, os.Getenv, "status", "-dir", t.TempDir())
	if want := []string{"kafka", "mariadb", "redis", "clickhouse"}; err != nil || !slices.Equal(strings.Fields(strings.ReplaceAll(out, "stopped", "")), want) {
		t.Errorf("%q, %v, want %v", out, err, want)
	}
}

// The cluster topologies run as processes: three Kafka nodes, Redis with sentinels or as a cluster, three nodes and nginx. A
// second up leaves them alone, and another topology is refused while they run. Afterwards it starts in the same folder, with data of its
// own, also from a shell that has the environment of the one before.
func TestUpTopologies(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs the real engines")
	}
	binary := filepath.Join(t.TempDir(), "ledgerline")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "ledgerline/cmd/ledgerline").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := down(dir, true, io.Discard); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("REDIS_MASTER_NAME", redisMaster)
	for topology, want := range map[string]map[string]int{
		sentinel: {"kafka": 3, "mariadb": 1, "redis": 2, "redis-sentinel": 3, "clickhouse": 1, "master": 1, "slave1": 1, "slave2": 1, "nginx": 1},
		cluster:  {"kafka": 3, "mariadb": 1, "redis": 3, "clickhouse": 1, "master": 1, "slave1": 1, "slave2": 1, "nginx": 1},
	} {
		args := []string{"up", "-topology", topology, "-dir", dir, "-nodes", binary}
		out, log, err := local(t, os.Getenv, args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		inFront(t, out)
		if named := strings.Contains(out, "REDIS_MASTER_NAME="+redisMaster+"\n"); named != (topology == sentinel) {
			t.Errorf("%s: up printed Sentinel's name: %v\n%s", topology, named, out)
		}
		first, err := load(dir)
		got := map[string]int{}
		for _, r := range first {
			got[r.Name]++
		}
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v runs, want %v (%v)", topology, got, want, err)
		}
		if _, _, err := local(t, os.Getenv, "up", "-dir", dir); err == nil || !strings.Contains(err.Error(), "make down") {
			t.Errorf("another topology: %v", err)
		}
		if _, log, err := local(t, os.Getenv, args...); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		if second, err := load(dir); err != nil || len(second) != len(first) {
			t.Errorf("a second up: %d processes, %d before, %v", len(second), len(first), err)
		}
		if err := down(dir, false, io.Discard); err != nil {
			t.Error(err)
		}
		for _, r := range first {
			if r.Process.Running() {
				t.Errorf("%s still runs after down", r.Name)
			}
		}
	}
	if err := down(dir, true, io.Discard); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("down -wipe left %v, %v", left, err)
	}
}

// inFront requires that the nodes can be reached where up says, and that it shows the first start's password.
func inFront(t *testing.T, said string) {
	t.Helper()
	_, front, _ := strings.Cut(said, "Clients go to ")
	front, _, _ = strings.Cut(front, "\n")
	resp, err := http.Get(front + "/api/status")
	if err != nil {
		t.Fatalf("nginx: %v\n%s", err, said)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.Contains(said, "First start: log in as root, password ") {
		t.Errorf("status %d; up said\n%s", resp.StatusCode, said)
	}
}

// A process that took over the id of one on record is left alone.
func TestDownLeavesForeignProcessesAlone(t *testing.T) {
	dir := t.TempDir()
	self := engines.Process{PID: os.Getpid(), Began: "at another time"}
	if err := store(dir, []record{{Kind: engines.Redis, Addr: "127.0.0.1:1", Process: self}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := local(t, os.Getenv, "down", "-dir", dir); err != nil {
		t.Fatal(err) // and this process is still here to say so
	}
}

func reachable(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
