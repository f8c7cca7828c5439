// Command ledgerline is a relay for LLM APIs that bills every token exactly once. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal stops in order. Then signals mean what they mean elsewhere: a second Ctrl-C ends the process at once, and the
	// next start closes its journal.
	context.AfterFunc(ctx, stop)
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr), os.Stderr))
}

// usageError is a mistake in the command line or the environment: exit code 2.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// errReported is returned by a command that has said all there is to say; only the exit code 1 is left.
var errReported = errors.New("reported")

func exitCode(err error, stderr io.Writer) int {
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReported):
		return 1
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "ledgerline:", oneLine(err))
		return 2
	default:
		fmt.Fprintln(stderr, "ledgerline:", oneLine(err))
		return 1
	}
}

// oneLine puts errors that were joined into one line: logs and people read lines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// command is one subcommand.
type command struct {
	name, help string
	run        func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"serve", "a node: relay, consumers and management API (the default)", serveCommand},
		{"relay", "the relay and the management API only; consumers run elsewhere", relayCommand},
		{"consume", "the consumers only; consume -adopt-log lets a stopped one go on with a new log", consumeCommand},
		{"demo", "the whole pipeline on this machine: mock upstream, real traffic, verify", demoCommand},
		{"verify", "prove that log, balances, usage log and hot counters agree", verifyCommand},
		{"replay", "rebuild balances and hot counters, or the usage log, from the log", replayCommand},
		{"import", "a database of New API's: look at it before the switch (-plan), rate its bills again (-check-bills), copy its logs (-logs)", importCommand},
		{"secrets", "secrets migrate seals keys in the database; the way back to New API ends there", secretsCommand},
		{"migrate", "bring the database schemas up to date and leave", migrateCommand},
		{"rate", "explain one bill line by line, or rate recorded requests with given prices and compare the bills", rateCommand},
		{"journal", "list the journals, or refill a hole in the log from one", journalCommand},
		{"bench", "measure the relay beside a bare reverse proxy; bench upstream is a mock upstream", benchCommand},
		{"version", "print the version", versionCommand},
	}
}

func versionCommand(_ context.Context, args []string, _ func(string) string, stdout, stderr io.Writer) error {
	if err := parseFlags(newFlags("version", "Prints the version.", stderr), args); err != nil {
		return err
	}
	fmt.Fprintln(stdout, version)
	return nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	name := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		name, args = args[0], args[1:]
	} else if len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		name = "help"
	} else if len(args) > 0 && (args[0] == "-version" || args[0] == "--version") {
		name, args = "version", args[1:]
	}
	for _, c := range commands() {
		if c.name == name {
			return c.run(ctx, args, getenv, stdout, stderr)
		}
	}
	to := stderr
	if name == "help" {
		to = stdout
	}
	fmt.Fprintln(to, "usage: ledgerline [command] [flags]")
	fmt.Fprintln(to)
	for _, c := range commands() {
		fmt.Fprintf(to, "  %-8s  %s\n", c.name, c.help)
	}
	fmt.Fprintln(to, "\nledgerline COMMAND -h lists its flags. Everything else is set by environment variables, which the README lists.")
	if name == "help" {
		return nil
	}
	return usagef("unknown command %q; the commands are listed above", name)
}
