package relay

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/catalog"
	"ledgerline/relay/dialect"
)

// authenticate finds the key, its user and the groups the request may be served from.
func (x *exchange) authenticate() *dialect.Problem {
	key, pin, hasPin := splitKey(bearer(x.r))
	token, user := x.s.cfg.Catalog.Token(key)
	if token == nil || key == "" {
		return invalidToken()
	}
	switch {
	case token.Status != sqlstore.TokenEnabled:
		return invalidToken()
	case token.Expires != -1 && token.Expires < x.start.Unix():
		return invalidToken()
	case user == nil:
		// New API answers 500 for the key of a deleted user; to the client it is a key that is no longer valid.
		return invalidToken()
	case !user.Enabled():
		return refused(http.StatusForbidden, "", "User has been banned")
	}
	x.token, x.user = token, user
	if token.Restricted && !token.AllowsIP(x.clientIP()) {
		return refused(http.StatusForbidden, "access_denied", "this address is not on the key's allow-list")
	}
	if hasPin {
		if !user.Admin() {
			return refused(http.StatusForbidden, "", "only administrators may pin a channel")
		}
		id, err := strconv.ParseInt(pin, 10, 64)
		if err != nil || id <= 0 {
			return refused(http.StatusBadRequest, "", "the channel behind the key must be a channel id, a whole number above 0")
		}
		x.pinned = id
	}
	x.routes = x.s.cfg.Catalog.Routes()
	x.groups = x.routes.Groups(user, token)
	if len(x.groups) == 0 {
		return refused(http.StatusForbidden, "", "the key's group "+strconv.Quote(token.Group)+" is not open to this user")
	}
	return nil
}

// bearer returns what the client presented as its key.
func bearer(r *http.Request) string {
	key := strings.TrimSpace(r.Header.Get("Authorization"))
	if len(key) > 7 && strings.EqualFold(key[:7], "bearer ") {
		key = strings.TrimSpace(key[7:])
	}
	if key == "" {
		key = r.Header.Get("X-Api-Key")
	}
	if key == "" {
		key = r.Header.Get("X-Goog-Api-Key")
	}
	return key
}

// splitKey takes off the optional "sk-" and the optional "-<channelId>".
func splitKey(s string) (key, pin string, pinned bool) {
	s = strings.TrimPrefix(s, "sk-")
	return strings.Cut(s, "-")
}

// clientIP is the address of the client: the peer's, or the right-most one of X-Forwarded-For that no trusted proxy
// added, if the peer is a trusted proxy.
func (x *exchange) clientIP() netip.Addr {
	return ClientIP(x.r, x.s.cfg.TrustedProxies)
}

// ClientIP is the address of a request's client, given the proxies that are trusted to report it (TRUSTED_PROXIES).
func ClientIP(r *http.Request, trusted []netip.Prefix) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	peer, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	peer = peer.Unmap()
	if !contains(trusted, peer) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		peer = hop.Unmap()
		if !contains(trusted, peer) {
			break
		}
	}
	return peer
}

func contains(networks []netip.Prefix, ip netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// route finds the group, and with it the price, that the request is served in.
func (x *exchange) route() *dialect.Problem {
	model := x.req.Model
	if !x.token.AllowsModel(model) {
		return refused(http.StatusForbidden, "", "This token has no access to model "+model)
	}
	if x.pinned != 0 {
		ch := x.routes.Channel(x.pinned)
		if ch == nil || ch.Status != sqlstore.ChannelEnabled {
			return refused(http.StatusForbidden, "", "the pinned channel does not exist or is disabled")
		}
		x.group = x.groups[0]
		return x.price()
	}
	for _, g := range x.groups {
		if x.routes.Has(g, model) {
			x.group = g
			return x.price()
		}
	}
	name := x.token.Group
	if name == "" {
		name = x.user.Group
	}
	if name == catalog.AutoGroup {
		name += " (" + strings.Join(x.groups, ", ") + ")"
	}
	return noChannel(model, name)
}
