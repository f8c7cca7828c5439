package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ledgerline/ledger/journal"
)

// fsyncs is how often the disk is asked for one figure.
const fsyncs = 200

// latency measures what the relay adds for a lone client, beside what an fsync takes on the disk that the journal is on.
func (b *bench) latency(ctx context.Context, targets []target) error {
	alone := *b
	alone.o.concurrency = 1
	before, err := b.fsync()
	if err != nil {
		return err
	}
	rows, err := alone.measureAll(ctx, targets, kindPlain)
	if err != nil {
		return err
	}
	after, err := b.fsync()
	if err != nil {
		return err
	}
	direct := slices.IndexFunc(rows, func(r benchRow) bool { return r.target == directName })
	if direct < 0 {
		return usagef("bench: latency is measured beside direct; -only must name it")
	}
	fmt.Fprintf(b.out, "\none client, plain answers, medians of %d runs of %s (least–most); an fsync of a record takes %s before and %s after, in the middle\n",
		b.o.runs, b.o.duration, before.Round(time.Microsecond), after.Round(time.Microsecond))
	for i := range rows {
		r := &rows[i]
		added := make([]float64, len(r.p50))
		for run := range r.p50 {
			added[run] = float64((r.p50[run] - rows[direct].p50[run]).Microseconds()) / 1000
		}
		fmt.Fprintf(b.out, "  %s: p50 %s", r.target, median(r.p50).Round(time.Microsecond))
		if i != direct {
			fmt.Fprintf(b.out, ", %s ms more than without", spread(added, 2))
		}
		fmt.Fprintln(b.out)
	}
	return nil
}

// fsync returns the median time that a record takes to become durable, as the journal writes it: in the place of zeros, then synced.
func (b *bench) fsync() (_ time.Duration, err error) {
	name := filepath.Join(b.dir, "fsync")
	f, err := journal.OS{}.Create(name)
	if err != nil {
		return 0, fmt.Errorf("measure fsync: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(name)) }()
	record := make([]byte, 2<<10) // about an open record and an event
	if _, err := f.WriteAt(make([]byte, fsyncs*len(record)), 0); err != nil {
		return 0, fmt.Errorf("measure fsync: %w", err)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("measure fsync: %w", err)
	}
	for i := range record {
		record[i] = byte(i)
	}
	took := make([]time.Duration, fsyncs)
	for i := range took {
		began := time.Now()
		if _, err := f.WriteAt(record, int64(i*len(record))); err != nil {
			return 0, fmt.Errorf("measure fsync: %w", err)
		}
		if err := f.Sync(); err != nil {
			return 0, fmt.Errorf("measure fsync: %w", err)
		}
		took[i] = time.Since(began)
	}
	return median(took), nil
}
