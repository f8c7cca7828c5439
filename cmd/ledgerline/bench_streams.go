package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"ledgerline/relay/relaytest"
)

const (
	// streamPause is between two chunks of a stream that is held open: two a second.
	streamPause = 500 * time.Millisecond
	// streamRamp is how long the streams take to begin, so that the load is open streams and not a storm of connections.
	streamRamp = 5 * time.Second
	// latestChunk is the longest silence of a stream that still has a chunk a second, give or take the clock of a busy machine.
	latestChunk = 2 * time.Second
)

// streamed is what became of one stream.
type streamed struct {
	chunks int
	gap    time.Duration // the longest between two reads
	err    error
}

// streams measures the bare proxy and the relays with many streams open at once.
func (b *bench) streams(ctx context.Context, targets []target) error {
	proxy := 0.0
	for i := range targets {
		t := &targets[i]
		if t.child == nil {
			continue
		}
		each, err := b.holdOpen(ctx, t)
		if err != nil && (t.name != proxyName || each == 0) { // the proxy's failures are told, and are not ours
			return fmt.Errorf("measure %s of %s: %w", measureStreams, t.name, err)
		}
		if t.name == proxyName {
			proxy = each
		} else if proxy > 0 {
			fmt.Fprintf(b.out, "  %.2f × the CPU of the %s\n", each/proxy, proxyName)
		}
	}
	return nil
}

// holdOpen holds many streams open at once, each with two chunks a second, and reports what they need and whether each came whole
// and in time. It returns the CPU of the target's process, µs a chunk.
func (b *bench) holdOpen(ctx context.Context, t *target) (each float64, err error) {
	tokens := int64((b.o.hold + streamRamp) / streamPause)
	s := relaytest.DefaultScript()
	s.Prompt, s.Completion, s.Delay = 40, tokens, streamPause
	body, err := chatBody(true, tokens, s.String())
	if err != nil {
		return 0, err
	}
	if err := settle(ctx, t); err != nil {
		return 0, err
	}
	before, _ := memoryOf(t.child.pid())
	client := &http.Client{Transport: demoTransport(b.o.streams)}
	defer client.CloseIdleConnections()
	all := make([]streamed, b.o.streams)
	began := time.Now()
	var clients sync.WaitGroup
	for i := range all {
		clients.Go(func() {
			select {
			case <-time.After(streamRamp * time.Duration(i) / time.Duration(len(all))):
				all[i] = readStream(ctx, client, t, body)
			case <-ctx.Done():
				all[i].err = context.Cause(ctx)
			}
		})
	}
	cpu := cpuOf([]int{t.child.pid()})
	b.signal(t, beginProfile)
	open, file := b.highest(ctx, t, streamRamp, b.o.hold)
	b.signal(t, endProfile)
	clients.Wait()
	cpu = cpuOf([]int{t.child.pid()}) - cpu
	chunks := 0
	for i := range all {
		chunks += all[i].chunks
	}
	each = float64(cpu.Microseconds()) / float64(max(chunks, 1))
	return each, b.printStreams(t, all, tokens, float64(chunks)/time.Since(began).Seconds(), each, [3]int64{before, open, file})
}

// highest is the most memory that the process has from ramp until ramp + hold from now: its own, and the pages of its program's file.
func (b *bench) highest(ctx context.Context, t *target, ramp, hold time.Duration) (own, file int64) {
	from := time.After(ramp)
	until := time.After(ramp + hold)
	tick := time.NewTicker(idleLook)
	defer tick.Stop()
	for counts := false; ; {
		select {
		case <-from:
			counts = true
		case <-tick.C:
			if now, mapped := memoryOf(t.child.pid()); counts {
				own, file = max(own, now), max(file, mapped)
			}
		case <-until:
			return own, file
		case <-ctx.Done():
			return own, file
		}
	}
}

func readStream(ctx context.Context, client *http.Client, t *target, body []byte) (s streamed) {
	req, err := benchPost(ctx, t, body)
	if err != nil {
		return streamed{err: err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return streamed{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return streamed{err: fmt.Errorf("status %d: %s", resp.StatusCode, text)}
	}
	done := false
	last := time.Now()
	for lines := bufio.NewScanner(resp.Body); ; {
		if !lines.Scan() {
			if s.err = lines.Err(); s.err == nil && !done {
				s.err = errors.New("the stream ended without [DONE]")
			}
			return s
		}
		now := time.Now()
		s.gap = max(s.gap, now.Sub(last))
		last = now
		switch line := lines.Bytes(); {
		case bytes.HasPrefix(line, []byte("data: [DONE]")):
			done = true
		case bytes.Contains(line, []byte(`"content":"`)) && !bytes.Contains(line, []byte(`"content":""`)):
			s.chunks++
		}
	}
}

func (b *bench) printStreams(t *target, all []streamed, tokens int64, perSecond, each float64, memory [3]int64) error {
	var failed, late int
	var gap time.Duration
	var why error
	for i := range all {
		s := &all[i]
		gap = max(gap, s.gap)
		switch {
		case s.err != nil:
			failed, why = failed+1, s.err
		case int64(s.chunks) != tokens:
			failed, why = failed+1, fmt.Errorf("%d of %d chunks came", s.chunks, tokens)
		case s.gap > latestChunk:
			late++
		}
	}
	fmt.Fprintf(b.out, "\n%s: %d streams of %d chunks each, all open for %s: %d failed, %d with a silence above %s; longest silence %s\n",
		t.name, len(all), tokens, b.o.hold, failed, late, latestChunk, gap.Round(time.Millisecond))
	before, open, file := memory[0], memory[1], memory[2]
	fmt.Fprintf(b.out, "  %.0f chunks/s, CPU of its process %.1f µs/chunk; memory %d MB before, at most %d MB while all were open (%d KB a stream), "+
		"beside %d MB of the program's file that the system keeps in its cache\n",
		perSecond, each, before>>20, open>>20,
		max(0, open-before)/int64(len(all))>>10, file>>20)
	if failed > 0 {
		return fmt.Errorf("%d of %d streams failed, one of them: %w", failed, len(all), why)
	}
	return nil
}
