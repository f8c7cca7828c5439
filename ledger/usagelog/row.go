package usagelog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"ledgerline/ledger"
)

// The values of Row.Type: New API's.
const (
	TypeTopUp   = 1
	TypeConsume = 2
	TypeManage  = 3
	TypeSystem  = 4
	TypeError   = 5
	TypeRefund  = 6
	TypeLogin   = 7
)

// The values of Row.Moves: which accounts the amounts of a row belong to.
const (
	MovesNothing = ""
	MovesAll     = "usage" // user, token and channel
	MovesUser    = string(ledger.UserAccount)
	MovesToken   = string(ledger.TokenAccount)
	MovesChannel = string(ledger.ChannelAccount)
)

// Row is one event at one place of the log. Everything but Log, which Append sets, is a function of the record: see RowOf.
type Row struct {
	Partition int
	Log       int // which log: 0, and one more each time that an operator adopts a new one (see Position)
	Offset    int64

	EventID  ledger.ID
	Kind     ledger.Kind
	Producer ledger.ID
	Seq      int64
	Prev     int64
	Key      string // business key of an event from the outbox, at most maxKeyBytes

	// What the event does to the accounts that Moves names, in quota units: the same as Event.Deltas.
	Moves    string
	Granted  int64
	Charged  int64
	Requests int64

	UserID            int64
	CreatedAt         int64 // Unix seconds, within [0, maxCreatedAt]
	Type              int
	Content           string
	Username          string
	TokenName         string
	ModelName         string
	Quota             int64 // as New API shows it: what a usage row charged, what a refund gave back; else 0
	PromptTokens      int64
	CompletionTokens  int64
	UseTime           int64 // seconds
	IsStream          bool
	ChannelID         int64
	TokenID           int64
	Group             string
	IP                string
	RequestID         string
	UpstreamRequestID string
	Other             string // JSON with New API's keys, or empty
	Node              string

	Event []byte // canonical JSON, as it lies in the log
}

// Bounds of a row's texts, in bytes: the columns of New API and ours (L7). The event keeps them whole.
const (
	maxNameBytes     = 191
	maxRequestBytes  = 64
	maxUpstreamBytes = 128
	maxKeyBytes      = 191
	maxKindBytes     = 32
)

// maxCreatedAt is the last second of the year 2099. Months are partitions in ClickHouse: a broken clock must not make a
// partition outside what its types hold.
const maxCreatedAt = 4102444799

// RowOf returns the row of a decoded record. It is pure and cheap: the consumer calls it for every record. The texts and
// Event of the row share memory with the record.
func RowOf(r *ledger.Record) Row {
	e := &r.Event
	row := Row{
		Partition: r.Partition,
		Offset:    r.Offset,
		EventID:   e.ID,
		Kind:      ledger.Kind(clip(string(e.Kind), maxKindBytes)),
		Producer:  e.Producer,
		Seq:       signed(e.Seq),
		Prev:      signed(e.Prev),
		Key:       keyOf(e.Key),
		UserID:    e.User,
		TokenID:   e.Token,
		ChannelID: e.Channel,
		CreatedAt: min(max(e.Time/1000, 0), maxCreatedAt),
		Content:   contentOf(e),
		Node:      clip(e.Node, maxNameBytes),
		Event:     r.Value,
	}
	row.move(e)
	row.Type = typeOf(e)
	switch row.Type {
	case TypeConsume:
		row.Quota = row.Charged
	case TypeRefund:
		row.Quota = -row.Charged
	}
	if q := e.Request; q != nil {
		row.describe(q)
	}
	if u := e.Usage; u != nil {
		row.PromptTokens, row.CompletionTokens = u.Prompt, u.Completion
	}
	row.Other = otherOf(e)
	return row
}

// move sets what the row's amounts are and whose: Event.Deltas in a form that SQL can sum.
func (row *Row) move(e *ledger.Event) {
	switch e.Kind {
	case ledger.KindUsageSettled, ledger.KindUsageRecovered, ledger.KindUsageAdjusted:
		row.Moves, row.Charged, row.Requests = MovesAll, e.Charged, e.Requests
	case ledger.KindCreditGranted:
		row.Moves, row.Granted = MovesUser, e.Granted
	case ledger.KindTokenLimited:
		row.Moves, row.Granted = MovesToken, e.Granted
	case ledger.KindCreditAdopted, ledger.KindAccountOpened:
		row.Moves, row.Granted, row.Charged, row.Requests = MovesUser, e.Granted, e.Charged, e.Requests
		if e.Account == ledger.TokenAccount || e.Account == ledger.ChannelAccount {
			row.Moves = string(e.Account)
		}
	case ledger.KindAudit:
	}
}

func (row *Row) describe(q *ledger.Request) {
	row.Username = clip(q.Username, maxNameBytes)
	row.TokenName = clip(q.TokenName, maxNameBytes)
	row.ModelName = clip(q.Model, maxNameBytes)
	row.UseTime = max(q.TotalMS, 0) / 1000
	row.IsStream = q.Stream
	row.Group = clip(q.Group, maxNameBytes)
	row.IP = clip(q.IP, maxNameBytes)
	row.RequestID = clip(q.ID, maxRequestBytes)
	row.UpstreamRequestID = clip(q.Upstream, maxUpstreamBytes)
}

// contentOf is what people read of an event. Opening balances and edits carry no note and have no column for their
// amount in New API's table: without words their rows would be blank on its pages.
func contentOf(e *ledger.Event) string {
	if e.Note != "" {
		return valid(e.Note)
	}
	whose := "the user"
	switch e.Account {
	case ledger.TokenAccount:
		whose = fmt.Sprintf("key %d", e.Token)
	case ledger.ChannelAccount:
		whose = fmt.Sprintf("channel %d", e.Channel)
	case ledger.UserAccount:
	}
	switch e.Kind {
	case ledger.KindAccountOpened:
		return fmt.Sprintf("opening balance of %s: %d quota units granted, %d of them used", whose, e.Granted, e.Charged)
	case ledger.KindCreditAdopted:
		return fmt.Sprintf("balance of %s edited in the database: %+d quota units", whose, e.Granted)
	default:
		return ""
	}
}

// typeOf returns New API's type of an event. What a credit or an audit record stands for is told by the first word of
// its business key, or by a flag.
func typeOf(e *ledger.Event) int {
	word, _, _ := strings.Cut(e.Key, ":")
	switch e.Kind {
	case ledger.KindUsageSettled, ledger.KindUsageRecovered:
		return TypeConsume
	case ledger.KindUsageAdjusted:
		if e.Charged < 0 {
			return TypeRefund
		}
		return TypeConsume
	case ledger.KindCreditGranted:
		switch word {
		case "redeem", "topup":
			return TypeTopUp
		case "signup", "invite", "checkin":
			return TypeSystem
		}
		return TypeManage
	case ledger.KindCreditAdopted, ledger.KindAccountOpened:
		return TypeSystem
	case ledger.KindTokenLimited:
		return TypeManage
	case ledger.KindAudit:
		switch {
		case word == "login" || slices.Contains(e.Flags, "login"):
			return TypeLogin
		case word == "error" || slices.Contains(e.Flags, "error"):
			return TypeError
		case word == "system" || slices.Contains(e.Flags, "system"):
			return TypeSystem
		}
		return TypeManage
	}
	return 0
}

// keyOf shortens a business key so that different keys stay different.
func keyOf(key string) string {
	if len(key) <= maxKeyBytes {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// clip cuts s to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	s = valid(s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// valid replaces what is not UTF-8, which MySQL would refuse.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// signed fits a sequence number into a signed column. A real one is far below the limit.
func signed(n uint64) int64 { return int64(min(n, 1<<63-1)) }
