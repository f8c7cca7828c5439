package ledger

// EventVersion is the version of the event schema that this build writes. A reader that meets a higher one stops
// its partition with an alarm: during a rolling update an unknown event must wait, not be lost (DESIGN 4).
const EventVersion = 1

// Kind is one of the closed set of event kinds. Everything that moves a balance is an event, else L4 cannot hold.
type Kind string

// The event kinds.
const (
	KindUsageSettled   Kind = "usage.settled"   // a finished request
	KindUsageRecovered Kind = "usage.recovered" // a request whose node died, rebuilt from its journal
	KindUsageAdjusted  Kind = "usage.adjusted"  // a correction from re-rating; amounts may be negative
	KindCreditGranted  Kind = "credit.granted"  // top-up, redemption, admin, sign-up bonus; may be negative
	KindCreditAdopted  Kind = "credit.adopted"  // somebody edited a balance column in SQL
	KindTokenLimited   Kind = "token.limited"   // the limit of a token changed
	KindAccountOpened  Kind = "account.opened"  // opening balance of an account that was there before Ledgerline
	KindAudit          Kind = "audit.recorded"  // who changed what; moves nothing
)

// Known reports whether this build knows the kind.
func (k Kind) Known() bool {
	switch k {
	case KindUsageSettled, KindUsageRecovered, KindUsageAdjusted, KindCreditGranted, KindCreditAdopted,
		KindTokenLimited, KindAccountOpened, KindAudit:
		return true
	}
	return false
}

// IsUsage reports whether the kind charges a request.
func (k Kind) IsUsage() bool { return k == KindUsageSettled || k == KindUsageRecovered }

// Event is one record of the log. Amounts are signed deltas in quota units, never absolutes.
//
// Identity: ID names what happened and is the same in a re-driven copy. Producer and Seq name this record: Seq counts
// from 1 within the producer, and Prev is the producer's previous Seq in the same partition (0: none), so a
// consumer sees duplicates and holes (L2). Producer, Seq and Prev are set by the journal when the event is appended.
type Event struct {
	Version  int    `json:"v"`
	Kind     Kind   `json:"kind"`
	ID       ID     `json:"id"`
	Producer ID     `json:"producer"`
	Seq      uint64 `json:"seq"`
	Prev     uint64 `json:"prev"`
	Time     int64  `json:"time"` // Unix milliseconds at which the event was made
	Node     string `json:"node,omitempty"`

	User    int64       `json:"user"`
	Token   int64       `json:"token,omitempty"`
	Channel int64       `json:"channel,omitempty"`
	Account AccountKind `json:"account,omitempty"` // account.opened and credit.adopted: which account Granted moves

	Granted  int64 `json:"granted,omitempty"`  // delta of granted
	Charged  int64 `json:"charged,omitempty"`  // delta of charged
	Requests int64 `json:"requests,omitempty"` // delta of the request count

	// Key is the unique business key of an event born in the outbox ("redeem:CODE:USER"); empty for usage.
	Key string `json:"key,omitempty"`
	// Redrive marks the copy of a dead letter that is applied at this place instead of its original's.
	Redrive bool   `json:"redrive,omitempty"`
	Note    string `json:"note,omitempty"` // audit text, or why the event was made

	Hold    *HoldRef `json:"hold,omitempty"`
	Request *Request `json:"request,omitempty"`
	Usage   *Usage   `json:"usage,omitempty"`
	Source  Source   `json:"source,omitempty"` // where Usage comes from
	Flags   []string `json:"flags,omitempty"`  // anomalies, see relay/meter
	Rating  *Rating  `json:"rating,omitempty"`
}

// HoldRef names the hold that a usage event settles and the counter epoch the hold lived in (DESIGN 7).
type HoldRef struct {
	ID     ID     `json:"id"`
	Epoch  uint64 `json:"epoch"`
	Amount int64  `json:"amount"`          // quota units held when it was settled, as last extended
	Token  bool   `json:"token,omitempty"` // the hold covered the token's account too (a limited token)
}

// Request describes the relayed request, as far as bills, logs and re-rating need it.
type Request struct {
	ID        string `json:"id"` // also the X-Oneapi-Request-Id header
	Username  string `json:"username,omitempty"`
	TokenName string `json:"token_name,omitempty"`
	UserGroup string `json:"user_group,omitempty"`
	Group     string `json:"group,omitempty"` // the group whose ratio was applied
	Model     string `json:"model,omitempty"` // as asked; bills use this name
	Sent      string `json:"sent,omitempty"`  // as sent upstream, if it differs
	Endpoint  string `json:"endpoint,omitempty"`
	Stream    bool   `json:"stream,omitempty"`
	Status    int    `json:"status,omitempty"`
	FirstMS   int64  `json:"first_ms,omitempty"` // milliseconds from arrival to the first byte
	TotalMS   int64  `json:"total_ms,omitempty"` // milliseconds from arrival to the last byte
	Retries   int    `json:"retries,omitempty"`
	IP        string `json:"ip,omitempty"`
	Upstream  string `json:"upstream,omitempty"` // the upstream's own request id
}

// Rating is what was applied to turn Usage into Charged, enough to do it again or to explain it. Ratios and prices are
// decimals in their shortest text form, because money never meets a float (L8).
type Rating struct {
	Book            string `json:"book,omitempty"`             // version of the price book
	Mode            string `json:"mode,omitempty"`             // "ratio", "price", "expr" or "free"
	ModelRatio      string `json:"model_ratio,omitempty"`      //
	CompletionRatio string `json:"completion_ratio,omitempty"` //
	CacheRatio      string `json:"cache_ratio,omitempty"`
	CacheWriteRatio string `json:"cache_write_ratio,omitempty"`
	ImageRatio      string `json:"image_ratio,omitempty"`
	AudioRatio      string `json:"audio_ratio,omitempty"`
	AudioOutRatio   string `json:"audio_out_ratio,omitempty"`
	GroupRatio      string `json:"group_ratio,omitempty"`
	GroupSpecial    bool   `json:"group_special,omitempty"` // GroupRatio came from GroupGroupRatio
	ModelPrice      string `json:"model_price,omitempty"`   // US dollars a call
	QuotaPerUnit    string `json:"quota_per_unit,omitempty"`
	Other           string `json:"other,omitempty"`          // product of further ratios (n, size …)
	AudioInPrice    string `json:"audio_in_price,omitempty"` // US dollars per million tokens of audio input, where it has a price of its own
	Tier            string `json:"tier,omitempty"`           // Mode "expr": the tier that matched
	Saturated       bool   `json:"saturated,omitempty"`

	Tools []ToolPrice `json:"tools,omitempty"` // tool calls billed on top
}
