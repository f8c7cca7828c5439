package eventlog

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
)

// Back-off of everything that is repeated for ever: quick enough that a leader election is barely felt, slow enough that a
// cluster that comes back is not flooded.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff yields waits that double from backoffMin to backoffMax, each jittered by half so that nodes do not march in step.
type backoff struct {
	wait   time.Duration
	jitter func(time.Duration) time.Duration
}

func newBackoff(jitter func(time.Duration) time.Duration) *backoff {
	return &backoff{wait: backoffMin, jitter: jitter}
}

// jitter is the jitter of everything but simulations.
func jitter(n time.Duration) time.Duration { return rand.N(n) }

func (b *backoff) next() time.Duration {
	wait := b.wait
	b.wait = min(2*b.wait, backoffMax)
	return wait/2 + b.jitter(wait/2+1)
}

// lookRepeats bounds how often a request that only looks is repeated (L7): together about two seconds, in which a broker that was
// restarted has forgotten nothing and serves again, and refresh has dropped the pool's other dead connections.
const lookRepeats = 5

// again repeats look, which must change nothing, while it fails as it does after the broker was restarted. It is for what is
// asked once; whatever is asked for ever has a loop of its own.
func again(ctx context.Context, look func() error) error {
	for wait, attempt := newBackoff(jitter), 0; ; attempt++ {
		err := look()
		if !restarted(err) || attempt == lookRepeats || !pause(ctx, wait.next()) {
			return err
		}
	}
}

// restarted reports whether err is what a broker's restart looks like: a connection that was idle meanwhile is found dead only when
// it is used, a broker that is about to serve hangs up, and one that has just begun answers "unknown server error". One that is
// not there at all (connection refused) is news for the caller.
func restarted(err error) bool {
	return errors.Is(err, kafka.Unknown) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
