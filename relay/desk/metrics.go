package desk

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	releaseRetries, cut, swept, recovered, damage, moved, unmoved, shipFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "ledgerline", Subsystem: "desk", Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &metrics{
		releaseRetries: counter("release_retries_total", "Batches of settles and voids that the hot counters did not take at first."),
		cut:            counter("cut_requests_total", "Requests ended because an epoch was opened without this node."),
		swept:          counter("swept_holds_total", "Holds of this node that it did not know and voided."),
		recovered:      counter("recovered_requests_total", "Requests of dead nodes that were closed from their journals."),
		damage:         counter("journal_damage_total", "Damaged places found in adopted journals."),
		moved:          counter("outbox_moved_total", "Outbox events moved into the journal."),
		shipFailures:   counter("ship_failures_total", "Times that shipping a journal ended with an error and began again."),
		unmoved:        counter("outbox_refused_total", "Outbox events that the journal refused; each attempt counts."),
	}
}

// register adds the gauges that read the desk itself.
func (d *Desk) register(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	reg.MustRegister(newJournalMetrics(d))
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "ledgerline", Subsystem: "desk", Name: name, Help: help,
		}, f))
	}
	gauge("open_requests", "Requests admitted and not yet settled or voided (capacity 65536).",
		func() float64 { return float64(d.open.Load()) })
	gauge("release_queue", "Settles and voids not yet taken by the hot counters (capacity 131072).",
		func() float64 { return float64(int64(len(d.releases)) + d.aside.Load()) })
	gauge("partitions_open", "Partitions whose counter epoch is open on this node.", func() float64 {
		open, _ := d.Open()
		return float64(open)
	})
	gauge("journals_adopted", "Journals of dead nodes that are being closed here.", func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(len(d.adopted))
	})
}
