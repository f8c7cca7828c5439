package desk

import "github.com/prometheus/client_golang/prometheus"

// journalMetrics shows all journals of the node as one: the window that a disk which never returns would cost (P1).
type journalMetrics struct {
	desk                                   *Desk
	depth, oldest, live, bound, kept, fail *prometheus.Desc
	events, syncs, syncSeconds             *prometheus.Desc
}

func newJournalMetrics(d *Desk) *journalMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("ledgerline_journal_"+name, help, nil, nil)
	}
	return &journalMetrics{
		desk:        d,
		depth:       desc("depth_events", "Events on disk that the log has not acknowledged."),
		oldest:      desc("oldest_unacked_seconds", "Age of the oldest of them; 0 if there is none."),
		live:        desc("live_bytes", "Bytes of journal that hold something unacknowledged or open."),
		bound:       desc("bound_bytes", "Live bytes at which the node refuses new requests (JOURNAL_MAX_MB)."),
		kept:        desc("kept_bytes", "Bytes of shipped journal kept for reship (JOURNAL_KEEP)."),
		fail:        desc("failed", "1 if the journal cannot be written: the node refuses requests."),
		events:      desc("events", "Events appended to the node's present journals."),
		syncs:       desc("syncs", "Batches written and fsynced; events per batch is what group commit gains."),
		syncSeconds: desc("sync_seconds", "Time spent in writing and fsync."),
	}
}

// Describe implements prometheus.Collector.
func (m *journalMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.depth, m.oldest, m.live, m.bound, m.kept, m.fail, m.events, m.syncs, m.syncSeconds} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *journalMetrics) Collect(to chan<- prometheus.Metric) {
	var depth, live, bound, kept, events, batches int64
	var oldest, sync float64
	failed := 0.0
	for i, b := range m.desk.books() {
		s := b.journal.Stats()
		depth, live, kept = depth+s.Depth, live+s.LiveBytes, kept+s.KeptBytes
		events, batches, sync = events+s.Events, batches+s.Batches, sync+s.SyncTime.Seconds()
		oldest = max(oldest, s.OldestUnackedAge.Seconds())
		if i == 0 {
			bound = s.MaxBytes
		}
		if s.Failed {
			failed = 1
		}
	}
	gauge := func(d *prometheus.Desc, v float64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(m.depth, float64(depth))
	gauge(m.oldest, oldest)
	gauge(m.live, float64(live))
	gauge(m.bound, float64(bound))
	gauge(m.kept, float64(kept))
	gauge(m.fail, failed)
	// A journal that was closed takes its totals along, so these are gauges to Prometheus' rules, not counters.
	gauge(m.events, float64(events))
	gauge(m.syncs, float64(batches))
	gauge(m.syncSeconds, sync)
}
