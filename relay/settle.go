package relay

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"ledgerline/ledger"
	"ledgerline/relay/dialect"
	"ledgerline/relay/meter"
)

// FlagCapped marks a charge that was cut to the hold because the relay itself ended the stream when the quota was used up.
const FlagCapped = "capped_at_hold"

const (
	// settleTimeout bounds the wait for the journal's fsync. It outlives the client: the bill is written even if nobody is listening any more.
	settleTimeout = 30 * time.Second
	// settleShare is how much longer such a wait may last, so that all that begin within it have one context: one of its own costs a request
	// six allocations.
	settleShare = time.Second
)

// settling is the context of the waits for the journal that begin now. The zero value is ready.
type settling struct {
	mu    sync.Mutex
	begun time.Time
	ctx   context.Context
}

// within returns a context that ends after settleTimeout, or up to settleShare later.
func (s *settling) within() context.Context {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || now.Sub(s.begun) >= settleShare {
		ctx, end := context.WithCancelCause(context.Background())
		time.AfterFunc(settleTimeout+settleShare, func() { end(context.DeadlineExceeded) })
		s.begun, s.ctx = now, ctx
	}
	return s.ctx
}

// settle makes the usage event of what the meter found and waits until it is durable. After it returns nil, and only then, the last
// byte may go out (L1). capped is set when the relay ended the stream: then the hold is all that may be charged.
func (x *exchange) settle(result *meter.Result, capped bool) error {
	ev := x.newEvent(result)
	bill, err := x.bill(result.Usage)
	if err != nil {
		// The quote was there when the hold was taken, so this is an expression that failed on these figures: the
		// hold's own price, the upper bound, is charged, and the event says so.
		x.s.log.Error("a bill could not be computed; the hold is charged", "request", x.id, "error", err)
		bill.Quota, bill.Rating = x.ticket.Amount(), x.quote.Rating()
		ev.Flags = append(ev.Flags, "rating_failed")
	}
	ev.Charged, ev.Rating = bill.Quota, &bill.Rating
	if held := x.ticket.Amount(); ev.Charged > held && !x.quote.Free() {
		if capped {
			ev.Charged = held
			ev.Flags = append(ev.Flags, FlagCapped)
		} else {
			x.s.metrics.excess.Add(float64(ev.Charged - held))
		}
	}
	if u := result.Usage; u.Prompt > 0 || u.Completion > 0 || ev.Charged > 0 {
		ev.Requests = 1
	}
	ticket := x.ticket
	x.ticket = nil
	if err := ticket.Settle(x.s.settles.within(), ev); err != nil {
		return err
	}
	x.event = ev
	x.s.metrics.charged.Add(float64(ev.Charged))
	x.s.charged.Add(ev.Charged)
	return nil
}

func (x *exchange) newEvent(result *meter.Result) *ledger.Event {
	now := x.s.now()
	info := x.requestInfo()
	info.Status, info.Retries, info.Upstream = x.status, x.retries, x.upstream
	if x.sent != x.req.Model {
		info.Sent = x.sent
	}
	info.TotalMS = now.Sub(x.start).Milliseconds()
	info.FirstMS = info.TotalMS
	if !x.first.IsZero() {
		info.FirstMS = x.first.Sub(x.start).Milliseconds()
	}
	usage := result.Usage
	ev := &ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: ledger.ID(uuid.Must(uuid.NewV7())),
		Time: now.UnixMilli(), Node: x.s.cfg.Node,
		User: x.user.ID, Token: x.token.ID, Channel: x.channel.ID,
		Request: &info, Usage: &usage, Source: result.Source,
	}
	for _, flag := range result.Flags {
		x.s.metrics.anomalies.WithLabelValues(flag).Inc()
	}
	ev.Flags = append(ev.Flags, result.Flags...)
	return ev
}

func (x *exchange) meterConfig() meter.Config {
	return meter.Config{Kind: dialect.UsageKindOf(x.channel.Type, x.endpoint.Path()), Model: x.req.Model, Prompt: x.prompt}
}
