package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The p-values are those of tables of the Mann-Whitney U test.
func TestChance(t *testing.T) {
	for _, c := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{1, 2, 3}, []float64{4, 5, 6}, 0.1},
		{[]float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 2.0 / 252},
		{[]float64{10, 9, 8, 7, 6}, []float64{5, 4, 3, 2, 1}, 2.0 / 252},
		{[]float64{1, 2, 4}, []float64{3, 5, 6}, 0.2},
		{[]float64{1, 3}, []float64{2, 4}, 2.0 / 3},
		{[]float64{1}, []float64{2}, 1},
	} {
		if got := chance(c.a, c.b); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("chance(%v, %v) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func TestWriteFigures(t *testing.T) {
	row := func(kind, target, process string) benchRow {
		return benchRow{
			target: target, kind: kind, perSec: []float64{100}, p50: []time.Duration{1}, all: []float64{7},
			cpu: map[string][]float64{process: {7}}, rss: map[string]int64{process: 3 << 20}, ratio: []float64{1.5}, ratioAll: []float64{2.5},
		}
	}
	rows := []benchRow{
		row(kindPlain, "reverse proxy", "proxy"), row(kindPlain, "base, embedded", relayName), row(kindPlain, "relay, embedded", relayName),
		row(kindStream, "reverse proxy", "proxy"), row(kindStream, "base, embedded", relayName), row(kindStream, "relay, embedded", relayName),
		row(kindPaced, "reverse proxy", "proxy"), row(kindPaced, "base, embedded", relayName), row(kindPaced, "relay, embedded", relayName),
	}
	b := &bench{o: benchOptions{readme: filepath.Join(t.TempDir(), "README.md"), concurrency: 32, runs: 1, answerBytes: 1024, chunks: 256, pause: 10 * time.Millisecond, paced: 128}}
	if err := os.WriteFile(b.o.readme, []byte("before\n"+figuresBegin+"old\n"+figuresEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second time replaces the first
		if err := b.writeFigures(rows); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(b.o.readme)
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if !strings.HasPrefix(text, "before\n"+figuresBegin) || !strings.HasSuffix(text, figuresEnd+"after\n") || strings.Contains(text, "old") {
		t.Errorf("the rest of the file changed, or the old table stayed:\n%s", text)
	}
	if want := "| relay, embedded | 100 (100–100) | 7 (7–7) | 1.50 (1.50–1.50) | 7.00 (7.00–7.00) | 1.50 (1.50–1.50) | 7.0 (7.0–7.0) | 1.50 (1.50–1.50) | 3 MB |\n"; !strings.Contains(text, want) {
		t.Errorf("no line %q in\n%s", want, text)
	}
	if strings.Contains(text, "base") {
		t.Errorf("the base build is in the table:\n%s", text)
	}
	if err := os.WriteFile(b.o.readme, []byte("no marks\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.writeFigures(rows); err == nil {
		t.Error("a file without marks was written")
	}
}
