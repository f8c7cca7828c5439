package upstream

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// place is where a call goes: a URL, taken apart once.
type place struct {
	target string
	url    *url.URL
	direct bool   // it can be spoken to without the standard transport
	addr   string // host and port to connect to
	host   string // of the Host header
	uri    string // of the request line
}

// placeKey names a place before its URL is put together.
type placeKey struct {
	base, path string
	kind       int
}

// maxPlaces bounds what is remembered (L7): several times as many as there are channels, whose addresses may change.
const maxPlaces = 16 << 10

// places remembers where calls go. It is safe for use by many goroutines.
type places struct {
	known sync.Map // placeKey to *place
	count atomic.Int64
}

// of returns the place of an API path on a channel; the errors are those of Target.
func (ps *places) of(call *Call) (*place, error) {
	ch := call.Channel
	key := placeKey{ch.BaseURL, call.Path, ch.Type}
	if p, ok := ps.known.Load(key); ok {
		return p.(*place), nil
	}
	target, err := Target(ch, call.Path, call.Model)
	if err != nil {
		return nil, err
	}
	p, err := newPlace(target)
	if err != nil {
		return nil, err
	}
	if ch.Type == TypeAzure { // the model is part of it, and models are the clients' to name
		return p, nil
	}
	if ps.count.Add(1) > maxPlaces {
		ps.known.Clear()
		ps.count.Store(1)
	}
	ps.known.Store(key, p)
	return p, nil
}

func newPlace(target string) (*place, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err //nolint:wrapcheck // wrapped by Do
	}
	p := &place{target: target, url: u, host: u.Host, uri: u.RequestURI(), addr: u.Host}
	if u.Port() == "" {
		p.addr = net.JoinHostPort(u.Hostname(), "80")
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	p.direct = err == nil && proxy == nil && u.Scheme == "http" && u.User == nil && plainHost(u.Host)
	return p, nil
}

// plainHost reports whether a host can stand in a Host header as it is; the others (international names, zones) are for
// the standard library to write.
func plainHost(host string) bool {
	return host != "" && !strings.HasSuffix(host, ":") && !strings.ContainsFunc(host, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '%'
	})
}

// validValue reports whether a header's value can go out as it is. The standard transport refuses the others by name.
func validValue(v string) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
