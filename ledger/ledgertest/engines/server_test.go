//go:build unix

package engines

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
)

// testServer starts an engine that is closed when t ends.
func testServer(t *testing.T, f func(context.Context, Options) (*Server, error), args ...string) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real engine")
	}
	c, err := Open(t.Output())
	must(t, err)
	s, err := f(t.Context(), Options{Cache: c, Args: args})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func redisConn(t *testing.T, s *Server) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(s.RedisURL())
	must(t, err)
	o.MaxRetries, o.ContextTimeoutEnabled = -1, true
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	return client
}

// Without persistence a killed Redis comes back empty, with it whole: both are what tests of lost counters need.
func TestRedisKillAndRestart(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{"--appendonly", "yes", "--appendfsync", "always"}, "kept"},
	} {
		s := testServer(t, StartRedis, c.args...)
		client := redisConn(t, s)
		must(t, client.Set(t.Context(), "k", "kept", 0).Err())
		pid := s.PID()
		s.Kill()
		if s.PID() != 0 || syscall.Kill(pid, 0) == nil {
			t.Errorf("process %d is still there after Kill", pid)
		}
		must(t, s.Start(t.Context()))
		got, err := client.Get(t.Context(), "k").Result()
		if err != nil && !errors.Is(err, redis.Nil) || got != c.want {
			t.Errorf("%v: after kill -9: %q, %v, want %q", c.args, got, err, c.want)
		}
	}
}

func TestRedisFreezeAndThaw(t *testing.T) {
	s := testServer(t, StartRedis)
	client := redisConn(t, s)
	must(t, client.Ping(t.Context()).Err())
	s.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.Ping(ctx).Err(); err == nil {
		t.Error("a frozen server answered")
	}
	s.Thaw()
	must(t, client.Ping(t.Context()).Err())
	if err := s.Start(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("a second start: %v, want %v", err, ErrRunning)
	}
	s.Freeze()
	s.Stop() // must not wait for a process that cannot see the signal
	if s.PID() != 0 {
		t.Error("still running after Stop")
	}
}

func TestSentinelPromotesReplica(t *testing.T) {
	primary := testServer(t, StartRedis)
	host, port, _ := strings.Cut(primary.Addr, ":")
	replica := testServer(t, StartRedis, "--replicaof", host+" "+port)
	sentinel := testServer(t, func(ctx context.Context, o Options) (*Server, error) {
		return StartSentinel(ctx, o, "ledger", primary.Addr, 1)
	})
	watch := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr})
	defer watch.Close()
	until(t, "the sentinel sees the replica", func() bool {
		replicas, err := watch.Replicas(t.Context(), "ledger").Result()
		return err == nil && len(replicas) == 1 && replicas[0]["master-link-status"] == "ok"
	})
	primary.Kill()
	until(t, "the replica is promoted", func() bool {
		addr, err := watch.GetMasterAddrByName(t.Context(), "ledger").Result()
		return err == nil && strings.Join(addr, ":") == replica.Addr
	})
	must(t, redisConn(t, replica).Set(t.Context(), "k", "v", 0).Err())
}

func TestMariaDBKeepsRowsThroughKill(t *testing.T) {
	testKeepsRows(t, testServer(t, StartMariaDB))
}

func TestMySQLKeepsRowsThroughKill(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("MySQL itself, which MariaDB stands in for, comes from Debian's packages only")
	}
	testKeepsRows(t, testServer(t, StartMySQL))
}

func testKeepsRows(t *testing.T, s *Server) {
	t.Helper()
	db, err := sql.Open("mysql", s.MySQLDSN(""))
	must(t, err)
	defer db.Close()
	for _, q := range []string{"CREATE DATABASE d", "CREATE TABLE d.t (n BIGINT PRIMARY KEY, s VARCHAR(20) CHARACTER SET utf8mb4)", "INSERT INTO d.t VALUES (1, '配额')"} {
		_, err := db.ExecContext(t.Context(), q)
		must(t, err)
	}
	s.Kill()
	must(t, s.Start(t.Context()))
	var text string
	if err := db.QueryRowContext(t.Context(), "SELECT s FROM d.t WHERE n = 1").Scan(&text); err != nil || text != "配额" {
		t.Errorf("after kill -9: %q, %v", text, err)
	}
}

// A group can be joined at once on a new cluster, and records survive kill -9.
func TestKafkaGroupIsWarmAndRecordsSurviveKill(t *testing.T) {
	s := testServer(t, StartKafka)
	makeTopic(t, s, 1)
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{ID: "g", Brokers: []string{s.Addr}, Topics: []string{"topic"}})
	must(t, err)
	defer group.Close()
	if _, err := group.Next(t.Context()); err != nil {
		t.Fatalf("the first Next on a new cluster: %v", err)
	}
	produce(t, s.Addr, "before")
	s.Kill()
	must(t, s.Start(t.Context()))
	produce(t, s.Addr, "after")
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{s.Addr}, Topic: "topic", MaxWait: 100 * time.Millisecond})
	defer reader.Close()
	for _, want := range []string{"before", "after"} {
		m, err := reader.ReadMessage(t.Context())
		if err != nil || string(m.Value) != want {
			t.Fatalf("read %q, %v, want %q", m.Value, err, want)
		}
	}
}

func TestKafkaClusterSurvivesOneBroker(t *testing.T) {
	var cluster []*Server
	first := testServer(t, func(ctx context.Context, o Options) (*Server, error) {
		var err error
		if cluster, err = StartKafkaCluster(ctx, 3, o); err != nil {
			return nil, err
		}
		return cluster[0], nil
	})
	defer cluster[1].Close()
	defer cluster[2].Close()
	makeTopic(t, first, 3)
	first.Kill()
	produce(t, cluster[1].Addr, "one broker is away")
}

func makeTopic(t *testing.T, s *Server, replicas int) {
	t.Helper()
	client := &kafka.Client{Addr: kafka.TCP(s.Addr), Timeout: startTimeout}
	made, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: "topic", NumPartitions: 1, ReplicationFactor: replicas}},
	})
	must(t, err)
	must(t, made.Errors["topic"])
	until(t, "the topic has a leader", func() bool {
		meta, err := client.Metadata(t.Context(), &kafka.MetadataRequest{Topics: []string{"topic"}})
		return err == nil && len(meta.Topics) == 1 && len(meta.Topics[0].Partitions) == 1 && meta.Topics[0].Partitions[0].Error == nil
	})
}

func produce(t *testing.T, addr, value string) {
	t.Helper()
	w := &kafka.Writer{Addr: kafka.TCP(addr), Topic: "topic", RequiredAcks: kafka.RequireAll, BatchTimeout: 5 * time.Millisecond}
	defer w.Close()
	until(t, "a record is acknowledged", func() bool {
		return w.WriteMessages(t.Context(), kafka.Message{Value: []byte(value)}) == nil
	})
}

// A server that cannot start says why.
func TestStartReportsTheLog(t *testing.T) {
	c, err := Open(t.Output())
	must(t, err)
	if testing.Short() {
		t.Skip("-short: needs a real engine")
	}
	_, err = StartRedis(t.Context(), Options{Cache: c, Args: []string{"--no-such-option", "x"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("the error does not hold the log: %v", err)
	}
	s := testServer(t, StartRedis)
	_, port, _ := strings.Cut(s.Addr, ":")
	n, err := strconv.Atoi(port)
	must(t, err)
	if _, err := StartRedis(t.Context(), Options{Cache: c, Port: n}); err == nil || !strings.Contains(err.Error(), port+" is taken") {
		t.Errorf("a taken port: %v", err)
	}
}

const orphanEnv = "ENGINES_TEST_ORPHAN"

// A server dies with the process that started it, even by kill -9, and its folder goes with the next server.
func TestServerDiesWithParent(t *testing.T) {
	if os.Getenv(orphanEnv) != "" {
		s := testServer(t, StartRedis)
		fmt.Printf("orphan %d %s\n", s.PID(), s.Dir)
		select {} // until the parent kills this process
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ties a child's life to its parent's")
	}
	testServer(t, StartRedis) // Redis is installed before the clock of the child runs
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerDiesWithParent$", "-test.v")
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid int
	var dir string
	for pid == 0 {
		var line [4096]byte
		n, err := out.Read(line[:])
		must(t, err)
		if _, rest, ok := strings.Cut(string(line[:n]), "orphan "); ok {
			_, err := fmt.Sscan(rest, &pid, &dir)
			must(t, err)
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	until(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	testServer(t, StartRedis)
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s of a dead process is still there", dir)
	}
}

// until polls cond with a deadline.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); !cond(); time.Sleep(readyPoll) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s", startTimeout, what)
		}
	}
}
