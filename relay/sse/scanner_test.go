package sse

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// want is the payload and name of one event that has a payload.
type want struct{ Data, Name string }

// scan feeds the input in the fragments that cuts gives and returns the payloads, every byte handed out, and the
// number of events with and without payload. Where the fragments lie must make no difference.
func scan(t testing.TB, in []byte, cut func(left int) int) (got []want, raw []byte) {
	t.Helper()
	var sizes []int
	got, raw = scanBehind(t, in, 0, func(left int) int {
		n := min(max(cut(left), 1), left)
		sizes = append(sizes, n)
		return n
	})
	for _, at := range []int{1, 12, 512} {
		rest := sizes
		again, bytesAgain := scanBehind(t, in, at, func(int) int {
			n := rest[0]
			rest = rest[1:]
			return n
		})
		if diff := cmp.Diff(got, again); diff != "" || !bytes.Equal(raw, bytesAgain) {
			t.Fatalf("fed behind %d bytes: payloads (-Feed +FeedBehind):\n%s\nbytes %q, not %q", at, diff, bytesAgain, raw)
		}
	}
	return got, raw
}

// scanBehind is scan with fragments that have at bytes in front of them.
func scanBehind(t testing.TB, in []byte, at int, cut func(left int) int) (got []want, raw []byte) {
	t.Helper()
	s := NewScanner(0)
	buf := make([]byte, at, at+64)
	see := func(e Event) {
		raw = append(raw, e.Raw...)
		if e.Data != nil {
			got = append(got, want{string(e.Data), string(e.Name)})
		}
		if len(e.Raw) == 0 {
			t.Fatal("an event without bytes")
		}
	}
	for len(in) > 0 {
		n := cut(len(in))
		buf = append(buf[:at], in[:n]...) // one reused buffer, as the relay's: what is kept must be copied
		in = in[n:]
		if err := s.FeedBehind(buf, at); err != nil {
			t.Fatal(err)
		}
		for e, ok := s.Next(); ok; e, ok = s.Next() {
			see(e)
		}
		for i := range buf {
			buf[i] = 'X'
		}
	}
	for e, ok := s.Flush(); ok; e, ok = s.Flush() {
		see(e)
	}
	return got, raw
}

func whole(left int) int { return left }

func TestScannerPayloads(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []want
	}{
		{"lf", "data: a\n\ndata: b\n\n", []want{{Data: "a"}, {Data: "b"}}},
		{"crlf", "data: a\r\n\r\ndata: b\r\n\r\n", []want{{Data: "a"}, {Data: "b"}}},
		{"cr", "data: a\r\rdata: b\r\r", []want{{Data: "a"}, {Data: "b"}}},
		{"mixed ends", "data: a\n\r\ndata: b\r\n\ndata: c\r\n\r", []want{{Data: "a"}, {Data: "b"}, {Data: "c"}}},
		{"byte order mark", "\xef\xbb\xbfdata: a\n\n", []want{{Data: "a"}}},
		{"mark only at the start", "data: a\n\n\xef\xbb\xbfdata: b\n\n", []want{{Data: "a"}}},
		{"no space, two spaces", "data:a\n\ndata:  b\n\n", []want{{Data: "a"}, {Data: " b"}}},
		{"comment", ": ping\n\ndata: a\n: x\n\n", []want{{Data: "a"}}},
		{"several lines", "data: {\ndata: \"a\":1\ndata: }\n\n", []want{{Data: "{\n\"a\":1\n}"}}},
		{"chunks without blank lines", "data: {\"a\":1}\ndata: {\"a\":2}\ndata: [DONE]\n", []want{{Data: `{"a":1}`}, {Data: `{"a":2}`}, {Data: "[DONE]"}}},
		{"the same, unfinished", "data: {}\ndata: [DONE]", []want{{Data: "{}"}, {Data: "[DONE]"}}},
		{"named", "event: message_start\ndata: {}\n\n", []want{{Data: "{}", Name: "message_start"}}},
		{"other fields", "id: 7\nretry: 10\n\ndata: a\nid: 8\n\n", []want{{Data: "a"}}},
		{"empty data", "data\n\ndata:\n\n", []want{{}, {}}},
		{"done", "data: [DONE]\n\n", []want{{Data: "[DONE]"}}},
		{"unfinished", "data: a\n\ndata: [DONE]", []want{{Data: "a"}, {Data: "[DONE]"}}},
		{"longer field names", "database: a\n\ndata: b\n\n", []want{{Data: "b"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for size := 1; size <= len(tc.in); size++ {
				got, raw := scan(t, []byte(tc.in), func(int) int { return size })
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("fragments of %d: payloads (-want +got):\n%s", size, diff)
				}
				if string(raw) != tc.in {
					t.Fatalf("fragments of %d: bytes %q, want %q", size, raw, tc.in)
				}
			}
		})
	}
}

// An event must leave as soon as its last byte is there, whatever the line ends: a held event is latency, a held
// keep-alive comment a closed connection.
func TestScannerIsPrompt(t *testing.T) {
	for _, in := range []string{"data: a\n\n", "data: a\r\n\r\n", "data: a\r\r", ": ping\n"} {
		s := NewScanner(0)
		if err := s.Feed([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if e, ok := s.Next(); !ok || string(e.Raw) != in {
			t.Errorf("%q: got %q, %v at once", in, e.Raw, ok)
		}
	}
}

func TestScannerDone(t *testing.T) {
	for in, want := range map[string]bool{"[DONE]": true, " [DONE] ": true, "{}": false, "": false, "[DONE]x": false} {
		if got := (Event{Data: []byte(in)}).Done(); got != want {
			t.Errorf("Done of %q = %v", in, got)
		}
	}
}

func TestScannerBound(t *testing.T) {
	s := NewScanner(100)
	var err error
	fed := 0
	for i := 0; i < 20 && err == nil; i++ {
		err = s.Feed([]byte("data: 0123456789"))
		for _, ok := s.Next(); ok; _, ok = s.Next() {
			t.Fatal("event without an end")
		}
		fed += 16
	}
	if !errors.Is(err, ErrTooLong) || fed > 100+2*16 {
		t.Fatalf("after %d bytes: %v", fed, err)
	}
	long := NewScanner(100) // many events, none of them too long
	if err := long.Feed([]byte(strings.Repeat("data: 0123456789\n\n", 100))); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, ok := long.Next(); ok; _, ok = long.Next() {
		n++
	}
	if err := long.Feed(nil); err != nil || n != 100 {
		t.Fatalf("%d events, %v", n, err)
	}
}

func TestBatch(t *testing.T) {
	in := []byte("data: a\n\ndata: b\n\ndata: c\n\ndata: d\n\n")
	for drop := range 16 {
		s := NewScanner(0)
		if err := s.Feed(in); err != nil {
			t.Fatal(err)
		}
		var b Batch
		var want []byte
		for round := range 2 {
			b.Reset()
			want = want[:0]
			i := 0
			if round == 1 {
				if err := s.Feed(in); err != nil {
					t.Fatal(err)
				}
			}
			for e, ok := s.Next(); ok; e, ok = s.Next() {
				if drop&(1<<i) == 0 {
					b.Add(e.Raw)
					want = append(want, e.Raw...)
				}
				i++
			}
			if !bytes.Equal(b.Bytes(), want) {
				t.Fatalf("drop %b: %q, want %q", drop, b.Bytes(), want)
			}
		}
	}
	if want := "data: a\n\ndata: b\n\ndata: c\n\ndata: d\n\n"; string(in) != want {
		t.Fatalf("the input was changed to %q", in)
	}
}

func TestNoAllocationPerEvent(t *testing.T) {
	chunk := []byte(strings.Repeat(`data: {"choices":[{"delta":{"content":"x"}}]}`+"\n\n", 3) + `data: {"cho`)
	rest := []byte(`ices":[]}` + "\n\n")
	s := NewScanner(0)
	var b Batch
	feed := func(p []byte) {
		if err := s.Feed(p); err != nil {
			t.Fatal(err)
		}
		b.Reset()
		for e, ok := s.Next(); ok; e, ok = s.Next() {
			b.Add(e.Raw)
		}
	}
	if n := testing.AllocsPerRun(100, func() { feed(chunk); feed(rest) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// reference reads the whole input at once, straight from the specification, with the two rules of this package added:
// an unfinished event counts, and a data line after a complete one begins a new event.
func reference(in []byte) (out []want) {
	in = bytes.TrimPrefix(in, bom)
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(in))
	var data []string
	name := ""
	end := func() {
		if data != nil {
			out = append(out, want{strings.Join(data, "\n"), name})
		}
		data, name = nil, ""
	}
	lines := strings.Split(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1] // nothing follows the last line end
	}
	for _, line := range lines {
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimPrefix(val, " ")
		switch {
		case line == "":
			end()
		case key == "data":
			if len(data) == 1 && strings.HasPrefix(line, "data:") {
				d := strings.TrimSpace(data[0])
				if d == "[DONE]" || strings.HasPrefix(d, "{") && json.Valid([]byte(d)) {
					end()
				}
			}
			data = append(data, val)
		case key == "event":
			name = val
		}
	}
	end()
	return out
}

func FuzzScanner(f *testing.F) {
	for _, in := range []string{
		"data: a\n\ndata: b\r\n\r\n: c\r\rdata: d\rdata: e\r\r", "\xef\xbb\xbfdata:x\n\n", "data: {}\ndata: [DONE]\n",
		"event: a\ndata: {\"x\":1}\r\n\r\ndata: {\n\ndata\r", "data: {\ndata: }\n\n\r\n\r", "",
	} {
		f.Add([]byte(in), uint64(0x123456789), uint64(5))
	}
	f.Fuzz(func(t *testing.T, in []byte, cuts, drops uint64) {
		got, raw := scan(t, in, func(int) int {
			n := int(cuts%7) + 1
			cuts = cuts*6364136223846793005 + 1442695040888963407
			return n
		})
		if !bytes.Equal(raw, in) {
			t.Fatalf("bytes %q, want %q", raw, in)
		}
		if diff := cmp.Diff(reference(in), got); diff != "" {
			t.Fatalf("payloads of %q (-want +got):\n%s", in, diff)
		}
		once, _ := scan(t, in, whole)
		if diff := cmp.Diff(once, got); diff != "" {
			t.Fatalf("fragments change the payloads of %q (-whole +fragments):\n%s", in, diff)
		}
		checkDrops(t, in, cuts, drops)
	})
}

// checkDrops drops some events and demands that what is left is the input without them, through a Batch per fragment.
func checkDrops(t *testing.T, in []byte, cuts, drops uint64) {
	t.Helper()
	s := NewScanner(0)
	var b Batch
	var out, kept []byte
	one := func(e Event) {
		if drops = drops*3 + 1; drops%3 != 0 {
			b.Add(e.Raw)
			kept = append(kept, e.Raw...)
		}
	}
	for left := in; len(left) > 0; {
		n := min(int(cuts%40)+1, len(left))
		cuts = cuts*6364136223846793005 + 1442695040888963407
		if err := s.Feed(bytes.Clone(left[:n])); err != nil {
			t.Fatal(err)
		}
		left = left[n:]
		for e, ok := s.Next(); ok; e, ok = s.Next() {
			one(e)
		}
		out = append(out, b.Bytes()...)
		b.Reset()
	}
	for e, ok := s.Flush(); ok; e, ok = s.Flush() {
		one(e)
	}
	if out = append(out, b.Bytes()...); !bytes.Equal(out, kept) {
		t.Fatalf("kept %q, sent %q", kept, out)
	}
}

func BenchmarkScanner(b *testing.B) {
	chunk := []byte(`data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	s := NewScanner(0)
	b.ReportAllocs()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if err := s.Feed(chunk); err != nil {
			b.Fatal(err)
		}
		for _, ok := s.Next(); ok; _, ok = s.Next() {
		}
	}
}
