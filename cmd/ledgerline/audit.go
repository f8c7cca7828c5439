package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"

	"ledgerline/consumers/audit"
)

// auditStores is what verify and replay look at.
func (s *stores) auditStores() audit.Stores {
	return audit.Stores{DB: s.db, Log: s.events, Usage: s.usage, Counters: s.counters, UsageKept: s.usageKept}
}

// verify compares everything that this node can reach.
func (n *node) verify(ctx context.Context, patience time.Duration) (*audit.Verdict, error) {
	return audit.Verify(ctx, n.auditStores(), patience)
}

// auditJob is a command on the stores, its arguments read.
type auditJob func(ctx context.Context, a audit.Stores, stdout, stderr io.Writer) error

// auditCommands are the commands that look at all stores. They run on stores of their own, or in the node that must be asked.
var auditCommands = map[string]func(args []string, stderr io.Writer) (auditJob, error){
	"verify": parseVerify,
	"replay": parseReplay,
}

func verifyCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return auditCommand(ctx, controlCall{"verify", args}, getenv, stdout, stderr)
}

func replayCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return auditCommand(ctx, controlCall{"replay", args}, getenv, stdout, stderr)
}

func auditCommand(ctx context.Context, call controlCall, getenv func(string) string, stdout, stderr io.Writer) error {
	job, err := auditCommands[call.Command](call.Args, stderr)
	if err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	if asked, err := askNode(ctx, cfg, call, stdout, stderr); asked || err != nil {
		return err
	}
	s, a, log, err := openForAudit(ctx, cfg, stderr)
	if err != nil {
		return err
	}
	defer s.close(log)
	return job(ctx, a, stdout, stderr)
}

// openForAudit opens the stores of a command that looks at them from outside. Counters that live in a node are not there
// when it is stopped; they begin anew with its next start.
func openForAudit(ctx context.Context, cfg *config, stderr io.Writer) (*stores, audit.Stores, *slog.Logger, error) {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg.NodeType, cfg.looksOn = "slave", true // it migrates nothing
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

// parseVerify reads the arguments of verify, which proves that the log, the balances, the usage log and the hot counters agree;
// exit code 1 if not.
func parseVerify(args []string, stderr io.Writer) (auditJob, error) {
	flags := newFlags("verify", "Proves that log, balances, usage log and hot counters agree, also under traffic. Exit code 1 if they differ.", stderr)
	asJSON := flags.Bool("json", false, "print JSON")
	patience := flags.Duration("wait", 30*time.Second, "how long to wait for stores that lag")
	if err := parseFlags(flags, args); err != nil {
		return nil, err
	}
	if *patience < 0 {
		return nil, usagef("verify: -wait %s: a duration from 0 is needed, such as 30s", *patience)
	}
	return func(ctx context.Context, a audit.Stores, stdout, _ io.Writer) error {
		v, err := audit.Verify(ctx, a, *patience)
		if err != nil {
			return err
		}
		if !*asJSON {
			v.Print(stdout)
		} else if err := printJSON(stdout, struct {
			OK bool `json:"ok"`
			*audit.Verdict
		}{v.OK(), v}); err != nil {
			return err
		}
		if !v.OK() {
			return errReported
		}
		return nil
	}, nil
}

// parseReplay reads the arguments of replay, which rebuilds balances and hot counters from the log or the usage log.
func parseReplay(args []string, stderr io.Writer) (auditJob, error) {
	flags := newFlags("replay", "Rebuilds balances and hot counters, or the usage log, from the log; traffic goes on.", stderr)
	source := flags.String("source", string(audit.FromLog), "where to fold from: kafka or usagelog")
	target := flags.String("target", string(audit.ToBalances), "what to rebuild: balances (with the hot counters) or usagelog")
	dry := flags.Bool("dry-run", false, "report differences, change nothing; exit code 1 if there are any")
	asJSON := flags.Bool("json", false, "print the report as JSON")
	if err := parseFlags(flags, args); err != nil {
		return nil, err
	}
	o := audit.ReplayOptions{Source: audit.Source(*source), Target: audit.Target(*target), DryRun: *dry}
	if err := o.Check(); err != nil {
		return nil, usagef("replay: %v", err)
	}
	return func(ctx context.Context, a audit.Stores, stdout, stderr io.Writer) error {
		o.Progress = func(events, total int64, since time.Duration) {
			perSecond := float64(events) / since.Seconds()
			left := time.Duration(float64(max(0, total-events)) / perSecond * float64(time.Second))
			fmt.Fprintf(stderr, "replay: %d of %d events, %.0f events/s, about %s left\n", events, total, perSecond, left.Round(time.Second))
		}
		report, err := audit.Replay(ctx, a, o)
		if err != nil {
			return err
		}
		if !*asJSON {
			report.Print(stdout, *dry)
		} else if err := printJSON(stdout, report); err != nil {
			return err
		}
		if *dry && len(report.Differences) > 0 {
			return errReported
		}
		return nil
	}, nil
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
	flags := newFlags("migrate", "Brings the schemas of SQL_DSN and LOG_SQL_DSN up to date and leaves; a master does it at its start, too.", stderr)
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
