package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// spaces are blanks without end: a body of 100 MB that takes no memory of the test's.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// padded is a request with so many blanks in it.
func padded(o order, blanks int64) (body io.Reader, size int64) {
	b := o.body()
	return io.MultiReader(bytes.NewReader(b[:1]), io.LimitReader(spaces{}, blanks), bytes.NewReader(b[1:])), int64(len(b)) + blanks
}

// peak is the most memory that a process has ever had, in bytes.
func (p *process) peak() int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Skipf("this system does not say what a process takes: %v", err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return kib << 10
}

// Clients that send bodies of 100 MB at once, small gzip files that unfold to as much, bodies that no decoder should meet, and
// headers that never end, get a clear answer. Others are served meanwhile, memory stays within what MAX_REQUEST_BODIES_MB allows,
// and every answer is billed exactly (L7).
func TestHostileClients(t *testing.T) {
	t.Parallel()
	const bodiesMB, size = 256, 100 << 20
	s := embedded(t)
	s.nodes[0].env = map[string]string{"MAX_REQUEST_BODIES_MB": strconv.Itoa(bodiesMB)}
	s.open()
	n, u := s.nodes[0], s.cast(1)[0]
	before, routines := n.peak(), n.metric("go_goroutines")
	c := newClients(t)
	slow := n.trickle(t, 200)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			body, length := padded(order{account: u, prompt: 20, completion: 3}, size)
			encoding := ""
			if i%2 == 1 {
				body, length, encoding = zip(t, body), -1, "gzip"
			}
			c.keep(n.large(t, c.http, u, body, length, encoding))
		})
	}
	s.play(c, 4, traceOrders(t, 100, []*account{u}))
	all.Wait()
	n.malformed(t, u)
	grown := n.peak() - before
	t.Logf("memory grew by %d MiB at most, with %d MiB of bodies allowed", grown>>20, bodiesMB)
	// Each is copied once on its way out, and the collector lets as much pile up again.
	if grown > 4*bodiesMB<<20 {
		t.Errorf("memory grew by %d MiB with %d MiB of bodies allowed", grown>>20, bodiesMB)
	}
	if large := func() (n int) {
		for _, r := range c.all {
			if r.order.prompt == 20 && whole(&r) {
				n++
			}
		}
		return n
	}(); large == 0 {
		t.Error("none of the large bodies was served")
	}
	for _, conn := range slow { // the node closes them, without being asked
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("headers that do not end: %v", err)
		}
	}
	eventually(t, "the connections are forgotten", func() error {
		if now := n.metric("go_goroutines"); now > routines+100 {
			return fmt.Errorf("%v goroutines, %v before", now, routines)
		}
		return nil
	})
	s.books.settled(c.answered(), u)
	s.verified()
}

// trickle opens connections that begin a request and never come to the end of its headers.
func (n *node) trickle(t *testing.T, count int) (open []net.Conn) {
	t.Helper()
	for range count {
		conn, err := net.Dial("tcp", strings.TrimPrefix(n.url(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	return open
}

// zip compresses a body as far as it goes.
func zip(t *testing.T, body io.Reader) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(w, body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Error(err)
	}
	return &b
}

// large sends a large body once. It is served, or the answer says that the node has too many of them.
func (n *node) large(t *testing.T, with *http.Client, u *account, body io.Reader, length int64, encoding string) seen {
	t.Helper()
	out := seen{order: order{account: u, prompt: 20, completion: 3}, tries: 1}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url()+"/v1/chat/completions", body)
	if err != nil {
		t.Error(err)
		return out
	}
	req.ContentLength = length
	req.Header.Set("Authorization", "Bearer "+u.key)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := with.Do(req)
	if err != nil {
		return out // refused before it was sent: the connection is closed under the client
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	out.id, out.status, out.ended = resp.Header.Get("X-Oneapi-Request-Id"), resp.StatusCode, time.Now()
	out.chunks, out.whole = gjson.GetBytes(text, "usage.completion_tokens").Int(), err == nil
	if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusServiceUnavailable || !bytes.Contains(text, []byte(`"node_full"`)) || resp.Header.Get("Retry-After") == "") {
		t.Errorf("a body of %d bytes, encoding %q: %d %.300s", length, encoding, resp.StatusCode, text)
	}
	return out
}

// malformed sends what no decoder should meet; each is refused, and what is wrong is named.
func (n *node) malformed(t *testing.T, u *account) {
	t.Helper()
	const rest = `"model":"` + model + `","messages":[{"role":"user","content":"hi"}]}`
	for name, c := range map[string]struct {
		body, says string
		status     int
	}{
		"nested deep":           {`{"x":` + strings.Repeat("[", 10<<20), "deeper than", 400},
		"objects nested deep":   {strings.Repeat(`{"a":`, 1<<20), "deeper than", 400},
		"a key twice":           {`{"max_tokens":1,"max_tokens":9000,` + rest, "max_tokens", 400},
		"a million keys":        {"{" + strings.Repeat(`"k":1,`, 1<<20) + `"max_tokens":-1,` + rest, "max_tokens", 400},
		"NaN":                   {`{"temperature":NaN,` + rest, "invalid JSON", 400},
		"Infinity":              {`{"max_tokens":Infinity,` + rest, "invalid JSON", 400},
		"negative max_tokens":   {`{"max_tokens":-1,` + rest, "max_tokens", 400},
		"max_tokens of 1e308":   {`{"max_tokens":1e308,` + rest, "max_tokens", 400},
		"max_tokens too large":  {`{"max_tokens":` + strings.Repeat("9", 1<<20) + `,` + rest, "max_tokens", 400},
		"invalid UTF-8 as name": {`{"model":"` + "\xff\xc0" + `","messages":[{"role":"user","content":"hi"}]}`, "", 503},
		"no JSON":               {"\x00\xff\xfe", "invalid JSON", 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url()+"/v1/chat/completions", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+u.key)
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || !bytes.Contains(text, []byte(c.says)) || len(text) > 4096 {
			t.Errorf("%s: %d %.300s, %v; want %d and the words %q", name, resp.StatusCode, text, err, c.status, c.says)
		}
	}
}
