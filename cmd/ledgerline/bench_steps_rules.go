package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// step is a part of what a process does, and how its functions are told: by the beginnings of their full names.
type step struct {
	name      string
	functions []string
}

// steps are looked through in this order for every frame of a stack, the innermost frame first: what the standard library does for one of
// them is a cost of that one.
var steps = []step{
	{"garbage collector", []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.gcStart", "runtime.bgsweep", "runtime.bgscavenge"}},
	{monitorStep, []string{"runtime.sysmon"}},
	{"scheduler: parking goroutines, finding the next", []string{"runtime.mcall", "runtime.schedule", "runtime.mstart"}},
	{"upstream: request out, answer in", []string{
		"ledgerline/relay/upstream", "net/http.(*persistConn).", "net/http.(*Transport).", "net/http.(*bodyEOFSignal).", "net/http.(*Client).",
	}},
	{"client: request in, answer out", []string{
		"ledgerline/relay.(*clientConn).", "net/http.(*conn).", "net/http.(*response).", "net/http.(*chunkWriter).", "net/http.(*connReader).",
	}},
	{"journal: write and fsync", []string{
		"ledgerline/ledger/journal.(*Journal).run", "ledgerline/ledger/journal.(*Journal).flush", "ledgerline/ledger/journal.(*writer).",
		"ledgerline/ledger/journal.osFile.",
	}},
	{"journal: encoding and placing", []string{"ledgerline/ledger/journal."}},
	{"reserve and release", []string{"ledgerline/ledger/hold.", "github.com/redis/go-redis/"}},
	{"shipping to the event log", []string{"ledgerline/ledger/eventlog.", "github.com/segmentio/kafka-go", "github.com/twmb/franz-go"}},
	{"the desk: books, tickets, epochs", []string{"ledgerline/relay/desk."}},
	{"projections: quota and usage log", []string{
		"ledgerline/consumers", "ledgerline/ledger/sqlstore.", "ledgerline/ledger/usagelog.", "database/sql.", "modernc.org/",
	}},
	{"parse, price, meter", []string{
		"ledgerline/relay/dialect.", "ledgerline/relay/meter.", "ledgerline/relay/sse.", "ledgerline/relay/catalog.", "ledgerline/ledger/rating.", "ledgerline/ledger.",
		"github.com/tidwall/",
	}},
	{"the handler: ids, headers, deadlines, metrics", []string{"ledgerline/relay.", "main.", "github.com/labstack/echo", "net/http/httputil."}},
}

// What the list does not tell: net/http alone is its server.
const (
	serverStep  = 4
	otherStep   = "other"
	monitorStep = "the runtime's monitor thread"
)

// stepOf names the step of a stack, the innermost function first.
func stepOf(stack []string) string {
	for _, function := range stack {
		for i := range steps {
			for _, begin := range steps[i].functions {
				if strings.HasPrefix(function, begin) {
					return steps[i].name
				}
			}
		}
	}
	for _, function := range stack {
		if strings.HasPrefix(function, "net/http.") {
			return steps[serverStep].name
		}
	}
	return otherStep
}

// readTraces sums up by step what `go tool pprof -traces` prints: blocks of a value and a stack, between lines of dashes. Values are
// times, or plain numbers.
func readTraces(r io.Reader) (map[string]float64, error) {
	sums := map[string]float64{}
	var value float64
	var stack []string
	end := func() {
		if len(stack) > 0 {
			sums[stepOf(stack)] += value
		}
		stack = stack[:0]
	}
	began := false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "----") {
			end()
			began = true
			continue
		}
		fields := strings.Fields(strings.TrimSuffix(line, " (inline)"))
		if !began || len(fields) == 0 || strings.HasSuffix(fields[0], ":") { // the head, and labels as the size of an allocation
			continue
		}
		if len(stack) == 0 {
			v, err := strconv.ParseFloat(strings.TrimSuffix(fields[0], "ns"), 64)
			if err != nil || len(fields) < 2 {
				return nil, fmt.Errorf("read a profile: no value in %q", line)
			}
			value, fields = v, fields[1:]
		}
		stack = append(stack, strings.Join(fields, " "))
	}
	end()
	return sums, lines.Err()
}
