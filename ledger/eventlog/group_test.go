package eventlog_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

// owners notes who owns which partition.
type owners struct {
	mu      sync.Mutex
	owned   map[int]string
	clashes int
	changed chan struct{}
}

// member runs one member of a group until the returned function is called.
func (o *owners) member(t *testing.T, client *eventlog.Client, group, name string, partitions int) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	g := eventlog.NewGroup(client, eventlog.GroupConfig{ID: group, Partitions: partitions, Logger: testLogger(t)})
	go func() {
		done <- g.Run(ctx, func(ctx context.Context, p int) {
			if p >= partitions {
				t.Errorf("partition %d was assigned, the ledger has %d", p, partitions)
			}
			o.mu.Lock()
			if o.owned[p] != "" {
				o.clashes++
			}
			o.owned[p] = name
			o.mu.Unlock()
			poke(o.changed)
			g.Committed(p, int64(100+p))
			<-ctx.Done()
			o.mu.Lock()
			delete(o.owned, p)
			o.mu.Unlock()
			poke(o.changed)
		})
	}()
	var once sync.Once
	leave = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(leave)
	return leave
}

// await waits until the owners of partitions 0, 1, … are, sorted, those given.
func (o *owners) await(t *testing.T, want ...string) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		o.mu.Lock()
		var got []string
		for _, name := range o.owned {
			got = append(got, name)
		}
		o.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-o.changed:
		case <-deadline:
			t.Fatalf("owners are %v, want %v", got, want)
		}
	}
}

func TestGroupSharesPartitions(t *testing.T) {
	onEveryLog(t, 5, func(t *testing.T, client *eventlog.Client) {
		o := &owners{owned: map[int]string{}, changed: make(chan struct{}, 1)}
		group := ledgertest.UniqueName("group")
		const p = 4 // the fifth partition is not the ledger's
		leaveA := o.member(t, client, group, "a", p)
		o.await(t, "a", "a", "a", "a")
		leaveB := o.member(t, client, group, "b", p)
		o.awaitBoth(t)
		leaveA()
		o.await(t, "b", "b", "b", "b")
		leaveB()
		o.await(t)
		if o.clashes > 0 {
			t.Errorf("%d times a partition had two owners", o.clashes)
		}
		res, err := direct(t, client).OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{client.Topic(): {0, 1}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range res.Topics[client.Topic()] {
			if r.CommittedOffset != int64(100+r.Partition) {
				t.Errorf("partition %d: committed %d, want %d", r.Partition, r.CommittedOffset, 100+r.Partition)
			}
		}
	})
}

// awaitBoth waits until all four partitions are owned and both members own some.
func (o *owners) awaitBoth(t *testing.T) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		o.mu.Lock()
		names := map[string]int{}
		for _, name := range o.owned {
			names[name]++
		}
		o.mu.Unlock()
		if names["a"]+names["b"] == 4 && names["a"] > 0 && names["b"] > 0 {
			return
		}
		select {
		case <-o.changed:
		case <-deadline:
			t.Fatalf("owners are %v, want both", names)
		}
	}
}

// A group that was formed while the topic was missing shares it as soon as it is there: a cluster may come back without its
// data.
func TestGroupWaitsForTheTopic(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		const p = 4
		late, err := eventlog.NewClient(eventlog.Config{Brokers: client.Brokers(), Topic: ledgertest.UniqueName("late")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(late.Close)
		o := &owners{owned: map[int]string{}, changed: make(chan struct{}, 1)}
		group := ledgertest.UniqueName("group")
		leaveA := o.member(t, late, group, "a", p)
		leaveB := o.member(t, late, group, "b", p)
		deadline := time.Now().Add(60 * time.Second)
		for formed := false; !formed; {
			res, err := direct(t, client).DescribeGroups(t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
			formed = err == nil && len(res.Groups) == 1 && res.Groups[0].GroupState == "Stable" && len(res.Groups[0].Members) == 2
			if !formed && time.Now().After(deadline) {
				t.Fatalf("the group did not form: %+v, %v", res, err)
			}
		}
		if _, err := late.EnsureTopic(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		o.awaitBoth(t)
		leaveA()
		leaveB()
	})
}

// A broker that is not there yet is waited for.
func TestGroupWaitsForTheBroker(t *testing.T) {
	dir := t.TempDir()
	broker := startBrokerProcess(t, dir, 0)
	port := broker.port(t)
	client := newClient(t, "events", broker.addr)
	ensure(t, client, 2)
	broker.kill()
	o := &owners{owned: map[int]string{}, changed: make(chan struct{}, 1)}
	o.member(t, client, "g", "a", 2)
	broker = startBrokerProcess(t, dir, port)
	o.await(t, "a", "a")
	broker.kill() // the generation ends, and a new one begins when it is back
	o.await(t)
	startBrokerProcess(t, dir, port)
	o.await(t, "a", "a")
}
