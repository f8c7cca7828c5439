package relay_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// onDisk puts a node's journal on a disk in memory.
func onDisk(p *journaltest.Process) func(*nodeConfig) {
	return func(c *nodeConfig) { c.fs, c.root = p, "/journal" }
}

// gate holds up the fsyncs of a disk while it is shut.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil: open
	hit  chan struct{} // an fsync waits
}

func newGate(d *journaltest.Disk) *gate {
	g := &gate{hit: make(chan struct{}, 100)}
	d.Inject(func(op journaltest.Op) journaltest.Fault {
		if op.Kind != "sync" {
			return journaltest.NoFault
		}
		g.mu.Lock()
		shut := g.shut
		g.mu.Unlock()
		if shut != nil {
			g.hit <- struct{}{}
			<-shut
		}
		return journaltest.NoFault
	})
	return g
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut = nil
}

// L1, both halves: no byte of a stream leaves before its open record is on disk, and its last ones not before its usage is.
func TestDurableBeforeSent(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	next := make(chan string, 1)
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for piece := range next {
			_, _ = io.WriteString(w, piece)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	disk := journaltest.NewDisk(1)
	n := s.start(onDisk(disk.Process()))
	a := n.account(start, -1)
	g := newGate(disk)
	g.close()
	head := make(chan *http.Response, 1)
	go func() {
		if resp, err := n.http.Client().Do(n.newRequest(t.Context(), a.key, chatPath, chat("", streamed))); err == nil {
			head <- resp
		}
	}()
	<-g.hit
	next <- contentChunk(" the")
	next <- contentChunk(" the") // taken: the upstream has flushed the first
	select {
	case <-head:
		t.Fatal("the stream began before its open record was durable")
	case <-time.After(30 * time.Millisecond): // a correct relay waits for the gate
	}
	g.open()
	resp := <-head
	defer func() { _ = resp.Body.Close() }()
	n.wantRead(resp.Body, contentChunk(" the")+contentChunk(" the"))
	g.close()
	// None of what comes now may pass: not the finish that a keep-alive follows, not [DONE], nothing behind it.
	end := finishChunk + ": alive\n\n" + `data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}` + "\n\ndata: [DONE]\n\n: alive\n\n" + contentChunk(" the")
	for piece := range strings.SplitAfterSeq(end, "\n\n") {
		next <- piece
	}
	close(next)
	rest := make(chan string, 1)
	go func() {
		first := make([]byte, 1)
		k, _ := resp.Body.Read(first)
		rest <- string(first[:k])
	}()
	<-g.hit
	select {
	case got := <-rest:
		t.Fatalf("%q was sent before the usage was durable", got)
	case <-time.After(30 * time.Millisecond): // as above
	}
	g.open()
	got := <-rest
	tail, err := io.ReadAll(resp.Body)
	if want := withoutUsageOnly(end); err != nil || got+string(tail) != want {
		t.Errorf("the end is %q, %v, want %q", got+string(tail), err, want)
	}
}

// The same for a stream that has no finish, only [DONE].
func TestDoneWaits(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	disk := journaltest.NewDisk(1)
	n := s.start(onDisk(disk.Process()))
	a := n.account(start, -1)
	g := newGate(disk)
	l := n.stream(a.key, feeds)
	for l.text() != contentChunk(" the") {
		time.Sleep(time.Millisecond) // it is on its way
	}
	g.close()
	l.next <- "data: [DONE]\n\n"
	close(l.next)
	<-g.hit
	select {
	case <-l.done:
		t.Fatal("the stream ended before the usage was durable")
	case <-time.After(30 * time.Millisecond): // a correct relay waits for the gate
	}
	if got := l.text(); got != contentChunk(" the") {
		t.Errorf("%q was sent before the usage was durable", got)
	}
	g.open()
	if got := l.end(); got.body != contentChunk(" the")+"data: [DONE]\n\n" {
		t.Errorf("got %q", got.body)
	}
}

func (n *node) wantRead(r io.Reader, want string) {
	n.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		n.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

// A journal that cannot be written: what was not recorded is not handed out, and the node says so and takes nothing more.
func TestJournalFails(t *testing.T) {
	for _, fault := range []string{"sync", "full"} {
		t.Run(fault, func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			n := newStack(t, relaytest.Script{}).start(onDisk(disk.Process()), tightly)
			a := n.account(start, -1)
			if fault == "sync" {
				disk.Inject(func(op journaltest.Op) journaltest.Fault {
					if op.Kind == "sync" {
						return journaltest.FailIO
					}
					return journaltest.NoFault
				})
			} else {
				disk.SetFree(100)
			}
			for i, more := range []string{`"n":1`, streamed, `"n":1`} {
				got := n.post(a.key, chatPath, chat("", more))
				if got.status != 503 || got.fault() != "journal_failed" || got.header.Get("Retry-After") != "5" || strings.Contains(got.body, "quick") {
					t.Errorf("request %d: %d %s %s", i, got.status, got.header, got.body)
				}
			}
			if asked := n.up.Report().Requests; asked != 1 {
				t.Errorf("the upstream was asked %d times, want once", asked)
			}
			if n.desk.Failed() == nil {
				t.Error("the desk does not say that it has failed")
			}
			n.stop()
			if events := n.clerk.usage(); len(events) != 0 {
				t.Errorf("billed %+v", events)
			}
			// The next start puts it right. An fsync that failed may have done its work all the same, so the event of the
			// withheld answer may have survived: then it is charged, once.
			disk.Inject(nil)
			disk.SetFree(-1)
			next := n.start(onDisk(disk.Process()))
			next.await("the journal to be closed", func() bool { return next.adopted() == 0 })
			if left := next.left(a.users, a.user); left != start-next.charged() || next.charged() > price(100, 16) {
				t.Errorf("%d units are left after charges of %d", left, next.charged())
			}
			if got := next.post(a.key, chatPath, chat("")); got.status != 200 {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
}

// adopted returns how many incarnations are live beside the node's own.
func (n *node) adopted() int {
	producers, err := n.db.Producers(n.Context())
	n.must(err)
	live := -1
	for _, p := range producers {
		if p.State != sqlstore.ProducerClosed {
			live++
		}
	}
	return live
}

// A journal that fails in mid-stream: the client keeps what it has, gets no end, and is billed by the next start.
func TestJournalFailsInMidStream(t *testing.T) {
	disk := journaltest.NewDisk(1)
	n := newStack(t, relaytest.Script{}).start(onDisk(disk.Process()), tightly)
	a := n.account(start, -1)
	resp, err := n.http.Client().Do(n.newRequest(t.Context(), a.key, chatPath, chat("completion=20;delay=2ms", streamed)))
	n.must(err)
	first := make([]byte, 100)
	_, err = io.ReadFull(resp.Body, first)
	n.must(err)
	disk.SetFree(0)
	rest, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	body := string(first) + string(rest)
	if pieces := strings.Count(body, `"content":" `); pieces != 20 || strings.Contains(body, "[DONE]") || strings.Contains(body, `"stop"`) {
		t.Errorf("the client got %d pieces, %v: %s", pieces, err, body)
	}
	n.stop()
	disk.SetFree(-1)
	next := n.start(onDisk(disk.Process()))
	ev := next.event(resp.Header.Get("X-Oneapi-Request-Id"))
	if ev.Kind != ledger.KindUsageRecovered || ev.Usage.Completion < 20 || ev.Charged != price(ev.Usage.Prompt, ev.Usage.Completion) || ev.Charged > ev.Hold.Amount {
		t.Errorf("recovered %+v of %+v", ev, ev.Usage)
	}
	next.await("the journal to be closed", func() bool { return next.adopted() == 0 })
	if left := next.left(a.users, a.user); left != start-ev.Charged {
		t.Errorf("%d units are left", left)
	}
}

// deadNode starts a node, opens two requests on it, and kills its journal's process. Of one nothing has reached the client,
// of the other, whose id it returns, five pieces.
func (s *stack) deadNode(disk *journaltest.Disk) (a account, some string) {
	process := disk.Process()
	dead := s.start(onDisk(process))
	a = dead.account(start, start)
	ctx, cancel := context.WithCancel(context.Background())
	s.Cleanup(cancel)
	before := s.up.Report().Active
	go func() {
		if resp, err := dead.http.Client().Do(dead.newRequest(ctx, a.key, chatPath, chat("first=1h", streamed))); err == nil {
			_ = resp.Body.Close()
		}
	}()
	s.await("the upstream to be asked", func() bool { return s.up.Report().Active > before })
	resp, err := dead.http.Client().Do(dead.newRequest(ctx, a.key, chatPath, chat("completion=5;silence=5", streamed)))
	s.must(err)
	s.Cleanup(func() { _ = resp.Body.Close() })
	var got strings.Builder
	buf := make([]byte, 1000)
	for strings.Count(got.String(), `"content":" `) < 5 {
		k, err := resp.Body.Read(buf)
		s.must(err)
		got.Write(buf[:k])
	}
	process.Kill()
	dead.stop()
	return a, resp.Header.Get("X-Oneapi-Request-Id")
}

// The journal of a dead node is closed by whoever starts next: what was streamed is billed, what was not costs nothing, the
// holds are gone, and the incarnation is closed.
func TestDeadNode(t *testing.T) {
	disk := journaltest.NewDisk(1)
	s := newStack(t, relaytest.Script{})
	a, some := s.deadNode(disk)
	next := s.start(onDisk(disk.Process()))
	next.await("the journal to be closed", func() bool { return next.adopted() == 0 })
	if left := next.left(a.users, a.user); left != start-next.charged() {
		t.Errorf("%d units are left after charges of %d", left, next.charged())
	}
	next.checkRecovered(t, some)
}

func (n *node) checkRecovered(t *testing.T, some string) {
	t.Helper()
	events := n.clerk.usage()
	if len(events) != 2 {
		t.Fatalf("%d events for 2 requests: %+v", len(events), events)
	}
	for _, ev := range events {
		if ev.Kind != ledger.KindUsageRecovered || ev.Source != ledger.SourceRecovered || ev.Channel != 1 {
			t.Errorf("event %+v", ev)
		}
		if ev.Request.ID != some {
			if ev.Charged != 0 || ev.Usage != nil || len(ev.Flags) != 1 || ev.Flags[0] != desk.FlagUpstreamCost {
				t.Errorf("nothing was streamed, and the event is %+v", ev)
			}
			continue
		}
		// The prompt is an estimate near the truth, and the progress is what the client has: a piece is a token.
		if u := ev.Usage; u == nil || u.Completion != 5 || u.Prompt < counted/2 || u.Prompt > 2*counted || ev.Charged != price(u.Prompt, u.Completion) {
			t.Errorf("5 pieces were streamed, and the event is %+v of %+v", ev, ev.Usage)
		}
	}
}

// A recovery that is killed wherever it stands, and done again, and again, bills each request once and the same.
func TestRecoveryIsKilled(t *testing.T) {
	disk := journaltest.NewDisk(1)
	s := newStack(t, relaytest.Script{})
	a, some := s.deadNode(disk)
	tries := 0
	for step := int64(1); step < 60; step += 3 {
		from := disk.Ops()
		process := disk.Process()
		disk.Inject(func(op journaltest.Op) journaltest.Fault {
			if op.N == from+step {
				return journaltest.KillWithin
			}
			return journaltest.NoFault
		})
		d, err := desk.New(t.Context(), s.deskConfig(process))
		if err != nil {
			continue // killed while it made its own journal
		}
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx, patience) }()
		deadline := time.After(300 * time.Millisecond)
	wait:
		for process.Alive() {
			select {
			case <-deadline:
				break wait // it got further than the kill
			case <-time.After(time.Millisecond):
			}
		}
		process.Kill()
		leave()
		<-ended
		tries++
	}
	disk.Inject(nil)
	if tries < 5 {
		t.Fatalf("only %d recoveries were killed", tries)
	}
	next := s.start(onDisk(disk.Process()))
	next.await("the journals to be closed", func() bool {
		free, err := journal.Adoptable(s.deskConfig(disk.Process()).Journal)
		next.must(err)
		return len(free) == 0 && next.desk.Backlog() == 0
	})
	if left := next.left(a.users, a.user); left != start-next.charged() {
		t.Errorf("%d units are left after charges of %d", left, next.charged())
	}
	next.checkRecovered(t, some)
}

// A journal that cannot be created leaves nobody behind whom a rebuild of the counters would wait for.
func TestNoJournalNoProducer(t *testing.T) {
	disk := journaltest.NewDisk(1)
	s := newStack(t, relaytest.Script{})
	disk.Inject(func(op journaltest.Op) journaltest.Fault {
		if op.Kind == "create" {
			return journaltest.FailIO
		}
		return journaltest.NoFault
	})
	if _, err := desk.New(t.Context(), s.deskConfig(disk.Process())); err == nil {
		t.Fatal("a desk without a journal was made")
	}
	producers, err := s.db.Producers(t.Context())
	if err != nil || len(producers) != 1 || producers[0].State == sqlstore.ProducerLive {
		t.Errorf("producers %+v, %v", producers, err)
	}
}

// tightly has the journal's files grow with every write, so that it meets a full disk at once.
func tightly(cfg *nodeConfig) {
	cfg.desk = func(dc *desk.Config) { dc.Journal.BlockBytes = 1 }
}

// deskConfig is the configuration of a desk without a relay.
func (s *stack) deskConfig(fs journal.FS) desk.Config {
	n := &nodeConfig{}
	onDisk(fs.(*journaltest.Process))(n)
	return desk.Config{
		Node: "node", Partitions: partitions, Counters: s.counters, Bank: bank{s.db}, Outbox: outbox{s.db}, Ship: s.ship(), Logger: s.log,
		Journal:   journal.Config{FS: n.fs, Root: n.root, Partitions: partitions, Slots: 1024, Logger: s.log},
		BeatEvery: 20 * time.Millisecond, SweepEvery: 20 * time.Millisecond, AdoptEvery: 20 * time.Millisecond,
	}
}

// A node that stops cleanly finishes what runs, refuses what comes, and leaves nothing to recover.
func TestCleanStop(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(start, start)
	done := make(chan *reply, 1)
	go func() {
		done <- n.post(a.key, chatPath, chat("completion=30;prompt=40;delay=5ms", streamed))
	}()
	n.await("the request to be open", func() bool { return n.desk.InFlight() == 1 })
	n.leave()
	n.await("the node to refuse", func() bool {
		got := n.post(a.key, chatPath, chat(""))
		return got.status == 503 && got.fault() == "node_stopping" && got.header.Get("Retry-After") == "1"
	})
	got := <-done
	if pieces, finish, _, end := readStream(t, got.body); pieces[0] != 30 || finish[0] != "stop" || !end {
		t.Errorf("the running request got %s", got.body)
	}
	err := <-n.ended
	n.must(err)
	n.ended <- nil
	free, err := journal.Adoptable(journal.Config{Root: filepath.Join(n.dir, "journal"), Partitions: partitions, Slots: 1024})
	if err != nil || len(free) > 0 {
		t.Errorf("%v can be adopted, %v", free, err)
	}
	if left := n.adopted(); left != -1 {
		t.Errorf("%d incarnations are not closed", left+1)
	}
	if ev := n.event(got.request()); ev.Charged != price(40, 30) {
		t.Errorf("event %+v", ev)
	}
}

// Two nodes share a JOURNAL_DIR: each leaves the other's journal alone, and closes it when the other is dead.
func TestTwoNodesOneFolder(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	disk := journaltest.NewDisk(1)
	process := disk.Process()
	one, two := s.start(onDisk(process)), s.start(onDisk(disk.Process()))
	a := one.account(start, start)
	two.must(two.catalog.Refresh(t.Context()))
	for i := range 10 {
		for _, n := range []*node{one, two} {
			if got := n.post(a.key, chatPath, chat(fmt.Sprintf("completion=5;prompt=%d", 10+i))); got.status != 200 {
				t.Errorf("%d %s", got.status, got.body)
			}
		}
	}
	one.drain()
	if left := two.left(a.users, a.user); left != start-two.charged() || len(two.clerk.usage()) != 20 {
		t.Errorf("%d units are left after %d events of %d", left, len(two.clerk.usage()), two.charged())
	}
	process.Kill()
	one.stop()
	two.await("the journal to be closed", func() bool { return two.adopted() == 0 })
	if got := two.post(a.key, chatPath, chat("")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}
