package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"ledgerline/ledger/eventlog"
)

// A broker in use has run for weeks, and a new JVM interprets: at the 80 requests a second that a node makes, compiling them takes minutes,
// and costs more than they do. So it gets many requests of the same kinds before, as fast as it goes, and what its compilers
// still do afterwards is shown by itself; it counts all the same.
const (
	compilersName = "Kafka's compilers (part of Kafka)"
	warmEvents    = 120_000
	// warmBatch makes some 15,000 requests of them: the JVM compiles to its last tier what was called 5,000 times, level by level.
	warmBatch = 10_000
)

// compilerTime is the CPU time of the threads of a JVM that compile.
func compilerTime(pid int) (sum time.Duration) {
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat")) // the pattern is good
	for _, path := range tasks {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if name := string(raw); strings.Contains(name, "(C1 Compiler") || strings.Contains(name, "(C2 Compiler") {
			cpu, _ := parseStat(name)
			sum += cpu
		}
	}
	return sum
}

// warmBroker writes and reads a topic that is used for nothing else, once for a run.
func (b *bench) warmBroker(ctx context.Context, brokers string) error {
	if b.warmed {
		return nil
	}
	b.warmed = true
	events, err := eventlog.NewClient(eventlog.Config{
		Brokers: strings.Split(brokers, ","), Topic: "bench_warm_" + strconv.FormatInt(time.Now().UnixNano(), 36),
	})
	if err != nil {
		return fmt.Errorf("warm the broker up: %w", err)
	}
	defer events.Close()
	if _, err := events.EnsureTopic(ctx, 1); err != nil {
		return fmt.Errorf("warm the broker up: %w", err)
	}
	const users = 100
	source, err := newBenchEvents(1, users, 1)
	if err != nil {
		return err
	}
	source.left = warmEvents
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		for offset := int64(0); ; {
			batch, err := events.Fetch(reading, 0, offset)
			if err != nil {
				return // what is wrong with the broker the shipper says, too
			}
			offset = batch.Next
		}
	})
	err = eventlog.NewShipper(events, eventlog.ShipperConfig{BatchBytes: warmBatch, Spacing: -1, Logger: discardLogger()}).Ship(ctx, source)
	stop()
	reader.Wait()
	if err != nil {
		return fmt.Errorf("warm the broker up: %w", err)
	}
	return nil
}
