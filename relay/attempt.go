package relay

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"ledgerline/relay/catalog"
	"ledgerline/relay/dialect"
	"ledgerline/relay/upstream"
)

// relay forwards the admitted request and ends its hold, whatever happens. Until the first byte of an answer was sent to
// the client it may try other channels.
func (x *exchange) relay() {
	ctx, cancel := x.upstreamContext()
	defer cancel()
	x.ticket.OnCut(cancel)
	resp, p := x.forward(ctx)
	if p != nil {
		x.void()
		x.fail(p)
		return
	}
	defer func() { _ = resp.Body.Close() }() // reading it reported what mattered
	x.upstream = resp.Header.Get("X-Request-Id")
	if x.req.Stream && isStream(resp) {
		x.stream(ctx, cancel, resp)
		return
	}
	x.plain(resp)
}

// upstreamContext bounds the upstream's work. A stream ends with its client. An answer in one piece is finished and billed
// even if its client leaves: the upstream bills it too, and what it cost is not known before its end.
func (x *exchange) upstreamContext() (context.Context, context.CancelFunc) {
	timeout := x.s.cfg.RelayTimeout
	if x.req.Stream {
		if timeout > 0 {
			return context.WithTimeout(x.r.Context(), timeout)
		}
		return context.WithCancel(x.r.Context())
	}
	if timeout == 0 {
		timeout = plainTimeout
	}
	return context.WithTimeout(context.WithoutCancel(x.r.Context()), timeout)
}

func (x *exchange) void() {
	if x.ticket != nil {
		x.ticket.Void()
		x.ticket = nil
	}
}

func isStream(resp *http.Response) bool {
	return strings.HasPrefix(strings.ToLower(resp.Header.Get("Content-Type")), "text/event-stream")
}

// forward tries channels until one answers 200, or the retries are used up.
func (x *exchange) forward(ctx context.Context) (*http.Response, *dialect.Problem) {
	var tried []int64
	var last *dialect.Problem
	retries := x.routes.Settings.RetryTimes
	if x.pinned != 0 {
		retries = 0
	}
	for attempt := 0; attempt <= retries; attempt++ {
		ch := x.routes.Channel(x.pinned)
		if x.pinned == 0 {
			ch = x.routes.Pick(x.group, x.req.Model, attempt, tried)
		}
		if ch == nil {
			break
		}
		x.channel, x.retries = ch, attempt
		tried = append(tried, ch.ID)
		resp, p, again := x.try(ctx, ch)
		if p == nil {
			return resp, nil
		}
		last = p
		if !again || ctx.Err() != nil {
			break
		}
	}
	if last == nil {
		last = refused(http.StatusServiceUnavailable, "model_not_found", "No available channel for model "+x.req.Model+" under group "+x.group)
	}
	return nil, last
}

// try sends the request to one channel. again says whether another channel may do better.
func (x *exchange) try(ctx context.Context, ch *catalog.Channel) (resp *http.Response, p *dialect.Problem, again bool) {
	key, ok := ch.Key()
	if !ok {
		return nil, problem(http.StatusInternalServerError, "channel:no_available_key", "the channel has no usable key"), true
	}
	sent, ok := ch.Sent(x.req.Model)
	if !ok {
		return nil, problem(http.StatusInternalServerError, "channel:model_mapped_error", "the channel's model mapping is a cycle"), true
	}
	x.sent = sent
	x.ticket.Forwarding(ch.ID)
	edit := dialect.Edit{Model: sent, MaxTokens: x.limit, IncludeUsage: x.s.cfg.ForceUsage}
	_, refusesOption := x.s.noUsageOption.Load(ch.ID)
	edit.DropStreamOptions = refusesOption && x.req.Stream
	for {
		call := upstream.Call{
			Channel: ch, Key: key.Value, Path: x.endpoint.Path(), Model: sent, Body: x.req.Rewrite(edit),
			Stream: x.req.Stream, RequestID: x.id,
		}
		var err error
		resp, err = x.s.cfg.Upstream.Do(ctx, call)
		if err != nil {
			return nil, x.sendProblem(ctx, ch, err), true
		}
		if resp.StatusCode >= 200 && resp.StatusCode < 300 {
			return resp, nil, false
		}
		body, _ := upstream.ReadAll(resp.Body, maxErrorBody) // what cannot be read makes a general error
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusBadRequest && x.req.Stream && !edit.DropStreamOptions &&
			bytes.Contains(body, []byte("stream_options")) {
			// The upstream does not know stream_options: once more without, and not again on this channel.
			x.s.noUsageOption.Store(ch.ID, struct{}{})
			edit.DropStreamOptions = true
			continue
		}
		p, again = x.answerProblem(ch, key.Index, resp.StatusCode, body)
		return nil, p, again
	}
}

// sendProblem is for an upstream that could not be reached or did not answer.
func (x *exchange) sendProblem(ctx context.Context, ch *catalog.Channel, err error) *dialect.Problem {
	if x.r.Context().Err() != nil {
		return problem(499, "client_gone", "the client closed the request")
	}
	if x.ticket.WasCut() {
		return problem(http.StatusServiceUnavailable, codeRebuilding, "quotas are being rebuilt, try again shortly")
	}
	x.s.log.Warn("upstream request failed", "request", x.id, "channel", ch.ID, "error", err)
	if errors.Is(err, upstream.ErrUnsupported) {
		return problem(http.StatusServiceUnavailable, "channel:type_unsupported", "the relay cannot serve this channel's provider yet")
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		x.s.log.Warn("upstream request timed out", "request", x.id, "after", x.s.now().Sub(x.start).Round(time.Millisecond))
	}
	return problem(http.StatusInternalServerError, "do_request_failed", "upstream error: do request failed")
}

// answerProblem is for an upstream that answered with a failure. Its status may be rewritten by the channel.
func (x *exchange) answerProblem(ch *catalog.Channel, key, status int, body []byte) (p *dialect.Problem, again bool) {
	p = dialect.UpstreamProblem(x.dialect, status, body)
	set := &x.routes.Settings
	if ch.AutoBan && set.DisableEnabled && (set.DisableStatus.Has(status) || hasKeyword(set.DisableKeywords, p.Message)) {
		x.s.cfg.ChannelFailed(ChannelFailureOf(ch, key, status, p.Message))
	}
	if to, ok := ch.StatusMapping[status]; ok {
		p.Status = to
	}
	if p.Status < 400 {
		p.Status = http.StatusBadGateway // a redirect or an odd status is no answer that a client could use
	}
	return p, set.RetryStatus.Has(status)
}

// ChannelFailureOf describes a failure that may disable a channel.
func ChannelFailureOf(ch *catalog.Channel, key, status int, reason string) ChannelFailure {
	return ChannelFailure{Channel: ch.ID, KeyIndex: key, Status: status, Reason: reason}
}

func hasKeyword(keywords []string, message string) bool {
	message = strings.ToLower(message)
	return slices.ContainsFunc(keywords, func(k string) bool { return strings.Contains(message, k) })
}
