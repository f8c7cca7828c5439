package relay_test

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// clerk does in small what the quota consumer does: it folds the log into the database and the counters, and begins and opens
// epochs. The consumers cannot be imported here; a clerk, besides, does only what a test tells it to.
type clerk struct {
	s      *stack
	mu     sync.Mutex // held while it works; a test that holds it has stopped the clerk
	cancel context.CancelFunc
	ended  chan struct{}

	seen   sync.Mutex
	events map[string]*ledger.Event // usage, by request id
	all    []ledger.Event
	ignore map[ledger.ID]bool // incarnations that no epoch waits for
}

func rand8() string { return rand.Text()[:8] }

func startClerk(s *stack) *clerk {
	ctx, cancel := context.WithCancel(context.Background())
	c := &clerk{s: s, cancel: cancel, ended: make(chan struct{}), events: map[string]*ledger.Event{}, ignore: map[ledger.ID]bool{}}
	go func() {
		defer close(c.ended)
		for ctx.Err() == nil {
			c.mu.Lock()
			for p := range partitions {
				if err := c.look(ctx, p); err != nil && ctx.Err() == nil {
					s.Errorf("clerk: %v", err)
					cancel()
				}
			}
			c.mu.Unlock()
			select {
			case <-time.After(2 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	s.Cleanup(func() { cancel(); <-c.ended })
	return c
}

// look brings one partition up to date.
func (c *clerk) look(ctx context.Context, p int) error {
	if err := c.fold(ctx, p); err != nil {
		return err
	}
	states, err := c.s.counters.State(ctx, p)
	if err != nil {
		return err
	}
	switch st := &states[0]; {
	case !st.Present || st.Foreign || c.holdsGone(ctx, st):
		call, err := c.s.db.AllocateEpoch(ctx, p, st.Epoch)
		if err != nil {
			return err
		}
		call.Gone = c.gone(ctx)
		_, err = c.s.counters.Begin(ctx, call)
		return err
	case !st.Open && c.allReported(ctx, st):
		_, end, err := c.s.events.Bounds(ctx, p)
		if err != nil {
			return err
		}
		record := ledger.EpochRecord{Partition: p, Epoch: st.Epoch, End: end, Reporters: st.Reports, OpenedAt: time.Now()}
		if stored, err := c.s.db.StoreEpoch(ctx, record); !stored {
			return err
		}
		_, err = c.s.counters.OpenEpoch(ctx, p, st.Epoch, end)
		return err
	}
	return nil
}

// gone lists the incarnations that were given up.
func (c *clerk) gone(ctx context.Context) (gone []ledger.ID) {
	producers, _ := c.s.db.Producers(ctx) // none if the database is away
	for _, p := range producers {
		if p.State == sqlstore.ProducerGone {
			gone = append(gone, p.ID)
		}
	}
	return gone
}

// holdsGone reports whether the epoch names an incarnation that was given up.
func (c *clerk) holdsGone(ctx context.Context, st *ledger.Counters) bool {
	return slices.ContainsFunc(c.gone(ctx), func(id ledger.ID) bool { return slices.Contains(st.Members, id) })
}

func (c *clerk) allReported(ctx context.Context, st *ledger.Counters) bool {
	producers, err := c.s.db.Producers(ctx)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(producers, func(p sqlstore.Producer) bool {
		return p.State == sqlstore.ProducerLive && !slices.Contains(st.Reports, p.ID) && !c.ignore[p.ID]
	})
}

// fold applies what is new in the log.
func (c *clerk) fold(ctx context.Context, p int) error {
	my, err := c.s.db.Partition(ctx, p)
	if err != nil {
		return err
	}
	_, end, err := c.s.events.Bounds(ctx, p)
	if err != nil || end == my.Offset {
		return err
	}
	var records []ledger.Record
	err = c.s.events.Read(ctx, p, my.Offset, end, func(part []ledger.Record) error {
		records = append(records, part...)
		return nil
	})
	if err != nil {
		return err
	}
	result, err := c.s.db.Flush(ctx, sqlstore.FlushCall{Partition: p, From: my.Offset, To: end, Records: records, Now: time.Now()})
	if err != nil {
		return err
	}
	c.note(records)
	states, err := c.s.counters.State(ctx, p)
	if err != nil || states[0].Done != my.Offset {
		return err
	}
	return c.apply(ctx, &states[0], records, result.Skipped, my.Offset, end)
}

func (c *clerk) apply(ctx context.Context, st *ledger.Counters, records []ledger.Record, skipped []int64, from, to int64) error {
	sums := map[ledger.Account]*ledger.Sum{}
	skip := map[int64]bool{}
	for _, o := range skipped {
		skip[o] = true
	}
	for i := range records {
		ev := &records[i].Event
		if o := records[i].Offset; o < from || o >= to || skip[o] {
			continue
		}
		for _, d := range ev.Deltas(nil) {
			sum := sums[d.Account]
			if sum == nil {
				sum = &ledger.Sum{Account: d.Account}
				sums[d.Account] = sum
			}
			sum.Granted += d.Balance.Granted
			sum.Charged += d.Balance.Charged
			if ev.Hold != nil && ev.Hold.Epoch == st.Epoch && (d.Account.Kind == ledger.UserAccount || ev.Hold.Token) {
				sum.Settled += d.Balance.Charged
			}
		}
	}
	call := ledger.ApplyCall{Partition: st.Partition, Epoch: st.Epoch, From: from, To: to}
	for _, sum := range sums {
		if sum.Account.Kind != ledger.ChannelAccount {
			call.Sums = append(call.Sums, *sum)
		}
	}
	reply, err := c.s.counters.Apply(ctx, call)
	if at := reply.SplitAt; err == nil && at > 0 {
		if err = c.apply(ctx, st, records, skipped, from, at); err == nil {
			err = c.apply(ctx, st, records, skipped, at, to)
		}
	}
	return err
}

func (c *clerk) note(records []ledger.Record) {
	c.seen.Lock()
	defer c.seen.Unlock()
	for i := range records {
		ev := records[i].Event
		c.all = append(c.all, ev)
		if ev.Kind.IsUsage() {
			c.events[ev.Request.ID] = &ev
		}
	}
}

func (c *clerk) find(request string) *ledger.Event {
	c.seen.Lock()
	defer c.seen.Unlock()
	return c.events[request]
}

// usage returns all usage events so far.
func (c *clerk) usage() []ledger.Event {
	c.seen.Lock()
	defer c.seen.Unlock()
	var out []ledger.Event
	for _, ev := range c.all {
		if ev.Kind.IsUsage() {
			out = append(out, ev)
		}
	}
	return out
}

// catchUp waits until database and counters have all that is in the log.
func (c *clerk) catchUp() {
	c.s.Helper()
	for p := range partitions {
		_, end, err := c.s.events.Bounds(c.s.Context(), p)
		c.s.must(err)
		c.s.await("the clerk", func() bool {
			my, err := c.s.db.Partition(c.s.Context(), p)
			c.s.must(err)
			states, err := c.s.counters.State(c.s.Context(), p)
			c.s.must(err)
			return my.Offset >= end && states[0].Done >= end
		})
	}
}
