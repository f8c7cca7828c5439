package sse

// Batch gathers the events of one upstream read that go on to the client, so that they leave in one write. Events that
// were neighbours in the scanner's window stay one slice of it; only an event that follows a dropped one is copied.
// The zero value is empty. What it holds is valid as long as the events are: until the scanner's next Feed.
type Batch struct {
	out []byte // what was added so far
	buf []byte // backing of out once a gap had to be closed, kept for the next round
	own bool   // out lies in buf
}

// Add appends the bytes of an event.
func (b *Batch) Add(raw []byte) {
	n := len(b.out)
	switch {
	case len(raw) == 0:
	case n == 0:
		b.out = raw
	case b.own:
		b.buf = append(b.buf, raw...)
		b.out = b.buf
	case cap(b.out) > n && &b.out[: n+1 : n+1][n] == &raw[0]:
		b.out = b.out[:n+len(raw)]
	default:
		b.buf = append(append(b.buf[:0], b.out...), raw...)
		b.out, b.own = b.buf, true
	}
}

// Bytes returns everything added since the last Reset, in order.
func (b *Batch) Bytes() []byte { return b.out }

// Reset empties the batch. A buffer that one big read left behind is released, as Scanner does.
func (b *Batch) Reset() {
	b.out, b.own = nil, false
	if cap(b.buf) > keepCarryBytes {
		b.buf = nil
	}
}
