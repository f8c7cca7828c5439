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

	"github.com/redis/go-redis/v9"

	"ledgerline/ledger/ledgertest"
)

var (
	boundedFor = flag.Duration("chaos.bounded", 0, "how long Kafka stays away in TestKafkaAwayAtFullLoad; 0: until the journal is full")
	boundedMB  = flag.Int("chaos.bounded-mb", 512, "JOURNAL_MAX_MB of TestKafkaAwayAtFullLoad with -chaos.bounded")
	soakRate   = flag.Int("chaos.soak-rate", 200, "requests a second of TestSoak; 0: as many as 32 clients can make")
	soakFor    = flag.Duration("chaos.soak", 0, "how long TestSoak loads a node; 0: not at all")
)

// growthFactor is what a figure may grow by while the work stays the same: the collector's pace, and what the allocator keeps.
const growthFactor = 1.5

// What a figure of a process at constant work may grow by beside growthFactor.
const (
	growthBytes   = 32 << 20
	growthOthers  = 64 // goroutines, files, rows, keys
	growthJournal = 64 << 20
)

// lone is a node of a cluster, on a Kafka of its own, under load.
type lone struct {
	*site
	users []*account
	http  *clients // keeps nothing
	tally tally
	stop  func()
}

// tally is what the clients of a lone node saw, in bounded memory: an hour of it is millions of answers.
type tally struct {
	mu      sync.Mutex
	sums    map[*account]spent
	whole   int
	full    int  // refusals because the journal is full
	strange seen // the first answer that is neither
}

// spent is what requests that came to their end must have cost.
type spent struct{ Requests, Prompt, Completion, Quota int64 }

func (s *spent) add(prompt, completion int64) {
	*s = spent{s.Requests + 1, s.Prompt + prompt, s.Completion + completion, s.Quota + price(prompt, completion)}
}

func full(r *seen) bool { return r.status == http.StatusServiceUnavailable && r.code == "node_full" }

func (y *tally) add(r seen) {
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case whole(&r):
		y.whole++
		sum := y.sums[r.order.account]
		sum.add(r.order.prompt, r.order.completion)
		y.sums[r.order.account] = sum
	case full(&r):
		y.full++
	case y.strange.order.account == nil:
		y.strange = r
	}
}

// served is how many requests came to their end, refused how many were told that the journal is full.
func (y *tally) served() (served, refused int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.whole, y.full
}

func newLone(t *testing.T, journalMB int) *lone {
	t.Helper()
	s := newSiteOf(t, "") // sums are enough: a file of an hour's requests would be one of gigabytes
	s.kafka = ledgertest.StartKafka(t)
	s.env["KAFKA_BROKERS"], s.env["KAFKA_TOPIC"] = s.kafka.Addr, ledgertest.UniqueName("bounded")
	s.env["SQL_DSN"], s.env["REDIS_CONN_STRING"], s.env["LOG_SQL_DSN"] = ledgertest.MySQL(t), ledgertest.Redis(t), ledgertest.ClickHouse(t)
	s.env["JOURNAL_MAX_MB"], s.env["JOURNAL_KEEP"] = strconv.Itoa(journalMB), "1m"
	s.addNode(nil)
	s.open()
	l := &lone{site: s, http: newClients(t), tally: tally{sums: map[*account]spent{}}}
	s.addChannel("first", "upstream-key-1", nil)
	for i := range 3 {
		l.users = append(l.users, s.addUser(fmt.Sprintf("user%d", i+1), 100_000_000_000, tokenLimit{unlimited: true}))
	}
	return l
}

// begin starts clients that ask so often in a second together, or, with 0, again as soon as they have an answer. After a
// refusal they wait a moment.
func (l *lone) begin(rate int) {
	const atOnce = 32
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	var all sync.WaitGroup
	for w := range atOnce {
		all.Go(func() {
			pace := make(<-chan time.Time)
			if rate > 0 {
				ticker := time.NewTicker(atOnce * time.Second / time.Duration(rate))
				defer ticker.Stop()
				pace = ticker.C
			}
			for i := w; ctx.Err() == nil; i++ {
				r := send(context.WithoutCancel(ctx), l.http.http, l.nodes[0].url(), l.order(i))
				l.tally.add(r)
				switch {
				case rate > 0:
					select {
					case <-pace:
					case <-ctx.Done():
					}
				case !whole(&r):
					<-time.After(20 * time.Millisecond)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	l.t.Cleanup(l.stop)
}

func (l *lone) order(i int) order {
	return order{account: l.users[i%len(l.users)], stream: i%2 == 0, prompt: 20, completion: 3}
}

func (l *lone) done(t *testing.T, more int) {
	t.Helper()
	served, _ := l.tally.served()
	want := served + more
	eventually(t, "requests are served", func() error {
		if n, _ := l.tally.served(); n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}

// settled ends the clients and holds all books against what they saw and against what the upstream served, to the unit.
func (l *lone) settled(t *testing.T) {
	t.Helper()
	l.stop()
	if l.tally.strange.order.account != nil {
		t.Fatalf("an answer that is neither whole nor a refusal: %+v", l.tally.strange)
	}
	served := l.upstream.Report().Users
	for u, sum := range l.tally.sums {
		if up := served[u.name]; up.Finished != sum.Requests || up.Requests != sum.Requests || up.Prompt != sum.Prompt || up.Completion != sum.Completion {
			t.Errorf("the upstream served %+v to %s, whose clients saw %+v", up, u.name, sum)
		}
	}
	l.books.settledSums(l.tally.sums)
	l.verified()
	n, refused := l.tally.served()
	t.Logf("%d requests are billed exactly, %d were refused", n, refused)
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

// seldom calls look five times a second at most, and repeats in between what it said: looks cost the node something, too, and
// MySQL's INNODB_TRX is as it was at the first of several looks unless 0.1 s lie between them.
func seldom(look func() error) func() error {
	var last time.Time
	var said error
	return func() error {
		if time.Since(last) >= 200*time.Millisecond {
			last, said = time.Now(), look()
		}
		return said
	}
}

// With Kafka away at full load the journal grows to its limit and the memory does not. At the limit the node refuses with a
// clear 503, and loses nothing; with Kafka back it works everything off and serves again (L7, P3).
func TestKafkaAwayAtFullLoad(t *testing.T) {
	t.Parallel()
	limit := 8
	if *boundedFor > 0 {
		limit = *boundedMB
	}
	l := newLone(t, limit)
	l.begin(0)
	l.done(t, 500)
	l.kafka.Kill()
	began := time.Now()
	var early, most float64
	var largest int64
	var filled time.Duration
	within(t, max(10*patience, *boundedFor+patience), "the journal is full and stays so", seldom(func() error {
		size, memory := l.journalBytes(), l.memory()
		if largest = max(largest, size); size < int64(limit)<<20/4 {
			early = max(early, memory)
		}
		most = max(most, memory)
		const refusals = 100
		if _, n := l.tally.served(); n < refusals {
			return fmt.Errorf("%d refusals, %d bytes", n, size)
		}
		if filled == 0 {
			filled = time.Since(began)
		}
		if left := *boundedFor - time.Since(began); left > 0 {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	}))
	t.Logf("after %s: journal full (%d KiB of %d MiB) after %s, memory %.0f MiB at a quarter of it, %.0f MiB at most",
		time.Since(began).Round(time.Second), largest>>10, limit, filled.Round(time.Second), early/(1<<20), most/(1<<20))
	if most > growthFactor*early+growthBytes {
		t.Errorf("memory grew with the journal: from %.0f to %.0f bytes", early, most)
	}
	if largest > int64(limit)<<20 {
		t.Errorf("the journal took %d bytes, more than its limit of %d MiB", largest, limit)
	}
	l.refused(t)
	l.kafka.Start()
	l.done(t, 100)
	l.settled(t)
}

// refused requires that a client is told what is the matter and when to come back.
func (l *lone) refused(t *testing.T) {
	t.Helper()
	eventually(t, "a request is refused", func() error {
		o := l.order(1)
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
			l.tally.add(seen{order: o, status: resp.StatusCode, whole: err == nil}) // it counts like the others
			return fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		if resp.Header.Get("Retry-After") == "" || !bytes.Contains(text, []byte(`"node_full"`)) || !bytes.Contains(text, []byte("try again")) {
			t.Errorf("the refusal is not clear: Retry-After %q, %s", resp.Header.Get("Retry-After"), text)
		}
		return nil
	})
}

// gauge is a figure that must not grow while the work stays the same.
type gauge struct {
	name        string
	slack       float64 // beside growthFactor
	read        func() float64
	early, most float64
}

// gauges are what a soak watches.
func (l *lone) gauges(t *testing.T, rate int) []*gauge {
	options, err := redis.ParseURL(l.env["REDIS_CONN_STRING"])
	if err != nil {
		t.Fatal(err)
	}
	hot := redis.NewClient(options)
	t.Cleanup(func() { _ = hot.Close() })
	of := func(name string) func() float64 { return func() float64 { return l.nodes[0].metric(name) } }
	return []*gauge{
		{name: "memory, bytes", slack: growthBytes, read: l.memory},
		{name: "goroutines", slack: growthOthers, read: of("go_goroutines")},
		{name: "open files", slack: growthOthers, read: of("process_open_fds")},
		{name: "journal, bytes", slack: growthJournal, read: func() float64 { return float64(l.journalBytes()) }},
		// A machine with other work may hold the consumers up; what they owe after so long is a leak.
		{name: "consumer lag, records", slack: float64(rate) * patience.Seconds() / 2, read: of("ledgerline_consumer_lag_records")},
		{name: "rows of ledger_ tables", slack: growthOthers, read: func() (n float64) {
			for _, table := range l.books.tables("ledger_") {
				n += float64(l.books.number("SELECT COUNT(*) FROM " + table))
			}
			return n
		}},
		{name: "keys in Redis", slack: growthOthers, read: func() float64 {
			n, err := hot.DBSize(t.Context()).Result()
			if err != nil {
				t.Fatal(err)
			}
			return float64(n)
		}},
	}
}

// An hour of load with everything in order, or as long as -chaos.soak says: memory, goroutines, files, journal, lag, tables and
// counters stay as they are, and every request is billed exactly.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("only with -chaos.soak (make chaos)")
	}
	l := newLone(t, 512)
	l.begin(*soakRate)
	l.done(t, 1000)
	all := l.gauges(t, *soakRate)
	began := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for spent := time.Duration(0); spent < *soakFor; spent = time.Since(began) {
		for _, g := range all {
			now := g.read()
			if spent < *soakFor/10 {
				g.early = max(g.early, now)
			}
			g.most = max(g.most, now)
		}
		<-ticker.C
	}
	l.settled(t)
	t.Logf("%s at %d requests a second", *soakFor, *soakRate)
	for _, g := range all {
		t.Logf("%s: %.0f at most in the first tenth, %.0f at most", g.name, g.early, g.most)
		if g.most > growthFactor*g.early+g.slack {
			t.Errorf("%s grew from %.0f to %.0f", g.name, g.early, g.most)
		}
	}
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
