package relaytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Server is a mock upstream that listens on a port of its own.
type Server struct {
	*Upstream
	URL string // without a path, such as http://127.0.0.1:34567

	srv  *http.Server
	done chan error
}

// Start makes a mock upstream and lets it listen on addr, "" meaning any free port of the loopback address. Close it.
func Start(addr string, opts Options) (*Server, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	u, err := New(opts)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start mock upstream: %w", err), u.Close())
	}
	s := &Server{
		Upstream: u, URL: "http://" + ln.Addr().String(),
		srv:  &http.Server{Handler: u, ReadHeaderTimeout: 30 * time.Second},
		done: make(chan error, 1),
	}
	go func() { s.done <- s.srv.Serve(ln) }()
	return s, nil
}

// Close stops the server, ending the streams that are open, waits for it, and closes the oracle file.
func (s *Server) Close() error {
	err := s.srv.Close()
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, s.Upstream.Close())
}

// bufferPool lends ReverseProxy its copy buffers.
type bufferPool struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (p *bufferPool) Get() []byte { return *p.pool.Get().(*[]byte) }

// Put implements httputil.BufferPool.
func (p *bufferPool) Put(b []byte) { p.pool.Put(&b) }

// ReverseProxy returns the baseline that the relay's cost is measured against: the standard library's proxy to target,
// as good as it can be set up. idle is the number of connections kept, at least the concurrency of the load.
func ReverseProxy(target *url.URL, idle int) http.Handler {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost = idle, idle
	t.DisableCompression = true
	t.Proxy = nil
	const copyBytes = 32 << 10 // what ReverseProxy allocates per answer without a pool
	pool := &bufferPool{sync.Pool{New: func() any { return new(make([]byte, copyBytes)) }}}
	return &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		Transport:     t,
		FlushInterval: -1,
		BufferPool:    pool,
	}
}
