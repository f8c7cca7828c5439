package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// consumersOptions are the flags of bench consumers.
type consumersOptions struct {
	events, users, runs int
	active              int
	rate                float64
	window              time.Duration
}

// benchConsumers measures what comes after the relay, on real engines: the append to the journal, what each projection costs per event,
// and that what the quota consumer writes grows with active accounts and not with events.
func benchConsumers(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var o consumersOptions
	flags := newFlags("bench consumers", "Events per CPU-second of the journal and of each projection, and what they write, on real engines (make bench-consumers).", stderr)
	flags.IntVar(&o.events, "events", 300_000, "events that a projection folds in one measurement")
	flags.IntVar(&o.users, "users", 1000, "users that they are of, each with a token")
	flags.IntVar(&o.runs, "runs", 3, "measurements, each of new events; medians are printed, with the spread")
	flags.IntVar(&o.active, "active", 100, "active users while writes are counted")
	flags.Float64Var(&o.rate, "rate", 300, "events a second while writes are counted, and then ten times as many")
	flags.DurationVar(&o.window, "window", 10*time.Second, "how long each of the two rates lasts")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if o.events < 1 || o.users < 1 || o.runs < 1 || o.active < 1 || o.active > o.users || o.rate < 1 || o.window < time.Second {
		return usagef("bench consumers: -events, -users, -runs, -active and -rate from 1, -active up to -users and -window from 1s are needed")
	}
	dir, err := os.MkdirTemp("", "ledgerline-bench-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{dir: dir, getenv: getenv, out: stdout, errs: stderr}
	defer b.close()
	if err := b.appends(ctx); err != nil {
		return err
	}
	env, err := b.engineEnvironment(ctx)
	if err != nil {
		return err
	}
	if env == nil {
		return usagef("bench consumers: %v", errNeedsEngines)
	}
	env["DATA_DIR"] = filepath.Join(dir, "consumers")
	if err := b.projections(ctx, env, &o); err != nil {
		return err
	}
	return b.writes(ctx, env, &o)
}

// appendWaiters is how many appends wait for their fsync at once: an eighth of the open requests that a node takes.
const appendWaiters = 8192

// appends measures appending usage events to a journal on this disk, each waited for until it is fsynced.
func (b *bench) appends(ctx context.Context) error {
	const lasts = 3 * time.Second
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make incarnation: %w", err)
	}
	j, err := journal.Create(journal.Config{Root: filepath.Join(b.dir, "journal"), Partitions: 12, MaxBytes: 16 << 30, Slots: 1 << 10, Logger: discardLogger()}, ledger.ID(id))
	if err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	defer func() { _ = j.Close() }()
	shipped, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // a log that acknowledges at once
		for {
			parcels, err := j.Next(shipped, 1000)
			if err != nil {
				return
			}
			for i := range parcels {
				j.Acked(parcels[i].Partition, parcels[i].Seq)
			}
		}
	}()
	var next atomic.Uint64
	var failed atomic.Pointer[error]
	var waiters sync.WaitGroup
	begun, own := time.Now(), cpuOf([]int{os.Getpid()})
	for range appendWaiters {
		waiters.Go(func() {
			for time.Since(begun) < lasts && failed.Load() == nil {
				if err := appendOne(ctx, j, next.Add(1)); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	waiters.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("append to the journal: %w", *err)
	}
	took, cpu, stats := time.Since(begun), cpuOf([]int{os.Getpid()})-own, j.Stats()
	fmt.Fprintf(b.out, "journal: %.0f events/s appended and fsynced, %.0f a CPU-second (making them included), %.0f events a fsync of %s\n",
		float64(stats.Events)/took.Seconds(), float64(stats.Events)/max(cpu, clockTick).Seconds(), float64(stats.Events)/float64(stats.Batches),
		shortTime(stats.SyncTime/time.Duration(max(1, stats.Batches))))
	return nil
}

func appendOne(ctx context.Context, j *journal.Journal, n uint64) error {
	const users = 1000
	e, err := benchEvent(n, users, 1)
	if err != nil {
		return err
	}
	c, err := j.Event(&e)
	if err != nil {
		return err
	}
	return c.Wait(ctx)
}

// projectionNames are what is measured, in this order: replay folds what the others have applied.
var projectionNames = []string{"quota", "usagelog", "replay"}

// projections fills the log and lets each projection fold it, again and again.
func (b *bench) projections(ctx context.Context, env map[string]string, o *consumersOptions) error {
	n, err := b.consumersNode(ctx, env)
	if err != nil {
		return err
	}
	defer n.close()
	if err := b.seedSQL(ctx, env["SQL_DSN"], o.users, o.users); err != nil {
		return err
	}
	source, err := newBenchEvents(n.stores.log.Partitions, o.users, 10)
	if err != nil {
		return err
	}
	env["NODE_TYPE"] = "slave" // the processes that measure do no duties
	measured := map[string][]projected{}
	for range o.runs {
		if err := source.ship(ctx, n.events, o.events, 0); err != nil {
			return err
		}
		for _, name := range projectionNames {
			p, err := b.project(ctx, env, name)
			if err != nil {
				return err
			}
			measured[name] = append(measured[name], p)
		}
	}
	b.printProjections(measured, o)
	return nil
}

// consumersNode is a node in this process that consumes nothing: it makes the schemas and the topic, and lends its stores.
func (b *bench) consumersNode(ctx context.Context, env map[string]string) (*node, error) {
	cfg, err := loadConfig(func(name string) string { return env[name] })
	if err != nil {
		return nil, err
	}
	return newNode(ctx, cfg, consumeHalf, discardLogger())
}

// seedSQL fills users and tokens in a MySQL database.
func (b *bench) seedSQL(ctx context.Context, dsn string, users, tokens int) error {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	err = seedAccounts(ctx, func(ctx context.Context, statement string) error {
		_, err := db.ExecContext(ctx, statement)
		return err
	}, users, tokens)
	return errors.Join(err, db.Close())
}

func (b *bench) printProjections(measured map[string][]projected, o *consumersOptions) {
	fmt.Fprintf(b.out, "\nprojections of %d events of %d users, on real engines, medians of %d runs (least–most)\n", o.events, o.users, o.runs)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "projection\tevents\tevents/CPU-second\tevents/s\tCPU µs/event\tengines, CPU µs/event\t\n")
	for _, name := range projectionNames {
		var perCPU, perSecond, own []float64
		engines := map[string][]float64{}
		for _, p := range measured[name] {
			events := float64(p.Events)
			perCPU = append(perCPU, events/max(p.Own, clockTick).Seconds())
			perSecond = append(perSecond, events/p.Wall.Seconds())
			own = append(own, float64(p.Own.Nanoseconds())/1000/events)
			for engine, cpu := range p.Engines {
				engines[engine] = append(engines[engine], float64(cpu.Nanoseconds())/1000/events)
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t", name, measured[name][0].Events, spread(perCPU, 0), spread(perSecond, 0), spread(own, 2))
		for _, engine := range slices.Sorted(maps.Keys(engines)) {
			fmt.Fprintf(w, "%s %s ", engine, spread(engines[engine], 2))
		}
		fmt.Fprint(w, "\t\n")
	}
	_ = w.Flush() // the writer reports its own errors
}
