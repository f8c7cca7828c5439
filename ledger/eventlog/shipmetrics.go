package eventlog

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// shipMetrics is what operators see of the shipper.
type shipMetrics struct {
	requests prometheus.Counter
	shipped  prometheus.Counter
	retries  prometheus.Counter
	reread   prometheus.Counter
	latency  prometheus.Histogram
	batch    prometheus.Histogram
}

func newShipMetrics(reg prometheus.Registerer, s *Shipper) *shipMetrics {
	m := &shipMetrics{
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_ship_requests_total",
			Help: "Produce requests that were answered; one carries the batches of several partitions.",
		}),
		shipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_ship_events_total",
			Help: "Events acknowledged by the log.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_ship_retries_total",
			Help: "Produce requests that failed and were repeated.",
		}),
		reread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_ship_reread_events_total",
			Help: "Events read back from the journal because their partition was stuck when they first came.",
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ledgerline_ship_produce_seconds",
			Help:    "Time from sending a batch to its acknowledgement by all in-sync replicas.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ledgerline_ship_batch_events",
			Help:    "Events per acknowledged batch.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 7),
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.requests, m.shipped, m.retries, m.reread, m.latency, m.batch,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ledgerline_ship_queue_events",
			Help: "Events in memory that the log has not acknowledged.",
		}, func() float64 {
			n, _ := s.backlog()
			return float64(n)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ledgerline_ship_queue_oldest_seconds",
			Help: "Age of the oldest event in memory that the log has not acknowledged; 0 if there is none.",
		}, func() float64 {
			n, oldest := s.backlog()
			if n == 0 {
				return 0
			}
			return time.Since(oldest).Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ledgerline_ship_lane_capacity_bytes",
			Help: "Most bytes that wait in memory per partition and source.",
		}, func() float64 { return float64(s.cfg.LaneBytes) }),
	)
	return m
}
