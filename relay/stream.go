package relay

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"ledgerline/relay/dialect"
	"ledgerline/relay/meter"
	"ledgerline/relay/sse"
)

// deadlineEvery is how often a stream's write deadline is moved, so that moving it costs nothing per chunk.
const deadlineEvery = clientPatience / 4

// maxHeld bounds what is kept back of a stream until its usage event is durable, in bytes: the finish of 128 choices,
// usage and [DONE] are far below.
const maxHeld = 256 << 10

// streaming is one stream on its way through.
type streaming struct {
	x       *exchange
	meter   *meter.Meter
	scan    *sse.Scanner
	batch   sse.Batch
	held    []byte // events kept back until the usage event is durable
	checkAt int64  // progress at which the hold is extended or, when it is final, the text is counted
	final   bool   // an extension was refused: paid is all there is
	ended   bool   // the relay ended the stream because the quota is used up
	gone    bool   // the client is gone
	broken  bool   // the stream was not a stream (an event too long)
	nextDue time.Time
}

// stream relays a stream byte-exact, flushed per upstream read, and keeps its last events back until the usage event is
// durable (L1).
func (x *exchange) stream(ctx context.Context, cancel context.CancelFunc, resp *http.Response) {
	buf := x.s.buffers.Get().(*[streamReadBuffer]byte)
	defer x.s.buffers.Put(buf)
	st := &streaming{
		x: x, scan: sse.NewScanner(x.s.cfg.MaxEvent),
		meter: meter.New(x.meterConfig()),
	}
	st.planExtension()
	silence := time.AfterFunc(x.s.cfg.StreamingTimeout, cancel)
	defer silence.Stop()
	for !st.ended && !st.gone && !st.broken {
		n, err := resp.Body.Read(buf[:])
		silence.Reset(x.s.cfg.StreamingTimeout)
		if n > 0 {
			if ferr := st.scan.Feed(buf[:n]); ferr != nil {
				x.s.log.Warn("an upstream's event is larger than allowed; the stream ends", "request", x.id, "channel", x.channel.ID)
				st.broken = true
				break
			}
			st.pump(ctx)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && x.r.Context().Err() != nil {
				st.gone = true
			}
			break
		}
	}
	cancel() // the upstream stops producing what nobody will get
	st.finish()
}

// pump passes on the events that are complete.
func (st *streaming) pump(ctx context.Context) {
	for {
		ev, ok := st.scan.Next()
		if !ok || !st.event(ctx, ev) {
			break
		}
	}
	st.flush()
}

// event decides on one event and reports whether the stream goes on.
func (st *streaming) event(ctx context.Context, ev sse.Event) bool {
	if ev.Data == nil {
		st.pass(ev.Raw)
		return true
	}
	step := st.meter.Data(ev.Data)
	if step.Content && st.x.extends {
		// Before the event goes out, so that nothing is sent that is not paid for. A piece of several tokens may cross the line;
		// then the hold is all that is charged.
		st.ended = !st.pay(ctx)
	}
	switch {
	case step.UsageOnly && !st.x.req.IncludeUsage && st.x.s.cfg.ForceUsage:
		// The relay asked for it, the client did not.
	case (step.Finish || step.UsageOnly || step.Done) && len(st.held) < maxHeld:
		st.held = append(st.held, ev.Raw...)
	default:
		st.pass(ev.Raw)
	}
	return !st.ended
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

// flush sends the queue. The journal's slot is raised before the client gets anything (DESIGN 5), and the first byte waits for the
// open record (L1).
func (st *streaming) flush() {
	out := st.batch.Bytes()
	if len(out) == 0 {
		return
	}
	defer st.batch.Reset()
	x := st.x
	if !x.wrote && !st.begin() {
		return
	}
	chunks, size := st.meter.Content()
	x.ticket.Progress(chunks, size)
	if now := x.s.now(); now.After(st.nextDue) {
		st.nextDue = now.Add(deadlineEvery)
		_ = x.rc.SetWriteDeadline(now.Add(clientPatience))
	}
	if _, err := x.w.Write(out); err != nil {
		st.gone = true
		return
	}
	if err := x.rc.Flush(); err != nil {
		st.gone = true
	}
}

// begin sends the head of the response, once the open record is durable.
func (st *streaming) begin() bool {
	x := st.x
	ctx, cancel := settleContext(x.r.Context())
	defer cancel()
	if err := x.ticket.Durable(ctx); err != nil {
		x.s.log.Error("a stream is withheld: its open record could not be made durable", "request", x.id, "error", err)
		st.gone = true
		x.status = http.StatusServiceUnavailable
		return false
	}
	x.wrote, x.status = true, http.StatusOK
	x.first = x.s.now()
	h := x.w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = []string{"no-cache"}
	h["X-Accel-Buffering"] = []string{"no"}
	x.w.WriteHeader(http.StatusOK)
	return true
}

// planExtension sets the progress at which more is asked for: a quarter of a slice before what is paid is used up, so that
// the stream rarely waits.
func (st *streaming) planExtension() {
	if st.x.extends {
		st.checkAt = st.x.paid - st.x.s.cfg.OutputSlice*st.x.req.Outputs/4
	}
}

// pay sees to it that what was streamed so far is paid for, and reports whether the stream may go on.
func (st *streaming) pay(ctx context.Context) bool {
	for st.meter.Progress() >= st.checkAt {
		if !st.final {
			st.extend(ctx)
			continue
		}
		// The hold is final, so every token counts. Progress guesses high where tokens are long: the text itself is counted,
		// ever more often as the end comes near.
		left := st.x.paid - st.meter.Counted()
		if left <= 0 {
			return false
		}
		st.checkAt = st.meter.Progress() + max(1, left/2)
	}
	return true
}

// extend asks for another slice of output; near the limit for what is left.
func (st *streaming) extend(ctx context.Context) {
	x := st.x
	slice := x.s.cfg.OutputSlice * x.req.Outputs
	granted, left, err := x.ticket.Extend(ctx, x.quote.Hold(x.req.PromptBound(), x.paid+slice))
	if granted {
		x.paid += slice
		st.planExtension()
		return
	}
	st.final = true
	if err != nil {
		x.s.log.Warn("a hold could not be extended; the stream goes on as far as it is paid", "request", x.id, "error", err)
	}
	held := x.ticket.Amount()
	if left > 0 {
		if ok, _, err := x.ticket.Extend(ctx, held+left); err == nil && ok {
			held = x.ticket.Amount()
		}
	}
	// From here on every unit counts: what the hold pays for is computed at the exact price of the counted prompt.
	x.paid = x.outputFor(held)
	st.checkAt = min(st.meter.Progress(), x.paid)
}

// finish settles and sends the rest.
func (st *streaming) finish() {
	x := st.x
	if !st.ended && !st.gone && !st.broken {
		if ev, ok := st.scan.Flush(); ok {
			st.event(context.WithoutCancel(x.r.Context()), ev)
			st.flush()
		}
	}
	cutByDesk := x.ticket.WasCut()
	stopped := st.ended || st.gone || st.broken || cutByDesk
	result := st.meter.Finish(stopped)
	if result.Failed && !x.wrote {
		x.void()
		x.fail(&dialect.Problem{
			Status: http.StatusInternalServerError, Code: "bad_response", Message: "the upstream failed before it answered",
		})
		return
	}
	if x.status == 0 {
		x.status = http.StatusOK
	}
	if err := x.settle(&result, st.ended || cutByDesk); err != nil {
		// The last events are withheld: the client sees a broken stream, and the journal bills what it got.
		x.s.log.Error("a stream's end is withheld: its usage could not be recorded", "request", x.id, "error", err)
		if !x.wrote {
			x.failSettle(err)
		}
		return
	}
	if st.gone {
		return
	}
	st.sendEnd(&result, st.ended || cutByDesk)
}

// sendEnd sends what was held back or, where the relay ended the stream, a clean end with finish reason "length".
func (st *streaming) sendEnd(result *meter.Result, length bool) {
	x := st.x
	out := st.held
	if length {
		out = dialect.AppendLengthEnd(nil, x.endpoint, st.meter.Head(), st.meter.OpenChoices(x.req.Outputs))
		if x.req.IncludeUsage {
			out = dialect.AppendUsageChunk(out, x.endpoint, st.meter.Head(), result.Usage.Prompt, result.Usage.Completion)
		}
		out = append(out, dialect.DoneEvent...)
	}
	if !x.wrote {
		h := x.w.Header()
		h["Content-Type"] = []string{"text/event-stream"}
		h["Cache-Control"] = []string{"no-cache"}
		h["X-Accel-Buffering"] = []string{"no"}
		x.wrote = true
		x.w.WriteHeader(http.StatusOK)
	}
	_ = x.rc.SetWriteDeadline(x.s.now().Add(clientPatience))
	if _, err := x.w.Write(out); err == nil {
		_ = x.rc.Flush() // the client has been billed; if it left, there is nobody to tell
	}
}
