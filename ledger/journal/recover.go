package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"ledgerline/ledger"
)

// recovery reads a directory into the Journal that will go on with it.
type recovery struct {
	j     *Journal
	out   Recovered
	mark  syncedMark
	opens map[ledger.ID]*openState
	at    map[ledger.ID]position // of the open records
	lost  []position             // where damage lies
	torn  bool
	high  uint64 // highest sequence seen anywhere
}

func (r *recovery) damaged(at position, d Damage) {
	r.out.Damage = append(r.out.Damage, d)
	r.lost = append(r.lost, at)
}

// openSlots maps the slots, or makes new ones in their place if they cannot be read: what they said is lost then.
func (r *recovery) openSlots() (err error) {
	j := r.j
	name := filepath.Join(j.dir, slotsName)
	j.slots, err = openSlots(j.cfg.FS, name, j.cfg.Partitions, j.id)
	if errors.Is(err, errSlots) || errors.Is(err, fs.ErrNotExist) {
		r.out.Damage = append(r.out.Damage, Damage{File: name, Reason: err.Error()})
		tmp := name + ".tmp"
		if err := j.cfg.FS.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if j.slots, err = createSlots(j.cfg.FS, tmp, j.cfg.Slots, j.cfg.Partitions, j.id); err != nil {
			return err
		}
		err = errors.Join(j.cfg.FS.Rename(tmp, name), j.cfg.FS.SyncDir(j.dir))
	}
	if err != nil {
		return err
	}
	r.mark = j.slots.mark()
	r.high = r.mark.Seq
	for p := range j.cfg.Partitions {
		j.ship.acked[p] = j.slots.acked(p)
		r.high = max(r.high, j.ship.acked[p])
	}
	return nil
}

func (r *recovery) readAll(indexes []uint64) error {
	for i, index := range indexes {
		if i > 0 && index != indexes[i-1]+1 {
			name := filepath.Join(r.j.dir, segmentName(indexes[i-1]+1))
			r.damaged(position{indexes[i-1] + 1, 0}, Damage{File: name, Reason: "segment is missing"})
		}
		if err := r.readSegment(index, i == 0, i == len(indexes)-1); err != nil {
			return fmt.Errorf("read segment %d: %w", index, err)
		}
	}
	if last := indexes[len(indexes)-1]; r.mark.Segment > last {
		name := filepath.Join(r.j.dir, segmentName(r.mark.Segment))
		r.damaged(position{r.mark.Segment, 0}, Damage{File: name, Reason: "segment is missing"})
	}
	return nil
}

func (r *recovery) readSegment(index uint64, oldest, newest bool) (err error) {
	j := r.j
	name := filepath.Join(j.dir, segmentName(index))
	f, err := j.cfg.FS.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := readFile(f)
	if err != nil {
		return err
	}
	seg := &segment{index: index, salt: segmentSalt(j.id, index), last: make([]uint64, j.cfg.Partitions)}
	head, start, err := decodeSegmentHeader(data, j.id)
	switch {
	case errors.Is(err, ErrNewer):
		return err
	case err == nil && len(head.Last) != j.cfg.Partitions:
		return fmt.Errorf("journal was made for %d partitions, the log has %d", len(head.Last), j.cfg.Partitions)
	case err == nil:
		r.header(&head, oldest)
	default:
		start = min(headerBytes(j.cfg.Partitions), int64(len(data)))
		seg.damaged = true
		r.damaged(position{index, 0}, Damage{name, 0, start, err.Error()})
	}
	var frames []frame
	gaps, _ := walkFrames(data[start:], seg.salt, start, func(f frame) error {
		frames = append(frames, f)
		return nil
	})
	end := int64(len(data))
	if newest {
		if end, gaps, err = r.cutTorn(f, index, data, start, gaps); err != nil {
			return err
		}
		if r.torn { // after a power loss the mark may be an old one, and what was torn a record that went bad after it was shipped
			r.lost = append(r.lost, position{index, end})
		}
	}
	for _, g := range gaps {
		if g.From < end || g.Durable {
			seg.damaged = true
			r.damaged(position{index, g.From}, Damage{name, g.From, g.To - g.From, g.Reason.Error()})
		}
	}
	seg.size, seg.durable = end, end
	for _, f := range frames {
		if f.Offset >= end {
			break
		}
		if err := r.apply(seg, f); err != nil {
			seg.damaged = true
			r.damaged(position{index, f.Offset}, Damage{name, f.Offset, frameHeader + int64(len(f.Body)), err.Error()})
		}
	}
	j.segs = append(j.segs, seg)
	j.live += seg.size
	return nil
}

func readFile(f File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxSegmentBytes+maxBody+1<<20 {
		return nil, fmt.Errorf("file of %d bytes is no segment", size)
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data[:n], nil
}

func (r *recovery) header(h *segmentHeader, oldest bool) {
	j := r.j
	r.high = max(r.high, h.Highest)
	for p, seq := range h.Last {
		r.high = max(r.high, seq)
		j.last[p] = max(j.last[p], seq)
		if oldest { // what lay before the oldest live segment was acknowledged, or it would be here
			j.ship.acked[p] = max(j.ship.acked[p], seq)
			j.ships[p] = max(j.ships[p], seq)
		}
	}
}

// cutTorn finds where the last segment ends, cuts off what was torn and the zeros behind, and makes the rest durable. A gap is torn if it
// lies beyond everything that is known to have been synced; whatever is readable behind it belongs to the same write, which was
// promised to nobody.
//
// What is kept beyond the synced mark is written once more before it is synced: if its fsync failed under the previous owner, the
// system may take the pages for clean although they never reached the disk.
func (r *recovery) cutTorn(f File, index uint64, data []byte, start int64, gaps []gap) (int64, []gap, error) {
	size, synced := int64(len(data)), start
	if r.mark.Segment == index {
		synced = max(start, r.mark.Offset)
	}
	written, gaps := cutZeros(data, min(synced, size), gaps)
	if synced > size {
		gaps = append(gaps, gap{From: size, To: synced, Reason: errShort, Durable: true})
	}
	end := written
	for _, g := range gaps {
		if !g.Durable && g.From >= synced {
			end = g.From
			break
		}
	}
	r.torn = end < written
	r.out.TornBytes = written - end
	if synced < end {
		if err := writeFull(f, data[synced:end], synced); err != nil {
			return 0, nil, err
		}
	}
	if end < size {
		if err := f.Truncate(end); err != nil {
			return 0, nil, err
		}
	}
	return end, gaps, f.Sync()
}

// cutZeros returns how far a segment was written: what is left of a block that was not used is zeros, and no gap. A zero below the
// synced mark was a frame once.
func cutZeros(data []byte, synced int64, gaps []gap) (written int64, _ []gap) {
	size := int64(len(data))
	n := len(gaps) - 1
	if n < 0 || gaps[n].To != size {
		return size, gaps
	}
	last := &gaps[n]
	if written = max(last.From+int64(len(bytes.TrimRight(data[last.From:], "\x00"))), synced); written <= last.From {
		return last.From, gaps[:n]
	}
	last.To = written
	return written, gaps
}

// apply takes up one record.
func (r *recovery) apply(seg *segment, f frame) error {
	rec, err := decodeRecord(f.Body)
	if err != nil {
		return err
	}
	j := r.j
	partition := 0
	if rec.User > 0 {
		partition = ledger.Partition(rec.User, j.cfg.Partitions)
	}
	switch rec.Kind {
	case kindOpen:
		if o := r.opens[rec.Hold]; o != nil {
			o.seg.opens--
			o.seg.openBytes -= o.bytes
		}
		n := frameHeader + int64(len(f.Body))
		rec.Payload = append([]byte(nil), rec.Payload...)
		r.opens[rec.Hold] = &openState{rec: rec, seg: seg, bytes: n}
		r.at[rec.Hold] = position{seg.index, f.Offset}
		seg.opens++
		seg.openBytes += n
		return nil
	case kindEvent:
		r.high = max(r.high, rec.Seq)
		j.last[partition] = max(j.last[partition], rec.Seq)
		j.ships[partition] = max(j.ships[partition], rec.Seq)
		seg.last[partition] = max(seg.last[partition], rec.Seq)
		if rec.Seq > j.ship.acked[partition] {
			j.ship.depth++
		}
	}
	if rec.Hold.IsZero() {
		return nil
	}
	charge := rec.Charge
	if rec.Kind == kindVoid {
		charge = -1
	}
	r.out.Releases = append(r.out.Releases, ledger.ReleaseCall{
		Hold: rec.Hold, Incarnation: j.id, Partition: partition, Epoch: rec.Epoch, Charge: charge,
	})
	if o := r.opens[rec.Hold]; o != nil {
		o.seg.opens--
		o.seg.openBytes -= o.bytes
		delete(r.opens, rec.Hold)
		delete(r.at, rec.Hold)
	}
	return nil
}

// resume sets the Journal's memory from what was read.
func (r *recovery) resume() {
	j := r.j
	j.seq = r.high
	if r.torn || len(r.out.Damage) > 0 {
		j.seq += seqGap
	}
	j.opens = r.opens
	used := make([]bool, j.slots.count)
	for _, o := range r.opens {
		if o.slot = j.slots.resume(o.rec.Slot, o.rec.Hold); o.slot != nil {
			used[o.rec.Slot] = true
		}
	}
	for i := j.slots.count - 1; i >= 0; i-- {
		if !used[i] {
			j.free = append(j.free, uint32(i))
		}
	}
	copy(j.ship.handed, j.ship.acked)
	j.ship.behind = true
	j.ship.cursor = position{j.segs[0].index, headerBytes(j.cfg.Partitions)}
}

// finish lists the open holds, in the order in which they were opened last.
func (r *recovery) finish() Recovered {
	byPlace := func(a, b ledger.ID) int {
		return cmp.Or(cmp.Compare(r.at[a].segment, r.at[b].segment), cmp.Compare(r.at[a].offset, r.at[b].offset))
	}
	for _, hold := range slices.SortedFunc(maps.Keys(r.opens), byPlace) {
		o, state := r.opens[hold], OpenState{}
		var err error
		if state.OpenRecord, err = o.rec.open(); err != nil {
			// It is open all the same: what the binary part says is enough to end it.
			at := r.at[hold]
			d := Damage{filepath.Join(r.j.dir, segmentName(at.segment)), at.offset, o.bytes, err.Error()}
			r.out.Damage = append(r.out.Damage, d)
			r.j.noteDamage(d)
			state.OpenRecord = OpenRecord{
				Hold: hold, Epoch: o.rec.Epoch, Amount: o.rec.Amount, User: o.rec.User, Token: o.rec.Token, TokenHeld: o.rec.TokenHeld,
			}
		}
		if o.slot != nil {
			state.Slot = o.slot.state()
		}
		for _, at := range r.lost {
			state.Doubtful = state.Doubtful || r.at[hold].before(at)
		}
		r.out.Opens = append(r.out.Opens, state)
	}
	return r.out
}
