package engines

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// redisDatabases is how many databases a server has: each test takes one of its own, and an empty one costs nothing.
const redisDatabases = 1024

// redis returns the folder that holds Redis, "" for the system's own.
func (c *Cache) redis(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("redis-server"); err == nil {
		return "", nil
	}
	return c.debian(ctx, "redis", "redis-server")
}

// StartRedis starts redis-server with no persistence and no maxmemory. Options.Args may change that, for example
// "--appendonly", "yes" to keep the data through a restart, or "--replicaof", "127.0.0.1 PORT".
func StartRedis(ctx context.Context, o Options) (*Server, error) {
	return startRedis(ctx, "redis", o, func(s *Server, port int) []string {
		args := []string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", s.Dir, "--daemonize", "no",
			"--databases", strconv.Itoa(redisDatabases), "--save", "", "--appendonly", "no",
		}
		return append(args, o.Args...)
	})
}

// StartSentinel starts redis-server as a sentinel, which watches the server at primary (host:port) under the given name and promotes
// a replica down milliseconds after losing it. Quorum is how many sentinels must agree.
func StartSentinel(ctx context.Context, o Options, name, primary string, quorum int) (*Server, error) {
	const (
		// A loaded machine stops a server for a second now and then. One that stops the sentinel for two makes it look away for 30 s, and
		// what it then finds to have been without its primary for ten times this is never promoted.
		downMilliseconds = 3500
		// failoverMilliseconds bounds one attempt; the next begins after twice as long.
		failoverMilliseconds = 3000
	)
	host, port, err := net.SplitHostPort(primary)
	if err != nil {
		return nil, fmt.Errorf("start redis-sentinel: %w", err)
	}
	conf := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s %[4]d\nsentinel down-after-milliseconds %[1]s %[5]d\nsentinel failover-timeout %[1]s %[6]d\n",
		name, host, port, quorum, downMilliseconds, failoverMilliseconds)
	return startRedis(ctx, "redis-sentinel", o, func(s *Server, port int) []string {
		file := filepath.Join(s.Dir, "sentinel.conf")
		if _, err := os.Stat(file); err != nil { // the sentinel rewrites its file; a restart goes on from there
			_ = os.WriteFile(file, []byte(conf), 0o644)
		}
		args := []string{file, "--sentinel", "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", s.Dir}
		return append(args, o.Args...)
	})
}

func startRedis(ctx context.Context, name string, o Options, args func(*Server, int) []string) (*Server, error) {
	root, err := o.Cache.redis(ctx)
	if err != nil {
		return nil, err
	}
	path, err := unpacked(root).path("redis-server")
	if err != nil {
		return nil, err
	}
	s, port, err := newServer(ctx, name, o)
	if err != nil {
		return nil, err
	}
	s.command = func() *exec.Cmd {
		return child(unpacked(root).environ(), path, args(s, port)...)
	}
	s.ready = func(ctx context.Context) error { return redisReady(ctx, s.Addr) }
	return started(ctx, s)
}

// redisReady sends one PING. "LOADING" and "MASTERDOWN" are answers too, of a server that is not ready.
func redisReady(ctx context.Context, addr string) error {
	line, err := redisDo(ctx, addr, "PING")
	if err == nil && line != "+PONG" {
		err = fmt.Errorf("ping: %s", line)
	}
	return err
}

// RedisURL returns the URL of a Redis server's database 0, in the form that REDIS_CONN_STRING takes.
func (s *Server) RedisURL() string { return "redis://" + s.Addr + "/0" }
