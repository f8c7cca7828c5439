//go:build unix

package engines

import (
	"context"
	"errors"
	"strings"
	"sync"
)

// Kind is one of the four engines of the topology.
type Kind string

// The engines of the topology.
const (
	Kafka      Kind = "kafka"
	MySQL      Kind = "mysql" // MariaDB
	Redis      Kind = "redis"
	ClickHouse Kind = "clickhouse"
)

// MySQLServer is MySQL itself, which may take MariaDB's place.
const MySQLServer Kind = "mysql-server"

// Kinds lists the engines of the topology.
var Kinds = []Kind{Kafka, MySQL, Redis, ClickHouse}

// Server returns the name of the server that Start starts for the kind.
func (k Kind) Server() string {
	if k == MySQL {
		return "mariadb"
	}
	return strings.TrimSuffix(string(k), "-server")
}

// Start starts one engine of the given kind.
func Start(ctx context.Context, kind Kind, o Options) (*Server, error) {
	switch kind {
	case Kafka:
		return StartKafka(ctx, o)
	case MySQL:
		return StartMariaDB(ctx, o)
	case MySQLServer:
		return StartMySQL(ctx, o)
	case Redis:
		return StartRedis(ctx, o)
	case ClickHouse:
		return StartClickHouse(ctx, o)
	}
	panic("engines: no kind " + string(kind))
}

// StartAll installs and starts engines, all at once. If one of them fails, none is left running.
func StartAll(ctx context.Context, options map[Kind]Options) (map[Kind]*Server, error) {
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		servers = make(map[Kind]*Server, len(options))
		failed  error
	)
	for kind, o := range options {
		wg.Go(func() {
			s, err := Start(ctx, kind, o)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			servers[kind] = s
		})
	}
	wg.Wait()
	if failed != nil {
		return nil, errors.Join(failed, CloseAll(servers))
	}
	return servers, nil
}

// CloseAll closes servers, all at once.
func CloseAll(servers map[Kind]*Server) error {
	errs := make(chan error, len(servers))
	for _, s := range servers {
		go func() { errs <- s.Close() }()
	}
	var err error
	for range servers {
		err = errors.Join(err, <-errs)
	}
	return err
}
