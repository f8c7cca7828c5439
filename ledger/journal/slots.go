package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync/atomic"

	"ledgerline/ledger"
)

// Slot file, mapped, integers little-endian. Everything in it is advisory: a journal without it loses only the progress of open
// requests and ships again what was acknowledged.
//
//	0                  64                 128                      slots, at a multiple of 64
//	+------------------+------------------+-----------------------+------------------------------+
//	| header           | synced mark      | acknowledged, by      | slots × 64                   |
//	|                  | 2 × 32           | partition: P × 2 × 16 |                              |
//	+------------------+------------------+-----------------------+------------------------------+
//	header: magic 8 | version u32 | slots u32 | partitions u32 | incarnation 16 | CRC32C
//	mark:   segment u64 | offset u64 | seq u64 | CRC32C u32          two copies, written in turn:
//	acked:  seq u64 | CRC32C u32                                     one is whole whenever the process dies
//	slot:   hold 16 | forwarded u64 | channel i64 | chunks i64 | bytes i64 | total i64 | unused 8
//
// A slot counts only for the hold that it names, and only if an open record of that hold names the slot: a slot is bound before its open
// record is written and freed after the record that closes it is fsynced, so whatever a reused one holds at a crash belongs
// to its hold, or to nobody.
const (
	slotsMagic   = "LLJSLOT\n"
	slotsVersion = 1
	slotBytes    = 64
	noSlot       = ^uint32(0)

	markAt     = 64
	markStride = 32
	ackAt      = 128
	ackStride  = 16
)

// slotFile is the mapped file. Marks are written under the journal's lock; each slot by its request alone.
type slotFile struct {
	file    File
	mapping Mapping
	mem     []byte
	base    int // offset of the first slot
	count   int
	salt    uint32
	markGen int
	ackGen  []int
}

func slotFileSize(slots, partitions int) (size int64, base int) {
	base = (ackAt + partitions*2*ackStride + slotBytes - 1) / slotBytes * slotBytes
	return int64(base) + int64(slots)*slotBytes, base
}

func slotsHeader(slots, partitions int, incarnation ledger.ID) []byte {
	b := append(make([]byte, 0, markAt), slotsMagic...)
	le := binary.LittleEndian
	b = le.AppendUint32(b, slotsVersion)
	b = le.AppendUint32(b, uint32(slots))
	b = le.AppendUint32(b, uint32(partitions))
	b = append(b, incarnation[:]...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// createSlots makes the file, with its blocks allocated so that a store can never meet a full disk, and maps it.
func createSlots(fs FS, name string, slots, partitions int, incarnation ledger.ID) (*slotFile, error) {
	f, err := fs.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create slots: %w", err)
	}
	size, _ := slotFileSize(slots, partitions)
	blank := make([]byte, size)
	copy(blank, slotsHeader(slots, partitions, incarnation))
	if err := errors.Join(writeFull(f, blank, 0), f.Sync()); err != nil {
		return nil, errors.Join(fmt.Errorf("write slots: %w", err), f.Close())
	}
	return mapSlots(f, slots, partitions, incarnation)
}

var errSlots = errors.New("slot file cannot be read")

// openSlots maps an existing file. errSlots (wrapped): it is not one of this incarnation and has to be made anew.
func openSlots(fs FS, name string, partitions int, incarnation ledger.ID) (*slotFile, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open slots: %w", err)
	}
	slots, err := readSlotsHeader(f, partitions, incarnation)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return mapSlots(f, slots, partitions, incarnation)
}

func readSlotsHeader(f File, partitions int, incarnation ledger.ID) (slots int, err error) {
	head := make([]byte, len(slotsHeader(0, 0, incarnation)))
	if n, err := f.ReadAt(head, 0); n < len(head) {
		return 0, fmt.Errorf("%w: %w", errSlots, err)
	}
	le := binary.LittleEndian
	slots = int(le.Uint32(head[12:]))
	has := int(le.Uint32(head[16:]))
	size, err := f.Size()
	if err != nil {
		return 0, fmt.Errorf("size of slots: %w", err)
	}
	if slots > maxSlots || string(head) != string(slotsHeader(slots, has, incarnation)) {
		return 0, fmt.Errorf("%w: bad header", errSlots)
	}
	if has != partitions {
		return 0, fmt.Errorf("journal was made for %d partitions, the log has %d", has, partitions)
	}
	if want, _ := slotFileSize(slots, has); size != want {
		return 0, fmt.Errorf("%w: %d bytes instead of %d", errSlots, size, want)
	}
	return slots, nil
}

func mapSlots(f File, slots, partitions int, incarnation ledger.ID) (*slotFile, error) {
	size, base := slotFileSize(slots, partitions)
	m, err := f.Map(size)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map slots: %w", err), f.Close())
	}
	return &slotFile{
		file: f, mapping: m, mem: m.Bytes(), base: base, count: slots,
		salt: slotsSalt(incarnation), ackGen: make([]int, partitions),
	}, nil
}

// slotsSalt starts the CRC of the marks, so that those of another incarnation's file never count.
func slotsSalt(incarnation ledger.ID) uint32 { return crc32.Checksum(incarnation[:], castagnoli) }

// close closes the file; the memory stays mapped if somebody may still store into it.
func (s *slotFile) close(inUse bool) error {
	err := s.file.Close()
	if !inUse {
		err = errors.Join(err, s.mapping.Unmap())
	}
	return err
}

// syncedMark says how far the journal was fsynced, as far as the slot file knows: never more than the truth.
type syncedMark struct {
	Segment uint64
	Offset  int64
	Seq     uint64 // highest given out below it
}

func (m syncedMark) before(o syncedMark) bool {
	return m.Segment < o.Segment || m.Segment == o.Segment && m.Offset < o.Offset
}

func (s *slotFile) setMark(m syncedMark) {
	s.markGen ^= 1
	putMark(s.mem[markAt+s.markGen*markStride:], m, s.salt)
}

func putMark(b []byte, m syncedMark, salt uint32) {
	le := binary.LittleEndian
	le.PutUint64(b, m.Segment)
	le.PutUint64(b[8:], uint64(m.Offset))
	le.PutUint64(b[16:], m.Seq)
	le.PutUint32(b[24:], crc32.Update(salt, castagnoli, b[:24]))
}

// readMark returns the higher of the two copies that is whole; the zero mark if none is.
func readMark(b []byte, salt uint32) (m syncedMark) {
	le := binary.LittleEndian
	for i := range 2 {
		c := b[i*markStride:]
		if crc32.Update(salt, castagnoli, c[:24]) != le.Uint32(c[24:]) {
			continue
		}
		got := syncedMark{le.Uint64(c), int64(le.Uint64(c[8:])), le.Uint64(c[16:])}
		if m.before(got) {
			m = got
		}
	}
	return m
}

func (s *slotFile) mark() syncedMark { return readMark(s.mem[markAt:], s.salt) }

func (s *slotFile) ackPlace(partition, copyOf int) []byte {
	at := ackAt + (2*partition+copyOf)*ackStride
	return s.mem[at : at+ackStride]
}

func (s *slotFile) setAcked(partition int, seq uint64) {
	s.ackGen[partition] ^= 1
	b := s.ackPlace(partition, s.ackGen[partition])
	binary.LittleEndian.PutUint64(b, seq)
	binary.LittleEndian.PutUint32(b[8:], crc32.Update(s.salt+uint32(partition), castagnoli, b[:8]))
}

func (s *slotFile) acked(partition int) (seq uint64) {
	for i := range 2 {
		b := s.ackPlace(partition, i)
		if crc32.Update(s.salt+uint32(partition), castagnoli, b[:8]) == binary.LittleEndian.Uint32(b[8:]) {
			seq = max(seq, binary.LittleEndian.Uint64(b))
		}
	}
	return seq
}

func (s *slotFile) place(index uint32) []byte {
	at := s.base + int(index)*slotBytes
	return s.mem[at : at+slotBytes : at+slotBytes]
}

// bind gives a free slot to a hold. No order of stores matters: without its open record the slot counts for nobody.
func (s *slotFile) bind(index uint32, hold ledger.ID) *Slot {
	b := s.place(index)
	clear(b)
	copy(b, hold[:])
	return &Slot{b: b}
}

// resume takes up the slot of an open hold that was found in an adopted directory; nil if the slot does not name it.
func (s *slotFile) resume(index uint32, hold ledger.ID) *Slot {
	if int64(index) >= int64(s.count) {
		return nil
	}
	b := s.place(index)
	if ledger.ID(b[:16]) != hold {
		return nil
	}
	slot := &Slot{b: b}
	st := slot.state()
	slot.chunks, slot.bytes, slot.total = st.Chunks, st.Bytes, st.Total
	return slot
}

// Slot is the memory of one open request that survives kill -9: how far it has come. Its stores are plain memory writes, no
// system call, and must precede what they stand for (DESIGN 5). It belongs to the request's goroutine; stores after Settle,
// Void or Close are ignored. A power loss may take back the last seconds of it.
type Slot struct {
	b                    []byte
	chunks, bytes, total int64 // what is in b, to raise only
	done                 atomic.Bool
}

// SlotState is what a slot says after a crash.
type SlotState struct {
	// Found is false if the slot was lost: a power loss before the system wrote it back, or a damaged slot file.
	Found     bool
	Forwarded bool  // the request was sent upstream
	Channel   int64 // to this channel
	Chunks    int64 // content chunks sent to the client, or as many tokens as they surely hold
	Bytes     int64 // content bytes sent to the client; 0 if the chunks tell enough
	Total     int64 // the hold's total in quota units as last extended; 0: never extended
}

// SetForwarded notes that the request goes upstream, to channel; a retry on another channel notes it again.
func (s *Slot) SetForwarded(channel int64) {
	if s.done.Load() {
		return
	}
	binary.LittleEndian.PutUint64(s.b[24:], uint64(channel))
	binary.LittleEndian.PutUint64(s.b[16:], 1)
}

// RaiseProgress notes the content chunks and content bytes that the client will have received, as totals; lower ones are
// ignored.
func (s *Slot) RaiseProgress(chunks, bytes int64) {
	if s.done.Load() {
		return
	}
	if chunks > s.chunks {
		s.chunks = chunks
		binary.LittleEndian.PutUint64(s.b[32:], uint64(chunks))
	}
	if bytes > s.bytes {
		s.bytes = bytes
		binary.LittleEndian.PutUint64(s.b[40:], uint64(bytes))
	}
}

// SetTotal notes the hold's new total after an extension, in quota units; lower ones are ignored.
func (s *Slot) SetTotal(total int64) {
	if total > s.total && !s.done.Load() {
		s.total = total
		binary.LittleEndian.PutUint64(s.b[48:], uint64(total))
	}
}

func (s *Slot) state() SlotState {
	le := binary.LittleEndian
	return SlotState{
		Found: true, Forwarded: le.Uint64(s.b[16:]) != 0, Channel: int64(le.Uint64(s.b[24:])),
		Chunks: int64(le.Uint64(s.b[32:])), Bytes: int64(le.Uint64(s.b[40:])), Total: int64(le.Uint64(s.b[48:])),
	}
}
