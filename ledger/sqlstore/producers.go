package sqlstore

import (
	"context"
	"fmt"
	"time"

	"ledgerline/ledger"
)

// ProducerState says what became of a journal incarnation.
type ProducerState string

// The states of a producer.
const (
	ProducerLive   ProducerState = "live"   // registered; it may hold and produce
	ProducerGone   ProducerState = "gone"   // given up: its holds are not waited for, its events still count (late)
	ProducerClosed ProducerState = "closed" // everything it journaled is in the log; it will never produce again
)

// Producer is one journal incarnation.
type Producer struct {
	ID        ledger.ID
	Node      string // NODE_NAME
	Addr      string // where the node is reached, for people
	Version   string // of the binary
	Diskless  bool   // its journal is in memory: once it is silent, nobody recovers it
	State     ProducerState
	Beat      uint64    // raised by every heartbeat
	StartedAt time.Time // when it registered
	UpdatedAt time.Time // of the last heartbeat or change of state, by the writer's clock: for people, never for a decision
}

// RegisterProducer records an incarnation before it serves. Repeating it is harmless; one that was closed is ErrExists.
func (s *Store) RegisterProducer(ctx context.Context, p Producer) error {
	now := s.now().UnixMilli()
	err := s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO ledger_producers (id, node, addr, version, diskless, state, beat, started_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)"+s.onConflict("id"),
			p.ID[:], p.Node, p.Addr, p.Version, p.Diskless, ProducerLive, now, now)
		if err != nil {
			return err
		}
		var state ProducerState
		if err := tx.QueryRow(ctx, "SELECT state FROM ledger_producers WHERE id = ?", []any{p.ID[:]}, &state); err != nil {
			return err
		}
		if state == ProducerClosed {
			return ErrExists
		}
		if err := tx.noteSecret(ctx, p.ID); err != nil {
			return err
		}
		// Keys may have been sealed since CheckSecret: who seals looks for nodes without the secret, and did not see this one.
		_, err = tx.sealing(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("register producer %s: %w", p.ID, err)
	}
	return nil
}

// Heartbeat raises the beat of live producers. It returns those that are not live any more (given up, or closed, or not
// there after a restore): their owner must end them.
func (s *Store) Heartbeat(ctx context.Context, ids ...ledger.ID) (lost []ledger.ID, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		lost = lost[:0]
		for _, id := range ids {
			r, err := tx.Exec(ctx, "UPDATE ledger_producers SET beat = beat + 1, updated_at = ? WHERE id = ? AND state = ?",
				s.now().UnixMilli(), id[:], ProducerLive)
			if err != nil {
				return err
			}
			if n, err := r.RowsAffected(); err != nil {
				return err
			} else if n == 0 {
				lost = append(lost, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	return lost, nil
}

// How long an incarnation that was given up counts (L7).
const (
	// goneKnown is how long an epoch that names it is replaced, and new ones are closed to it: longer than any outage of the consumers. A
	// process that reaches the hot counters and not the database for longer joins the next epoch like a new one, and is told
	// when it reaches the database.
	goneKnown = 30 * 24 * time.Hour
	// goneKept is how long its row and watermarks wait for its disk to come back. One that comes later is charged all the same, but what the log
	// has of it and its slots do not remember would count twice.
	goneKept = 365 * 24 * time.Hour
)

// Producers returns the incarnations that the cluster has to know of, oldest first: all that are not pruned but those
// given up for longer than goneKnown.
func (s *Store) Producers(ctx context.Context) ([]Producer, error) {
	var list []Producer
	err := s.View(ctx, func(tx *Tx) error {
		var err error
		list, err = tx.producers(ctx, " WHERE state <> ? OR updated_at >= ?", ProducerGone, s.now().Add(-goneKnown).UnixMilli())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read producers: %w", err)
	}
	return list, nil
}

func (tx *Tx) producers(ctx context.Context, where string, args ...any) ([]Producer, error) {
	var list []Producer
	q := "SELECT id, node, addr, version, diskless, state, beat, started_at, updated_at FROM ledger_producers" + where + " ORDER BY started_at, id"
	err := tx.each(ctx, q, args, func(scan func(...any) error) error {
		var p Producer
		var id idColumn
		var started, updated int64
		if err := scan(&id, &p.Node, &p.Addr, &p.Version, &p.Diskless, &p.State, &p.Beat, &started, &updated); err != nil {
			return err
		}
		p.ID, p.StartedAt, p.UpdatedAt = id.ID, time.UnixMilli(started), time.UnixMilli(updated)
		list = append(list, p)
		return nil
	})
	return list, err
}

// GiveUp marks a live producer as gone, if its beat is still the one that the caller saw unchanged for too long. It
// reports whether it did.
func (s *Store) GiveUp(ctx context.Context, id ledger.ID, beat uint64) (bool, error) {
	n, err := s.setProducer(ctx, ProducerGone, "id = ? AND state = ? AND beat = ?", id[:], ProducerLive, beat)
	if err != nil {
		return false, fmt.Errorf("give up producer %s: %w", id, err)
	}
	return n > 0, nil
}

// CloseProducer marks a producer, live or gone, as closed: all it journaled is acknowledged and settled.
func (s *Store) CloseProducer(ctx context.Context, id ledger.ID) error {
	n, err := s.setProducer(ctx, ProducerClosed, "id = ?", id[:])
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("close producer %s: %w", id, err)
	}
	return nil
}

func (s *Store) setProducer(ctx context.Context, to ProducerState, where string, args ...any) (n int64, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		r, err := tx.Exec(ctx, "UPDATE ledger_producers SET state = ?, updated_at = ? WHERE "+where, append([]any{to, s.now().UnixMilli()}, args...)...)
		if err != nil {
			return err
		}
		n, err = r.RowsAffected()
		return err
	})
	return n, err
}

// PruneProducers removes producers that were closed before a time, with their watermarks (DESIGN 4: 7 days), and returns
// how many. Their journal segments must be gone by then: a record shipped again would count again. Of those given up it removes the ones
// without a disk after goneKnown, and the others after goneKept.
func (s *Store) PruneProducers(ctx context.Context, before time.Time) (int, error) {
	n := 0
	err := s.Tx(ctx, func(tx *Tx) error {
		n = 0
		var ids []ledger.ID
		q := "SELECT id FROM ledger_producers WHERE state = ? AND updated_at < ? OR state = ? AND updated_at < ? AND (diskless <> 0 OR updated_at < ?)" +
			" ORDER BY id LIMIT " + fmt.Sprint(rowsPerStatement) + tx.ForUpdate()
		now := s.now()
		args := []any{ProducerClosed, before.UnixMilli(), ProducerGone, now.Add(-goneKnown).UnixMilli(), now.Add(-goneKept).UnixMilli()}
		err := tx.each(ctx, q, args, func(scan func(...any) error) error {
			var id idColumn
			err := scan(&id)
			ids = append(ids, id.ID)
			return err
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		n = len(ids)
		list := new(statement)
		for i, id := range ids {
			if i > 0 {
				list.text(",")
			}
			list.id(id)
		}
		for _, q := range []string{"DELETE FROM ledger_watermarks WHERE producer IN (", "DELETE FROM ledger_node_secrets WHERE producer IN (", "DELETE FROM ledger_producers WHERE id IN ("} {
			if _, err := tx.Exec(ctx, q+list.String()+")"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("prune producers: %w", err)
	}
	return n, nil
}
