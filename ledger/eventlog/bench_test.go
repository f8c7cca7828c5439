package eventlog_test

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

// cpu returns the CPU time that this process has used. Kafka runs in another one.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// usageParcels journals n usage events of usual size for one partition.
func usageParcels(b *testing.B, n int) *journal {
	b.Helper()
	j := newJournal(1, 1)
	for range n {
		seq := uint64(len(j.parcels) + 1)
		e := ledger.Event{
			Version: 1, Kind: ledger.KindUsageSettled, ID: id(seq), Producer: j.producer, Seq: seq, Prev: seq - 1, Time: 1_732_320_000_123,
			Node: "relay-1", User: int64(1 + seq%1000), Token: int64(1 + seq%3000), Channel: 3, Charged: 1234, Requests: 1,
			Hold: &ledger.HoldRef{ID: id(seq), Epoch: 1_732_300_000_000, Amount: 5000, Token: true},
			Request: &ledger.Request{
				ID: "20241123000000123456789abcdefgh", Username: "alice", TokenName: "laptop", UserGroup: "default", Group: "vip", Model: "gpt-4o-mini",
				Endpoint: "/v1/chat/completions", Stream: true, Status: 200, FirstMS: 412, TotalMS: 3180, IP: "203.0.113.9", Upstream: "chatcmpl-AbCdEf0123456789",
			},
			Usage: &ledger.Usage{Prompt: 812, Completion: 301, CacheRead: 512}, Source: ledger.SourceUpstream,
			Rating: &ledger.Rating{Book: "9f2c11d0", Mode: "ratio", ModelRatio: "0.075", CompletionRatio: "4", CacheRatio: "0.5", GroupRatio: "1", QuotaPerUnit: "500000"},
		}
		value, err := e.Encode(nil)
		if err != nil {
			b.Fatal(err)
		}
		binary.BigEndian.PutUint64(e.ID[8:], seq)
		j.parcels = append(j.parcels, ledger.Parcel{Producer: e.Producer, Seq: seq, Prev: e.Prev, ID: e.ID, Kind: e.Kind, User: e.User, Time: e.Time, At: time.Now(), Value: value})
	}
	j.prev[0] = uint64(n)
	j.ended = true
	return j
}

// BenchmarkLog ships and reads usage events on Kafka, in events per CPU-second of this process.
func BenchmarkLog(b *testing.B) {
	const n = 200_000
	client := newClient(b, ledgertest.UniqueName("events"), ledgertest.Kafka(b)...)
	ensure(b, client, 1)
	j := usageParcels(b, n)
	before := cpu(b)
	if err := eventlog.NewShipper(client, eventlog.ShipperConfig{Spacing: -1}).Ship(b.Context(), j); err != nil {
		b.Fatal(err)
	}
	shipping := cpu(b) - before
	before = cpu(b)
	rounds := 0
	for b.Loop() {
		rounds++
		read := 0
		err := client.Read(b.Context(), 0, 0, n, func(records []ledger.Record) error {
			for i := range records {
				if records[i].Err != nil {
					b.Fatal(records[i].Err)
				}
			}
			read += len(records)
			return nil
		})
		if err != nil || read != n {
			b.Fatal(read, err)
		}
	}
	b.ReportMetric(n/shipping.Seconds(), "shipped/cpu-s")
	b.ReportMetric(float64(rounds)*n/(cpu(b)-before).Seconds(), "read/cpu-s")
}
