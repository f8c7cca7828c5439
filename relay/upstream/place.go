package upstream

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"ledgerline/relay/catalog"
)

// place is where the API of a channel lives.
type place struct {
	base   string // without the path of the API
	direct bool   // http1 can reach it: the rest is set
	addr   string // host:port
	host   string
	prefix string // of the path
}

// maxPlaces bounds the places remembered (L7). Addresses change by hand, so more are years of edits: they begin anew.
const maxPlaces = 10_000

// places remembers what the addresses of channels mean. The environment's proxies are read once by net/http, too.
type places struct {
	known sync.Map // string to *place
	count atomic.Int64
}

// of returns the place of a channel. Errors: ErrUnsupported, or a base_url that is no http(s) URL.
func (p *places) of(ch *catalog.Channel) (*place, error) {
	base, known := ch.BaseURL, OpenAICompatible(ch.Type)
	if base == "" {
		base, known = bases[ch.Type]
	}
	if !known {
		return nil, fmt.Errorf("channel %d of type %d: %w", ch.ID, ch.Type, ErrUnsupported)
	}
	if at, ok := p.known.Load(base); ok {
		return at.(*place), nil
	}
	at, ok := newPlace(base)
	if !ok {
		return nil, fmt.Errorf("channel %d: base_url %s is no http or https URL", ch.ID, strconv.Quote(base))
	}
	if p.count.Add(1) > maxPlaces {
		p.known.Clear()
		p.count.Store(1)
	}
	p.known.Store(base, at)
	return at, nil
}

func newPlace(base string) (*place, bool) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, false
	}
	at := &place{base: base}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	// Names that need an encoding, zones, and whatever stands behind the path, are http.Transport's.
	if err != nil || proxy != nil || u.Scheme != "http" || u.Opaque != "" || u.User != nil || strings.ContainsAny(base, "?#") || !plainHost(u.Host) {
		return at, true
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	at.direct, at.addr, at.host, at.prefix = true, net.JoinHostPort(u.Hostname(), port), strings.TrimSuffix(u.Host, ":"), u.EscapedPath()
	return at, true
}

// plainHost reports whether a host, port included, goes over the wire as it stands.
func plainHost(host string) bool {
	for i := range len(host) {
		switch b := host[i]; {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', strings.IndexByte(".-_:[]", b) >= 0:
		default:
			return false
		}
	}
	return true
}

// suffix is the path of the call's API, and its query, escaped.
func (call *Call) suffix() string {
	if call.Channel.Type == TypeAzure {
		const version = "2025-04-01-preview" // AZURE_DEFAULT_API_VERSION
		return "/openai/deployments/" + url.PathEscape(call.Model) + call.Path[len("/v1"):] + "?api-version=" + version
	}
	return call.Path
}
