package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"

	"ledgerline/ledger"
)

// DamageError is Damage met by Reship; the iteration goes on behind it.
type DamageError struct{ Damage Damage }

func (e *DamageError) Error() string { return "journal is damaged: " + e.Damage.String() }

// Reship yields again, in order, the events of one incarnation with hole.After < seq ≤ hole.Through in partition (all
// partitions if it is negative) that are still on the disk: live, kept or retired, fsynced, acknowledged or not. Consumers skip
// what they have seen, so it does no harm to ship all of them (DESIGN 4).
//
// It only reads, and may run beside the directory's owner. Damage is yielded as *DamageError between the events, any other
// error ends the iteration.
func Reship(cfg Config, incarnation ledger.ID, partition int, hole ledger.Hole) iter.Seq2[ledger.Parcel, error] {
	return func(yield func(ledger.Parcel, error) bool) {
		cfg, err := cfg.withDefaults()
		if err != nil {
			yield(ledger.Parcel{}, err)
			return
		}
		r := reshipper{cfg: cfg, id: incarnation, dir: filepath.Join(cfg.Root, incarnation.String()), partition: partition, hole: hole}
		if err := r.run(yield); err != nil {
			yield(ledger.Parcel{}, fmt.Errorf("reship journal %s: %w", incarnation, err))
		}
	}
}

type reshipper struct {
	cfg       Config
	id        ledger.ID
	dir       string
	partition int
	hole      ledger.Hole
}

// onDisk is a segment under any of its names.
type onDisk struct {
	index uint64
	name  string
	live  bool
}

func (r *reshipper) list() ([]onDisk, error) {
	names, err := r.cfg.FS.List(r.dir)
	if err != nil {
		return nil, err
	}
	var found []onDisk
	for _, index := range segmentIndexes(names) {
		found = append(found, onDisk{index, segmentName(index), true})
	}
	for _, name := range names {
		if k, _, ok := parseKept(name); ok {
			found = append(found, onDisk{k.index, name, false})
		}
	}
	slices.SortFunc(found, func(a, b onDisk) int { return int(int64(a.index) - int64(b.index)) })
	return found, nil
}

func (r *reshipper) run(yield func(ledger.Parcel, error) bool) error {
	found, err := r.list()
	if err != nil {
		return err
	}
	mark, err := r.mark()
	if err != nil {
		return err
	}
	for i, s := range found {
		limit := int64(-1)
		if s.live && i == len(found)-1 {
			if limit = mark.Offset; mark.Segment < s.index {
				break // nothing in it is known to be synced
			}
		}
		data, name, err := r.read(s)
		if errors.Is(err, fs.ErrNotExist) {
			continue // expired meanwhile
		}
		if err != nil {
			return err
		}
		if limit >= 0 && mark.Segment == s.index {
			data = data[:min(int64(len(data)), limit)]
		}
		more, err := r.segment(data, s.index, name, yield)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// read reads a segment, which its owner may be renaming.
func (r *reshipper) read(s onDisk) (data []byte, name string, err error) {
	for range 3 {
		name = filepath.Join(r.dir, s.name)
		f, err := r.cfg.FS.Open(name)
		if err == nil {
			data, err = readFile(f)
			return data, name, errors.Join(err, f.Close())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, name, err
		}
		found, err := r.list()
		if err != nil {
			return nil, name, err
		}
		i := slices.IndexFunc(found, func(o onDisk) bool { return o.index == s.index })
		if i < 0 {
			break
		}
		s = found[i]
	}
	return nil, name, fs.ErrNotExist
}

// mark reads how far the newest segment is synced, from the slot file.
func (r *reshipper) mark() (m syncedMark, err error) {
	f, err := r.cfg.FS.Open(filepath.Join(r.dir, slotsName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := readSlotsHeader(f, r.cfg.Partitions, r.id); errors.Is(err, errSlots) {
		return m, nil
	} else if err != nil {
		return m, err
	}
	b := make([]byte, 2*markStride)
	if _, err := f.ReadAt(b, markAt); err != nil {
		return m, err
	}
	return readMark(b, slotsSalt(r.id)), nil
}

// segment yields the events of one segment; more is false if the caller has had enough.
func (r *reshipper) segment(data []byte, index uint64, name string, yield func(ledger.Parcel, error) bool) (more bool, err error) {
	head, start, err := decodeSegmentHeader(data, r.id)
	if errors.Is(err, ErrNewer) {
		return false, err
	}
	if err != nil {
		start = min(headerBytes(r.cfg.Partitions), int64(len(data)))
		if !yield(ledger.Parcel{}, &DamageError{Damage{name, 0, start, err.Error()}}) {
			return false, nil
		}
	} else if len(head.Last) != r.cfg.Partitions {
		return false, fmt.Errorf("journal was made for %d partitions, the log has %d", len(head.Last), r.cfg.Partitions)
	}
	enough := errors.New("enough")
	gaps, err := walkFrames(data[start:], segmentSalt(r.id, index), start, func(f frame) error {
		rec, err := decodeRecord(f.Body)
		if err != nil {
			if !yield(ledger.Parcel{}, &DamageError{Damage{name, f.Offset, f.end() - f.Offset, err.Error()}}) {
				return enough
			}
			return nil
		}
		if rec.Kind != kindEvent || rec.Seq <= r.hole.After || rec.Seq > r.hole.Through {
			return nil
		}
		p := rec.parcel(r.id, r.cfg.Partitions)
		if (r.partition < 0 || p.Partition == r.partition) && !yield(p, nil) {
			return enough
		}
		return nil
	})
	if errors.Is(err, enough) {
		return false, nil
	}
	for _, g := range gaps {
		if !yield(ledger.Parcel{}, &DamageError{Damage{name, g.From, g.To - g.From, g.Reason.Error()}}) {
			return false, nil
		}
	}
	return true, err
}
