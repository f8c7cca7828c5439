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

const (
	smallest = 0
	largest  = len(readSizes) - 1
)

// readBuffers are those that no stream has: of *[]byte, by size. The smallest are not kept.
type readBuffers [len(readSizes)]sync.Pool

func (b *readBuffers) take(size int) *[]byte {
	if buf, ok := b[size].Get().(*[]byte); ok {
		return buf
	}
	return new(make([]byte, readSizes[size]))
}

// readRoom is the memory that a stream is read into.
type readRoom struct {
	spare *readBuffers
	small *[]byte // made when it is first needed
	buf   *[]byte
	size  int // of buf, in readSizes
	quiet int // reads in a row that would not have filled a smaller buffer
	begun bool
}

// newReadRoom begins with the largest buffer if something has come already: then the first read does not wait, and all that came while
// the open record was made durable is passed on in one piece.
func newReadRoom(spare *readBuffers, came bool) *readRoom {
	r := &readRoom{spare: spare, size: -1}
	if came {
		r.change(largest)
	} else {
		r.change(smallest)
	}
	return r
}

// fills reports whether n bytes of payload are what a read brings that finds more than a buffer of this size holds.
func fills(n, size int) bool {
	room := readSizes[size] - unfinishedRoom
	return n > room-room/framingShare
}

// took notes that a read brought n bytes behind unfinishedRoom. They must have been used: the buffer may be another one from now on.
// The next read after the first is into what that would have needed.
func (r *readRoom) took(n int) {
	switch {
	case fills(n, r.size):
		r.change(min(r.size+1, largest))
	case !r.begun:
		fit := smallest
		for fills(n, fit) { // it ends, for n does not fill the buffer that there is
			fit++
		}
		r.change(fit)
	case r.size == smallest:
	case fills(n, r.size-1):
		r.quiet = 0
	default:
		if r.quiet++; r.quiet >= quietReads {
			r.change(r.size - 1)
		}
	}
	r.begun = true
}

// change takes a buffer of another size.
func (r *readRoom) change(size int) {
	r.quiet = 0
	if size == r.size {
		return
	}
	r.release()
	if r.size = size; size > smallest {
		r.buf = r.spare.take(size)
		return
	}
	if r.small == nil {
		r.small = r.spare.take(smallest)
	}
	r.buf = r.small
}

// release gives back what other streams can use. What is read next needs another buffer.
func (r *readRoom) release() {
	if r.size > smallest {
		r.spare[r.size].Put(r.buf)
	}
	r.buf, r.size = nil, smallest
}
