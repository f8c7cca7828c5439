package relay

import "sync"

const (
	// unfinishedRoom in front of what is read is for the beginning of an event, in bytes: most events are smaller.
	unfinishedRoom = 512
	// framingShare of a read, one in so many, may be the framing of the upstream's chunks, which is taken out of it: 6 bytes of each, and
	// few chunks of a stream are below 48.
	framingShare = 8
	// quietReads in a row that would not have filled a smaller buffer bring it back.
	quietReads = 2
)

// readSizes are the buffers that streams are read into, in bytes. The first holds some chunks, and is the steady memory of a stream at
// a model's pace. The others take its place as long as a stream comes faster than it goes out: then fewer and larger pieces cost less.
var readSizes = [...]int{2 << 10, 16 << 10, 64 << 10}

// readBuffers are those that no stream has: of *[]byte, by size. The smallest are not kept.
type readBuffers [len(readSizes)]sync.Pool

func (b *readBuffers) take(size int) *[]byte {
	if buf, ok := b[size].Get().(*[]byte); ok {
		return buf
	}
	return new(make([]byte, readSizes[size]))
}

// readRoom is the memory that a stream is read into. The first read brings what came with the answer's head. The next has a larger
// buffer than that needed: the stream has waited for its open record, and much may have come meanwhile.
type readRoom struct {
	spare *readBuffers
	small *[]byte
	buf   *[]byte
	size  int // of buf, in readSizes
	quiet int // reads in a row that would not have filled a smaller buffer
	begun bool
}

func newReadRoom(spare *readBuffers) *readRoom {
	small := spare.take(0)
	return &readRoom{spare: spare, small: small, buf: small}
}

// fills reports whether n bytes of payload are what a read brings that finds more than a buffer of this size holds.
func fills(n, size int) bool {
	room := readSizes[size] - unfinishedRoom
	return n > room-room/framingShare
}

// took notes that a read brought n bytes behind unfinishedRoom. They must have been used: the
// buffer may be another one from now on.
func (r *readRoom) took(n int) {
	switch {
	case !r.begun:
		r.begun = true
		r.change(1)
		r.quiet = quietReads - 1
	case fills(n, r.size):
		r.change(min(r.size+1, len(readSizes)-1))
	case r.size == 0:
	case fills(n, r.size-1):
		r.quiet = 0
	default:
		if r.quiet++; r.quiet >= quietReads {
			r.change(r.size - 1)
		}
	}
}

// change takes a buffer of another size.
func (r *readRoom) change(size int) {
	r.quiet = 0
	if size == r.size {
		return
	}
	if r.size > 0 {
		r.spare[r.size].Put(r.buf)
	}
	if r.size = size; size == 0 {
		r.buf = r.small
	} else {
		r.buf = r.spare.take(size)
	}
}

// release gives back what other streams can use.
func (r *readRoom) release() { r.change(0) }
