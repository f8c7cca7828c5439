package relay

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"ledgerline/relay/dialect"
	"ledgerline/relay/meter"
	"ledgerline/relay/sse"
)

const (
	// maxHeld bounds what is kept back of a stream until its usage event is durable, in bytes: the finish of 128 choices,
	// usage and [DONE] are far below.
	maxHeld = 256 << 10
	// lateWait is how long the relay goes on reading behind [DONE], for an upstream that reports its usage there. Most
	// close the stream with it; the client waits for those that do not.
	lateWait = 500 * time.Millisecond
)

// streaming is one stream on its way through.
type streaming struct {
	x       *exchange
	meter   *meter.Meter
	scan    *sse.Scanner
	batch   sse.Batch
	room    *readRoom
	conn    *clientConn // nil: it is no connection that gathers
	held    []byte      // events kept back until the usage event is durable
	checkAt int64       // guessed tokens at which the hold is extended
	countAt int64       // bytes of text at which it is counted again, once the hold is final
	final   bool        // an extension was refused: paid is all there is
	done    bool        // [DONE] came: whatever follows is kept back with it
	ended   bool        // the relay ended the stream because the quota is used up
	gone    bool        // the client is gone
	broken  bool        // the stream was not a stream (an event too long)
	failure error       // the open record is not durable: nothing may go out
	nextDue time.Time
}

// watchdog ends a wait for the upstream that takes too long: for the head of its answer, then for each chunk. Only that counts: while a
// chunk waits for the client, or for more quota, the upstream is not silent.
type watchdog struct {
	timer   *time.Timer
	reading atomic.Bool
}

// newWatchdog begins to wait.
func newWatchdog(cancel context.CancelFunc, patience time.Duration) *watchdog {
	w := &watchdog{}
	w.reading.Store(true)
	w.timer = time.AfterFunc(patience, func() {
		if w.reading.Load() {
			cancel()
		}
	})
	return w
}

func (w *watchdog) read(r io.Reader, buf []byte, patience time.Duration) (int, error) {
	w.timer.Reset(patience)
	w.reading.Store(true)
	n, err := r.Read(buf)
	w.reading.Store(false)
	return n, err //nolint:wrapcheck // io.EOF has to stay io.EOF
}

// stream relays a stream byte-exact, flushed per upstream read, and keeps its last events back until the usage event is
// durable (L1).
func (x *exchange) stream(ctx context.Context, cancel context.CancelFunc, resp *http.Response) {
	st := x.newStreaming(resp.Body)
	defer st.room.release()
	st.relay(ctx, resp.Body)
	cancel() // the upstream stops producing what nobody will get
	st.finish()
}

// newStreaming waits for the open record: nothing goes out before (L1). What comes meanwhile is read in one piece.
//
// It is apart from stream, and relay from both: what a waiting stream has on its stack is kept small, for a few hundred bytes more
// double it, from 8 to 16 KB.
func (x *exchange) newStreaming(from io.Reader) *streaming {
	st := &streaming{
		x: x, scan: sse.NewScanner(x.s.cfg.MaxEvent), meter: meter.New(x.meterConfig()),
		conn: gatheringConn(x.r),
	}
	st.planExtension()
	st.recorded()
	known, ok := from.(interface{ Buffered() int })
	st.room = newReadRoom(&x.s.spare, ok && known.Buffered() > 0)
	return st
}

// relay passes on what comes until the stream ends, on either side.
func (st *streaming) relay(ctx context.Context, from io.Reader) {
	x := st.x
	patience, until := x.s.cfg.StreamingTimeout, time.Time{}
	for st.going() {
		if st.done {
			if until.IsZero() {
				until = time.Now().Add(lateWait)
			}
			patience = time.Until(until)
		}
		buf := *st.room.buf
		n, err := x.watch.read(from, buf[unfinishedRoom:], patience)
		if n > 0 {
			if ferr := st.scan.FeedBehind(buf[:unfinishedRoom+n], unfinishedRoom); ferr != nil {
				x.s.log.Warn("an upstream's event is larger than allowed; the stream ends", "request", x.id, "channel", x.channel.ID)
				st.broken = true
				break
			}
			st.pump(ctx)
		}
		st.room.took(n)
		if err != nil {
			st.gone = st.gone || !errors.Is(err, io.EOF) && x.r.Context().Err() != nil
			break
		}
	}
}

func (st *streaming) going() bool {
	return !st.ended && !st.gone && !st.broken && st.failure == nil
}

// pump passes on the events that are complete.
func (st *streaming) pump(ctx context.Context) {
	for {
		st.run()
		ev, ok := st.scan.Next()
		if !ok || !st.event(ctx, ev) {
			break
		}
	}
	st.flush()
}

// run passes on what nearly all events of a stream are: text that is paid for, and nothing about which event has to decide.
func (st *streaming) run() {
	if len(st.held) > 0 {
		return
	}
	ahead := st.scan.Ahead()
	pieces, size := st.paidFor()
	n := st.meter.Run(ahead, pieces, size)
	st.batch.Add(ahead[:n])
	st.scan.Skip(n)
}

// event decides on one event and reports whether the stream goes on.
func (st *streaming) event(ctx context.Context, ev sse.Event) bool {
	step := st.meter.Data(ev.Data)
	if step.Content && st.x.extends && !st.pay(ctx) {
		// Nothing goes out that is not paid for. What came before stays, and the hold pays for all of it.
		st.ended = true
		return false
	}
	st.done = st.done || step.Done
	last := step.Finish || step.UsageOnly || len(st.held) > 0 && !step.Content
	switch {
	case step.UsageOnly && !st.x.req.IncludeUsage && st.x.s.cfg.ForceUsage:
		// The relay asked for it, the client did not.
	case st.done && len(st.held)+len(ev.Raw) > maxHeld:
		st.broken = true // nobody sends that much behind an end
		return false
	case st.done || last && len(st.held)+len(ev.Raw) <= maxHeld:
		st.held = append(st.held, ev.Raw...)
	default:
		st.pass(ev.Raw)
	}
	return true
}

// pass queues bytes for the client. What was held back goes first: it was not the end after all.
func (st *streaming) pass(raw []byte) {
	if len(st.held) > 0 {
		st.held = append(st.held, raw...)
		st.batch.Add(st.held)
		st.held = nil
		return
	}
	st.batch.Add(raw)
}

// flush sends the queue. The journal's slot is raised before the client gets anything (DESIGN 5); the open record is durable (L1).
func (st *streaming) flush() {
	out := st.batch.Bytes()
	if len(out) == 0 {
		return
	}
	defer st.batch.Reset()
	x := st.x
	if !x.wrote {
		x.first = x.s.now()
		x.beginStream()
	}
	tokens, size := st.meter.Streamed()
	x.ticket.Progress(tokens, size)
	if now := x.s.now(); now.After(st.nextDue) {
		st.nextDue = now.Add(x.s.cfg.ClientTimeout / 4) // so that moving it costs nothing per chunk
		x.writeWithin()
	}
	st.gone = st.write(out) != nil || st.gone
}

// recorded waits for the open record. If that is not durable in time, the stream ends in failure.
func (st *streaming) recorded() {
	st.failure = st.x.ticket.Durable(st.x.s.settles.within())
}

// write sends a piece of a stream.
func (st *streaming) write(piece []byte) (err error) {
	if st.conn != nil && len(piece) >= gatherFrom {
		st.conn.gather(piece)
		defer func() { err = errors.Join(err, st.conn.release()) }()
	}
	if _, err := st.x.w.Write(piece); err != nil {
		return err //nolint:wrapcheck // it says no more than that the client is gone
	}
	return st.x.rc.Flush() //nolint:wrapcheck // as above
}

// The header's values of every stream, which nobody changes.
var eventStream, noCache, no = []string{"text/event-stream"}, []string{"no-cache"}, []string{"no"}

// beginStream sends the head of a streamed response.
func (x *exchange) beginStream() {
	x.wrote, x.status = true, http.StatusOK
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"], h["X-Accel-Buffering"] = eventStream, noCache, no
	x.w.WriteHeader(http.StatusOK)
}

// finish settles and sends the rest.
func (st *streaming) finish() {
	x := st.x
	if st.going() {
		for ev, ok := st.scan.Flush(); ok && st.event(x.r.Context(), ev); {
			ev, ok = st.scan.Flush()
		}
		st.flush()
	}
	if st.failure != nil {
		x.void() // the client got nothing
		x.failSettle(st.failure)
		return
	}
	cut := x.ticket.WasCut()
	result := st.meter.Finish(!st.going() || cut)
	if result.Failed {
		st.fail(cut)
		return
	}
	limited := (st.ended || cut) && !st.done
	if st.ended {
		// The piece that crossed the line was not sent.
		result.Usage.Completion = min(result.Usage.Completion, x.paid)
	}
	x.status = http.StatusOK
	if err := x.settle(&result, limited); err != nil {
		// The last events are withheld: the client sees a broken stream, and the journal bills what it got.
		x.failSettle(err)
		return
	}
	if st.gone {
		return
	}
	out := st.held
	if limited {
		out = st.appendEnd(out, &result)
	}
	st.send(out)
}

// fail ends a stream that brought no answer: nothing is owed.
func (st *streaming) fail(cut bool) {
	x := st.x
	x.void()
	switch {
	case x.wrote:
		x.code = "upstream_failed"
		if !st.gone {
			st.send(st.held)
		}
	case st.gone:
		x.fail(clientGone())
	case cut:
		x.retryAfter = 1
		x.fail(rebuilding())
	default:
		x.fail(problem(http.StatusInternalServerError, "empty_response", "the upstream ended its answer before it began"))
	}
}

// appendEnd appends a clean end to a stream that the quota pays no further.
func (st *streaming) appendEnd(out []byte, result *meter.Result) []byte {
	x := st.x
	out = dialect.AppendLengthEnd(out, x.endpoint, st.meter.Head(), st.meter.OpenChoices(x.req.Outputs))
	if x.req.IncludeUsage {
		out = dialect.AppendUsageChunk(out, x.endpoint, st.meter.Head(), result.Usage.Prompt, result.Usage.Completion)
	}
	return append(out, dialect.DoneEvent...)
}

// send sends the last bytes. The client has been billed; if it left, there is nobody to tell.
func (st *streaming) send(out []byte) {
	x := st.x
	if !x.wrote {
		x.beginStream()
	}
	x.writeWithin()
	_, _ = x.w.Write(out) // not flushed: it leaves in one write with the end of the answer
}
