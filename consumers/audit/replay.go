package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
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

// Replay folds without the partition's lock until what is left is at most maxRest records, or maxRounds times, and the rest under it.
const (
	maxRest   = 5000
	maxRounds = 20
)

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
		return errors.New("-target usagelog goes with neither -source usagelog nor -dry-run: its rows are written again from kafka, which changes nothing in those that are right")
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

	target Target
}

// Replay folds every partition and writes its balances in place, then begins a new epoch of its hot counters. Traffic may go on.
func Replay(ctx context.Context, s Stores, o ReplayOptions) (*ReplayReport, error) {
	return replayAt(ctx, s, o, time.Now())
}

func replayAt(ctx context.Context, s Stores, o ReplayOptions, now time.Time) (*ReplayReport, error) {
	r := &replayer{o: o, started: time.Now()}
	var err error
	if r.beginnings, err = newBeginnings(ctx, s, now); err != nil {
		return nil, err
	}
	states, err := s.DB.Partitions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	for _, st := range states {
		r.total += st.Offset
	}
	switch {
	case o.DryRun:
		err = r.dryRun(ctx)
	case o.Target == ToUsage:
		err = r.each(ctx, states, r.usagePartition)
	default:
		err = r.each(ctx, states, r.partition)
	}
	if err != nil {
		return nil, err
	}
	r.report.Events, r.report.Took, r.report.target = r.events, time.Since(r.started), o.Target
	return &r.report, nil
}

type replayer struct {
	*beginnings
	o             ReplayOptions
	started       time.Time
	events, total int64
	report        ReplayReport
}

func (r *replayer) each(ctx context.Context, states []sqlstore.PartitionState, rebuild func(context.Context, int) error) error {
	for _, st := range states {
		if err := rebuild(ctx, st.Partition); err != nil {
			return fmt.Errorf("replay partition %d: %w", st.Partition, err)
		}
	}
	return nil
}

// shadow is the fold of one partition, and how far it has come.
type shadow struct {
	r         *replayer
	partition int
	fold      *ledger.Fold
	at        int64
}

// begin returns a fold at its beginning.
func (r *replayer) begin(ctx context.Context, partition int) (*shadow, error) {
	begin := r.inUsage(partition)
	if r.o.Source == FromLog {
		var err error
		if begin, err = r.inLog(ctx, partition); err != nil {
			if errors.Is(err, errNoBeginning) {
				err = fmt.Errorf("%w; replay with -source usagelog", err)
			}
			return nil, err
		}
	}
	s := &shadow{r: r, partition: partition, fold: ledger.NewFold(nil), at: begin.offset}
	return s, r.resume(ctx, s.fold, begin)
}

// to folds on to an offset that the balances have reached. What they dead-lettered below it is known by then.
func (s *shadow) to(ctx context.Context, offset int64) error {
	if offset < s.at {
		return fmt.Errorf("the balances went back to offset %d, the fold is at %d: %w", offset, s.at, sqlstore.ErrFenced)
	}
	dead, err := s.r.DB.DeadIndex(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	s.fold.SetDead(dead)
	read := s.r.readLog
	if s.r.o.Source == FromUsage {
		read = s.r.readUsage
	}
	if err := read(ctx, s.partition, span{s.at, offset}, s.r.step(s.fold)); err != nil {
		return err
	}
	s.at = offset
	return nil
}

// progressEvery is how many events lie between two calls of Progress.
const progressEvery = 100_000

func (r *replayer) step(fold *ledger.Fold) func(*ledger.Record) error {
	return func(rec *ledger.Record) error {
		fold.Apply(rec)
		if r.events++; r.o.Progress != nil && r.events%progressEvery == 0 {
			r.o.Progress(r.events, r.total, time.Since(r.started))
		}
		return nil
	}
}

// partition rebuilds the balances of one partition, and the counters after them.
func (r *replayer) partition(ctx context.Context, partition int) error {
	s, err := r.begin(ctx, partition)
	if err != nil {
		return err
	}
	for range maxRounds {
		st, err := r.DB.Partition(ctx, partition)
		if err != nil {
			return fmt.Errorf("read position: %w", err)
		}
		rest := st.Offset - s.at
		if err := s.to(ctx, st.Offset); err != nil {
			return err
		}
		if rest <= maxRest {
			break
		}
	}
	result, err := r.DB.ReplayPartition(ctx, sqlstore.ReplayCall{
		Partition: partition, Offset: s.at,
		Advance: func(ctx context.Context, offset int64) (map[ledger.Account]ledger.Balance, error) {
			if err := s.to(ctx, offset); err != nil {
				return nil, err
			}
			return s.fold.Balances(), nil
		},
	})
	if err != nil {
		return err
	}
	// Committed. A crash from here on leaves counters that may have loaded the old balances.
	r.report.Accounts += result.Accounts
	r.report.Changed += result.Changed
	r.report.Adopted += result.Adopted
	r.report.Alarms = append(r.report.Alarms, result.Alarms...)
	return r.newEpoch(ctx, partition)
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
	call, err := r.DB.AllocateEpoch(ctx, partition, states[0].Epoch)
	if err != nil {
		return fmt.Errorf("allocate epoch: %w", err)
	}
	if _, err := r.Counters.Begin(ctx, call); err != nil {
		return fmt.Errorf("begin epoch: %w", err)
	}
	return nil
}

// dryRun compares the fold with one snapshot of the database, as verify does.
func (r *replayer) dryRun(ctx context.Context) error {
	a := &auditor{beginnings: r.beginnings, verdict: &Verdict{}, channels: map[ledger.Account]ledger.Balance{}}
	var columns Verdict // New API's columns are not what is folded
	var err error
	if a.snap, err = columns.look(ctx, r.DB); err != nil {
		return err
	}
	for p, state := range a.snap.states {
		s, err := r.begin(ctx, p)
		if err != nil {
			return fmt.Errorf("replay partition %d: %w", p, err)
		}
		if err := s.to(ctx, state.Offset); err != nil {
			return fmt.Errorf("replay partition %d: %w", p, err)
		}
		a.balances(s.fold)
	}
	a.unfolded()
	a.verdict.sortDifferences()
	r.report.Accounts = len(a.snap.balances)
	r.report.Changed = a.changed
	r.report.Differences, r.report.More = a.verdict.Differences, a.verdict.More
	return nil
}

// Print writes the report for people.
func (r *ReplayReport) Print(w io.Writer, dry bool) {
	perSecond := float64(r.Events) / max(r.Took.Seconds(), 1e-9)
	fmt.Fprintf(w, "replay: %d events in %s (%.0f/s), ", r.Events, r.Took.Round(time.Millisecond), perSecond)
	if r.target == ToUsage {
		fmt.Fprintln(w, "written to the usage log")
	} else {
		fmt.Fprintf(w, "%d accounts, %d changed, %d hand edits adopted\n", r.Accounts, r.Changed, r.Adopted)
	}
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
