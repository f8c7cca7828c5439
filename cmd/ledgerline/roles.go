package main

import (
	"context"
	"io"
)

// role is which half of a node a process is. Only a cluster can be split: embedded parts live in one process.
type role struct {
	command, usage   string
	relays, consumes bool
}

var (
	wholeNode = role{
		command: "serve", relays: true, consumes: true,
		usage: "usage: ledgerline [serve] [flags]\nA node. Its settings are environment variables, which the README lists.",
	}
	relayHalf = role{
		command: "relay", relays: true,
		usage: "usage: ledgerline relay [flags]\nThe relay and the management API, without consumers.",
	}
	consumeHalf = role{
		command: "consume", consumes: true,
		usage: "usage: ledgerline consume [flags]\nThe consumers, without relay. A partition that stopped because the log is another one goes on after\n" +
			"  ledgerline consume -adopt-log -projection quota|usagelog -partition N [-offset N]",
	}
)

// relayCommand starts the data plane and the management API only; consumers run elsewhere.
func relayCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return serveRole(ctx, relayHalf, args, getenv, stdout, stderr)
}

// consumeCommand starts the consumers only, or adopts another log for a stopped partition.
func consumeCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	for _, arg := range args {
		if arg == "-adopt-log" || arg == "--adopt-log" {
			return adoptLogCommand(ctx, args, getenv, stdout, stderr)
		}
	}
	return serveRole(ctx, consumeHalf, args, getenv, stdout, stderr)
}

func (r role) check(cfg *config) error {
	if (!r.relays || !r.consumes) && (cfg.embedded() || cfg.RedisURL == "") {
		return usagef("a node can be split only in a cluster: set KAFKA_BROKERS and REDIS_CONN_STRING")
	}
	return nil
}

// buildRole builds what the role needs on top of the stores.
func (n *node) buildRole(ctx context.Context) error {
	if n.role.relays {
		if err := n.buildRelay(ctx); err != nil {
			return err
		}
	}
	if n.role.consumes {
		return n.buildConsumers()
	}
	return nil
}
