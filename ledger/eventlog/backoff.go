package eventlog

import (
	"math/rand/v2"
	"time"
)

// Back-off of everything that is repeated for ever: quick enough that a leader election is barely felt, slow enough that a
// cluster that comes back is not flooded.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff yields waits that double from backoffMin to backoffMax, each jittered by half so that nodes do not march in step.
type backoff struct{ wait time.Duration }

func newBackoff() *backoff { return &backoff{wait: backoffMin} }

func (b *backoff) next() time.Duration {
	wait := b.wait
	b.wait = min(2*b.wait, backoffMax)
	return wait/2 + rand.N(wait/2+1)
}
