package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// benchRow is what was measured of one target: one value a run.
type benchRow struct {
	target     string
	kind       string
	clients    int
	perSec     []float64
	p50, p99   []time.Duration
	cpu        map[string][]float64 // CPU µs per request (or chunk), by process
	all        []float64            // the sum of it
	rss        map[string]int64
	ratio      []float64 // of the proxy's or the relay's own process to the proxy, run by run; empty without a proxy
	ratioAll   []float64 // the same for all processes of the target
	throughput []float64 // requests/s as a fraction of the proxy's
	failed     int64
}

// compare fills in the ratios to the proxy, run by run: what disturbed one run disturbed both.
func compare(rows []benchRow) {
	i := slices.IndexFunc(rows, func(r benchRow) bool { return r.cpu["proxy"] != nil })
	if i < 0 {
		return
	}
	proxy := &rows[i]
	for k := range rows {
		r := &rows[k]
		own := r.cpu["relay"]
		for run := range r.perSec {
			r.throughput = append(r.throughput, r.perSec[run]/proxy.perSec[run])
			if base := proxy.all[run]; own != nil && base > 0 {
				r.ratio = append(r.ratio, own[run]/base)
				r.ratioAll = append(r.ratioAll, r.all[run]/base)
			}
		}
	}
}

func median[T int64 | float64 | time.Duration](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// print writes the table of one kind of request: medians, and the spread of the runs in brackets.
func (b *bench) print(rows []benchRow, kind string) {
	what, unit := b.o.describe(kind)
	fmt.Fprintf(b.out, "\n%s, %d clients, medians of %d runs of %s (least–most)\n", what, rows[0].clients, b.o.runs, b.o.duration)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "target\trequests/s\tp50\tp99\tfailed\tCPU µs/%s\t× proxy\tall processes\t× proxy\tmemory\t\n", unit)
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%d\t", r.target, median(r.perSec), shortTime(median(r.p50)), shortTime(median(r.p99)), r.failed)
		own := r.cpu["relay"]
		if own == nil {
			own = r.cpu["proxy"]
		}
		fmt.Fprintf(w, "%s\t%s\t", spread(own, 1), spread(r.ratio, 2))
		if len(r.cpu) > 1 {
			fmt.Fprintf(w, "%s\t%s\t", spread(r.all, 1), spread(r.ratioAll, 2))
		} else {
			fmt.Fprint(w, "\t\t")
		}
		var memory []string
		for _, name := range slices.Sorted(maps.Keys(r.rss)) {
			memory = append(memory, fmt.Sprintf("%s %d MB", name, r.rss[name]>>20))
		}
		fmt.Fprintf(w, "%s\t\n", strings.Join(memory, ", "))
	}
	_ = w.Flush() // the writer reports its own errors
	for i := range rows {
		b.printEngines(&rows[i], unit)
	}
}

// printEngines tells where the CPU of a target of several processes goes.
func (b *bench) printEngines(r *benchRow, unit string) {
	if len(r.cpu) < 2 {
		return
	}
	fmt.Fprintf(b.out, "%s, CPU µs/%s by process:", r.target, unit)
	for _, name := range slices.Sorted(maps.Keys(r.cpu)) {
		fmt.Fprintf(b.out, " %s %s", name, spread(r.cpu[name], 1))
	}
	fmt.Fprintln(b.out)
}

func shortTime(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// spread shows a median with the least and the most.
func spread(v []float64, digits int) string {
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, median(v), digits, slices.Min(v), digits, slices.Max(v))
}

// benchReport is the same for programs. CPU is in µs per plain request or per chunk of a stream, times in µs, memory in bytes.
type benchReport struct {
	Concurrency int         `json:"concurrency"`
	AnswerBytes int         `json:"answer_bytes"`
	Chunks      int         `json:"chunks"`
	Runs        int         `json:"runs"`
	Seconds     float64     `json:"seconds"`
	Rows        []reportRow `json:"rows"`
}

type reportRow struct {
	Kind        string            `json:"kind"`
	Target      string            `json:"target"`
	PerSecond   figure            `json:"requests_per_second"`
	P50         figure            `json:"p50_us"`
	P99         figure            `json:"p99_us"`
	Failed      int64             `json:"failed"`
	CPU         map[string]figure `json:"cpu_us"`
	All         figure            `json:"cpu_us_all"`
	Ratio       figure            `json:"relay_to_proxy,omitzero"`
	RatioAll    figure            `json:"all_to_proxy,omitzero"`
	Throughput  figure            `json:"throughput_to_proxy,omitzero"`
	MemoryBytes map[string]int64  `json:"memory_bytes"`
}

// figure is a median with its spread.
type figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func figureOf(v []float64) figure {
	if len(v) == 0 {
		return figure{}
	}
	return figure{median(v), slices.Min(v), slices.Max(v)}
}

func micros(v []time.Duration) figure {
	out := make([]float64, len(v))
	for i, d := range v {
		out[i] = float64(d.Nanoseconds()) / 1000
	}
	return figureOf(out)
}

func (p *benchReport) add(rows []benchRow) {
	for i := range rows {
		r := &rows[i]
		row := reportRow{
			Kind: r.kind, Target: r.target, PerSecond: figureOf(r.perSec), P50: micros(r.p50), P99: micros(r.p99), Failed: r.failed,
			CPU: map[string]figure{}, All: figureOf(r.all), Ratio: figureOf(r.ratio), RatioAll: figureOf(r.ratioAll),
			Throughput: figureOf(r.throughput), MemoryBytes: r.rss,
		}
		for name, v := range r.cpu {
			row.CPU[name] = figureOf(v)
		}
		p.Rows = append(p.Rows, row)
	}
}

func (b *bench) printJSON(p *benchReport) error {
	p.Concurrency, p.AnswerBytes, p.Chunks, p.Runs, p.Seconds = b.o.concurrency, b.o.answerBytes, b.o.chunks, b.o.runs, b.o.duration.Seconds()
	enc := json.NewEncoder(b.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}
