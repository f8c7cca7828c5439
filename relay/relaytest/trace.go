package relaytest

import (
	"bufio"
	"bytes"
	_ "embed" // the excerpt
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
)

//go:embed trace/azure-conv-excerpt.csv
var excerpt []byte

// TraceHeader is the first line of a trace.
const TraceHeader = "TIMESTAMP,ContextTokens,GeneratedTokens"

// maxTraceTokens is the largest token count that is taken for one: ten times the largest context window there is.
const maxTraceTokens = 100_000_000

// maxTraceLineBytes bounds a line; one is some 40 bytes.
const maxTraceLineBytes = 4 << 10

// TraceRow is one request of a trace.
type TraceRow struct {
	At        time.Time // arrival
	Context   int64     // prompt tokens
	Generated int64     // completion tokens
}

// Excerpt returns the trace that ships with the program: 2,000 requests, see trace/README.md.
func Excerpt() iter.Seq2[TraceRow, error] { return ReadTrace(bytes.NewReader(excerpt)) }

// ReadTrace reads a trace row by row: a header line, then time (2006-01-02 15:04:05.9999999, UTC), context tokens and
// generated tokens, in lines that end in LF or CR LF. An error names the line and ends the sequence.
func ReadTrace(in io.Reader) iter.Seq2[TraceRow, error] {
	return func(yield func(TraceRow, error) bool) {
		sc := bufio.NewScanner(in)
		sc.Buffer(nil, maxTraceLineBytes)
		n := 0
		for sc.Scan() {
			n++
			line := strings.TrimSuffix(sc.Text(), "\r")
			if n == 1 {
				if strings.TrimPrefix(line, "\ufeff") != TraceHeader {
					yield(TraceRow{}, fmt.Errorf("read trace, line 1: got %q, want the header %q", line, TraceHeader))
					return
				}
				continue
			}
			if line == "" {
				continue
			}
			row, err := parseRow(line)
			if err != nil {
				yield(TraceRow{}, fmt.Errorf("read trace, line %d: %w", n, err))
				return
			}
			if !yield(row, nil) {
				return
			}
		}
		switch err := sc.Err(); {
		case err != nil:
			yield(TraceRow{}, fmt.Errorf("read trace after line %d: %w", n, err))
		case n == 0:
			yield(TraceRow{}, fmt.Errorf("read trace: it is empty, want the header %q", TraceHeader))
		}
	}
}

func parseRow(line string) (row TraceRow, err error) {
	cols := strings.Split(line, ",")
	if len(cols) != 3 {
		return row, fmt.Errorf("%d columns, want 3", len(cols))
	}
	if row.At, err = time.ParseInLocation(time.DateTime, cols[0], time.UTC); err != nil {
		return row, fmt.Errorf("read the time: %w", err)
	}
	for i, dst := range []*int64{&row.Context, &row.Generated} {
		if *dst, err = strconv.ParseInt(cols[i+1], 10, 64); err != nil || *dst < 0 || *dst > maxTraceTokens {
			return row, fmt.Errorf("%q is not a number of tokens from 0 to %d", cols[i+1], maxTraceTokens)
		}
	}
	return row, nil
}
