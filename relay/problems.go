package relay

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/relay/desk"
	"ledgerline/relay/dialect"
)

// Codes of the relay's own refusals, beside New API's (README, table of differences).
const (
	codeBusy       = "quota_held"          // 429: only open holds are in the way
	codeRebuilding = "counters_rebuilding" // 503: a new counter epoch is being opened
	codeNoCounters = "counters_unreachable"
	codeFull       = "node_full"
	codeJournal    = "journal_failed"
	codeNoLog      = "log_unreachable" // JOURNAL=kafka: the log does not acknowledge
	codeStopping   = "node_stopping"
	codeBodyFailed = "read_request_body_failed"
)

// refused is a refusal of the middleware kind: it comes before the relay proper and has no param.
func refused(status int, code, message string) *dialect.Problem {
	return &dialect.Problem{Status: status, Code: code, Message: message, Middleware: true}
}

func problem(status int, code, message string) *dialect.Problem {
	return &dialect.Problem{Status: status, Code: code, Message: message}
}

func invalidToken() *dialect.Problem { return refused(http.StatusUnauthorized, "", "Invalid token") }

func clientGone() *dialect.Problem {
	return problem(statusClientGone, "client_gone", "the client closed the request")
}

// statusClientGone is nginx' status for a client that left; nobody receives it, but logs and metrics do.
const statusClientGone = 499

func rebuilding() *dialect.Problem {
	return problem(http.StatusServiceUnavailable, codeRebuilding, "quotas are being rebuilt, try again shortly")
}

func full() *dialect.Problem {
	return problem(http.StatusServiceUnavailable, codeFull, "the node is at its limit, try again shortly")
}

func noChannel(model, group string) *dialect.Problem {
	return refused(http.StatusServiceUnavailable, "model_not_found", "No available channel for model "+model+" under group "+group)
}

// journalRetry is the Retry-After, in seconds, of a node that cannot record usage: another node, or this one restarted.
const journalRetry = 5

func notFound(r *http.Request) *dialect.Problem {
	return &dialect.Problem{
		Status: http.StatusNotFound, Type: "invalid_request_error", Verbatim: true,
		Message: "Invalid URL (" + r.Method + " " + r.URL.Path + ")",
	}
}

// admissionProblem says why no hold was given. retryAfter is in seconds, 0 for none.
func (x *exchange) admissionProblem(err error) (p *dialect.Problem, retryAfter int) {
	var r *desk.Refusal
	switch {
	case errors.As(err, &r):
		return x.refusal(r)
	case x.r.Context().Err() != nil:
		return clientGone(), 0
	case errors.Is(err, desk.ErrFull), errors.Is(err, journal.ErrFull):
		return full(), 1
	case errors.Is(err, desk.ErrStopping):
		return problem(http.StatusServiceUnavailable, codeStopping, "the node is shutting down, try again"), 1
	case errors.Is(err, journal.ErrNoLog):
		return problem(http.StatusServiceUnavailable, codeNoLog, "the node cannot record usage at the moment, try again shortly"), 1
	case errors.Is(err, journal.ErrFailed):
		x.s.complaints.Do(func() { x.s.log.Error("requests are refused: the journal cannot be written", "error", err) })
		return problem(http.StatusServiceUnavailable, codeJournal, "the node cannot record usage at the moment"), journalRetry
	default:
		x.s.complaints.Do(func() { x.s.log.Warn("requests are refused: no hold can be taken", "error", err) })
		return problem(http.StatusServiceUnavailable, codeNoCounters, "quotas cannot be checked at the moment, try again"), 1
	}
}

func (x *exchange) refusal(r *desk.Refusal) (*dialect.Problem, int) {
	switch r.Outcome {
	case ledger.OutcomeRebuilding:
		return rebuilding(), 1
	case ledger.OutcomeBusy:
		return problem(http.StatusTooManyRequests, codeBusy,
			"the remaining quota is held by requests that are still running, try again when they have finished"), 1
	case ledger.OutcomeRefused, ledger.OutcomeGranted, ledger.OutcomeNeedLoad, ledger.OutcomeGone:
		// Only the first of these is a refusal that the desk hands out.
	}
	need := "need quota: " + x.dollars(r.Need)
	if r.Account.Kind == ledger.TokenAccount {
		if r.Left <= 0 {
			return invalidToken(), 0 // an exhausted key is refused as at authentication
		}
		return problem(http.StatusForbidden, "pre_consume_token_quota_failed",
			"token quota is not enough, token remain quota: "+x.dollars(r.Left)+", "+need), 0
	}
	return problem(http.StatusForbidden, "insufficient_user_quota",
		"user quota is not enough, user remain quota: "+x.dollars(r.Left)+", "+need), 0
}

// dollars shows quota units as US dollars, exactly, for a message.
func (x *exchange) dollars(quota int64) string {
	per := x.routes.Settings.QuotaPerUnit
	sign := ""
	if quota < 0 {
		sign, quota = "-", -quota
	}
	const micro = 1_000_000
	return fmt.Sprintf("%s＄%d.%06d", sign, quota/per, quota%per*micro/per)
}

// fail answers with a problem, unless the answer has begun.
func (x *exchange) fail(p *dialect.Problem) {
	x.status, x.code = p.Status, p.Code
	if x.wrote {
		return
	}
	x.wrote = true
	body := dialect.AppendError(nil, x.dialect, p, x.id)
	h := x.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if x.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(x.retryAfter))
	}
	x.writeWithin()
	x.w.WriteHeader(p.Status)
	_, _ = x.w.Write(body) // a client that left does not matter: nothing is owed
}
