package journal_test

import (
	"sync/atomic"
	"testing"

	"ledgerline/ledger/journal"
)

func benchConfig(b *testing.B) journal.Config {
	return journal.Config{Root: b.TempDir(), Partitions: 12, MaxBytes: 16 << 30, Slots: 1 << 15}
}

// shipAll is a shipper whose log acknowledges at once.
func shipAll(b *testing.B, j *journal.Journal) {
	go func() {
		for {
			got, err := j.Next(b.Context(), 1000)
			if err != nil {
				return
			}
			for _, p := range got {
				j.Acked(p.Partition, p.Seq)
			}
		}
	}()
}

// BenchmarkRequest opens and settles a hold, waiting for both fsyncs, at concurrency 64 per core: two records a request.
func BenchmarkRequest(b *testing.B) {
	j := create(b, benchConfig(b))
	shipAll(b, j)
	var next atomic.Int64
	b.SetParallelism(64)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n := int(next.Add(1))
			c, err := j.Open(openRecord(n))
			if err == nil {
				err = c.Wait(b.Context())
			}
			if err == nil {
				slot := j.Slot(id(n))
				slot.SetForwarded(1)
				slot.RaiseProgress(1, 1)
				c, err = j.Settle(settleEvent(n))
			}
			if err == nil {
				err = c.Wait(b.Context())
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	s := j.Stats()
	b.ReportMetric(float64(s.Frames)/float64(s.Batches), "records/fsync")
}

// BenchmarkAppend appends without waiting: what an append costs its caller.
func BenchmarkAppend(b *testing.B) {
	j := create(b, benchConfig(b))
	shipAll(b, j)
	ev := credit(1, 7)
	b.ReportAllocs()
	var last journal.Commit
	for b.Loop() {
		for {
			c, err := j.Event(ev)
			if err == nil {
				last = c
				break
			}
			if last.Wait(b.Context()) != nil { // full: the disk is behind
				b.Fatal(err)
			}
		}
	}
	if err := last.Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkSlot(b *testing.B) {
	j := create(b, benchConfig(b))
	wait(b)(j.Open(openRecord(1)))
	slot := j.Slot(id(1))
	n := int64(0)
	for b.Loop() {
		n++
		slot.RaiseProgress(n, n*5)
	}
}
