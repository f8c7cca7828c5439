package journal

import (
	"context"
	"fmt"
	"io"
	"sort"

	"ledgerline/ledger"
)

// position is a place in the journal.
type position struct {
	segment uint64
	offset  int64
}

func (p position) before(o position) bool {
	return p.segment < o.segment || p.segment == o.segment && p.offset < o.offset
}

// shipping is what stands between the fsynced mark and the acknowledgements, guarded by Journal.mu.
//
//	disk:    [segs[0] … cursor ………………… chunks[0].start) [ chunks … end )
//	                    └ next, if behind                └ next, if not behind
//
// Memory first: batches stay in memory until they are handed out. When they outgrow Config.MemoryBytes the oldest are dropped
// and the reader falls behind: it reads the disk from cursor on, until it meets what is still in memory.
type shipping struct {
	end    position // everything before it is fsynced
	chunks []chunk
	next   int   // in chunks[0].events
	bytes  int64 // of chunks
	behind bool
	cursor position
	epoch  int32 // counts rewinds, so that a read begun before one is discarded

	acked       []uint64 // by partition
	handed      []uint64 // by partition, highest ever handed out
	flights     [][]flight
	outstanding int   // handed out since the last rewind and not acknowledged
	depth       int64 // fsynced and not acknowledged
	acking      chan struct{}
	waits       [][]logWait // by partition, ascending; under Config.AwaitLog
}

// chunk is one durable batch that holds events.
type chunk struct {
	start  position // of its first event
	events []queuedEvent
	at     []position // of each event
	bytes  int64
}

// flight is one event handed out and not acknowledged.
type flight struct {
	seq   uint64
	at    int64
	epoch int32
}

func newShipping(partitions int) shipping {
	return shipping{
		acked: make([]uint64, partitions), handed: make([]uint64, partitions), flights: make([][]flight, partitions),
		waits: make([][]logWait, partitions),
	}
}

// offer takes the events of a durable batch, with mu held.
func (j *Journal) offer(b *batch) {
	if len(b.events) == 0 {
		return
	}
	c := chunk{events: b.events, at: make([]position, len(b.events))}
	for i := range b.parts {
		c.bytes += int64(len(b.parts[i].buf))
	}
	for i := range b.events {
		q := &b.events[i]
		p := &b.parts[q.part]
		q.parcel.Value = p.buf[q.from:q.to:q.to]
		c.at[i] = position{p.seg.index, p.off + int64(q.frame)}
	}
	c.start = c.at[0]
	s := &j.ship
	s.chunks = append(s.chunks, c)
	s.bytes += c.bytes
	s.depth += int64(len(c.events))
	for s.bytes > j.cfg.MemoryBytes && len(s.chunks) > 0 {
		if !s.behind {
			s.behind, s.cursor = true, s.chunks[0].at[s.next]
		}
		s.drop()
	}
	j.tell()
}

// drop removes chunks[0].
func (s *shipping) drop() {
	s.bytes -= s.chunks[0].bytes
	s.chunks[0] = chunk{}
	s.chunks = s.chunks[1:]
	s.next = 0
	if len(s.chunks) == 0 {
		s.chunks = nil
	}
}

func (j *Journal) tell() {
	select {
	case j.avail <- struct{}{}:
	default:
	}
}

// Next waits until there are fsynced events that were not handed out since the last Rewind, and returns up to most of them in
// journal order. It also waits while Config.InFlight are handed out and not acknowledged (L7). Errors: ctx's, io.EOF once the
// journal is retired (everything is acknowledged), ErrClosed, or a segment that cannot be read for now. A journal that has failed
// still hands out what was fsynced, then waits.
func (j *Journal) Next(ctx context.Context, most int) ([]ledger.Parcel, error) {
	for {
		out, behind, err := j.take(most)
		if behind {
			out, err = j.takeFromDisk(most)
		}
		if err != nil || len(out) > 0 {
			return out, err
		}
		if behind {
			continue
		}
		select {
		case <-j.avail:
		case <-j.stop: // take says which
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for events to ship: %w", context.Cause(ctx))
		}
	}
}

// take hands out from memory, or says that the disk has to be read.
func (j *Journal) take(most int) (out []ledger.Parcel, behind bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.retired {
		return nil, false, io.EOF
	}
	if j.closed {
		return nil, false, ErrClosed
	}
	s := &j.ship
	room := min(most, j.cfg.InFlight-s.outstanding)
	if room <= 0 {
		return nil, false, nil
	}
	if s.behind {
		if s.cursor.before(s.limit()) {
			return nil, true, nil
		}
		s.behind = false
	}
	for len(out) < room && len(s.chunks) > 0 {
		c := &s.chunks[0]
		if out == nil {
			out = make([]ledger.Parcel, 0, min(room, len(c.events)-s.next))
		}
		if s.hand(&c.events[s.next].parcel) {
			out = append(out, c.events[s.next].parcel)
		}
		if s.next++; s.next == len(c.events) {
			s.drop()
		}
	}
	return out, false, nil
}

// limit is where the memory begins.
func (s *shipping) limit() position {
	if len(s.chunks) > 0 {
		return s.chunks[0].at[s.next]
	}
	return s.end
}

// hand notes that p goes to the shipper; false if it was acknowledged before.
func (s *shipping) hand(p *ledger.Parcel) bool {
	fl := s.flights[p.Partition]
	if p.Seq > s.handed[p.Partition] {
		s.handed[p.Partition] = p.Seq
		s.flights[p.Partition] = append(fl, flight{p.Seq, p.At.UnixMilli(), s.epoch})
		s.outstanding++
		return true
	}
	i := sort.Search(len(fl), func(i int) bool { return fl[i].seq >= p.Seq })
	if i == len(fl) || fl[i].seq != p.Seq || fl[i].epoch == s.epoch {
		return false
	}
	fl[i].epoch = s.epoch
	s.outstanding++
	return true
}

// Acked notes that everything of the partition up to seq is acknowledged by the log. It panics if seq was never handed out: an
// acknowledgement for what was not shipped would lose it (L2).
func (j *Journal) Acked(partition int, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &j.ship
	if seq <= s.acked[partition] {
		return
	}
	if seq > s.handed[partition] {
		panic(fmt.Sprintf("L2: partition %d acknowledged through %d, handed out through %d", partition, seq, s.handed[partition]))
	}
	s.acked[partition] = seq
	fl := s.flights[partition]
	n := sort.Search(len(fl), func(i int) bool { return fl[i].seq > seq })
	for _, f := range fl[:n] {
		if f.epoch == s.epoch {
			s.outstanding--
		}
	}
	s.depth -= int64(n)
	if s.flights[partition] = fl[n:]; n == len(fl) {
		s.flights[partition] = fl[:0]
	}
	if j.closed {
		return // the slots may be unmapped; the mark is advisory
	}
	j.slots.setAcked(partition, seq)
	s.endWaitsThrough(partition, seq)
	if s.acking != nil {
		close(s.acking)
		s.acking = nil
	}
	j.tell()
	if j.collectable(j.segs[0]) {
		poke(j.wake)
	}
}

// Rewind is for a new shipper: what was handed out and not acknowledged will be handed out again.
func (j *Journal) Rewind() {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &j.ship
	s.epoch++
	s.outstanding = 0
	s.behind = true
	s.cursor = position{j.segs[0].index, headerBytes(j.cfg.Partitions)}
	for len(s.chunks) > 0 {
		s.drop()
	}
	j.tell()
}

// LastSeq returns the highest sequence given out in the partition, durable or not yet; 0 if none.
func (j *Journal) LastSeq(partition int) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ships[partition]
}

// AckedThrough returns the sequence up to which everything of the partition is acknowledged. At LastSeq or above, everything
// journaled in it so far is.
func (j *Journal) AckedThrough(partition int) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ship.acked[partition]
}

// AwaitAcked waits until everything of the partition up to seq is acknowledged. Errors: ctx's, ErrClosed.
func (j *Journal) AwaitAcked(ctx context.Context, partition int, seq uint64) error {
	for {
		j.mu.Lock()
		reached := j.ship.acked[partition] >= seq
		if !reached && j.ship.acking == nil {
			j.ship.acking = make(chan struct{})
		}
		acking := j.ship.acking
		j.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-acking:
		case <-j.stop:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for acknowledgement of %d in partition %d: %w", seq, partition, context.Cause(ctx))
		}
	}
}

// oldest returns when the oldest unacknowledged event was journaled, in Unix milliseconds; while the reader is behind, the
// oldest that is known.
func (s *shipping) oldest() (at int64, ok bool) {
	if s.depth == 0 {
		return 0, false
	}
	take := func(t int64) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	for _, fl := range s.flights {
		if len(fl) > 0 {
			take(fl[0].at)
		}
	}
	if !ok && len(s.chunks) > 0 {
		take(s.chunks[0].events[s.next].parcel.At.UnixMilli())
	}
	return at, ok
}
