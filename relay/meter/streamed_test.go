package meter

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// kindsOfText are of kinds whose tokens differ in length and form.
var kindsOfText = map[string]string{
	"prose":       "Because understanding internationalization doesn't come easily, they've characteristically misunderstood responsibilities; it's 1,234,567.89 dollars (approximately).\n\n\"Isn't it?\" — she'd asked…\n",
	"code":        "func (s *Store) applyDeltas2024(ctx context.Context, x_1 []int64) error {\n\tif len(x_1) != 0 && s.db.Ping() == nil {\n\t\treturn fmt.Errorf(`v1.2.3: %w`, err)\n\t}\n}\n<div class=\"a-b\">&nbsp;</div>",
	"short":       "a b c d 1 2 3 . , ! \n x\ty",
	"chinese":     "人工智能正在改变世界，我们每天都在使用大型语言模型来完成各种各样的工作任务。",
	"multi-byte":  "Größenwahnsinnig übermütige Äpfel, déjà vu à l'Élysée, Привет, как дела? 🙂🚀👩‍👩‍👧 naïve café",
	"apostrophes": "'tis o'clock y'all'd've rock 'n' roll's",
}

// answer is a stream of pieces, as the meter gets it.
func answer(t *testing.T, pieces []string) *Meter {
	t.Helper()
	m := New(Config{Model: "gpt-4o"})
	for _, p := range pieces {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		m.Data([]byte(`{"choices":[{"index":0,"delta":{"content":` + string(text) + `}}]}`))
	}
	return m
}

// A crash bills at least what was streamed and at most what the upstream produced, where it sends a token a chunk: whatever the tokens
// are. Where chunks hold several, what is certain is never too much, and the bytes keep it from being far too little.
func TestStreamed(t *testing.T) {
	for _, encoding := range []string{"o200k", "cl100k"} {
		for name, text := range kindsOfText {
			t.Run(encoding+" "+name, func(t *testing.T) {
				c := o200k()
				if encoding == "cl100k" {
					c = cl100k()
				}
				_, tokens, err := c.Encode(strings.Repeat(text, 3))
				if err != nil {
					t.Fatal(err)
				}
				// A token that ends inside a rune is sent with the next one: a chunk is text.
				var chunks []string
				var held string
				for _, token := range tokens {
					if held += token; utf8.ValidString(held) {
						chunks, held = append(chunks, held), ""
					}
				}
				m := answer(t, chunks)
				if got := m.Progress(); got < int64(len(chunks)) || got > int64(len(tokens)) {
					t.Errorf("billed %d of %d chunks with %d tokens", got, len(chunks), len(tokens))
				}
				for group := 2; group <= 16; group *= 2 {
					var grouped []string
					for i := 0; i < len(chunks); i += group {
						grouped = append(grouped, strings.Join(chunks[i:min(i+group, len(chunks))], ""))
					}
					m := answer(t, grouped)
					if least, _ := m.Streamed(); least < int64(len(grouped)) || least > int64(len(tokens)) {
						t.Errorf("%d a chunk: %d tokens are certain of %d", group, least, len(tokens))
					}
				}
			})
		}
	}
}

// A usual answer in chunks of several tokens is billed about right.
func TestStreamedSeveralATime(t *testing.T) {
	c := o200k()
	text := strings.Repeat("The quick brown fox did not jump over the lazy dog today because it was too tired and would rather sleep under a large green tree. ", 10)
	_, tokens, err := c.Encode(text)
	if err != nil {
		t.Fatal(err)
	}
	var grouped []string
	for i := 0; i < len(tokens); i += 5 {
		grouped = append(grouped, strings.Join(tokens[i:min(i+5, len(tokens))], ""))
	}
	got, want := answer(t, grouped).Progress(), int64(len(tokens))
	if got < want*9/10 || got > want*13/10 {
		t.Errorf("billed %d of %d tokens", got, want)
	}
}

// Chinese has no spaces to tell tokens apart by: chunks of several are known by their length, and billed about right too.
func TestStreamedSeveralWithoutSpaces(t *testing.T) {
	c := o200k()
	_, tokens, err := c.Encode(strings.Repeat(kindsOfText["chinese"], 20))
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range []int{8, 40} {
		var grouped []string
		for i := 0; i < len(tokens); i += group {
			grouped = append(grouped, strings.Join(tokens[i:min(i+group, len(tokens))], ""))
		}
		got, want := answer(t, grouped).Progress(), int64(len(tokens))
		if got < want*8/10 || got > want*15/10 {
			t.Errorf("%d a chunk: billed %d of %d tokens", group, got, want)
		}
	}
}
