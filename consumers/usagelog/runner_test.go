package usagelog_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"ledgerline/consumers"
	sink "ledgerline/consumers/usagelog"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/usagelog"
)

const (
	partitions = 3
	patience   = 2 * time.Minute
)

// TestRunner feeds the sink by the runner from a real log, with rubbish and copies in it. On ClickHouse the server is killed
// and comes back meanwhile.
func TestRunner(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		testRunner(t, usagelog.Config{SQLitePath: filepath.Join(t.TempDir(), "log.db")}, sink.ForSQL, 0, nil)
	})
	t.Run("clickhouse", func(t *testing.T) {
		server := ledgertest.StartClickHouse(t)
		cfg := usagelog.Config{DSN: server.ClickHouseDSN("default")}
		testRunner(t, cfg, sink.ForClickHouse, 50*time.Millisecond, func() {
			server.Kill()
			server.Start()
		})
	})
}

func testRunner(t *testing.T, cfg usagelog.Config, tune consumers.Config, gather time.Duration, disturb func()) {
	ctx := t.Context()
	store, err := usagelog.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	client, err := eventlog.NewClient(eventlog.Config{Brokers: []string{broker.Addr()}, Topic: "events"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.EnsureTopic(ctx, partitions); err != nil {
		t.Fatal(err)
	}
	tune.Name, tune.Group, tune.Partitions, tune.MaxRecords, tune.Interval = "usagelog", "events-usagelog", partitions, 40, 20*time.Millisecond
	tune.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	runner, err := consumers.NewRunner(client, sink.New(sink.Config{Store: store, Gather: gather}), tune)
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- runner.Run(running) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	fold := ledger.NewFold(nil)
	const rounds, perRound = 4, 150
	for round := range rounds {
		for p := range partitions {
			produce(t, broker.Addr(), p, values(t, fold, p, int64(round*perRound), perRound))
		}
		waitFor(t, store, int64((round+1)*perRound-perRound/2)) // in the midst of it
		if disturb != nil {
			disturb()
		}
	}
	waitFor(t, store, rounds*perRound)
	got := map[ledger.Account]ledger.Balance{}
	to := []int64{rounds * perRound, rounds * perRound, rounds * perRound}
	err = store.Totals(ctx, nil, to, func(a ledger.Account, b ledger.Balance) error {
		got[a] = b
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fold.Balances(), got); diff != "" {
		t.Errorf("Totals (-want +got):\n%s", diff)
	}
	for p := range partitions {
		dead, err := store.DeadLetters(ctx, p, -1, 100)
		if err != nil || len(dead) != rounds*perRound/50 {
			t.Errorf("partition %d: %d dead letters, %v; want %d", p, len(dead), err, rounds*perRound/50)
		}
	}
}

// values makes records from offset on: each fiftieth is rubbish, each tenth a copy of the one before.
func values(t *testing.T, fold *ledger.Fold, partition int, offset int64, n int) [][]byte {
	t.Helper()
	var all [][]byte
	for i := range int64(n) {
		at := offset + i
		r := event(t, partition, at)
		r.Event.ID = ledger.ID{1, byte(partition), byte(at >> 8), byte(at)}
		value, err := r.Event.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case at%50 == 49:
			value = []byte("rubbish")
		case at%10 == 9:
			value = all[len(all)-1]
		}
		r = record(partition, at, value)
		fold.Apply(&r)
		all = append(all, value)
	}
	return all
}

func produce(t *testing.T, addr string, partition int, values [][]byte) {
	t.Helper()
	var records []kafka.Record
	for _, v := range values {
		records = append(records, kafka.Record{Value: kafka.NewBytes(v)})
	}
	client := &kafka.Client{Addr: kafka.TCP(addr)}
	got, err := client.Produce(t.Context(), &kafka.ProduceRequest{
		Topic: "events", Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	if err == nil {
		err = got.Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until every partition is at offset or beyond.
func waitFor(t *testing.T, store usagelog.Store, offset int64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; {
		behind := 0
		for p := range partitions {
			if at, err := store.Position(t.Context(), p); err != nil || at.Offset < offset {
				behind++
			}
		}
		switch {
		case behind == 0:
			return
		case time.Now().After(deadline):
			t.Fatalf("%d partitions have not come to offset %d", behind, offset)
		}
		<-tick.C
	}
}
