package ledger

import (
	"syscall"
	"testing"
	"time"
)

// cpuTime is what this process has used of its processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFold decodes and folds a log as replay does: 12,000 users with a token each, 20 channels, 3 producers.
func BenchmarkFold(b *testing.B) {
	const events = 50_000
	values := make([][]byte, events)
	var seq [3]uint64
	for i := range values {
		e := *samples()["usage.settled"]
		p := i / 40 % 3 // a shipper sends many at once
		e.Producer[15] = byte(p)
		seq[p]++
		e.Seq, e.Prev = seq[p], seq[p]-1
		e.User = int64(i*7919%12_000 + 1)
		e.Token, e.Channel = e.User, int64(i%20+1)
		value, err := e.Encode(nil)
		if err != nil {
			b.Fatal(err)
		}
		values[i] = value
	}
	b.Run("fold", func(b *testing.B) {
		records := make([]Record, events)
		for i := range records {
			records[i].Offset = int64(i)
			records[i].Event, records[i].Err = Decode(values[i])
		}
		b.ReportAllocs()
		before := cpuTime()
		for b.Loop() {
			f := NewFold(nil)
			for i := range records {
				f.Apply(&records[i])
			}
		}
		b.ReportMetric(events*float64(b.N)/(cpuTime()-before).Seconds(), "events/cpu-s")
	})
	b.Run("decode and fold", func(b *testing.B) {
		b.ReportAllocs()
		before := cpuTime()
		for b.Loop() {
			f := NewFold(nil)
			var d Decoder
			var r Record
			for i := range values {
				d.Reset()
				r.Offset = int64(i)
				r.Err = d.Decode(values[i], &r.Event)
				f.Apply(&r)
			}
		}
		b.ReportMetric(events*float64(b.N)/(cpuTime()-before).Seconds(), "events/cpu-s")
	})
}
