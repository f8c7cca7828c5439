package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"slices"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/journal"
)

const journalUsage = `usage: ledgerline journal list
       ledgerline journal reship -partition P -producer ID [-after SEQ] [-through SEQ]
list shows the journals in JOURNAL_DIR. reship sends events of one of them to the log again: the quota consumer names
partition, producer and sequences in the log line that says what is missing there.`

// journalCommand is for operators: what is in the journals, and refilling a hole in the log.
func journalCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprintln(stderr, journalUsage)
		return usagef("journal: list or reship is needed")
	}
	switch verb, rest := args[0], args[1:]; verb {
	case "-h", "-help", "--help", "help":
		fmt.Fprintln(stderr, journalUsage)
		return flag.ErrHelp
	case "list":
		return journalList(rest, getenv, stdout, stderr)
	case "reship":
		return journalReship(ctx, rest, getenv, stdout, stderr)
	default:
		fmt.Fprintln(stderr, journalUsage)
		return usagef("journal: %q is not known; list or reship is needed", verb)
	}
}

func journalList(args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("journal list", "The journals in JOURNAL_DIR and how far each is.", stderr)
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	jc := journal.Config{Root: cfg.JournalDir, Partitions: cfg.KafkaPartitions}
	all, err := journal.Incarnations(jc)
	if err != nil {
		return fmt.Errorf("list journals: %w", err)
	}
	unowned, err := journal.Adoptable(jc)
	if err != nil {
		return fmt.Errorf("list journals: %w", err)
	}
	for _, id := range all {
		state := "in use"
		if retired, err := journal.Retired(jc, id); errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		} else if err != nil {
			return fmt.Errorf("list journals: %w", err)
		} else if retired {
			state = "shipped, kept for JOURNAL_KEEP"
		} else if slices.Contains(unowned, id) {
			state = "waits to be adopted by the next start"
		}
		fmt.Fprintf(stdout, "%s  %s\n", id, state)
	}
	if len(all) == 0 {
		fmt.Fprintf(stderr, "There are no journals in %s (JOURNAL_DIR).\n", cfg.JournalDir)
	}
	return nil
}

// journalReship sends events of a kept journal to the log again: consumers take those that are missing there and skip the rest.
func journalReship(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("journal reship", "Sends events of a kept journal to the log again; what is there already changes nothing.", stderr)
	partition := flags.Int("partition", -1, "partition of the hole")
	producer := flags.String("producer", "", "incarnation whose events are missing")
	after := flags.Uint64("after", 0, "events with a higher sequence")
	through := flags.Uint64("through", math.MaxUint64, "up to this sequence")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	id, err := ledger.ParseID(*producer)
	if err != nil {
		return usagef("journal reship: -producer %q: %v; journal list shows them", *producer, err)
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	if cfg.embedded() {
		return usagef("journal reship: KAFKA_BROKERS is not set; the embedded event log has no replicas that could lose a part")
	}
	if *partition < 0 || *partition >= cfg.KafkaPartitions {
		return usagef("journal reship: -partition %d: a number from 0 to %d is needed", *partition, cfg.KafkaPartitions-1)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	client, err := eventlog.NewClient(eventlog.Config{Brokers: cfg.KafkaBrokers, Topic: cfg.KafkaTopic})
	if err != nil {
		return err
	}
	defer client.Close()
	source := &reshipSource{ctx: ctx, parcels: make(chan ledger.Parcel, 1024)}
	go source.fill(journal.Config{Root: cfg.JournalDir, Partitions: cfg.KafkaPartitions}, id, *partition, ledger.Hole{After: *after, Through: *through})
	if err := eventlog.NewShipper(client, eventlog.ShipperConfig{Logger: log}).Ship(ctx, source); err != nil {
		return fmt.Errorf("reship: %w", errors.Join(err, source.err))
	}
	fmt.Fprintf(stdout, "%d events were sent again.\n", source.sent)
	return source.err
}

// reshipSource feeds the shipper from a kept journal.
type reshipSource struct {
	ctx     context.Context //nolint:containedctx // one command, one source
	parcels chan ledger.Parcel
	sent    int
	err     error
}

func (s *reshipSource) fill(cfg journal.Config, id ledger.ID, partition int, hole ledger.Hole) {
	defer close(s.parcels)
	for p, err := range journal.Reship(cfg, id, partition, hole) {
		if err != nil {
			s.err = err
			return
		}
		select {
		case s.parcels <- p:
			s.sent++
		case <-s.ctx.Done():
			return
		}
	}
}

// Next implements eventlog.Source.
func (s *reshipSource) Next(ctx context.Context, limit int) ([]ledger.Parcel, error) {
	var out []ledger.Parcel
	select {
	case p, ok := <-s.parcels:
		if !ok {
			return nil, io.EOF
		}
		out = append(out, p)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for len(out) < limit {
		select {
		case p, ok := <-s.parcels:
			if !ok {
				return out, nil
			}
			out = append(out, p)
		default:
			return out, nil
		}
	}
	return out, nil
}

// Acked implements eventlog.Source.
func (s *reshipSource) Acked(int, uint64) {}
