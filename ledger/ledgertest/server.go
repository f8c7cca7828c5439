//go:build unix

// Package ledgertest holds what tests of several packages share: the conformance suites that every implementation of a port
// passes, and real engines. It is imported by tests and by compose alone.
//
// Engines are shared where that is safe: each test gets a database or topic of its own on a server that the environment
// names (TEST_KAFKA_BROKERS, TEST_MYSQL_DSN, TEST_REDIS_URL, TEST_CLICKHOUSE_DSN; make test sets them) or that the first
// test of the binary starts. A test that kills, freezes or reconfigures its engine starts a private one ([Server]). An
// engine that cannot be had fails the test; only -short leaves such tests out. All servers die with the test binary,
// however it ends.
package ledgertest

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger/ledgertest/engines"
)

// The environment variables that name engines for tests. One that is set wins over an engine of the test's own, so that a
// whole run (make test) or a machine with engines of its own starts nothing twice.
const (
	KafkaEnv      = "TEST_KAFKA_BROKERS"  // host:port[,host:port…]
	MySQLEnv      = "TEST_MYSQL_DSN"      // go-sql-driver DSN of an account that may create databases
	RedisEnv      = "TEST_REDIS_URL"      // redis://…, any database number
	ClickHouseEnv = "TEST_CLICKHOUSE_DSN" // http://host:port/database or clickhouse://…
)

// engineTimeout bounds the start of one engine, its installation included.
const engineTimeout = 10 * time.Minute

// Server is a private engine of one test: Addr, Kill (kill -9), Stop (SIGTERM), Freeze and Thaw (SIGSTOP, SIGCONT), and
// Start and Restart, which fail the test where those of engines return an error. It is closed when the test ends.
type Server struct {
	*engines.Server
	t testing.TB
}

// Start starts the server again on the same port and data, after Kill or Stop, and returns when it is ready for work.
func (s *Server) Start() {
	s.t.Helper()
	ctx, cancel := engineContext()
	defer cancel()
	if err := s.Server.Start(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// Restart stops the server (SIGTERM), if it runs, and starts it again.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// StartKafka starts a private Kafka cluster of one broker, whose group coordinator is warm. Lines are added to its
// server.properties.
func StartKafka(t testing.TB, lines ...string) *Server {
	t.Helper()
	return start(t, lines, engines.StartKafka)
}

// StartKafkaCluster starts a private Kafka cluster of three brokers, with replication factor 3 and min.insync.replicas 2.
func StartKafkaCluster(t testing.TB) []*Server {
	t.Helper()
	const brokers = 3 // the least that keeps a quorum while one is away
	return StartKafkaBehind(t, brokers, nil)
}

// StartKafkaBehind starts a private Kafka cluster of so many brokers (1 or 3) that tell clients the addresses which advertise
// returns for theirs, a proxy's; nil: their own.
func StartKafkaBehind(t testing.TB, brokers int, advertise func(addr string) (string, error)) []*Server {
	t.Helper()
	return startAll(t, func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
		o.Advertise = advertise
		return engines.StartKafkaCluster(ctx, brokers, o)
	})
}

// StartMySQL starts a private MariaDB server; its DSN is [engines.Server.MySQLDSN] of a database that the caller creates.
func StartMySQL(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, args, engines.StartMariaDB)
}

// StartMySQLOn is StartMySQL on a folder whose subfolder data is the data folder of a MariaDB server that is not running.
func StartMySQLOn(t testing.TB, dir string, args ...string) *Server {
	t.Helper()
	return start(t, args, func(ctx context.Context, o engines.Options) (*engines.Server, error) {
		o.Dir = dir
		return engines.StartMariaDB(ctx, o)
	})
}

// StartMySQLServer starts a private server of MySQL itself (9), where MariaDB does not do.
func StartMySQLServer(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, args, engines.StartMySQL)
}

// StartRedis starts a private Redis server, without persistence unless args say otherwise. Its URL is RedisURL.
func StartRedis(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, args, engines.StartRedis)
}

// StartSentinel starts a private Redis sentinel that watches the primary at host:port under name, alone in its vote.
func StartSentinel(t testing.TB, name, primary string) *Server {
	t.Helper()
	return start(t, nil, func(ctx context.Context, o engines.Options) (*engines.Server, error) {
		return engines.StartSentinel(ctx, o, name, primary, 1)
	})
}

// StartRedisCluster starts a private Redis Cluster of three primaries; its URL is [engines.RedisClusterURL].
func StartRedisCluster(t testing.TB, args ...string) (all []*Server, url string) {
	t.Helper()
	all = startAll(t, func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
		const primaries = 3 // the least that has a majority without one
		o.Args = args
		list, err := engines.StartRedisCluster(ctx, primaries, o)
		url = engines.RedisClusterURL(list)
		return list, err
	})
	return all, url
}

// StartNginx starts a private nginx with what configure makes of its port and its folder. Its address is URL.
func StartNginx(t testing.TB, configure func(port int, dir string) (string, error)) *Server {
	t.Helper()
	return start(t, nil, func(ctx context.Context, o engines.Options) (*engines.Server, error) {
		return engines.StartNginx(ctx, o, configure)
	})
}

// StartClickHouse starts a private ClickHouse engine; its DSN is [engines.Server.ClickHouseDSN].
func StartClickHouse(t testing.TB) *Server {
	t.Helper()
	return start(t, nil, engines.StartClickHouse)
}

// start starts an engine for t and closes it when t ends.
func start(t testing.TB, args []string, f func(context.Context, engines.Options) (*engines.Server, error)) *Server {
	t.Helper()
	return startAll(t, func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
		o.Args = args
		s, err := f(ctx, o)
		return []*engines.Server{s}, err
	})[0]
}

// startAll starts servers that belong together. With -short it skips, for a quick run on a machine without the engines;
// otherwise an engine that cannot be had fails the test.
func startAll(t testing.TB, f func(context.Context, engines.Options) ([]*engines.Server, error)) []*Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real engine")
	}
	c, err := engines.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := engineContext()
	defer cancel()
	list, err := f(ctx, engines.Options{Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]*Server, len(list))
	for i, s := range list {
		all[i] = own(t, s)
	}
	return all
}

func own(t testing.TB, s *engines.Server) *Server {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close %s: %v", s.Name, err)
		}
	})
	return &Server{Server: s, t: t}
}

// engineContext is not the test's own context: a server is also started and stopped in a test's cleanup.
func engineContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), engineTimeout)
}

// shared is an engine that the tests of one binary share, started by the first that needs it. It dies with the binary.
type shared struct {
	env  string // the variable that names an engine that runs already
	f    func(context.Context, engines.Options) (*engines.Server, error)
	addr func(*engines.Server) string

	once   sync.Once
	server string
	err    error
}

var (
	sharedKafka = shared{env: KafkaEnv, f: engines.StartKafka, addr: func(s *engines.Server) string { return s.Addr }}
	sharedMySQL = shared{env: MySQLEnv, f: engines.StartMariaDB, addr: func(s *engines.Server) string { return s.MySQLDSN("") }}
	sharedRedis = shared{env: RedisEnv, f: engines.StartRedis, addr: func(s *engines.Server) string { return s.RedisURL() }}
	sharedClick = shared{env: ClickHouseEnv, f: engines.StartClickHouse, addr: func(s *engines.Server) string { return s.ClickHouseDSN("default") }}
)

// get returns the address of the shared engine.
func (e *shared) get(t testing.TB) string {
	t.Helper()
	if addr := os.Getenv(e.env); addr != "" {
		return addr
	}
	if testing.Short() {
		t.Skipf("-short: needs a real engine (%s)", e.env)
	}
	e.once.Do(func() {
		c, err := engines.Open(os.Stderr)
		if err != nil {
			e.err = err
			return
		}
		ctx, cancel := engineContext()
		defer cancel()
		s, err := e.f(ctx, engines.Options{Cache: c})
		if err != nil {
			e.err = err
			return
		}
		e.server = e.addr(s)
	})
	if e.err != nil {
		t.Fatalf("%v (or set %s to a running engine, or run with -short to leave such tests out)", e.err, e.env)
	}
	return e.server
}

// Port returns a port of 127.0.0.1 that is the test's own until it ends, also while nothing listens on it.
func Port(t testing.TB) int {
	t.Helper()
	port, release, err := engines.ClaimPort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

// NodeModules returns a node_modules folder with the named npm packages (name@version), for a test that runs a client SDK
// under node: a script beside a link to that folder, or NODE_PATH, finds them.
func NodeModules(t testing.TB, packages ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs npm packages")
	}
	c, err := engines.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := engineContext()
	defer cancel()
	dir, err := c.NodeModules(ctx, packages...)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
