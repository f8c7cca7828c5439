package http1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// framing is how the end of a body is told.
type framing int

const (
	byClose framing = iota
	byLength
	byChunks
)

// body is the body of one answer. It holds the connection until the answer's end.
type body struct {
	conn    *conn
	ctx     context.Context
	stop    func() bool // ends the watch over ctx; false: ctx has ended and the connection is closed
	written chan error  // outcome of a request that is written beside; nil: it was written before
	framing framing
	left    int64 // by length: bytes to come
	chunks  chunks
	keep    bool  // the connection can serve another request
	err     error // how reading ended
}

var errClosed = errors.New("the answer's body is closed")

// begin takes over from the head. net/http has parsed its framing, by its own rules against smuggling; its reader of the body is
// left alone.
func (b *body) begin(resp *http.Response) {
	b.keep = !resp.Close && resp.StatusCode >= 200
	if resp.Body == http.NoBody {
		_ = b.end(io.EOF)
		return
	}
	switch {
	case len(resp.TransferEncoding) > 0:
		b.framing = byChunks
	case resp.ContentLength > 0:
		b.framing, b.left = byLength, resp.ContentLength
	}
	resp.Body = b
}

// Read implements io.Reader with what one read of the connection brings: it never waits for more. A body that breaks off ends
// with io.ErrUnexpectedEOF.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	for {
		if b.framing == byLength && b.left < int64(len(p)) {
			p = p[:b.left]
		}
		n, err := b.fill(p)
		n, err = b.unframe(p[:n], err)
		if err != nil {
			return n, b.end(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// fill reads what came with the head first, and what else is there behind it.
func (b *body) fill(p []byte) (int, error) {
	n := b.conn
	if n.buffered() == 0 {
		if n.heads != nil && b.written == nil {
			n.giveHeads()
		}
		return n.net.Read(p) //nolint:wrapcheck // io.EOF has to stay io.EOF
	}
	k, err := n.heads.in.Read(p)
	if err == nil && k < len(p) {
		var more int
		more, err = n.more(p[k:])
		k += more
	}
	return k, err //nolint:wrapcheck // io.EOF has to stay io.EOF
}

// Buffered returns how many bytes of the answer came with its head: above 0, the next read does not wait.
func (b *body) Buffered() int {
	if b.conn == nil {
		return 0
	}
	return b.conn.buffered()
}

// unframe leaves the payload in front of raw. io.EOF is the end of the body, whole.
func (b *body) unframe(raw []byte, err error) (int, error) {
	n := len(raw)
	switch b.framing {
	case byClose:
		return n, err
	case byLength:
		if b.left -= int64(n); b.left == 0 {
			return n, io.EOF
		}
	case byChunks:
		payload, used, wrong := b.chunks.decode(raw)
		if wrong != nil {
			b.keep = b.keep && used == n // what comes behind the end was not asked for
			return payload, wrong
		}
		n = payload
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close implements io.Closer. A body that was not read to its end costs the connection.
func (b *body) Close() error {
	if b.err == nil {
		_ = b.end(errClosed)
	}
	return nil
}

// end gives the connection back, or closes it, and returns how the reading ended.
func (b *body) end(err error) error {
	n := b.conn
	whole := errors.Is(err, io.EOF)
	keep := b.stop() && whole && b.keep && n.buffered() == 0
	if b.written != nil {
		failed, timely := b.sent(whole)
		keep = keep && timely && failed == nil
		if errors.Is(err, errNoAnswer) && timely && failed != nil {
			err = failed // it says why none came
		}
	}
	if n.heads != nil {
		n.giveHeads()
	}
	b.conn = nil
	if keep {
		n.client.pool.put(n)
	} else {
		n.close()
	}
	if !whole && b.ctx.Err() != nil && !errors.Is(err, errClosed) {
		err = context.Cause(b.ctx)
	}
	b.err = err
	return err
}

// lastWrite is how long a whole answer waits for the end of the request that it answers: the server has read it, and only the writer
// has not come round to saying so.
const lastWrite = 50 * time.Millisecond

// sent waits for the writer of a large request, and says how it ended. One that is not done in time is stopped: the server did not
// care for the rest.
func (b *body) sent(answered bool) (failed error, timely bool) {
	select {
	case failed = <-b.written:
		return failed, true
	default:
	}
	if answered {
		late := time.NewTimer(lastWrite)
		defer late.Stop()
		select {
		case failed = <-b.written:
			return failed, true
		case <-late.C:
		}
	}
	b.conn.close()
	return <-b.written, false
}
