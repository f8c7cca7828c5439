package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"ledgerline/ledger"
)

// The states of an outbox row.
const (
	outboxNew     = "new"     // waits to be moved to a journal
	outboxMoved   = "moved"   // some node journaled it
	outboxApplied = "applied" // its effect is in the balances; the row keeps its key used
	outboxDead    = "dead"    // its record is in the dead-letter store; only a re-drive applies it
)

const (
	// outboxLease is how long the rows that a node took are kept from the others. Two nodes that move one row do no harm (the
	// key counts once), they only waste a record.
	outboxLease = 5 * time.Second
	// outboxAgain is how long a moved row waits for being applied before it is moved again: a journal may be lost.
	outboxAgain = time.Minute
	// outboxFuture is further in the future than a lease or a wait can be: a row that is due later was taken by a node whose clock is
	// ahead, and a credit must not wait until the others' clocks are there.
	outboxFuture = 2 * outboxAgain
	// maxKey bounds a business key (L7): the width of the column, which indexes of old MySQL allow.
	maxKey = 191
)

// outboxRow is one row to insert.
type outboxRow struct {
	key    string
	event  ledger.Event
	amount int64  // what an adoption or opening added to pending_adopt
	state  string // outboxNew or outboxApplied
}

// newID returns a UUIDv7.
func newID() (ledger.ID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return ledger.ID{}, fmt.Errorf("make an id: %w", err)
	}
	return ledger.ID(id), nil
}

// businessKey builds an outbox key: its parts and, last, the user id, so that no two users can meet in one key.
func businessKey(user int64, parts ...string) string {
	return strings.Join(parts, ":") + ":" + strconv.FormatInt(user, 10)
}

// Outbox inserts an event that is born in this transaction. It fills in Version, ID, Time and Key. The key names the
// business fact ("redeem:CODE:7"), built from codes and random ids, never from counters, and ends in the user id; one
// that was used before is ErrExists, and the whole transaction must be given up.
func (tx *Tx) Outbox(ctx context.Context, event ledger.Event, key string) (ledger.ID, error) {
	if event.User <= 0 || !event.Kind.Known() || event.Kind.IsUsage() {
		return ledger.ID{}, fmt.Errorf("outbox %s: a %q event of user %d cannot be born here", key, event.Kind, event.User)
	}
	if !strings.HasSuffix(key, ":"+strconv.FormatInt(event.User, 10)) || utf8.RuneCountInString(key) > maxKey {
		return ledger.ID{}, fmt.Errorf("outbox %s: a key has at most %d characters and ends in its user's id", key, maxKey)
	}
	if err := tx.stamp(&event, key); err != nil {
		return ledger.ID{}, err
	}
	err := tx.insertOutbox(ctx, []outboxRow{{key: key, event: event, state: outboxNew}})
	if isDuplicate(err) {
		err = ErrExists
	}
	if err != nil {
		return ledger.ID{}, fmt.Errorf("outbox %s: %w", key, err)
	}
	return event.ID, nil
}

// stamp fills in what every event born here has. Producer and sequence are the journal's to give.
func (tx *Tx) stamp(event *ledger.Event, key string) error {
	event.Version, event.Key = ledger.EventVersion, key
	event.Producer, event.Seq, event.Prev = ledger.ID{}, 0, 0
	if event.Time == 0 {
		event.Time = tx.s.now().UnixMilli()
	}
	if event.ID.IsZero() {
		id, err := newID()
		if err != nil {
			return err
		}
		event.ID = id
	}
	return nil
}

// outboxChunk rows of at most a few KB make one statement.
const outboxChunk = 200

func (tx *Tx) insertOutbox(ctx context.Context, rows []outboxRow) error {
	const columns = "event_key, event_id, user_id, kind, amount, event, state, created_at, due_at, lease"
	now := tx.s.now().UnixMilli()
	for len(rows) > 0 {
		n := min(len(rows), outboxChunk)
		args := make([]any, 0, 10*n)
		q := new(statement).text("INSERT INTO ledger_outbox (" + columns + ") VALUES ")
		for i := range rows[:n] {
			r := &rows[i]
			body, err := r.event.Encode(nil)
			if err != nil {
				return err
			}
			if i > 0 {
				q.text(",")
			}
			q.text("(?,?,?,?,?,?,?,?,0,?)")
			args = append(args, r.key, r.event.ID[:], r.event.User, string(r.event.Kind), r.amount, body, r.state, now, make([]byte, 16))
		}
		if _, err := tx.Exec(ctx, q.String(), args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// OutboxRow is an event to be moved into a journal. The mover journals Event as it is; Key names the row, and is not
// Event.Key for a re-drive, which keeps the key of its original.
type OutboxRow struct {
	Key   string
	Event ledger.Event
}

// OutboxPending returns rows to move, oldest first: new ones, and those that were moved a minute ago and are not applied.
// It leases them to the caller for a few seconds, so that not every node moves them. A caller that dies loses nothing:
// the lease ends.
func (s *Store) OutboxPending(ctx context.Context, limit int) ([]OutboxRow, error) {
	now := s.now()
	var keys []any
	for _, state := range []string{outboxNew, outboxMoved} { // one at a time, so that the index gives the order
		err := s.read(ctx, "SELECT event_key FROM ledger_outbox WHERE state = ? AND (due_at <= ? OR due_at > ?) ORDER BY due_at, created_at LIMIT ?",
			[]any{state, now.UnixMilli(), now.Add(outboxFuture).UnixMilli(), limit - len(keys)}, func(scan func(...any) error) error {
				var key string
				err := scan(&key)
				keys = append(keys, key)
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("read outbox: %w", err)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	lease, err := newID()
	if err != nil {
		return nil, err
	}
	var rows []OutboxRow
	err = s.Tx(ctx, func(tx *Tx) error {
		rows = rows[:0]
		args := append([]any{lease[:], now.Add(outboxLease).UnixMilli()}, keys...)
		_, err := tx.Exec(ctx, "UPDATE ledger_outbox SET lease = ?, due_at = ? WHERE event_key IN ("+marks(len(keys))+") AND state IN ('new', 'moved') AND (due_at <= ? OR due_at > ?)",
			append(args, now.UnixMilli(), now.Add(outboxFuture).UnixMilli())...)
		if err != nil {
			return err
		}
		return tx.each(ctx, "SELECT event_key, event FROM ledger_outbox WHERE lease = ? AND state IN ('new', 'moved') ORDER BY created_at, event_key", []any{lease[:]},
			func(scan func(...any) error) error {
				var r OutboxRow
				var body []byte
				if err := scan(&r.Key, &body); err != nil {
					return err
				}
				rows = append(rows, r)
				return json.Unmarshal(body, &rows[len(rows)-1].Event)
			})
	})
	if err != nil {
		return nil, fmt.Errorf("take outbox rows: %w", err)
	}
	return rows, nil
}

// OutboxMoved records that rows are in a journal, durably. Rows that were applied meanwhile stay so.
func (s *Store) OutboxMoved(ctx context.Context, keys ...string) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		return chunks(keys, func(keys []string) error {
			args := []any{s.now().Add(outboxAgain).UnixMilli()}
			for _, k := range keys {
				args = append(args, k)
			}
			_, err := tx.Exec(ctx, "UPDATE ledger_outbox SET state = 'moved', due_at = ? WHERE event_key IN ("+marks(len(keys))+") AND state IN ('new', 'moved')", args...)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("mark outbox rows moved: %w", err)
	}
	return nil
}

// OutboxBacklog returns how many rows are not applied yet, and when the oldest was made.
func (s *Store) OutboxBacklog(ctx context.Context) (count int, oldest time.Time, err error) {
	var at int64
	err = s.read(ctx, "SELECT COUNT(*), COALESCE(MIN(created_at), 0) FROM ledger_outbox WHERE state IN ('new', 'moved')", nil,
		func(scan func(...any) error) error { return scan(&count, &at) })
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("count outbox: %w", err)
	}
	if count > 0 {
		oldest = time.UnixMilli(at)
	}
	return count, oldest, nil
}

// OutboxApplied reports whether the event of a key is in the balances. A key that was never used is ErrNotFound.
func (s *Store) OutboxApplied(ctx context.Context, key string) (bool, error) {
	var state string
	err := s.db.QueryRowContext(ctx, "SELECT state FROM ledger_outbox WHERE event_key = ?", key).Scan(&state)
	if err = notFound(err); err != nil {
		return false, fmt.Errorf("read outbox row %s: %w", key, err)
	}
	return state == outboxApplied, nil
}

// outboxKey is what a flush knows of one key.
type outboxKey struct {
	state  string // "" if there is no row
	amount int64
}

// lockKeys reads and locks the rows of keys, in key order.
func (tx *Tx) lockKeys(ctx context.Context, keys []string) (map[string]outboxKey, error) {
	found := make(map[string]outboxKey, len(keys))
	err := chunks(keys, func(keys []string) error {
		args := make([]any, len(keys))
		for i, k := range keys {
			args[i] = k
		}
		q := "SELECT event_key, state, amount FROM ledger_outbox" + tx.s.forcePK + " WHERE event_key IN (" + marks(len(keys)) + ") ORDER BY event_key" + tx.ForUpdate()
		return tx.each(ctx, q, args, func(scan func(...any) error) error {
			var key string
			var k outboxKey
			err := scan(&key, &k.state, &k.amount)
			found[key] = k
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("lock outbox rows: %w", err)
	}
	return found, nil
}

// setKeys moves existing rows to a state.
func (tx *Tx) setKeys(ctx context.Context, keys []string, state string) error {
	err := chunks(keys, func(keys []string) error {
		args := make([]any, 0, len(keys)+1)
		args = append(args, state)
		for _, k := range keys {
			args = append(args, k)
		}
		_, err := tx.Exec(ctx, "UPDATE ledger_outbox SET state = ? WHERE event_key IN ("+marks(len(keys))+")", args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("mark outbox rows %s: %w", state, err)
	}
	return nil
}
