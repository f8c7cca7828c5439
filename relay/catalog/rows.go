package catalog

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"ledgerline/ledger/sqlstore"
)

// User is what the relay needs of a user.
type User struct {
	ID       int64
	Username string
	Role     int
	Status   int
	Group    string
	// AcceptUnpriced is the user's own consent to models without a price (setting accept_unset_model_ratio_model).
	AcceptUnpriced bool
	RecordIP       bool
}

// Enabled reports whether the user may use the relay.
func (u *User) Enabled() bool { return u.Status == sqlstore.UserEnabled }

// Admin reports whether the user is an administrator or root.
func (u *User) Admin() bool { return u.Role >= sqlstore.RoleAdmin }

// Token is one API key.
type Token struct {
	ID         int64
	UserID     int64
	Name       string
	Status     int
	Expires    int64 // Unix seconds, -1 never
	Unlimited  bool
	Models     []string // nil: all models
	Networks   []netip.Prefix
	Restricted bool // an allow-list is set (which may have no valid entry: then nobody is allowed)
	Group      string
	CrossGroup bool
	AutoGroups []string

	sealed bool // its row holds what stands for the key
}

// AllowsModel reports whether the key may use the model.
func (t *Token) AllowsModel(model string) bool {
	return t.Models == nil || slices.Contains(t.Models, model)
}

// AllowsIP reports whether the client address is on the key's allow-list.
func (t *Token) AllowsIP(ip netip.Addr) bool {
	if !t.Restricted {
		return true
	}
	ip = ip.Unmap()
	return slices.ContainsFunc(t.Networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// gather collects rows as the database yields them. A nil entry marks a row that is gone.
type gather struct {
	users    map[int64]*User
	tokens   map[string]*Token
	keys     map[int64]string
	gone     []int64 // tokens
	channels map[int64]*Channel
	options  map[string]string
	log      *slog.Logger
}

// User implements sqlstore.CatalogSink.
func (g *gather) User(r *sqlstore.UserRow) {
	if r.Deleted {
		g.users[r.ID] = nil
		return
	}
	g.users[r.ID] = &User{
		ID: r.ID, Username: r.Username, Role: r.Role, Status: r.Status, Group: r.Group,
		AcceptUnpriced: gjson.Get(r.Setting, "accept_unset_model_ratio_model").Bool(),
		RecordIP:       gjson.Get(r.Setting, "record_ip_log").Bool(),
	}
}

// Token implements sqlstore.CatalogSink.
func (g *gather) Token(r *sqlstore.TokenRow) {
	if r.Deleted {
		g.gone = append(g.gone, r.ID)
		return
	}
	t := &Token{
		ID: r.ID, UserID: r.UserID, Name: r.Name, Status: r.Status, Expires: r.ExpiredTime, Unlimited: r.Unlimited,
		Group: r.Group, CrossGroup: r.CrossGroupRetry, sealed: r.Sealed,
	}
	if r.ModelLimitsEnabled {
		t.Models = append([]string{}, list(r.ModelLimits, ",")...)
	}
	for _, entry := range list(r.AllowIPs, "\n") {
		t.Restricted = true
		prefix, err := parseNetwork(entry)
		if err != nil {
			g.log.Warn("an entry of a key's allow-list is no IP address or CIDR; it allows nobody", "token", r.ID, "entry", entry)
			continue
		}
		t.Networks = append(t.Networks, prefix)
	}
	if r.AutoGroups != "" {
		if err := json.Unmarshal([]byte(r.AutoGroups), &t.AutoGroups); err != nil {
			g.log.Warn("the auto groups of a key are no JSON list; the general ones apply", "token", r.ID)
		}
	}
	g.tokens[r.Key], g.keys[r.ID] = t, r.Key
}

// Channel implements sqlstore.CatalogSink.
func (g *gather) Channel(r *sqlstore.ChannelRow, deleted bool) {
	if deleted {
		g.channels[r.ID] = nil
		return
	}
	g.channels[r.ID] = newChannel(r, g.log)
}

// Option implements sqlstore.CatalogSink.
func (g *gather) Option(key, value string) { g.options[key] = value }

func parseNetwork(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		return p.Masked(), err
	}
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, ip.BitLen()), nil
}

// list splits and trims, dropping empty entries.
func list(s, sep string) []string {
	var out []string
	for part := range strings.SplitSeq(s, sep) {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
