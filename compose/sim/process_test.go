package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"ledgerline/consumers"
	"ledgerline/consumers/quota"
	sink "ledgerline/consumers/usagelog"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
	"ledgerline/relay/desk"
)

// disk is one machine's disk. Nodes that share it share JOURNAL_DIR, and adopt from one another.
type disk struct {
	*journaltest.Disk
	index int
	fault journaltest.Fault // of the next call
	lost  bool              // it never comes back
}

const journalRoot = "/journal"

func (w *world) newDisk() *disk {
	d := &disk{Disk: journaltest.NewDisk(w.seed + uint64(len(w.disks))<<40), index: len(w.disks)}
	d.Inject(func(journaltest.Op) journaltest.Fault {
		f := d.fault
		d.fault = journaltest.NoFault
		return f
	})
	w.disks = append(w.disks, d)
	return d
}

// node is a relay node: a slot in which one process after the other runs.
type node struct {
	w      *world
	name   string
	disk   *disk
	proc   *proc
	desk   *desk.Desk // nil until it has started
	exited bool
	// leaving says that it takes no new requests.
	leaving bool
	retire  bool // it is never started again
	// diskless says that it keeps its own journal in memory (JOURNAL=kafka), and adopts what is on its disk.
	diskless bool
}

// noJitter makes back-offs repeat: the adversary is the jitter.
func noJitter(n time.Duration) time.Duration { return n / 2 }

// start starts a process in the slot.
func (n *node) start() {
	w := n.w
	if n.retire || n.proc != nil && !n.proc.dead.Load() && !n.exited {
		return
	}
	p := w.newProc(n.name, n.disk)
	p.diskless = n.diskless
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	n.proc, n.desk, n.exited, n.leaving = p, nil, false, false
	w.tell("%s starts", n.name)
	shipper := eventlog.NewShipperTo(appender{logOf{p: p}}, eventlog.ShipperConfig{Jitter: noJitter, Logger: p.logger(), BatchBytes: 4 << 10, LaneBytes: 16 << 10})
	go func() {
		defer close(p.done)
		d, err := desk.New(ctx, desk.Config{
			Node: n.name, Partitions: w.cfg.partitions,
			Journal: journal.Config{
				FS: filesOf{p, p.files, n.disk}, Root: journalRoot, Partitions: w.cfg.partitions, SegmentBytes: w.cfg.segmentBytes, BlockBytes: 1 << 10, MaxBytes: n.journalBytes(), MemoryBytes: w.cfg.memoryBytes, Slots: 64,
				Logger: p.logger(),
			},
			Counters: countersOf{p}, Bank: bankOf{p: p}, Outbox: outboxOf{p}, Logger: p.logger(),
			Ship:      func(ctx context.Context, j *journal.Journal) error { return shipper.Ship(ctx, j) },
			LookEvery: w.cfg.lookEvery, SweepEvery: 6 * time.Second, AdoptEvery: 3 * time.Second, MaxOpen: 256, Diskless: n.diskless, HoldEnds: logOf{p, "ends: "}.holdEnds,
			Probe: func(ctx context.Context, n int) error {
				_, _, err := logOf{p, "probe: "}.Bounds(ctx, n)
				return err
			},
		})
		if err == nil {
			_ = p.do(ctx, toClient, "started", func() error { n.desk = d; return nil })
			err = d.Run(ctx, 2*time.Second)
		}
		_ = p.do(context.Background(), toClient, "exited", func() error {
			w.tell("%s exits: %v", n.name, err)
			n.desk, n.exited = nil, true
			w.after(0, func() { w.kill(p) }) // what it had sent may still arrive
			w.after(w.between(time.Millisecond, 3*time.Second), n.start)
			return nil
		})
	}()
}

// journalBytes is the least that a journal may have: four of its segments. Those in memory are larger.
func (n *node) journalBytes() int64 {
	if n.diskless {
		return 4 << 20
	}
	return 1 << 20
}

// logger puts what a process logs into the history, when it is told.
func (p *proc) logger() *slog.Logger {
	if !p.w.telling {
		return p.w.logger
	}
	return slog.New(slog.NewTextHandler(storyOf{p}, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == "incarnation") {
			return slog.Attr{}
		}
		return a
	}}))
}

type storyOf struct{ p *proc }

// Write implements io.Writer.
func (s storyOf) Write(line []byte) (int, error) {
	if !s.p.dead.Load() {
		s.p.w.tell("%s logs: %s", s.p.name, bytes.TrimSpace(line))
	}
	return len(line), nil
}

// running reports whether requests can be sent to the node.
func (n *node) running() bool { return n.desk != nil && !n.proc.dead.Load() && !n.exited && !n.leaving }

type appender struct{ log logOf }

// Append implements eventlog.Appender.
func (a appender) Append(ctx context.Context, n int, parcels []ledger.Parcel) error {
	return a.log.append(ctx, n, parcels)
}

// consumer is a process with a consumer of each kind in it, and the observer.
type consumer struct {
	w     *world
	name  string
	proc  *proc
	quota *group
	usage *group
}

// group is the membership of one projection in one process: eventlog.Group with the scheduler for a coordinator.
type group struct {
	cmds chan func(ctx context.Context, handle func(context.Context, int))
	owns map[int]context.CancelFunc // the scheduler's
	busy map[int]chan struct{}      // Run's: closed when the last handle of a partition has returned
}

func newGroup() *group {
	return &group{
		cmds: make(chan func(context.Context, func(context.Context, int)), 256), owns: map[int]context.CancelFunc{}, busy: map[int]chan struct{}{},
	}
}

// Run implements consumers.Group.
func (g *group) Run(ctx context.Context, handle func(context.Context, int)) error {
	for {
		select {
		case cmd := <-g.cmds:
			cmd(ctx, handle)
		case <-ctx.Done():
			for _, busy := range g.busy {
				<-busy
			}
			return nil
		}
	}
}

// Committed implements consumers.Group.
func (g *group) Committed(int, int64) {}

func (c *consumer) start() {
	w := c.w
	if c.proc != nil && !c.proc.dead.Load() {
		return
	}
	p := w.newProc(c.name, nil)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	c.proc, c.quota, c.usage = p, newGroup(), newGroup()
	w.tell("%s starts", c.name)
	cfg := consumers.Config{
		Name: "quota", Group: "quota", Partitions: w.cfg.partitions, LookEvery: w.cfg.lookEvery, RecheckEvery: 2 * time.Second, Jitter: noJitter,
		Urgent: func(r *ledger.Record) bool { return r.Err == nil && !r.Event.Kind.IsUsage() }, MaxRecords: w.cfg.maxRecords, Logger: p.logger(),
	}
	usageCfg := cfg
	usageCfg.Name, usageCfg.Group, usageCfg.Urgent = "usagelog", "usagelog", nil
	usageCfg.Interval = 500 * time.Millisecond
	log, usageLog := logOf{p, "quota: "}, logOf{p, "usage: "}
	quotas := consumers.NewRunnerOf(log, c.quota, quota.New(quota.Config{
		Store: bankOf{p, "quota: "}, Counters: countersOf{p}, Log: log, Logger: p.logger(), PatienceDead: w.cfg.patienceDead, PatienceLive: w.cfg.patienceLive,
	}), cfg)
	usages := consumers.NewRunnerOf(usageLog, c.usage, sink.New(sink.Config{Store: usageOf{p}, Gather: 50 * time.Millisecond}), usageCfg)
	ended := make(chan struct{}, 3)
	for _, part := range []func(){
		func() { _ = quotas.Run(ctx) },
		func() { _ = usages.Run(ctx) },
		func() { _ = quota.Observe(ctx, bankOf{p, "observer: "}, w.cfg.orphanAfter, p.logger()) },
	} {
		go func() { part(); ended <- struct{}{} }()
	}
	go func() {
		defer close(p.done)
		for range 3 {
			<-ended
		}
	}()
}

// give makes the process own a partition.
func (c *consumer) give(g *group, n int) {
	if g.owns[n] != nil {
		return
	}
	own, cancel := context.WithCancel(context.Background())
	g.owns[n] = cancel
	g.cmds <- func(ctx context.Context, handle func(context.Context, int)) {
		before := g.busy[n]
		busy := make(chan struct{})
		g.busy[n] = busy
		ctx, stop := context.WithCancel(ctx)
		context.AfterFunc(own, stop)
		go func() {
			defer close(busy)
			defer stop()
			if before != nil {
				<-before
			}
			if ctx.Err() == nil {
				handle(ctx, n)
			}
		}()
	}
}

// take ends the ownership.
func (c *consumer) take(g *group, n int) {
	if cancel := g.owns[n]; cancel != nil {
		cancel()
		delete(g.owns, n)
	}
}

// filesOf is the disk as one process uses it: each call is a step.
type filesOf struct {
	p    *proc
	fs   *journaltest.Process
	disk *disk
}

func (f filesOf) do(name, path string, exec func() error) error {
	return f.p.do(context.Background(), toDisk, name+" "+path, func() error {
		switch {
		case f.p.badSync && name == "sync":
			f.p.badSync, f.disk.fault = false, journaltest.FailIO
		case f.p.badWrite && name == "write":
			f.p.badWrite, f.disk.fault = false, journaltest.ShortWrite
		}
		return exec()
	})
}

func (f filesOf) MkdirAll(dir string) error {
	return f.do("mkdir", dir, func() error { return f.fs.MkdirAll(dir) })
}

func (f filesOf) List(dir string) (names []string, err error) {
	err = f.do("list", dir, func() (err error) { names, err = f.fs.List(dir); return err })
	return names, err
}

func (f filesOf) Open(name string) (file journal.File, err error) {
	err = f.do("open", name, func() (err error) { file, err = f.fs.Open(name); return err })
	return fileOf{f, name, file}, err
}

func (f filesOf) Create(name string) (file journal.File, err error) {
	err = f.do("create", name, func() (err error) { file, err = f.fs.Create(name); return err })
	return fileOf{f, name, file}, err
}

func (f filesOf) Rename(from, to string) error {
	return f.do("rename", from, func() error { return f.fs.Rename(from, to) })
}

func (f filesOf) Remove(name string) error {
	return f.do("remove", name, func() error { return f.fs.Remove(name) })
}

func (f filesOf) SyncDir(dir string) error {
	return f.do("syncdir", dir, func() error { return f.fs.SyncDir(dir) })
}

type fileOf struct {
	f    filesOf
	name string
	journal.File
}

func (f fileOf) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.f.do("read", f.name, func() (err error) { n, err = f.File.ReadAt(b, off); return err })
	return n, err
}

func (f fileOf) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.f.do("write", f.name, func() (err error) { n, err = f.File.WriteAt(b, off); return err })
	return n, err
}

func (f fileOf) Truncate(size int64) error {
	return f.f.do("truncate", f.name, func() error { return f.File.Truncate(size) })
}

func (f fileOf) Sync() error {
	return f.f.do("sync", f.name, func() error { return f.File.Sync() })
}

func short(id ledger.ID) string { return fmt.Sprintf("…%s", strings.ToLower(id.String()[30:])) }
