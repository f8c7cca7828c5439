package relay

import (
	"context"
	"math"
)

// How a stream whose client named no bound stays paid for (DESIGN 6). Its hold covers a slice of output. Half a slice before
// the end the hold is extended, which near the limit of an account is refused; then what is left is taken, and from there
// on every token counts: the text itself is counted, ever more often as the end comes near.

// bytesPerToken is what few tokens are shorter than, see guess.
const bytesPerToken = 3

// planExtension sets the guess at which more is asked for. Half a slice is what it may be too low.
func (st *streaming) planExtension() {
	if st.x.extends {
		st.checkAt = st.x.paid - st.x.s.cfg.OutputSlice*st.x.req.Outputs/2
	}
}

// guess is how many tokens have come, without counting: hardly any text has more than one in three bytes, and hardly any
// upstream sends less than one in a piece. Where it is too low, the bill is cut at the end of the quota.
func (st *streaming) guess() int64 {
	chunks, size := st.meter.Content()
	return max(chunks, size/bytesPerToken)
}

// pay sees to it that the text so far is paid for, and reports whether it is.
func (st *streaming) pay(ctx context.Context) bool {
	for !st.final && st.guess() >= st.checkAt {
		st.extend(ctx)
	}
	if !st.final {
		return true
	}
	_, size := st.meter.Content()
	if size < st.countAt {
		return true
	}
	left := st.x.paid - st.meter.Counted()
	// A token is a byte at least, so that many bytes can pass uncounted.
	st.countAt = size + max(left, 1)
	return left >= 0
}

// paidFor returns the pieces and bytes of text below which pay has nothing to do.
func (st *streaming) paidFor() (pieces, textBytes int64) {
	switch {
	case !st.x.extends:
		return math.MaxInt64, math.MaxInt64
	case st.final:
		return math.MaxInt64, st.countAt
	}
	return st.checkAt, bytesPerToken * st.checkAt
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
	// What is left changes while others spend it, and the answer names one of two accounts: a few tries find the poorer one.
	for try := 0; err == nil && !granted && left > 0 && try < 4; try++ {
		granted, left, err = x.ticket.Extend(ctx, x.ticket.Amount()+left)
	}
	if err != nil {
		x.s.log.Warn("a hold could not be extended; the stream goes on as far as it is paid", "request", x.id, "error", err)
	}
	x.paid = x.outputFor(x.ticket.Amount())
	st.countAt = 0
}
