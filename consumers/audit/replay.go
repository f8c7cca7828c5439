package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// Source is where replay folds from.
type Source string

// The sources.
const (
	FromLog   Source = "kafka"
	FromUsage Source = "usagelog"
)

// Target is what replay rebuilds.
type Target string

// The targets.
const (
	ToBalances Target = "balances" // MySQL's balances and the hot counters
	ToUsage    Target = "usagelog"
)

// maxRounds bounds how often replay catches up with a partition that goes on meanwhile. Each round is shorter than the one
// before; the last ones are a few records.
const maxRounds = 200

// ReplayOptions say what to rebuild, and how to tell about it.
type ReplayOptions struct {
	Source Source
	Target Target
	DryRun bool // report differences only
	// Progress is told what was folded so far and how much there is; nil: nobody.
	Progress func(events, total int64, since time.Duration)
}

// Check reports values that are not known, and pairs that make no sense.
func (o *ReplayOptions) Check() error {
	switch {
	case o.Source != FromLog && o.Source != FromUsage:
		return fmt.Errorf("source %q: kafka or usagelog is needed", o.Source)
	case o.Target != ToBalances && o.Target != ToUsage:
		return fmt.Errorf("target %q: balances or usagelog is needed", o.Target)
	case o.Target == ToUsage && (o.Source == FromUsage || o.DryRun):
		return errors.New("the usage log is rebuilt from kafka, and without a dry run: its rows are idempotent")
	}
	return nil
}

// ReplayReport says what a replay found and did.
type ReplayReport struct {
	Events      int64         `json:"events"`
	Took        time.Duration `json:"took_ns"`
	Accounts    int           `json:"accounts"`
	Changed     int           `json:"changed"`
	Adopted     int           `json:"edits_adopted"`
	Alarms      []string      `json:"alarms,omitempty"`
	Differences []Difference  `json:"differences,omitempty"` // dry run
	More        int           `json:"more_differences,omitempty"`
}

// Replay folds every partition and writes its balances in place, then begins a new epoch of its hot counters. Traffic may go on.
func Replay(ctx context.Context, s Stores, o ReplayOptions) (*ReplayReport, error) {
	r := &replayer{Stores: s, o: o, started: time.Now()}
	states, err := s.DB.Partitions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	for _, st := range states {
		r.total += st.Offset
	}
	for _, st := range states {
		rebuild := r.partition
		if o.Target == ToUsage {
			rebuild = r.usagePartition
		}
		if err := rebuild(ctx, st); err != nil {
			return nil, fmt.Errorf("replay partition %d: %w", st.Partition, err)
		}
	}
	r.report.Events, r.report.Took = r.events, time.Since(r.started)
	return &r.report, nil
}

type replayer struct {
	Stores
	o             ReplayOptions
	started       time.Time
	events, total int64
	report        ReplayReport
}

func (r *replayer) partition(ctx context.Context, st sqlstore.PartitionState) error {
	dead, err := r.DB.DeadIndex(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	fold := ledger.NewFold(dead)
	var at int64
	for range maxRounds {
		if err := r.read(ctx, fold, st.Partition, span{at, st.Offset}); err != nil {
			return err
		}
		at = st.Offset
		if r.o.DryRun {
			return r.dryRun(ctx, st.Partition, at, fold)
		}
		result, err := r.DB.ReplayPartition(ctx, sqlstore.ReplayCall{Partition: st.Partition, Offset: at, Balances: fold.Balances()})
		if errors.Is(err, sqlstore.ErrFenced) {
			// The partition went on: fold the rest, with what was dead-lettered since.
			if st, err = r.DB.Partition(ctx, st.Partition); err != nil {
				return fmt.Errorf("read position: %w", err)
			}
			if dead, err = r.DB.DeadIndex(ctx); err != nil {
				return fmt.Errorf("read dead letters: %w", err)
			}
			fold.SetDead(dead)
			continue
		}
		if err != nil {
			return err
		}
		r.report.Accounts += result.Accounts
		r.report.Changed += result.Changed
		r.report.Adopted += result.Adopted
		r.report.Alarms = append(r.report.Alarms, result.Alarms...)
		return r.newEpoch(ctx, st.Partition)
	}
	return errors.New("the partition goes on faster than it can be folded; replay at a quieter time")
}

// newEpoch makes the hot counters load every account anew.
func (r *replayer) newEpoch(ctx context.Context, partition int) error {
	if r.Counters == nil {
		return nil
	}
	states, err := r.Counters.State(ctx, partition)
	if err != nil {
		return fmt.Errorf("look at the hot counters: %w", err)
	}
	epoch, offset, err := r.DB.AllocateEpoch(ctx, partition, states[0].Epoch)
	if err != nil {
		return fmt.Errorf("allocate epoch: %w", err)
	}
	if _, err := r.Counters.Begin(ctx, partition, epoch, offset); err != nil {
		return fmt.Errorf("begin epoch: %w", err)
	}
	return nil
}

// read folds a range from the source.
func (r *replayer) read(ctx context.Context, fold *ledger.Fold, partition int, s span) error {
	if r.o.Source == FromUsage {
		if err := r.usageReaches(ctx, partition, s.to); err != nil {
			return err
		}
		rec := ledger.Record{Partition: partition}
		err := r.Usage.Scan(ctx, partition, s.from, s.to, func(offset int64, value []byte) error {
			rec.Offset, rec.Value = offset, value
			rec.Event, rec.Err = ledger.Decode(value)
			r.step(fold, &rec)
			return nil
		})
		if err != nil {
			return fmt.Errorf("scan the usage log: %w", err)
		}
		return nil
	}
	first, _, err := r.Log.Bounds(ctx, partition)
	if err != nil {
		return fmt.Errorf("read the bounds of the log: %w", err)
	}
	if first > s.from {
		return fmt.Errorf("the log begins at offset %d; what was before it is only in the usage log: replay with -source usagelog", first)
	}
	err = r.Log.Read(ctx, partition, s.from, s.to, func(records []ledger.Record) error {
		for i := range records {
			r.step(fold, &records[i])
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

// usagePatience bounds the wait for a usage log that is behind the balances: it commonly is, by a second or two.
const usagePatience = time.Minute

// usageReaches waits until the usage log has what the balances have: a fold of less would take away what it lacks.
func (r *replayer) usageReaches(ctx context.Context, partition int, offset int64) error {
	for deadline := time.Now().Add(usagePatience); ; {
		position, err := r.Usage.Position(ctx, partition)
		if err != nil {
			return fmt.Errorf("read the usage log's position: %w", err)
		}
		if position.Offset >= offset {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the usage log has the events below offset %d, the balances those below %d: replay when it has caught up, or with -source kafka",
				position.Offset, offset)
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("wait for the usage log: %w", ctx.Err())
		}
	}
}

// progressEvery is how many events lie between two calls of Progress.
const progressEvery = 100_000

func (r *replayer) step(fold *ledger.Fold, rec *ledger.Record) {
	fold.Apply(rec)
	if r.events++; r.o.Progress != nil && r.events%progressEvery == 0 {
		r.o.Progress(r.events, r.total, time.Since(r.started))
	}
}

// dryRun compares the fold with the balances that are there now, if they still stand at its offset.
func (r *replayer) dryRun(ctx context.Context, partition int, at int64, fold *ledger.Fold) error {
	accounts := make([]ledger.Account, 0, len(fold.Balances()))
	for a := range fold.Balances() {
		if a.Kind != ledger.ChannelAccount {
			accounts = append(accounts, a)
		}
	}
	r.report.Accounts += len(accounts)
	const page = 1000
	v := &Verdict{Differences: r.report.Differences, More: r.report.More}
	for len(accounts) > 0 {
		n := min(page, len(accounts))
		offset, balances, err := r.DB.Balances(ctx, partition, accounts[:n])
		if err != nil {
			return fmt.Errorf("read balances: %w", err)
		}
		if offset > at {
			if err := r.read(ctx, fold, partition, span{at, offset}); err != nil {
				return err
			}
			at = offset
		}
		for _, a := range accounts[:n] {
			before := len(v.Differences) + v.More
			v.differBalance("MySQL ledger_accounts", a, fold.Balances()[a], balances[a])
			if len(v.Differences)+v.More > before {
				r.report.Changed++
			}
		}
		accounts = accounts[n:]
	}
	v.sortDifferences()
	r.report.Differences, r.report.More = v.Differences, v.More
	return nil
}

// usagePartition appends what the log holds to the usage log again, up to where it stands: rows that are there collapse with
// their copies.
func (r *replayer) usagePartition(ctx context.Context, st sqlstore.PartitionState) error {
	position, err := r.Usage.Position(ctx, st.Partition)
	if err != nil {
		return fmt.Errorf("read the usage log's position: %w", err)
	}
	first, _, err := r.Log.Bounds(ctx, st.Partition)
	if err != nil {
		return fmt.Errorf("read the bounds of the log: %w", err)
	}
	err = r.Log.Read(ctx, st.Partition, first, max(position.Offset, st.Offset), func(records []ledger.Record) error {
		// What Read hands over is not to be kept, so each of its batches is one of ours.
		batch := usagelog.Batch{Partition: st.Partition, Position: position}
		for i := range records {
			if records[i].Err != nil {
				continue // it is in the usage log's dead letters
			}
			batch.Rows = append(batch.Rows, usagelog.RowOf(&records[i]))
			if at := records[i].Offset; at >= position.Offset {
				batch.Position.Offset, batch.Position.LastOffset, batch.Position.LastEvent = at+1, at, records[i].Event.ID
			}
		}
		r.events += int64(len(records))
		position = batch.Position
		return r.Usage.Append(ctx, batch)
	})
	if err != nil {
		return fmt.Errorf("append the log to the usage log: %w", err)
	}
	return nil
}

// Print writes the report for people.
func (r *ReplayReport) Print(w io.Writer, dry bool) {
	perSecond := float64(r.Events) / max(r.Took.Seconds(), 1e-9)
	fmt.Fprintf(w, "replay: %d events in %s (%.0f/s), %d accounts, %d changed, %d hand edits adopted\n",
		r.Events, r.Took.Round(time.Millisecond), perSecond, r.Accounts, r.Changed, r.Adopted)
	for _, d := range r.Differences {
		fmt.Fprintf(w, "  DIFFERS  %-22s %-14s %-9s log says %d, there is %d\n", d.Store, d.Account, d.What, d.Want, d.Got)
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  … and %d more differences\n", r.More)
	}
	for _, a := range r.Alarms {
		fmt.Fprintf(w, "  ALARM    %s\n", a)
	}
	if dry {
		fmt.Fprintln(w, "replay: dry run, nothing was changed")
	}
}
