package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sort"

	"ledgerline/ledger"
)

// readWindow is how much of a segment a reader that is behind reads at once; more if a record is longer.
const readWindow = 512 << 10

// takeFromDisk hands out from the segment at cursor.
func (j *Journal) takeFromDisk(most int) ([]ledger.Parcel, error) {
	j.mu.Lock()
	at, limit, epoch := j.ship.cursor, j.ship.limit(), j.ship.epoch
	k := sort.Search(len(j.segs), func(i int) bool { return j.segs[i].index >= at.segment })
	seg := j.segs[k]
	if seg.index > at.segment { // collected: all that it held was acknowledged
		at = position{seg.index, headerBytes(j.cfg.Partitions)}
	}
	to := seg.durable
	if seg.index == limit.segment {
		to = limit.offset
	}
	if at.offset >= to {
		if k+1 < len(j.segs) {
			at = position{j.segs[k+1].index, headerBytes(j.cfg.Partitions)}
		}
		j.ship.cursor = at
		j.mu.Unlock()
		return nil, nil
	}
	j.mu.Unlock()
	name := filepath.Join(j.dir, segmentName(at.segment))
	read, err := readFrames(j.cfg.FS, name, seg.salt, at.offset, to)
	if errors.Is(err, fs.ErrNotExist) && j.skip(seg) {
		return nil, nil // collected meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("read events to ship: %w", err)
	}
	read.seg, read.epoch = seg, epoch
	return j.handFrames(read, most), nil
}

// skip moves the cursor behind a segment whose file is gone, if all that it held is acknowledged.
func (j *Journal) skip(seg *segment) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ship.cursor.segment <= seg.index && j.allAcked(seg) {
		j.ship.cursor = position{seg.index + 1, headerBytes(j.cfg.Partitions)}
	}
	return j.allAcked(seg)
}

// diskRead is a stretch of a segment, read for shipping.
type diskRead struct {
	seg    *segment
	frames []frame
	gaps   []gap
	next   int64 // where to go on
	epoch  int32 // rewinds before it was read
}

// handFrames hands out the events among the frames read, up to most, and moves the cursor behind the last one.
func (j *Journal) handFrames(r diskRead, most int) (out []ledger.Parcel) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &j.ship
	if s.epoch != r.epoch {
		return nil
	}
	for _, g := range r.gaps {
		j.unreadable(r.seg, g.From, g.To, g.Reason)
	}
	room := min(most, j.cfg.InFlight-s.outstanding)
	next := r.next
	for _, f := range r.frames {
		if len(out) == room {
			next = f.Offset
			break
		}
		rec, err := decodeRecord(f.Body)
		if err != nil {
			j.unreadable(r.seg, f.Offset, f.end(), err)
			continue
		}
		if rec.Kind != kindEvent {
			continue
		}
		if p := rec.parcel(j.id, j.cfg.Partitions); p.Seq > s.acked[p.Partition] && s.hand(&p) {
			out = append(out, p)
		}
	}
	s.cursor = position{r.seg.index, next}
	return out
}

// unreadable is met when a segment that was good is read back and is not: events were lost (the consumers will see a hole),
// and a disk that forgets is not written to any more. Damage that the adoption reported is no news.
func (j *Journal) unreadable(seg *segment, from, to int64, reason error) {
	if seg.damaged {
		return
	}
	seg.damaged = true
	d := Damage{filepath.Join(j.dir, segmentName(seg.index)), from, to - from, reason.Error()}
	j.noteDamage(d)
	j.failLocked(fmt.Errorf("segment cannot be read back: %s", d))
}

// readFrames reads whole frames from offset on, at least one and about readWindow bytes, not beyond to. next is where to
// go on. Gaps are damage: everything below to was synced.
func readFrames(files FS, name string, salt uint32, from, to int64) (r diskRead, err error) {
	f, err := files.Open(name)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for size := min(to-from, readWindow); ; size = to - from {
		data := make([]byte, size)
		n, err := f.ReadAt(data, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return r, err
		}
		data = data[:n]
		if from+size < to { // a window: stop at the first frame that is not whole in it
			pos := 0
			for pos < len(data) {
				fr, bad := decodeFrame(data[pos:], salt, from+int64(pos))
				if bad != nil {
					break
				}
				r.frames = append(r.frames, fr)
				pos += frameHeader + len(fr.Body)
			}
			if len(r.frames) > 0 {
				r.next = from + int64(pos)
				return r, nil
			}
			continue
		}
		r.next = to
		r.gaps, err = walkFrames(data, salt, from, func(fr frame) error {
			r.frames = append(r.frames, fr)
			return nil
		})
		if n < int(size) {
			r.gaps = append(r.gaps, gap{From: from + int64(n), To: to, Reason: errShort})
		}
		return r, err
	}
}

// Reread returns again, in order, events of partition that Next has handed out, with a sequence above after: about maxBytes of
// them, at least one if there is any. A shipper that finds a partition stuck leaves its events here and goes on with
// the others. It reads the disk.
func (j *Journal) Reread(ctx context.Context, partition int, after uint64, maxBytes int) ([]ledger.Parcel, error) {
	j.mu.Lock()
	through := j.ship.handed[partition]
	var from []segment
	for _, seg := range j.segs {
		if seg.last[partition] > after {
			from = append(from, segment{index: seg.index, salt: seg.salt, durable: seg.durable})
		}
	}
	j.mu.Unlock()
	var out []ledger.Parcel
	take := func(p ledger.Parcel) bool {
		if p.Seq > through {
			return false
		}
		if p.Partition != partition || p.Seq <= after {
			return true
		}
		if maxBytes -= len(p.Value); maxBytes < 0 && len(out) > 0 {
			return false
		}
		p.Value = bytes.Clone(p.Value) // the rest of what was read may go
		out = append(out, p)
		return true
	}
	for i := range from {
		if more, err := j.eachEvent(ctx, &from[i], take); err != nil || !more {
			return out, err
		}
	}
	return out, nil
}

// eachEvent calls take for the fsynced events of seg until it returns false: more is false then. A segment that was collected
// meanwhile has none: they are acknowledged. What cannot be read was met by Next.
func (j *Journal) eachEvent(ctx context.Context, seg *segment, take func(ledger.Parcel) bool) (more bool, err error) {
	name := filepath.Join(j.dir, segmentName(seg.index))
	for at := headerBytes(j.cfg.Partitions); at < seg.durable; {
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("read events again: %w", err)
		}
		r, err := readFrames(j.cfg.FS, name, seg.salt, at, seg.durable)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read events again: %w", err)
		}
		at = r.next
		for _, f := range r.frames {
			rec, err := decodeRecord(f.Body)
			if err == nil && rec.Kind == kindEvent && !take(rec.parcel(j.id, j.cfg.Partitions)) {
				return false, nil
			}
		}
	}
	return true, nil
}
