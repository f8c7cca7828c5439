package eventlog_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
)

func TestShipInOrder(t *testing.T) {
	onEveryLog(t, 4, func(t *testing.T, client *eventlog.Client) {
		shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{Logger: testLogger(t), Registerer: prometheus.NewRegistry()})
		own, adopted := newJournal(1, 4), newJournal(2, 4)
		own.add(t, 3000, 0)
		adopted.add(t, 500, 0)
		adopted.end()
		waitOwn := ship(t, t.Context(), shipper, own)
		if err := ship(t, t.Context(), shipper, adopted)(); err != nil {
			t.Fatalf("Ship of a source that ended: %v", err)
		}
		if !adopted.allAcked() {
			t.Error("Ship returned before everything was acknowledged")
		}
		own.add(t, 10, 0)
		own.end()
		if err := waitOwn(); err != nil {
			t.Fatal(err)
		}
		got := readLog(t, client, 4)
		n := 0
		for _, seqs := range got.applied {
			n += len(seqs)
		}
		if n != 3510 || got.holes != 0 || got.duplicates != 0 {
			t.Errorf("log holds %d events, %d holes, %d duplicates; want 3510, 0, 0", n, got.holes, got.duplicates)
		}
	})
}

func TestShippedRecordForm(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		j := newJournal(1, 1)
		j.add(t, 2, 42)
		j.end()
		if err := eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		// Read by kafka-go's own decoder, so that one of ours is not checked by the other.
		reader := kafka.NewReader(kafka.ReaderConfig{Brokers: client.Brokers(), Topic: client.Topic(), MaxWait: 100 * time.Millisecond})
		defer reader.Close()
		for _, p := range j.parcels {
			m, err := reader.ReadMessage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			event, err := ledger.Decode(p.Value)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(m.Key), string(ledger.OrderingKey(42)); got != want {
				t.Errorf("key %q, want %q", got, want)
			}
			if diff := cmp.Diff(string(p.Value), string(m.Value)); diff != "" {
				t.Errorf("value differs (-want +got):\n%s", diff)
			}
			var got []ledger.Header
			for _, h := range m.Headers {
				got = append(got, ledger.Header(h))
			}
			if diff := cmp.Diff(event.Headers(), got); diff != "" {
				t.Errorf("headers differ (-want +got):\n%s", diff)
			}
		}
	})
}

// The batches of many partitions share a request, and those of two sources for one partition do not meet in one.
func TestPartitionsShareRequests(t *testing.T) {
	onEveryLog(t, 12, func(t *testing.T, client *eventlog.Client) {
		registry := prometheus.NewRegistry()
		shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{Spacing: 100 * time.Millisecond, Registerer: registry})
		first, second := newJournal(1, 12), newJournal(2, 12)
		begun := time.Now()
		waitFirst, waitSecond := ship(t, t.Context(), shipper, first), ship(t, t.Context(), shipper, second)
		for range 10 { // fewer bytes than leave without waiting
			first.add(t, 24, 0)
			second.add(t, 24, 0)
		}
		first.end()
		second.end()
		if err := errors.Join(waitFirst(), waitSecond()); err != nil {
			t.Fatal(err)
		}
		// One departure to one broker per spacing; the first may leave with a single event, and what failed (a new topic's leaders
		// are not all there yet) leaves by itself.
		requests := metric(t, registry, "ledgerline_ship_requests_total")
		most := float64(time.Since(begun)/(100*time.Millisecond)) + 2 + metric(t, registry, "ledgerline_ship_retries_total")
		if requests < 2 || requests > most {
			t.Errorf("%v requests, want at least 2 for two sources, at most %v", requests, most)
		}
		got, held := readLog(t, client, 12), 0
		for _, applied := range got.applied {
			held += len(applied)
		}
		if held != 2*10*24 || got.holes > 0 || got.duplicates > 0 {
			t.Errorf("the log holds %d events in order, %d overtaken, %d twice; want %d, 0, 0", held, got.holes, got.duplicates, 2*10*24)
		}
	})
}

// Errors, and acknowledgements that get lost after the append, may double events but never reorder them.
func TestShipThroughProduceFailures(t *testing.T) {
	client, broker := embeddedLog(t, 3)
	j := newJournal(1, 3)
	shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{Spacing: -1, BatchBytes: 8 << 10, Logger: testLogger(t)})
	produce := []kmsg.Key{kmsg.Produce}
	lost := broker.Cluster().Fault(
		kfake.Fault{Keys: produce, Partitions: []int32{0}, Err: kerr.NotEnoughReplicasAfterAppend, Count: 2},
		kfake.Fault{Keys: produce, Partitions: []int32{1}, Err: kerr.NotLeaderForPartition, Count: 2},
		kfake.Fault{Keys: produce, Partitions: []int32{2}, Err: kerr.UnknownTopicOrPartition, Count: 2},
	)
	j.add(t, 600, 0)
	j.end()
	if err := shipper.Ship(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if lost.Hits() != 6 {
		t.Errorf("%d requests failed, want 6", lost.Hits())
	}
	if got := checkShipped(t, client, j); got.duplicates == 0 {
		t.Error("no acknowledgement was lost: the test tested nothing")
	}
}

// Connections that die with the answer on its way.
func TestShipThroughLostConnections(t *testing.T) {
	client, broker := embeddedLog(t, 1)
	j := newJournal(1, 1)
	cuts := 0
	broker.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster().KeepControl()
		if cuts++; cuts <= 3 {
			return nil, errors.New("cut"), true
		}
		return nil, nil, false
	})
	j.add(t, 100, 0)
	j.end()
	if err := eventlog.NewShipper(client, eventlog.ShipperConfig{Logger: testLogger(t)}).Ship(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if cuts < 4 {
		t.Errorf("%d requests seen", cuts)
	}
	checkShipped(t, client, j)
}

// A broker that finds batches too large gets smaller ones.
func TestShipHalvesBatches(t *testing.T) {
	client, broker := embeddedLog(t, 1)
	broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.MessageTooLarge, Count: 3})
	j := newJournal(1, 1)
	j.add(t, 200, 0)
	j.end()
	if err := eventlog.NewShipper(client, eventlog.ShipperConfig{Spacing: -1}).Ship(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	checkShipped(t, client, j)
}

// A partition that cannot be written to holds up nobody else, however much comes for it, and memory stays bounded.
func TestStuckPartitionBlocksNobody(t *testing.T) {
	client, broker := embeddedLog(t, 2)
	const laneBytes = 32 << 10
	registry := prometheus.NewRegistry()
	shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{LaneBytes: laneBytes, Spacing: -1, Registerer: registry})
	stuck := broker.Cluster().Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{0}, Err: kerr.NotEnoughReplicas, Count: -1,
	})
	j := &rereading{journal: newJournal(1, 2)}
	var user [2]int64 // a user of each partition
	for u := int64(1); user[0] == 0 || user[1] == 0; u++ {
		user[ledger.Partition(u, 2)] = u
	}
	wait := ship(t, t.Context(), shipper, j)
	for range 50 {
		j.add(t, 20, user[0])
		j.add(t, 20, user[1])
	}
	for j.ackedIn(1) != j.lastIn(1) {
		select {
		case <-j.moved:
		case <-time.After(30 * time.Second):
			t.Fatal("the healthy partition stands still")
		}
	}
	if n := metric(t, registry, "ledgerline_ship_queue_events"); n == 0 || n > laneBytes/320 {
		t.Errorf("%v events are in memory, want some, at most %d", n, laneBytes/320)
	}
	stuck.Remove()
	j.end()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if j.rereads == 0 {
		t.Error("nothing was reread: the test tested nothing")
	}
	if got := checkShipped(t, client, j.journal); got.duplicates > 0 {
		t.Errorf("%d events were shipped twice, by Next and by Reread", got.duplicates)
	}
}

// What a reread brought before Next did is not shipped again.
func TestRereadMayRunAhead(t *testing.T) {
	client, broker := embeddedLog(t, 1)
	shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{LaneBytes: 16 << 10, Spacing: -1})
	stuck := broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	j := &rereading{journal: newJournal(1, 1)}
	j.limit = 100
	j.add(t, 200, 0)
	wait := ship(t, t.Context(), shipper, j)
	if err := stuck.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	stuck.Remove()
	j.waitFor(t, func() bool { return j.acked[0] >= 100 })
	j.mu.Lock()
	j.limit = 0
	j.mu.Unlock()
	poke(j.more)
	j.end()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if got := checkShipped(t, client, j.journal); got.duplicates > 0 || j.rereads == 0 {
		t.Errorf("%d events were shipped twice, with %d rereads", got.duplicates, j.rereads)
	}
}

// A source that cannot be reread is held up instead, and nothing is lost.
func TestFullLaneHoldsUpItsSource(t *testing.T) {
	client, broker := embeddedLog(t, 1)
	shipper := eventlog.NewShipper(client, eventlog.ShipperConfig{LaneBytes: 8 << 10, Spacing: -1})
	stuck := broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	j := newJournal(1, 1)
	j.add(t, 3000, 0)
	j.end()
	wait := ship(t, t.Context(), shipper, j)
	if err := stuck.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	taken := j.next
	j.mu.Unlock()
	if taken == len(j.parcels) {
		t.Error("the shipper took everything into memory")
	}
	stuck.Remove()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	checkShipped(t, client, j)
}

func TestShipStops(t *testing.T) {
	client, broker := embeddedLog(t, 1)
	broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	ctx, cancel := context.WithCancel(t.Context())
	j := newJournal(1, 1)
	j.add(t, 10, 0)
	wait := ship(t, ctx, eventlog.NewShipper(client, eventlog.ShipperConfig{}), j)
	cancel()
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Ship returned %v", err)
	}
	broken := errors.New("disk")
	if err := eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), failing{broken}); !errors.Is(err, broken) {
		t.Errorf("Ship of a source that failed returned %v", err)
	}
}

type failing struct{ err error }

func (f failing) Next(context.Context, int) ([]ledger.Parcel, error) { return nil, f.err }
func (f failing) Acked(int, uint64)                                  {}

func (j *journal) ackedIn(partition int) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.acked[partition]
}

func (j *journal) lastIn(partition int) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.prev[partition]
}

func metric(t testing.TB, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
