package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// A paced source hands out what is due, and each event once, in an order that consumers find no hole in.
func TestBenchEvents(t *testing.T) {
	s, err := newBenchEvents(3, 50, 2)
	if err != nil {
		t.Fatal(err)
	}
	s.left, s.perSecond = 300, 3000
	begun, marks, n := time.Now(), map[int]*ledger.Watermark{}, 0
	for {
		parcels, err := s.Next(t.Context(), 64)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parcels {
			if marks[p.Partition] == nil {
				marks[p.Partition] = &ledger.Watermark{}
			}
			e, err := ledger.Decode(p.Value)
			if err != nil || marks[p.Partition].See(e.Seq, e.Prev) != ledger.SightNew {
				t.Fatalf("event %d after %d in partition %d: %v", e.Seq, e.Prev, p.Partition, err)
			}
			n++
		}
	}
	if took := time.Since(begun); n != 300 || took < 90*time.Millisecond {
		t.Errorf("%d events in %v, want 300 in 100 ms", n, took)
	}
}

// What the quota consumer writes grows with active accounts, not with events, by the counters that bench
// consumers prints.
func TestWritesGrowWithAccounts(t *testing.T) {
	if testing.Short() {
		t.Skip("needs engines")
	}
	brokers, topic := ledgertest.KafkaTopic(t, 12)
	env := map[string]string{
		"DATA_DIR": t.TempDir(), "KAFKA_BROKERS": strings.Join(brokers, ","), "KAFKA_TOPIC": topic,
		"SQL_DSN": ledgertest.MySQLDatabase(t, ledgertest.MySQL(t)), "REDIS_CONN_STRING": ledgertest.Redis(t),
		"LOG_SQL_DSN": ledgertest.ClickHouseDatabase(t, ledgertest.ClickHouse(t)),
	}
	var out bytes.Buffer
	b := &bench{dir: t.TempDir(), getenv: func(string) string { return "" }, out: &out, errs: io.Discard}
	o := consumersOptions{users: 20, active: 20, rate: 40, window: 3 * time.Second}
	n, err := b.consumersNode(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	n.close()
	if err := b.seedSQL(t.Context(), env["SQL_DSN"], o.users, o.users); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.writes(ctx, env, &o); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	var accounts []float64
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		if _, err := strconv.Atoi(f[0]); err != nil {
			continue
		}
		written, err := strconv.ParseFloat(f[3], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		accounts = append(accounts, written)
	}
	if len(accounts) != 2 || accounts[0] == 0 || accounts[1] > 3*accounts[0] {
		t.Errorf("accounts written at one rate and at ten times that: %v", accounts)
	}
}
