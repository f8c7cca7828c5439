package hold

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats counts what went through a [Redis] since it was made.
type Stats struct {
	Waiting  int           // calls that wait for a trip now; at most Capacity
	Oldest   time.Duration // how long the first of them has waited
	Capacity int           // MaxWaiting
	Calls    uint64        // reserves, extensions and releases sent
	Trips    uint64        // round trips that carried them
	Repeats  uint64        // scripts sent again, because no answer came or the server did not have them
	Failures uint64        // calls that failed
}

// Stats returns what went through so far.
func (r *Redis) Stats() Stats {
	s := Stats{Capacity: MaxWaiting}
	r.ways.Range(func(_, w any) bool {
		one := w.(*way).read()
		s.Waiting, s.Oldest = s.Waiting+one.Waiting, max(s.Oldest, one.Oldest)
		s.Trips, s.Calls, s.Failures = s.Trips+one.Trips, s.Calls+one.Calls, s.Failures+one.Failures
		return true
	})
	s.Repeats = r.repeats.Load()
	return s
}

// collector shows Stats as metrics.
type collector struct{ r *Redis }

var (
	waitingDesc  = prometheus.NewDesc("ledgerline_counters_waiting_calls", "Calls to Redis that wait for a round trip.", nil, nil)
	oldestDesc   = prometheus.NewDesc("ledgerline_counters_waiting_seconds", "How long the oldest of the waiting calls has waited.", nil, nil)
	capacityDesc = prometheus.NewDesc("ledgerline_counters_waiting_capacity", "How many calls may wait; more are refused.", nil, nil)
	callsDesc    = prometheus.NewDesc("ledgerline_counters_calls_total", "Reserves, extensions and releases sent to Redis.", nil, nil)
	tripsDesc    = prometheus.NewDesc("ledgerline_counters_trips_total", "Round trips to Redis that carried them.", nil, nil)
	repeatsDesc  = prometheus.NewDesc("ledgerline_counters_repeats_total", "Scripts sent again because no answer came or the server did not have them.", nil, nil)
	failuresDesc = prometheus.NewDesc("ledgerline_counters_failures_total", "Reserves, extensions and releases that failed.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.r.Stats()
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	count := func(d *prometheus.Desc, v uint64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(waitingDesc, float64(s.Waiting))
	gauge(oldestDesc, s.Oldest.Seconds())
	gauge(capacityDesc, float64(s.Capacity))
	count(callsDesc, s.Calls)
	count(tripsDesc, s.Trips)
	count(repeatsDesc, s.Repeats)
	count(failuresDesc, s.Failures)
}

// note tells once that Redis, or in a cluster the server of a partition, went away, and once that it is back.
func (r *Redis) note(w *way, requests []*request) {
	var failed error
	for _, q := range requests {
		if q.err != nil {
			failed = q.err
		}
	}
	switch {
	case failed != nil && !w.down.Swap(true):
		r.log.Warn("redis does not serve the hot counters: limited accounts are refused", "error", failed)
	case failed == nil && w.down.Load() && w.down.Swap(false):
		r.log.Info("redis serves the hot counters again")
	}
}

// libraryLog takes what the Redis library has to say, for whoever debugs connections.
type libraryLog struct{ log *slog.Logger }

// Printf implements the library's logger.
func (l libraryLog) Printf(ctx context.Context, format string, args ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, args...))
	}
}
