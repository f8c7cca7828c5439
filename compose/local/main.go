//go:build unix

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"ledgerline/ledger/ledgertest/engines"
)

func main() {
	// Ctrl-C ends an installation or a start; a command that `run` runs gets it, too, from the terminal.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		os.Exit(int(code))
	}
	fmt.Fprintln(os.Stderr, "local:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("usage: local install | up [-topology single|sentinel|cluster] [-nodes BINARY] [-dir DIR] | status [-dir DIR] | down [-dir DIR] [-wipe] | run [-mysql] -- COMMAND [ARGUMENT …]")

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", stateDir(getenv), "state folder: data, logs and the record of what runs")
	wipe := flags.Bool("wipe", false, "down: remove the data, too")
	topology := flags.String("topology", single, "up: single, sentinel or cluster")
	nodes := flags.String("nodes", "", "up: start a master and two slaves of this `binary`, and nginx in front")
	mysql := flags.Bool("mysql", false, "run: MySQL itself in place of MariaDB")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if verb != "run" && flags.NArg() > 0 {
		return errUsage
	}
	cache, err := engines.Open(stderr)
	if err != nil {
		return err
	}
	switch verb {
	case "install":
		return cache.Install(ctx)
	case "up":
		return up(ctx, cache, upOptions{dir: *dir, topology: *topology, binary: *nodes}, stdout)
	case "status":
		return status(*dir, stdout)
	case "down":
		return down(*dir, *wipe, stdout)
	case "run":
		if flags.NArg() == 0 {
			return errUsage
		}
		return runCommand(ctx, cache, flags.Args(), *mysql, getenv, stderr)
	}
	return errUsage
}

// stateDir is where the XDG rules want what a program keeps between its runs.
func stateDir(getenv func(string) string) string {
	base := getenv("XDG_STATE_HOME")
	if base == "" {
		base = filepath.Join(getenv("HOME"), ".local", "state")
	}
	return filepath.Join(base, "ledgerline", "local")
}
