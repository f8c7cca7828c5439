package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// printCompared compares each relay of this build with the same one of the base build, run by run, as benchstat does with
// benchmarks: the ratio of the medians, the spread of the runs' ratios, and how likely chance alone does the like.
func (b *bench) printCompared(rows []benchRow, kind string) {
	if b.o.base == "" {
		return
	}
	_, unit := b.o.describe(kind)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nthis build ÷ base\tratio of medians (least–most by run)\tchance\t\n")
	for i := range rows {
		r := &rows[i]
		place, ok := strings.CutPrefix(r.target, relayName+", ")
		base := slices.IndexFunc(rows, func(o benchRow) bool { return o.target == baseName+", "+place })
		if !ok || base < 0 {
			continue
		}
		o := &rows[base]
		line := func(what string, mine, theirs []float64) {
			ratios := make([]float64, len(mine))
			for run := range mine {
				ratios[run] = mine[run] / theirs[run]
			}
			p := chance(mine, theirs)
			verdict := fmt.Sprintf("p=%.3f", p)
			if p >= 0.05 {
				verdict += " ~" // the same, as far as these runs can tell
			}
			fmt.Fprintf(w, "%s, %s\t%.3f (%.3f–%.3f)\t%s\t\n", place, what, median(mine)/median(theirs), slices.Min(ratios), slices.Max(ratios), verdict)
		}
		line("relay CPU/"+unit, r.cpu["relay"], o.cpu["relay"])
		if len(r.cpu) > 1 {
			line("all CPU/"+unit, r.all, o.all)
		}
		line("requests/s", r.perSec, o.perSec)
		line("p50", seconds64(r.p50), seconds64(o.p50))
	}
	_ = w.Flush() // the writer reports its own errors
}

func seconds64(v []time.Duration) []float64 {
	out := make([]float64, len(v))
	for i, d := range v {
		out[i] = d.Seconds()
	}
	return out
}

// chance is the two-sided p-value of the Mann-Whitney U test, exact and without ties: how often two samples of one distribution are
// at least as far apart as these are.
func chance(a, b []float64) float64 {
	u := 0
	for _, x := range a {
		for _, y := range b {
			if x > y {
				u++
			}
		}
	}
	u = min(u, len(a)*len(b)-u)
	total, tail := 0.0, 0.0
	for k, n := range uCounts(len(a), len(b)) {
		total += n
		if k <= u {
			tail += n
		}
	}
	return min(1, 2*tail/total)
}

// uCounts returns, for samples of n and m, in how many of their orders U is 0, 1, 2, …: the coefficients of a Gaussian binomial.
func uCounts(n, m int) []float64 {
	row := make([][]float64, m+1) // of samples of i and 0, 1, … m
	for j := range row {
		row[j] = []float64{1}
	}
	for i := 1; i <= n; i++ {
		for j := 1; j <= m; j++ {
			counts := make([]float64, i*j+1)
			for k, c := range row[j] { // the largest value is of the first sample: it is above all j
				counts[k+j] += c
			}
			for k, c := range row[j-1] {
				counts[k] += c
			}
			row[j] = counts
		}
	}
	return row[m]
}

// The README's table of figures stands between these lines.
const (
	figuresBegin = "<!-- figures: written by ledgerline bench -readme -->\n"
	figuresEnd   = "<!-- end of figures -->\n"
)

// writeFigures writes the README's table of figures anew.
func (b *bench) writeFigures(rows []benchRow) error {
	return rewrite(b.o.readme, figuresBegin, b.figures(rows), figuresEnd)
}

// rewrite puts text in place of what stands between two lines of a file.
func rewrite(path, begin, text, end string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	head, rest, ok := bytes.Cut(old, []byte(begin))
	_, tail, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		return fmt.Errorf("write figures: %s has no lines %s and %s", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	if err := os.WriteFile(path, slices.Concat(head, []byte(begin+text+end), tail), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

// figures is the table: one line per target, plain requests and streams beside each other.
func (b *bench) figures(rows []benchRow) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d cores, %d clients, medians of %d runs of %s with least–most in brackets; × is to the reverse proxy of the same run.\n\n",
		runtime.NumCPU(), b.o.concurrency, b.o.runs, b.o.duration)
	streams, _ := b.o.describe(kindStream)
	slower, _ := b.o.describe(kindPaced)
	fmt.Fprintf(&out, "| | plain answers of %d bytes: requests/s | CPU µs/request | × | %s: CPU µs/chunk | × | %s (%d clients): CPU µs/chunk | × | memory |\n",
		b.o.answerBytes, streams, slower, b.o.paced)
	out.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for i := range rows {
		plain := &rows[i]
		stream, paced := rowOf(rows, kindStream, plain.target), rowOf(rows, kindPaced, plain.target)
		if plain.kind != kindPlain || stream == nil || paced == nil || plain.target == directName || strings.HasPrefix(plain.target, baseName+", ") {
			continue
		}
		own := relayName
		if plain.cpu[own] == nil {
			own = "proxy"
		}
		name := plain.target
		if len(plain.cpu) > 1 {
			name += ": the relay's process"
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s | %s | %s | %d MB |\n", name, spread(plain.perSec, 0), spread(plain.cpu[own], 0), spread(plain.ratio, 2),
			spread(stream.cpu[own], 2), spread(stream.ratio, 2), spread(paced.cpu[own], 1), spread(paced.ratio, 2),
			max(plain.rss[own], stream.rss[own], paced.rss[own])>>20)
		if len(plain.cpu) > 1 {
			fmt.Fprintf(&out, "| %s: everything | | %s | %s | %s | %s | %s | %s | |\n", plain.target, spread(plain.all, 0), spread(plain.ratioAll, 2),
				spread(stream.all, 2), spread(stream.ratioAll, 2), spread(paced.all, 1), spread(paced.ratioAll, 2))
		}
	}
	return out.String()
}

// rowOf finds what was measured of a target; nil: nothing.
func rowOf(rows []benchRow, kind, target string) *benchRow {
	i := slices.IndexFunc(rows, func(r benchRow) bool { return r.kind == kind && r.target == target })
	if i < 0 {
		return nil
	}
	return &rows[i]
}
