package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

const changeMeta = "last_change"

// Changed notes that a row of the catalog changed (id 0: an option, or everything of that kind). The entry is written when
// the transaction commits.
func (tx *Tx) Changed(kind string, id int64) {
	tx.changes = append(tx.changes, Change{Kind: kind, ID: id})
}

// writeChanges numbers the noted changes. The counter's row stays locked until the commit, so numbers become visible in
// order: a reader that has seen number n will never see a lower one appear.
func (tx *Tx) writeChanges(ctx context.Context) error {
	if len(tx.changes) == 0 {
		return nil
	}
	last, err := tx.lastChange(ctx, tx.ForUpdate())
	if err != nil {
		return fmt.Errorf("number changes: %w", err)
	}
	at := tx.s.now().UnixMilli()
	for _, c := range tx.changes {
		last++
		if _, err := tx.Exec(ctx, "INSERT INTO ledger_changes (seq, kind, row_id, created_at) VALUES (?, ?, ?, ?)", last, c.Kind, c.ID, at); err != nil {
			return fmt.Errorf("note change: %w", err)
		}
	}
	if err := tx.setMeta(ctx, changeMeta, strconv.FormatInt(last, 10)); err != nil {
		return fmt.Errorf("number changes: %w", err)
	}
	return nil
}

func (tx *Tx) lastChange(ctx context.Context, lock string) (int64, error) {
	text, err := tx.meta(ctx, changeMeta, lock)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// LastChange returns the number of the newest change. If it is below what a node has seen, the database was restored to
// an older state, and if it is above by more than Changes returns, entries were pruned: in both cases load everything.
func (s *Store) LastChange(ctx context.Context) (int64, error) {
	text, err := s.Meta(ctx, changeMeta)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read last change: %w", err)
	}
	return strconv.ParseInt(text, 10, 64)
}

// Changes returns at most limit changes with numbers above after, in order.
func (s *Store) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	var list []Change
	err := s.read(ctx, "SELECT seq, kind, row_id FROM ledger_changes WHERE seq > ? ORDER BY seq LIMIT ?", []any{after, limit}, func(scan func(...any) error) error {
		var c Change
		err := scan(&c.Seq, &c.Kind, &c.ID)
		list = append(list, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read changes: %w", err)
	}
	return list, nil
}

// PruneChanges removes changes older than a time and returns how many.
func (s *Store) PruneChanges(ctx context.Context, before time.Time) (int, error) {
	var n int64
	err := s.Tx(ctx, func(tx *Tx) error {
		r, err := tx.Exec(ctx, "DELETE FROM ledger_changes WHERE created_at < ?", before.UnixMilli())
		if err != nil {
			return err
		}
		n, err = r.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune changes: %w", err)
	}
	return int(n), nil
}
