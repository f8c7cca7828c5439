package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ledgerline/ledger/ledgertest"
)

var (
	boundedFor = flag.Duration("chaos.bounded", 0, "how long Kafka stays away in TestKafkaAwayAtFullLoad; 0: until the journal is full")
	soakFor    = flag.Duration("chaos.soak", 0, "how long TestSoak loads a node; 0: not at all")
)

// What a process may grow by while its work stays the same: the collector's pace, and what the allocator keeps.
const (
	growthFactor = 1.5
	growthBytes  = 32 << 20
)

// lone is a node of a cluster, on a Kafka of its own, under as much load as its clients can make.
type lone struct {
	*site
	users   []*account
	clients *clients
	stop    func()
}

func newLone(t *testing.T, journalMB int) *lone {
	t.Helper()
	s := newSite(t)
	s.kafka = ledgertest.StartKafka(t)
	s.env["KAFKA_BROKERS"], s.env["KAFKA_TOPIC"] = s.kafka.Addr, ledgertest.UniqueName("bounded")
	s.env["SQL_DSN"], s.env["REDIS_CONN_STRING"], s.env["LOG_SQL_DSN"] = ledgertest.MySQL(t), ledgertest.Redis(t), ledgertest.ClickHouse(t)
	s.env["JOURNAL_MAX_MB"] = strconv.Itoa(journalMB)
	s.addNode(nil)
	s.open()
	l := &lone{site: s, clients: newClients(t)}
	s.addChannel("first", "upstream-key-1", nil)
	for i := range 3 {
		l.users = append(l.users, s.addUser(fmt.Sprintf("user%d", i+1), 100_000_000_000, tokenLimit{unlimited: true}))
	}
	l.begin()
	return l
}

// begin starts clients that ask again as soon as they have an answer, and after a refusal when a moment has passed.
func (l *lone) begin() {
	const atOnce = 32
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	var all sync.WaitGroup
	for w := range atOnce {
		all.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				o := order{account: l.users[i%len(l.users)], stream: i%2 == 0, prompt: 20, completion: 3}
				r := send(context.WithoutCancel(ctx), l.clients.http, l.nodes[0].url(), o)
				l.clients.mu.Lock()
				l.clients.all = append(l.clients.all, r)
				l.clients.mu.Unlock()
				if r.status != http.StatusOK {
					<-time.After(20 * time.Millisecond)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	l.t.Cleanup(l.stop)
}

// count is how many requests were answered like this so far.
func (l *lone) count(like func(*seen) bool) (n int) {
	l.clients.mu.Lock()
	defer l.clients.mu.Unlock()
	for i := range l.clients.all {
		if like(&l.clients.all[i]) {
			n++
		}
	}
	return n
}

func whole(r *seen) bool { return r.status == http.StatusOK && r.whole }

func (l *lone) done(t *testing.T, more int) {
	t.Helper()
	want := l.count(whole) + more
	eventually(t, "requests are served", func() error {
		if n := l.count(whole); n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}

func (l *lone) memory() float64 { return l.nodes[0].metric("process_resident_memory_bytes") }

// journalBytes is what the node's journal takes on the disk.
func (l *lone) journalBytes() (size int64) {
	_ = filepath.WalkDir(filepath.Join(l.nodes[0].dir, "journal"), func(path string, d fs.DirEntry, err error) error {
		// Segments only: the file of slots beside them has one size for ever.
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".seg") {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil
	})
	return size
}

// With Kafka away at full load the journal grows to its limit and the memory does not. At the limit the node refuses with a
// clear 503, and loses nothing; with Kafka back it works everything off and serves again (L7, P3).
func TestKafkaAwayAtFullLoad(t *testing.T) {
	t.Parallel()
	limit := 8
	if *boundedFor > 0 {
		limit = 512
	}
	l := newLone(t, limit)
	l.done(t, 500)
	l.kafka.Kill()
	began := time.Now()
	full := func(r *seen) bool { return r.status == http.StatusServiceUnavailable && r.code == "node_full" }
	var early, most float64
	var largest int64
	within(t, max(10*patience, *boundedFor+patience), "the journal is full and stays so", func() error {
		size, memory := l.journalBytes(), l.memory()
		if largest = max(largest, size); size < int64(limit)<<20/4 {
			early = max(early, memory)
		}
		most = max(most, memory)
		const refusals = 100
		if n := l.count(full); n < refusals {
			return fmt.Errorf("%d refusals, %d bytes", n, size)
		}
		if left := *boundedFor - time.Since(began); left > 0 {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	})
	t.Logf("after %s: journal %d KiB of %d MiB, memory %.0f MiB at a quarter of it, %.0f MiB at most", time.Since(began).Round(time.Second), largest>>10, limit, early/(1<<20), most/(1<<20))
	if most > growthFactor*early+growthBytes {
		t.Errorf("memory grew with the journal: from %.0f to %.0f bytes", early, most)
	}
	if largest > int64(limit)<<20 {
		t.Errorf("the journal took %d bytes, more than its limit of %d MiB", largest, limit)
	}
	l.refused(t)
	l.kafka.Start()
	l.done(t, 100)
	l.stop()
	for i := range l.clients.all {
		if r := &l.clients.all[i]; !whole(r) && !full(r) {
			t.Fatalf("an answer that is neither whole nor a refusal: %+v", *r)
		}
	}
	l.books.settled(l.clients.answered(), l.users...)
	l.verified()
}

// refused requires that a client is told what is the matter and when to come back.
func (l *lone) refused(t *testing.T) {
	t.Helper()
	eventually(t, "a request is refused", func() error {
		o := order{account: l.users[0], prompt: 20, completion: 3}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.nodes[0].url()+"/v1/chat/completions", bytes.NewReader(o.body()))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+o.account.key)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusServiceUnavailable {
			l.clients.mu.Lock() // it counts like the others
			l.clients.all = append(l.clients.all, seen{order: o, id: resp.Header.Get("X-Oneapi-Request-Id"), status: resp.StatusCode, chunks: o.completion, whole: true})
			l.clients.mu.Unlock()
			return fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		if resp.Header.Get("Retry-After") == "" || !bytes.Contains(text, []byte(`"node_full"`)) || !bytes.Contains(text, []byte("try again")) {
			t.Errorf("the refusal is not clear: Retry-After %q, %s", resp.Header.Get("Retry-After"), text)
		}
		return nil
	})
}

// An hour of full load with everything in order, or as long as -chaos.soak says: memory and journal stay as they are.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("only with -chaos.soak (make chaos)")
	}
	l := newLone(t, 512)
	l.done(t, 1000)
	began := time.Now()
	var early, most float64
	within(t, *soakFor+patience, "the time is over", func() error {
		memory, spent := l.memory(), time.Since(began)
		if spent < *soakFor/10 {
			early = max(early, memory)
		}
		most = max(most, memory)
		if spent < *soakFor {
			return fmt.Errorf("%s to go", *soakFor-spent)
		}
		return nil
	})
	l.stop()
	t.Logf("%d requests in %s, memory %.0f MiB in the first tenth, %.0f MiB at most", len(l.clients.all), *soakFor, early/(1<<20), most/(1<<20))
	if most > growthFactor*early+growthBytes {
		t.Errorf("memory grew from %.0f to %.0f bytes", early, most)
	}
	l.books.settled(l.clients.answered(), l.users...)
	l.verified()
}

// Ten thousand connections that do nothing cost little memory, keep nobody from being served, and leave nothing behind.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	connections := 10_000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	const others = 1000 // files that both processes have open besides
	if files.Max < uint64(connections+others) {
		connections = int(files.Max) - others
		t.Logf("this system allows %d open files: %d connections", files.Max, connections)
	}
	s := embedded(t)
	s.open()
	u := s.cast(1)[0]
	n := s.nodes[0]
	memory, routines := n.metric("process_resident_memory_bytes"), n.metric("go_goroutines")
	idle := make([]net.Conn, 0, connections)
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for range connections {
		conn, err := net.Dial("tcp", strings.TrimPrefix(n.url(), "http://"))
		if err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
		idle = append(idle, conn)
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
		_ = resp.Body.Close()
	}
	each := (n.metric("process_resident_memory_bytes") - memory) / float64(connections)
	t.Logf("%.1f KiB a connection", each/1024)
	const most = 40 << 10 // a goroutine with its stack, and the two buffers of net/http
	if each > most {
		t.Errorf("an idle connection takes %.0f bytes, more than %d", each, most)
	}
	c := newClients(t)
	s.play(c, 8, traceOrders(t, 60, []*account{u}))
	s.books.settled(c.answered(), u)
	for _, conn := range idle {
		_ = conn.Close()
	}
	eventually(t, "the connections are forgotten", func() error {
		if now := n.metric("go_goroutines"); now > routines+100 {
			return errors.New(fmt.Sprint(now, " goroutines, ", routines, " before"))
		}
		return nil
	})
}
