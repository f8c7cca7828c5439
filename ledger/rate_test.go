package ledger

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shopspring/decimal"
)

func TestRate(t *testing.T) {
	b := mustBook(t, recordedOptions(t, "custom.json"))
	priced := mustBook(t, map[string]string{
		OptionToolPrices: `{"web_search": 12, "web_search_preview:gpt-4o-mini*": 30, "file_search:gpt-4o*": 0}`,
	})
	for _, c := range []struct {
		name string
		book *PriceBook
		in   RateInput
		want int64
	}{
		{"text", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Completion: 50}}, 455},
		{"half away from zero", b, RateInput{Model: "acme-b", Usage: Usage{Prompt: 40}}, 2},
		{"at least one", b, RateInput{Model: "acme-c", Usage: Usage{Prompt: 1}}, 1},
		{"free group", b, RateInput{Model: "gpt-4", UserGroup: "free", Usage: Usage{Prompt: 1000}}, 0},
		{"group pair", b, RateInput{Model: "gpt-4", UserGroup: "vip", Group: "svip", Usage: Usage{Prompt: 1000}}, 16500},
		{"group alone", b, RateInput{Model: "gpt-4", UserGroup: "free", Group: "svip", Usage: Usage{Prompt: 1000}}, 22500},
		{"unknown group", b, RateInput{Model: "gpt-4", UserGroup: "nobody", Usage: Usage{Prompt: 1000}}, 15000},
		{"cached beyond the prompt", b, RateInput{Model: "acme-a", Usage: Usage{Prompt: 100, Completion: 50, CacheRead: 150}}, 229},
		{"cache write", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Completion: 50, CacheWrite: 40}}, 468},
		{"lifetimes without a total are added", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Completion: 50, CacheWrite5m: 20, CacheWrite1h: 30}}, 566},
		{"anthropic", b, RateInput{Model: "claude-sonnet-4-20250514", Usage: Usage{Semantics: SemanticsAnthropic, Prompt: 3, Completion: 7, CacheWrite: 100, CacheWrite5m: 40, CacheWrite1h: 40}}, 336},
		{"nothing but cache is nothing", b, RateInput{Model: "claude-sonnet-4-20250514", Usage: Usage{Semantics: SemanticsAnthropic, CacheRead: 1000}}, 0},
		{"image", b, RateInput{Model: "acme-image", Usage: Usage{Prompt: 50, Completion: 4160, ImageIn: 40}}, 10750},
		{"audio", b, RateInput{Model: "acme-audio", UserGroup: "vip", Usage: Usage{Prompt: 9, Completion: 93, CacheRead: 3, AudioIn: 3, AudioOut: 67}}, 4022},
		{"audio of a text model is text", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 29, Completion: 3, AudioIn: 29, AudioOut: 2}}, 57},
		{"gemini audio", b, RateInput{Model: "gemini-2.5-flash", UserGroup: "vip", Usage: Usage{Prompt: 3, Completion: 14, CacheRead: 3, AudioIn: 2}}, 15},
		{"per call", b, RateInput{Model: "acme-call", Usage: Usage{Prompt: 9}}, 6150},
		{"per call, nothing served", b, RateInput{Model: "acme-call"}, 0},
		{"per call has no minimum", b, RateInput{Model: "acme-call-tiny", Usage: Usage{Prompt: 9}}, 0},
		{"per call times n", b, RateInput{Model: "dall-e-3", UserGroup: "vip", Usage: Usage{Prompt: 1}, Other: decimal.NewFromInt(3)}, 48000},
		{"tokens times n", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100}, Other: decimal.NewFromInt(3)}, 390},
		{"tool", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 1, Tools: []Tool{{ToolWebSearch, 2}}}}, 10001},
		{"tool of a family", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 1, Tools: []Tool{{ToolSearchPreview, 1}}}}, 12501},
		{"tool without tokens", b, RateInput{Model: "gpt-4o", Usage: Usage{Tools: []Tool{{ToolFileSearch, 1}}}}, 1250},
		{"unknown tool", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Tools: []Tool{{"juggling", 9}}}}, 130},
		{"own tool price", priced, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 1, Tools: []Tool{{ToolWebSearch, 1}}}}, 6001},
		{"own price of a longer prefix", priced, RateInput{Model: "gpt-4o-mini", Usage: Usage{Prompt: 20, Tools: []Tool{{ToolSearchPreview, 1}}}}, 15002},
		{"own price of nothing", priced, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Tools: []Tool{{ToolFileSearch, 1}}}}, 125},
		{"search model", b, RateInput{Model: "acme-search-preview", Usage: Usage{Prompt: 394, Completion: 1008}}, 6402},
		{"search model elsewhere", b, RateInput{Model: "acme-search-preview", Endpoint: "/v1/responses", Usage: Usage{Prompt: 21, Completion: 869}}, 890},
		{"search model that reports its searches", b, RateInput{Model: "acme-search-preview", Usage: Usage{Prompt: 2, Tools: []Tool{{ToolSearchPreview, 2}}}}, 10002},
		{"capped", b, RateInput{Model: "gpt-4", Usage: Usage{Prompt: 143_165_578}}, MaxBill},
		{"far past the cap", b, RateInput{Model: "acme-d", Usage: Usage{Prompt: 1 << 39, Completion: 1 << 39}}, MaxBill},
		{"below zero", b, RateInput{Model: "gpt-4o", Usage: Usage{Prompt: 100, Completion: -10}}, 65},
	} {
		if c.in.UserGroup == "" {
			c.in.UserGroup = "default"
		}
		got, err := c.book.Rate(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got.Quota != c.want {
			t.Errorf("%s: %d, want %d", c.name, got.Quota, c.want)
		}
		if got.Rating.Saturated != (c.want == MaxBill) {
			t.Errorf("%s: saturated %v at %d", c.name, got.Rating.Saturated, got.Quota)
		}
	}
}

// A bill carries all that explains it.
func TestRatingExplains(t *testing.T) {
	b := mustBook(t, recordedOptions(t, "custom.json"))
	bill, err := b.Rate(RateInput{
		Model: "acme-a", UserGroup: "vip", Group: "svip", Other: decimal.NewFromInt(2),
		Usage: Usage{Prompt: 1, Tools: []Tool{{ToolWebSearch, 1}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Rating{
		Book: b.Version(), Mode: ModeRatio, ModelRatio: "1.23456", CompletionRatio: "3.3333", CacheRatio: "0.123",
		CacheWriteRatio: "1.3", ImageRatio: "1", AudioRatio: "4", AudioOutRatio: "1", GroupRatio: "1.1", GroupSpecial: true,
		QuotaPerUnit: "500000", Other: "2", Tools: []ToolPrice{{ToolWebSearch, 1, "10"}},
	}
	if diff := cmp.Diff(want, bill.Rating); diff != "" {
		t.Error(diff)
	}
}

// randomUsage is a well-formed usage: parts within their whole.
func randomUsage(r *rand.Rand) Usage {
	// Sizes of all orders, small ones often, for rounding shows there.
	size := func() int64 { return r.Int64N(1 << (1 + r.IntN(22))) }
	u := Usage{Prompt: size(), Completion: size()}
	part := func(of *int64) int64 {
		n := int64(0)
		if r.IntN(2) == 0 {
			n = r.Int64N(*of + 1)
		}
		*of -= n
		return n
	}
	if r.IntN(3) == 0 {
		u.Semantics = SemanticsAnthropic
		u.CacheRead, u.CacheWrite5m, u.CacheWrite1h = size(), size(), size()
		u.CacheWrite = u.CacheWrite5m + u.CacheWrite1h + size()
		return u
	}
	input, output := u.Prompt, u.Completion
	u.CacheRead = part(&input)
	u.CacheWrite = part(&input)
	u.ImageIn = part(&input)
	u.AudioIn = part(&input)
	u.AudioOut = part(&output)
	writes := u.CacheWrite
	u.CacheWrite5m = part(&writes)
	u.CacheWrite1h = part(&writes)
	return u
}

var quoteModels = []string{
	"gpt-4o", "gpt-4", "gpt-4.1-nano", "acme-a", "acme-b", "acme-c", "acme-d", "acme-e", "acme-zero", "acme-audio", "acme-image", "acme-call",
	"acme-call-tiny", "acme-search-preview", "claude-sonnet-4-20250514", "gemini-2.5-flash", "gpt-4o-audio-preview", "tts-1", "ERNIE-Tiny-8K",
}

// What holds rest on (L3), over random usages, models and groups: Hold is never below the price, the integer path equals
// the decimal one, and OutputFor is exactly the largest output that a quota pays for.
func TestHoldBounds(t *testing.T) {
	b := mustBook(t, recordedOptions(t, "custom.json"))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	groups := []string{"default", "vip", "svip", "third", "micro", "free"}
	for range 20000 {
		model := quoteModels[r.IntN(len(quoteModels))]
		q, err := b.Quote(model, groups[r.IntN(len(groups))], groups[r.IntN(len(groups))])
		if err != nil {
			t.Fatal(err)
		}
		u := randomUsage(r)
		price := q.Price(u)
		prompt, output := InputTokens(u)+r.Int64N(3), u.Completion+r.Int64N(3)
		if hold := q.Hold(prompt, output); hold < price {
			t.Fatalf("%s %+v: hold %d for %d+%d below the price %d of %+v", model, q.key, hold, prompt, output, price, u)
		}
		if exact, _ := q.round(q.tokens(u, one)); q.mode == ModeRatio && !q.searchModel && u.Prompt+u.Completion > 0 && exact != price {
			t.Fatalf("%s %+v: fast price %d, exact %d of %+v", model, q.key, price, exact, u)
		}
		// A hold that pays for a text answer exactly pays for all of it, and for not a token more than its price.
		text := func(n int64) int64 { return q.Price(Usage{Prompt: prompt, Completion: n}) }
		quota := text(output)
		if r.IntN(2) == 0 {
			quota = r.Int64N(1 << (1 + r.IntN(31)))
		}
		n := q.OutputFor(prompt, quota)
		switch {
		case n < 0 || n > MaxOutput:
			t.Fatalf("%s: OutputFor(%d, %d) = %d", model, prompt, quota, n)
		case quota == text(output) && n < output && !q.audioModel: // audio output is dearer
			t.Fatalf("%s: OutputFor(%d, %d) = %d, but %d cost no more", model, prompt, quota, n, output)
		case n > 0 && text(n) > quota:
			t.Fatalf("%s: OutputFor(%d, %d) = %d, but they cost %d", model, prompt, quota, n, text(n))
		case n < MaxOutput && !q.audioModel && quota > 0 && text(n+1) <= quota:
			t.Fatalf("%s: OutputFor(%d, %d) = %d, but %d are paid for too", model, prompt, quota, n, n+1)
		}
		if least := q.Least(prompt); least > quota && q.bound.output > 0 && !q.audioModel && n > 0 {
			t.Fatalf("%s: OutputFor(%d, %d) = %d below Least %d", model, prompt, quota, n, least)
		}
	}
}

func TestHoldIsTight(t *testing.T) {
	b := mustBook(t, recordedOptions(t, "groups.json"))
	for _, c := range []struct {
		model, group   string
		prompt, output int64
		want           int64
	}{
		{"gpt-4o", "default", 10, 10, 75}, // 10 × 2.5, the dearest input being a one-hour cache write, + 10 × 5
		{"gpt-4o", "default", 0, 0, 0},
		{"gpt-4o", "free", 1000, 1000, 0},
		{"gpt-4o", "default", -5, -5, 0},
		{"gpt-4o", "default", 1 << 62, 1 << 62, MaxBill},
		{"dall-e-3", "default", 1, 0, 20000},
		{"glm-4-flash", "default", 1000, 1000, 0},
	} {
		q, err := b.Quote(c.model, c.group, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := q.Hold(c.prompt, c.output); got != c.want {
			t.Errorf("%s: Hold(%d, %d) = %d, want %d", c.model, c.prompt, c.output, got, c.want)
		}
	}
}

// Prices finer than the scale of holds are rounded up there: a bound stays one.
func TestHoldRoundsPricesUp(t *testing.T) {
	b := mustBook(t, map[string]string{OptionModelRatio: `{"fine": 0.0000000019}`, OptionCreateCacheRatio: `{"fine": 0}`})
	q, err := b.Quote("fine", "default", "")
	if err != nil {
		t.Fatal(err)
	}
	u := Usage{Prompt: 1e9}
	if price, hold := q.Price(u), q.Hold(u.Prompt, 0); price != 2 || hold < price {
		t.Errorf("hold %d of a price of %d, want at least 2 of 2", hold, price)
	}
}

func BenchmarkRate(b *testing.B) {
	book := mustBook(b, recordedOptions(b, "custom.json"))
	u := Usage{Prompt: 1234, Completion: 567, CacheRead: 128}
	for _, c := range []struct{ name, model, group string }{
		{"integers", "gpt-4o", "vip"},
		{"decimals", "gemini-2.5-flash", "third"},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := book.Rate(RateInput{Model: c.model, UserGroup: c.group, Usage: u}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHold(b *testing.B) {
	book := mustBook(b, recordedOptions(b, "custom.json"))
	b.ReportAllocs()
	for b.Loop() {
		q, err := book.Quote("gpt-4o", "vip", "vip")
		if err != nil {
			b.Fatal(err)
		}
		if q.Hold(1234, 4096) == 0 {
			b.Fatal("free")
		}
	}
}
