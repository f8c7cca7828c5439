package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy forwards TCP connections to an engine or a node, and is where a test cuts, delays and redirects them.
type proxy struct {
	Addr     string
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	to     string        // "": connections are taken and closed at once
	delay  time.Duration // of every piece, each way
	silent bool          // what is sent stays away, as on a line that is dead and does not say so
	heals  chan struct{} // closed when a dead line comes back
	open   map[net.Conn]struct{}
}

func startProxy(t testing.TB, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Addr: listener.Addr().String(), listener: listener, to: to, heals: make(chan struct{}), open: map[net.Conn]struct{}{}}
	p.all.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.heal()
		p.cut()
		p.all.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(client) })
	}
}

// serve copies both ways until either side ends.
func (p *proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	if to == "" {
		return
	}
	server, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	p.mu.Lock()
	if p.to != to { // cut or redirected meanwhile
		p.mu.Unlock()
		return
	}
	p.open[client], p.open[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.open, client)
		delete(p.open, server)
		p.mu.Unlock()
	}()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			p.copy(way[1], way[0])
			_ = client.Close()
			_ = server.Close()
		})
	}
	both.Wait()
}

func (p *proxy) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		delay, silent, heals := p.delay, p.silent, p.heals
		p.mu.Unlock()
		if silent {
			<-heals
		} else if delay > 0 {
			<-time.After(delay)
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// has reports whether a connection that an engine sees as coming from this port is one of the line's.
func (p *proxy) has(port string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		if _, from, err := net.SplitHostPort(c.LocalAddr().String()); err == nil && from == port {
			return true
		}
	}
	return false
}

// cut closes every connection; new ones are taken as before.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.Close()
	}
}

// target sends new connections elsewhere ("": nowhere) and closes those that are open.
func (p *proxy) target(to string) {
	p.mu.Lock()
	p.to = to
	p.mu.Unlock()
	p.cut()
}

// hang lets nothing through, and closes nothing, until heal.
func (p *proxy) hang() { p.set(true, 0) }

// slow delays every piece that passes.
func (p *proxy) slow(by time.Duration) { p.set(false, by) }

// heal ends hang and slow.
func (p *proxy) heal() { p.set(false, 0) }

func (p *proxy) set(silent bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent, p.delay = silent, delay
	if !silent {
		close(p.heals)
		p.heals = make(chan struct{})
	}
}
