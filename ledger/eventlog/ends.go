package eventlog

import (
	"context"
	"fmt"

	"ledgerline/ledger"
)

// HoldEnds reads partition from offset from (or its first one) to its present end, and returns how the holds that it finds there ended,
// as the counters are to be told. It is for a journal that has lost records which the log may have; a million events take a
// few seconds.
func (c *Client) HoldEnds(ctx context.Context, partition int, from int64, holds map[ledger.ID]bool) ([]ledger.ReleaseCall, error) {
	first, end, err := c.Bounds(ctx, partition)
	if err != nil {
		return nil, fmt.Errorf("look for the ends of holds: %w", err)
	}
	var found []ledger.ReleaseCall
	err = c.Read(ctx, partition, max(first, from), end, func(records []ledger.Record) error {
		for i := range records {
			ev := &records[i].Event
			if records[i].Err != nil || ev.Hold == nil || ev.Redrive || !holds[ev.Hold.ID] {
				continue
			}
			found = append(found, ledger.ReleaseCall{
				Hold: ev.Hold.ID, Incarnation: ev.Producer, Partition: partition, Epoch: ev.Hold.Epoch, Charge: ev.Charged,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for the ends of holds: %w", err)
	}
	return found, nil
}
