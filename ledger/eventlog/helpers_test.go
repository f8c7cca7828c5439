package eventlog_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

// onEveryLog runs a test on the embedded broker and, unless -short, on Apache Kafka, each time with a new topic.
func onEveryLog(t *testing.T, partitions int, test func(t *testing.T, client *eventlog.Client)) {
	t.Run("embedded", func(t *testing.T) {
		client, _ := embeddedLog(t, partitions)
		test(t, client)
	})
	t.Run("kafka", func(t *testing.T) {
		brokers := ledgertest.Kafka(t)
		client := newClient(t, ledgertest.UniqueName("events"), brokers...)
		ensure(t, client, partitions)
		test(t, client)
	})
}

func embeddedLog(t testing.TB, partitions int) (*eventlog.Client, *eventlog.Embedded) {
	t.Helper()
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir(), Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	client := newClient(t, "events", broker.Addr())
	ensure(t, client, partitions)
	return client, broker
}

func newClient(t testing.TB, topic string, brokers ...string) *eventlog.Client {
	t.Helper()
	client, err := eventlog.NewClient(eventlog.Config{Brokers: brokers, Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func ensure(t testing.TB, client *eventlog.Client, partitions int) {
	t.Helper()
	if _, err := client.EnsureTopic(t.Context(), partitions); err != nil {
		t.Fatal(err)
	}
}

// testLogger writes to the test's log, as long as the test runs.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// id makes a readable id out of a number.
func id(n uint64) ledger.ID {
	var i ledger.ID
	i[0], i[6], i[8] = 1, 0x70, 0x80
	binary.BigEndian.PutUint64(i[8:], n)
	return i
}

// journal is a source in memory: it numbers events as a journal does and remembers what was acknowledged.
type journal struct {
	producer   ledger.ID
	partitions int

	mu      sync.Mutex
	parcels []ledger.Parcel
	next    int
	limit   int // Next hands out this many at most; 0: all
	prev    map[int]uint64
	acked   map[int]uint64
	wrong   []string // breaches of the Source contract
	ended   bool
	more    chan struct{}
	moved   chan struct{} // something was acknowledged
}

func newJournal(producer uint64, partitions int) *journal {
	return &journal{
		producer:   id(producer),
		partitions: partitions,
		prev:       map[int]uint64{},
		acked:      map[int]uint64{},
		more:       make(chan struct{}, 1),
		moved:      make(chan struct{}, 1),
	}
}

// add journals n events, of the user given or of user 1, 2, 3… if user is 0.
func (j *journal) add(t testing.TB, n int, user int64) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for range n {
		seq := uint64(len(j.parcels) + 1)
		u := user
		if u == 0 {
			u = int64(seq)
		}
		p := ledger.Partition(u, j.partitions)
		e := ledger.Event{
			Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: id(binary.BigEndian.Uint64(j.producer[8:])<<32 | seq),
			Producer: j.producer, Seq: seq, Prev: j.prev[p], Time: 1_700_000_000_000 + int64(seq), Node: "n1",
			User: u, Token: 7, Charged: 10, Requests: 1,
		}
		j.prev[p] = seq
		value, err := e.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		j.parcels = append(j.parcels, ledger.Parcel{
			Producer: e.Producer, Partition: p, Seq: e.Seq, Prev: e.Prev, ID: e.ID, Kind: e.Kind, User: u,
			Time: e.Time, At: time.Now(), Value: value,
		})
	}
	poke(j.more)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (j *journal) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended = true
	poke(j.more)
}

func (j *journal) Next(ctx context.Context, max int) ([]ledger.Parcel, error) {
	for {
		j.mu.Lock()
		ready := len(j.parcels)
		if j.limit > 0 {
			ready = min(ready, j.limit)
		}
		if n := min(max, ready-j.next); n > 0 {
			batch := slices.Clone(j.parcels[j.next : j.next+n])
			j.next += n
			j.mu.Unlock()
			return batch, nil
		}
		ended := j.ended && j.next == len(j.parcels)
		j.mu.Unlock()
		if ended {
			return nil, io.EOF
		}
		select {
		case <-j.more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (j *journal) Acked(partition int, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seq <= j.acked[partition] {
		j.wrong = append(j.wrong, fmt.Sprintf("partition %d: acknowledged %d after %d", partition, seq, j.acked[partition]))
	}
	j.acked[partition] = seq
	poke(j.moved)
}

func (j *journal) allAcked() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for p, seq := range j.prev {
		if j.acked[p] != seq {
			return false
		}
	}
	return true
}

// waitFor waits until want, asked under the lock, holds.
func (j *journal) waitFor(t testing.TB, want func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		j.mu.Lock()
		ok := want()
		j.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-j.moved:
		case <-deadline:
			t.Fatalf("waited in vain: acknowledged %v of %v", j.acked, j.prev)
		}
	}
}

// rereading is a journal that can be read again.
type rereading struct {
	*journal
	rereads int
}

func (j *rereading) Reread(_ context.Context, partition int, after uint64, maxBytes int) ([]ledger.Parcel, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rereads++
	var found []ledger.Parcel
	for _, p := range j.parcels { // also what Next has not returned yet
		if p.Partition == partition && p.Seq > after && (len(found) == 0 || maxBytes > 0) {
			found = append(found, p)
			maxBytes -= len(p.Value)
		}
	}
	return found, nil
}

// ship runs Ship in the background and returns a function that waits for its end.
func ship(t testing.TB, ctx context.Context, shipper *eventlog.Shipper, source eventlog.Source) (wait func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- shipper.Ship(ctx, source) }()
	return func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(60 * time.Second):
			t.Fatal("Ship did not return")
			return nil
		}
	}
}

// logged is what the log holds of one producer, as consumers see it.
type logged struct {
	applied    map[int][]uint64 // per partition, sequences in order, duplicates left out
	duplicates int
	holes      int
}

// readLog reads the whole log through the watermark that every sink uses.
func readLog(t testing.TB, client *eventlog.Client, partitions int) logged {
	t.Helper()
	var l logged
	l.applied = map[int][]uint64{}
	for p := range partitions {
		_, end, err := client.Bounds(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		marks := map[ledger.ID]*ledger.Watermark{}
		err = client.Read(t.Context(), p, 0, end, func(records []ledger.Record) error {
			for _, r := range records {
				if r.Err != nil {
					t.Errorf("record %d of partition %d: %v", r.Offset, p, r.Err)
					continue
				}
				mark := marks[r.Event.Producer]
				if mark == nil {
					mark = &ledger.Watermark{}
					marks[r.Event.Producer] = mark
				}
				switch mark.See(r.Event.Seq, r.Event.Prev) {
				case ledger.SightNew:
					l.applied[p] = append(l.applied[p], r.Event.Seq)
				case ledger.SightDuplicate:
					l.duplicates++
				default:
					l.holes++
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// checkShipped asserts that the log holds exactly what j journaled, in order.
func checkShipped(t testing.TB, client *eventlog.Client, j *journal) logged {
	t.Helper()
	want := map[int][]uint64{}
	for _, p := range j.parcels {
		want[p.Partition] = append(want[p.Partition], p.Seq)
	}
	got := readLog(t, client, j.partitions)
	if got.holes > 0 {
		t.Errorf("%d events were overtaken by a later one of their partition", got.holes)
	}
	for p := range j.partitions {
		if !slices.Equal(got.applied[p], want[p]) {
			t.Errorf("partition %d holds %d events in order, want %d", p, len(got.applied[p]), len(want[p]))
		}
	}
	for _, w := range j.wrong {
		t.Error(w)
	}
	return got
}
