package console

import (
	"strconv"

	"ledgerline/ledger/usagelog"
)

// longestOwn is the longest time, in seconds, that users get figures of: a month, as New API has it.
const longestOwn = 30 * 24 * 3600

// hourView is what an hour's requests of one model, or of one user, came to: a row of New API's dashboard.
type hourView struct {
	ID        int64  `json:"id"`
	UserID    int64  `json:"user_id"`
	Username  string `json:"username"`
	Model     string `json:"model_name"`
	CreatedAt int64  `json:"created_at"`
	Group     string `json:"use_group"`
	TokenID   int64  `json:"token_id"`
	ChannelID int64  `json:"channel_id"`
	Node      string `json:"node_name"`
	Tokens    int64  `json:"token_used"`
	Count     int64  `json:"count"`
	Quota     int64  `json:"quota"`
}

// hoursByModel answers GET /api/data/: everybody's requests, or those of one user name.
func hoursByModel(x *call) error { return x.hours(x.span(), usagelog.ByModel) }

// hoursByUser answers GET /api/data/users.
func hoursByUser(x *call) error {
	f := x.span()
	f.Username = ""
	return x.hours(f, usagelog.ByUser)
}

// ownHours answers GET /api/data/self.
func ownHours(x *call) error {
	f, err := x.ownSpan()
	if err != nil {
		return err
	}
	return x.hours(f, usagelog.ByModel)
}

// span reads the time that figures are asked for, and the user name.
func (x *call) span() usagelog.Filter {
	all := x.logFilter()
	return usagelog.Filter{Start: all.Start, End: all.End, Username: all.Username}
}

// ownSpan is span for the caller's own figures.
func (x *call) ownSpan() (usagelog.Filter, error) {
	f := x.span()
	f.Username, f.User = "", x.me.ID
	end := f.End
	if end == 0 {
		end = x.console.now().Unix()
	}
	if end-f.Start > longestOwn {
		return f, no("from start_timestamp to end_timestamp it is a month at the most, %d seconds", longestOwn)
	}
	return f, nil
}

func (x *call) hours(f usagelog.Filter, by usagelog.Split) error {
	shares, err := x.console.cfg.Log.Shares(x.ctx(), f, by)
	if err != nil {
		return filterError(err)
	}
	views := make([]hourView, len(shares))
	for i, s := range shares {
		views[i] = hourView{Username: s.Username, Model: s.Model, CreatedAt: s.Hour, Tokens: s.Tokens, Count: s.Count, Quota: s.Quota}
		if f.User != 0 {
			views[i].UserID, views[i].Username = x.me.ID, x.me.Username
		}
	}
	return x.data(views)
}

// flowView is what one user's requests with one key, through one channel, to one model came to.
type flowView struct {
	UserID    int64  `json:"user_id"`
	Username  string `json:"username"`
	Node      string `json:"node_name"`
	TokenID   int64  `json:"token_id"`
	TokenName string `json:"token_name"`
	Group     string `json:"use_group"`
	ChannelID int64  `json:"channel_id"`
	Channel   string `json:"channel_name"`
	Model     string `json:"model_name"`
	Tokens    int64  `json:"token_used"`
	Count     int64  `json:"count"`
	Quota     int64  `json:"quota"`
}

// flow answers GET /api/data/flow.
func flow(x *call) error { return x.flow(x.span(), true) }

// ownFlow answers GET /api/data/flow/self. Which channel served a user is the administrators' business, as in the log.
func ownFlow(x *call) error {
	f, err := x.ownSpan()
	if err != nil {
		return err
	}
	return x.flow(f, false)
}

func (x *call) flow(f usagelog.Filter, named bool) error {
	shares, err := x.console.cfg.Log.Shares(x.ctx(), f, usagelog.ByFlow)
	if err != nil {
		return filterError(err)
	}
	names := map[int64]string{}
	if named {
		ids := make([]int64, len(shares))
		for i, s := range shares {
			ids[i] = s.ChannelID
		}
		if names, err = x.console.cfg.Store.ChannelNames(x.ctx(), ids); err != nil {
			return err
		}
	}
	views := make([]flowView, len(shares))
	for i, s := range shares {
		views[i] = flowView{s.UserID, s.Username, s.Node, s.TokenID, s.TokenName, s.Group, s.ChannelID, names[s.ChannelID], s.Model, s.Tokens, s.Count, s.Quota}
		if named && views[i].Channel == "" && s.ChannelID != 0 {
			views[i].Channel = "#" + strconv.FormatInt(s.ChannelID, 10) // it was deleted
		}
	}
	return x.data(views)
}
