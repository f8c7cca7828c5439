package relay_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// wire is the connection between nodes and the log, which tests can cut.
type wire struct {
	ship desk.Ship

	mu      sync.Mutex
	cut     bool
	changed chan struct{}
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *wire) state() (cut bool, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut, w.changed
}

// run ships while the wire is whole.
func (w *wire) run(ctx context.Context, j *journal.Journal) error {
	for ctx.Err() == nil {
		cut, changed := w.state()
		if cut {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		once, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-changed:
				stop()
			case <-once.Done():
			}
		}()
		err := w.ship(once, j)
		stop()
		if nowCut, _ := w.state(); !nowCut {
			return err
		}
		j.Rewind()
	}
	return ctx.Err()
}

// diskless makes a node one without a disk, behind a wire.
func (s *stack) diskless() (*wire, func(*nodeConfig)) {
	w := &wire{ship: s.ship(), changed: make(chan struct{})}
	return w, func(c *nodeConfig) {
		c.ship = w.run
		c.desk = func(d *desk.Config) { d.Diskless = true }
	}
}

// L1 without a disk: neither an answer in one piece nor the end of a stream leaves before the log has the bill; what leaves is billed once;
// and no file is written.
func TestDisklessWaitsForTheLog(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		s := newStack(t, relaytest.Script{})
		w, without := s.diskless()
		n := s.start(without)
		a := n.account(start, start)
		w.set(true)
		plain := make(chan *reply, 1)
		go func() { plain <- n.post(a.key, chatPath, chat("")) }()
		n.await("the bill to be written down", func() bool { return n.desk.Backlog() > 0 && n.desk.InFlight() == 0 })
		select {
		case got := <-plain:
			t.Fatalf("an answer left before the log had its bill: %d %s", got.status, got.body)
		case <-time.After(30 * time.Millisecond): // a correct relay waits for the log
		}
		w.set(false)
		if got := <-plain; got.status != http.StatusOK {
			t.Errorf("%d %s", got.status, got.body)
		}
		n.wantDisklessEnd(a)
	})
	t.Run("stream", func(t *testing.T) {
		s := newStack(t, relaytest.Script{})
		feeds := s.handFed()
		w, without := s.diskless()
		n := s.start(without)
		a := n.account(start, start)
		l := n.stream(a.key, feeds)
		n.await("the first piece", func() bool { return l.text() == contentChunk(" the") })
		w.set(true)
		for piece := range strings.SplitAfterSeq(finishChunk+"data: [DONE]\n\n", "\n\n") {
			if piece != "" {
				l.next <- piece
			}
		}
		close(l.next)
		n.await("the bill to be written down", func() bool { return n.desk.Backlog() > 0 && n.desk.InFlight() == 0 })
		select {
		case <-l.done:
			t.Fatalf("a stream ended before the log had its bill: %q", l.text())
		case <-time.After(30 * time.Millisecond): // as above
		}
		if got := l.text(); got != contentChunk(" the") {
			t.Errorf("%q was sent", got)
		}
		w.set(false)
		if got := l.end(); !strings.HasSuffix(got.body, "data: [DONE]\n\n") {
			t.Errorf("%q", got.body)
		}
		n.wantDisklessEnd(a)
	})
}

// wantDisklessEnd stops the node after one request and looks at what is left of it.
func (n *node) wantDisklessEnd(a account) {
	n.Helper()
	n.drain()
	if left, events := n.left(a.users, a.user), n.clerk.usage(); len(events) != 1 || left != start-n.charged() {
		n.Errorf("%d units are left after %d bills of %d", left, len(events), n.charged())
	}
	n.stop()
	if files, err := os.ReadDir(n.dir + "/journal"); !os.IsNotExist(err) {
		n.Errorf("the node wrote %v, %v", files, err)
	}
	if live := n.adopted(); live != -1 {
		n.Errorf("%d incarnations are not closed after a clean stop", live+1)
	}
}

// While the log is away a node without a disk says so and serves nobody; when it is back all goes on, and what was under way
// is billed once.
func TestDisklessWithoutLog(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	w, without := s.diskless()
	n := s.start(without)
	a := n.account(start, start)
	w.set(true)
	first := make(chan *reply, 1)
	go func() { first <- n.post(a.key, chatPath, chat("")) }()
	n.await("the node to say that the log is away", func() bool { return n.desk.Unlogged() == 1 })
	asked := n.up.Report().Requests
	for range 3 {
		got := n.post(a.key, chatPath, chat(""))
		if got.status != http.StatusServiceUnavailable || got.fault() != "log_unreachable" || got.header.Get("Retry-After") == "" {
			t.Errorf("%d %s %v", got.status, got.body, got.header)
		}
	}
	if now := n.up.Report().Requests; now != asked {
		t.Errorf("the upstream was asked %d times for requests that were refused", now-asked)
	}
	w.set(false)
	if got := <-first; got.status != http.StatusOK {
		t.Errorf("the request under way: %d %s", got.status, got.body)
	}
	if got := n.post(a.key, chatPath, chat("")); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
	n.drain()
	if left, events := n.left(a.users, a.user), n.clerk.usage(); len(events) != 2 || left != start-n.charged() {
		t.Errorf("%d units are left after %d bills of %d", left, len(events), n.charged())
	}
}

// A node without a disk learns that the log is away without a request that waits for it in vain, and that it is back.
func TestDisklessProbesTheLog(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	_, without := s.diskless()
	var away atomic.Bool
	n := s.start(without, func(c *nodeConfig) {
		more := c.desk
		c.desk = func(d *desk.Config) {
			more(d)
			d.ProbeEvery = 10 * time.Millisecond
			d.Probe = func(context.Context, int) error {
				if away.Load() {
					return errors.New("it does not answer")
				}
				return nil
			}
		}
	})
	a := n.account(start, start)
	away.Store(true)
	n.await("the node to say that the log is away", func() bool { return n.desk.Unlogged() == partitions })
	if got := n.post(a.key, chatPath, chat("")); got.status != http.StatusServiceUnavailable || got.fault() != "log_unreachable" || got.header.Get("Retry-After") == "" {
		t.Errorf("%d %s %v", got.status, got.body, got.header)
	}
	if asked := n.up.Report().Requests; asked != 0 {
		t.Errorf("the upstream was asked %d times", asked)
	}
	away.Store(false)
	n.await("the node to serve again", func() bool { return n.desk.Unlogged() == 0 })
	if got := n.post(a.key, chatPath, chat("")); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
	n.wantDisklessEnd(a)
}

// A node that has lost its disk closes what it left on it.
func TestDisklessAdoptsFiles(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	disk := journaltest.NewDisk(1)
	a, some := s.deadNode(disk)
	_, without := s.diskless()
	next := s.start(onDisk(disk.Process()), without)
	next.await("the journal to be closed", func() bool { return next.adopted() == 0 })
	if left := next.left(a.users, a.user); left != start-next.charged() {
		t.Errorf("%d units are left after charges of %d", left, next.charged())
	}
	next.checkRecovered(t, some)
	// Itself it leaves nothing there, however it ends.
	var own ledger.ID
	producers, err := next.db.Producers(t.Context())
	next.must(err)
	for _, p := range producers {
		if p.State == sqlstore.ProducerLive {
			own = p.ID
		}
	}
	ids, err := journal.Incarnations(journal.Config{FS: disk.Process(), Root: "/journal", Partitions: partitions})
	next.must(err)
	for _, id := range ids {
		if id == own {
			t.Error("the node has a journal on the disk")
		}
	}
}
