package eventlog

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger"
)

// arrivals is a log that tells which partitions are written to.
type arrivals chan int

// Append implements Appender.
func (a arrivals) Append(_ context.Context, partition int, _ []ledger.Parcel) error {
	a <- partition
	return nil
}

// Usage waits for the next departure, and leaves early with a load that has more than usage in it.
func TestMoreThanUsageLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(arrivals, 3)
		c := &courier{log: log, spacing: time.Hour}
		begun := time.Now()
		send := func(partition int, kinds ...ledger.Kind) {
			var parcels []ledger.Parcel
			for _, kind := range kinds {
				parcels = append(parcels, ledger.Parcel{Partition: partition, Kind: kind})
			}
			go func() {
				if err := c.send(t.Context(), partition, parcels, false); err != nil && t.Context().Err() == nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		send(0, ledger.KindUsageSettled)
		if len(log) != 1 || <-log != 0 {
			t.Fatal("a lone load did not leave")
		}
		send(1, ledger.KindUsageSettled, ledger.KindUsageRecovered)
		if len(log) != 0 {
			t.Fatal("usage left before the next departure was due")
		}
		send(2, ledger.KindUsageSettled, ledger.KindCreditGranted)
		if len(log) != 2 || <-log+<-log != 1+2 || time.Since(begun) != 0 {
			t.Fatalf("a credit did not leave at once with all that waited: %d loads after %s", len(log), time.Since(begun))
		}
	})
}
