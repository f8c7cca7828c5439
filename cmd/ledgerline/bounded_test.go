package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ledgerline/relay/desk"
)

// What may be open is shared out completely, and never more than that where there is enough to share.
func TestShareFiles(t *testing.T) {
	for limit, want := range map[uint64]fileShares{
		20_000:    {clients: 10_938, refused: 416, pool: 416, requests: 6562},
		1024:      {clients: 390, refused: 66, pool: 66, requests: 234},
		100:       {clients: 40, refused: 66, pool: 66, requests: 24},
		1_048_576: {clients: 917_504 - desk.MaxOpen, refused: 21_845, pool: 21_845, requests: desk.MaxOpen},
		1 << 63:   {clients: 1<<30 - 1<<27 - desk.MaxOpen, refused: 22_369_621, pool: 22_369_621, requests: desk.MaxOpen},
	} {
		if got := shareFiles(limit); got != want {
			t.Errorf("%d files: %+v, want %+v", limit, got, want)
		}
	}
}

// Who comes when all connections are taken is told so and sent away, and is served when one has gone.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	port, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	const most = 2
	server := newServer(port, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Minute}, fileShares{clients: most, refused: 100})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.run(ctx) }()
	ask := func(conn net.Conn) *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", port.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	kept := [most]net.Conn{dial(), dial()}
	for _, conn := range kept {
		if resp := ask(conn); resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	late := dial()
	resp := ask(late)
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" || !strings.Contains(string(body), `"code":"node_full"`) {
		t.Errorf("%d %v %s, %v", resp.StatusCode, resp.Header, body, err)
	}
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection goes on: %v", err)
	}
	for _, conn := range kept { // those that were there are served on
		if resp := ask(conn); resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	_ = kept[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; { // the server has to notice
		if resp := ask(dial()); resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a connection that has gone is not given to another one")
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
