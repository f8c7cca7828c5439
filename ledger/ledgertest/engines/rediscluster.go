package engines

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redisSlots is the number of a Redis Cluster's hash slots.
const redisSlots = 16384

// StartRedisCluster starts a Redis Cluster of n primaries that share the slots, and returns when every one of them knows the
// others and serves. With n > 1 Options.Port must be 0, and Options.Dir gets a folder per server.
func StartRedisCluster(ctx context.Context, n int, o Options) (all []*Server, err error) {
	defer func() {
		if err != nil {
			for _, s := range all {
				_ = s.Close()
			}
		}
	}()
	buses := make([]int, n)
	for i := range n {
		one := o
		if o.Dir != "" {
			one.Dir = o.Dir + strconv.Itoa(i+1)
		}
		s, err := startRedis(ctx, "redis", one, func(s *Server, port int) []string {
			if buses[i] == 0 {
				if buses[i], err = s.claim(); err != nil {
					return nil
				}
			}
			return append([]string{
				"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", s.Dir, "--daemonize", "no", "--save", "", "--appendonly", "no",
				"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", strconv.Itoa(buses[i]),
			}, o.Args...)
		})
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	for i, s := range all {
		slots := fmt.Sprintf("CLUSTER ADDSLOTSRANGE %d %d", i*redisSlots/n, (i+1)*redisSlots/n-1)
		if _, err := redisDo(ctx, s.Addr, slots); err != nil && !strings.Contains(err.Error(), "already busy") { // a kept folder knows it
			return all, fmt.Errorf("give %s its slots: %w", s.Addr, err)
		}
		for j, other := range all[:i] {
			host, port, _ := net.SplitHostPort(other.Addr)
			if _, err := redisDo(ctx, s.Addr, fmt.Sprintf("CLUSTER MEET %s %s %d", host, port, buses[j])); err != nil {
				return all, fmt.Errorf("make %s meet %s: %w", s.Addr, other.Addr, err)
			}
		}
	}
	return all, awaitRedisCluster(ctx, all)
}

// awaitRedisCluster returns once every server says that the cluster is whole.
func awaitRedisCluster(ctx context.Context, all []*Server) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, s := range all {
		for {
			info, err := redisDo(ctx, s.Addr, "CLUSTER INFO")
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r", len(all))) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("form the Redis cluster: %w: %s", errors.Join(err, ctx.Err()), tail(info))
			case <-time.After(readyPoll):
			}
		}
	}
	return nil
}

// RedisClusterURL returns the URL of a Redis Cluster, in the form that REDIS_CONN_STRING takes: several hosts.
func RedisClusterURL(all []*Server) string {
	addrs := make([]string, len(all))
	for i, s := range all {
		addrs[i] = s.Addr
	}
	return "redis://" + strings.Join(addrs, ",")
}

// redisDo sends one command without spaces in its arguments and returns its reply, a line or a string.
func redisDo(ctx context.Context, addr, command string) (string, error) {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(lookTimeout))
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	switch {
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line[1:])
	case !strings.HasPrefix(line, "$"):
		return line, nil
	}
	size, err := strconv.Atoi(line[1:])
	if err != nil || size < 0 {
		return "", fmt.Errorf("reply %q: %w", line, err)
	}
	text := make([]byte, size)
	_, err = io.ReadFull(in, text)
	return string(text), err
}
