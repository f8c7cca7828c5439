package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/ledger"
)

// Source is where parcels come from: a journal.
type Source interface {
	// Next blocks until there are durable events that it has not returned yet, and returns at most max of them in journal
	// order. io.EOF says that there will never be more. The values must stay as they are: a timed-out attempt may still
	// be reading them.
	Next(ctx context.Context, max int) ([]ledger.Parcel, error)
	// Acked says that every event of partition up to seq is in the log. It is called in ascending order within a partition,
	// from one goroutine per partition.
	Acked(partition int, seq uint64)
}

// Appender is another log than a Kafka cluster, for simulations: NewShipperTo writes to it.
type Appender interface {
	// Append writes parcels of one partition once, in their order. nil means that all of them are durable; after an error the log may
	// have them or not, or get them later. It is called for several partitions at once.
	Append(ctx context.Context, partition int, parcels []ledger.Parcel) error
}

// Rereader is a Source that can return its events a second time. It keeps one stuck partition from holding up the others:
// what does not fit into the stuck one's lane is left in the journal and read again later.
type Rereader interface {
	Source
	// Reread returns events of partition with a sequence above after, in order, about maxBytes of them but at least one if
	// there is any.
	Reread(ctx context.Context, partition int, after uint64, maxBytes int) ([]ledger.Parcel, error)
}

// Defaults of ShipperConfig.
const (
	// DefaultBatchBytes keeps a batch below Kafka's default message.max.bytes of 1,048,588 with headers and framing.
	DefaultBatchBytes = 900_000
	// DefaultLaneBytes bounds what waits in memory per partition: four full batches hide the round trip.
	DefaultLaneBytes = 4 << 20
	// DefaultSpacing is the time between two departures. A lone event goes at once, and one that is no usage (a credit, say) does not
	// wait either; under load it makes batches, which cost the broker and its disk far less, and is small beside the consumers' 200 ms.
	DefaultSpacing = 50 * time.Millisecond
	// nextMax bounds the parcels asked of a source at once.
	nextMax = 1024
	// parcelOverhead is what a record costs beside its value: key, headers, framing.
	parcelOverhead = 320
)

// ShipperConfig tunes a Shipper. Zero fields take the defaults.
type ShipperConfig struct {
	BatchBytes int           // bytes of one batch: what one partition gets at once
	LaneBytes  int           // bytes waiting or under way per partition and source
	Spacing    time.Duration // between two departures; negative: none
	// Jitter returns a random duration from 0 to below its argument, for the pauses after failures; nil: math/rand. A simulation
	// gives one that repeats.
	Jitter     func(time.Duration) time.Duration
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Shipper carries events from journals to the log. Per source and partition one request is under way at a time, repeated until it is
// acknowledged by all in-sync replicas, so no event overtakes an earlier one (L5).
type Shipper struct {
	client  *Client // nil: what is written to is no cluster
	cfg     ShipperConfig
	metrics *shipMetrics
	courier *courier

	mu    sync.Mutex
	lanes map[*lane]struct{} // of all sources, for the metrics
}

// NewShipper returns a shipper that writes through client.
func NewShipper(client *Client, cfg ShipperConfig) *Shipper { return newShipper(client, nil, cfg) }

// NewShipperTo returns a shipper that writes to log.
func NewShipperTo(log Appender, cfg ShipperConfig) *Shipper { return newShipper(nil, log, cfg) }

func newShipper(client *Client, log Appender, cfg ShipperConfig) *Shipper {
	if cfg.BatchBytes <= 0 {
		cfg.BatchBytes = DefaultBatchBytes
	}
	if cfg.LaneBytes <= 0 {
		cfg.LaneBytes = DefaultLaneBytes
	}
	if cfg.Spacing == 0 {
		cfg.Spacing = DefaultSpacing
	}
	if cfg.Jitter == nil {
		cfg.Jitter = jitter
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Shipper{client: client, cfg: cfg, lanes: map[*lane]struct{}{}}
	s.metrics = newShipMetrics(cfg.Registerer, s)
	s.courier = &courier{client: client, log: log, spacing: cfg.Spacing, metrics: s.metrics}
	return s
}

// Ship carries what source yields until the source ends (io.EOF) and everything it yielded is acknowledged, which is the only
// case that returns nil; until ctx ends; or until the source fails. Several sources may be shipped at once, each by its own
// call. After Ship has returned, nothing of the source is touched any more.
func (s *Shipper) Ship(ctx context.Context, source Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lanes := map[int]*lane{}
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range lanes {
			delete(s.lanes, l)
		}
	}()
	for {
		parcels, err := source.Next(ctx, nextMax)
		for _, p := range parcels {
			l := lanes[p.Partition]
			if l == nil {
				l = s.newLane(source, p.Partition)
				lanes[p.Partition] = l
				running.Go(func() { l.run(ctx) })
			}
			if err := l.push(ctx, p); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return drain(ctx, lanes)
		case err != nil:
			return fmt.Errorf("ship events: %w", err)
		}
	}
}

// drain waits until every lane is empty.
func drain(ctx context.Context, lanes map[int]*lane) error {
	for _, l := range lanes {
		if err := l.drained(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shipper) newLane(source Source, partition int) *lane {
	reread, _ := source.(Rereader)
	l := &lane{
		shipper:    s,
		source:     source,
		reread:     reread,
		partition:  partition,
		batchBytes: s.cfg.BatchBytes,
		wake:       make(chan struct{}, 1),
		room:       make(chan struct{}, 1),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes[l] = struct{}{}
	return l
}

// backlog returns how many parcels wait or are under way, and since when the oldest does.
func (s *Shipper) backlog() (parcels int, oldest time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.lanes {
		n, at := l.backlog()
		parcels += n
		if n > 0 && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	}
	return parcels, oldest
}

// produce sends one batch once, by itself if an attempt has failed before.
func (s *Shipper) produce(ctx context.Context, partition int, parcels []ledger.Parcel, attempt int) error {
	err := s.courier.send(ctx, partition, parcels, attempt > 1)
	switch {
	case err == nil:
		return nil
	case s.client == nil:
		return fmt.Errorf("append %d events to partition %d: %w", len(parcels), partition, err)
	default:
		return s.client.failed(fmt.Sprintf("produce %d events to %s[%d]", len(parcels), s.client.cfg.Topic, partition), err)
	}
}
