package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A node may open few files, and clients open more connections than that. Those who are served are served on, to the journal and from the
// upstream; the others are told to come back, and are served when there is room (L7).
func TestMoreConnectionsThanFiles(t *testing.T) {
	t.Parallel()
	const files, served, flood = 600, 150, 1000 // served: more than the clients' share of the files
	s := embedded(t)
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec '%s' \"$@\"\n", files, ledgerline(t))
	s.nodes[0].binary = filepath.Join(t.TempDir(), "ledgerline")
	if err := os.WriteFile(s.nodes[0].binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s.open()
	n, u := s.nodes[0], s.cast(1)[0]
	c := newClients(t)
	orders := traceOrders(t, 40, []*account{u})
	s.play(c, 4, orders[:20]) // their connections are kept
	var open []net.Conn
	for range flood {
		conn, err := net.Dial("tcp", strings.TrimPrefix(n.url(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	s.play(c, 4, orders[20:])
	for _, r := range c.all {
		if !whole(&r) {
			t.Errorf("a client that had a connection was answered %d %s", r.status, r.code)
		}
	}
	refused := 0
	for _, conn := range open[served:] {
		if text, _ := io.ReadAll(conn); strings.Contains(string(text), "node_full") {
			refused++
		}
	}
	if refused == 0 {
		t.Error("nobody was told that the node has as many connections as it can take")
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	eventually(t, "others are served again", func() error {
		status, body, err := get(n.url() + "/readyz")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("status %d, %s: %w", status, body, err)
		}
		return nil
	})
	s.books.settled(c.answered(), u)
	s.verified()
}
