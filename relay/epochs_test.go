package relay_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/journal/journaltest"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// flaky are the in-process counters behind a connection that tests can cut, delay and listen to.
type flaky struct {
	*hold.Local
	cut       atomic.Bool  // no call gets through
	mute      atomic.Bool  // calls get through, but the node does not see the state of the counters
	deaf      atomic.Bool  // no end of a hold gets through
	dead      atomic.Int64 // the partition + 1 whose server is away; 0: none
	hangs     atomic.Bool  // it does not say so: who asks for its state waits
	onReserve atomic.Pointer[func()]
	reserves  atomic.Int64
}

// away reports whether the server of a partition is.
func (f *flaky) away(p int) bool { return f.cut.Load() || f.dead.Load() == int64(p)+1 }

var errCut = errors.New("the connection is cut")

func (f *flaky) Reserve(ctx context.Context, call ledger.ReserveCall) (ledger.ReserveReply, error) {
	if f.away(call.Partition) {
		return ledger.ReserveReply{}, errCut
	}
	f.reserves.Add(1)
	reply, err := f.Local.Reserve(ctx, call)
	if g := f.onReserve.Swap(nil); g != nil {
		(*g)()
	}
	return reply, err
}

func (f *flaky) Release(ctx context.Context, calls []ledger.ReleaseCall) error {
	if f.deaf.Load() || slices.ContainsFunc(calls, func(c ledger.ReleaseCall) bool { return f.away(c.Partition) }) {
		return errCut
	}
	return f.Local.Release(ctx, calls)
}

func (f *flaky) Holds(ctx context.Context, partition int, incarnation ledger.ID) ([]ledger.OpenHold, error) {
	if f.hangs.Load() && f.away(partition) {
		<-ctx.Done()
	}
	if err := ctx.Err(); err != nil { // as a connection does
		return nil, err
	}
	return f.Local.Holds(ctx, partition, incarnation)
}

func (f *flaky) State(ctx context.Context, partitions ...int) ([]ledger.Counters, error) {
	if f.mute.Load() || slices.ContainsFunc(partitions, f.away) {
		if f.hangs.Load() {
			<-ctx.Done()
		}
		return nil, errCut
	}
	if err := ctx.Err(); err != nil { // as a connection does
		return nil, err
	}
	return f.Local.State(ctx, partitions...)
}

func behind(f *flaky) func(*nodeConfig) {
	return func(c *nodeConfig) { c.counters = f }
}

// live is a stream that a test reads as it comes.
type live struct {
	*node
	resp *http.Response
	body []byte
	next chan string
	done chan error
	mu   sync.Mutex
}

// handFed makes channel 1 lead to an upstream that streams what tests feed it, each request from its own channel.
func (s *stack) handFed() chan chan string {
	feeds := make(chan chan string, 1)
	s.sql("UPDATE channels SET base_url = ? WHERE id = 1", s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		next := <-feeds
		for {
			select {
			case piece, ok := <-next:
				if !ok {
					return
				}
				_, _ = io.WriteString(w, piece)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	return feeds
}

// stream begins a stream on a hand-fed upstream, with one piece of text.
func (n *node) stream(key string, feeds chan chan string, more ...string) *live {
	n.Helper()
	l := &live{node: n, next: make(chan string), done: make(chan error, 1)}
	feeds <- l.next
	fed := make(chan struct{})
	go func() { defer close(fed); l.next <- contentChunk(" the") }()
	var err error
	l.resp, err = n.http.Client().Do(n.newRequest(n.Context(), key, chatPath, chat("", append([]string{streamed}, more...)...)))
	n.must(err)
	<-fed
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := l.resp.Body.Read(buf)
			l.mu.Lock()
			l.body = append(l.body, buf[:k]...)
			l.mu.Unlock()
			if err != nil {
				l.done <- err
				return
			}
		}
	}()
	n.Cleanup(func() { _ = l.resp.Body.Close() })
	return l
}

func (l *live) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.body)
}

// end waits for the end of the stream and returns all of it.
func (l *live) end() *reply {
	l.Helper()
	select {
	case err := <-l.done:
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return &reply{l.resp.StatusCode, l.resp.Header, l.text(), err}
	case <-time.After(patience):
		l.Fatalf("the stream does not end; so far %s", l.text())
		return nil
	}
}

const wholeEnd = finishChunk + `data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}` + "\n\ndata: [DONE]\n\n"

// The counters are lost while requests are open: new requests are told to come back, the open ones go on, their holds are in the
// new epoch, and every charge is exact.
func TestCountersLost(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	n := s.start()
	a := n.account(start, start)
	before := n.epoch(a.user)
	l := n.stream(a.key, feeds)
	n.clerk.mu.Lock()
	n.counters.Flush()
	n.await("the node to notice", func() bool { open, _ := n.desk.Open(); return open == 0 })
	if got := n.post(a.key, chatPath, chat("")); got.status != 503 || got.fault() != "counters_rebuilding" || got.header.Get("Retry-After") != "1" {
		t.Errorf("%d %s", got.status, got.body)
	}
	l.next <- contentChunk(" the") // open requests do not mind
	n.clerk.mu.Unlock()
	n.ready()
	p := ledger.Partition(a.user, partitions)
	hot, err := n.counters.Accounts(t.Context(), p, []ledger.Account{a.users, a.tokens})
	n.must(err)
	for _, h := range hot {
		if h.OpenHolds != 1 || h.Held == 0 {
			t.Errorf("in the new epoch: %+v", h)
		}
	}
	l.next <- wholeEnd
	got := l.end()
	if _, finish, _, done := readStream(t, got.body); finish[0] != "stop" || !done {
		t.Errorf("ended with %v", finish)
	}
	ev := n.event(got.request())
	if now := n.epoch(a.user); ev.Charged != price(9, 2) || now <= before || ev.Hold.Epoch != now {
		t.Errorf("event %+v of hold %+v; epochs %d and %d", ev, ev.Hold, before, now)
	}
	if left := n.left(a.users, a.user); left != start-ev.Charged {
		t.Errorf("%d units are left", left)
	}
}

func (n *node) epoch(user int64) uint64 {
	n.Helper()
	states, err := n.counters.State(n.Context(), ledger.Partition(user, partitions))
	n.must(err)
	return states[0].Epoch
}

// A stream whose hold has to grow while an epoch is rebuilt waits for it, instead of ending.
func TestExtensionWaitsForEpoch(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	n := s.start(slices64)
	a := n.account(start, start)
	l := n.stream(a.key, feeds)
	n.clerk.mu.Lock()
	n.counters.Flush()
	n.await("the node to notice", func() bool { open, _ := n.desk.Open(); return open == 0 })
	go func() {
		for range 400 {
			l.next <- contentChunk(" the")
		}
		l.next <- finishChunk + "data: [DONE]\n\n"
	}()
	n.clerk.mu.Unlock()
	got := l.end()
	if pieces, finish, _, done := readStream(t, got.body); pieces[0] != 401 || finish[0] != "stop" || !done {
		t.Errorf("%v pieces, ended with %v", pieces, finish)
	}
	ev := n.event(got.request())
	if ev.Charged != price(counted, 401) || ev.Hold.Amount < ev.Charged {
		t.Errorf("charged %d of a hold of %d", ev.Charged, ev.Hold.Amount)
	}
	if left := n.left(a.users, a.user); left != start-ev.Charged {
		t.Errorf("%d units are left", left)
	}
}

// An epoch opens without the node, which was out of reach: its requests end cleanly, and are charged what was streamed.
func TestMissedEpoch(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	before := n.epoch(a.user)
	asked := n.stream(a.key, feeds, `"stream_options":{"include_usage":true}`)
	quiet := n.stream(a.key, feeds)
	f.mute.Store(true)
	n.clerk.mu.Lock()
	producers, err := n.db.Producers(t.Context())
	n.must(err)
	for _, p := range producers {
		n.clerk.ignore[p.ID] = true
	}
	n.clerk.mu.Unlock()
	n.counters.Flush()
	n.await("an epoch without the node", func() bool {
		states, err := n.counters.State(t.Context(), 0, 1)
		n.must(err)
		return states[0].Open && states[1].Open && states[0].Epoch > before
	})
	f.mute.Store(false)
	for _, l := range []*live{asked, quiet} {
		got := l.end()
		pieces, finish, last, done := readStream(t, got.body)
		if pieces[0] != 1 || finish[0] != "length" || !done {
			t.Errorf("%v pieces, ended with %v, %v", pieces, finish, done)
		}
		if u := last.Usage; l == asked && (u == nil || u.Prompt != counted || u.Completion != 1) {
			t.Errorf("ended with %+v", last)
		}
		if ev := n.event(got.request()); ev.Charged != price(counted, 1) || ev.Hold.Epoch != before {
			t.Errorf("event %+v of hold %+v", ev, ev.Hold)
		}
	}
	n.ready()
	if left := n.left(a.users, a.user); left != start-n.charged() {
		t.Errorf("%d units are left", left)
	}
	l := n.stream(a.key, feeds)
	l.next <- wholeEnd
	if got := l.end(); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// The same for requests of which nothing was sent yet: they cost nothing, and their clients are told to come back.
func TestMissedEpochBeforeFirstByte(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	answers := make(chan *reply, 2)
	for i, more := range []string{streamed, `"n":1`} {
		go func() { answers <- n.post(a.key, chatPath, chat("first=1h", more)) }()
		n.await("the upstream to be asked", func() bool { return n.up.Report().Active == int64(i+1) })
	}
	f.mute.Store(true)
	n.clerk.mu.Lock()
	producers, err := n.db.Producers(t.Context())
	n.must(err)
	for _, p := range producers {
		n.clerk.ignore[p.ID] = true
	}
	n.clerk.mu.Unlock()
	before := n.epoch(a.user)
	n.counters.Flush()
	n.await("an epoch without the node", func() bool {
		states, err := n.counters.State(t.Context(), ledger.Partition(a.user, partitions))
		n.must(err)
		return states[0].Open && states[0].Epoch > before
	})
	f.mute.Store(false)
	for range 2 {
		if got := <-answers; got.status != 503 || got.fault() != "counters_rebuilding" || got.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	n.ready()
	n.wantNothing(t, a, 0)
}

// A reply that arrives after its epoch has ended counts as lost: the request is served in the new epoch or told to come back, and
// nothing of the old hold stays.
func TestReplyOfAnEndedEpoch(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	if got := n.post(a.key, chatPath, chat("")); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	before := n.epoch(a.user)
	lose := func() {
		n.clerk.mu.Lock()
		f.Flush()
		n.await("the node to notice", func() bool { open, _ := n.desk.Open(); return open == 0 })
		n.clerk.mu.Unlock()
		n.ready()
	}
	f.onReserve.Store(&lose)
	got := n.post(a.key, chatPath, chat("completion=5;prompt=40"))
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if ev := n.event(got.request()); ev.Hold.Epoch != n.epoch(a.user) || ev.Hold.Epoch == before || ev.Charged != price(40, 5) {
		t.Errorf("event %+v of hold %+v", ev, ev.Hold)
	}
	n.wantNothing(t, a, 2)
}

// Counters out of reach: no free pass, and what ended meanwhile is settled when they are back.
func TestCountersOutOfReach(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	f := &flaky{Local: s.counters}
	n := s.start(behind(f))
	a := n.account(start, start)
	l := n.stream(a.key, feeds)
	f.cut.Store(true)
	got := n.post(a.key, chatPath, chat(""))
	if got.status != 503 || got.fault() != "counters_unreachable" || got.header.Get("Retry-After") != "1" {
		t.Errorf("%d %s", got.status, got.body)
	}
	l.next <- wholeEnd
	if got := l.end(); got.status != 200 || got.err != nil {
		t.Errorf("%d %v", got.status, got.err)
	}
	f.cut.Store(false)
	n.wantNothing(t, a, 1)
}

// Holds that the node does not know, such as those of a reserve that was executed after its caller gave up, are voided; those
// that it knows are left alone.
func TestSweep(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	n := s.start()
	a := n.account(start, start)
	l := n.stream(a.key, feeds)
	p := ledger.Partition(a.user, partitions)
	n.holdUnknown(a)
	n.await("the unknown hold to be voided", func() bool {
		hot, err := n.counters.Accounts(t.Context(), p, []ledger.Account{a.users})
		n.must(err)
		if hot[0].OpenHolds == 0 {
			t.Fatal("the known hold was voided")
		}
		return hot[0].OpenHolds == 1
	})
	l.next <- wholeEnd
	l.end()
	n.wantNothing(t, a, 1)
}

// A node that was given up while it lives: its requests end, what was streamed is charged, and it goes on as a new incarnation.
func TestGivenUp(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	n := s.start()
	a := n.account(start, start)
	l := n.stream(a.key, feeds)
	producers, err := n.db.Producers(t.Context())
	n.must(err)
	old := producers[0].ID
	n.await("it to be given up", func() bool {
		producers, err := n.db.Producers(t.Context())
		n.must(err)
		gone, err := n.db.GiveUp(t.Context(), old, producers[0].Beat)
		n.must(err)
		return gone
	})
	got := l.end()
	if pieces, finish, _, done := readStream(t, got.body); pieces[0] != 1 || finish[0] != "length" || !done {
		t.Errorf("%v pieces, ended with %v", pieces, finish)
	}
	if ev := n.event(got.request()); ev.Charged != price(counted, 1) || ev.Producer != old {
		t.Errorf("event %+v", ev)
	}
	n.await("the old incarnation to be closed", func() bool { return n.adopted() == 0 })
	n.ready()
	l = n.stream(a.key, feeds)
	l.next <- wholeEnd
	got = l.end()
	if ev := n.event(got.request()); ev.Charged != price(9, 2) || ev.Producer == old {
		t.Errorf("event %+v", ev)
	}
	n.wantNothing(t, a, 2)
}

// A node dies and the counters are lost: the epoch waits for the dead one until somebody adopts its journal and reports for it.
func TestAdoptedWhileRebuilding(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	feeds := s.handFed()
	disk := journaltest.NewDisk(1)
	process := disk.Process()
	dead := s.start(onDisk(process))
	a := dead.account(start, start)
	l := dead.stream(a.key, feeds)
	other := s.start(onDisk(disk.Process()))
	before := other.epoch(a.user)
	other.counters.Flush()
	process.Kill() // its lock is free now; it may have re-asserted, but it cannot report
	dead.stop()
	other.await("a new epoch", func() bool {
		open, all := other.desk.Open()
		return open == all && other.epoch(a.user) > before
	})
	_ = l.resp.Body.Close()
	other.await("the journal to be closed", func() bool { return other.adopted() == 0 })
	events := other.clerk.usage()
	if len(events) != 1 || events[0].Kind != ledger.KindUsageRecovered || events[0].Usage.Completion != 1 {
		t.Errorf("events %+v", events)
	}
	if left := other.left(a.users, a.user); left != start-other.charged() {
		t.Errorf("%d units are left", left)
	}
}

// Losses of the counters in the middle of traffic, again and again: every answer is billed once, nothing is held at the end, and
// the account does not go below zero.
func TestCountersLostUnderTraffic(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.OutputSlice = 16 }
	})
	const quota = 600_000
	a := n.account(quota, -1)
	b := n.key(a.user, quota/2, func(*sqlstore.TokenRow) {})
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served, cost atomic.Int64
	for i := range 12 {
		key := a.key
		if i%2 == 0 {
			key = b.key
		}
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := n.post(key, chatPath, chat("completion=60;prompt=8;delay=200us", streamed, `"stream_options":{"include_usage":true}`))
				if got.status != 200 {
					continue
				}
				_, _, last, done := readStream(t, got.body)
				if !done || last.Usage == nil {
					t.Errorf("a stream ended with %+v", last)
					return
				}
				served.Add(1)
				cost.Add(price(last.Usage.Prompt, last.Usage.Completion))
			}
		})
	}
	for range 6 {
		want := served.Load() + 12
		n.await("traffic", func() bool { return served.Load() >= want || len(n.clerk.usage()) > 150 })
		n.counters.Flush()
		n.ready()
	}
	close(stop)
	clients.Wait()
	n.ready()
	left := n.left(a.users, a.user)
	if left < 0 || left != quota-n.charged() || n.charged() != cost.Load() || int64(len(n.clerk.usage())) != served.Load() {
		t.Errorf("%d units are left; %d answers of %d units, %d events of %d", left, served.Load(), cost.Load(), len(n.clerk.usage()), n.charged())
	}
	if left := n.left(b.tokens, a.user); left < 0 {
		t.Errorf("the key stands at %d", left)
	}
}

// holdUnknown takes a hold in the node's name that the node knows nothing of.
func (n *node) holdUnknown(a account) {
	n.Helper()
	p := ledger.Partition(a.user, partitions)
	states, err := n.counters.State(n.Context(), p)
	n.must(err)
	reply, err := n.counters.Reserve(n.Context(), ledger.ReserveCall{
		Hold: ledger.ID{1}, Incarnation: states[0].Members[0], Partition: p, Epoch: states[0].Epoch, User: a.user, Token: a.token, Want: 1000,
	})
	if n.must(err); reply.Outcome != ledger.OutcomeGranted {
		n.Fatalf("%+v", reply)
	}
}
