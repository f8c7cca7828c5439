package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ledgerline/ledger"
)

// Commit is the promise that a record becomes durable. It is a small value; the zero Commit promises nothing.
type Commit struct {
	b    *batch
	log  *fate    // under Config.AwaitLog, of an event: when it is in the log; nil: being on the disk is enough
	ends *segment // holds the end of a hold that the counters have not taken; nil: nothing to wait for
}

// fate is what becomes of a record, once it is decided.
type fate struct {
	done chan struct{}
	err  error // set before done is closed
}

func (f *fate) finish(err error) {
	f.err = err
	close(f.done)
}

var errNoCommit = errors.New("wait for a commit that never was")

// fate is that of the record: the disk's verdict, or the log's.
func (c Commit) fate() *fate {
	if c.log != nil {
		return c.log
	}
	return &c.b.fate
}

// Wait returns nil once the record is fsynced, or in the log under Config.AwaitLog (L1); ErrFailed or ErrClosed (wrapped) if it may
// never be; or ctx's error: its fate is unknown then.
func (c Commit) Wait(ctx context.Context) error {
	if c.b == nil {
		return errNoCommit
	}
	f := c.fate()
	select {
	case <-f.done:
		return f.err
	default:
	}
	c.b.urge()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("wait for journal: %w", context.Cause(ctx))
	}
}

// Done is closed when the record's fate is decided. The zero Commit's is nil.
func (c Commit) Done() <-chan struct{} {
	if c.b == nil {
		return nil
	}
	c.b.urge()
	return c.fate().done
}

// Err returns what Wait would, after Done is closed.
func (c Commit) Err() error {
	if c.b == nil {
		return errNoCommit
	}
	c.b.urge()
	f := c.fate()
	<-f.done
	return f.err
}

// batch is what one write and one fsync make durable.
type batch struct {
	fate
	parts  []part
	events []queuedEvent
	moves  []move
	bytes  int64
	frames int
	seq    uint64 // highest given out up to its end

	urgent atomic.Bool     // somebody waits for it, or it is being written
	wake   chan<- struct{} // the writer's
}

// urge has the batch written now, if it is not under way.
func (b *batch) urge() {
	if !b.urgent.Swap(true) {
		poke(b.wake)
	}
}

// poke wakes who listens on c, now or when it next does.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// part is the stretch of a batch that goes to one segment.
type part struct {
	seg *segment
	off int64 // in the segment: also the batch field of its frames
	buf []byte
}

// queuedEvent is an event of a batch; its Value is cut from the part when the part has grown to its end.
type queuedEvent struct {
	parcel   ledger.Parcel
	part     int
	from, to int // of the value, in the part's buf
	frame    int // of the frame, in the part's buf
}

// move is what becomes of an older open record once the batch is durable: a newer one, or the end of the hold, stands for it.
type move struct {
	state  *openState
	seg    *segment
	bytes  int64
	closed bool // the hold has ended: its slot is free
}

// eventBuffers holds buffers for events, which are encoded before the append lock is taken.
var eventBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Open records that a hold was reserved and its request goes on; its slot is bound when Open returns. The record must be
// durable before the first byte of the response is sent (L1). ErrFull: refuse the request.
func (j *Journal) Open(rec *OpenRecord) (Commit, error) {
	buf := openBuffers.Get().(*[]byte)
	defer openBuffers.Put(buf)
	payload, err := rec.appendJSON((*buf)[:0])
	if err == nil {
		*buf = payload[:0]
	}
	switch {
	case err != nil:
	case rec.Hold.IsZero() || rec.User <= 0 || rec.Amount < 0:
		err = fmt.Errorf("hold %s of user %d over %d units is none", rec.Hold, rec.User, rec.Amount)
	}
	if err != nil {
		return Commit{}, fmt.Errorf("open hold: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usable(); err != nil {
		return Commit{}, fmt.Errorf("open hold: %w", err)
	}
	if j.opens[rec.Hold] != nil {
		return Commit{}, fmt.Errorf("open hold %s: %w", rec.Hold, ErrAlreadyOpen)
	}
	if len(j.free) == 0 {
		return Commit{}, fmt.Errorf("open hold: %w: all %d slots are in use", ErrFull, j.slots.count)
	}
	if err := j.room(openBytes + int64(len(payload)) + closeReserve); err != nil {
		return Commit{}, fmt.Errorf("open hold: %w", err)
	}
	if err := j.logAnswers(rec.User); err != nil {
		return Commit{}, fmt.Errorf("open hold: %w", err)
	}
	index := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	o := j.newState()
	o.slot = j.slots.bind(index, rec.Hold)
	o.rec = record{
		Kind: kindOpen, Hold: rec.Hold, Epoch: rec.Epoch, User: rec.User, Slot: index,
		Amount: rec.Amount, Token: rec.Token, TokenHeld: rec.TokenHeld, Payload: append(o.rec.Payload[:0], payload...),
	}
	j.opens[rec.Hold] = o
	return Commit{b: j.putOpen(o)}, nil
}

// Reopen records that an open hold was re-asserted into a newer epoch (DESIGN 7) with amount units. ErrNotOpen if it has been
// settled or voided meanwhile.
func (j *Journal) Reopen(hold ledger.ID, epoch uint64, amount int64) (Commit, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o, err := j.openHold(hold)
	if err != nil {
		return Commit{}, fmt.Errorf("reopen hold: %w", err)
	}
	old := move{state: o, seg: o.seg, bytes: o.bytes}
	o.rec.Epoch, o.rec.Amount = epoch, amount
	b := j.putOpen(o)
	b.moves = append(b.moves, old)
	return Commit{b: b}, nil
}

// putOpen appends o's open record and makes it the one that stands for o.
func (j *Journal) putOpen(o *openState) *batch {
	o.rec.At = time.Now().UnixMilli()
	b, seg, n := j.put(&o.rec)
	o.seg, o.bytes = seg, n
	seg.opens++
	seg.openBytes += n
	return b
}

// Settle records the end of an open hold: what it owes. It gives the event its place (Producer, Seq, Prev) and the epoch of
// the hold's last open record (Hold.Epoch); after that ev is what will be shipped. It must be durable before the last byte of
// the response is sent (L1). ErrNotOpen: the hold was closed before, nothing is owed twice (L2). Never ErrFull.
func (j *Journal) Settle(ev *ledger.Event) (Commit, error) {
	if !settles(ev) {
		return Commit{}, fmt.Errorf("settle: event %s ends no hold", ev.ID)
	}
	c, err := j.appendEvent(ev)
	if err != nil {
		return Commit{}, fmt.Errorf("settle hold %s: %w", ev.Hold.ID, err)
	}
	return c, nil
}

// settles reports whether ev ends a hold of this journal. A re-drive names the hold that its original settled, for the counters
// (DESIGN 8), and ends none.
func settles(ev *ledger.Event) bool { return ev.Hold != nil && !ev.Redrive }

// Event records an event that settles no hold, such as one from the outbox; otherwise like Settle. ErrFull: try again later.
func (j *Journal) Event(ev *ledger.Event) (Commit, error) {
	if settles(ev) {
		return Commit{}, fmt.Errorf("append event %s: it settles a hold", ev.ID)
	}
	c, err := j.appendEvent(ev)
	if err != nil {
		return Commit{}, fmt.Errorf("append event %s: %w", ev.ID, err)
	}
	return c, nil
}

func (j *Journal) appendEvent(ev *ledger.Event) (Commit, error) {
	ev.Producer, ev.Seq, ev.Prev = j.id, 0, 0
	buf := eventBuffers.Get().(*[]byte)
	defer eventBuffers.Put(buf)
	for {
		var r record
		if err := r.setEvent(ev, (*buf)[:0]); err != nil {
			return Commit{}, err
		}
		*buf = r.Payload[:0]
		c, again, err := j.putEvent(&r, ev)
		if !again {
			return c, err
		}
	}
}

// putEvent appends r, the encoded ev. again: the hold was reopened in another epoch, which ev names now; encode it again.
func (j *Journal) putEvent(r *record, ev *ledger.Event) (c Commit, again bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var o *openState
	if settles(ev) {
		if o, err = j.openHold(r.Hold); err != nil {
			return Commit{}, false, err
		}
		if o.rec.Epoch != r.Epoch {
			ev.Hold.Epoch = o.rec.Epoch
			return Commit{}, true, nil
		}
	} else {
		if err := j.usable(); err != nil {
			return Commit{}, false, err
		}
		if err := j.room(int64(r.size())); err != nil {
			return Commit{}, false, err
		}
	}
	r.At = time.Now().UnixMilli()
	b, seg, _ := j.put(r)
	ev.Seq, ev.Prev = r.Seq, r.Prev
	c = Commit{b: b, log: j.awaitLog(r)}
	if o != nil {
		c.ends = j.closeHold(o, b, seg)
	}
	return c, false, nil
}

// Void records that an open hold owes nothing. It returns the epoch of the hold's last open record, for the counters.
func (j *Journal) Void(hold ledger.ID) (epoch uint64, c Commit, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o, err := j.openHold(hold)
	if err != nil {
		return 0, Commit{}, fmt.Errorf("void hold: %w", err)
	}
	r := record{Kind: kindVoid, Hold: hold, Epoch: o.rec.Epoch, User: o.rec.User, At: time.Now().UnixMilli()}
	b, seg, _ := j.put(&r)
	return r.Epoch, Commit{b: b, ends: j.closeHold(o, b, seg)}, nil
}

// openHold returns the state of an open hold, with mu held.
func (j *Journal) openHold(hold ledger.ID) (*openState, error) {
	if err := j.usable(); err != nil {
		return nil, err
	}
	o := j.opens[hold]
	if o == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotOpen, hold)
	}
	return o, nil
}

// closeHold ends o with the record just put into b and seg. The slot and the open record are given up only when b is durable. It
// returns seg if it has to stay until the end is released.
func (j *Journal) closeHold(o *openState, b *batch, seg *segment) *segment {
	delete(j.opens, o.rec.Hold)
	o.end()
	b.moves = append(b.moves, move{state: o, seg: o.seg, bytes: o.bytes, closed: true})
	if !j.cfg.AwaitReleases || j.recovering {
		return nil
	}
	seg.unreleased++
	return seg
}

// Released says, under Config.AwaitReleases, that the counters have taken the ends of the holds that these Settles and Voids recorded:
// once for each commit. Until then their segments stay, so that a recovery finds the ends and repeats them: an incarnation whose
// hold is dropped in the place of being settled gives the charge back (L3).
func (j *Journal) Released(commits ...Commit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range commits {
		if c.ends != nil {
			c.ends.unreleased--
		}
	}
	if j.collectable(j.segs[0]) {
		poke(j.wake)
	}
}

// ReleasedRecovered says the same of everything that Adopt found or that was settled since: of an adopted journal nothing goes before.
func (j *Journal) ReleasedRecovered() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.recovering = false
	if j.collectable(j.segs[0]) {
		poke(j.wake)
	}
}

func (o *openState) end() {
	if o.slot != nil {
		o.slot.done.Store(true)
	}
}

func (j *Journal) newState() *openState {
	if n := len(j.spare); n > 0 {
		o := j.spare[n-1]
		j.spare = j.spare[:n-1]
		return o
	}
	return &openState{}
}

// Slot returns the slot of an open hold, for its request's goroutine; nil if the hold is not open or its slot was lost.
func (j *Journal) Slot(hold ledger.ID) *Slot {
	j.mu.Lock()
	defer j.mu.Unlock()
	if o := j.opens[hold]; o != nil {
		return o.slot
	}
	return nil
}

// room refuses what would take the journal above a bound (L7). What closes the open requests always fits below MaxBytes, and so do
// the zeros at the end of the segment that is being written.
func (j *Journal) room(n int64) error {
	if need := j.live + n + int64(len(j.opens))*closeReserve + min(j.cfg.BlockBytes, j.cfg.SegmentBytes); need > j.cfg.MaxBytes {
		return fmt.Errorf("%w: %d of %d bytes are live or reserved", ErrFull, need-n, j.cfg.MaxBytes)
	}
	if j.queued+n > maxQueuedBytes {
		return fmt.Errorf("%w: %d bytes wait for the disk", ErrFull, j.queued)
	}
	return nil
}

// put appends one record to the pending batch, and wakes the writer, for an open or a void after a while. It is the only place that gives a record its place.
func (j *Journal) put(r *record) (b *batch, seg *segment, n int64) {
	seg = j.segs[len(j.segs)-1]
	size := int64(frameHeader + r.size())
	if seg.size+size > j.cfg.SegmentBytes && seg.size > headerBytes(j.cfg.Partitions) {
		seg = j.newSegment(seg.index + 1)
	}
	if r.Kind == kindEvent { // after the new segment: its header names what was given out before it
		partition := ledger.Partition(r.User, j.cfg.Partitions)
		j.seq++
		r.Seq, r.Prev = j.seq, j.last[partition]
		j.last[partition], j.ships[partition], seg.last[partition] = j.seq, j.seq, j.seq
	}
	b = j.pending
	if b == nil {
		b = &batch{
			fate: fate{done: make(chan struct{})}, wake: j.wake,
			events: make([]queuedEvent, 0, j.batchEvents), moves: make([]move, 0, j.batchMoves),
		}
		j.pending = b
		if r.Kind != kindEvent {
			poke(j.linger)
		}
	}
	if r.Kind == kindEvent { // an answer, or the log, waits for it
		b.urge()
	}
	k := len(b.parts) - 1
	if k < 0 || b.parts[k].seg != seg {
		b.parts = append(b.parts, part{seg: seg, off: seg.size, buf: j.blank()})
		k++
	}
	p := &b.parts[k]
	start := len(p.buf)
	p.buf = append(p.buf, make([]byte, frameHeader)...)
	var payload int
	p.buf, payload = r.append(p.buf)
	sealFrame(p.buf[start:], seg.salt, p.off+int64(start), p.off)
	if r.Kind == kindEvent {
		b.events = append(b.events, queuedEvent{
			parcel: r.parcel(j.id, j.cfg.Partitions), part: k, from: payload, to: len(p.buf), frame: start,
		})
	}
	j.block = p.buf
	n = int64(len(p.buf) - start)
	seg.size += n
	j.live += n
	j.queued += n
	b.bytes += n
	b.frames++
	b.seq = j.seq
	j.copyBudget = min(j.copyBudget+n, j.cfg.MaxBytes)
	return b, seg, n
}

// blank returns an empty buffer for a part: what is left of the block that the last part began in. How large a batch becomes is not
// known, and buffers that grow by themselves were a quarter of all that a request allocates.
func (j *Journal) blank() []byte {
	const blockBytes, least = 64 << 10, 4 << 10 // some thirty requests, and about one
	if rest := j.block[len(j.block):]; cap(rest) >= least {
		return rest
	}
	return make([]byte, 0, blockBytes)
}

// newSegment begins the next segment; the writer makes its file when it comes to it.
func (j *Journal) newSegment(index uint64) *segment {
	size := headerBytes(j.cfg.Partitions)
	seg := &segment{
		index: index, salt: segmentSalt(j.id, index), size: size, last: make([]uint64, j.cfg.Partitions),
		before: segmentHeader{Index: index, Created: time.Now().UnixMilli(), Highest: j.seq, Last: append([]uint64(nil), j.last...)},
	}
	j.live += size
	j.segs = append(j.segs, seg)
	return seg
}
