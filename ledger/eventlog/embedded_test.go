package eventlog_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger/eventlog"
)

// brokerDirEnv makes the test binary run an embedded broker on that directory, until it is killed.
const (
	brokerDirEnv  = "EVENTLOG_TEST_BROKER_DIR"
	brokerPortEnv = "EVENTLOG_TEST_BROKER_PORT"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerDirEnv); dir != "" {
		port, _ := strconv.Atoi(os.Getenv(brokerPortEnv))
		broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: dir, Port: port})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(broker.Addr())
		_, _ = bufio.NewReader(os.Stdin).ReadByte() // until the parent is gone
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// brokerProcess is an embedded broker in a child process.
type brokerProcess struct {
	cmd  *exec.Cmd
	addr string
}

func startBrokerProcess(t *testing.T, dir string, port int) *brokerProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerDirEnv+"="+dir, brokerPortEnv+"="+strconv.Itoa(port))
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // held open; closes with this process
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &brokerProcess{cmd: cmd}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the broker process said nothing: %v", err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

// kill is kill -9.
func (p *brokerProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *brokerProcess) port(t *testing.T) int {
	t.Helper()
	_, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kill -9 of the broker in the middle of shipping, three times: what was acknowledged is there, in order, and the rest follows.
func TestEmbeddedSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	broker := startBrokerProcess(t, dir, 0)
	port := broker.port(t)
	client := newClient(t, "events", broker.addr)
	ensure(t, client, 3)
	j := newJournal(1, 3)
	shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{BatchBytes: 4 << 10, Spacing: -1, Logger: testLogger(t)})
	wait := ship(t, t.Context(), shipper, j)
	for range 3 {
		already := j.ackedIn(0)
		j.add(t, 1500, 0)
		for j.ackedIn(0) <= already { // some of it is acknowledged, some is under way
			select {
			case <-j.moved:
			case <-time.After(30 * time.Second):
				t.Fatal("nothing is acknowledged")
			}
		}
		broker.kill()
		broker = startBrokerProcess(t, dir, port)
		j.mu.Lock()
		acked := map[int]uint64{}
		for p, seq := range j.acked {
			acked[p] = seq
		}
		j.mu.Unlock()
		held := readLog(t, client, 3)
		for p, seq := range acked {
			if n := len(held.applied[p]); n == 0 || held.applied[p][n-1] < seq {
				t.Errorf("partition %d: event %d was acknowledged and is gone", p, seq)
			}
		}
	}
	j.end()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	checkShipped(t, client, j)
}

// What only looks at the log does not fail because its connections died with the broker while they were idle.
func TestLooksAfterKill(t *testing.T) {
	dir := t.TempDir()
	broker := startBrokerProcess(t, dir, 0)
	port := broker.port(t)
	client := newClient(t, "events", broker.addr)
	ensure(t, client, 3)
	j := newJournal(1, 3)
	j.add(t, 30, 0)
	j.end()
	if err := ship(t, t.Context(), eventlog.NewShipper(client, eventlog.ShipperConfig{}), j)(); err != nil {
		t.Fatal(err)
	}
	looks := map[string]func() error{
		"bounds":       func() error { _, _, err := client.Bounds(t.Context(), 0); return err },
		"read at":      func() error { _, err := client.ReadAt(t.Context(), 0, 1); return err },
		"ensure topic": func() error { _, err := client.EnsureTopic(t.Context(), 3); return err },
	}
	for name, look := range looks {
		var idle sync.WaitGroup // several connections, all idle in the end
		for range 4 {
			idle.Go(func() { _, _, _ = client.Bounds(t.Context(), 0) })
		}
		idle.Wait()
		broker.kill()
		broker = startBrokerProcess(t, dir, port)
		if err := look(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A group whose member died with the broker is joined again at once.
func TestEmbeddedGroupAfterKill(t *testing.T) {
	dir := t.TempDir()
	broker := startBrokerProcess(t, dir, 0)
	port := broker.port(t)
	client := newClient(t, "events", broker.addr)
	ensure(t, client, 3)
	join := func(cfg eventlog.GroupConfig) (took time.Duration, leave func()) {
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var owned atomic.Int32
		all, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- eventlog.NewGroup(client, cfg).Run(ctx, func(ctx context.Context, _ int) {
				if owned.Add(1) == 3 {
					close(all)
				}
				<-ctx.Done()
			})
		}()
		select {
		case <-all:
		case <-time.After(30 * time.Second):
			t.Fatal("no partitions were assigned")
		}
		return time.Since(start), func() { cancel(); <-done }
	}
	cfg := eventlog.GroupConfig{ID: "g", Partitions: 3, Logger: testLogger(t)}
	first, leave := join(cfg)
	broker.kill()
	leave() // as far as it can: the broker is dead
	startBrokerProcess(t, dir, port)
	second, leave := join(cfg)
	defer leave()
	t.Logf("joined in %v, after the kill in %v", first, second)
	if second > 2*time.Second {
		t.Errorf("joining after the kill took %v, want below 2 s", second)
	}
}

func TestEmbeddedListensOnLoopbackOnly(t *testing.T) {
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	host, port, err := net.SplitHostPort(broker.Addr())
	if err != nil || host != "127.0.0.1" {
		t.Fatalf("address is %s, %v", broker.Addr(), err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	// All sockets of the machine that listen on this port, as the kernel sees them.
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		sockets, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			t.Skip("no /proc/net")
		}
		for line := range strings.Lines(string(sockets)) {
			fields := strings.Fields(line)
			if len(fields) > 3 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", n)) && fields[1] != fmt.Sprintf("0100007F:%04X", n) {
				t.Errorf("it listens on %s", fields[1])
			}
		}
	}
}

func TestEmbeddedReopens(t *testing.T) {
	dir := t.TempDir()
	j := newJournal(1, 2)
	j.add(t, 100, 0)
	j.end()
	for round := range 2 {
		broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		client := newClient(t, "events", broker.Addr())
		ensure(t, client, 2)
		if round == 0 {
			if err := eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), j); err != nil {
				t.Fatal(err)
			}
		}
		checkShipped(t, client, j)
		client.Close()
		broker.Close()
		broker.Close() // twice does no harm
	}
}

func TestEmbeddedRefusesATakenPort(t *testing.T) {
	first, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, port, _ := net.SplitHostPort(first.Addr())
	n, _ := strconv.Atoi(port)
	if second, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir(), Port: n}); err == nil {
		second.Close()
		t.Error("two brokers share a port")
	}
}
