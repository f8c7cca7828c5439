package relay_test

import (
	"context"
	"sync"
	"testing"

	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// listening is an outbox that remembers what it gave out and what was marked.
type listening struct {
	desk.Outbox
	mu            sync.Mutex
	given, marked map[string]int
}

func (l *listening) PendingOutbox(ctx context.Context, limit int) ([]desk.OutboxRow, error) {
	rows, err := l.Outbox.PendingOutbox(ctx, limit)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range rows {
		l.given[rows[i].Key]++
	}
	return rows, err
}

func (l *listening) MovedOutbox(ctx context.Context, keys []string) error {
	l.mu.Lock()
	for _, key := range keys {
		l.marked[key]++
	}
	l.mu.Unlock()
	return l.Outbox.MovedOutbox(ctx, keys)
}

// Rows are marked as moved after they are on their way, off the path of a top-up: each of them, once, and those of the last moment when
// the node stops.
func TestMovedRowsAreMarked(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	l := &listening{Outbox: outbox{s.db}, given: map[string]int{}, marked: map[string]int{}}
	n := s.start(func(c *nodeConfig) { c.desk = func(d *desk.Config) { d.Outbox = l } })
	const accounts = 5
	for range accounts { // two credits each, applied when it returns
		n.account(start, start)
	}
	n.stop()
	if len(l.given) < accounts {
		t.Fatalf("only %d rows were moved", len(l.given))
	}
	for key := range l.given {
		if l.marked[key] != 1 || l.given[key] != 1 {
			t.Errorf("row %s was given out %d times and marked %d times", key, l.given[key], l.marked[key])
		}
	}
}
