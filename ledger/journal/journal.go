package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"ledgerline/ledger"
)

// Journal is one incarnation's directory, locked and being written. Its methods may be called from any goroutine; Next by one
// shipper at a time. One goroutine of its own writes, syncs and collects; Close ends it and waits for it.
type Journal struct {
	cfg  Config
	id   ledger.ID
	dir  string
	log  *slog.Logger
	lock io.Closer

	wake    chan struct{} // for the writer: something to write, to collect
	linger  chan struct{} // for the writer: something to write before long
	avail   chan struct{} // for Next: something to hand out
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed by the writer when it has ended
	failing chan struct{} // closed by fail
	writer  writer        // belongs to the writer's goroutine

	mu      sync.Mutex
	slots   *slotFile
	failed  error
	closed  bool
	retired bool
	damage  []Damage
	damages int64

	// The order of the log, assigned under mu together with the place in the file.
	seq   uint64   // highest given out
	last  []uint64 // by partition: highest given out, the next event's prev
	ships []uint64 // by partition: highest that can be read back and shipped; last, unless damage took it

	// Appending: what is open, and what waits for the disk.
	opens      map[ledger.ID]*openState
	recovering bool         // adopted, and the counters have not taken all that was found
	free       []uint32     // free slots
	spare      []*openState // closed ones, for their buffers
	pending    *batch       // being gathered
	writing    *batch       // with the writer
	queued     int64        // bytes in both
	block      []byte       // the last part's buffer; what is free behind it is the next one's
	// batchEvents and batchMoves are how many the last batch had: the next one's room.
	batchEvents, batchMoves int

	segs       []*segment // live, oldest first; the last is being written
	kept       []keptSegment
	live       int64 // bytes of segs
	copyBudget int64 // bytes that may be copied forward; see copyable
	// collectAfter holds the collector back after it failed.
	collectAfter time.Time

	ship  shipping
	stats counters
}

// segment is one live segment.
type segment struct {
	index     uint64
	salt      uint32
	size      int64    // as appended
	durable   int64    // as fsynced
	last      []uint64 // by partition: highest event in it; 0: none
	opens     int      // open records in it that are some hold's latest
	openBytes int64    // their frames
	// unreleased counts the ends of holds in it that the counters have not taken (Config.AwaitReleases).
	unreleased int
	damaged    bool
	before     segmentHeader // what its header says
}

// openState is one open hold: its latest open record, to be copied forward and reopened.
type openState struct {
	rec   record // Payload belongs to the state
	seg   *segment
	bytes int64 // frame size of its latest open record
	slot  *Slot // nil: lost
}

// counters are the totals of Stats, guarded by Journal.mu.
type counters struct {
	events, batches, frames, copied int64
	syncTime                        time.Duration
}

// Damage is a stretch of a file that was durable once and cannot be read any more, or a file that is missing (L6).
type Damage struct {
	File   string
	Offset int64
	Length int64
	Reason string
}

// String says where the damage is and why.
func (d Damage) String() string {
	return fmt.Sprintf("%s: %d bytes at offset %d: %s", d.File, d.Length, d.Offset, d.Reason)
}

const (
	slotsName   = "slots"
	lockName    = "lock"
	retiredName = "retired"
	newPrefix   = ".new-" // a directory that Create has not finished
)

// Create makes, locks and starts the journal of a new incarnation. The directory appears whole or not at all.
func Create(cfg Config, incarnation ledger.ID) (*Journal, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	final, dir := filepath.Join(cfg.Root, incarnation.String()), filepath.Join(cfg.Root, newPrefix+incarnation.String())
	if _, err := cfg.FS.List(final); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create journal %s: %w", incarnation, errors.Join(fs.ErrExist, err))
	}
	if err := cfg.FS.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	lock, err := cfg.FS.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	j := newJournal(cfg, incarnation, final, lock)
	if err := j.create(dir); err != nil {
		// Nothing is in it: a full disk must not get fuller with every try.
		return nil, errors.Join(fmt.Errorf("create journal: %w", err), j.release(), abandon(cfg.FS, dir))
	}
	for i := range cfg.Slots {
		j.free = append(j.free, uint32(cfg.Slots-1-i))
	}
	go j.run()
	return j, nil
}

// abandon removes a directory that Create did not finish; one that got its name after all is whole, and left for adoption.
func abandon(files FS, dir string) error {
	err := removeDir(files, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// create fills dir and then gives it its name: the commit point.
func (j *Journal) create(dir string) (err error) {
	files := j.cfg.FS
	if j.slots, err = createSlots(files, filepath.Join(dir, slotsName), j.cfg.Slots, j.cfg.Partitions, j.id); err != nil {
		return err
	}
	if err := j.begin(dir, 1); err != nil {
		return err
	}
	if err := files.Rename(dir, j.dir); err != nil {
		return fmt.Errorf("name directory: %w", err)
	}
	if err := files.SyncDir(j.cfg.Root); err != nil {
		return fmt.Errorf("sync root: %w", err)
	}
	return nil
}

// begin makes the first segment that this process writes, in dir.
func (j *Journal) begin(dir string, index uint64) error {
	seg := j.newSegment(index)
	if err := j.writer.create(j, dir, seg); err != nil {
		return err
	}
	seg.durable = seg.size
	j.slots.setMark(syncedMark{index, seg.durable, j.seq})
	j.ship.end = position{index, seg.durable}
	return nil
}

func newJournal(cfg Config, id ledger.ID, dir string, lock io.Closer) *Journal {
	return &Journal{
		cfg: cfg, id: id, dir: dir, lock: lock,
		log:  cfg.Logger.With("incarnation", id.String()),
		wake: make(chan struct{}, 1), linger: make(chan struct{}, 1), avail: make(chan struct{}, 1), stop: make(chan struct{}),
		stopped: make(chan struct{}), failing: make(chan struct{}),
		last: make([]uint64, cfg.Partitions), ships: make([]uint64, cfg.Partitions),
		opens: map[ledger.ID]*openState{}, ship: newShipping(cfg.Partitions),
	}
}

// release gives back what a Journal that never ran holds.
func (j *Journal) release() error {
	var errs []error
	if j.writer.file != nil {
		errs = append(errs, j.writer.file.Close())
	}
	if j.slots != nil {
		errs = append(errs, j.slots.close(false))
	}
	return errors.Join(append(errs, j.lock.Close())...)
}

// ID returns the incarnation: the Producer of every event in it.
func (j *Journal) ID() ledger.ID { return j.id }

// Failed returns nil, or why the journal takes nothing any more (ErrFailed, wrapped). It never returns to nil.
func (j *Journal) Failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// FailedC is closed when the journal fails.
func (j *Journal) FailedC() <-chan struct{} { return j.failing }

// failLocked makes the failure sticky and tells everybody who waits.
func (j *Journal) failLocked(cause error) {
	if j.failed == nil {
		j.failed = fmt.Errorf("%w: %w", ErrFailed, cause)
		close(j.failing)
		j.log.Error("journal has failed: no request is admitted until the process is restarted", "cause", cause)
	}
	if b := j.pending; b != nil {
		j.pending = nil
		b.finish(j.failed)
	}
	j.ship.endWaits(j.failed)
}

// usable returns the error that every append gets, with mu held.
func (j *Journal) usable() error {
	if j.closed {
		return ErrClosed
	}
	return j.failed
}

// Opens returns the open holds, in no order, with their amounts as last opened or reopened (extensions are the caller's).
func (j *Journal) Opens() []ledger.OpenHold {
	j.mu.Lock()
	defer j.mu.Unlock()
	holds := make([]ledger.OpenHold, 0, len(j.opens))
	for _, o := range j.opens {
		h := ledger.OpenHold{Hold: o.rec.Hold, Incarnation: j.id, User: o.rec.User, Amount: o.rec.Amount}
		if o.rec.TokenHeld {
			h.Token = o.rec.Token
		}
		holds = append(holds, h)
	}
	return holds
}

// Drained reports that no hold is open and every event is acknowledged: Retire would succeed.
func (j *Journal) Drained() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.drained()
}

func (j *Journal) drained() bool {
	return len(j.opens) == 0 && j.pending == nil && j.writing == nil && j.ship.depth == 0
}

// Close writes what is pending, stops and unlocks. The directory stays adoptable. Holds still open are recovered by whoever
// adopts it. It returns the journal's failure, if it had one.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		<-j.stopped
		return nil
	}
	j.closed = true
	inUse := len(j.opens) > 0
	for _, o := range j.opens {
		o.end()
	}
	j.mu.Unlock()
	close(j.stop)
	<-j.stopped
	j.mu.Lock()
	j.ship.endWaits(ErrClosed)
	j.mu.Unlock()
	err := j.Failed()
	if err == nil {
		err = j.writer.seal()
	}
	return errors.Join(err, j.writer.close(), j.slots.close(inUse), j.lock.Close())
}

// Retire marks a drained journal as closed for ever and closes it; its segments are kept for Config.Keep. ErrBusy if it is
// not drained: it then goes on as before.
func (j *Journal) Retire() error {
	j.mu.Lock()
	err := j.usable()
	if err == nil && !j.drained() {
		err = ErrBusy
	}
	if err != nil {
		j.mu.Unlock()
		return fmt.Errorf("retire journal %s: %w", j.id, err)
	}
	j.closed, j.retired = true, true
	j.mu.Unlock()
	close(j.stop)
	<-j.stopped
	err = j.writer.seal()
	if err == nil {
		err = markRetired(j.cfg.FS, j.dir)
	}
	if err == nil {
		err = shelveAll(j.cfg, j.dir)
	}
	if err := errors.Join(err, j.writer.close(), j.slots.close(false), j.lock.Close()); err != nil {
		return fmt.Errorf("retire journal %s: %w", j.id, err)
	}
	return nil
}

// markRetired is the commit point of Retire: from here on nobody adopts the directory.
func markRetired(files FS, dir string) error {
	f, err := files.Create(filepath.Join(dir, retiredName))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), files.SyncDir(dir))
}

// Stats is what a journal says about itself, for metrics and /api/status.
type Stats struct {
	LiveBytes, MaxBytes     int64 // segments with something unacknowledged or open, and their bound
	KeptBytes               int64 // shipped segments kept for reship
	Segments                int
	OpenHolds, Slots        int
	QueuedBytes             int64         // waiting for the disk
	Depth                   int64         // events fsynced and not acknowledged
	InFlight                int           // of these handed to the shipper
	MemoryBytes             int64         // unshipped events held in memory
	Behind                  bool          // the shipper reads from the disk
	OldestUnackedAge        time.Duration // 0: everything is acknowledged
	Events, Batches, Frames int64         // totals since it was created or adopted
	CopiedFrames            int64
	SyncTime                time.Duration // total spent in write + fsync
	Damages                 int64
	Failed                  bool
}

// Stats returns the present figures.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := Stats{
		LiveBytes: j.live, MaxBytes: j.cfg.MaxBytes, Segments: len(j.segs), OpenHolds: len(j.opens), Slots: j.slots.count,
		QueuedBytes: j.queued, Depth: j.ship.depth, InFlight: j.ship.outstanding, MemoryBytes: j.ship.bytes, Behind: j.ship.behind && j.ship.cursor.before(j.ship.limit()),
		Events: j.stats.events, Batches: j.stats.batches, Frames: j.stats.frames, CopiedFrames: j.stats.copied,
		SyncTime: j.stats.syncTime, Damages: j.damages, Failed: j.failed != nil,
	}
	for _, k := range j.kept {
		s.KeptBytes += k.size
	}
	if at, ok := j.ship.oldest(); ok {
		s.OldestUnackedAge = max(0, time.Since(unixMilli(at)))
	}
	return s
}

// Damage returns what was found to be unreadable since the journal was adopted, that of the adoption included; at most 1000.
func (j *Journal) Damage() []Damage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]Damage(nil), j.damage...)
}

func (j *Journal) noteDamage(d ...Damage) {
	j.damages += int64(len(d))
	j.damage = append(j.damage, d...)
	j.damage = j.damage[:min(len(j.damage), maxDamage)]
}
