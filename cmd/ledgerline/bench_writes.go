package main

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"
)

// written are counters of what the quota consumer did.
type written struct {
	events, flushes, accounts, sums float64 // this process's own
	rows                            float64 // as the database counts them: everything that changed a row
}

// writes shows that what goes to the database and to the hot counters grows with the accounts that are active, not with the events: the
// same users at one rate and at ten times that rate, flushed at one interval.
func (b *bench) writes(ctx context.Context, env map[string]string, o *consumersOptions) error {
	env["BATCH_UPDATE_ENABLED"], env["BATCH_UPDATE_INTERVAL"] = "true", "1"
	n, err := b.consumersNode(ctx, env)
	if err != nil {
		return err
	}
	defer n.close()
	server, err := sql.Open("mysql", env["SQL_DSN"])
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() { _ = server.Close() }()
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- n.quotas.Run(running) }()
	defer func() {
		stop()
		<-done //nolint:errcheck // it ended because it was told to
	}()
	source, err := newBenchEvents(n.stores.log.Partitions, o.active, 10)
	if err != nil {
		return err
	}
	interval := n.cfg.flushInterval()
	fmt.Fprintf(b.out, "\nwrites of the quota consumer: %d active users with a token each, flushed every %s, for %s at each rate\n", o.active, interval, o.window)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "events/s\tevents\tflushes\taccounts written\tper flush\trows that MySQL changed\tsums to Redis\tper event\t\n")
	for _, rate := range []float64{o.rate, 10 * o.rate} {
		before, err := n.writtenSoFar(ctx, server)
		if err != nil {
			return err
		}
		events := int(rate * o.window.Seconds())
		if err := source.ship(ctx, n.events, events, rate); err != nil {
			return err
		}
		var now written
		for now.events-before.events < float64(events) {
			select {
			case <-time.After(interval / 4):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if now, err = n.writtenSoFar(ctx, server); err != nil {
				return err
			}
		}
		accounts, flushes := now.accounts-before.accounts, now.flushes-before.flushes
		fmt.Fprintf(w, "%.0f\t%d\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t%.3f\t\n", rate, events, flushes, accounts, accounts/flushes,
			now.rows-before.rows, now.sums-before.sums, accounts/float64(events))
	}
	return w.Flush()
}

// writtenSoFar reads the counters.
func (n *node) writtenSoFar(ctx context.Context, server *sql.DB) (w written, err error) {
	families, err := n.reg.Gather()
	if err != nil {
		return w, fmt.Errorf("read metrics: %w", err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "ledgerline_quota_events_applied_total":
				w.events += m.GetCounter().GetValue()
			case "ledgerline_quota_account_writes_total":
				w.accounts += m.GetCounter().GetValue()
			case "ledgerline_quota_counter_sums_total":
				w.sums += m.GetCounter().GetValue()
			case "ledgerline_consumer_flush_seconds":
				for _, l := range m.GetLabel() {
					if l.GetValue() == "quota" {
						w.flushes += float64(m.GetHistogram().GetSampleCount())
					}
				}
			}
		}
	}
	for _, name := range []string{"Handler_update", "Handler_write"} {
		var key, value string
		if err := server.QueryRowContext(ctx, "SHOW GLOBAL STATUS LIKE '"+name+"'").Scan(&key, &value); err != nil {
			return w, fmt.Errorf("read the status of MySQL: %w", err)
		}
		rows, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return w, fmt.Errorf("read the status of MySQL: %s: %w", name, err)
		}
		w.rows += rows
	}
	return w, nil
}
