package sqlstore

// User statuses, as New API numbers them.
const (
	UserEnabled  = 1
	UserDisabled = 2
)

// Roles, as New API numbers them.
const (
	RoleGuest = 0
	RoleUser  = 1
	RoleAdmin = 10
	RoleRoot  = 100
)

// Token statuses, as New API numbers them.
const (
	TokenEnabled   = 1
	TokenDisabled  = 2
	TokenExpired   = 3
	TokenExhausted = 4
)

// Channel statuses, as New API numbers them.
const (
	ChannelEnabled      = 1
	ChannelDisabled     = 2 // by hand
	ChannelAutoDisabled = 3
)

// UserRow is what relay nodes and the management API need of a user. Balances are not in it: they come from the ledger.
type UserRow struct {
	ID          int64
	Username    string
	DisplayName string
	Role        int
	Status      int
	Email       string
	Group       string
	Setting     string // JSON, New API's keys
	AccessToken string // management token, may be empty
	AffCode     string
	InviterID   int64
	Remark      string
	AuthVersion int64
	CreatedAt   int64 // Unix seconds
	LastLoginAt int64
	Deleted     bool
}

// TokenRow is one API key.
type TokenRow struct {
	ID                 int64
	UserID             int64
	Key                string // 48 characters, without "sk-"; of a sealed one what stands for it (HashKey)
	Sealed             bool
	Status             int
	Name               string
	CreatedTime        int64
	AccessedTime       int64
	ExpiredTime        int64 // Unix seconds, -1 never
	Unlimited          bool
	ModelLimitsEnabled bool
	ModelLimits        string // comma list
	AllowIPs           string // newline list of IP or CIDR
	Group              string // "" = the user's, "auto"
	CrossGroupRetry    bool
	AutoGroups         string // JSON list
	Deleted            bool
}

// ChannelRow is one upstream account.
type ChannelRow struct {
	ID                int64
	Type              int
	Key               string // several keys: newline list or JSON array
	Organization      string
	TestModel         string
	Status            int
	Name              string
	Weight            int64
	CreatedTime       int64
	TestTime          int64
	ResponseTime      int64 // milliseconds
	BaseURL           string
	Other             string
	Balance           float64 // US dollars as the upstream reported them; informative, never billed with
	BalanceUpdated    int64
	Models            string // comma list
	Group             string // comma list
	UsedQuota         int64
	ModelMapping      string // JSON
	StatusCodeMapping string // JSON
	Priority          int64
	AutoBan           bool
	OtherInfo         string // JSON: status_reason, status_time
	Tag               string
	Setting           string // JSON
	ParamOverride     string // JSON
	HeaderOverride    string // JSON
	Remark            string
	ChannelInfo       string // JSON: is_multi_key, multi_key_mode, multi_key_status_list …
	Settings          string // JSON
}

// Change is one entry of the change log that nodes follow: Kind is "user", "token", "channel" or "option"; ID is the
// row's id, or 0 for options and for "everything of that kind".
type Change struct {
	Seq  int64
	Kind string
	ID   int64
}

// CatalogSink receives catalog rows one by one.
type CatalogSink interface {
	User(row *UserRow)
	Token(row *TokenRow)
	Channel(row *ChannelRow, deleted bool)
	Option(key, value string)
}
