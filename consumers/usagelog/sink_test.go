package usagelog_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/consumers"
	sink "ledgerline/consumers/usagelog"
	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// event returns the record of a request at an offset.
func event(t testing.TB, partition int, offset int64) ledger.Record {
	t.Helper()
	e := ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: ledger.ID{1, byte(partition), byte(offset)},
		Producer: ledger.ID{9}, Seq: uint64(offset) + 1, Prev: uint64(offset), Time: 1_764_374_400_000,
		User: int64(partition) + 1, Token: 5, Channel: 6, Charged: 10, Requests: 1, Request: &ledger.Request{ID: fmt.Sprint(partition, offset)},
	}
	value, err := e.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return record(partition, offset, value)
}

func record(partition int, offset int64, value []byte) ledger.Record {
	r := ledger.Record{Partition: partition, Offset: offset, Value: value}
	r.Event, r.Err = ledger.Decode(value)
	return r
}

func TestSinkStoresRowsDeadLettersAndPosition(t *testing.T) {
	ctx := t.Context()
	store, err := usagelog.Open(ctx, usagelog.Config{SQLitePath: filepath.Join(t.TempDir(), "log.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	s := sink.New(sink.Config{Store: store})
	apply := func(from, to int64, records ...ledger.Record) error { return s.Apply(ctx, 2, from, to, records) }

	if err := apply(0, 1, event(t, 2, 0)); !errors.Is(err, consumers.ErrFenced) {
		t.Errorf("Apply before Position: %v, want ErrFenced", err)
	}
	if _, err := s.Position(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := apply(0, 4, event(t, 2, 0), record(2, 1, []byte("rubbish")), event(t, 2, 2), record(2, 3, nil)); err != nil {
		t.Fatal(err)
	}
	if err := apply(0, 1, event(t, 2, 0)); !errors.Is(err, consumers.ErrFenced) {
		t.Errorf("Apply from an old position: %v, want ErrFenced", err)
	}
	newer := record(2, 4, []byte(`{"v":99,"kind":"usage.settled"}`))
	if err := apply(4, 5, newer); !errors.Is(err, ledger.ErrNewer) {
		t.Errorf("Apply of a newer event: %v, want ErrNewer", err)
	}
	at, err := s.Position(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(consumers.Position{Offset: 4, LastEvent: ledger.ID{1, 2, 2}, LastOffset: 2}, at); diff != "" {
		t.Errorf("position (-want +got):\n%s", diff)
	}
	if err := apply(4, 5, record(2, 4, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if at, err = s.Position(ctx, 2); err != nil || at.Offset != 5 || at.LastOffset != 2 {
		t.Errorf("position after dead letters alone = %+v, %v", at, err)
	}
	dead, err := store.DeadLetters(ctx, 2, -1, 10)
	if err != nil {
		t.Fatal(err)
	}
	var offsets []int64
	for _, d := range dead {
		offsets = append(offsets, d.Offset)
		if d.Reason == "" {
			t.Errorf("dead letter %d has no reason", d.Offset)
		}
	}
	if diff := cmp.Diff([]int64{1, 3, 4}, offsets); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	list, err := store.List(ctx, usagelog.Filter{}, usagelog.Page{Limit: 10})
	if err != nil || list.Total != 2 {
		t.Errorf("List = %+v, %v; want 2 rows", list, err)
	}
}

// memory is a usage log that remembers positions, and says what was appended together.
type memory struct {
	mu     sync.Mutex
	groups [][]int // partitions of each Append
	at     map[int]usagelog.Position
	refuse func(partitions []int) error
	hold   chan struct{} // if set, Append waits for it
}

func (m *memory) Append(_ context.Context, batches ...usagelog.Batch) error {
	if m.hold != nil {
		<-m.hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var partitions []int
	for _, b := range batches {
		partitions = append(partitions, b.Partition)
	}
	slices.Sort(partitions)
	m.groups = append(m.groups, partitions)
	if m.refuse != nil {
		if err := m.refuse(partitions); err != nil {
			return err
		}
	}
	for _, b := range batches {
		m.at[b.Partition] = b.Position
	}
	return nil
}

func (m *memory) Position(_ context.Context, partition int) (usagelog.Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at[partition], nil
}

func (m *memory) AdoptLog(context.Context, int, int64) error { return nil }

// known returns a sink that has read the positions of that many partitions.
func known(t *testing.T, m *memory, partitions int, cfg sink.Config) *sink.Sink {
	t.Helper()
	m.at = map[int]usagelog.Position{}
	cfg.Store = m
	s := sink.New(cfg)
	for p := range partitions {
		if _, err := s.Position(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestSinkGathersPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		s := known(t, m, 3, sink.Config{Gather: time.Second})
		start := time.Now()
		var group sync.WaitGroup
		for p := range 3 {
			group.Go(func() {
				time.Sleep(time.Duration(p) * 300 * time.Millisecond)
				if err := s.Apply(t.Context(), p, 0, 1, []ledger.Record{event(t, p, 0)}); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want the second that the first one waited", took)
		}
		if diff := cmp.Diff([][]int{{0, 1, 2}}, m.groups); diff != "" {
			t.Errorf("groups (-want +got):\n%s", diff)
		}
	})
}

func TestSinkStopsGatheringWhenThereIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		s := known(t, m, 2, sink.Config{Gather: time.Hour, GatherRows: 3})
		start := time.Now()
		var group sync.WaitGroup
		for p := range 2 {
			group.Go(func() {
				time.Sleep(time.Duration(p) * time.Second)
				if err := s.Apply(t.Context(), p, 0, 2, []ledger.Record{event(t, p, 0), event(t, p, 1)}); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want 1s", took)
		}
	})
}

// A batch that the store refuses must not hold the other partitions up.
func TestSinkKeepsTroubleToItsPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("refused")
		m := &memory{refuse: func(partitions []int) error {
			if slices.Contains(partitions, 1) {
				return bad
			}
			return nil
		}}
		s := known(t, m, 3, sink.Config{Gather: time.Second})
		var group sync.WaitGroup
		for p := range 3 {
			group.Go(func() {
				err := s.Apply(t.Context(), p, 0, 1, []ledger.Record{event(t, p, 0)})
				if want := map[int]error{1: bad}[p]; !errors.Is(err, want) {
					t.Errorf("partition %d: %v, want %v", p, err, want)
				}
			})
		}
		group.Wait()
		if m.at[0].Offset != 1 || m.at[1].Offset != 0 || m.at[2].Offset != 1 {
			t.Errorf("positions = %+v", m.at)
		}
		m.refuse = nil
		if err := s.Apply(t.Context(), 1, 0, 1, []ledger.Record{event(t, 1, 0)}); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// A partition that is given away while others are being stored takes its batch back.
func TestSinkWithdraws(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{hold: make(chan struct{})}
		s := known(t, m, 3, sink.Config{})
		var group sync.WaitGroup
		group.Go(func() {
			if err := s.Apply(t.Context(), 0, 0, 1, []ledger.Record{event(t, 0, 0)}); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // partition 0 is being stored
		ctx, cancel := context.WithCancel(t.Context())
		group.Go(func() {
			if err := s.Apply(ctx, 1, 0, 1, []ledger.Record{event(t, 1, 0)}); !errors.Is(err, context.Canceled) {
				t.Errorf("given away: %v, want context.Canceled", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(m.hold)
		group.Wait()
		if err := s.Apply(t.Context(), 2, 0, 1, []ledger.Record{event(t, 2, 0)}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([][]int{{0}, {2}}, m.groups); diff != "" {
			t.Errorf("groups (-want +got):\n%s", diff)
		}
	})
}
