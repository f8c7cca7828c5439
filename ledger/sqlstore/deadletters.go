package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"ledgerline/ledger"
)

// DeadLetter is a record that could not be applied (L6).
type DeadLetter struct {
	Partition int
	Offset    int64
	Event     ledger.ID // zero if the record has none
	User      int64
	Kind      ledger.Kind
	Code      string // short: undecodable, overflow, foreign_user, mysql_1264 …
	Reason    string
	Value     []byte // the record as it was in the log
	Redriven  bool
	// RedrivePartition and RedriveOffset say where the re-drive was applied; −1 before.
	RedrivePartition int
	RedriveOffset    int64
	At               time.Time
}

const (
	deadWaiting  = "dead"
	deadRedriven = "redriven"
	// maxReason bounds the stored text of an error (L7).
	maxReason = 1000
	// maxDeadValue bounds the stored bytes of a record (L7): four times what an event can have, and escaped still below the
	// smallest default of max_allowed_packet.
	maxDeadValue = 4 * ledger.MaxEventBytes
)

// redriveKey is the outbox key of a re-drive.
func redriveKey(id ledger.ID) string { return "redrive:" + id.String() }

// bury puts a record into the dead-letter store. A re-drive that fails again stays the dead letter that it was, with the
// new reason, and may be re-driven again.
func (f *flush) bury(ctx context.Context, at int, why *permanentError) error {
	r := &f.call.Records[at]
	reason := clip(why.reason, maxReason)
	f.result.Skipped = append(f.result.Skipped, r.Offset)
	now := f.call.Now.UnixMilli()
	if r.Err == nil && r.Event.Redrive {
		f.result.Alarms = append(f.result.Alarms, fmt.Sprintf("the re-drive of %s failed: %v", r.Event.ID, why))
		_, err := f.tx.Exec(ctx, "UPDATE ledger_dead_letters SET code = ?, reason = ?, updated_at = ? WHERE event_id = ? AND state = ?", why.code, reason, now, r.Event.ID[:], deadWaiting)
		if err == nil {
			_, err = f.tx.Exec(ctx, "DELETE FROM ledger_outbox WHERE event_key = ?", redriveKey(r.Event.ID))
		}
		return wrapIf("keep dead letter", err)
	}
	d := DeadLetter{
		Partition: r.Partition, Offset: r.Offset, Event: r.Event.ID, User: r.Event.User, Kind: r.Event.Kind,
		Code: why.code, Reason: reason, Value: r.Value[:min(len(r.Value), maxDeadValue)],
		RedrivePartition: -1, RedriveOffset: -1, At: f.call.Now,
	}
	if d.Value == nil {
		d.Value = []byte{}
	}
	const columns = "part, log_offset, event_id, user_id, kind, code, reason, value, state, redrive_part, redrive_offset, created_at, updated_at"
	_, err := f.tx.Exec(ctx, "INSERT INTO ledger_dead_letters ("+columns+") VALUES ("+marks(13)+")"+
		f.s.onConflict("part, log_offset", "event_id", "user_id", "kind", "code", "reason", "value", "state", "redrive_part", "redrive_offset", "created_at", "updated_at"),
		d.Partition, d.Offset, d.Event[:], d.User, clip(string(d.Kind), 32), d.Code, d.Reason, d.Value, deadWaiting, -1, -1, now, now)
	if err != nil {
		return fmt.Errorf("store dead letter: %w", err)
	}
	f.result.Dead = append(f.result.Dead, d)
	if r.Err == nil {
		f.dead[r.Event.ID] = true // after a restore its re-drive may be in the same batch
	}
	if r.Err == nil && r.Event.Key != "" {
		// Nobody moves the row again: the event can only be applied by a re-drive.
		if k, ok := f.keys[r.Event.Key]; ok && k.state != "" && k.state != outboxApplied {
			f.keys[r.Event.Key] = outboxKey{state: outboxDead, amount: k.amount}
			return f.tx.setKeys(ctx, []string{r.Event.Key}, outboxDead)
		}
	}
	return nil
}

func wrapIf(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", action, err)
}

// clip cuts text to n bytes at a border of characters, and replaces what is no UTF-8, so that a column takes it.
func clip(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	for len(text) > 0 && !utf8.ValidString(text) {
		r, size := utf8.DecodeLastRuneInString(text)
		if r != utf8.RuneError || size > 1 {
			break
		}
		text = text[:len(text)-1]
	}
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	return text
}

// lockDead locks the dead letters of events and returns those that wait.
func (tx *Tx) lockDead(ctx context.Context, ids []ledger.ID) (map[ledger.ID]bool, error) {
	found := map[ledger.ID]bool{}
	err := chunks(ids, func(ids []ledger.ID) error {
		q := new(statement).text("SELECT event_id FROM ledger_dead_letters WHERE state = '" + deadWaiting + "' AND event_id IN (")
		for i, id := range ids {
			if i > 0 {
				q.text(",")
			}
			q.id(id)
		}
		return tx.each(ctx, q.text(")"+tx.ForUpdate()).String(), nil, func(scan func(...any) error) error {
			var id idColumn
			err := scan(&id)
			found[id.ID] = true
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("lock dead letters: %w", err)
	}
	return found, nil
}

// markRedriven records that a dead letter was applied at another place. The row stays: whoever folds the log must know
// that the original did not count and that this copy did.
func (tx *Tx) markRedriven(ctx context.Context, event ledger.ID, partition int, offset int64) error {
	_, err := tx.Exec(ctx, "UPDATE ledger_dead_letters SET state = ?, redrive_part = ?, redrive_offset = ?, updated_at = ? WHERE event_id = ? AND state = ?",
		deadRedriven, partition, offset, tx.s.now().UnixMilli(), event[:], deadWaiting)
	return wrapIf("mark dead letter re-driven", err)
}

const deadColumns = "part, log_offset, event_id, user_id, kind, code, reason, value, state, redrive_part, redrive_offset, created_at"

func scanDead(scan func(...any) error) (DeadLetter, error) {
	var d DeadLetter
	var id idColumn
	var state string
	var at int64
	err := scan(&d.Partition, &d.Offset, &id, &d.User, &d.Kind, &d.Code, &d.Reason, &d.Value, &state, &d.RedrivePartition, &d.RedriveOffset, &at)
	d.Event, d.Redriven, d.At = id.ID, state == deadRedriven, time.UnixMilli(at)
	return d, err
}

// DeadLetters returns at most limit dead letters after a place, in order of partition and offset; begin with −1, −1.
func (s *Store) DeadLetters(ctx context.Context, afterPartition int, afterOffset int64, limit int) ([]DeadLetter, error) {
	var list []DeadLetter
	err := s.read(ctx, "SELECT "+deadColumns+" FROM ledger_dead_letters WHERE part > ? OR part = ? AND log_offset > ? ORDER BY part, log_offset LIMIT ?",
		[]any{afterPartition, afterPartition, afterOffset, limit}, func(scan func(...any) error) error {
			d, err := scanDead(scan)
			list = append(list, d)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return list, nil
}

// Redrive puts a copy of a dead letter into the outbox, to be applied at its new place in the log by every projection, if the
// dead letter is still there by then. Errors: ErrNotFound, ErrExists (one is on its way), ErrUndecodable.
func (s *Store) Redrive(ctx context.Context, event ledger.ID) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		var value []byte
		err := tx.QueryRow(ctx, "SELECT value FROM ledger_dead_letters WHERE event_id = ? AND state = ? ORDER BY part, log_offset LIMIT 1"+tx.ForUpdate(),
			[]any{event[:], deadWaiting}, &value)
		if err != nil {
			return err
		}
		copied, err := ledger.Decode(value)
		if err != nil || copied.ID != event {
			return errors.Join(ErrUndecodable, err)
		}
		copied.Redrive = true
		copied.Producer, copied.Seq, copied.Prev = ledger.ID{}, 0, 0
		err = tx.insertOutbox(ctx, []outboxRow{{key: redriveKey(event), event: copied, state: outboxNew}})
		if isDuplicate(err) {
			return ErrExists
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("re-drive %s: %w", event, err)
	}
	return nil
}

// DeadIndex returns what ledger.NewFold asks: whether an offset holds a dead letter, or the re-drive of one.
func (s *Store) DeadIndex(ctx context.Context) (func(partition int, offset int64) ledger.DeadState, error) {
	var index func(int, int64) ledger.DeadState
	err := s.View(ctx, func(tx *Tx) error { var err error; index, _, err = tx.deadIndex(ctx); return err })
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return index, nil
}

func (tx *Tx) deadIndex(ctx context.Context) (index func(int, int64) ledger.DeadState, waiting int, err error) {
	type place struct {
		partition int
		offset    int64
	}
	states := map[place]ledger.DeadState{}
	err = tx.each(ctx, "SELECT part, log_offset, state, redrive_part, redrive_offset FROM ledger_dead_letters", nil, func(scan func(...any) error) error {
		var original, copied place
		var state string
		if err := scan(&original.partition, &original.offset, &state, &copied.partition, &copied.offset); err != nil {
			return err
		}
		states[original] = ledger.DeadOriginal
		if state == deadRedriven {
			states[copied] = ledger.DeadRedriven
		} else {
			waiting++
		}
		return nil
	})
	return func(partition int, offset int64) ledger.DeadState { return states[place{partition, offset}] }, waiting, err
}
