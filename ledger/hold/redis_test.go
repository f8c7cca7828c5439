package hold_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
)

func reserveCall(n byte, want int64) ledger.ReserveCall {
	return ledger.ReserveCall{
		Hold: ledger.ID{0: 'h', 15: n}, Incarnation: ledger.ID{15: 1}, Epoch: 1, User: 1, Token: 1, Min: want, Want: want,
	}
}

func mustReserve(t testing.TB, c hold.Counters, call ledger.ReserveCall, want ledger.Outcome) ledger.ReserveReply {
	t.Helper()
	reply, err := c.Reserve(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Outcome != want {
		t.Fatalf("reserve was answered %+v, want outcome %d", reply, want)
	}
	return reply
}

func stateOf(t testing.TB, c hold.Counters) ledger.Counters {
	t.Helper()
	states, err := c.State(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return states[0]
}

// raw returns a plain client of a server.
func raw(t testing.TB, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// eventually polls, because what it waits for happens in another process.
func eventually(t testing.TB, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second) // a sentinel that a loaded machine held up looks away for 30 s
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		<-tick.C
	}
}

func TestFlushedServer(t *testing.T) {
	server := ledgertest.StartRedis(t)
	r := connect(t, server.RedisURL())
	open(t, r, 1)
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted)
	if err := raw(t, server.RedisURL()).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeRebuilding)
	if s := stateOf(t, r); s.Present {
		t.Fatalf("counters after FLUSHALL: %+v", s)
	}
	if err := raw(t, server.RedisURL()).ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	open(t, r, 1)
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted)
}

// foreign asserts that nothing is granted or changed on a server with another's data, and that a new epoch ends it.
func foreign(t *testing.T, c hold.Counters) {
	t.Helper()
	ctx := t.Context()
	s := stateOf(t, c)
	if !s.Present || !s.Foreign || s.Epoch != 1 {
		t.Fatalf("counters with old data: %+v", s)
	}
	mustReserve(t, c, reserveCall(1, 5), ledger.OutcomeRebuilding)
	mustReserve(t, c, reserveCall(2, 5), ledger.OutcomeRebuilding)
	reply, err := c.Extend(ctx, ledger.ExtendCall{Hold: reserveCall(1, 5).Hold, Incarnation: ledger.ID{15: 1}, Epoch: 1, To: 9})
	if err != nil || reply.Outcome != ledger.OutcomeRebuilding {
		t.Fatalf("extend was answered %+v, %v", reply, err)
	}
	applied, err := c.Apply(ctx, ledger.ApplyCall{Epoch: 1, From: 0, To: 1})
	if err != nil || applied.Done != -1 {
		t.Fatalf("apply was answered %+v, %v", applied, err)
	}
	if err := c.Drop(ctx, 0, ledger.ID{15: 1}); err != nil {
		t.Fatal(err)
	}
	user := ledger.Account{Kind: ledger.UserAccount, ID: benchUsers + 1}
	if err := c.Load(ctx, ledger.LoadCall{Epoch: 1, Balances: map[ledger.Account]ledger.Balance{user: {Granted: 1}}}); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Accounts(ctx, 0, []ledger.Account{user}); err != nil || list[0].Loaded {
		t.Fatalf("accounts: %+v, %v", list, err)
	}
	if ok, err := c.Begin(ctx, ledger.BeginCall{Epoch: 1}); ok || err != nil {
		t.Fatalf("the same epoch began again: %v, %v", ok, err)
	}
	if s := stateOf(t, c); s.Done != 0 || s.Dropped != nil {
		t.Fatalf("foreign counters changed: %+v", s)
	}
	if ok, err := c.Begin(ctx, ledger.BeginCall{Epoch: 2}); !ok || err != nil {
		t.Fatalf("a higher epoch began: %v, %v", ok, err)
	}
	if s := stateOf(t, c); s.Foreign || s.Open || s.Epoch != 2 {
		t.Fatalf("counters of the new epoch: %+v", s)
	}
	if ok, err := c.OpenEpoch(ctx, 0, 2, 0); !ok || err != nil {
		t.Fatalf("the new epoch opened: %v, %v", ok, err)
	}
}

// foreignRebuilding asserts that an epoch that was rebuilding elsewhere is not gone on with.
func foreignRebuilding(t *testing.T, c hold.Counters, partition int) {
	t.Helper()
	if ok, err := c.OpenEpoch(t.Context(), partition, 1, 0); ok || err != nil {
		t.Fatalf("a foreign epoch opened: %v, %v", ok, err)
	}
	if ok, err := c.Reassert(t.Context(), partition, 1, ledger.ID{15: 1}, nil); ok || err != nil {
		t.Fatalf("a foreign epoch took holds: %v, %v", ok, err)
	}
	if err := c.Report(t.Context(), partition, 1, ledger.ID{15: 1}); err != nil {
		t.Fatal(err)
	}
	if states, err := c.State(t.Context(), partition); err != nil || states[0].Reports != nil {
		t.Fatalf("a foreign epoch took a report: %+v, %v", states, err)
	}
}

func TestRestartedServerWithOldData(t *testing.T) {
	t.Parallel()
	server := ledgertest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	r := connect(t, server.RedisURL())
	open(t, r, 1)
	if ok, err := r.Begin(t.Context(), ledger.BeginCall{Partition: 5, Epoch: 1}); !ok || err != nil {
		t.Fatalf("begin: %v, %v", ok, err)
	}
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted)
	server.Kill()
	if reply, err := r.Reserve(t.Context(), reserveCall(2, 5)); err == nil {
		t.Fatalf("reserve without a server: %+v", reply)
	}
	server.Start()
	foreignRebuilding(t, r, 5)
	foreign(t, r)
}

func TestPromotedReplica(t *testing.T) {
	t.Parallel()
	primary := ledgertest.StartRedis(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(primary.Addr)
	if err != nil {
		t.Fatal(err)
	}
	replica := ledgertest.StartRedis(t, "--replicaof", host+" "+port)
	prefix := ledgertest.UniqueName("hold") + ":"
	before := connectAs(t, hold.RedisConfig{URL: primary.RedisURL(), Prefix: prefix})
	after := connectAs(t, hold.RedisConfig{URL: replica.RedisURL(), Prefix: prefix})
	open(t, before, 1)
	mustReserve(t, before, reserveCall(1, 5), ledger.OutcomeGranted)
	eventually(t, "the replica has the data", func() bool {
		n, err := raw(t, primary.RedisURL()).Wait(t.Context(), 1, time.Second).Result()
		return err == nil && n == 1
	})
	if err := after.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "replica") {
		t.Fatalf("check of a replica: %v", err)
	}
	if reply, err := after.Reserve(t.Context(), reserveCall(2, 5)); err == nil && reply.Outcome == ledger.OutcomeGranted {
		t.Fatal("a replica granted a hold")
	}
	primary.Kill()
	if err := raw(t, replica.RedisURL()).ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	foreign(t, after)
}

func TestLocalPromoted(t *testing.T) {
	l := hold.NewLocal()
	open(t, l, 1)
	if ok, err := l.Begin(t.Context(), ledger.BeginCall{Partition: 5, Epoch: 1}); !ok || err != nil {
		t.Fatalf("begin: %v, %v", ok, err)
	}
	mustReserve(t, l, reserveCall(1, 5), ledger.OutcomeGranted)
	image := l.Save()
	mustReserve(t, l, reserveCall(2, 5), ledger.OutcomeGranted)
	l.Promote(image)
	if holds, err := l.Holds(t.Context(), 0, ledger.ID{15: 1}); err != nil || len(holds) != 1 {
		t.Fatalf("holds of the image: %+v, %v", holds, err)
	}
	foreignRebuilding(t, l, 5)
	foreign(t, l)
	l.Flush()
	if s := stateOf(t, l); s.Present {
		t.Fatalf("counters after a flush: %+v", s)
	}
}

func TestCheck(t *testing.T) {
	server := ledgertest.StartRedis(t, "--maxmemory-policy", "allkeys-lru")
	r := connect(t, server.RedisURL())
	if err := r.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Fatalf("check of a server that evicts: %v", err)
	}
	admin := raw(t, server.RedisURL())
	if err := admin.ConfigSet(t.Context(), "maxmemory-policy", "noeviction").Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := admin.ACLSetUser(t.Context(), "poor", "on", "nopass", "~*", "+@all", "-evalsha", "-eval").Err(); err != nil {
		t.Fatal(err)
	}
	poor := connectAs(t, hold.RedisConfig{URL: "redis://poor:x@" + server.Addr})
	if err := poor.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Fatalf("check without the right to run scripts: %v", err)
	}
}

// TestFullServer: without memory nothing is granted and nothing is half done; what frees memory goes on working.
func TestFullServer(t *testing.T) {
	server := ledgertest.StartRedis(t)
	r := connect(t, server.RedisURL())
	open(t, r, 1)
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted)
	admin := raw(t, server.RedisURL())
	memory := func(limit string) {
		t.Helper()
		if err := admin.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
			t.Fatal(err)
		}
	}
	memory("1")
	if reply, err := r.Reserve(t.Context(), reserveCall(2, 5)); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Fatalf("reserve without memory: %+v, %v", reply, err)
	}
	if reply, err := r.Apply(t.Context(), ledger.ApplyCall{Epoch: 1, To: 1, Sums: []ledger.Sum{
		{Account: ledger.Account{Kind: ledger.UserAccount, ID: 1}, Charged: 5},
	}}); err == nil {
		t.Fatalf("apply without memory: %+v", reply)
	}
	if err := r.Release(t.Context(), []ledger.ReleaseCall{{Hold: reserveCall(1, 5).Hold, Incarnation: ledger.ID{15: 1}, Epoch: 1, Charge: 5}}); err != nil {
		t.Fatal(err)
	}
	memory("0")
	list, err := r.Accounts(t.Context(), 0, []ledger.Account{{Kind: ledger.UserAccount, ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if a := list[0]; a.Charged != 0 || a.Settled != 5 || a.Held != 0 || a.OpenHolds != 0 || a.Done != 0 {
		t.Fatalf("the account after a time without memory: %+v", a)
	}
}

// TestUnreachable: a server that is away or hangs is an error in bounded time, for every call that waits.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := ledgertest.StartRedis(t)
	var logged bytes.Buffer // read when no call is under way
	metrics := prometheus.NewRegistry()
	r := connectAs(t, hold.RedisConfig{URL: server.RedisURL(), Logger: slog.New(slog.NewTextHandler(&logged, nil)), Metrics: metrics})
	open(t, r, 1)
	failAll := func(what string) {
		t.Helper()
		const callers = 50
		began := time.Now()
		var wg sync.WaitGroup
		for n := range callers {
			wg.Go(func() {
				if reply, err := r.Reserve(t.Context(), reserveCall(byte(n), 5)); err == nil {
					t.Errorf("reserve at a server that is %s: %+v", what, reply)
				}
			})
		}
		wg.Wait()
		if bound := hold.CallTimeout + 2*hold.TripTimeout + 5*time.Second; time.Since(began) > bound {
			t.Errorf("the errors of a server that is %s took %v, more than %v", what, time.Since(began), bound)
		}
	}
	server.Freeze()
	failAll("frozen")
	server.Thaw()
	// Calls that the server executed late are holds like any other; the same ids find them.
	eventually(t, "the server answers", func() bool {
		_, err := r.Reserve(t.Context(), reserveCall(0, 5))
		return err == nil
	})
	for n := range byte(50) {
		mustReserve(t, r, reserveCall(n, 5), ledger.OutcomeGranted)
	}
	holds, err := r.Holds(t.Context(), 0, ledger.ID{15: 1})
	if err != nil || len(holds) != 50 {
		t.Fatalf("%d holds, %v", len(holds), err)
	}
	server.Kill()
	failAll("gone")
	if _, err := r.State(t.Context(), 0); err == nil {
		t.Fatal("state of a server that is gone")
	}
	lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "does not serve") || !strings.Contains(lines[1], "serves") || !strings.Contains(lines[2], "does not serve") {
		t.Errorf("two times away were logged so:\n%s", logged.String())
	}
	families, err := metrics.Gather()
	if err != nil || len(families) != 7 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	for _, f := range families {
		if v := f.GetMetric()[0].GetCounter().GetValue(); f.GetName() == "ledgerline_counters_failures_total" && v < 100 {
			t.Errorf("%v failures counted, want at least 100", v)
		}
	}
	if r, err := hold.NewRedis(hold.RedisConfig{URL: server.RedisURL(), Metrics: metrics}); err == nil {
		_ = r.Close()
		t.Error("two clients registered the same metrics")
	}
}

// TestLostReply: the server executes a reserve, and the connection breaks before its answer.
func TestLostReply(t *testing.T) {
	server := ledgertest.StartRedis(t)
	proxy := startProxy(t, server.Addr)
	r := connect(t, "redis://"+proxy.addr)
	open(t, r, 1)
	proxy.lose.Store(1)
	if reply := mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted); reply.Amount != 5 {
		t.Fatalf("reserve was answered %+v", reply)
	}
	if proxy.lose.Load() != 0 || r.Stats().Repeats == 0 {
		t.Fatalf("no reply was lost: %+v", r.Stats())
	}
	holds, err := r.Holds(t.Context(), 0, ledger.ID{15: 1})
	if err != nil || len(holds) != 1 {
		t.Fatalf("holds %+v, %v", holds, err)
	}
	proxy.lose.Store(100) // and both times: it is an error
	if reply, err := r.Reserve(t.Context(), reserveCall(2, 5)); err == nil {
		t.Fatalf("reserve was answered %+v", reply)
	}
}

// TestTwoNodes is promise P2 for two nodes on one server.
func TestTwoNodes(t *testing.T) {
	const requests, price = 100, 7
	cfg := hold.RedisConfig{URL: ledgertest.Redis(t), Prefix: ledgertest.UniqueName("hold") + ":"}
	nodes := []*hold.Redis{connectAs(t, cfg), connectAs(t, cfg)}
	ctx := t.Context()
	if ok, err := nodes[0].Begin(ctx, ledger.BeginCall{Epoch: 1}); !ok || err != nil {
		t.Fatalf("begin: %v, %v", ok, err)
	}
	if ok, err := nodes[1].OpenEpoch(ctx, 0, 1, 0); !ok || err != nil {
		t.Fatalf("open: %v, %v", ok, err)
	}
	if err := nodes[0].Load(ctx, ledger.LoadCall{Epoch: 1, Balances: map[ledger.Account]ledger.Balance{
		{Kind: ledger.UserAccount, ID: 1}: {Granted: requests * price}, {Kind: ledger.TokenAccount, ID: 1}: {Granted: 1 << 40},
	}}); err != nil {
		t.Fatal(err)
	}
	served := make(chan bool, 10*requests)
	var wg sync.WaitGroup
	for n := range 64 {
		wg.Go(func() {
			for k := 0; ; k++ {
				call := reserveCall(byte(n), price)
				call.Hold[1], call.Hold[2] = byte(k), byte(k>>8)
				call.Incarnation = ledger.ID{15: byte(n%2 + 1)}
				reply, err := nodes[n%2].Reserve(ctx, call)
				if err != nil {
					t.Errorf("reserve: %v", err)
					return
				}
				switch reply.Outcome {
				case ledger.OutcomeGranted:
					served <- true
					if err := nodes[n%2].Release(ctx, []ledger.ReleaseCall{{Hold: call.Hold, Incarnation: call.Incarnation, Epoch: 1, Charge: price}}); err != nil {
						t.Errorf("release: %v", err)
					}
				case ledger.OutcomeRefused:
					return
				case ledger.OutcomeBusy, ledger.OutcomeNeedLoad, ledger.OutcomeRebuilding, ledger.OutcomeGone:
				}
			}
		})
	}
	wg.Wait()
	if len(served) != requests {
		t.Fatalf("served %d requests of %d", len(served), requests)
	}
}

// TestWatchAgain: after a gap in the connection a watcher is told that it may have missed something.
func TestWatchAgain(t *testing.T) {
	t.Parallel()
	server := ledgertest.StartRedis(t)
	r := connect(t, server.RedisURL())
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan []byte, 1000), make(chan error, 1)
	go func() { ended <- r.Watch(ctx, func(payload []byte) { heard <- payload }) }()
	next := func() []byte {
		t.Helper()
		select {
		case payload := <-heard:
			return payload
		case <-time.After(30 * time.Second):
			t.Fatal("heard nothing")
			return nil
		}
	}
	if p := next(); p != nil {
		t.Fatalf("heard %q first", p)
	}
	server.Kill()
	server.Start()
	if p := next(); p != nil {
		t.Fatalf("heard %q after the gap", p)
	}
	if err := r.Notify(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if p := next(); string(p) != "x" {
		t.Fatalf("heard %q", p)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("watch ended with %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, cfg := range []hold.RedisConfig{
		{URL: ""},
		{URL: "localhost:6379"},
		{URL: "http://localhost"},
		{URL: "redis://a:1/x"},
		{URL: "redis://a:1,b:2/3"},
		{URL: "redis://a:1", Prefix: "{x}"},
	} {
		if r, err := hold.NewRedis(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
			_ = r.Close()
		}
	}
}

// freePort returns a port that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestCluster runs the suite on a cluster of two servers: partitions lie on either.
func TestCluster(t *testing.T) {
	t.Parallel()
	bus := freePort(t)
	start := func(bus string) *ledgertest.Server {
		return ledgertest.StartRedis(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", bus)
	}
	a, b := start(freePort(t)), start(bus)
	nodes := []*redis.Client{raw(t, "redis://"+a.Addr), raw(t, "redis://"+b.Addr)}
	const slots = 16384
	for i, node := range nodes {
		if err := node.ClusterAddSlotsRange(t.Context(), i*slots/2, (i+1)*slots/2-1).Err(); err != nil {
			t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(b.Addr)
	if err := nodes[0].Do(t.Context(), "CLUSTER", "MEET", host, port, bus).Err(); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		eventually(t, "the cluster is there", func() bool {
			info := node.ClusterInfo(t.Context()).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:2")
		})
	}
	alone := connect(t, "redis://"+a.Addr)
	if err := alone.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "Cluster") {
		t.Fatalf("check of one node of a cluster: %v", err)
	}
	url := fmt.Sprintf("redis://%s,%s", a.Addr, b.Addr)
	ledgertest.CountersSuite(t, func(t *testing.T) ledgertest.Counters { return connect(t, url) })
	r := connect(t, url)
	open(t, r, benchPartitions)
	var wg sync.WaitGroup
	for n := range uint64(200) {
		wg.Go(func() {
			if err := reserveAndRelease(t.Context(), r, benchPartitions, n); err != nil {
				t.Errorf("request %d: %v", n, err)
			}
		})
	}
	wg.Wait()
}

// TestSentinel: the primary dies, a replica takes over, and what it has is foreign.
func TestSentinel(t *testing.T) {
	t.Parallel()
	primary := ledgertest.StartRedis(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(primary.Addr)
	if err != nil {
		t.Fatal(err)
	}
	replica := ledgertest.StartRedis(t, "--replicaof", host+" "+port)
	sentinel := ledgertest.StartSentinel(t, "counters", primary.Addr)
	r := connectAs(t, hold.RedisConfig{URL: "redis://" + sentinel.Addr, MasterName: "counters"})
	eventually(t, "the primary can be found", func() bool { return r.Check(t.Context()) == nil })
	open(t, r, 1)
	mustReserve(t, r, reserveCall(1, 5), ledger.OutcomeGranted)
	eventually(t, "the replica has the data", func() bool {
		n, err := raw(t, primary.RedisURL()).Wait(t.Context(), 1, time.Second).Result()
		return err == nil && n == 1
	})
	watcher := raw(t, "redis://"+sentinel.Addr)
	eventually(t, "the sentinel knows the replica", func() bool {
		n, err := watcher.Do(t.Context(), "SENTINEL", "REPLICAS", "counters").Slice()
		return err == nil && len(n) == 1
	})
	primary.Kill()
	eventually(t, "the replica is the primary", func() bool {
		return strings.Contains(raw(t, replica.RedisURL()).Info(t.Context(), "replication").Val(), "role:master")
	})
	eventually(t, "the client has found it", func() bool {
		_, err := r.State(t.Context(), 0)
		return err == nil
	})
	foreign(t, r)
}

// proxy forwards connections and can lose the server's next replies to scripts.
type proxy struct {
	addr string
	lose counter
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) Store(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n = n
}

func (c *counter) Load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counter) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		return false
	}
	c.n--
	return true
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: listener.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(client, to) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	return p
}

// serve copies both ways until either side ends. A script goes out in one write, and its reply comes in one.
func (p *proxy) serve(client net.Conn, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	script := make(chan bool, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains(strings.ToUpper(string(buf[:n])), "EVAL") {
				select {
				case script <- true:
				default:
				}
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := server.Read(buf)
		if err != nil {
			break
		}
		select {
		case <-script:
			if p.lose.take() {
				err = io.EOF
			}
		default:
		}
		if err != nil {
			break
		}
		if _, err := client.Write(buf[:n]); err != nil {
			break
		}
	}
	_ = client.Close()
	<-done
}
