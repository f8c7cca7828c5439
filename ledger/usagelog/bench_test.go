//go:build unix

package usagelog_test

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// cpu returns the processor time that this process has used, engines not included.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// typical returns records like those of real requests, about 900 bytes each.
func typical(b *testing.B, n int) []ledger.Record {
	records := make([]ledger.Record, n)
	for i := range records {
		records[i] = requestAt(b, int64(i), 20_000*day+int64(i/100), func(e *ledger.Event) {
			e.User, e.Token, e.Channel, e.Node, e.Source = int64(1+i%500), int64(1+i%900), int64(1+i%20), "relay-1", ledger.SourceUpstream
			e.Hold = &ledger.HoldRef{ID: ledger.ID{7, byte(i)}, Epoch: 1_764_374_400_001, Amount: 5000, Token: true}
			e.Request = &ledger.Request{
				ID: fmt.Sprintf("2026112114532400275458982%015d", i), Username: fmt.Sprint("user", i%500), TokenName: "production", UserGroup: "default",
				Group: "default", Model: []string{"gpt-4o", "claude-sonnet-4-20250514", "gpt-4o-mini"}[i%3], Endpoint: "/v1/chat/completions",
				Stream: true, Status: 200, FirstMS: 310, TotalMS: 2400, Upstream: fmt.Sprintf("chatcmpl-%020d", i),
			}
			e.Usage = &ledger.Usage{Prompt: int64(i % 2000), Completion: int64(i % 700), CacheRead: 12}
			e.Rating = &ledger.Rating{
				Book: "2026-11-21.3", Mode: "ratio", ModelRatio: "1.25", CompletionRatio: "4", CacheRatio: "0.5", GroupRatio: "1", QuotaPerUnit: "500000",
			}
		})
	}
	return records
}

func BenchmarkRowOf(b *testing.B) {
	records := typical(b, 1000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		_ = usagelog.RowOf(&records[i%len(records)])
		i++
	}
}

// BenchmarkAppend makes and stores batches as the consumer does. rows/cpu-s is of this process alone: what the engine works
// is not in it.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"clickhouse", 20_000}, {"sqlite", 2000}, {"mysql", 2000}} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, configs[c.name](b))
			records := typical(b, c.batch)
			var at usagelog.Position
			before := cpu(b)
			var rows int64
			for b.Loop() {
				for i := range records { // other events than before
					records[i].Offset = at.Offset + int64(i)
					binary.BigEndian.PutUint64(records[i].Event.ID[8:], uint64(records[i].Offset))
				}
				batch := batchOf(0, at, at.Offset+int64(c.batch), records)
				if err := s.Append(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				at = batch.Position
				rows += int64(c.batch)
			}
			b.ReportMetric(float64(rows)/(cpu(b)-before).Seconds(), "rows/cpu-s")
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkScan reads the log back, as a replay from here does.
func BenchmarkScan(b *testing.B) {
	const length = 40_000
	for _, name := range []string{"clickhouse", "sqlite"} {
		b.Run(name, func(b *testing.B) {
			s := open(b, configs[name](b))
			if err := (suite{s}).Append(b.Context(), 0, length, typical(b, length)); err != nil {
				b.Fatal(err)
			}
			before := cpu(b)
			rows := 0
			for b.Loop() {
				err := s.Scan(b.Context(), 0, 0, length, func(int64, []byte) error {
					rows++
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rows)/(cpu(b)-before).Seconds(), "rows/cpu-s")
		})
	}
}
