// Command chserver serves the HTTP interface of ClickHouse over libchdb, the ClickHouse engine as a shared library. It
// stands in for a ClickHouse server on machines without containers: clickhouse-go (Protocol: HTTP) and curl work with it.
//
// It promises what the tests of Ledgerline rely on: MergeTree tables on disk under -data that survive kill -9 once an
// INSERT was answered; settings, query parameters and the database per request; several requests at once; ClickHouse's
// exception codes; compressed bodies both ways. It does not check users, knows no sessions and no external tables, and
// speaks neither the native protocol nor TLS. It listens where it is told to, which must be a loopback address.
//
// It is a module of its own because purego, which loads the library, must not become a requirement of Ledgerline.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "chserver:", err)
		os.Exit(1)
	}
}

// Limits of the HTTP server.
const (
	headerTimeout = 10 * time.Second // a client on this machine sends its header at once
	drainTimeout  = 10 * time.Second // how long a stop waits for running queries
)

func run(ctx context.Context, args []string, log io.Writer) error {
	flags := flag.NewFlagSet("chserver", flag.ContinueOnError)
	lib := flags.String("lib", "", "path of libchdb.so")
	data := flags.String("data", "", "data folder")
	addr := flags.String("addr", "127.0.0.1:8123", "loopback address to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *lib == "" || *data == "" || flags.NArg() > 0 {
		return errors.New("usage: chserver -lib LIBCHDB_SO -data DIR [-addr HOST:PORT]")
	}
	listener, err := listenLoopback(ctx, *addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	engine, err := openEngine(*lib, *data)
	if err != nil {
		return err
	}
	defer engine.close()
	server, err := newServer(engine)
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "chserver: ClickHouse %s serves %s on http://%s\n", server.version, *data, listener.Addr())

	web := &http.Server{Handler: server, ReadHeaderTimeout: headerTimeout}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", *addr, err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	return web.Shutdown(drain)
}

// listenLoopback refuses addresses that other machines can reach: there is no check of users.
func listenLoopback(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		l.Close()
		return nil, fmt.Errorf("listen on %s: not a loopback address", addr)
	}
	return l, nil
}
