package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"ledgerline/consumers"
)

// adoptLogCommand tells one projection to go on with the log as it is now: after a topic was recreated or truncated, which stops the
// partition (DESIGN 4, position). What the old log held and the projection has stays in it. A partition whose position lies in this log is
// refused: going back there only costs it its snapshots and epochs, and what it has of producers that nobody remembers any more would count
// twice (L2).
func adoptLogCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("consume -adopt-log", "Lets a partition of a projection that stopped go on with the log as it is now, after its topic was made anew or truncated.", stderr)
	flags.Bool("adopt-log", true, "go on with the log as it is now")
	projection := flags.String("projection", "", "quota or usagelog")
	partition := flags.Int("partition", -1, "the stopped partition")
	offset := flags.Int64("offset", -1, "where to go on; -1: at the beginning of what the log has")
	yes := flags.Bool("yes", false, "also if the partition is not stopped by another log: what it has may then count twice")
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
	if !*yes {
		if err := s.mayAdopt(ctx, *projection, *partition); err != nil {
			return err
		}
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

// mayAdopt refuses a partition that is not stopped by another log, and says which ones are.
func (s *stores) mayAdopt(ctx context.Context, projection string, partition int) error {
	var stopped []string
	for p := range s.log.Partitions {
		at, err := s.positionOf(ctx, projection, p)
		if err != nil {
			return err
		}
		why, err := consumers.Foreign(ctx, s.events, p, at)
		switch {
		case err != nil:
			return fmt.Errorf("compare partition %d of %s with the log: %w", p, projection, err)
		case why != nil && p == partition:
			return nil
		case why != nil:
			stopped = append(stopped, fmt.Sprint(p))
		}
	}
	if stopped == nil {
		stopped = []string{"none"}
	}
	return usagef("consume -adopt-log: -partition %d: %s comes from this very log there and need not adopt it; partitions of %s that are stopped by another log: %s (-yes adopts it all the same)",
		partition, projection, projection, strings.Join(stopped, ", "))
}

// positionOf returns how far a projection has come.
func (s *stores) positionOf(ctx context.Context, projection string, partition int) (consumers.Position, error) {
	if projection == "quota" {
		at, err := s.db.Partition(ctx, partition)
		if err != nil {
			return consumers.Position{}, fmt.Errorf("read quota position: %w", err)
		}
		return consumers.Position{Offset: at.Offset, LastEvent: at.LastEvent, LastOffset: at.LastOffset}, nil
	}
	at, err := s.usage.Position(ctx, partition)
	if err != nil {
		return consumers.Position{}, fmt.Errorf("read usage-log position: %w", err)
	}
	return consumers.Position{Offset: at.Offset, LastEvent: at.LastEvent, LastOffset: at.LastOffset}, nil
}
