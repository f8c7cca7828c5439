package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"ledgerline/relay"
)

// freshPatience bounds how long a stop waits for the first request of connections that the port took just before: on a
// connection of a load balancer it comes at once, and some clients open connections in advance.
const freshPatience = time.Second

// server is an HTTP server that stops without resetting a request that its port has taken. http.Server drops a request that it
// reads after Shutdown began, and a load balancer may not send that elsewhere, since it cannot know whether it was begun. So
// the port is closed first, and Shutdown begins when every connection has brought its first request to the handler.
type server struct {
	http.Server
	port net.Listener
	open atomic.Int64 // connections

	waiting atomic.Int64 // size of fresh
	mu      sync.Mutex
	fresh   map[net.Conn]struct{} // connections that had no request yet
}

type connKey struct{}

// newServer serves a port with what the settings say, their handler above all, over as many connections as have a share of the files.
func newServer(port net.Listener, settings *http.Server, files fileShares) *server {
	s := &server{fresh: map[net.Conn]struct{}{}}
	s.port = newBoundedListener(relay.Gathering(drained(port)), &s.open, files)
	s.Handler = s.noting(settings.Handler)
	s.ReadHeaderTimeout, s.MaxHeaderBytes, s.IdleTimeout, s.ErrorLog = settings.ReadHeaderTimeout, settings.MaxHeaderBytes, settings.IdleTimeout, settings.ErrorLog
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		s.note(c, true)
		return relay.ConnContext(context.WithValue(ctx, connKey{}, c), c)
	}
	s.ConnState = func(c net.Conn, state http.ConnState) {
		counted(&s.open, state)
		if state == http.StateClosed || state == http.StateHijacked {
			s.note(c, false)
		}
	}
	return s
}

// noting is the handler that knows which connections are not fresh any more.
func (s *server) noting(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			s.note(c, false)
		}
		h.ServeHTTP(w, r)
	})
}

func (s *server) note(c net.Conn, fresh bool) {
	if !fresh && s.waiting.Load() == 0 { // nearly always
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh {
		s.fresh[c] = struct{}{}
	} else {
		delete(s.fresh, c)
	}
	s.waiting.Store(int64(len(s.fresh)))
}

// run serves until ctx ends. It then closes the port and returns nil, with requests still running.
func (s *server) run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(s.port) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	if err := s.port.Close(); err != nil {
		return err //nolint:wrapcheck // the caller says what failed
	}
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		return err
	}
	const poll = time.Millisecond
	for end := time.Now().Add(freshPatience); s.waiting.Load() > 0 && time.Now().Before(end); {
		time.Sleep(poll)
	}
	return nil
}
