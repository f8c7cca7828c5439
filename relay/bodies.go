package relay

import (
	"net/http"
	"sync/atomic"

	"ledgerline/relay/dialect"
)

// smallBody is what a body may take without being counted: so many are bounded by the connections and by what the overload refusal
// admits. It is also all that a client gets before it has sent that much.
const smallBody = 1 << 20

// believed is how many times what it has sent a client is believed to send, if it says so: one that sends a little and waits must not hold
// the room of many.
const believed = 4

// bodies bounds what the large request bodies of a node hold in memory together (L7). Each stays until its request ends, since it
// may be sent to another channel; a bound on one alone would let a hundred clients, or a hundred small gzip files, take it a hundred
// times.
type bodies struct {
	limit int64 // bytes; what is sent upstream may be a second copy of what is counted
	taken atomic.Int64
}

// take counts more bytes, if they fit.
func (b *bodies) take(more int64) bool {
	if b.taken.Add(more) > b.limit {
		b.taken.Add(-more)
		return false
	}
	return true
}

// grow returns the body with more room, at most limit and a byte, or the reason why it gets none.
func (x *exchange) grow(body []byte, limit int64) ([]byte, *dialect.Problem) {
	room := int64(2 * cap(body))
	if announced := x.r.ContentLength + 1; x.r.Header.Get("Content-Encoding") == "" && announced > int64(cap(body)) {
		room = min(announced, believed*int64(cap(body)))
	}
	room = min(room, limit+1)
	if room > smallBody {
		if !x.s.bodies.take(room - x.bodyTaken) {
			x.w.Header().Set("Connection", "close") // the rest of the body is not read
			x.retryAfter = 1
			return nil, problem(http.StatusServiceUnavailable, codeFull, "the node holds as many large request bodies as it may, try again shortly")
		}
		x.bodyTaken = room
	}
	return append(make([]byte, 0, room), body...), nil
}
