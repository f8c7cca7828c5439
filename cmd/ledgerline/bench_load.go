package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Idle means that a process used at most idleTicks in one idleLook: what it still had to do for the load is done.
const (
	idleLook    = 250 * time.Millisecond
	idleTicks   = 1
	minSettling = 1500 * time.Millisecond // the intervals at which the consumers write
	maxSettling = 10 * time.Second
	idleWindow  = 2 * time.Second
)

// measureAll warms every target up, then loads them in turn, so that what else the machine does meets all of them.
func (b *bench) measureAll(ctx context.Context, targets []target, kind string) ([]benchRow, error) {
	work, err := b.workload(kind)
	if err != nil {
		return nil, err
	}
	rows := make([]benchRow, len(targets))
	for i := range targets {
		rows[i] = benchRow{target: targets[i].name, kind: kind, clients: work.clients, cpu: map[string][]float64{}, rss: map[string]int64{}}
		if _, err := b.load(ctx, &targets[i], &work, benchWarmup); err != nil {
			return nil, fmt.Errorf("warm %s up: %w", targets[i].name, err)
		}
		if err := settle(ctx, &targets[i]); err != nil {
			return nil, err
		}
		if err := idle(ctx, &targets[i]); err != nil {
			return nil, err
		}
		b.signal(&targets[i], beginProfile)
	}
	for range b.o.runs {
		for i := range targets {
			if err := b.measure(ctx, &targets[i], &rows[i], &work); err != nil {
				return nil, fmt.Errorf("measure %s: %w", targets[i].name, err)
			}
		}
	}
	for i := range targets {
		b.signal(&targets[i], endProfile)
	}
	compare(rows)
	return rows, nil
}

// signal begins and ends the profiles of a proxy or relay that makes any.
func (b *bench) signal(t *target, s os.Signal) {
	if b.o.profile != "" && t.child != nil {
		_ = t.child.cmd.Process.Signal(s) // a process that has ended fails the run elsewhere
	}
}

// measure loads a target once. The CPU that its processes need afterwards, for what they do in batches, counts too, without
// what they always use.
func (b *bench) measure(ctx context.Context, t *target, row *benchRow, w *workload) error {
	before := t.work()
	begun := time.Now()
	r, err := b.load(ctx, t, w, b.o.duration)
	if err != nil {
		return err
	}
	took, loaded := time.Since(begun), time.Now()
	if len(r.latencies) == 0 {
		return errors.New("no request succeeded")
	}
	if err := settle(ctx, t); err != nil {
		return err
	}
	row.failed += r.failed
	units := float64(len(r.latencies))
	if inChunks(row.kind) {
		units *= float64(b.o.chunks)
	}
	all, settling := 0.0, time.Since(loaded).Seconds()
	for name, cpu := range t.work() {
		each := (float64((cpu - before[name]).Microseconds()) - 1e6*t.idle[name]*settling) / units
		if name != compilersName {
			all += each
		}
		row.cpu[name] = append(row.cpu[name], each)
	}
	for name, pid := range t.pids {
		_, rss := procStat(pid)
		row.rss[name] = max(row.rss[name], rss)
	}
	slices.Sort(r.latencies)
	row.all = append(row.all, all)
	row.perSec = append(row.perSec, float64(len(r.latencies))/took.Seconds())
	row.p50 = append(row.p50, r.latencies[len(r.latencies)/2])
	row.p99 = append(row.p99, r.latencies[len(r.latencies)*99/100])
	return nil
}

// idle learns what the target's processes use when nothing happens.
func idle(ctx context.Context, t *target) error {
	t.idle = map[string]float64{}
	if t.pids["relay"] == 0 {
		return nil
	}
	before := t.work()
	begun := time.Now()
	select {
	case <-time.After(idleWindow):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for name, now := range t.work() {
		t.idle[name] = (now - before[name]).Seconds() / time.Since(begun).Seconds()
	}
	return nil
}

// work is the CPU time of the target's processes so far. What the broker's compilers have of it is told, too: see warmBroker.
func (t *target) work() map[string]time.Duration {
	all := map[string]time.Duration{}
	for name, pid := range t.pids {
		all[name], _ = procStat(pid)
		if name == engineNames["KAFKA_BROKERS"] {
			all[compilersName] = compilerTime(pid)
		}
	}
	return all
}

// settle waits until the target's own processes have nothing left to do.
func settle(ctx context.Context, t *target) error {
	if t.pids["relay"] == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxSettling)
	defer cancel()
	begun := time.Now()
	last := cpuOf(t.own())
	for {
		select {
		case <-time.After(idleLook):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil // a busy machine, or a node that is behind: what it uses later is not counted
			}
			return context.Cause(ctx)
		}
		now := cpuOf(t.own())
		if time.Since(begun) >= minSettling && now-last <= idleTicks*clockTick {
			return nil
		}
		last = now
	}
}

type loadResult struct {
	latencies []time.Duration
	failed    int64
}

// load keeps clients busy for a while. What they have begun when it is over is awaited.
func (b *bench) load(ctx context.Context, t *target, w *workload, duration time.Duration) (loadResult, error) {
	client := &http.Client{Transport: demoTransport(w.clients)}
	defer client.CloseIdleConnections()
	end := time.Now().Add(duration)
	var failed atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var lastErr error
	var clients sync.WaitGroup
	for i := range w.clients {
		clients.Go(func() {
			time.Sleep(w.stagger * time.Duration(i) / time.Duration(w.clients))
			var mine []time.Duration
			for time.Now().Before(end) && ctx.Err() == nil {
				begun := time.Now()
				if err := benchRequest(ctx, client, t, w.body); err != nil {
					failed.Add(1)
					mu.Lock()
					lastErr = err
					mu.Unlock()
					continue
				}
				mine = append(mine, time.Since(begun))
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	clients.Wait()
	if len(all) == 0 && lastErr != nil {
		return loadResult{}, lastErr
	}
	return loadResult{all, failed.Load()}, ctx.Err()
}

func benchPost(ctx context.Context, t *target, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+t.bearer())
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

func benchRequest(ctx context.Context, client *http.Client, t *target, body []byte) error {
	req, err := benchPost(ctx, t, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
