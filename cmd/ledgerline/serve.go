package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ledgerline/relay"
)

// Bounds of the HTTP server (L7).
const (
	// headerTimeout bounds how long a client may take to send its headers (slow loris).
	headerTimeout = 20 * time.Second
	// maxHeaderBytes bounds a request's headers.
	maxHeaderBytes = 64 << 10
	// keepAliveIdle closes connections on which nothing comes.
	keepAliveIdle = 3 * time.Minute
)

// serveCommand is the default: one node until it is told to stop.
func serveCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	return serveRole(ctx, wholeNode, args, getenv, stdout, stderr)
}

func serveRole(ctx context.Context, r role, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags(r.command, "", stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, r.usage)
		flags.PrintDefaults()
	}
	port := new(-1)
	flags.Func("port", "`number` of the port to listen on; it wins over PORT", func(s string) (err error) {
		*port, err = strconv.Atoi(s)
		if err != nil || *port < 0 || *port > 65535 {
			return errors.New("a whole number from 0 to 65535 is needed")
		}
		return nil
	})
	logDir := flags.String("log-dir", "", "`folder` for a log file beside standard error; it wins over LOG_DIR")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	if *port >= 0 {
		cfg.Port = *port
	}
	if *logDir != "" {
		cfg.LogDir = *logDir
	}
	if err := r.check(cfg); err != nil {
		return err
	}
	log, closeLog, err := openLogger(cfg, stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	warnNotHonoured(cfg, log)

	// The port first: a second start on it must not touch anything.
	ln, err := listen(ctx, cfg.Port)
	if err != nil {
		return err
	}
	n, err := newNode(ctx, cfg, r, log)
	if err != nil {
		_ = ln.Close()
		return err
	}
	defer n.close()
	return n.run(ctx, func(ctx context.Context) error { return n.serve(ctx, ln, stdout) })
}

// newFlags are the flags of a command, whose -h begins with what the command does.
func newFlags(name, about string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		takes := ""
		flags.VisitAll(func(*flag.Flag) { takes = " [flags]" })
		fmt.Fprintf(flags.Output(), "usage: ledgerline %s%s\n%s\n", name, takes, about)
		flags.PrintDefaults()
	}
	return flags
}

// parseFlags parses and turns mistakes into usage errors, which are printed once, by main. The flags are printed if they were asked for.
func parseFlags(flags *flag.FlagSet, args []string) error {
	usage, output := flags.Usage, flags.Output()
	flags.Usage = func() {}
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	flags.SetOutput(output)
	flags.Usage = usage
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage()
		return err //nolint:wrapcheck // it ends with exit code 0
	case err != nil:
		return usagef("%s: %v; see ledgerline %s -h", flags.Name(), err, flags.Name())
	}
	if flags.NArg() > 0 {
		return usagef("%s: unexpected argument %q", flags.Name(), flags.Arg(0))
	}
	return nil
}

func listen(ctx context.Context, port int) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(port)))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("PORT=%d is taken, perhaps by another node: set PORT to a free one: %w", port, err)
	case err != nil:
		return nil, fmt.Errorf("PORT=%d cannot be listened on: %w", port, err)
	}
	return ln, nil
}

// openLogger logs to standard error, and to a file if a folder is named.
func openLogger(cfg *config, stderr io.Writer) (*slog.Logger, func(), error) {
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	to, done := stderr, func() {}
	if cfg.LogDir != "" {
		if err := os.MkdirAll(cfg.LogDir, 0o750); err != nil {
			return nil, nil, fmt.Errorf("make log folder (LOG_DIR=%s): %w", cfg.LogDir, err)
		}
		name := filepath.Join(cfg.LogDir, "ledgerline-"+time.Now().Format("20060102150405")+".log")
		file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("open log file (LOG_DIR=%s): %w", cfg.LogDir, err)
		}
		to, done = io.MultiWriter(stderr, file), func() { _ = file.Close() }
	}
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: level})), done, nil
}

// serve answers HTTP until ctx ends, then lets running requests finish within SHUTDOWN_TIMEOUT_SECONDS.
func (n *node) serve(ctx context.Context, ln net.Listener, stdout io.Writer) error {
	server := newServer(ln, &http.Server{
		Handler: n.handler(), ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeaderBytes, IdleTimeout: keepAliveIdle,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}, n.files)
	if stdout != nil {
		if n.rootPassword != "" {
			fmt.Fprintf(stdout, "First start: log in as root, password %s (it is not shown again)\n", n.rootPassword)
		}
		fmt.Fprintf(stdout, "Ledgerline %s serves http://127.0.0.1:%d (%s)\n", version, ln.Addr().(*net.TCPAddr).Port, n.mode())
	}
	if err := server.run(ctx); err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	n.log.Info("stopping: running requests finish first; a second signal ends the process at once", "at_most", time.Duration(n.cfg.ShutdownTimeout)*time.Second)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(n.cfg.ShutdownTimeout)*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		n.log.Warn("some requests did not finish in time; they are billed for what was streamed", "error", err)
		_ = server.Close()
	}
	return nil
}

// mode says what the node is made of, for the line at start.
func (n *node) mode() string {
	events, hot := "Kafka", "Redis"
	if n.cfg.embedded() {
		events = "embedded event log"
	}
	if n.cfg.RedisURL == "" {
		hot = "in-process counters"
	}
	db := "SQLite"
	if n.db.IsMySQL() {
		db = "MySQL"
	}
	return events + ", " + db + ", " + hot
}

func (n *node) handler() http.Handler {
	redirect := n.cfg.FrontendURL
	if n.cfg.master() {
		redirect = "" // as in New API, it is for slaves
	}
	return relay.NewHandler(relay.HandlerConfig{
		Parts: n.parts(), Problems: n.problems, RedirectTo: redirect, Logger: n.log,
		Metrics: promhttp.HandlerFor(n.reg, promhttp.HandlerOpts{}),
	})
}

// problems names what keeps the node from serving: the catalog is not loaded, the journal cannot be written, an epoch is not
// open, or a partition of a consumer is stopped.
func (n *node) problems() []string {
	var out []string
	if n.role.relays {
		out = append(out, n.relayProblems()...)
	}
	if n.role.consumes {
		out = append(out, stopped("quota", n.quotas.Status())...)
		out = append(out, stopped("usagelog", n.usages.Status())...)
	}
	return out
}

func (n *node) relayProblems() []string {
	var out []string
	if err := n.catalog.Ready(); err != nil {
		out = append(out, err.Error())
	}
	if err := n.desk.Failed(); err != nil {
		out = append(out, err.Error())
	}
	if unlogged := n.desk.Unlogged(); unlogged > 0 {
		out = append(out, fmt.Sprintf("the event log does not acknowledge in %d of %d partitions (JOURNAL=kafka)", unlogged, n.stores.log.Partitions))
	}
	if open, all := n.desk.Open(); open < all {
		out = append(out, fmt.Sprintf("%d of %d partitions have no open counter epoch", all-open, all))
	}
	return out
}
