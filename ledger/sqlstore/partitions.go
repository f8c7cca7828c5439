package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// PartitionState is where the quota consumer stands in one partition of the log.
type PartitionState struct {
	Partition int
	Offset    int64 // everything below is applied
	// LastFrom and LastTo are the range of the last flush, Skipped the offsets in it that were not applied, ascending: the hot
	// counters are brought over exactly that range (DESIGN 7).
	LastFrom, LastTo int64
	Skipped          []int64
	// LastOffset and LastEvent name the last record with an identity that was applied, to be read again on start
	// (DESIGN 4, Position). LastOffset is -1 if there was none.
	LastOffset int64
	LastEvent  ledger.ID
	Epoch      uint64 // the highest epoch allocated
}

const partitionColumns = "part, next_offset, last_from, last_to, skipped, last_offset, last_event, epoch"

func scanPartition(scan func(...any) error) (PartitionState, error) {
	var p PartitionState
	var skipped string
	var id idColumn
	err := scan(&p.Partition, &p.Offset, &p.LastFrom, &p.LastTo, &skipped, &p.LastOffset, &id, &p.Epoch)
	if err != nil {
		return p, err
	}
	p.LastEvent = id.ID
	p.Skipped, err = decodeOffsets(skipped)
	return p, err
}

// Partition returns the state of one partition, or ErrNotFound before InitLog.
func (s *Store) Partition(ctx context.Context, partition int) (PartitionState, error) {
	list, err := s.partitionRows(ctx, " WHERE part = ?", partition)
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return PartitionState{}, fmt.Errorf("read partition %d: %w", partition, err)
	}
	return list[0], nil
}

// Partitions returns the state of all partitions, read at one instant.
func (s *Store) Partitions(ctx context.Context) ([]PartitionState, error) {
	list, err := s.partitionRows(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("read partitions: %w", err)
	}
	return list, nil
}

const partitionQuery = "SELECT " + partitionColumns + " FROM ledger_partitions"

// partitionRows reads without a transaction: one statement is one look.
func (s *Store) partitionRows(ctx context.Context, where string, args ...any) (list []PartitionState, err error) {
	err = s.read(ctx, partitionQuery+where+" ORDER BY part", args, func(scan func(...any) error) error {
		p, err := scanPartition(scan)
		list = append(list, p)
		return err
	})
	return list, err
}

func (tx *Tx) partitions(ctx context.Context, where string, args ...any) (list []PartitionState, err error) {
	err = tx.each(ctx, partitionQuery+where+" ORDER BY part", args, func(scan func(...any) error) error {
		p, err := scanPartition(scan)
		list = append(list, p)
		return err
	})
	return list, err
}

// lockPartition locks the row of a partition, which fences every other writer of it until the transaction ends.
func (tx *Tx) lockPartition(ctx context.Context, partition int) (offset int64, epoch uint64, err error) {
	err = tx.QueryRow(ctx, "SELECT next_offset, epoch FROM ledger_partitions WHERE part = ?"+tx.ForUpdate(), []any{partition}, &offset, &epoch)
	if err != nil {
		return 0, 0, fmt.Errorf("lock partition %d: %w", partition, err)
	}
	return offset, epoch, nil
}

// AdoptLog sets a partition's position by hand: the operator's answer to a log that was recreated or truncated. The
// next flush begins at offset. The hot counters see a range that they cannot reach and begin a new epoch. A snapshot is taken in the
// same transaction, for a fold of the log that there is now to begin at; snapshots and epochs that speak of offsets of the
// log before go.
func (s *Store) AdoptLog(ctx context.Context, partition int, offset int64) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		if _, _, err := tx.lockPartition(ctx, partition); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "UPDATE ledger_partitions SET next_offset = ?, last_from = ?, last_to = ?, skipped = '[]', last_offset = -1, last_event = ?, updated_at = ? WHERE part = ?",
			offset, offset, offset, make([]byte, len(ledger.ID{})), s.now().UnixMilli(), partition)
		if err != nil {
			return err
		}
		for _, q := range []string{
			"DELETE FROM ledger_snapshot_chunks WHERE snapshot IN (SELECT id FROM ledger_snapshots WHERE part = ?)",
			"DELETE FROM ledger_snapshots WHERE part = ?", "DELETE FROM ledger_epochs WHERE part = ?",
		} {
			if _, err := tx.Exec(ctx, q, partition); err != nil {
				return err
			}
		}
		_, err = tx.takeSnapshot(ctx, partition)
		return err
	})
	if err != nil {
		return fmt.Errorf("adopt the log of partition %d: %w", partition, err)
	}
	return nil
}

// encodeOffsets writes ascending offsets as stretches [first, count, first, count, …]: a replayed batch is one stretch.
func encodeOffsets(offsets []int64) string {
	var runs []int64
	for _, o := range offsets {
		if n := len(runs); n > 0 && runs[n-2]+runs[n-1] == o {
			runs[n-1]++
			continue
		}
		runs = append(runs, o, 1)
	}
	q := new(statement).text("[").ints(runs).text("]")
	return q.String()
}

// maxSkipped bounds what is read back (L7): a flush holds far fewer records.
const maxSkipped = 1 << 20

func decodeOffsets(text string) ([]int64, error) {
	var runs []int64
	if err := json.Unmarshal([]byte(text), &runs); err != nil || len(runs)%2 != 0 {
		return nil, fmt.Errorf("skipped offsets %.80q are not stretches", text)
	}
	var offsets []int64
	for pair := range slices.Chunk(runs, 2) {
		if pair[1] < 1 || pair[1] > maxSkipped-int64(len(offsets)) || pair[0] > 1<<62 {
			return nil, fmt.Errorf("skipped offsets %.80q are not stretches", text)
		}
		for i := range pair[1] {
			offsets = append(offsets, pair[0]+i)
		}
	}
	return offsets, nil
}
