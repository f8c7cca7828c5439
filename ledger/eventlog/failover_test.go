package eventlog_test

import (
	"testing"
	"time"

	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

// shipSteadily journals events all the time until the returned function is called, which waits for the acknowledgement of all.
func shipSteadily(t *testing.T, client *eventlog.Client, j *journal) (finish func()) {
	t.Helper()
	wait := ship(t, t.Context(), eventlog.NewShipper(client, eventlog.ShipperConfig{Logger: testLogger(t)}), j)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				j.add(t, 5, 0)
			}
		}
	}()
	return func() {
		t.Helper()
		close(quit)
		<-done
		j.end()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// some waits until n more events are acknowledged in every partition.
func (j *journal) some(t *testing.T, n uint64) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for p := range j.partitions {
		for start := j.ackedIn(p); j.ackedIn(p) < start+n; {
			select {
			case <-j.moved:
			case <-deadline:
				t.Fatalf("partition %d stands still at %d", p, j.ackedIn(p))
			}
		}
	}
}

// kill -9 of the only broker, and its restart, twice.
func TestShipThroughABrokerKill(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Kafka")
	}
	// Fsync at every record: without replicas, a killed machine would lose what one broker had acknowledged. A killed process
	// loses nothing, but its recovery is then exercised too.
	broker := ledgertest.StartKafka(t, "log.flush.interval.messages=1")
	client := newClient(t, "events", broker.Addr)
	ensure(t, client, 4)
	j := newJournal(1, 4)
	finish := shipSteadily(t, client, j)
	for range 2 {
		j.some(t, 100)
		broker.Kill()
		broker.Start()
	}
	j.some(t, 100)
	finish()
	got := checkShipped(t, client, j)
	t.Logf("%d events, %d duplicates", len(j.parcels), got.duplicates)
}

// The leader of partitions dies and others take over; nothing that was acknowledged is lost and the order holds.
func TestShipThroughALeaderChange(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Kafka")
	}
	cluster := ledgertest.StartKafkaCluster(t)
	client := newClient(t, "events", cluster[0].Addr, cluster[1].Addr, cluster[2].Addr)
	warnings, err := client.EnsureTopic(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Errorf("a sound topic is warned of: %q", warnings)
	}
	if s := topicSettings(t, client); s["min.insync.replicas"] != "2" {
		t.Errorf("min.insync.replicas is %s, want 2", s["min.insync.replicas"])
	}
	j := newJournal(1, 6)
	finish := shipSteadily(t, client, j)
	j.some(t, 100)
	start := time.Now()
	cluster[1].Kill()
	j.some(t, 20)
	t.Logf("all partitions moved on %v after the kill", time.Since(start))
	j.some(t, 100)
	cluster[1].Start()
	j.some(t, 100)
	cluster[2].Freeze() // alive by its sockets, but silent
	start = time.Now()
	j.some(t, 20)
	t.Logf("all partitions moved on %v after the freeze", time.Since(start))
	cluster[2].Thaw()
	j.some(t, 100)
	finish()
	got := checkShipped(t, client, j)
	t.Logf("%d events, %d duplicates", len(j.parcels), got.duplicates)
}
