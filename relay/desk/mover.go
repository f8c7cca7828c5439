package desk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// Outbox is the table in which every event that is not usage begins (DESIGN 9).
type Outbox interface {
	// PendingOutbox returns events that were not moved yet, or moved a minute ago and not applied since; at most limit, oldest first.
	PendingOutbox(ctx context.Context, limit int) ([]OutboxRow, error)
	// MovedOutbox marks rows as moved, by key.
	MovedOutbox(ctx context.Context, keys []string) error
}

// OutboxRow is one row: its unique key and the event to journal as it is (a re-drive keeps its original's key).
type OutboxRow struct {
	Key   string
	Event ledger.Event
}

const (
	// moveEvery is how often a node looks at the outbox unasked. A node that wrote a row itself asks with MoveNow.
	moveEvery = 500 * time.Millisecond
	// moveBatch bounds the rows moved at once, so that an import of a million accounts does not fill memory.
	moveBatch = 500
)

// MoveNow makes the node look at the outbox at once; a top-up is effective within 100 ms.
func (d *Desk) MoveNow() {
	select {
	case d.kickMove <- struct{}{}:
	default:
	}
}

func (d *Desk) runMover(ctx context.Context) {
	ticker := time.NewTicker(moveEvery)
	defer ticker.Stop()
	complain := every{interval: 10 * time.Second}
	var moved []string // in the journal, durably, and not marked yet
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		_ = d.mark(last, &moved) // a row that stays unmarked is moved again, which does no harm
	}()
	for ctx.Err() == nil {
		n, keys, err := d.move(ctx)
		moved = append(moved, keys...)
		if len(moved) >= moveBatch {
			err = errors.Join(err, d.mark(ctx, &moved))
		}
		if err != nil && ctx.Err() == nil && complain.due(d.now()) {
			d.log.Warn("outbox rows were not moved; it is tried again", "error", err)
		}
		if err == nil && n == moveBatch {
			continue
		}
		select {
		case <-ticker.C:
			if err := d.mark(ctx, &moved); err != nil && ctx.Err() == nil && complain.due(d.now()) {
				d.log.Warn("outbox rows were moved and not marked; they are moved again", "error", err)
			}
		case <-d.kickMove:
		case <-ctx.Done():
		}
	}
}

// mark notes in the database which rows were moved. It comes later than the move, and off the way of a top-up: the consumer that applies it
// would wait for these locks. Until then the rows are leased to this node. What cannot be marked is forgotten: those rows are moved
// again, and the unique key makes the second copy a no-op.
func (d *Desk) mark(ctx context.Context, moved *[]string) error {
	keys := *moved
	*moved = nil
	if len(keys) == 0 {
		return nil
	}
	if err := d.cfg.Outbox.MovedOutbox(ctx, keys); err != nil {
		return fmt.Errorf("mark outbox rows moved: %w", err)
	}
	return nil
}

// move journals a batch of outbox events, and returns the keys of those that are durable. A kill before they are marked moves
// them again: the unique key makes the second copy a no-op when it is applied. A row that cannot be journaled as it is (a
// newer version's, say) is passed over with an alarm and offered again; it must not keep the others (L6). It returns how many
// rows there were.
func (d *Desk) move(ctx context.Context) (n int, keys []string, err error) {
	rows, err := d.cfg.Outbox.PendingOutbox(ctx, moveBatch)
	if err != nil {
		return 0, nil, fmt.Errorf("read outbox: %w", err)
	}
	j := d.current().journal
	keys = make([]string, 0, len(rows))
	var last journal.Commit
	var refused []error
	for i := range rows {
		c, err := j.Event(&rows[i].Event)
		if err != nil {
			refused = append(refused, fmt.Errorf("journal outbox event %q: %w", rows[i].Key, err))
			if closing(err) {
				break
			}
			d.metrics.unmoved.Inc()
			continue
		}
		keys, last = append(keys, rows[i].Key), c
	}
	if len(keys) > 0 {
		// What was journaled before a refusal counts: left unmarked it would be journaled again and again.
		if err := last.Wait(ctx); err != nil {
			return 0, nil, fmt.Errorf("make outbox events durable: %w", err)
		}
		d.metrics.moved.Add(float64(len(keys)))
	}
	return len(rows), keys, errors.Join(refused...)
}

// closing reports whether a journal takes no event at all for now, whichever it is.
func closing(err error) bool {
	return errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrFailed) || errors.Is(err, journal.ErrClosed)
}
