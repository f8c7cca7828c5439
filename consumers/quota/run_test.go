package quota_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/consumers"
	"ledgerline/consumers/quota"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
)

const patience = 60 * time.Second

// The whole consumer, run by the runner, on the engines of an embedded node and on those of a cluster.
func TestRuns(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
		must(t, err)
		t.Cleanup(broker.Close)
		counters := hold.NewLocal()
		testRuns(t, newRig(t, "", counters, counters.Flush, nil), "events", broker.Addr())
	})
	t.Run("cluster", func(t *testing.T) {
		brokers, topic := ledgertest.KafkaTopic(t, 1)
		server := ledgertest.StartRedis(t)
		counters, err := hold.NewRedis(hold.RedisConfig{URL: server.RedisURL()})
		must(t, err)
		t.Cleanup(func() { _ = counters.Close() })
		testRuns(t, newRig(t, ledgertest.MySQL(t), counters, func() { flushAll(t, server.RedisURL()) }, nil), topic, brokers...)
	})
}

func testRuns(t *testing.T, r *rig, topic string, brokers ...string) {
	client, err := eventlog.NewClient(eventlog.Config{Brokers: brokers, Topic: topic})
	must(t, err)
	t.Cleanup(client.Close)
	_, err = client.EnsureTopic(t.Context(), 1)
	must(t, err)
	n := r.node(1)
	n.put(credit(1, 1000))
	n.put(limit(1, 1, 500))
	ship(t, brokers, topic, r.log, 0)

	halt := r.runs(client, topic)
	r.await("the first epoch", func() bool { r.reports(n); return r.state().Open })
	r.await("the credits", func() bool { return r.state().Done == r.log.end() })
	r.load(theUser, theToken)
	shipped := r.log.end()
	for range 100 {
		n.put(usage(1, 1, 2, nil))
	}
	n.seq -= 10 // the journal's last segment is shipped again
	for range 10 {
		n.put(usage(1, 1, 2, nil))
	}
	ship(t, brokers, topic, r.log, shipped)
	r.await("the usage", func() bool { return r.state().Done == r.log.end() })
	r.inStep(nil, theUser, theToken)
	epoch := r.state().Epoch

	r.lose()
	r.await("a new epoch", func() bool { r.reports(n); st := r.state(); return st.Epoch > epoch && st.Open })
	halt()
	shipped = r.log.end()
	n.put(usage(1, 1, 7, nil)) // nobody consumes
	ship(t, brokers, topic, r.log, shipped)
	r.runs(client, topic)
	r.await("what came meanwhile", func() bool { return r.state().Done == r.log.end() })
	r.load(theUser, theToken)
	r.inStep(nil, theUser, theToken)
}

// reports does what a node does in a rebuilding epoch.
func (r *rig) reports(nodes ...*producer) {
	if st := r.state(); st.Present && !st.Foreign && !st.Open {
		r.report(nodes...)
	}
}

// runs runs a consumer until the returned function is called.
func (r *rig) runs(client *eventlog.Client, group string) (halt func()) {
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil))
	runner, err := consumers.NewRunner(client, quota.New(quota.Config{Store: r.store, Counters: r.counters, Log: client, Logger: log}), consumers.Config{
		Name: "quota", Group: group, Partitions: 1, Interval: 20 * time.Millisecond, LookEvery: 20 * time.Millisecond, Logger: log,
	})
	must(r.t, err)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	var once sync.Once
	halt = func() { once.Do(func() { cancel(); must(r.t, <-done) }) }
	r.t.Cleanup(halt)
	return halt
}

func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %s: %+v", what, r.state())
		}
	}
}

// ship writes what the log holds from an offset on to the broker.
func ship(t *testing.T, brokers []string, topic string, log *memoryLog, from int64) {
	t.Helper()
	client := &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 10 * time.Second}
	var records []kafka.Record
	for _, r := range log.records[from:] {
		records = append(records, kafka.Record{Key: kafka.NewBytes(ledger.OrderingKey(1)), Value: kafka.NewBytes(r.Value)})
	}
	for deadline := time.Now().Add(patience); ; {
		res, err := client.Produce(t.Context(), &kafka.ProduceRequest{Topic: topic, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...)})
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
