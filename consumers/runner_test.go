package consumers_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"

	"ledgerline/consumers"
	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
)

func TestEveryRecordOnceThroughFailures(t *testing.T) {
	onEveryLog(t, 3, func(t *testing.T, log *testLog) {
		log.fill(500)
		var calls atomic.Int64
		sink := &memorySink{store: newStore()}
		sink.before = func(int, []ledger.Record) error {
			if calls.Add(1)%3 == 1 {
				return errors.New("database away")
			}
			return nil
		}
		sink.after = func(int) error {
			if calls.Add(1)%5 == 1 {
				return errors.New("answer lost after the commit")
			}
			return nil
		}
		_, halt := log.start(sink, func(c *consumers.Config) { c.MaxRecords = 100 })
		sink.waitAt(t, 3, 500)
		log.fill(50)
		sink.waitAt(t, 3, 550)
		halt()
		sink.checkOnce(t, 3, 550)
		if sink.largest > 100 {
			t.Errorf("a flush had %d records, allowed are 100", sink.largest)
		}
	})
}

func TestResumesAtTheSinksOffset(t *testing.T) {
	onEveryLog(t, 2, func(t *testing.T, log *testLog) {
		log.fill(20)
		sink := &memorySink{store: newStore()}
		_, halt := log.start(sink, nil)
		sink.waitAt(t, 2, 20)
		halt()
		// The sink lost its last transactions: what Kafka believes must not matter.
		record, err := log.ReadAt(t.Context(), 0, 9)
		if err != nil {
			t.Fatal(err)
		}
		sink.mu.Lock()
		sink.positions[0] = consumers.Position{Offset: 10, LastEvent: record.Event.ID, LastOffset: 9}
		sink.applied[0] = sink.applied[0][:10]
		sink.mu.Unlock()
		log.fill(1)
		log.start(sink, nil)
		sink.waitAt(t, 2, 21)
		sink.checkOnce(t, 2, 21)
	})
}

// Two consumers share the partitions; each may come and go, and one is not told that it was replaced.
func TestTwoConsumers(t *testing.T) {
	onEveryLog(t, 4, func(t *testing.T, log *testLog) {
		shared := newStore()
		var busy [4]atomic.Int64
		var together atomic.Int64
		newSink := func() *memorySink {
			s := &memorySink{store: shared}
			s.before = func(p int, _ []ledger.Record) error {
				if busy[p].Add(1) > 1 {
					together.Add(1)
				}
				return nil
			}
			s.after = func(p int) error { busy[p].Add(-1); return nil }
			return s
		}
		log.fill(100)
		first, haltFirst := log.start(newSink(), nil)
		shared.waitAt(t, 4, 100)
		second, haltSecond := log.start(newSink(), nil)
		waitStatus(t, second, func(s []consumers.Status) bool { return len(s) == 2 && running(s) })
		waitStatus(t, first, func(s []consumers.Status) bool { return len(s) == 2 && running(s) })
		log.fill(100)
		shared.waitAt(t, 4, 200)
		haltFirst()
		log.fill(100)
		waitStatus(t, second, func(s []consumers.Status) bool { return len(s) == 4 && running(s) })
		shared.waitAt(t, 4, 300)
		haltSecond()
		shared.checkOnce(t, 4, 300)
		if n := together.Load(); n > 0 {
			t.Errorf("%d times two consumers applied to one partition at once", n)
		}
	})
}

func running(all []consumers.Status) bool {
	for _, s := range all {
		if s.State != consumers.StateRunning {
			return false
		}
	}
	return true
}

// Under load a partition is fetched at a pace, not once per record; after a silence a record comes at once.
func TestFetchesKeepAPace(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		const every, records = 200 * time.Millisecond, 100
		sink := &memorySink{store: newStore()}
		reg := prometheus.NewRegistry()
		runner, _ := log.start(sink, func(c *consumers.Config) {
			c.FetchEvery, c.Interval, c.Registerer = every, 4*every, reg
			c.Urgent = func(*ledger.Record) bool { return true }
		})
		waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 1 && running(s) })
		begun := time.Now()
		for range records {
			log.fill(1)
		}
		sink.waitAt(t, 1, records)
		fetches, paced := counter(t, reg, "ledgerline_consumer_fetches_total"), float64(time.Since(begun)/every)+3
		if fetches < 1 || fetches > paced {
			t.Errorf("%v fetches for %d records, want at most %v", fetches, records, paced)
		}
	})
}

// counter sums the series of one counter.
func counter(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// A zombie that applies after another consumer moved the position is fenced and goes on from the new position.
func TestFencedConsumerReadsItsPositionAgain(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		log.fill(30)
		sink := &memorySink{store: newStore()}
		var once sync.Once
		sink.before = func(p int, records []ledger.Record) error {
			once.Do(func() { // meanwhile somebody else applied the first ten
				if err := sink.commit(p, 0, 10, records[:10]); err != nil {
					t.Error(err)
				}
			})
			return nil
		}
		log.start(sink, nil)
		sink.waitAt(t, 1, 30)
		sink.checkOnce(t, 1, 30)
	})
}

func TestStopsAtANewerEvent(t *testing.T) {
	onEveryLog(t, 2, func(t *testing.T, log *testLog) {
		log.fill(5)
		log.write(0, []byte(`{"v":99,"kind":"usage.settled","future":true}`), log.event(0, nil))
		log.write(1, log.event(1, nil))
		sink := &lookingSink{memorySink: memorySink{store: newStore()}}
		registry := prometheus.NewRegistry()
		runner, _ := log.start(sink, func(c *consumers.Config) { c.Registerer = registry; c.LookEvery = 10 * time.Millisecond })
		stopped := waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 2 && s[0].State == consumers.StateStopped })
		if !strings.Contains(stopped[0].Reason, "newer") {
			t.Errorf("reason is %q", stopped[0].Reason)
		}
		sink.waitFor(t, "the other partition", func() bool { return sink.positions[1].Offset == 6 })
		if p := sink.positions[0]; p.Offset != 5 {
			t.Errorf("the stopped partition is at %d, want 5: everything before the newer event and nothing after it", p.Offset)
		}
		if len(sink.dead[0]) != 0 {
			t.Error("a newer event became a dead letter")
		}
		if got := stoppedPartitions(t, registry); got != 1 {
			t.Errorf("metric says %v partitions are stopped, want 1", got)
		}
		looks := sink.looks[0].Load()
		waitStatus(t, runner, func([]consumers.Status) bool { return sink.looks[0].Load() > looks+2 })
	})
}

// lookingSink counts looks.
type lookingSink struct {
	memorySink
	looks [4]atomic.Int64
	fail  atomic.Bool
}

func (s *lookingSink) Look(_ context.Context, partition int) error {
	s.looks[partition].Add(1)
	if s.fail.Load() {
		return errors.New("hot counters away")
	}
	return nil
}

func stoppedPartitions(t *testing.T, registry *prometheus.Registry) (n float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "ledgerline_consumer_stopped" {
			for _, m := range f.GetMetric() {
				n += m.GetGauge().GetValue()
			}
		}
	}
	return n
}

// Looks go on while nothing comes, and their failures keep nothing from being applied.
func TestLooks(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		sink := &lookingSink{memorySink: memorySink{store: newStore()}}
		runner, _ := log.start(sink, func(c *consumers.Config) { c.LookEvery = 5 * time.Millisecond })
		waitStatus(t, runner, func([]consumers.Status) bool { return sink.looks[0].Load() > 10 })
		sink.fail.Store(true)
		log.fill(10)
		sink.waitAt(t, 1, 10)
		looks := sink.looks[0].Load()
		waitStatus(t, runner, func([]consumers.Status) bool { return sink.looks[0].Load() > looks+5 })
	})
}

func TestDamagedRecordsReachTheSinkAsDeadLetters(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		log.write(0, []byte("not an event"), nil, log.event(0, nil), []byte(`{"v":1,"kind":"usage.settled"}`))
		sink := &memorySink{store: newStore()}
		_, halt := log.start(sink, nil)
		sink.waitAt(t, 1, 4)
		halt()
		if got := sink.dead[0]; len(got) != 3 || got[0] != 0 || got[1] != 1 || got[2] != 3 {
			t.Errorf("dead letters at %v, want 0, 1 and 3", got)
		}
		if len(sink.applied[0]) != 1 {
			t.Errorf("applied %v, want one record", sink.applied[0])
		}
	})
}

// A dead letter that has an identity may be the last record applied: it is found again, and the partition goes on.
func TestGoesOnBehindADeadLetter(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		poison := log.event(0, nil)
		poison = bytes.Replace(poison, []byte(`"user":`), []byte(`"user":-`), 1)
		if e, err := ledger.Decode(poison); err == nil || e.ID.IsZero() {
			t.Fatalf("%s decodes: %v", poison, err)
		}
		log.write(0, log.event(0, nil), poison)
		sink := &memorySink{store: newStore()}
		_, halt := log.start(sink, nil)
		sink.waitAt(t, 1, 2)
		halt()
		if got := sink.positions[0]; got.LastOffset != 1 {
			t.Fatalf("position %+v, want the dead letter's", got)
		}
		log.start(sink, nil)
		log.write(0, log.event(0, nil))
		sink.waitAt(t, 1, 3)
	})
}

// A log that is not the one the sink knows stops the partition; the others go on; adopting it revives the partition.
func TestStopsAtAForeignLog(t *testing.T) {
	cases := map[string]consumers.Position{
		"other event":  {Offset: 5, LastEvent: testID(9, 9), LastOffset: 4},
		"beyond end":   {Offset: 1000},
		"record ahead": {Offset: 5, LastEvent: testID(9, 9), LastOffset: 700},
	}
	for name, position := range cases {
		t.Run(name, func(t *testing.T) {
			onEveryLog(t, 2, func(t *testing.T, log *testLog) {
				log.fill(10)
				sink := &memorySink{store: newStore()}
				sink.positions[0] = position
				runner, _ := log.start(sink, nil)
				s := waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 2 && s[0].State == consumers.StateStopped })
				if !strings.Contains(s[0].Reason, "ledgerline consume -adopt-log -projection test -partition 0") {
					t.Errorf("the alarm does not name the command: %q", s[0].Reason)
				}
				sink.waitFor(t, "the other partition", func() bool { return sink.positions[1].Offset == 10 })
				if len(sink.applied[0]) > 0 {
					t.Error("records of a foreign log were applied")
				}
			})
		})
	}
}

func TestUrgentRecordsDoNotWait(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		sink := &memorySink{store: newStore()}
		runner, _ := log.start(sink, func(c *consumers.Config) {
			c.Interval = time.Hour
			c.Urgent = func(r *ledger.Record) bool { return r.Err == nil && r.Event.Kind == ledger.KindCreditGranted }
		})
		waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 1 && running(s) })
		log.fill(3)
		log.write(0, log.event(0, func(e *ledger.Event) { e.Kind, e.Charged, e.Requests, e.Granted = ledger.KindCreditGranted, 0, 0, 5 }))
		sink.waitAt(t, 1, 4)
	})
}

// Whoever knows that a credit comes need not wait for the pace of fetches.
func TestHurry(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		sink := &memorySink{store: newStore()}
		runner, _ := log.start(sink, func(c *consumers.Config) {
			c.FetchEvery, c.Interval = time.Hour, time.Hour
			c.Urgent = func(*ledger.Record) bool { return true }
		})
		waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 1 && running(s) })
		log.fill(1)
		sink.waitAt(t, 1, 1) // the next fetch is an hour away
		for n := int64(2); n <= 4; n++ {
			runner.Hurry() // sometimes while the fetcher rests, sometimes before
			log.fill(1)
			sink.waitAt(t, 1, n)
		}
	})
}

// Records that wait for company are not lost when the partition is given away.
func TestFlushesOnStop(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		sink := &memorySink{store: newStore()}
		log.fill(3)
		runner, halt := log.start(sink, func(c *consumers.Config) { c.Interval = time.Hour })
		waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 1 && !s[0].Oldest.IsZero() })
		halt()
		sink.checkOnce(t, 1, 3)
	})
}

// The broker goes away for a while: consuming goes on where it was.
func TestGoesOnAfterTheBrokerWasAway(t *testing.T) {
	dir := t.TempDir()
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	addr := broker.Addr()
	log := newLog(t, "events", 3, addr)
	log.fill(50)
	sink := &memorySink{store: newStore()}
	runner, halt := log.start(sink, nil)
	sink.waitAt(t, 3, 50)
	broker.Close()
	waitStatus(t, runner, func(s []consumers.Status) bool { return !running(s) || len(s) == 0 })
	_, port, _ := net.SplitHostPort(addr)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	if broker, err = eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: dir, Port: n}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	log.direct.Transport.(*kafka.Transport).CloseIdleConnections()
	log.fill(50)
	sink.waitAt(t, 3, 100)
	halt()
	sink.checkOnce(t, 3, 100)
}

// A partition that is adopted goes on without a restart.
func TestAdoptedPartitionGoesOn(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, log *testLog) {
		log.fill(10)
		sink := &memorySink{store: newStore()}
		sink.positions[0] = consumers.Position{Offset: 99}
		runner, _ := log.start(sink, func(c *consumers.Config) { c.RecheckEvery = 50 * time.Millisecond })
		waitStatus(t, runner, func(s []consumers.Status) bool { return len(s) == 1 && s[0].State == consumers.StateStopped })
		sink.mu.Lock()
		sink.positions[0] = consumers.Position{}
		sink.mu.Unlock()
		sink.waitAt(t, 1, 10)
		waitStatus(t, runner, running)
		sink.checkOnce(t, 1, 10)
	})
}

func TestRunnerConfiguration(t *testing.T) {
	for name, cfg := range map[string]consumers.Config{
		"no name":       {Group: "g", Partitions: 1},
		"no group":      {Name: "n", Partitions: 1},
		"no partitions": {Name: "n", Group: "g"},
	} {
		if _, err := consumers.NewRunner(nil, &memorySink{}, cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// BenchmarkRunner feeds a sink that does nothing, from the embedded broker, whose own work is in the figure.
func BenchmarkRunner(b *testing.B) {
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	const perPartition, partitions = 20_000, 4
	log := newLog(b, "events", partitions, broker.Addr())
	for range perPartition / 1000 {
		log.fill(1000)
	}
	for b.Loop() {
		log.group = ledgertest.UniqueName("group")
		sink := &memorySink{store: newStore()}
		_, halt := log.start(sink, func(c *consumers.Config) { c.Logger = nil })
		sink.waitAt(b, partitions, perPartition)
		halt()
	}
	b.ReportMetric(float64(b.N)*perPartition*partitions/b.Elapsed().Seconds(), "events/s")
}
