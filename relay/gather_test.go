package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// gatheringServer serves f with connections that gather.
func gatheringServer(t *testing.T, f func(st *streaming)) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f(&streaming{x: &exchange{w: w, r: r, rc: http.NewResponseController(w)}, conn: gatheringConn(r)})
	}))
	server.Listener = Gathering(server.Listener)
	server.Config.ConnContext = ConnContext
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// Whatever the sizes of the pieces, the client gets their bytes in order, over a connection that serves the next request, and what net/http
// writes past its buffer is not copied.
func TestGatheredPieces(t *testing.T) {
	var pieces [][]byte
	for _, size := range []int{1, 100, gatherFrom - 1, gatherFrom, 3900, 4080, 4089, 4090, 4091, 4096, 4097, 5000, 1, 16 << 10, 64 << 10, 200_000, 7} {
		pieces = append(pieces, []byte(strings.Repeat(fmt.Sprintf("%d,", size), size)[:size]))
	}
	var copied atomic.Int64
	server := gatheringServer(t, func(st *streaming) {
		for _, piece := range pieces {
			if err := st.write(piece); err != nil {
				t.Error(err)
			}
		}
		large := pieces[len(pieces)-2]
		st.conn.gather(large)
		_, _ = st.x.w.Write(large)
		_ = st.x.rc.Flush()
		copied.Store(int64(len(st.conn.gathering.other)))
		if err := st.conn.release(); err != nil {
			t.Error(err)
		}
	})
	want := string(slices.Concat(append(pieces, pieces[len(pieces)-2])...))
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for range 2 {
			if _, err := fmt.Fprintf(conn, "GET / %s\r\nHost: a\r\n\r\n", version); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != want {
				t.Fatalf("%s: %d bytes, %v; want %d", version, len(got), err, len(want))
			}
			if n := copied.Load(); n > gatherRoom {
				t.Errorf("%s: %d bytes of a piece were copied", version, n)
			}
			if version == "HTTP/1.0" {
				break // the connection is closed
			}
		}
	}
}

// A piece that cannot be sent ends the connection for good: net/http must not put the end of the answer behind it.
func TestGatheredWriteFails(t *testing.T) {
	failed := make(chan error, 2)
	server := gatheringServer(t, func(st *streaming) {
		_ = st.x.rc.SetWriteDeadline(time.Unix(1, 0))
		failed <- st.write(make([]byte, 100_000))
		_ = st.x.rc.SetWriteDeadline(time.Time{})
		failed <- st.write([]byte("more"))
	})
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		t.Errorf("the client got %d bytes, %v", len(body), err)
	}
	for range 2 {
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a write that is late, or comes after one: %v", err)
		}
	}
}
