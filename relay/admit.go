package relay

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/relay/desk"
	"ledgerline/relay/dialect"
	"ledgerline/relay/meter"
)

// read takes the whole body before anything is sent upstream: an upstream that answers at once cannot cut the
// client's upload then.
func (x *exchange) read() *dialect.Problem {
	body, p := x.readBody()
	if p != nil {
		return p
	}
	x.req, p = dialect.Parse(x.endpoint, body, x.s.limits)
	return p
}

func (x *exchange) readBody() ([]byte, *dialect.Problem) {
	limit := x.s.cfg.MaxBody
	_ = x.rc.SetReadDeadline(time.Now().Add(x.s.cfg.BodyTimeout)) // not every connection has deadlines; then the server's own bounds hold
	defer func() { _ = x.rc.SetReadDeadline(time.Time{}) }()
	if x.r.ContentLength > limit {
		return nil, x.tooLarge(limit)
	}
	var from io.Reader = http.MaxBytesReader(x.w, x.r.Body, limit)
	switch enc := strings.ToLower(strings.TrimSpace(x.r.Header.Get("Content-Encoding"))); enc {
	case "", "identity":
	case "gzip":
		unzip, err := gzip.NewReader(from)
		if err != nil {
			return nil, refused(http.StatusBadRequest, "", "Invalid request: the body is not gzip, as its Content-Encoding says")
		}
		from = io.LimitReader(unzip, limit+1)
	default:
		return nil, refused(http.StatusBadRequest, "", "Invalid request: Content-Encoding "+strconv.Quote(enc)+" is not supported; send identity or gzip")
	}
	return x.readAll(from, limit)
}

func (x *exchange) readAll(from io.Reader, limit int64) ([]byte, *dialect.Problem) {
	// Room for what is announced, but a client has to send before it gets more than the first MiB.
	body := make([]byte, 0, min(max(x.r.ContentLength, 512)+1, smallBody))
	for {
		if len(body) == cap(body) {
			var p *dialect.Problem
			if body, p = x.grow(body, limit); p != nil {
				return nil, p
			}
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if int64(len(body)) > limit {
			return nil, x.tooLarge(limit)
		}
		if errors.Is(err, io.EOF) {
			return body, nil
		}
		if err != nil {
			return nil, x.badRead(err, limit)
		}
	}
}

// badRead is for a body that broke off or took too long. What is left of it is not waited for.
func (x *exchange) badRead(err error, limit int64) *dialect.Problem {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return x.tooLarge(limit)
	}
	x.w.Header().Set("Connection", "close")
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refused(http.StatusRequestTimeout, codeBodyFailed, "the request body did not arrive in time")
	}
	return refused(http.StatusBadRequest, "", "Invalid request: the body could not be read to its end")
}

func (x *exchange) tooLarge(limit int64) *dialect.Problem {
	x.w.Header().Set("Connection", "close") // the rest of the body is not read
	return refused(http.StatusRequestEntityTooLarge, codeBodyFailed,
		"request body too large, at most "+strconv.FormatInt(limit>>20, 10)+" MiB are allowed")
}

// price looks up the unit prices for the group in x.group.
func (x *exchange) price() *dialect.Problem {
	quote, err := x.routes.Book.QuoteFor(ledger.QuoteKey{
		Model: x.req.Model, UserGroup: x.user.Group, Group: x.group, AcceptUnpriced: x.user.AcceptUnpriced,
		NotChat: x.endpoint != dialect.ChatCompletions,
	})
	if err != nil {
		return problem(http.StatusBadRequest, "model_price_error", err.Error())
	}
	x.quote = quote.For(x.req.Body, x.r.Header.Get)
	return nil
}

// admit takes the hold (DESIGN 6). What the request may cost at the most is priced from the bytes of its text; only near the
// limit is the prompt counted.
func (x *exchange) admit() *dialect.Problem {
	bound, output := x.req.PromptBound(), x.req.OutputBound()
	x.extends = output == 0 && x.endpoint.Generates()
	if x.extends {
		output = x.s.cfg.OutputSlice * x.req.Outputs
	}
	want := x.quote.Hold(bound, output)
	order := desk.Order{
		User: x.user.ID, Token: x.token.ID, TokenHeld: !x.token.Unlimited,
		Free: want == 0 && x.quote.Free(), Want: want,
		PreciseMin: func() int64 { return x.quote.Least(x.prompt()) },
		Open: journal.OpenRecord{
			Time: x.start.UnixMilli(), PromptTokens: x.promptEstimate(), Request: x.requestInfo(), Rating: x.quote.Rating(),
		},
	}
	ticket, err := x.s.cfg.Desk.Reserve(x.r.Context(), order)
	if err != nil {
		p, retry := x.admissionProblem(err)
		x.retryAfter = retry
		return p
	}
	x.ticket = ticket
	x.paid = output
	if held := ticket.Amount(); held < order.Want && !order.Free {
		return x.partial(held)
	}
	return nil
}

// partial lowers what may be generated to what a partial hold pays for, down to the unit: the prompt is counted, and
// the rest of the hold buys output.
func (x *exchange) partial(held int64) *dialect.Problem {
	if !x.endpoint.Generates() {
		return nil
	}
	x.lowered, x.extends = true, false
	x.paid = x.outputFor(held)
	x.limit = x.paid / x.req.Outputs
	if x.limit < 1 {
		x.ticket.Void()
		x.ticket = nil
		return problem(http.StatusForbidden, "insufficient_user_quota",
			"the remaining quota does not pay for "+strconv.FormatInt(x.req.Outputs, 10)+" answers; ask for fewer (n)")
	}
	return nil
}

// outputFor is how many output tokens a hold pays for after the counted prompt, at plain text prices.
func (x *exchange) outputFor(held int64) int64 { return x.quote.OutputFor(x.prompt(), held) }

// promptEstimate is what the prompt has in tokens as a rule. It is what a request is billed for whose node dies: the bound of
// the hold would bill several times too much.
func (x *exchange) promptEstimate() int64 {
	const bytesPerToken, perMessage = 4, 4
	return max(1, x.req.TextBytes/bytesPerToken+perMessage*int64(x.req.Messages)+x.req.MediaTypical+x.req.TokenInputs())
}

// prompt counts the prompt's tokens, once.
func (x *exchange) prompt() int64 {
	if x.promptTokens < 0 {
		x.promptTokens = meter.CountPrompt(&x.req)
	}
	return x.promptTokens
}

// bill prices what the meter found.
func (x *exchange) bill(u ledger.Usage) (ledger.Bill, error) {
	return x.quote.Rate(u, decimal.Decimal{})
}
