package eventlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
)

// EmbeddedConfig describes the broker inside the process.
type EmbeddedConfig struct {
	Dir    string // where it keeps its log; made if missing
	Port   int    // on 127.0.0.1; 0 picks a free one
	Logger *slog.Logger
}

// Embedded is a Kafka-protocol broker inside the process, for one node that has nothing else installed. Every batch is
// fsynced before it is acknowledged, so what a client was told survives kill -9. It listens on 127.0.0.1 only, and knows no
// replication: a lost disk is a lost log.
type Embedded struct {
	cluster *kfake.Cluster
	addr    string
	close   sync.Once
}

// StartEmbedded starts the broker on the files in cfg.Dir, which it picks up where they ended. Two processes must not share a
// directory: a fixed port keeps the second one out, and the ledger's own lock on its data does so before.
func StartEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	if cfg.Dir == "" {
		return nil, errors.New("start embedded event log: it needs a directory")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start embedded event log: %w", err)
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.Ports(cfg.Port),
		kfake.DataDir(cfg.Dir),
		kfake.SyncWrites(),
		kfake.WithLogger(brokerLogger{logger}),
	)
	if err != nil {
		return nil, fmt.Errorf("start embedded event log in %s: %w", cfg.Dir, err)
	}
	return &Embedded{cluster: cluster, addr: cluster.ListenAddrs()[0]}, nil
}

// Addr returns the broker's address, 127.0.0.1:port.
func (e *Embedded) Addr() string { return e.addr }

// Close stops the broker after it has written down its state. Clients must be closed first, or their requests fail.
func (e *Embedded) Close() { e.close.Do(e.cluster.Close) }

// brokerLogger passes on what the broker has to say from warnings up.
type brokerLogger struct{ logger *slog.Logger }

// Logf implements kfake.Logger.
func (l brokerLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.logger.Error("embedded event log", "said", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.logger.Warn("embedded event log", "said", fmt.Sprintf(format, args...))
	case kfake.LogLevelInfo, kfake.LogLevelDebug, kfake.LogLevelNone:
	}
}
