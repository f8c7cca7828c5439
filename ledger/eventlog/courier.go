package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger"
)

// Bounds of a departure (L7).
const (
	// departNow is how many bytes leave without waiting for more: large enough that a request's own cost does not matter.
	departNow = 512 << 10
	// departBytes bounds what leaves at once, well below Kafka's default socket.request.max.bytes of 100 MiB.
	departBytes = 16 << 20
)

// load is one batch on its way to its partition.
type load struct {
	partition int
	parcels   []ledger.Parcel
	bytes     int
	urgent    bool       // it holds more than usage
	done      chan error // gets the outcome; buffered, so that nobody waits for one who left
}

// courier puts the batches of all lanes that are ready at about the same time into one request per broker. A lone batch leaves at
// once, and so does one with more than usage in it, with all that waits; else departures under load are Spacing apart. Each broker
// is asked by itself, so one that hangs holds up its own partitions only. A departure runs in a goroutine of its own, at most
// requestTimeout long, and touches nothing but its loads; there are never more of them than lanes.
type courier struct {
	client  *Client
	log     Appender // in the client's place, if not nil
	spacing time.Duration
	metrics *shipMetrics

	mu       sync.Mutex
	waiting  []*load     // at most one per lane
	bytes    int         // of what waits
	timer    *time.Timer // of the next departure; nil: none is due
	departed time.Time
}

// send carries a batch and waits for its outcome, or for ctx. Alone makes it leave at once and by itself: what has failed before
// must not hold up others again.
func (c *courier) send(ctx context.Context, partition int, parcels []ledger.Parcel, alone bool) error {
	l := &load{partition: partition, parcels: parcels, done: make(chan error, 1)}
	for i := range parcels {
		l.bytes += weight(&parcels[i])
		l.urgent = l.urgent || !parcels[i].Kind.IsUsage()
	}
	if alone {
		go c.deliver(context.WithoutCancel(ctx), []*load{l})
	} else {
		c.wait(l)
	}
	select {
	case err := <-l.done:
		return err
	case <-ctx.Done():
		c.withdraw(l)
		return ctx.Err()
	}
}

// wait puts l among what leaves next.
func (c *courier) wait(l *load) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, l)
	c.bytes += l.bytes
	due := time.Until(c.departed.Add(c.spacing))
	if c.bytes >= departNow || l.urgent {
		due = 0
	}
	switch {
	case c.timer == nil:
		c.timer = time.AfterFunc(due, c.depart)
	case due == 0:
		c.timer.Reset(0) // if it has just fired, it finds less to do
	}
}

// withdraw takes back what has not left yet.
func (c *courier) withdraw(l *load) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.waiting, l); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
		c.bytes -= l.bytes
	}
}

// depart sends what waits. A partition is in a request once: what another source has for it stays for the next one, as does what
// would be too much.
func (c *courier) depart() {
	c.mu.Lock()
	var leaving, staying []*load
	taken, bytes := map[int]bool{}, 0
	for _, l := range c.waiting {
		if taken[l.partition] || len(leaving) > 0 && bytes+l.bytes > departBytes {
			staying = append(staying, l)
			continue
		}
		taken[l.partition] = true
		leaving, bytes = append(leaving, l), bytes+l.bytes
	}
	c.waiting, c.bytes, c.timer = staying, c.bytes-bytes, nil
	if len(leaving) > 0 {
		c.departed = time.Now()
	}
	if len(staying) > 0 {
		c.timer = time.AfterFunc(max(0, c.spacing), c.depart)
	}
	c.mu.Unlock()
	if len(leaving) > 0 {
		c.deliver(context.Background(), leaving)
	}
}

// deliver sends loads, each of another partition, to their leaders and tells each its outcome.
func (c *courier) deliver(ctx context.Context, loads []*load) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if c.log != nil {
		var batches sync.WaitGroup
		for _, l := range loads {
			batches.Go(func() { l.done <- c.log.Append(ctx, l.partition, l.parcels) })
		}
		batches.Wait()
		return
	}
	leaders, err := c.client.leaders(ctx)
	if err != nil {
		finish(loads, err)
		return
	}
	byLeader := map[int][]*load{}
	for _, l := range loads {
		leader, ok := leaders[l.partition]
		if !ok {
			l.done <- kafka.LeaderNotAvailable
			continue
		}
		byLeader[leader] = append(byLeader[leader], l)
	}
	var requests sync.WaitGroup
	for leader, loads := range byLeader {
		requests.Go(func() { c.request(ctx, leader, loads) })
	}
	requests.Wait()
}

func (c *courier) request(ctx context.Context, leader int, loads []*load) {
	m, err := c.client.transport.RoundTrip(ctx, c.client.addr, &produceRequest{
		clientID: c.client.cfg.ClientID, topic: c.client.cfg.Topic, leader: leader, loads: loads,
	})
	if err != nil {
		finish(loads, err)
		return
	}
	c.metrics.requests.Inc()
	res := m.(*produceResponse)
	for _, l := range loads {
		l.done <- res.outcome(l.partition)
	}
}

func finish(loads []*load, err error) {
	for _, l := range loads {
		l.done <- err
	}
}

// leaders returns who leads each partition, as far as it is known. The transport keeps that, so it costs no request.
func (c *Client) leaders(ctx context.Context) (map[int]int, error) {
	topic, _, err := c.describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the leaders of %s: %w", c.cfg.Topic, err)
	}
	leaders := make(map[int]int, len(topic.Partitions))
	for _, p := range topic.Partitions {
		if p.Error == nil && p.Leader.Host != "" {
			leaders[p.ID] = p.Leader.ID
		}
	}
	return leaders, nil
}
