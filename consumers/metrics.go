package consumers

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what operators see of a runner. Every series carries the label projection.
type metrics struct {
	fetches     prometheus.Counter
	records     prometheus.Counter
	retries     prometheus.Counter
	undecodable prometheus.Counter
	lookErrors  prometheus.Counter
	batch       prometheus.Histogram
	latency     prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, r *Runner) *metrics {
	m := &metrics{
		fetches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_consumer_fetches_total",
			Help: "Fetches from the log that were answered.",
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_consumer_records_total",
			Help: "Records applied.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_consumer_retries_total",
			Help: "Flushes that failed and were repeated.",
		}),
		undecodable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_consumer_undecodable_total",
			Help: "Records that could not be decoded and were handed to the sink as dead letters.",
		}),
		lookErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ledgerline_consumer_look_errors_total",
			Help: "Looks after the hot counters that failed.",
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ledgerline_consumer_flush_records",
			Help:    "Records per flush.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9),
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ledgerline_consumer_flush_seconds",
			Help:    "Time of a flush.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"projection": r.cfg.Name}, reg)
		reg.MustRegister(m.fetches, m.records, m.retries, m.undecodable, m.lookErrors, m.batch, m.latency, &lag{
			runner: r,
			records: prometheus.NewDesc("ledgerline_consumer_lag_records",
				"Records in the log that the projection does not have yet, per partition owned by this process.", []string{"partition"}, nil),
			seconds: prometheus.NewDesc("ledgerline_consumer_lag_seconds",
				"Age of the oldest event read and not applied; 0 if there is none.", []string{"partition"}, nil),
			stopped: prometheus.NewDesc("ledgerline_consumer_stopped",
				"1 if the partition is stopped and needs an operator.", []string{"partition"}, nil),
			buffered: prometheus.NewDesc("ledgerline_consumer_buffered_bytes",
				"Bytes of records waiting to be applied, as fetched.", nil, nil),
			capacity: prometheus.NewDesc("ledgerline_consumer_buffer_capacity_bytes",
				"Bytes from which on partitions flush early.", nil, nil),
		})
	}
	return m
}

func (m *metrics) flushed(records int, took time.Duration) {
	m.records.Add(float64(records))
	m.batch.Observe(float64(records))
	m.latency.Observe(took.Seconds())
}

// lag collects the state of the partitions when it is asked for.
type lag struct {
	runner                                        *Runner
	records, seconds, stopped, buffered, capacity *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (l *lag) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.records, l.seconds, l.stopped, l.buffered, l.capacity} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *lag) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range l.runner.Status() {
		partition := strconv.Itoa(s.Partition)
		gauge(l.records, float64(max(0, s.End-s.Offset)), partition)
		age := 0.0
		if !s.Oldest.IsZero() {
			age = max(0, time.Since(s.Oldest).Seconds())
		}
		gauge(l.seconds, age, partition)
		stopped := 0.0
		if s.State == StateStopped {
			stopped = 1
		}
		gauge(l.stopped, stopped, partition)
	}
	gauge(l.buffered, float64(l.runner.buffered.Load()))
	gauge(l.capacity, float64(l.runner.cfg.MaxBuffered))
}
