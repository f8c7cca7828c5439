package meter

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"ledgerline/relay/dialect"
)

const prose = "The ledger isn't closed: 12345 units, 3.14159 of them in naïve Zürich cafés.\n\n\tfunc main() { fmt.Println(\"hi\") }\r\n" +
	"Ça va?  Двести рублей,   и ещё 7.\n  - item ONE\n  - item two's 99%\n\n\nEnd   "

// texts makes Text values of s in pieces of random sizes, cut between runes as a stream's are.
func texts(s string, rnd *rand.Rand) (list []dialect.Text) {
	runes := []rune(s)
	for len(runes) > 0 {
		n := min(1+rnd.IntN(9), len(runes))
		quoted, err := json.Marshal(string(runes[:n]))
		if err != nil {
			panic(err)
		}
		var r dialect.ChunkReader
		c, _ := r.Read([]byte(`{"choices":[{"text":` + string(quoted) + `}]}`))
		list = append(list, c.Texts...)
		runes = runes[n:]
	}
	return list
}

// Counting in pieces must give what counting the whole gives, wherever the chunks end.
func TestIncrementalCountIsExact(t *testing.T) {
	text := strings.Repeat(prose, 40)
	for _, model := range []string{"gpt-4o", "gpt-4"} {
		want := count(model, text)
		for seed := range uint64(5) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var c counter
			for _, piece := range texts(text, rnd) {
				c.add(model, &piece, 300)
			}
			if got := c.total(model); got != want {
				t.Errorf("%s, seed %d: %d tokens, want %d", model, seed, got, want)
			}
		}
	}
}

// Text without white space has no safe place; the error of a forced cut is a token or two.
func TestForcedCuts(t *testing.T) {
	text := strings.Repeat("分布式系统的一致性", 400)
	want := count("gpt-4o", text)
	var c counter
	cuts := int64(0)
	for _, piece := range texts(text, rand.New(rand.NewPCG(1, 1))) {
		before := c.tokens
		c.add("gpt-4o", &piece, 1000)
		if c.tokens != before {
			cuts++
		}
	}
	if got := c.total("gpt-4o"); got < want-2*cuts || got > want+2*cuts || cuts < 5 {
		t.Errorf("%d tokens after %d cuts, want about %d", got, cuts, want)
	}
}

func TestSafeSplit(t *testing.T) {
	for in, want := range map[string]int{
		"three to":    5,
		"one. to":     6, // after a full stop there may be more of the same piece: forced
		"a":           1,
		"日本":          3,
		"ab\n":        2,
		"x 123456789": 10, // the only safe place lies in the first half
	} {
		if got := safeSplit([]byte(in)); got != want {
			t.Errorf("%q is cut at %d, want %d", in, got, want)
		}
	}
}

func TestHugePieceIsReleased(t *testing.T) {
	var c counter
	for _, piece := range texts("a", rand.New(rand.NewPCG(1, 1))) {
		c.add("gpt-4", &piece, 100)
	}
	var r dialect.ChunkReader
	chunk, _ := r.Read([]byte(`{"choices":[{"text":"` + strings.Repeat("word ", 2000) + `"}]}`))
	c.add("gpt-4", &chunk.Texts[0], 100)
	if cap(c.buf) > 200 {
		t.Errorf("%d bytes kept", cap(c.buf))
	}
}

func TestCountPrompt(t *testing.T) {
	for _, tc := range []struct {
		e    dialect.Endpoint
		body string
		want int64
	}{
		{dialect.ChatCompletions, `{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}`, 1 + 1 + 3 + 3},
		{dialect.ChatCompletions, `{"model":"gpt-4o","messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:x"}}]}]}`, 1 + 1 + 520 + 3 + 3},
		{dialect.Completions, `{"model":"gpt-4","prompt":["hi","hi hi"]}`, 3},
		{dialect.Embeddings, `{"model":"text-embedding-3-small","input":[[1,2,3],[4]]}`, 4},
	} {
		r, p := dialect.Parse(tc.e, []byte(tc.body), dialect.DefaultLimits())
		if p != nil {
			t.Fatal(p)
		}
		if got := CountPrompt(&r); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.body, got, tc.want)
		}
		if got := CountPrompt(&r); got > r.PromptBound() {
			t.Errorf("%s: counted %d, bound %d", tc.body, got, r.PromptBound())
		}
	}
}

// Beyond the bound a prompt is reckoned, not counted.
func TestCountIsBounded(t *testing.T) {
	const n = 200_000
	text := strings.Repeat(" word", n)
	if len(text) < 2*maxCounted {
		t.Fatal("not long enough")
	}
	var p prompt
	p.add("gpt-4o", text)
	if p.bytes > maxCounted+keepSideText || p.bytes+p.beyond != int64(len(text)) {
		t.Errorf("%d bytes counted, %d reckoned", p.bytes, p.beyond)
	}
	if got := CountText("gpt-4o", text); got < n*999/1000 || got > n*1001/1000 {
		t.Errorf("%d tokens of %d", got, n)
	}
}

func FuzzSafeSplit(f *testing.F) {
	f.Add(prose)
	f.Add("don't 's  x\n\ny 1234 567")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "")
		if s == "" {
			return
		}
		n := safeSplit([]byte(s))
		if n < 1 || n > len(s) {
			t.Fatalf("%q is cut at %d", s, n)
		}
		if n == len(s) || !isWord(s[n-1]) || s[n] != ' ' && s[n] != '\n' {
			return // forced
		}
		for _, model := range []string{"gpt-4", "gpt-4o"} {
			if a, b := count(model, s), count(model, s[:n])+count(model, s[n:]); a != b {
				t.Fatalf("%s: %q has %d tokens, cut at %d %d", model, s, a, n, b)
			}
		}
	})
}
