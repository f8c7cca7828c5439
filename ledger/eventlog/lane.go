package eventlog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger"
)

// lane carries the events of one source to one partition. Its queue holds what waits and, at its head, what is under way:
// nothing leaves it before it is acknowledged.
type lane struct {
	shipper   *Shipper
	source    Source
	reread    Rereader // nil: the source cannot, so a full lane blocks it
	partition int

	batchBytes int // of run alone; halved when the broker finds batches too large

	wake chan struct{} // something was queued, or left to be reread
	room chan struct{} // something was acknowledged

	mu     sync.Mutex
	queue  []ledger.Parcel
	bytes  int
	queued uint64 // the highest sequence that ever was in queue
	left   uint64 // if above queued: sequences up to here were left in the journal to be reread
}

func weight(p *ledger.Parcel) int { return len(p.Value) + parcelOverhead }

// push queues p, or leaves it in the journal if the lane is full and the source can be reread, or waits for room.
func (l *lane) push(ctx context.Context, p ledger.Parcel) error {
	for {
		l.mu.Lock()
		switch {
		case p.Seq <= l.queued: // came in by a reread
			l.mu.Unlock()
			return nil
		case l.left <= l.queued && (len(l.queue) == 0 || l.bytes+weight(&p) <= l.shipper.cfg.LaneBytes):
			l.add(p)
			l.mu.Unlock()
			signal(l.wake)
			return nil
		case l.reread != nil:
			l.left = p.Seq
			l.mu.Unlock()
			signal(l.wake)
			return nil
		}
		l.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *lane) add(p ledger.Parcel) {
	l.queue = append(l.queue, p)
	l.bytes += weight(&p)
	l.queued = p.Seq
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run ships the lane's events until ctx ends.
func (l *lane) run(ctx context.Context) {
	wait := newBackoff(l.shipper.cfg.Jitter)
	for {
		if err := l.refill(ctx); err != nil {
			l.shipper.cfg.Logger.Warn("cannot reread the journal, trying again", "partition", l.partition, "err", err)
			if !pause(ctx, wait.next()) {
				return
			}
		}
		if len(l.head()) == 0 {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !l.ship(ctx, l.head()) {
			return
		}
	}
}

// head returns the batch to send next: the first parcels of the queue, at most batchBytes but at least one.
func (l *lane) head() []ledger.Parcel {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) {
		size += weight(&l.queue[n])
		if n > 0 && size > l.batchBytes {
			break
		}
		n++
	}
	return l.queue[:n:n]
}

// ship repeats one batch until it is acknowledged. It reports false if ctx ended before.
func (l *lane) ship(ctx context.Context, batch []ledger.Parcel) bool {
	m := l.shipper.metrics
	wait := newBackoff(l.shipper.cfg.Jitter)
	for attempt := 1; ; attempt++ {
		start := time.Now()
		err := l.shipper.produce(ctx, l.partition, batch, attempt)
		if err == nil {
			m.latency.Observe(time.Since(start).Seconds())
			m.batch.Observe(float64(len(batch)))
			l.acked(batch)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		m.retries.Inc()
		if attempt == 1 || attempt%20 == 0 { // about every 100 s while it lasts
			l.shipper.cfg.Logger.Warn("events are not acknowledged yet, trying again", "attempt", attempt, "err", err)
		}
		if errors.Is(err, kafka.MessageSizeTooLarge) && len(batch) > 1 {
			l.batchBytes = max(1, l.batchBytes/2)
			batch = l.head()
			continue
		}
		if !pause(ctx, wait.next()) {
			return false
		}
	}
}

// acked removes batch from the queue and tells the source.
func (l *lane) acked(batch []ledger.Parcel) {
	l.mu.Lock()
	for i := range batch {
		l.bytes -= weight(&batch[i])
	}
	n := len(batch)
	last := batch[n-1].Seq
	if n == len(l.queue) {
		l.queue = nil
	} else {
		l.queue = l.queue[n:] // append moves the rest when the array is used up
	}
	l.mu.Unlock()
	l.source.Acked(l.partition, last)
	l.shipper.metrics.shipped.Add(float64(n))
	signal(l.room)
}

// refill reads back what was left in the journal, as soon as half of the lane is free.
func (l *lane) refill(ctx context.Context) error {
	half := l.shipper.cfg.LaneBytes / 2
	l.mu.Lock()
	due := l.left > l.queued && l.bytes <= half
	after := l.queued
	l.mu.Unlock()
	if !due {
		return nil
	}
	parcels, err := l.reread.Reread(ctx, l.partition, after, half)
	if err != nil {
		return err
	}
	if len(parcels) == 0 {
		return errors.New("the journal has lost events that it had announced")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range parcels {
		if p.Seq > l.queued {
			l.add(p)
		}
	}
	l.shipper.metrics.reread.Add(float64(len(parcels)))
	return nil
}

// drained returns when everything pushed so far is acknowledged.
func (l *lane) drained(ctx context.Context) error {
	for {
		l.mu.Lock()
		empty := len(l.queue) == 0 && l.left <= l.queued
		l.mu.Unlock()
		if empty {
			return nil
		}
		select {
		case <-l.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *lane) backlog() (parcels int, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return 0, time.Time{}
	}
	return len(l.queue), l.queue[0].At
}
