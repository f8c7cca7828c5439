package meter

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/relay/sse"
)

// metered is what came of a stream that was fed in fragments.
type metered struct {
	Out            string
	Tokens, Bytes  int64
	Chunks, Length int64
	Result         Result
}

// through feeds a stream to a meter, event by event, or with Run for as many as it takes.
func through(t *testing.T, stream []byte, cut int, run bool) metered {
	t.Helper()
	s, m := sse.NewScanner(0), New(Config{Model: "gpt-4o", Prompt: func() int64 { return 1 }})
	var out bytes.Buffer
	events := func(next func() (sse.Event, bool), run bool) {
		for {
			if run {
				ahead := s.Ahead()
				n := m.Run(ahead, math.MaxInt64, math.MaxInt64)
				out.Write(ahead[:n])
				s.Skip(n)
			}
			ev, ok := next()
			if !ok {
				return
			}
			m.Data(ev.Data)
			out.Write(ev.Raw)
		}
	}
	for len(stream) > 0 {
		n := min(cut, len(stream))
		if err := s.Feed(stream[:n]); err != nil {
			t.Fatal(err)
		}
		events(s.Next, run)
		stream = stream[n:]
	}
	events(s.Flush, false)
	r := metered{Out: out.String()}
	r.Tokens, r.Bytes = m.Streamed()
	r.Chunks, r.Length = m.Content()
	r.Result = m.Finish(false)
	return r
}

// runSeeds are streams whose events look alike and are not.
var runSeeds = []string{
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b c\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\ndata: [DONE]\n\n",
	"data:{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata:  {\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"c\rd\"}}]}\n\n",
	"data: {\"choices\":[\ndata: {\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[\n{\"delta\":{\"content\":\"b\"}}]}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"\\\"b\\n\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\nid: 1\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"obfuscation\":\"xyz\"}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"obfuscation\":\"q\\\"\"}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"c\"}}],\"obfuscation\":\"\"}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\\nc\\u00e9\"}}]}\n\n",
	"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"1\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"23\"}}]}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"obfuscation\":\"x\"}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"obfuscation\":\"y\n\ndata: z\"}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"obfuscation\":\"x\"}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"obfuscation\":\"y\r\rz\"}\n\n",
	"data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}}]}\n\n",
	"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n: ping\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"c\"},\"finish_reason\":\"stop\"}]}\n\n",
}

// Run finds nothing that a scan of each event would not say.
func FuzzRun(f *testing.F) {
	for _, s := range runSeeds {
		f.Add([]byte(s), 1<<10)
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		cut = max(cut, 1)
		want, got := through(t, stream, cut, false), through(t, stream, cut, true)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%q in pieces of %d (-one by one +run):\n%s", stream, cut, diff)
		}
		if want.Out != string(stream) {
			t.Fatalf("%q came out as %q", stream, want.Out)
		}
	})
}

// usualStream is a stream's beginning and n pieces of text that are alike.
func usualStream(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" w%d\"}}]}\n\n", i)
	}
	return []byte(b.String())
}

// Text is taken as far as it is paid for and not a piece further: what comes next is decided on by itself.
func TestRunStopsAtItsBounds(t *testing.T) {
	const all = 40
	stream := usualStream(all)
	event := func(n int) int { return len(usualStream(n)) }
	for _, tc := range []struct {
		name              string
		pieces, textBytes int64
		taken             int // of the events, the first not counted: it is read
	}{
		{"no bound", math.MaxInt64, math.MaxInt64, all - 1},
		{"pieces", 8, math.MaxInt64, 6},
		{"bytes", math.MaxInt64, 13, 3}, // 3 each
		{"reached", 1, math.MaxInt64, 0},
		{"none", 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, m := sse.NewScanner(0), New(Config{})
			if err := s.Feed(stream); err != nil {
				t.Fatal(err)
			}
			if n := m.Run(s.Ahead(), math.MaxInt64, math.MaxInt64); n != 0 {
				t.Fatalf("%d bytes are taken of a stream of which nothing is known", n)
			}
			ev, _ := s.Next()
			m.Data(ev.Data)
			if got, want := m.Run(s.Ahead(), tc.pieces, tc.textBytes), event(tc.taken+1)-event(1); got != want {
				t.Errorf("took %d bytes, want %d", got, want)
			}
		})
	}
}
