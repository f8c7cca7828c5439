package http1

import (
	"slices"
	"sync"
	"time"
)

// pool keeps connections that wait for their next request. The one used last goes out first, so that those that are not needed
// grow old. A connection that the server closes meanwhile is found when it is asked for, or when its time is over.
type pool struct {
	cfg   *Config
	mu    sync.Mutex
	hosts map[string][]*conn // by address, in the order in which they came
	count int
	ended bool
	timer *time.Timer // runs while there are any
}

func (p *pool) init(cfg *Config) {
	p.cfg, p.hosts = cfg, map[string][]*conn{}
}

// get returns a connection whose server has neither closed it nor sent anything, or nil.
func (p *pool) get(addr string) *conn {
	for {
		n := p.pop(addr)
		if n == nil || n.alive() {
			return n
		}
		n.close()
	}
}

func (p *pool) pop(addr string) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.hosts[addr]
	last := len(idle) - 1
	if last < 0 {
		return nil
	}
	n := idle[last]
	idle[last] = nil
	p.set(addr, idle[:last])
	return n
}

// set keeps what is left of an address. An empty list stays for the next connection; drop takes it away.
func (p *pool) set(addr string, idle []*conn) {
	p.count += len(idle) - len(p.hosts[addr])
	p.hosts[addr] = idle
}

// put keeps a connection, or closes it if enough are kept. If all addresses together have too many, the oldest goes.
func (p *pool) put(n *conn) {
	if drop := p.keep(n); drop != nil {
		drop.close()
	}
}

func (p *pool) keep(n *conn) (drop *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || len(p.hosts[n.addr]) >= p.cfg.MaxIdlePerHost {
		return n
	}
	n.idleSince = time.Now()
	p.set(n.addr, append(p.hosts[n.addr], n))
	if p.timer == nil {
		p.timer = time.AfterFunc(p.cfg.IdleTimeout, p.expire)
	}
	if p.count <= p.cfg.MaxIdle {
		return nil
	}
	oldest := ""
	for addr, idle := range p.hosts {
		if len(idle) > 0 && (oldest == "" || idle[0].idleSince.Before(p.hosts[oldest][0].idleSince)) {
			oldest = addr
		}
	}
	drop = p.hosts[oldest][0]
	p.set(oldest, slices.Delete(p.hosts[oldest], 0, 1))
	return drop
}

// expire closes what was idle for too long, and comes again when the next will have been.
func (p *pool) expire() {
	for _, n := range p.expired(time.Now()) {
		n.close()
	}
}

func (p *pool) expired(now time.Time) (old []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.cfg.IdleTimeout
	for addr, idle := range p.hosts {
		k := 0
		for k < len(idle) && now.Sub(idle[k].idleSince) >= p.cfg.IdleTimeout {
			k++
		}
		old = append(old, idle[:k]...)
		if p.set(addr, slices.Delete(idle, 0, k)); len(p.hosts[addr]) == 0 {
			delete(p.hosts, addr) // an address that is used no more must not stay for ever (L7)
			continue
		}
		next = min(next, p.cfg.IdleTimeout-now.Sub(p.hosts[addr][0].idleSince))
	}
	if p.count > 0 && !p.ended {
		p.timer.Reset(next)
	} else {
		p.timer = nil
	}
	return old
}

func (p *pool) close() {
	for _, n := range p.end() {
		n.close()
	}
}

func (p *pool) end() (all []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for addr, idle := range p.hosts {
		all = append(all, idle...)
		p.set(addr, nil)
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	return all
}
