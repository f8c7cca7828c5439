package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// dialAtOnce is how many of the idle connections are made, or used again, at once: fewer than a listener's backlog.
	dialAtOnce = 64
	// idlePatience bounds one request over an idle connection.
	idlePatience = 30 * time.Second
)

// idleConn is a connection that a client keeps open, at little cost to this process.
type idleConn struct {
	conn net.Conn
	read *bufio.Reader
}

// idleConnections opens many connections, uses each once, measures what they cost while nothing comes over them, and uses each again.
func (b *bench) idleConnections(ctx context.Context, t *target) error {
	work, err := b.workload(kindPlain)
	if err != nil {
		return err
	}
	if err := settle(ctx, t); err != nil {
		return err
	}
	_, before := procStat(t.child.pid())
	without, err := b.load(ctx, t, &work, b.o.duration)
	if err != nil {
		return err
	}
	conns := make([]idleConn, b.o.idle)
	defer func() {
		for i := range conns {
			conns[i].close()
		}
	}()
	if err := each(conns, func(c *idleConn) error { return c.use(ctx, t) }); err != nil {
		return fmt.Errorf("open %d connections: %w", len(conns), err)
	}
	_, after := procStat(t.child.pid())
	with, err := b.load(ctx, t, &work, b.o.duration)
	if err != nil {
		return err
	}
	if err := each(conns, func(c *idleConn) error { return c.use(ctx, t) }); err != nil {
		return fmt.Errorf("use %d connections again: %w", len(conns), err)
	}
	fmt.Fprintf(b.out, "\n%s: %d idle connections, each used before and after: none failed; memory %d MB before, %d MB with them (%d KB each)\n",
		t.name, len(conns), before>>20, after>>20, max(0, after-before)/int64(len(conns))>>10)
	fmt.Fprintf(b.out, "  %.0f requests/s beside them (%.0f without), p50 %s (%s), %d failed\n",
		with.perSecond(b.o.duration), without.perSecond(b.o.duration), shortTime(with.p50()), shortTime(without.p50()), with.failed+without.failed)
	if n := with.failed + without.failed; n > 0 {
		return fmt.Errorf("%d requests beside the idle connections failed", n)
	}
	return nil
}

func (r *loadResult) perSecond(d time.Duration) float64 {
	return float64(len(r.latencies)) / d.Seconds()
}

func (r *loadResult) p50() time.Duration {
	slices.Sort(r.latencies)
	return r.latencies[len(r.latencies)/2]
}

// close makes the next request open a new connection.
func (c *idleConn) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// each does f for all connections, dialAtOnce at a time.
func each(conns []idleConn, f func(c *idleConn) error) error {
	var group sync.WaitGroup
	errs := make([]error, dialAtOnce)
	for worker := range dialAtOnce {
		group.Go(func() {
			for i := worker; i < len(conns) && errs[worker] == nil; i += dialAtOnce {
				errs[worker] = f(&conns[i])
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// use sends one request for a list of models, which needs a key and no upstream.
func (c *idleConn) use(ctx context.Context, t *target) error {
	status, _, err := c.send(ctx, t, fmt.Appendf(nil, "GET /v1/models HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n\r\n", t.key), idlePatience)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("status %d", status)
	}
	return nil
}

// send sends a request, over a new connection the first time, and reads the answer to its end. After an error the connection is of
// no use any more.
func (c *idleConn) send(ctx context.Context, t *target, request []byte, patience time.Duration) (status int, head http.Header, err error) {
	if c.conn == nil {
		u, err := url.Parse(t.url)
		if err != nil {
			return 0, nil, fmt.Errorf("parse URL: %w", err)
		}
		var d net.Dialer
		if c.conn, err = d.DialContext(ctx, "tcp", u.Host); err != nil {
			return 0, nil, fmt.Errorf("connect: %w", err)
		}
		const small = 512 // thousands of them are in this process
		c.read = bufio.NewReaderSize(c.conn, small)
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, fmt.Errorf("bound request: %w", err)
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, nil, fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(c.read, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("read response: %w", err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, nil, fmt.Errorf("read response: %w", err)
	}
	if err := resp.Body.Close(); err != nil {
		return 0, nil, fmt.Errorf("read response: %w", err)
	}
	return resp.StatusCode, resp.Header, nil
}
