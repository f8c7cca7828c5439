package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A stack is the cost of the innermost step in it, whatever library does the work.
func TestReadTraces(t *testing.T) {
	const printed = `File: ledgerline
Type: cpu
Duration: 3.52s, Total samples = 60000000ns (16.21%)
-----------+-------------------------------------------------------
30000000ns   internal/runtime/syscall/linux.Syscall6
             os.(*File).Sync
             ledgerline/ledger/journal.(*writer).write
             ledgerline/ledger/journal.(*Journal).run
-----------+-------------------------------------------------------
     bytes:  448kB
10000000ns   runtime.mallocgc
             ledgerline/ledger/journal.(*record).append (inline)
             ledgerline/relay.(*Server).serve
             net/http.(*conn).serve
-----------+-------------------------------------------------------
 5000000ns   runtime.gcAssistAlloc
             ledgerline/relay.(*Server).serve
-----------+-------------------------------------------------------
 5000000ns   net/http.Header.Clone
             io.Copy
-----------+-------------------------------------------------------
 2000000ns   syscall.read
             ledgerline/relay/upstream/http1.(*body).fill
             ledgerline/relay.(*exchange).pump
-----------+-------------------------------------------------------
10000000ns   runtime.futex
`
	got, err := readTraces(strings.NewReader(printed))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"journal: write and fsync": 30e6, "journal: encoding and placing": 10e6, "garbage collector": 5e6, steps[serverStep].name: 5e6, steps[serverStep-1].name: 2e6, otherStep: 10e6,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := readTraces(strings.NewReader("-----\nno value\n")); err == nil {
		t.Error("a block without a value is read")
	}
}

// A step whose package has another name by now would be counted as something else.
func TestStepsNamePackages(t *testing.T) {
	for _, s := range steps {
		for _, begin := range s.functions {
			path, ours := strings.CutPrefix(begin, "ledgerline/")
			if !ours {
				continue
			}
			folder, name := filepath.Split(path)
			name, _, _ = strings.Cut(name, ".")
			if _, err := os.Stat(filepath.Join("..", "..", folder, name)); err != nil {
				t.Errorf("step %q: %v", s.name, err)
			}
		}
	}
}

func TestStepsText(t *testing.T) {
	b := &bench{o: benchOptions{answerBytes: 1024, chunks: 256}}
	text := b.stepsText([]stepsRow{
		{target: "relay", kind: kindPlain, clients: 32, cpu: map[string]float64{monitorStep: 1.25}, allocations: map[string]float64{otherStep: 7}, all: stepsTotals{cpu: 90, allocations: 70, calls: 9}},
		{target: "relay", kind: kindStream, clients: 1, cpu: map[string]float64{otherStep: 3}, all: stepsTotals{cpu: 400}},
	})
	for _, want := range []string{
		"| µs/request, plain answers of 1024 bytes | relay, c = 32 |\n", "| " + monitorStep + " | 1.2 |\n", "| garbage collector | |\n", "| all | 90.0 |\n", "| other | 7 |\n",
		"| µs/request, streams of 256 chunks | relay, c = 1 |\n", "| all | 400.0 |\n", "| plain, relay, c = 32 | 9.0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
