package audit

import (
	"context"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// usagePartition appends what the log holds to the usage log again, up to where the balances and the usage log itself stand: rows
// that are there collapse with their copies. The usage-log consumer may go on meanwhile.
func (r *replayer) usagePartition(ctx context.Context, partition int) error {
	st, err := r.DB.Partition(ctx, partition)
	if err != nil {
		return fmt.Errorf("read position: %w", err)
	}
	position, err := r.Usage.Position(ctx, partition)
	if err != nil {
		return fmt.Errorf("read the usage log's position: %w", err)
	}
	first, _, err := r.Log.Bounds(ctx, partition)
	if err != nil {
		return fmt.Errorf("read the bounds of the log: %w", err)
	}
	to := max(position.Offset, st.Offset)
	err = r.Log.Read(ctx, partition, first, to, func(records []ledger.Record) error {
		// What Read hands over is not to be kept, so each of its batches is one of ours.
		batch := usagelog.Batch{Partition: partition, Position: position}
		for i := range records {
			rec := &records[i]
			if err := newer(rec); err != nil {
				return err
			}
			if rec.Err != nil {
				place := usagelog.Place{Partition: partition, Offset: rec.Offset}
				batch.Dead = append(batch.Dead, usagelog.DeadLetter{Place: place, Reason: rec.Err.Error(), Value: rec.Value, At: time.Now()})
				continue
			}
			batch.Rows = append(batch.Rows, usagelog.RowOf(rec))
			if rec.Offset >= position.Offset {
				batch.Position.LastOffset, batch.Position.LastEvent = rec.Offset, rec.Event.ID
			}
		}
		if n := len(records); n > 0 {
			batch.Position.Offset = max(position.Offset, records[n-1].Offset+1)
		}
		r.events += int64(len(records))
		position = batch.Position
		return r.Usage.Append(ctx, batch)
	})
	if err != nil {
		return fmt.Errorf("append the log to the usage log: %w", err)
	}
	if position.Offset >= to {
		return nil
	}
	position.Offset = to // the last offsets hold no record
	if err := r.Usage.Append(ctx, usagelog.Batch{Partition: partition, Position: position}); err != nil {
		return fmt.Errorf("store the usage log's position: %w", err)
	}
	return nil
}
