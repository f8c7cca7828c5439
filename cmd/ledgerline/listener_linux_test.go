package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// Connections that wait when the listener is closed are handed over; later ones are refused.
func TestDrainedListenerHandsOverWhatWaits(t *testing.T) {
	t.Parallel()
	plain, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	ln := drained(plain)
	const waiting = 20
	for range waiting {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range waiting {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		_ = conn.Close()
	}
	if conn, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last one: %v, %v", conn, err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port is not closed: %v", err)
	}
}

// A server that stops answers the request of every connection that its port has taken, also one that comes a moment later.
func TestStopAnswersWhoIsConnected(t *testing.T) {
	t.Parallel()
	port, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(port, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Minute}, fileShares{clients: 100})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		err := server.run(ctx)
		served <- errors.Join(err, server.Shutdown(context.WithoutCancel(ctx)))
	}()
	conn, err := net.Dial("tcp", port.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop()
	for { // until the port is closed
		other, err := net.Dial("tcp", port.Addr().String())
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err == nil {
			_ = other.Close()
		}
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the answer: %v", err)
	}
	_ = resp.Body.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
