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
	body, err := upstream.ReadAll(resp.Body, maxPlainAnswer)
	if err != nil {
		x.void()
		x.s.log.Warn("an upstream's answer could not be read", "request", x.id, "channel", x.channel.ID, "error", err)
		code := "bad_response"
		if errors.Is(err, upstream.ErrTooLarge) {
			code = "bad_response_body"
		}
		x.fail(problem(http.StatusInternalServerError, code, "the upstream's answer could not be read"))
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
	_ = x.rc.SetWriteDeadline(x.first.Add(clientPatience))
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

// failSettle answers when the bill could not be made durable: the answer is withheld, because what is not recorded must
// not be handed out (L1). The journal has failed by now, and the node refuses further requests.
func (x *exchange) failSettle(err error) {
	x.s.log.Error("an answer is withheld: its usage could not be recorded", "request", x.id, "error", err)
	x.fail(problem(http.StatusServiceUnavailable, codeJournal, "the node cannot record usage at the moment"))
}
