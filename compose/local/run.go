//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"ledgerline/ledger/ledgertest/engines"
)

// testEnv names the variable that carries each engine's address to a test run.
var testEnv = map[engines.Kind]string{
	engines.Kafka:      "TEST_KAFKA_BROKERS",
	engines.MySQL:      "TEST_MYSQL_DSN",
	engines.Redis:      "TEST_REDIS_URL",
	engines.ClickHouse: "TEST_CLICKHOUSE_DSN",
}

// commandGrace is how long a command that was told to end may take for it.
const commandGrace = 30 * time.Second

// runCommand runs a command on fresh engines, which are stopped whatever becomes of the command. Its error is the command's.
// With mysql, MySQL itself takes MariaDB's place.
func runCommand(ctx context.Context, cache *engines.Cache, args []string, mysql bool, getenv func(string) string, log io.Writer) error {
	options := make(map[engines.Kind]engines.Options)
	for kind, name := range testEnv {
		if kind == engines.MySQL && mysql {
			kind = engines.MySQLServer
		}
		if addr := getenv(name); addr != "" {
			fmt.Fprintf(log, "local: %s is given by %s\n", kind, name)
			continue
		}
		options[kind] = engines.Options{Cache: cache}
	}
	began := time.Now()
	servers, err := engines.StartAll(ctx, options)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = os.Environ()
	for kind, s := range servers {
		cmd.Env = append(cmd.Env, address(kind, s))
		fmt.Fprintf(log, "local: %s on %s\n", kind, s.Addr)
	}
	fmt.Fprintf(log, "local: engines ready in %.1f s\n", time.Since(began).Seconds())
	err = cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() && e.ExitCode() != 0 {
		err = exitCode(e.ExitCode())
	}
	return errors.Join(err, engines.CloseAll(servers))
}

// exitCode is the exit code, not 0, of the command that was run: the command has said itself what is wrong.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(c)) }

// address is the variable of testEnv with its value.
func address(kind engines.Kind, s *engines.Server) string {
	switch kind {
	case engines.Kafka:
		return testEnv[kind] + "=" + s.Addr
	case engines.MySQL, engines.MySQLServer:
		return testEnv[engines.MySQL] + "=" + s.MySQLDSN("")
	case engines.Redis:
		return testEnv[kind] + "=" + s.RedisURL()
	case engines.ClickHouse:
		return testEnv[kind] + "=" + s.ClickHouseDSN("default")
	}
	panic("no engine " + string(kind))
}
