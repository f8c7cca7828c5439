//go:build !race

// The race detector needs more stack.

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
)

// A stream that waits for its upstream has 8 KB of stack, and 2 KB for net/http's watch over the client: some hundred bytes deeper on
// the way to it, and the runtime doubles the 8.
func TestStackOfAStream(t *testing.T) {
	const streams, most = 300, 15 << 10
	up, err := listen(t.Context(), 0)
	check(t, err)
	defer up.Close()
	node, key := serveFrom(t, "http://"+loopback(up))
	openStream(t, node, up, key)
	runtime.GC()
	before := stacksInUse()
	for range streams {
		openStream(t, node, up, key)
	}
	if each := (stacksInUse() - before) / streams; each > most {
		t.Errorf("an open stream has %d bytes of stack, want at most %d", each, most)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stacksInUse() uint64 {
	now := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(now)
	return now[0].Value.Uint64()
}

// serveFrom serves, embedded, what comes from an upstream, until the test ends. It returns its address and a key.
func serveFrom(t *testing.T, upstream string) (addr, key string) {
	t.Helper()
	dir := t.TempDir()
	env := map[string]string{"DATA_DIR": dir}
	b := &bench{dir: dir, upstream: &child{url: upstream}}
	key, err := b.seed(t.Context(), env)
	check(t, err)
	cfg, err := loadConfig(envOf(env))
	check(t, err)
	ln, err := listen(t.Context(), 0)
	check(t, err)
	n, err := newNode(t.Context(), cfg, wholeNode, discardLogger())
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx, func(ctx context.Context) error { return n.serve(ctx, ln, nil) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		n.close()
	})
	check(t, waitReady(t.Context(), "http://"+loopback(ln)))
	return loopback(ln), key
}

// openStream opens a stream and reads its first event. Client and upstream are bare connections, without goroutines of their own.
func openStream(t *testing.T, node string, up net.Listener, key string) {
	t.Helper()
	var d net.Dialer
	client, err := d.DialContext(t.Context(), "tcp", node)
	check(t, err)
	t.Cleanup(func() { _ = client.Close() })
	check(t, client.SetDeadline(time.Now().Add(time.Minute)))
	body, err := chatBody(true, 10, "")
	check(t, err)
	_, err = fmt.Fprintf(client, "POST /v1/chat/completions HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", key, len(body), body)
	check(t, err)
	conn, err := up.Accept()
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	req, err := http.ReadRequest(bufio.NewReader(conn))
	check(t, err)
	_, err = io.Copy(io.Discard, req.Body)
	check(t, err)
	const chunk = `data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"word"}}]}` + "\n\n"
	_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(chunk), chunk)
	check(t, err)
	for lines := bufio.NewReader(client); ; {
		line, err := lines.ReadString('\n')
		check(t, err)
		if strings.HasPrefix(line, "data: ") {
			return
		}
	}
}
