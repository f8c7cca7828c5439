package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// overloadBy is how much more is offered than the node can do at its best.
	overloadBy = 2
	// overloadPatience is how long a client waits for its answer before it gives up.
	overloadPatience = 10 * time.Second
	// overloadClients bounds the requests under way, and with them what the load itself costs on the same machine.
	overloadClients = 8192
	// offerEvery is how often requests are let go; finer steps the clock of a busy machine does not keep.
	offerEvery = 5 * time.Millisecond
)

// offered is what became of the requests of an open load: they come at their own pace, whether the earlier ones were answered or not.
type offered struct {
	due, sent                           int64 // those that were due while all clients waited were not sent
	answered, refused, unexplained, bad atomic.Int64
	mu                                  sync.Mutex
	why                                 error
}

// overload finds what the node does at its best, then offers twice as much, and compares what is answered.
func (b *bench) overload(ctx context.Context, t *target) error {
	work, err := b.workload(kindPlain)
	if err != nil {
		return err
	}
	together, err := apart(t.own(), []int{b.upstream.pid()})
	if err != nil {
		return err
	}
	defer together()
	peak, usual := 0.0, []float64{} // requests/s; CPU µs of the relay for each
	for range b.o.runs {
		if err := settle(ctx, t); err != nil {
			return err
		}
		cpu, _ := procStat(t.child.pid())
		r, err := b.load(ctx, t, &work, b.o.duration)
		if err != nil {
			return err
		}
		now, _ := procStat(t.child.pid())
		peak = max(peak, r.perSecond(b.o.duration))
		usual = append(usual, float64((now-cpu).Microseconds())/float64(len(r.latencies)))
	}
	if err := settle(ctx, t); err != nil {
		return err
	}
	var o offered
	lasts := 2 * overloadPatience // so that what gives up is seen
	before, _ := procStat(t.child.pid())
	answered, took := b.offer(ctx, t, work.body, overloadBy*peak, lasts, &o)
	after, rss := procStat(t.child.pid())
	each := float64((after - before).Microseconds()) / float64(max(1, o.answered.Load()))
	fmt.Fprintf(b.out, "\n%s: %.0f requests/s at the peak (%d clients). Offered %.0f/s for %s, %.0f/s sent (at most %d at once): "+
		"%.0f/s answered while it lasted, %.0f%% of the peak; of %d sent %d answered, %d refused with 429 or 503 and Retry-After, "+
		"%d refused otherwise, %d failed; memory %d MB\n",
		t.name, peak, b.o.concurrency, float64(o.due)/took.Seconds(), took.Round(time.Second), float64(o.sent)/took.Seconds(), overloadClients,
		float64(answered)/took.Seconds(), 100*float64(answered)/took.Seconds()/peak,
		o.sent, o.answered.Load(), o.refused.Load(), o.unexplained.Load(), o.bad.Load(), rss>>20)
	fmt.Fprintf(b.out, "  CPU of the relay for each answer, refusals included: %.0f µs, %.0f µs at the peak (%.0f%% of the answers per CPU-second)\n",
		each, median(usual), 100*median(usual)/each)
	if o.why != nil {
		fmt.Fprintf(b.out, "  one of the failures: %v\n", o.why)
	}
	return nil
}

// offer lets requests go at a fixed rate, and returns how many were answered while it did, and how long that was.
func (b *bench) offer(ctx context.Context, t *target, body []byte, rate float64, lasts time.Duration, o *offered) (answered int64, took time.Duration) {
	request := fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", t.bearer(), len(body), body)
	clients := make(chan *idleConn, overloadClients)
	for range overloadClients {
		clients <- &idleConn{}
	}
	var flying sync.WaitGroup
	began := time.Now()
	tick := time.NewTicker(offerEvery)
	defer tick.Stop()
	for took < lasts && ctx.Err() == nil {
		<-tick.C
		took = time.Since(began)
		for ; float64(o.due) < rate*took.Seconds(); o.due++ {
			select {
			case c := <-clients:
				o.sent++
				flying.Go(func() {
					o.one(ctx, c, t, request)
					clients <- c
				})
			default:
			}
		}
	}
	answered = o.answered.Load()
	flying.Wait()
	close(clients)
	for c := range clients {
		c.close()
	}
	return answered, took
}

// one sends a request over a connection that nobody else uses.
func (o *offered) one(ctx context.Context, c *idleConn, t *target, request []byte) {
	status, head, err := c.send(ctx, t, request, overloadPatience)
	switch {
	case err != nil:
		o.fail(err)
		c.close()
	case status == http.StatusOK:
		o.answered.Add(1)
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		if n, err := strconv.Atoi(head.Get("Retry-After")); err == nil && n > 0 {
			o.refused.Add(1)
			return
		}
		o.unexplained.Add(1)
	default:
		o.fail(fmt.Errorf("status %d", status))
	}
}

func (o *offered) fail(err error) {
	o.bad.Add(1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why = err
}
