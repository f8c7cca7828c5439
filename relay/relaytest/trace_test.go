package relaytest

import (
	"strings"
	"testing"
	"time"
)

func TestExcerpt(t *testing.T) {
	var n int
	var context, generated int64
	var last time.Time
	for row, err := range Excerpt() {
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 && row != (TraceRow{time.Date(2023, 11, 16, 18, 15, 46, 680590000, time.UTC), 374, 44}) {
			t.Errorf("first row %+v", row)
		}
		if row.At.Before(last) {
			t.Errorf("row %d goes back in time", n)
		}
		last = row.At
		n++
		context += row.Context
		generated += row.Generated
	}
	if n != 2000 || context != 2209565 || generated != 529807 {
		t.Errorf("%d rows, %d context tokens, %d generated", n, context, generated)
	}
}

func TestReadTrace(t *testing.T) {
	const row = "2023-11-16 18:15:46.6805900,374,44"
	for name, in := range map[string]string{
		"LF": TraceHeader + "\n" + row + "\n", "CR LF": TraceHeader + "\r\n" + row + "\r\n", "no last line end": TraceHeader + "\n" + row,
		"byte order mark": "\ufeff" + TraceHeader + "\n" + row + "\n\n",
	} {
		n := 0
		for r, err := range ReadTrace(strings.NewReader(in)) {
			if err != nil || r.Context != 374 || r.Generated != 44 {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
	for in, want := range map[string]string{
		"":                                   "empty",
		"a,b,c\n":                            "line 1",
		TraceHeader + "\n" + row + "\n1,2\n": "line 3: 2 columns",
		TraceHeader + "\nyesterday,1,2\n":    "line 2: read the time",
		TraceHeader + "\n2023-11-16 18:15:46,-1,2\n":                         `"-1" is not`,
		TraceHeader + "\n2023-11-16 18:15:46,1,x\n":                          `"x" is not`,
		TraceHeader + "\n2023-11-16 18:15:46,1,1000000000\n":                 "is not a number",
		TraceHeader + "\n" + strings.Repeat("x", maxTraceLineBytes+1) + "\n": "token too long",
	} {
		var last error
		for _, err := range ReadTrace(strings.NewReader(in)) {
			last = err
		}
		if last == nil || !strings.Contains(last.Error(), want) {
			t.Errorf("%.60q: %v, want %q", in, last, want)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add(TraceHeader + "\r\n2023-11-16 18:15:46.6805900,374,44\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		failed := false
		for row, err := range ReadTrace(strings.NewReader(in)) {
			if failed || err == nil && (row.Context < 0 || row.Generated < 0) {
				t.Fatalf("%q: %+v after a failure %v", in, row, failed)
			}
			failed = err != nil
		}
	})
}
