package eventlog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
)

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}

// direct is kafka-go's own client of the same log.
func direct(t testing.TB, client *eventlog.Client) *kafka.Client {
	t.Helper()
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(client.Brokers()...), Transport: transport, Timeout: 10 * time.Second}
}

func produce(t testing.TB, client *eventlog.Client, codec kafka.Compression, values ...[]byte) {
	t.Helper()
	k := direct(t, client)
	for deadline := time.Now().Add(30 * time.Second); ; {
		records := make([]kafka.Record, len(values))
		for i, v := range values {
			records[i] = kafka.Record{Key: kafka.NewBytes([]byte("k")), Value: kafka.NewBytes(v), Headers: []kafka.Header{{Key: "h", Value: []byte("v")}, {Key: "nil"}}}
		}
		res, err := k.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: client.Topic(), RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...), Compression: codec,
		})
		if err == nil {
			err = res.Error
		}
		if err == nil {
			return
		}
		if !errors.Is(err, kafka.NotLeaderForPartition) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Batches of every compression come out as they went in.
func TestFetchEveryCompression(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		var want [][]byte
		for i, codec := range []kafka.Compression{0, kafka.Gzip, kafka.Snappy, kafka.Lz4, kafka.Zstd} {
			var values [][]byte
			for n := range 50 {
				values = append(values, bytes.Repeat([]byte(fmt.Sprintf("%d-%d ", i, n)), 1+100*n))
			}
			values = append(values, []byte{}, nil)
			produce(t, client, codec, values...)
			want = append(want, values...)
		}
		var got [][]byte
		err := client.Read(t.Context(), 0, 0, int64(len(want)), func(records []ledger.Record) error {
			for _, r := range records {
				if r.Offset != int64(len(got)) || r.Partition != 0 {
					t.Fatalf("record %d of partition %d, want %d of 0", r.Offset, r.Partition, len(got))
				}
				got = append(got, r.Value)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("read %d values that differ from the %d written", len(got), len(want))
		}
	})
}

func TestBoundsAndReadAt(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		j := newJournal(1, 1)
		j.add(t, 20, 0)
		j.end()
		if err := eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		first, end, err := client.Bounds(t.Context(), 0)
		if err != nil || first != 0 || end != 20 {
			t.Fatalf("bounds %d, %d, %v; want 0, 20", first, end, err)
		}
		r, err := client.ReadAt(t.Context(), 0, 13)
		if err != nil || r.Offset != 13 || r.Event.Seq != 14 || !bytes.Equal(r.Value, j.parcels[13].Value) {
			t.Errorf("record %d with sequence %d, %v", r.Offset, r.Event.Seq, err)
		}
		for _, offset := range []int64{20, 21, 1 << 40} {
			if _, err := client.ReadAt(t.Context(), 0, offset); !errors.Is(err, eventlog.ErrOutOfRange) {
				t.Errorf("ReadAt(%d): %v", offset, err)
			}
		}
		if _, err := client.Fetch(t.Context(), 0, 21); !errors.Is(err, eventlog.ErrOutOfRange) {
			t.Errorf("Fetch beyond the end: %v", err)
		}
		if _, _, err := client.Bounds(t.Context(), 7); err == nil {
			t.Error("bounds of a partition that is not there")
		}
		// What is deleted from the front is outside.
		deleteBelow(t, client, 5)
		if first, _, err := client.Bounds(t.Context(), 0); err != nil || first != 5 {
			t.Errorf("first offset %d, %v; want 5", first, err)
		}
		if _, err := client.ReadAt(t.Context(), 0, 4); !errors.Is(err, eventlog.ErrOutOfRange) {
			t.Errorf("ReadAt of a deleted record: %v", err)
		}
		if err := client.Read(t.Context(), 0, 0, 20, func([]ledger.Record) error { return nil }); !errors.Is(err, eventlog.ErrOutOfRange) {
			t.Errorf("Read from a deleted record: %v", err)
		}
	})
}

func TestReadRange(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		j := newJournal(1, 1)
		j.add(t, 5000, 0) // several responses
		j.end()
		if err := eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		next := int64(7)
		read := func(records []ledger.Record) error {
			for _, r := range records {
				if r.Offset != next {
					t.Fatalf("record %d, want %d", r.Offset, next)
				}
				next++
			}
			return nil
		}
		if err := client.Read(t.Context(), 0, 7, 4321, read); err != nil || next != 4321 {
			t.Errorf("read up to %d, %v; want 4321", next, err)
		}
		broken := errors.New("enough")
		if err := client.Read(t.Context(), 0, 0, 100, func([]ledger.Record) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("Read returned %v, want the callback's error", err)
		}
		if err := client.Read(t.Context(), 0, 0, 5001, func([]ledger.Record) error { return nil }); !errors.Is(err, eventlog.ErrOutOfRange) {
			t.Errorf("Read beyond the end: %v", err)
		}
	})
}

func TestDamagedBatchesAreRefused(t *testing.T) {
	good := encodeBatch(5, []byte("one"), []byte("two"))
	if got := values(t, good, 5); len(got) != 2 {
		t.Fatalf("read %q", got)
	}
	if got := values(t, good, 6); len(got) != 1 || string(got[0]) != "two" {
		t.Errorf("from offset 6: %q", got)
	}
	if got := values(t, append(slices.Clone(good), good[:40]...), 0); len(got) != 2 {
		t.Errorf("with a batch cut off behind it: %q", got)
	}
	for i := range good {
		if i < 8 { // the base offset and the leader epoch are outside the checksum
			continue
		}
		if i >= 12 && i < 16 {
			continue
		}
		bad := slices.Clone(good)
		bad[i] ^= 0x10
		got := 0
		if _, err := eventlog.EachRecord(bad, 0, func(int64, []byte) { got++ }); err == nil && got > 0 {
			t.Errorf("a bit flipped in byte %d went unnoticed", i)
		}
	}
}

func values(t *testing.T, data []byte, from int64) (got [][]byte) {
	t.Helper()
	if _, err := eventlog.EachRecord(data, from, func(_ int64, v []byte) { got = append(got, v) }); err != nil {
		t.Fatal(err)
	}
	return got
}

// encodeBatch writes a record batch by hand.
func encodeBatch(base int64, values ...[]byte) []byte {
	be := binary.BigEndian
	b := be.AppendUint64(nil, uint64(base))
	b = append(b, make([]byte, 53)...)
	b[16] = 2
	be.PutUint32(b[23:], uint32(len(values)-1))
	be.PutUint32(b[57:], uint32(len(values)))
	for i, v := range values {
		r := []byte{0}
		r = binary.AppendVarint(r, 0)
		r = binary.AppendVarint(r, int64(i))
		r = binary.AppendVarint(r, -1)
		r = binary.AppendVarint(r, int64(len(v)))
		r = append(r, v...)
		r = binary.AppendVarint(r, 0)
		b = binary.AppendVarint(b, int64(len(r)))
		b = append(b, r...)
	}
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func FuzzEachRecord(f *testing.F) {
	f.Add(encodeBatch(0, []byte("one")), int64(0))
	f.Add(encodeBatch(9, []byte("one"), nil, []byte("three")), int64(10))
	f.Add([]byte("short"), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, from int64) {
		// With the checksum made right, the fuzzer reaches what lies behind it.
		if len(data) >= 61 {
			if n := int(binary.BigEndian.Uint32(data[8:])); n >= 49 && 12+n <= len(data) {
				binary.BigEndian.PutUint32(data[17:], crc32.Checksum(data[21:12+n], crc32.MakeTable(crc32.Castagnoli)))
			}
		}
		_, _ = eventlog.EachRecord(data, from, func(offset int64, value []byte) {
			if offset < from {
				t.Errorf("record %d, asked from %d", offset, from)
			}
			if len(value) > maxValue {
				t.Errorf("a value of %d bytes", len(value))
			}
		})
	})
}

// maxValue is far above what inputs of the fuzzer can inflate to.
const maxValue = 64 << 20

func FuzzDecodeFetch(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Add(append([]byte{0, 0, 0, 1}, make([]byte, 80)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _, records, err := eventlog.DecodeFetch(body)
		if err != nil && records != nil {
			t.Error("records beside an error")
		}
	})
}

func FuzzDecodeProduce(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01" + strings.Repeat("\x00", 34)))
	f.Fuzz(func(t *testing.T, body []byte) {
		codes, err := eventlog.DecodeProduce(body)
		if err != nil && codes != nil {
			t.Error("codes beside an error")
		}
		if len(codes) > len(body)/30 {
			t.Errorf("%d partitions in %d bytes", len(codes), len(body))
		}
	})
}

// What is shipped reads back: sizes of all lengths of varint, by the decoder that checks every length.
func TestBatchesReadBack(t *testing.T) {
	var parcels []ledger.Parcel
	for _, size := range []int{0, 1, 62, 63, 64, 65, 8190, 8191, 8192, 8193, 1 << 20, 1<<20 + 1} {
		for _, user := range []int64{0, 7, math.MaxInt64} {
			parcels = append(parcels, ledger.Parcel{ID: id(1), Producer: id(2), Kind: ledger.KindUsageSettled, User: user, Value: bytes.Repeat([]byte("x"), size)})
		}
	}
	n := int64(0)
	next, err := eventlog.EachRecord(eventlog.AppendBatch(nil, parcels, time.Now()), 0, func(offset int64, value []byte) {
		if offset != n || !bytes.Equal(value, parcels[offset].Value) {
			t.Errorf("record %d with %d bytes, want %d with %d", offset, len(value), n, len(parcels[n].Value))
		}
		n++
	})
	if err != nil || next != int64(len(parcels)) || n != next {
		t.Errorf("%d of %d records, next is %d, %v", n, len(parcels), next, err)
	}
}

func deleteBelow(t *testing.T, client *eventlog.Client, offset int64) {
	t.Helper()
	k, err := kgo.NewClient(kgo.SeedBrokers(client.Brokers()...)) // kafka-go lacks this call
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10_000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{
		Topic: client.Topic(), Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: offset}},
	}}
	res, err := req.RequestWith(t.Context(), k)
	if err == nil {
		err = kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}
