package consumers_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/consumers"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

const patience = 60 * time.Second

// onEveryLog runs a test on the embedded broker and, unless -short, on Apache Kafka, each time with a new topic.
func onEveryLog(t *testing.T, partitions int, test func(t *testing.T, log *testLog)) {
	t.Run("embedded", func(t *testing.T) {
		broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(broker.Close)
		test(t, newLog(t, "events", partitions, broker.Addr()))
	})
	t.Run("kafka", func(t *testing.T) {
		brokers := ledgertest.Kafka(t)
		test(t, newLog(t, ledgertest.UniqueName("events"), partitions, brokers...))
	})
}

// testLog is a log with a producer of its own.
type testLog struct {
	*eventlog.Client
	t          testing.TB
	partitions int
	group      string
	seq        uint64
	prev       map[int]uint64
	direct     *kafka.Client
}

func newLog(t testing.TB, topic string, partitions int, brokers ...string) *testLog {
	t.Helper()
	client, err := eventlog.NewClient(eventlog.Config{Brokers: brokers, Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if _, err := client.EnsureTopic(t.Context(), partitions); err != nil {
		t.Fatal(err)
	}
	return &testLog{
		Client: client, t: t, partitions: partitions, group: ledgertest.UniqueName("group"),
		prev: map[int]uint64{}, direct: &kafka.Client{Addr: kafka.TCP(brokers...), Transport: &kafka.Transport{}, Timeout: 10 * time.Second},
	}
}

func testID(a, b uint64) ledger.ID {
	var id ledger.ID
	binary.BigEndian.PutUint64(id[:8], a)
	binary.BigEndian.PutUint64(id[8:], b)
	return id
}

// event makes the next event, of kind usage.settled unless change makes it something else.
func (l *testLog) event(partition int, change func(*ledger.Event)) []byte {
	l.t.Helper()
	l.seq++
	e := ledger.Event{
		Version: 1, Kind: ledger.KindUsageSettled, ID: testID(1, l.seq), Producer: testID(2, 1), Seq: l.seq, Prev: l.prev[partition],
		Time: time.Now().UnixMilli(), User: 1, Token: 1, Charged: 1, Requests: 1,
	}
	l.prev[partition] = l.seq
	if change != nil {
		change(&e)
	}
	value, err := e.Encode(nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return value
}

// write appends values to a partition. A leader that is still being made is waited for.
func (l *testLog) write(partition int, values ...[]byte) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		records := make([]kafka.Record, len(values))
		for i, v := range values {
			records[i].Value = kafka.NewBytes(v)
		}
		res, err := l.direct.Produce(l.t.Context(), &kafka.ProduceRequest{
			Topic: l.Topic(), Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
		})
		if err == nil {
			err = res.Error
		}
		if err == nil {
			return
		}
		if !errors.Is(err, kafka.NotLeaderForPartition) || time.Now().After(deadline) {
			l.t.Fatal(err)
		}
	}
}

// fill appends n usage events to every partition.
func (l *testLog) fill(n int) {
	l.t.Helper()
	for p := range l.partitions {
		values := make([][]byte, n)
		for i := range values {
			values[i] = l.event(p, nil)
		}
		l.write(p, values...)
	}
}

// start runs a runner until the returned function is called; that function waits for its end.
func (l *testLog) start(sink consumers.Sink, change func(*consumers.Config)) (*consumers.Runner, func()) {
	l.t.Helper()
	cfg := consumers.Config{
		Name: "test", Group: l.group, Partitions: l.partitions, Interval: 20 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
	}
	if change != nil {
		change(&cfg)
	}
	runner, err := consumers.NewRunner(l.Client, sink, cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	var once sync.Once
	halt := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					l.t.Errorf("Run: %v", err)
				}
			case <-time.After(patience):
				l.t.Error("Run did not return")
			}
		})
	}
	l.t.Cleanup(halt)
	return runner, halt
}

// store is what two sinks of one projection share: positions and effect, changed together under one lock, as in a database.
type store struct {
	mu        sync.Mutex
	positions map[int]consumers.Position
	applied   map[int][]int64 // offsets in the order applied
	dead      map[int][]int64
	flushes   int
	largest   int
	changed   chan struct{}
}

func newStore() *store {
	return &store{positions: map[int]consumers.Position{}, applied: map[int][]int64{}, dead: map[int][]int64{}, changed: make(chan struct{}, 1)}
}

// memorySink is one consumer's view of a store. Its hooks make it fail.
type memorySink struct {
	*store
	before func(partition int, records []ledger.Record) error // called before a flush, outside the lock
	after  func(partition int) error                          // called after the commit: an answer that gets lost
}

func (s *memorySink) Position(_ context.Context, partition int) (consumers.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positions[partition], nil
}

func (s *memorySink) Apply(ctx context.Context, partition int, from, to int64, records []ledger.Record) error {
	if s.before != nil {
		if err := s.before(partition, records); err != nil {
			return err
		}
	}
	if err := s.commit(partition, from, to, records); err != nil {
		return err
	}
	if s.after != nil {
		return s.after(partition)
	}
	return ctx.Err()
}

func (s *store) commit(partition int, from, to int64, records []ledger.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.positions[partition]
	if p.Offset != from {
		return fmt.Errorf("partition %d is at %d, not %d: %w", partition, p.Offset, from, consumers.ErrFenced)
	}
	p.Offset = to
	for _, r := range records {
		if r.Offset < from || r.Offset >= to {
			return fmt.Errorf("record %d outside [%d, %d)", r.Offset, from, to)
		}
		if !r.Event.ID.IsZero() { // as sqlstore does: what cannot be applied may have an identity all the same
			p.LastEvent, p.LastOffset = r.Event.ID, r.Offset
		}
		if r.Err != nil {
			s.dead[partition] = append(s.dead[partition], r.Offset)
			continue
		}
		s.applied[partition] = append(s.applied[partition], r.Offset)
	}
	s.positions[partition] = p
	s.flushes++
	s.largest = max(s.largest, len(records))
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// waitFor waits until the store satisfies want, asked under its lock.
func (s *store) waitFor(t testing.TB, what string, want func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		ok := want()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.changed:
		case <-deadline:
			t.Fatalf("waited in vain for %s: positions %v", what, s.positions)
		}
	}
}

// waitAt waits until every partition has come to offset.
func (s *store) waitAt(t testing.TB, partitions int, offset int64) {
	t.Helper()
	s.waitFor(t, fmt.Sprintf("offset %d", offset), func() bool {
		for p := range partitions {
			if s.positions[p].Offset < offset {
				return false
			}
		}
		return true
	})
}

// checkOnce asserts that offsets 0…n-1 of every partition were applied once, in order.
func (s *store) checkOnce(t testing.TB, partitions int, n int64) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	want := make([]int64, n)
	for i := range want {
		want[i] = int64(i)
	}
	for p := range partitions {
		if !slices.Equal(s.applied[p], want) {
			t.Errorf("partition %d: applied %d records, want each of %d once and in order", p, len(s.applied[p]), n)
		}
	}
}

// waitStatus polls the runner's status until want holds for it.
func waitStatus(t testing.TB, runner *consumers.Runner, want func([]consumers.Status) bool) []consumers.Status {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(deadline) {
		if s := runner.Status(); want(s) {
			return s
		}
		<-tick.C
	}
	t.Fatalf("waited in vain, status is %+v", runner.Status())
	return nil
}
