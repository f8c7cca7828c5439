//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ledgerline/ledger/ledgertest/engines"
)

// The topologies of `up`.
const (
	single   = "single"   // one server of each engine
	sentinel = "sentinel" // three Kafka nodes; Redis with a replica and three sentinels
	cluster  = "cluster"  // three Kafka nodes; a Redis Cluster of three
)

var topologies = []string{single, sentinel, cluster}

// redisMaster is Sentinel's name of the primary.
const redisMaster = "ledgerline"

// group is what starts and ends together: the servers of one engine.
type group struct {
	kind  engines.Kind
	start func(ctx context.Context, o engines.Options) ([]*engines.Server, error)
}

// groupsOf returns what a topology is made of.
func groupsOf(topology string) []group {
	var all []group
	for _, kind := range engines.Kinds {
		g := group{kind, func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
			if port := ports[kind]; engines.PortFree(port) {
				o.Port = port
			}
			s, err := engines.Start(ctx, kind, o)
			return []*engines.Server{s}, err
		}}
		switch {
		case topology != single && kind == engines.Kafka:
			g.start = func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
				const brokers = 3
				// All end together (down), and the last would wait for a majority of controllers that is not there to grant its leave.
				o.Args = append(slices.Clone(o.Args), "controlled.shutdown.enable=false")
				return engines.StartKafkaCluster(ctx, brokers, o)
			}
		case topology == sentinel && kind == engines.Redis:
			g.start = startSentinels
		case topology == cluster && kind == engines.Redis:
			g.start = func(ctx context.Context, o engines.Options) ([]*engines.Server, error) {
				const primaries = 3
				return engines.StartRedisCluster(ctx, primaries, o)
			}
		}
		all = append(all, g)
	}
	return all
}

// startSentinels starts a primary, its replica, and three sentinels of which two must agree.
func startSentinels(ctx context.Context, o engines.Options) (all []*engines.Server, err error) {
	defer func() {
		if err != nil {
			for _, s := range all {
				err = errors.Join(err, s.Close())
			}
		}
	}()
	add := func(name string, start func(engines.Options) (*engines.Server, error), args ...string) error {
		one := o
		one.Dir, one.Args = filepath.Join(o.Dir, name), args
		s, err := start(one)
		if err == nil {
			all = append(all, s)
		}
		return err
	}
	redis := func(o engines.Options) (*engines.Server, error) { return engines.StartRedis(ctx, o) }
	if err := add("primary", redis); err != nil {
		return all, err
	}
	primary := all[0].Addr
	host, port, err := net.SplitHostPort(primary)
	if err != nil {
		return all, fmt.Errorf("address of Redis: %w", err)
	}
	if err := add("replica", redis, "--replicaof", host+" "+port); err != nil {
		return all, err
	}
	for i := range 3 {
		err := add(fmt.Sprintf("sentinel%d", i+1), func(o engines.Options) (*engines.Server, error) {
			const quorum = 2
			return engines.StartSentinel(ctx, o, redisMaster, primary, quorum)
		})
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// launch starts a group as processes that outlive this one. Redis keeps nothing, and the files of a cluster (in redis1 and so on)
// or of sentinels speak of the ports before.
func launch(ctx context.Context, cache *engines.Cache, dir string, g group) ([]record, error) {
	folder := filepath.Join(dir, string(g.kind))
	if g.kind == engines.Redis {
		for _, name := range []string{folder, folder + "1", folder + "2", folder + "3"} {
			if err := os.RemoveAll(name); err != nil {
				return nil, fmt.Errorf("clear Redis's folder: %w", err)
			}
		}
	}
	servers, err := g.start(ctx, engines.Options{Cache: cache, Dir: folder, Detach: true})
	if err != nil {
		return nil, err
	}
	return recordsOf(g.kind, servers)
}

func recordsOf(kind engines.Kind, servers []*engines.Server) (records []record, err error) {
	for _, s := range servers {
		process, err := s.Process()
		if err != nil {
			for _, s := range servers {
				err = errors.Join(err, s.Close())
			}
			return nil, err
		}
		records = append(records, record{Kind: kind, Name: s.Name, Addr: s.Addr, Dir: s.Dir, Process: process})
	}
	return records, nil
}

// addresses lists where the servers of that name listen.
func addresses(records []record, name string) (list []string) {
	for _, r := range records {
		if r.Name == name {
			list = append(list, r.Addr)
		}
	}
	return list
}

// redisEnvironment is how ledgerline finds Redis. Sentinel's name is always said: a shell may still have that of another topology.
func redisEnvironment(topology string, records []record) []string {
	switch topology {
	case sentinel:
		return []string{"REDIS_CONN_STRING=redis://" + strings.Join(addresses(records, "redis-sentinel"), ","), "REDIS_MASTER_NAME=" + redisMaster}
	case cluster:
		return []string{"REDIS_CONN_STRING=redis://" + strings.Join(addresses(records, "redis"), ","), "REDIS_MASTER_NAME="}
	}
	return []string{"REDIS_CONN_STRING=redis://" + addresses(records, "redis")[0] + "/0", "REDIS_MASTER_NAME="}
}

func checkTopology(topology string) error {
	if !slices.Contains(topologies, topology) {
		return fmt.Errorf("%w: -topology %q: one of %s is needed", errUsage, topology, strings.Join(topologies, ", "))
	}
	return nil
}
