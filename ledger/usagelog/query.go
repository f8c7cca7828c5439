package usagelog

import (
	"encoding/json"
	"fmt"
	"strings"

	"ledgerline/ledger"
)

// Bounds of the queries (L7).
const (
	// MaxCount is how far List counts: New API counts without end, which on a large log takes longer than the page.
	MaxCount = 100_000
	// MaxUserCount is New API's bound on the count of one user's rows.
	MaxUserCount = 10_000
	// MaxPage is New API's largest page.
	MaxPage = 100
	// MaxTokenRows is New API's bound on the rows of one token.
	MaxTokenRows = 1000
	// MaxFound bounds Lookup: a request makes one event, and one more each time it is rated again.
	MaxFound = 64
)

// Filter selects rows. Zero fields select all.
type Filter struct {
	Type  int
	Start int64 // Unix seconds, the first that counts
	End   int64 // Unix seconds, the last that counts

	User    int64
	Token   int64
	Channel int64

	// Username and ModelName may hold up to two % as wildcards, beside at least two other characters; the others are exact.
	Username          string
	ModelName         string
	TokenName         string
	Group             string
	RequestID         string
	UpstreamRequestID string
}

// Page selects a part of a listing. Skip + Limit is cut to the count's bound, Limit to MaxPage.
type Page struct {
	Skip  int
	Limit int
}

// Listing is one page of rows.
type Listing struct {
	Entries []Entry
	Total   int  // rows that match, counted up to MaxUserCount for a filter with User, else up to MaxCount
	More    bool // there are more than Total
}

// Stat is New API's summary of a listing.
type Stat struct {
	Quota int64 `json:"quota"` // quota units, rows of type consume
	RPM   int64 `json:"rpm"`   // requests of the last 60 s
	TPM   int64 `json:"tpm"`   // their tokens
}

// Entry is one row as New API shows it. Its ID is 0 where the store numbers no rows (ClickHouse, as in New API).
type Entry struct {
	ID                int64  `json:"id"`
	UserID            int64  `json:"user_id"`
	CreatedAt         int64  `json:"created_at"` // Unix seconds
	Type              int64  `json:"type"`
	Content           string `json:"content"`
	Username          string `json:"username"`
	TokenName         string `json:"token_name"`
	ModelName         string `json:"model_name"`
	Quota             int64  `json:"quota"`
	PromptTokens      int64  `json:"prompt_tokens"`
	CompletionTokens  int64  `json:"completion_tokens"`
	UseTime           int64  `json:"use_time"` // seconds
	IsStream          bool   `json:"is_stream"`
	ChannelID         int64  `json:"channel"`
	ChannelName       string `json:"channel_name"` // not stored: the console fills it in
	TokenID           int64  `json:"token_id"`
	Group             string `json:"group"`
	IP                string `json:"ip"`
	RequestID         string `json:"request_id"`
	UpstreamRequestID string `json:"upstream_request_id,omitempty"`
	Other             string `json:"other"`
}

// Found is one event of a request, with all that is known of it.
type Found struct {
	Entry
	Place
	EventID ledger.ID
	Event   []byte // canonical JSON; nil if it has expired
}

// ForUser returns the entry without what only administrators see.
func (e Entry) ForUser() Entry {
	e.ChannelName = ""
	if !strings.Contains(e.Other, `"admin_info"`) && !strings.Contains(e.Other, `"audit_info"`) {
		return e
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(e.Other), &members); err != nil {
		e.Other = "" // cannot be told apart, so nothing is shown
		return e
	}
	delete(members, "admin_info")
	delete(members, "audit_info")
	e.Other = ""
	if len(members) > 0 {
		if text, err := json.Marshal(members); err == nil {
			e.Other = string(text)
		}
	}
	return e
}

// entryColumns are the columns of an Entry, in the order of Entry.fields. They are New API's.
const entryColumns = "user_id, created_at, type, content, username, token_name, model_name, quota, prompt_tokens, " +
	"completion_tokens, use_time, is_stream, channel_id, token_id, `group`, ip, request_id, upstream_request_id, other"

// limits cuts a page to what its filter allows: how many rows to skip and to show, and how far to count.
func (p Page) limits(f *Filter) (skip, limit, count int) {
	count = MaxCount
	if f.User != 0 {
		count = MaxUserCount
	}
	skip = min(max(p.Skip, 0), count)
	limit = min(max(p.Limit, 0), MaxPage, count-skip)
	return skip, limit, count
}

// total turns a count up to bound+1 into the numbers of a Listing.
func total(counted, bound int) (n int, more bool) { return min(counted, bound), counted > bound }

// engine says what differs between the databases in a condition.
type engine struct {
	escape byte   // escapes % and _ in a pattern
	clause string // ends a LIKE
}

var (
	engineSQL        = engine{escape: '!', clause: " ESCAPE '!'"}
	engineClickHouse = engine{escape: '\\'}
)

// where collects conditions and their arguments.
type where struct {
	engine
	columns []string // that the terms name
	terms   []string
	args    []any
}

// add adds a condition: "type", "= ?".
func (w *where) add(column, operation string, arg any) {
	w.columns = append(w.columns, column)
	w.terms = append(w.terms, column+" "+operation)
	w.args = append(w.args, arg)
}

func (w *where) String() string {
	if len(w.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.terms, " AND ")
}

// conditions turns a filter into conditions on New API's columns.
func (f *Filter) conditions(e engine) (where, error) {
	w := where{engine: e}
	for _, n := range []struct {
		column, operation string
		value             int64
	}{
		{"type", "= ?", int64(f.Type)},
		{"user_id", "= ?", f.User},
		{"token_id", "= ?", f.Token},
		{"channel_id", "= ?", f.Channel},
		{"created_at", ">= ?", f.Start},
		{"created_at", "<= ?", f.End},
	} {
		if n.value != 0 {
			w.add(n.column, n.operation, n.value)
		}
	}
	for _, t := range []struct{ column, value string }{
		{"token_name", f.TokenName},
		{"`group`", f.Group},
		{"request_id", f.RequestID},
		{"upstream_request_id", f.UpstreamRequestID},
	} {
		if t.value != "" {
			w.add(t.column, "= ?", t.value)
		}
	}
	for _, t := range []struct{ column, value string }{{"username", f.Username}, {"model_name", f.ModelName}} {
		if err := w.match(t.column, t.value); err != nil {
			return where{}, err
		}
	}
	return w, nil
}

// match adds a condition on a column that may be a pattern. A pattern of wildcards alone would read the whole log.
func (w *where) match(column, value string) error {
	wild := strings.Count(value, "%")
	switch {
	case value == "":
	case wild == 0:
		w.add(column, "= ?", value)
	case wild > 2:
		return fmt.Errorf("%s %q has more than two wildcards: %w", column, value, ErrFilter)
	case len([]rune(value))-wild < 2:
		return fmt.Errorf("%s %q has fewer than two characters beside its wildcards: %w", column, value, ErrFilter)
	default:
		var pattern strings.Builder
		for i := range len(value) {
			if c := value[i]; c == '_' || c == w.escape {
				pattern.WriteByte(w.escape)
			}
			pattern.WriteByte(value[i])
		}
		w.add(column, "LIKE ?"+w.clause, pattern.String())
	}
	return nil
}
