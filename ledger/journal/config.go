package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// The errors callers tell apart with errors.Is.
var (
	// ErrFull refuses an Open or an Event because a bound of Config is reached. Settles, voids and reopens still fit.
	ErrFull = errors.New("journal is full")
	// ErrFailed says that a write or an fsync failed: the journal takes nothing any more until the directory is adopted anew.
	ErrFailed = errors.New("journal has failed")
	// ErrNoLog refuses an Open because the log has not acknowledged what was sent to it for too long (Config.AwaitLog).
	ErrNoLog = errors.New("the event log does not acknowledge")
	// ErrClosed says that the journal was closed or retired.
	ErrClosed = errors.New("journal is closed")
	// ErrLocked says that another process, or another Journal of this one, owns the directory.
	ErrLocked = errors.New("journal directory is locked by its owner")
	// ErrRetired refuses to adopt a directory that has nothing left to recover.
	ErrRetired = errors.New("journal directory is retired")
	// ErrNotOpen refuses to close or reopen a hold that is not open: it never was, or it was settled or voided before (L2).
	ErrNotOpen = errors.New("hold is not open")
	// ErrAlreadyOpen refuses to open a hold twice.
	ErrAlreadyOpen = errors.New("hold is already open")
	// ErrBusy refuses to retire a journal that still has open holds or unacknowledged events.
	ErrBusy = errors.New("journal still has open holds or unacknowledged events")
	// ErrNewer refuses a directory written by a newer version of the program; it is left as it is.
	ErrNewer = errors.New("journal directory was written by a newer version")
	// ErrTooLarge refuses a record above its bound.
	ErrTooLarge = errors.New("record is too large")
)

// The bounds that Config leaves to this file (L7).
const (
	minSegmentBytes = 4 << 10
	maxSegmentBytes = 256 << 20 // a segment is read as a whole by recovery
	maxBlockBytes   = 256 << 10 // it is written between two batches: a fraction of a millisecond
	maxSlots        = 1 << 20   // 64 MB of mapped memory
	maxPartitions   = 4096
	// closeReserve is kept free for each open request, so that the record that closes it fits below MaxBytes: a settled event
	// is about 1 KB.
	closeReserve = 4 << 10
	// maxQueuedBytes bounds what waits for the disk. Opens and events are refused above it: the disk hangs. What closes a
	// request is still taken, bounded by the slots.
	maxQueuedBytes = 32 << 20
	// logPatience is how long an event may wait for the log under Config.AwaitLog before its partition's requests are refused: long
	// enough for a hiccup, and so short that few requests are under way that cannot end.
	logPatience = 3 * time.Second
	// maxDamage bounds the damage kept for Stats and Damage; the rest is counted.
	maxDamage = 1000
)

// Config says where a journal lives and what bounds it. Zero values take the defaults named.
type Config struct {
	FS         FS     // nil: the operating system's
	Root       string // JOURNAL_DIR; created if missing
	Partitions int    // number of partitions of the log; required, and fixed for a directory

	SegmentBytes int64 // size at which a segment is sealed; 16 MiB, from 4 KiB to 256 MiB
	// BlockBytes is by how much a segment's file grows at once, in zeros; 256 KiB, which is also the most, and never beyond SegmentBytes.
	// Frames are written in their place: an fsync that changes the size of a file costs half as much again, and more on a file system with a
	// journal of its own.
	BlockBytes int64
	// MaxBytes bounds the live bytes: segments that hold something unacknowledged or open. 1 GiB. It decides how long a node
	// serves while Kafka is down (P3).
	MaxBytes    int64
	MemoryBytes int64 // unshipped bytes kept in memory; a shipper further behind reads the disk. 8 MiB
	InFlight    int   // events handed out by Next and not acknowledged, 24 bytes each; Next waits above it. 1 Mi
	Slots       int   // open requests; 8192, up to 1 Mi

	Keep      time.Duration // JOURNAL_KEEP: how long shipped segments stay for reship; 0: not at all
	KeepBytes int64         // kept segments above it go before Keep has passed; 4 GiB

	// AwaitReleases keeps a segment until the counters took the end of every hold that ends in it; the owner says so with
	// Released and, of an adopted journal, ReleasedRecovered.
	AwaitReleases bool

	// AwaitLog makes the log's acknowledgement what a Commit of an event waits for, in the place of the disk's: for a journal on
	// Memory, which dies with its process.
	AwaitLog bool

	Logger *slog.Logger // nil: discard
}

func (c Config) withDefaults() (Config, error) {
	if c.FS == nil {
		c.FS = OS{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	defaultTo(&c.SegmentBytes, 16<<20)
	defaultTo(&c.BlockBytes, maxBlockBytes)
	defaultTo(&c.MaxBytes, 1<<30)
	defaultTo(&c.MemoryBytes, 8<<20)
	defaultTo(&c.KeepBytes, 4<<30)
	defaultTo(&c.InFlight, 1<<20)
	defaultTo(&c.Slots, 8192)
	switch {
	case c.Root == "":
		return c, errors.New("journal: no root directory")
	case c.Partitions < 1 || c.Partitions > maxPartitions:
		return c, fmt.Errorf("journal: %d partitions, allowed 1 to %d", c.Partitions, maxPartitions)
	case c.SegmentBytes < minSegmentBytes || c.SegmentBytes > maxSegmentBytes:
		return c, fmt.Errorf("journal: segments of %d bytes, allowed %d to %d", c.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	case c.BlockBytes < 1 || c.BlockBytes > maxBlockBytes:
		return c, fmt.Errorf("journal: blocks of %d bytes, allowed 1 to %d", c.BlockBytes, maxBlockBytes)
	case c.MaxBytes < 4*c.SegmentBytes:
		return c, fmt.Errorf("journal: a bound of %d bytes, allowed from 4 segments of %d", c.MaxBytes, c.SegmentBytes)
	case c.Slots < 1 || c.Slots > maxSlots:
		return c, fmt.Errorf("journal: %d slots, allowed 1 to %d", c.Slots, maxSlots)
	case c.InFlight < 1 || c.MemoryBytes < 1 || c.Keep < 0 || c.KeepBytes < 1:
		return c, errors.New("journal: in-flight, memory and keep bounds must be positive")
	}
	return c, nil
}

func defaultTo[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
