package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"ledgerline/relay/relaytest"
)

// benchRow is what was measured of one target: one value a run.
type benchRow struct {
	name     string
	perSec   []float64
	p50, p99 []time.Duration
	cpu      map[string][]float64 // CPU µs per request (or chunk), by process
	rss      map[string]int64
	failed   int64
	chunks   int
}

// measure loads a target: a warm-up, then the runs.
func (b *bench) measure(ctx context.Context, t *target, stream bool) (benchRow, error) {
	body, err := b.body(stream)
	if err != nil {
		return benchRow{}, err
	}
	row := benchRow{name: t.name, cpu: map[string][]float64{}, rss: map[string]int64{}, chunks: 1}
	if stream {
		row.chunks = b.o.chunks
	}
	if _, err := b.load(ctx, t, body, benchWarmup); err != nil {
		return benchRow{}, err
	}
	for range b.o.runs {
		before := map[string]time.Duration{}
		for name, pid := range t.pids {
			before[name], _ = procStat(pid)
		}
		begun := time.Now()
		r, err := b.load(ctx, t, body, b.o.duration)
		if err != nil {
			return benchRow{}, err
		}
		took := time.Since(begun)
		if len(r.latencies) == 0 {
			return benchRow{}, errors.New("no request succeeded")
		}
		row.failed += r.failed
		n := float64(len(r.latencies))
		for name, pid := range t.pids {
			cpu, rss := procStat(pid)
			row.cpu[name] = append(row.cpu[name], float64((cpu-before[name]).Microseconds())/n/float64(row.chunks))
			row.rss[name] = max(row.rss[name], rss)
		}
		slices.Sort(r.latencies)
		row.perSec = append(row.perSec, n/took.Seconds())
		row.p50 = append(row.p50, r.latencies[len(r.latencies)/2])
		row.p99 = append(row.p99, r.latencies[len(r.latencies)*99/100])
	}
	return row, nil
}

func (b *bench) body(stream bool) ([]byte, error) {
	const wordBytes = 5 // of the mock's words, with their space; about
	completion := int64(max(1, b.o.answerBytes/wordBytes))
	if stream {
		completion = int64(b.o.chunks)
	}
	s := relaytest.DefaultScript()
	s.Prompt, s.Completion = 40, completion
	return json.Marshal(map[string]any{
		"model": demoModel, "stream": stream, "max_tokens": completion,
		"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("measure ", 25)}},
		"metadata": map[string]any{"mock": s.String()},
	})
}

type loadResult struct {
	latencies []time.Duration
	failed    int64
}

// load keeps concurrency clients busy for a while.
func (b *bench) load(ctx context.Context, t *target, body []byte, duration time.Duration) (loadResult, error) {
	client := &http.Client{Transport: demoTransport(b.o.concurrency)}
	defer client.CloseIdleConnections()
	end := time.Now().Add(duration)
	var failed atomic.Int64
	var mu sync.Mutex
	var all []time.Duration
	var lastErr error
	var clients sync.WaitGroup
	for range b.o.concurrency {
		clients.Go(func() {
			var mine []time.Duration
			for time.Now().Before(end) && ctx.Err() == nil {
				begun := time.Now()
				if err := benchRequest(ctx, client, t, body); err != nil {
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

func benchRequest(ctx context.Context, client *http.Client, t *target, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+t.key)
	req.Header.Set("Content-Type", "application/json")
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

func median[T int64 | float64 | time.Duration](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// print writes the table of one kind of request: medians, and the spread of the runs in brackets.
func (b *bench) print(rows []benchRow, stream bool) {
	what, unit := fmt.Sprintf("plain answers of %d bytes", b.o.answerBytes), "CPU µs/request"
	if stream {
		what, unit = fmt.Sprintf("streams of %d chunks", b.o.chunks), "CPU µs/chunk"
	}
	fmt.Fprintf(b.out, "\n%s, %d clients, medians of %d runs of %s\n", what, b.o.concurrency, b.o.runs, b.o.duration)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "target\trequests/s\tp50\tp99\tfailed\t%s (min–max) and memory by process\n", unit)
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%d\t", r.name, median(r.perSec), median(r.p50).Round(10*time.Microsecond), median(r.p99).Round(10*time.Microsecond), r.failed)
		var total float64
		names := slices.Sorted(maps.Keys(r.cpu))
		for _, name := range names {
			m := median(r.cpu[name])
			total += m
			fmt.Fprintf(w, "%s %.1f (%.1f–%.1f) %d MB  ", name, m, slices.Min(r.cpu[name]), slices.Max(r.cpu[name]), r.rss[name]>>20)
		}
		if len(names) > 1 {
			fmt.Fprintf(w, "all %.1f", total)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // the writer reports its own errors
}
