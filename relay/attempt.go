package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"ledgerline/relay/catalog"
	"ledgerline/relay/dialect"
	"ledgerline/relay/upstream"
)

// maxUpstreamID bounds what is kept of an upstream's request id (L7): one as long as its headers may be would make the usage event
// larger than an event can be, and nothing could bill the answer.
const maxUpstreamID = 256

// relay forwards the admitted request and ends its hold, whatever happens. Until the first byte of an answer was sent to
// the client it may try other channels.
func (x *exchange) relay() {
	defer x.abandon()
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
	if len(x.upstream) > maxUpstreamID {
		x.upstream = strings.ToValidUTF8(x.upstream[:maxUpstreamID], "")
	}
	if x.req.Stream && isStream(resp) {
		x.stream(ctx, cancel, resp)
		return
	}
	x.plain(resp)
}

// upstreamContext bounds the upstream's work. A stream ends with its client. An answer in one piece is finished and billed
// even if its client leaves: the upstream bills it too, and what it cost is not known before its end.
func (x *exchange) upstreamContext() (context.Context, context.CancelFunc) {
	if x.req.Stream {
		return context.WithCancel(x.r.Context())
	}
	return context.WithTimeout(context.WithoutCancel(x.r.Context()), plainTimeout)
}

func (x *exchange) void() {
	if x.ticket != nil {
		x.ticket.Void()
		x.ticket = nil
	}
}

// abandon is for a bug that unwinds the stack: a hold that paid for nothing the client has must not stay. If the client has
// something, the hold stays, and the next start of the journal bills it.
func (x *exchange) abandon() {
	if !x.wrote {
		x.void()
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
		if !again || ctx.Err() != nil || x.r.Context().Err() != nil {
			break
		}
	}
	if last == nil {
		last = noChannel(x.req.Model, x.group)
	}
	return nil, last
}

// try sends the request to one channel. again says whether another channel may do better.
func (x *exchange) try(ctx context.Context, ch *catalog.Channel) (resp *http.Response, p *dialect.Problem, again bool) {
	key, ok := ch.Key()
	if !ok {
		return nil, x.channelProblem(ch, "channel:no_available_key", "the channel has no usable key"), true
	}
	sent, ok := ch.Sent(x.req.Model)
	if !ok {
		return nil, x.channelProblem(ch, "channel:model_mapped_error", "the channel's model mapping is a cycle"), true
	}
	x.sent = sent
	x.ticket.Forwarding(ch.ID)
	edit := dialect.Edit{Model: sent, MaxTokens: x.limit, IncludeUsage: x.s.cfg.ForceUsage}
	edit.DropStreamOptions = x.req.Stream && x.s.refusesUsageOption(ch)
	for {
		body := x.req.Rewrite(edit)
		resp, err := x.send(ctx, upstream.Call{
			Channel: ch, Key: key.Value, Path: x.endpoint.Path(), Model: sent, Body: body, Stream: x.req.Stream, RequestID: x.id,
		})
		if err != nil {
			return nil, x.sendProblem(ch, err), true
		}
		if resp.StatusCode >= 200 && resp.StatusCode < 300 {
			return resp, nil, false
		}
		answer, _ := upstream.ReadAll(resp.Body, maxErrorBody) // what cannot be read makes a general error
		_ = resp.Body.Close()
		if x.req.Stream && !edit.DropStreamOptions && blamesUsageOption(resp.StatusCode, body, answer) {
			// The upstream does not know stream_options: once more without, and not again on this channel.
			x.s.noUsageOption.Store(ch.ID, ch.BaseURL)
			edit.DropStreamOptions = true
			continue
		}
		p, again = x.answerProblem(ch, key.Index, resp.StatusCode, answer)
		return nil, p, again
	}
}

// refusesUsageOption reports whether the channel's upstream is known to refuse stream_options. An address that has changed
// since is another upstream.
func (s *Server) refusesUsageOption(ch *catalog.Channel) bool {
	base, known := s.noUsageOption.Load(ch.ID)
	return known && base == ch.BaseURL
}

func blamesUsageOption(status int, sent, answer []byte) bool {
	option := []byte("stream_options")
	return status == http.StatusBadRequest && bytes.Contains(sent, option) && bytes.Contains(answer, option)
}

// send makes one upstream request. RELAY_TIMEOUT bounds all of it; a stream's head must come within STREAMING_TIMEOUT,
// so that another channel can be tried.
func (x *exchange) send(ctx context.Context, call upstream.Call) (*http.Response, error) {
	timeout := x.s.cfg.RelayTimeout
	if timeout == 0 && !x.req.Stream {
		return x.s.cfg.Upstream.Do(ctx, call) //nolint:wrapcheck // it says what was done; closing the answer ends it
	}
	var cancel context.CancelFunc
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	body := &attemptBody{cancel: cancel}
	if x.req.Stream {
		body.watch = newWatchdog(cancel, x.s.cfg.StreamingTimeout)
	}
	resp, err := x.s.cfg.Upstream.Do(ctx, call)
	if err != nil {
		body.end()
		return nil, err //nolint:wrapcheck // it says what was done
	}
	if x.watch = body.watch; x.watch != nil {
		x.watch.reading.Store(false)
	}
	body.ReadCloser, resp.Body = resp.Body, body
	return resp, nil
}

// attemptBody ends the request's context when the answer is closed.
type attemptBody struct {
	io.ReadCloser
	cancel context.CancelFunc
	watch  *watchdog // of a stream
}

func (b *attemptBody) end() {
	if b.watch != nil {
		b.watch.timer.Stop()
	}
	b.cancel()
}

// Buffered returns how many bytes of the answer have been read with its head, 0 if that is not known.
func (b *attemptBody) Buffered() int {
	if known, ok := b.ReadCloser.(interface{ Buffered() int }); ok {
		return known.Buffered()
	}
	return 0
}

// Close implements io.Closer.
func (b *attemptBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close() //nolint:wrapcheck // a thin shell
}

// sendProblem is for an upstream that could not be reached or did not answer.
func (x *exchange) sendProblem(ch *catalog.Channel, err error) *dialect.Problem {
	switch {
	case x.r.Context().Err() != nil:
		return clientGone()
	case x.ticket.WasCut():
		x.retryAfter = 1
		return rebuilding()
	case errors.Is(err, upstream.ErrUnsupported):
		return problem(http.StatusServiceUnavailable, "channel:type_unsupported", "the relay cannot serve this channel's provider yet")
	}
	x.s.log.Warn("upstream request failed", "request", x.id, "channel", ch.ID, "error", err)
	return problem(http.StatusInternalServerError, "do_request_failed", "upstream error: do request failed")
}

// answerProblem is for an upstream that answered with a failure. Its status may be rewritten by the channel.
func (x *exchange) answerProblem(ch *catalog.Channel, key, status int, body []byte) (p *dialect.Problem, again bool) {
	p = dialect.UpstreamProblem(x.dialect, status, body)
	set := &x.routes.Settings
	if set.DisableStatus.Has(status) || hasKeyword(set.DisableKeywords, p.Message) {
		x.blame(ch, key, status, p.Message)
	}
	if to, ok := ch.StatusMapping[status]; ok {
		p.Status = to
	}
	if p.Status < 400 {
		p.Status = http.StatusBadGateway // a redirect or an odd status is no answer that a client could use
	}
	return p, set.RetryStatus.Has(status)
}

// channelProblem is for a channel that is of no use to anybody as it is set up.
func (x *exchange) channelProblem(ch *catalog.Channel, code, message string) *dialect.Problem {
	x.blame(ch, wholeChannel, http.StatusInternalServerError, message)
	return problem(http.StatusInternalServerError, code, message)
}

// wholeChannel as ChannelFailure.KeyIndex blames no single key.
const wholeChannel = -1

// blame reports a failure that disables the channel, or the key, where New API would.
func (x *exchange) blame(ch *catalog.Channel, key, status int, reason string) {
	if ch.AutoBan && x.routes.Settings.DisableEnabled {
		x.s.cfg.ChannelFailed(ChannelFailure{Channel: ch.ID, KeyIndex: key, Status: status, Reason: reason})
	}
}

func hasKeyword(keywords []string, message string) bool {
	message = strings.ToLower(message)
	return slices.ContainsFunc(keywords, func(k string) bool { return strings.Contains(message, k) })
}
