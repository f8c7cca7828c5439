package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// importMode is one thing that `ledgerline import` does. flags adds the flags that only it has and returns what runs.
type importMode struct {
	name, help string
	flags      func(*flag.FlagSet) importJob
}

// importModes are named by a flag each; one of them must be.
func importModes() []importMode {
	return []importMode{
		{"plan", "say what a first start on the database would do, and what to know before; nothing is touched", planMode},
		{"check-bills", "rate the bills in New API's logs again with the database's own options and compare; nothing is touched", billsMode},
		{"logs", "copy the rows of New API's table logs into the usage log; it may be repeated", logsMode},
	}
}

// importJob does the work once the command line and the environment are read.
type importJob func(ctx context.Context, c *importCall) error

// importCall is what every mode is given.
type importCall struct {
	cfg            *config
	from           string // -from: where New API's logs are, "" for where the settings say
	asJSON         bool
	log            *slog.Logger
	stdout, stderr io.Writer
}

// importCommand is `ledgerline import`.
func importCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("import", "For databases of New API's: what a switch would do, the bills in their logs rated again, or the logs copied. One of -plan, -check-bills, -logs.", stderr)
	call := &importCall{stdout: stdout, stderr: stderr}
	flags.BoolVar(&call.asJSON, "json", false, "print JSON")
	flags.StringVar(&call.from, "from", "", "`DSN` of the database with New API's table logs, as LOG_SQL_DSN would name it; a SQLite file as file:PATH (default: SQL_DSN or SQLITE_PATH)")
	var names []string
	chosen, jobs, of := map[string]*bool{}, map[string]importJob{}, map[string]string{}
	for _, m := range importModes() {
		names = append(names, "-"+m.name)
		chosen[m.name] = flags.Bool(m.name, false, m.help)
		known := map[string]bool{}
		flags.VisitAll(func(f *flag.Flag) { known[f.Name] = true })
		jobs[m.name] = m.flags(flags)
		flags.VisitAll(func(f *flag.Flag) {
			if !known[f.Name] {
				of[f.Name] = m.name
			}
		})
	}
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	var run importJob
	n := 0
	for name, on := range chosen {
		if *on {
			run, n = jobs[name], n+1
		}
	}
	if n != 1 {
		return usagef("import wants one of %s; see ledgerline import -h", strings.Join(names, ", "))
	}
	var stray error
	flags.Visit(func(f *flag.Flag) {
		if mode := of[f.Name]; mode != "" && !*chosen[mode] {
			stray = usagef("import: -%s goes with -%s only", f.Name, mode)
		}
	})
	if stray != nil {
		return stray
	}
	if call.from != "" && !strings.HasPrefix(call.from, "file:") {
		if err := usagelog.CheckDSN(call.from); err != nil {
			return usagef("import -from: %s", strings.TrimPrefix(err.Error(), "LOG_SQL_DSN: ")+"; a SQLite file is file:PATH")
		}
	}
	var err error
	if call.cfg, err = loadConfig(getenv); err != nil {
		return err
	}
	call.cfg.looksOn = true
	if err := call.cfg.hasDatabase(); err != nil {
		return err
	}
	call.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return run(ctx, call)
}

// openReadOnly opens the database so that nothing can be written. The schema need not be ours.
func (c *importCall) openReadOnly(ctx context.Context) (*sqlstore.Store, error) {
	db, err := sqlstore.Open(ctx, sqlstore.Config{
		DSN: c.cfg.SQLDSN, SQLitePath: c.cfg.SQLitePath, MaxIdle: c.cfg.SQLMaxIdle, MaxOpen: c.cfg.SQLMaxOpen,
		MaxLifetime: time.Duration(c.cfg.SQLMaxLifetime) * time.Second, Logger: c.log, ReadOnly: true,
	})
	if err != nil {
		return nil, fmt.Errorf("SQL_DSN: %w", err)
	}
	return db, nil
}

// openLogs opens New API's table logs: where -from says; else where LOG_SQL_DSN says, if New API's table is there; else in
// the main database. ErrNoLogs if there is none.
func (c *importCall) openLogs(ctx context.Context) (*usagelog.Logs, error) {
	if c.from == "" && c.cfg.LogSQLDSN != "" {
		logs, err := c.openLogsAt(ctx, c.cfg.LogSQLDSN)
		if err == nil || !errors.Is(err, usagelog.ErrNoLogs) {
			return logs, err
		}
	}
	return c.openOtherLogs(ctx)
}

// openOtherLogs opens New API's table logs where -from says, else in the main database.
func (c *importCall) openOtherLogs(ctx context.Context) (*usagelog.Logs, error) {
	if c.from != "" {
		return c.openLogsAt(ctx, c.from)
	}
	return c.openLogsAt(ctx, c.cfg.SQLDSN)
}

func (c *importCall) openLogsAt(ctx context.Context, dsn string) (*usagelog.Logs, error) {
	cfg := usagelog.Config{
		DSN: dsn, SQLitePath: c.cfg.SQLitePath, MaxIdle: c.cfg.SQLMaxIdle, MaxOpen: c.cfg.SQLMaxOpen,
		MaxLifetime: time.Duration(c.cfg.SQLMaxLifetime) * time.Second, Logger: c.log,
	}
	if strings.HasPrefix(dsn, "file:") {
		cfg.DSN, cfg.SQLitePath = "", dsn
	}
	return usagelog.OpenLogs(ctx, cfg) //nolint:wrapcheck // it says what it did
}
