package relay

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/tidwall/gjson"

	"ledgerline/relay/dialect"
	"ledgerline/relay/meter"
	"ledgerline/relay/upstream"
)

// plain relays an answer in one piece: read whole, metered, its event made durable, then sent (L1).
func (x *exchange) plain(resp *http.Response) {
	body, err := upstream.ReadAnswer(resp, maxPlainAnswer)
	if err != nil {
		x.failRead(err)
		return
	}
	if !gjson.ValidBytes(body) {
		x.void()
		x.fail(&dialect.Problem{
			Status: http.StatusInternalServerError, Code: "bad_response_body", Type: "bad_response_body",
			Message: "the upstream's answer is not JSON", Verbatim: x.dialect == dialect.OpenAI,
		})
		return
	}
	m := meter.New(x.meterConfig())
	m.Body(body)
	result := m.Finish(false)
	if result.Failed {
		// An error object in a 200: a failed request costs nothing.
		x.void()
		p := dialect.UpstreamProblem(x.dialect, http.StatusInternalServerError, body)
		x.fail(p)
		return
	}
	x.status = http.StatusOK
	if err := x.settle(&result, false); err != nil {
		x.failSettle(err)
		return
	}
	x.wrote = true
	x.first = x.s.now()
	x.writeWithin()
	h := x.w.Header()
	contentType := resp.Header.Get("Content-Type")
	if contentType == "" {
		contentType = "application/json"
	}
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	x.w.WriteHeader(x.status)
	_, _ = x.w.Write(body) // a client that left has been billed; there is nobody to tell
}

// failRead is for an answer that broke off. Nothing of it reached the client, so nothing is owed.
func (x *exchange) failRead(err error) {
	cut := x.ticket.WasCut()
	x.void()
	switch {
	case cut:
		x.retryAfter = 1
		x.fail(rebuilding())
		return
	case x.req.Stream && x.r.Context().Err() != nil:
		x.fail(clientGone())
		return
	}
	x.s.log.Warn("an upstream's answer could not be read", "request", x.id, "channel", x.channel.ID, "error", err)
	code := "bad_response"
	if errors.Is(err, upstream.ErrTooLarge) {
		code = "bad_response_body"
	}
	x.fail(problem(http.StatusInternalServerError, code, "the upstream's answer could not be read"))
}

// failSettle answers when the bill could not be made durable: the answer is withheld, because what is not recorded must
// not be handed out (L1). The journal has failed by now, or its log is away, and the node refuses further requests.
func (x *exchange) failSettle(err error) {
	x.s.log.Error("an answer, or its end, is withheld: its usage could not be recorded", "request", x.id, "error", err)
	x.retryAfter = journalRetry
	x.fail(problem(http.StatusServiceUnavailable, codeJournal, "the node cannot record usage at the moment"))
}
