package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ledgerline/ledger"
)

// keptSegment is a segment that is kept for reship only.
type keptSegment struct {
	index uint64
	at    time.Time // when it was shelved
	name  string
	size  int64
}

// collect gives up segments that nothing needs any more, oldest first and one durable step at a time: were a newer one gone
// before an older one, an open record could come back without the record that closed it.
func (j *Journal) collect() {
	for {
		j.mu.Lock()
		seg := j.segs[0]
		if !j.collectable(seg) {
			j.mu.Unlock()
			break
		}
		if seg.opens > 0 {
			done := j.failed != nil || !j.copyForward(seg)
			j.mu.Unlock()
			if done {
				break
			}
			j.flush(true)
			continue
		}
		away := segment{index: seg.index, size: seg.size, damaged: seg.damaged}
		j.mu.Unlock()
		kept, err := shelve(j.cfg, j.dir, &away)
		if err != nil {
			j.log.Warn("a shipped journal segment cannot be put away; trying again", "segment", seg.index, "error", err)
			j.retryCollect()
			break
		}
		j.mu.Lock()
		j.segs = j.segs[1:]
		j.live -= seg.size
		if kept.name != "" {
			j.kept = append(j.kept, kept)
		}
		j.mu.Unlock()
	}
	j.expire()
}

// retryCollect lets the next look at the segments wait for the ticker's pace instead of every batch's.
func (j *Journal) retryCollect() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.collectAfter = time.Now().Add(collectEvery / 2)
}

// collectable reports whether the oldest segment can go: a newer one is on the disk (a directory without any cannot be adopted),
// every event in it is acknowledged, every end of a hold released, and its open holds, if any, may be copied forward.
func (j *Journal) collectable(seg *segment) bool {
	return seg.index < j.ship.end.segment && seg.unreleased == 0 && !j.recovering && j.allAcked(seg) && (seg.opens == 0 || j.copyable(seg)) &&
		(j.collectAfter.IsZero() || !time.Now().Before(j.collectAfter))
}

func (j *Journal) allAcked(seg *segment) bool {
	for p, seq := range seg.last {
		if seq > j.ship.acked[p] {
			return false
		}
	}
	return true
}

// copyable decides when long-lived opens are copied forward so that they do not pin a segment: not before two newer segments
// exist (most requests end before), and never more bytes than were newly written since (the copies cannot feed on themselves).
func (j *Journal) copyable(seg *segment) bool {
	return j.segs[len(j.segs)-1].index >= seg.index+2 && j.copyBudget >= seg.openBytes
}

// copyForward appends the open records that pin seg again, and reports whether there was one, or one that is being closed.
func (j *Journal) copyForward(seg *segment) bool {
	some := j.pending != nil
	for _, o := range j.opens {
		if o.seg != seg {
			continue
		}
		old := move{state: o, seg: seg, bytes: o.bytes}
		b := j.putOpen(o)
		b.moves = append(b.moves, old)
		j.copyBudget -= 2 * o.bytes // put counted it as new
		j.stats.copied++
		some = true
	}
	return some
}

// expire removes kept segments: after Config.Keep, or above Config.KeepBytes.
func (j *Journal) expire() {
	j.mu.Lock()
	var total int64
	for _, k := range j.kept {
		total += k.size
	}
	n := 0
	for n < len(j.kept) && (time.Since(j.kept[n].at) >= j.cfg.Keep || total > j.cfg.KeepBytes) {
		total -= j.kept[n].size
		n++
	}
	gone := slices.Clone(j.kept[:n])
	j.kept = j.kept[n:]
	j.mu.Unlock()
	for _, k := range gone {
		if time.Since(k.at) < j.cfg.Keep {
			j.log.Warn("a kept journal segment goes before its time: too many bytes are kept", "segment", k.index, "bound", j.cfg.KeepBytes)
		}
		if err := j.cfg.FS.Remove(filepath.Join(j.dir, k.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.log.Warn("an expired journal segment cannot be removed", "segment", k.index, "error", err)
		}
	}
}

// shelve takes a segment out of recovery's sight, durably: removed, kept, or set aside because it has damage in it. Doing it
// again is no error.
func shelve(cfg Config, dir string, seg *segment) (keptSegment, error) {
	name := filepath.Join(dir, segmentName(seg.index))
	var (
		kept keptSegment
		now  = time.Now()
		err  error
	)
	switch {
	case seg.damaged:
		err = cfg.FS.Rename(name, filepath.Join(dir, keptName(seg.index, now, "damaged")))
	case cfg.Keep == 0:
		err = cfg.FS.Remove(name)
	default:
		kept = keptSegment{seg.index, now, keptName(seg.index, now, "kept"), seg.size}
		err = cfg.FS.Rename(name, filepath.Join(dir, kept.name))
	}
	if errors.Is(err, fs.ErrNotExist) { // done before, but not known to be durable
		kept, err = keptSegment{}, nil
	}
	if err == nil {
		err = cfg.FS.SyncDir(dir)
	}
	if err != nil {
		return keptSegment{}, fmt.Errorf("put segment %d away: %w", seg.index, err)
	}
	return kept, nil
}

// shelveAll puts away every segment of a retired directory.
func shelveAll(cfg Config, dir string) error {
	names, err := cfg.FS.List(dir)
	if err != nil {
		return err
	}
	for _, index := range segmentIndexes(names) {
		size, err := fileSize(cfg.FS, filepath.Join(dir, segmentName(index)))
		if err != nil {
			return err
		}
		if _, err := shelve(cfg, dir, &segment{index: index, size: size}); err != nil {
			return err
		}
	}
	return nil
}

func keptName(index uint64, at time.Time, kind string) string {
	return fmt.Sprintf("%016d-%d.%s", index, at.UnixMilli(), kind)
}

// parseKept reads the name of a kept or damaged segment.
func parseKept(name string) (k keptSegment, damaged, ok bool) {
	var ms int64
	stem, kind, _ := strings.Cut(name, ".")
	if n, err := fmt.Sscanf(stem, "%016d-%d", &k.index, &ms); n != 2 || err != nil {
		return k, false, false
	}
	k.name, k.at = name, unixMilli(ms)
	return k, kind == "damaged", kind == "kept" || kind == "damaged"
}

// segmentIndexes returns the live segments among the names, ascending.
func segmentIndexes(names []string) []uint64 {
	var found []uint64
	for _, name := range names {
		var index uint64
		if n, err := fmt.Sscanf(name, "%016d", &index); n == 1 && err == nil && name == segmentName(index) {
			found = append(found, index)
		}
	}
	slices.Sort(found)
	return found
}

// keptSegments returns the kept segments among the names with their sizes, ascending.
func keptSegments(files FS, dir string, names []string) ([]keptSegment, error) {
	var kept []keptSegment
	for _, name := range names {
		k, damaged, ok := parseKept(name)
		if !ok || damaged {
			continue
		}
		var err error
		if k.size, err = fileSize(files, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
		kept = append(kept, k)
	}
	slices.SortFunc(kept, func(a, b keptSegment) int { return int(int64(a.index) - int64(b.index)) })
	return kept, nil
}

func fileSize(files FS, name string) (int64, error) {
	f, err := files.Open(name)
	if err != nil {
		return 0, err
	}
	size, err := f.Size()
	return size, errors.Join(err, f.Close())
}

// newGrace is how long a directory may take to be created before Sweep calls it a leftover.
const newGrace = time.Hour

// Sweep removes from Config.Root what nobody needs: kept segments of retired directories after Config.Keep, retired directories
// that hold nothing any more, and directories that were never finished. Directories somebody holds are left alone. Damaged
// segments stay until the operator removes them. Call it at start and now and then.
func Sweep(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	names, err := cfg.FS.List(cfg.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep journals: %w", err)
	}
	var errs []error
	for _, name := range names {
		id, err := ledger.ParseID(strings.TrimPrefix(name, newPrefix))
		if err != nil {
			continue
		}
		unfinished := strings.HasPrefix(name, newPrefix)
		if unfinished && time.Since(madeAt(id)) < newGrace {
			continue
		}
		if err := sweepDir(cfg, filepath.Join(cfg.Root, name), unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrLocked) {
			errs = append(errs, fmt.Errorf("sweep journal %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// madeAt returns the time in a UUIDv7.
func madeAt(id ledger.ID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

func sweepDir(cfg Config, dir string, unfinished bool) (err error) {
	names, err := cfg.FS.List(dir)
	if err != nil || !unfinished && !slices.Contains(names, retiredName) {
		return err
	}
	lock, err := cfg.FS.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if !unfinished {
		if err := shelveAll(cfg, dir); err != nil {
			return err
		}
	}
	if names, err = cfg.FS.List(dir); err != nil {
		return err
	}
	left := 0
	for _, name := range names {
		k, damaged, ok := parseKept(name)
		switch {
		case !ok || unfinished:
		case damaged || time.Since(k.at) < cfg.Keep:
			left++
		default:
			if err := cfg.FS.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	if left > 0 {
		return nil
	}
	return removeDir(cfg.FS, dir)
}

// removeDir removes a directory, the lock and the mark of retirement last: whoever comes in between sees it as retired.
func removeDir(files FS, dir string) error {
	names, err := files.List(dir)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == lockName || n == retiredName })
	for _, name := range append(names, lockName, retiredName) {
		if err := files.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := files.Remove(dir); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(dir))
}
