package console

import (
	"errors"
	"strconv"
	"strings"

	"ledgerline/ledger/usagelog"
)

// logFilter reads New API's parameters of a log query.
func (x *call) logFilter() usagelog.Filter {
	n := func(name string) int64 {
		v, err := strconv.ParseInt(x.QueryParam(name), 10, 64)
		if err != nil || v < 0 {
			return 0
		}
		return v
	}
	return usagelog.Filter{
		Type: int(n("type")), Start: n("start_timestamp"), End: n("end_timestamp"), Channel: n("channel"),
		Username: x.QueryParam("username"), TokenName: x.QueryParam("token_name"), ModelName: x.QueryParam("model_name"),
		Group: x.QueryParam("group"), RequestID: x.QueryParam("request_id"), UpstreamRequestID: x.QueryParam("upstream_request_id"),
	}
}

// ownLogFilter is logFilter for the caller's own rows.
func (x *call) ownLogFilter() usagelog.Filter {
	f := x.logFilter()
	f.User, f.Username, f.Channel = x.me.ID, "", 0
	return f
}

func filterError(err error) error {
	if errors.Is(err, usagelog.ErrFilter) {
		return no("%v", err)
	}
	return err
}

// listLogs answers GET /api/log/.
func listLogs(x *call) error {
	p := x.page()
	got, err := x.console.cfg.Log.List(x.ctx(), x.logFilter(), usagelog.Page{Skip: p.skip(), Limit: p.size})
	if err != nil {
		return filterError(err)
	}
	ids := make([]int64, 0, len(got.Entries))
	for _, e := range got.Entries {
		ids = append(ids, e.ChannelID)
	}
	names, err := x.console.cfg.Store.ChannelNames(x.ctx(), ids)
	if err != nil {
		return err
	}
	entries := make([]usagelog.Entry, len(got.Entries))
	for i, e := range got.Entries {
		e.ChannelName = names[e.ChannelID]
		entries[i] = e
	}
	return x.list(p, got.Total, entries)
}

// listOwnLogs answers GET /api/log/self.
func listOwnLogs(x *call) error {
	p := x.page()
	got, err := x.console.cfg.Log.List(x.ctx(), x.ownLogFilter(), usagelog.Page{Skip: p.skip(), Limit: p.size})
	if err != nil {
		return filterError(err)
	}
	return x.list(p, got.Total, forUser(got.Entries, p.skip()))
}

// forUser hides what only administrators see and numbers the rows, as New API does: their own ids say how much others use.
func forUser(entries []usagelog.Entry, before int) []usagelog.Entry {
	out := make([]usagelog.Entry, len(entries))
	for i, e := range entries {
		out[i] = e.ForUser()
		out[i].ID = int64(before + i + 1)
	}
	return out
}

// logStat answers GET /api/log/stat.
func logStat(x *call) error { return x.stat(x.logFilter()) }

// ownLogStat answers GET /api/log/self/stat.
func ownLogStat(x *call) error { return x.stat(x.ownLogFilter()) }

func (x *call) stat(f usagelog.Filter) error {
	s, err := x.console.cfg.Log.Stat(x.ctx(), f, x.console.now())
	if err != nil {
		return filterError(err)
	}
	return x.data(s)
}

// tokenLogs answers GET /api/log/token, to the holder of a key.
func tokenLogs(x *call) error {
	h, err := x.holder()
	if err != nil {
		return err
	}
	entries, err := x.console.cfg.Log.TokenLatest(x.ctx(), h.token.ID)
	if err != nil {
		return err
	}
	return x.data(forUser(entries, 0))
}

// noLogSearch answers the two dead paths of New API.
func noLogSearch(*call) error { return no("use /api/log/ with its filters") }

func splitList(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
