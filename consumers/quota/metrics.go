package quota

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	applied, written, summed, duplicates, dead, holes, adopted, missed, epochs, saturated prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "ledgerline", Subsystem: "quota", Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &metrics{
		applied:    counter("events_applied_total", "Events applied to the balances."),
		written:    counter("account_writes_total", "Accounts that flushes changed in the database: rows written grow with these, not with events."),
		summed:     counter("counter_sums_total", "Sums of accounts given to the hot counters."),
		duplicates: counter("duplicates_total", "Records skipped because they had been applied."),
		dead:       counter("dead_letters_total", "Events put aside because they could not be applied (L6)."),
		holes:      counter("holes_total", "Stretches of the log in which events of a producer are missing."),
		adopted:    counter("edits_adopted_total", "Hand edits of balance columns that became events."),
		saturated:  counter("columns_saturated_total", "Writes of a balance that New API's column is too narrow for."),
		missed:     counter("counter_steps_missed_total", "Flushes that the hot counters did not get at once."),
		epochs:     counter("epochs_begun_total", "Counter epochs begun by this consumer."),
	}
}
