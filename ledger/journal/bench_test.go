package journal_test

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
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

// BenchmarkRequest opens and settles a hold, as a request does: who opens goes on, and waits for both records at the end.
func BenchmarkRequest(b *testing.B) {
	for _, clients := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchRequest(b, clients) })
	}
}

func benchRequest(b *testing.B, clients int) {
	j := create(b, benchConfig(b))
	shipAll(b, j)
	var next atomic.Int64
	request := func(n int) error {
		opened, err := j.Open(openRecord(n))
		if err != nil {
			return err
		}
		slot := j.Slot(id(n))
		slot.SetForwarded(1)
		runtime.Gosched()
		if err := opened.Wait(b.Context()); err != nil {
			return err
		}
		slot.RaiseProgress(1, 1)
		settled, err := j.Settle(settleEvent(n))
		if err != nil {
			return err
		}
		if err := settled.Wait(b.Context()); err != nil {
			return err
		}
		j.Released(settled)
		return nil
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := usage(b)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for {
				n := int(next.Add(1))
				if n > b.N {
					return
				}
				if err := request(n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	after := usage(b)
	n := float64(b.N)
	b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/1000/n, "cpu-µs/op")
	b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/n, "waits/op")
	b.ReportMetric(n/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64(j.Stats().Batches)/n, "fsyncs/op")
}

func usage(b *testing.B) (u syscall.Rusage) {
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u
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
