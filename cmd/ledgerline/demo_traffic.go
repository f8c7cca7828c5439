package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/tidwall/gjson"
	"golang.org/x/time/rate"

	"ledgerline/ledger"
	"ledgerline/relay/relaytest"
)

// demoRetries bounds how often a client of the demo comes back after a 429 or 503.
const demoRetries = 50

// traffic counts what the clients of the demo saw.
type traffic struct {
	sent, ok, failed, tokens, streamed, inFlight atomic.Int64

	mu       sync.Mutex
	requests map[string]int64 // finished, by user name
	problems map[string]int   // failures by status and code; bounded by the relay's own codes
}

// job is one request of the trace.
type demoJob struct {
	n    int
	row  relaytest.TraceRow
	user *demoUser
}

// traffic relays the trace and shows progress.
func (d *demo) traffic(ctx context.Context) (*traffic, error) {
	t := &traffic{requests: map[string]int64{}, problems: map[string]int{}}
	client := &http.Client{Transport: demoTransport(d.o.concurrency)}
	defer client.CloseIdleConnections()
	jobs := make(chan demoJob)
	var clients sync.WaitGroup
	for range d.o.concurrency {
		clients.Go(func() {
			for j := range jobs {
				d.request(ctx, client, t, j)
			}
		})
	}
	progress, stopProgress := context.WithCancel(ctx)
	var shown sync.WaitGroup
	shown.Go(func() { d.progress(progress, t) })
	err := d.feed(ctx, jobs)
	close(jobs)
	clients.Wait()
	stopProgress()
	shown.Wait()
	d.line(ctx, t)
	return t, errors.Join(err, ctx.Err())
}

// feed hands out the requests of the trace, at the asked rate.
func (d *demo) feed(ctx context.Context, jobs chan<- demoJob) error {
	limit := rate.Inf
	if d.o.rate > 0 {
		limit = rate.Limit(d.o.rate)
	}
	pace := rate.NewLimiter(limit, 1)
	for n := 0; n < d.o.requests; {
		before := n
		for row, err := range d.rows() {
			if err != nil {
				return usagef("demo: -trace: %v", err)
			}
			if n == d.o.requests || pace.Wait(ctx) != nil {
				break
			}
			select {
			case jobs <- demoJob{n, row, &d.users[n%len(d.users)]}:
			case <-ctx.Done():
				return nil // interrupted; the caller looks at ctx
			}
			n++
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // interrupted; the caller looks at ctx
		}
		if n == before {
			return usagef("demo: -trace holds no requests")
		}
	}
	return nil
}

// request plays one client: a prompt of at least as many bytes as the trace says tokens, and a bound on the answer. A
// client that is told to come back does.
func (d *demo) request(ctx context.Context, client *http.Client, t *traffic, j demoJob) {
	stream := j.n%2 == 0
	body, err := json.Marshal(map[string]any{
		"model": demoModel, "stream": stream, "max_tokens": max(1, j.row.Generated), "user": j.user.name,
		"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("real ", int(j.row.Context)/5+1)}},
		"metadata": map[string]any{"mock": relaytest.Script{
			User: j.user.name, Prompt: max(1, j.row.Context), Completion: max(1, j.row.Generated), Usage: relaytest.UsageFinal, Finish: "stop",
			Cut: -1, Error: -1, Silence: -1, Garbage: -1, Burst: 1,
		}.String()},
	})
	if err != nil {
		panic("demo: a request of our own does not encode: " + err.Error())
	}
	t.sent.Add(1)
	t.inFlight.Add(1)
	defer t.inFlight.Add(-1)
	for range demoRetries {
		again, problem := d.once(ctx, client, t, j.user, body)
		if problem == "" {
			t.ok.Add(1)
			t.mu.Lock()
			t.requests[j.user.name]++
			t.mu.Unlock()
			return
		}
		if !again || ctx.Err() != nil {
			t.failed.Add(1)
			t.mu.Lock()
			t.problems[problem]++
			t.mu.Unlock()
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	t.failed.Add(1)
}

func (d *demo) once(ctx context.Context, client *http.Client, t *traffic, u *demoUser, body []byte) (again bool, problem string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url()+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return false, err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+u.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return false, "no answer"
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, "answer broken off"
	}
	if resp.StatusCode != http.StatusOK {
		code := gjson.GetBytes(answer, "error.code").String()
		return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable,
			strconv.Itoa(resp.StatusCode) + " " + code
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		t.streamed.Add(1)
		if !bytes.HasSuffix(answer, []byte("data: [DONE]\n\n")) {
			return false, "stream without [DONE]"
		}
		t.tokens.Add(int64(bytes.Count(answer, []byte("data: "))))
		return false, ""
	}
	t.tokens.Add(gjson.GetBytes(answer, "usage.total_tokens").Int())
	return false, ""
}

func (d *demo) progress(ctx context.Context, t *traffic) {
	ticker := time.NewTicker(progressEach)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			d.line(ctx, t)
		}
	}
}

// line shows where the show is.
func (d *demo) line(ctx context.Context, t *traffic) {
	lag := "?"
	if n, err := d.node.lag(context.WithoutCancel(ctx)); err == nil {
		lag = strconv.FormatInt(n, 10)
	}
	report := d.upstream.Report()
	fmt.Fprintf(d.out, "requests %d/%d  streams %d  tokens served %d  quota charged %d  in flight %d  lag %s  errors %d\n",
		t.ok.Load(), d.o.requests, t.streamed.Load(), report.Prompt+report.Completion, d.node.relay.Charged(), t.inFlight.Load(), lag, t.failed.Load())
}

// table prints balances beside what the mock upstream recorded, priced here, and reports whether they agree.
func (d *demo) table(ctx context.Context, t *traffic) (bool, error) {
	quote, err := d.node.catalog.Routes().Book.Quote(demoModel, "default", "default")
	if err != nil {
		return false, err
	}
	type served struct{ requests, quota int64 }
	oracle := map[string]served{}
	records, err := relaytest.ReadOracle(d.upstream.OraclePath())
	if err != nil {
		return false, err
	}
	for _, r := range records {
		if r.Status != http.StatusOK || !r.Finished {
			continue
		}
		s := oracle[r.User]
		s.requests++
		s.quota += quote.Price(ledger.Usage{Prompt: r.Prompt, Completion: r.Completion})
		oracle[r.User] = s
	}
	agree := t.failed.Load() == 0
	fmt.Fprintln(d.out)
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "user\tgranted\tcharged\tremaining\trequests\t| upstream served\tpriced\t")
	for _, u := range d.users {
		account := ledger.Account{Kind: ledger.UserAccount, ID: u.id}
		_, balances, err := d.node.db.Balances(ctx, ledger.Partition(u.id, d.node.stores.log.Partitions), []ledger.Account{account})
		if err != nil {
			return false, err
		}
		b, o := balances[account], oracle[u.name]
		mark := ""
		if b.Charged != o.quota || b.Requests != o.requests || b.Requests != t.requests[u.name] {
			agree, mark = false, "DIFFERS"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t| %d\t%d\t%s\n", u.name, b.Granted, b.Charged, b.Left(), b.Requests, o.requests, o.quota, mark)
	}
	if err := w.Flush(); err != nil {
		return false, fmt.Errorf("print: %w", err)
	}
	for problem, n := range t.problems {
		fmt.Fprintf(d.out, "%d requests failed: %s\n", n, problem)
	}
	return agree, nil
}
