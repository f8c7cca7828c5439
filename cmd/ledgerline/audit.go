package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"ledgerline/consumers/audit"
)

// auditStores is what verify and replay look at.
func (s *stores) auditStores() audit.Stores {
	return audit.Stores{DB: s.db, Log: s.events, Usage: s.usage, Counters: s.counters}
}

// verify compares everything that this node can reach.
func (n *node) verify(ctx context.Context, patience time.Duration) (*audit.Verdict, error) {
	return audit.Verify(ctx, n.auditStores(), patience)
}

// openForAudit opens the stores of a command that looks at a cluster from outside. A node whose counters or log live in its own process
// cannot be looked at while it runs; when it is stopped, there are no counters to compare.
func openForAudit(ctx context.Context, getenv func(string) string, stderr io.Writer, debug bool) (*stores, audit.Stores, *slog.Logger, error) {
	cfg, err := loadConfig(getenv)
	if err != nil {
		return nil, audit.Stores{}, nil, err
	}
	level := slog.LevelWarn
	if debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	cfg.NodeType = "slave" // it migrates nothing
	s, err := openStores(ctx, cfg, log)
	if err != nil {
		return nil, audit.Stores{}, nil, err
	}
	a := s.auditStores()
	if cfg.RedisURL == "" {
		a.Counters = nil
	}
	return &s, a, log, nil
}

// verifyCommand proves that the log, the balances, the usage log and the hot counters agree; exit code 1 if not.
func verifyCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	flags.SetOutput(stderr)
	asJSON := flags.Bool("json", false, "print JSON")
	patience := flags.Duration("wait", 30*time.Second, "how long to wait for stores that lag")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	s, a, log, err := openForAudit(ctx, getenv, stderr, false)
	if err != nil {
		return err
	}
	defer s.close(log)
	v, err := audit.Verify(ctx, a, *patience)
	if err != nil {
		return err
	}
	if *asJSON {
		if err := printJSON(stdout, struct {
			OK bool `json:"ok"`
			*audit.Verdict
		}{v.OK(), v}); err != nil {
			return err
		}
	} else {
		v.Print(stdout)
	}
	if !v.OK() {
		return errReported
	}
	return nil
}

// replayCommand rebuilds balances and hot counters from the log or the usage log.
func replayCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	flags.SetOutput(stderr)
	source := flags.String("source", string(audit.FromLog), "where to fold from: kafka or usagelog")
	target := flags.String("target", string(audit.ToBalances), "what to rebuild: balances (with the hot counters) or usagelog")
	dry := flags.Bool("dry-run", false, "report differences, change nothing")
	asJSON := flags.Bool("json", false, "print the report as JSON")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	o := audit.ReplayOptions{Source: audit.Source(*source), Target: audit.Target(*target), DryRun: *dry}
	if err := o.Check(); err != nil {
		return usagef("replay: %v", err)
	}
	s, a, log, err := openForAudit(ctx, getenv, stderr, false)
	if err != nil {
		return err
	}
	defer s.close(log)
	o.Progress = func(events, total int64, since time.Duration) {
		perSecond := float64(events) / since.Seconds()
		left := time.Duration(float64(max(0, total-events)) / perSecond * float64(time.Second))
		fmt.Fprintf(stderr, "replay: %d of %d events, %.0f events/s, about %s left\n", events, total, perSecond, left.Round(time.Second))
	}
	report, err := audit.Replay(ctx, a, o)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, report)
	}
	report.Print(stdout, *dry)
	if *dry && len(report.Differences) > 0 {
		return errReported
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// migrateCommand brings the schemas up to date.
func migrateCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("migrate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	cfg.NodeType = "master"
	log := slog.New(slog.NewTextHandler(stderr, nil))
	var s stores
	defer func() { s.close(log) }()
	if err := openDatabase(ctx, cfg, &s, log); err != nil {
		return err
	}
	if s.usage, err = openUsage(ctx, cfg, log); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "The schemas are up to date.")
	return nil
}
