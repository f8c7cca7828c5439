package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
)

// AllocateEpoch takes the next epoch number of a partition: above every number that MySQL gave, above atLeast (what the
// hot counters say) and above the clock, so that neither a restored database nor a lost Redis repeats one (DESIGN 7).
// It returns with it the offset to begin at and the newest epoch that was opened, both read in the same transaction.
func (s *Store) AllocateEpoch(ctx context.Context, partition int, atLeast uint64) (ledger.BeginCall, error) {
	call := ledger.BeginCall{Partition: partition}
	err := s.Tx(ctx, func(tx *Tx) (err error) {
		var last uint64
		if call.Offset, last, err = tx.lockPartition(ctx, partition); err != nil {
			return err
		}
		q := "SELECT COALESCE(MAX(epoch), 0) FROM ledger_epochs WHERE part = ?"
		if err := tx.QueryRow(ctx, q, []any{partition}, &call.Opened); err != nil {
			return err
		}
		call.Epoch = max(last, call.Opened, atLeast, uint64(s.now().UnixMilli())) + 1
		_, err = tx.Exec(ctx, "UPDATE ledger_partitions SET epoch = ? WHERE part = ?", call.Epoch, partition)
		return err
	})
	if err != nil {
		return ledger.BeginCall{}, fmt.Errorf("allocate epoch: %w", err)
	}
	return call, nil
}

// keepEpochs bounds the epochs that are remembered of a partition (L7): a cluster in trouble every day has years of them. Verify tells late
// charges only as far back as they reach.
const keepEpochs = 1000

// StoreEpoch records that an epoch is being opened. It is repeatable: a second call for the same epoch, after a crash
// before the hot counters heard of it, may name a later end; an earlier end comes from a zombie and changes nothing. stored is false
// if a later epoch has a number already: that one was told which epochs were opened before it, and this one is not among them.
func (s *Store) StoreEpoch(ctx context.Context, e ledger.EpochRecord) (stored bool, err error) {
	reporters := e.Reporters
	if reporters == nil {
		reporters = []ledger.ID{}
	}
	text, err := json.Marshal(reporters)
	if err != nil {
		return false, fmt.Errorf("store epoch: %w", err)
	}
	q := "INSERT INTO ledger_epochs (part, epoch, end_offset, reporters, opened_at) VALUES (?, ?, ?, ?, ?)" +
		s.onConflict("part, epoch", "end_offset", "reporters", "opened_at")
	err = s.Tx(ctx, func(tx *Tx) error {
		_, newest, err := tx.lockPartition(ctx, e.Partition)
		if stored = err == nil && newest <= e.Epoch; !stored {
			return err
		}
		var end int64
		err = tx.QueryRow(ctx, "SELECT end_offset FROM ledger_epochs WHERE part = ? AND epoch = ?", []any{e.Partition, e.Epoch}, &end)
		if err == nil && end > e.End || err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if _, err = tx.Exec(ctx, q, e.Partition, e.Epoch, e.End, string(text), e.OpenedAt.UnixMilli()); err != nil {
			return err
		}
		return tx.forgetEpochs(ctx, e.Partition)
	})
	if err != nil {
		return false, fmt.Errorf("store epoch: %w", err)
	}
	return stored, nil
}

// forgetEpochs removes the oldest epochs of a partition beyond keepEpochs.
func (tx *Tx) forgetEpochs(ctx context.Context, partition int) error {
	var newest uint64 // of those that go
	err := tx.QueryRow(ctx, "SELECT epoch FROM ledger_epochs WHERE part = ? ORDER BY epoch DESC LIMIT 1 OFFSET ?", []any{partition, keepEpochs}, &newest)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, "DELETE FROM ledger_epochs WHERE part = ? AND epoch <= ?", partition, newest)
	}
	return err
}

// Epochs returns the epochs that were opened in a partition, or in all if partition < 0, by partition and number.
func (s *Store) Epochs(ctx context.Context, partition int) ([]ledger.EpochRecord, error) {
	var list []ledger.EpochRecord
	err := s.View(ctx, func(tx *Tx) error { var err error; list, err = tx.epochs(ctx, partition); return err })
	if err != nil {
		return nil, fmt.Errorf("read epochs: %w", err)
	}
	return list, nil
}

func (tx *Tx) epochs(ctx context.Context, partition int) ([]ledger.EpochRecord, error) {
	q, args := "SELECT part, epoch, end_offset, reporters, opened_at FROM ledger_epochs", []any(nil)
	if partition >= 0 {
		q, args = q+" WHERE part = ?", []any{partition}
	}
	var list []ledger.EpochRecord
	err := tx.each(ctx, q+" ORDER BY part, epoch", args, func(scan func(...any) error) error {
		var e ledger.EpochRecord
		var reporters string
		var at int64
		if err := scan(&e.Partition, &e.Epoch, &e.End, &reporters, &at); err != nil {
			return err
		}
		e.OpenedAt = time.UnixMilli(at)
		list = append(list, e)
		return json.Unmarshal([]byte(reporters), &list[len(list)-1].Reporters)
	})
	return list, err
}
