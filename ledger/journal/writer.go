package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"time"

	"ledgerline/ledger"
)

// writer is the file being written. Only the journal's own goroutine touches it.
type writer struct {
	file  File
	index uint64
	end   int64 // behind the last frame
	size  int64 // of the file: zeros from end on
}

var zeros [maxBlockBytes]byte

// grow makes room for frames up to end, and for what follows them, so that a disk that is full says so before they are on it.
func (w *writer) grow(j *Journal, end int64) error {
	if end <= w.size || j.cfg.AwaitLog { // memory has no fsync to save
		return nil
	}
	w.size = max(end, min((end/j.cfg.BlockBytes+1)*j.cfg.BlockBytes, j.cfg.SegmentBytes))
	if w.size == end {
		return nil // the last frame of the segment
	}
	return writeFull(w.file, zeros[:w.size-end], end)
}

// seal gives back the zeros behind the last frame: only the newest segment has any.
func (w *writer) seal() error {
	if w.file == nil || w.size <= w.end {
		return nil
	}
	if err := errors.Join(w.file.Truncate(w.end), w.file.Sync()); err != nil {
		return fmt.Errorf("seal segment %d: %w", w.index, err)
	}
	w.size = w.end
	return nil
}

func (w *writer) close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// lingerFor is how long an open or a void waits for company if nobody asks for it: the fsync of the event that comes soon
// after, its own or another's, makes it durable too. It is a fraction of what an upstream takes to answer, so the first byte of
// an answer need not wait for it (L1).
const lingerFor = 2 * time.Millisecond

// collectEvery is how often an idle journal looks for kept segments that have expired.
const collectEvery = time.Minute

// run is the journal's goroutine: whatever gathered during one fsync is the next batch (group commit).
func (j *Journal) run() {
	defer close(j.stopped)
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	linger := time.NewTimer(lingerFor)
	defer linger.Stop()
	for {
		all := false
		select {
		case <-j.wake:
		case <-j.linger:
			linger.Reset(lingerFor)
			continue
		case <-linger.C:
			all = true
		case <-ticker.C:
		case <-j.stop:
			for more := true; more; {
				more = j.flush(true)
			}
			return
		}
		j.writeAll(all)
	}
}

// writeAll writes what is urgent, or all, until nothing of it is pending, and gives up segments as soon as they can go: under a load that
// never pauses the journal would fill up otherwise, with a log that has acknowledged everything.
func (j *Journal) writeAll(all bool) {
	for j.flush(all) {
		j.collect()
	}
	j.collect()
}

// wantsCollecting reports whether the oldest segment can go.
func (j *Journal) wantsCollecting() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.segs) > 0 && j.collectable(j.segs[0])
}

// flush writes what is urgent, or all, until nothing of it is pending, or until a segment can go: then more may be pending. Before each batch it lets those run who can: what they append shares
// the fsync, and a lone client has nobody to wait for.
func (j *Journal) flush(all bool) (more bool) {
	for {
		runtime.Gosched()
		j.mu.Lock()
		b := j.pending
		if b != nil && (j.failed != nil || !all && !b.urgent.Load()) {
			b = nil // fail has ended it, or it lingers
		} else {
			j.pending, j.writing = nil, b
		}
		j.mu.Unlock()
		if b == nil {
			return false
		}
		b.urgent.Store(true)
		start := time.Now()
		if err := j.writer.write(j, b); err != nil {
			j.abandon(b, err)
			return false
		}
		j.commit(b, time.Since(start))
		if j.wantsCollecting() {
			return true
		}
	}
}

// abandon ends a batch that could not be made durable, and the journal with it.
func (j *Journal) abandon(b *batch, cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writing = nil
	j.failLocked(cause)
	b.finish(j.failed)
}

// write makes b durable. A segment is sealed before the next one is made, so that only the last one can be torn, or end in zeros.
func (w *writer) write(j *Journal, b *batch) error {
	for i := range b.parts {
		p := &b.parts[i]
		if p.seg.index != w.index {
			if err := w.next(j, p.seg); err != nil {
				return err
			}
		}
		end := p.off + int64(len(p.buf))
		if err := w.grow(j, end); err != nil {
			return fmt.Errorf("grow segment %d: %w", w.index, err)
		}
		if err := writeFull(w.file, p.buf, p.off); err != nil {
			return fmt.Errorf("write segment %d: %w", w.index, err)
		}
		if err := w.file.Sync(); err != nil {
			return fmt.Errorf("sync segment %d: %w", w.index, err)
		}
		w.end = end
	}
	return nil
}

func (w *writer) next(j *Journal, seg *segment) error {
	if err := w.seal(); err != nil {
		return err
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("close segment %d: %w", w.index, err)
	}
	return w.create(j, j.dir, seg)
}

// create makes the file of seg in dir and goes on there.
func (w *writer) create(j *Journal, dir string, seg *segment) error {
	f, err := createSegment(j.cfg.FS, dir, j.id, seg.before)
	if err != nil {
		return err
	}
	start := headerBytes(j.cfg.Partitions)
	*w = writer{file: f, index: seg.index, end: start, size: start}
	return nil
}

// commit is the one point at which a batch becomes durable: it was fsynced. The order matters: the marks and the slots first,
// then those who wait.
func (j *Journal) commit(b *batch, took time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writing = nil
	for i := range b.parts {
		p := &b.parts[i]
		p.seg.durable = p.off + int64(len(p.buf))
		j.ship.end = position{p.seg.index, p.seg.durable}
	}
	j.slots.setMark(syncedMark{j.ship.end.segment, j.ship.end.offset, b.seq})
	for _, m := range b.moves {
		m.seg.opens--
		m.seg.openBytes -= m.bytes
		if m.closed {
			if m.state.slot != nil {
				j.free = append(j.free, m.state.rec.Slot)
			}
			m.state.slot, m.state.seg = nil, nil
			j.spare = append(j.spare, m.state)
		}
	}
	j.queued -= b.bytes
	j.batchEvents, j.batchMoves = len(b.events), len(b.moves)
	j.stats.batches++
	j.stats.frames += int64(b.frames)
	j.stats.events += int64(len(b.events))
	j.stats.syncTime += took
	j.offer(b)
	b.finish(nil)
}

func segmentName(index uint64) string { return fmt.Sprintf("%016d.seg", index) }

// createSegment makes a segment that holds its header. It appears under its name whole, synced, or not at all.
func createSegment(files FS, dir string, incarnation ledger.ID, h segmentHeader) (File, error) {
	name := filepath.Join(dir, segmentName(h.Index))
	tmp := name + ".tmp"
	if err := files.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create segment %d: %w", h.Index, err)
	}
	f, err := files.Create(tmp)
	if err != nil {
		return nil, fmt.Errorf("create segment %d: %w", h.Index, err)
	}
	err = writeFull(f, h.encode(incarnation), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = files.Rename(tmp, name)
	}
	if err == nil {
		err = files.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create segment %d: %w", h.Index, err), f.Close())
	}
	return f, nil
}

// writeFull turns a short write into an error.
func writeFull(f File, b []byte, off int64) error {
	n, err := f.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
