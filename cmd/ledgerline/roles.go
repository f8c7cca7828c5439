package main

import (
	"context"
	"fmt"
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

// adoptLogCommand tells one projection to go on with the log as it is now: after a topic was recreated or truncated, which stops the
// partition (DESIGN 4, position). What the old log held and the projection has stays in it.
func adoptLogCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("consume -adopt-log", "Lets a partition of a projection that stopped go on with the log as it is now, after its topic was made anew or truncated.", stderr)
	flags.Bool("adopt-log", true, "go on with the log as it is now")
	projection := flags.String("projection", "", "quota or usagelog")
	partition := flags.Int("partition", -1, "the stopped partition")
	offset := flags.Int64("offset", -1, "where to go on; -1: at the beginning of what the log has")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if *projection != "quota" && *projection != "usagelog" {
		return usagef("consume -adopt-log: -projection %q: quota or usagelog is needed", *projection)
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	s, _, log, err := openForAudit(ctx, cfg, stderr)
	if err != nil {
		return err
	}
	defer s.close(log)
	if *partition < 0 || *partition >= s.log.Partitions {
		return usagef("consume -adopt-log: -partition %d: a number from 0 to %d is needed", *partition, s.log.Partitions-1)
	}
	first, end, err := s.events.Bounds(ctx, *partition)
	if err != nil {
		return fmt.Errorf("read the bounds of the log: %w", err)
	}
	if *offset < 0 {
		*offset = first
	}
	if *offset < first || *offset > end {
		return usagef("consume -adopt-log: -offset %d: the log of partition %d reaches from %d to %d", *offset, *partition, first, end)
	}
	if *projection == "quota" {
		err = s.db.AdoptLog(ctx, *partition, *offset)
	} else {
		err = s.usage.AdoptLog(ctx, *partition, *offset)
	}
	if err != nil {
		return fmt.Errorf("adopt the log: %w", err)
	}
	fmt.Fprintf(stdout, "%s goes on at offset %d of partition %d; what it has of the records from there on is not counted again.\n", *projection, *offset, *partition)
	return nil
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
