package ledger_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shopspring/decimal"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
)

var updateGolden = flag.Bool("update-explanation", false, "rewrite the golden explanation")

// evaluate computes what a term's formula says: "× 1.25 × 0.8", "× $1 per million × 500000".
func evaluate(t *testing.T, term ledger.Term) *big.Rat {
	t.Helper()
	product := new(big.Rat).SetInt64(term.Count)
	for part := range strings.SplitSeq(strings.TrimPrefix(term.Formula, "× "), " × ") {
		number, unit, _ := strings.Cut(strings.TrimPrefix(part, "$"), " per ")
		factor, ok := new(big.Rat).SetString(number)
		if !ok {
			t.Fatalf("formula %q: %q is no number", term.Formula, number)
		}
		switch unit {
		case "million":
			factor.Quo(factor, big.NewRat(1_000_000, 1))
		case "1,000":
			factor.Quo(factor, big.NewRat(1000, 1))
		case "":
		default:
			t.Fatalf("formula %q: unit %q", term.Formula, unit)
		}
		product.Mul(product, factor)
	}
	return product
}

// An explanation is no second story: each term is what its formula says, the terms add up to the exact sum, and the sum rounds to the
// bill, whatever was used and however it is billed.
func TestExplanationAddsUp(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	models := []string{
		"gpt-4o", "gpt-4.1-nano", "acme-a", "acme-c", "acme-zero", "acme-audio", "acme-image", "acme-call", "acme-call-tiny",
		"acme-search-preview", "claude-sonnet-4-20250514", "gemini-2.5-flash", "gpt-4o-gizmo-x", "tier-a", "tier-b", "tier-c", "tier-param",
	}
	options := optionsOf(t, "custom")
	tiers := optionsOf(t, "tiered")
	options[ledger.OptionBillingMode], options[ledger.OptionBillingExpr] = tiers[ledger.OptionBillingMode], tiers[ledger.OptionBillingExpr]
	book, err := ledger.ParsePriceBookWith(options, rating.Compiler(time.Now))
	if err != nil {
		t.Fatal(err)
	}
	groups := []string{"default", "vip", "svip", "third", "micro", "free"}
	for range 20_000 {
		in := ledger.RateInput{
			Model: models[r.IntN(len(models))], UserGroup: groups[r.IntN(len(groups))], Group: groups[r.IntN(len(groups))],
			Usage: anyUsage(r), Other: decimal.NewFromInt(1 + r.Int64N(3)*r.Int64N(2)),
		}
		if r.IntN(20) == 0 {
			in.Usage = ledger.Usage{CacheRead: r.Int64N(2), Tools: in.Usage.Tools}
		}
		bill, err := book.Rate(in)
		if err != nil {
			t.Fatal(err)
		}
		e, err := book.Explain(in)
		if err != nil {
			t.Fatal(err)
		}
		total, tools := new(big.Rat), new(big.Rat)
		for _, term := range e.Terms {
			exact := rat(nil, term.Quota)
			if got := evaluate(t, term); got.Cmp(exact) != 0 {
				t.Fatalf("%s %+v: term %+v comes to %s", in.Model, in.Usage, term, got.FloatString(9))
			}
			total.Add(total, exact)
			if strings.HasSuffix(term.What, "search") || strings.HasSuffix(term.What, "preview") || term.What == "image_generation" {
				tools.Add(tools, exact)
			}
		}
		if total.Cmp(rat(nil, e.Exact)) != 0 {
			t.Fatalf("%s %+v: terms add up to %s, exact is %s", in.Model, in.Usage, total.FloatString(9), e.Exact)
		}
		want := settle(total, bill.Rating.Mode == ledger.ModeRatio && bill.Rating.ModelRatio != "0" && bill.Rating.GroupRatio != "0" && len(e.Terms) > 0)
		if bill.Rating.Mode == ledger.ModeExpr { // rounded before the tools are added
			want = settle(sum(count(settle(new(big.Rat).Sub(total, tools), false)), tools), false)
		}
		if e.Quota != bill.Quota || e.Quota != want {
			t.Fatalf("%s %+v: explained %d, billed %d, the terms round to %d (%s)\n%+v", in.Model, in.Usage, e.Quota, bill.Quota, want, e.Rounding, e.Terms)
		}
		if diff := cmp.Diff(bill.Rating, e.Rating); diff != "" {
			t.Fatal(diff)
		}
	}
}

// Every factor names who set it.
func TestExplanationSources(t *testing.T) {
	own := map[string]string{
		ledger.OptionModelRatio:           `{"mine": 2, "gpt-5": 1, "gpt-4o": 1.25, "vendor/gpt-5": 1, "gpt-4-gizmo-*": 3, "acme-search-preview": 1}`,
		ledger.OptionModelPrice:           `{"call": 0.5}`,
		ledger.OptionCompletionRatio:      `{"mine": 3, "gpt-5": 2, "vendor/gpt-5": 2}`,
		ledger.OptionCacheRatio:           `{"mine": 0.1}`,
		ledger.OptionGroupGroupRatio:      `{"vip": {"svip": 0.5}}`,
		"group_ratio_setting.group_ratio": `{"svip": 0.8, "default": 1}`,
		ledger.OptionToolPrices:           `{"web_search": 12, "file_search:mine*": 3}`,
		ledger.OptionSelfUseMode:          "true",
	}
	book, err := ledger.ParsePriceBook(own)
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := ledger.ParsePriceBook(nil)
	if err != nil {
		t.Fatal(err)
	}
	use := ledger.Usage{Prompt: 100, Completion: 10, CacheRead: 5, CacheWrite: 7, CacheWrite1h: 2}
	for _, c := range []struct {
		book                    *ledger.PriceBook
		model, user, group      string
		tool, factor, from, has string
	}{
		{book, "mine", "vip", "default", "", "model ratio", "option ModelRatio", "2"},
		{book, "mine", "vip", "default", "", "completion ratio", "option CompletionRatio", "3"},
		{book, "mine", "vip", "default", "", "cache ratio", "option CacheRatio", "0.1"},
		{book, "mine", "vip", "default", "", "cache write ratio", "no entry", "1.25"},
		{book, "mine", "vip", "default", "", "1-hour cache write", "built in: times the cache write ratio", "1.6"},
		{book, "mine", "vip", "default", "", "group ratio", "option group_ratio_setting.group_ratio", "1"},
		{book, "mine", "vip", "svip", "", "group ratio", "option GroupGroupRatio, users of vip in svip", "0.5"},
		{book, "mine", "vip", "nobody", "", "group ratio", "no entry", "1"},
		{book, "mine", "vip", "default", "web_search", "web_search", "option tool_price_setting.prices", "$12 per 1,000 calls"},
		{book, "mine", "vip", "default", "file_search", "file_search", "option tool_price_setting.prices, file_search:mine*", "$3 per 1,000 calls"},
		{book, "gpt-4o", "vip", "default", "web_search_preview", "web_search_preview", "built in, web_search_preview:gpt-4o*", "$25 per 1,000 calls"},
		{book, "acme-search-preview", "vip", "default", "", "web_search_preview", "built in", "$10 per 1,000 calls"},
		{book, "gpt-5", "vip", "default", "", "completion ratio", "built in, locked: an option does not change it", "8"},
		{book, "vendor/gpt-5", "vip", "default", "", "completion ratio", "option CompletionRatio", "2"},
		{book, "gpt-4-gizmo-abc", "vip", "default", "", "completion ratio", "built in", "2"},
		{book, "nobody", "vip", "default", "", "model ratio", "no entry; such models are accepted at this ratio", "37.5"},
		{book, "call", "vip", "default", "", "price per call", "option ModelPrice", "$0.5"},
		{book, "call", "vip", "default", "", "quota units per dollar", "New API's default", "500000"},
		{shipped, "gpt-4o", "default", "", "", "model ratio", "New API's default table", "1.25"},
		{shipped, "gpt-4o", "default", "", "", "cache ratio", "New API's default table", "0.5"},
		{shipped, "dall-e-3", "default", "", "", "price per call", "New API's default table", "$0.04"},
	} {
		u := use
		if c.tool != "" {
			u.Tools = []ledger.Tool{{Name: c.tool, Count: 1}}
		}
		e, err := c.book.Explain(ledger.RateInput{Model: c.model, UserGroup: c.user, Group: c.group, Usage: u})
		if err != nil {
			t.Errorf("%s: %v", c.model, err)
			continue
		}
		i := slices.IndexFunc(e.Factors, func(f ledger.Factor) bool { return f.Name == c.factor })
		if i < 0 || e.Factors[i].From != c.from || e.Factors[i].Value != c.has {
			t.Errorf("%s, %s: %+v; want %s from %q", c.model, c.factor, e.Factors, c.has, c.from)
		}
		if c.model == "gpt-4-gizmo-abc" && e.PricedAs != "gpt-4-gizmo-*" {
			t.Errorf("priced as %q", e.PricedAs)
		}
	}
	if _, err := shipped.Explain(ledger.RateInput{Model: "nobody", UserGroup: "default", Usage: use}); err == nil {
		t.Error("a model without a price is explained")
	}
}

// Every bill that New API recorded can be explained, and the explanation says what was charged.
func TestExplainRecordedRows(t *testing.T) {
	books := map[string]*ledger.PriceBook{}
	for _, r := range recordedRows(t) {
		if books[r.options] == nil {
			books[r.options] = recordedBook(t, r.options)
		}
		var other struct {
			Mode string `json:"billing_mode"`
			Path string `json:"request_path"`
		}
		if err := json.Unmarshal(r.row.Other, &other); err != nil {
			t.Fatal(err)
		}
		in := ledger.RateInput{Model: r.row.Model, UserGroup: r.row.UserGroup, Group: r.row.Group, Endpoint: other.Path, Usage: ledger.Usage{Prompt: r.row.Prompt, Completion: r.row.Completion}}
		bill, err := books[r.options].Rate(in)
		if err != nil {
			t.Fatalf("%s: %v", r.id, err)
		}
		e, err := books[r.options].Explain(in)
		if err != nil || e.Quota != bill.Quota || len(e.Factors) == 0 {
			t.Fatalf("%s: %v, %+v", r.id, err, e)
		}
	}
}

// An explanation as it is printed and sent is part of what people see: it changes on purpose alone.
func TestExplanationGolden(t *testing.T) {
	book := recordedBook(t, "custom")
	e, err := book.Explain(ledger.RateInput{
		Model: "acme-a", UserGroup: "vip", Group: "svip",
		Usage: ledger.Usage{Prompt: 1000, Completion: 321, CacheRead: 500, CacheWrite: 100, Tools: []ledger.Tool{{Name: "web_search", Count: 2}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/explanation.json"
	if *updateGolden {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(fmt.Errorf("%w; -update-explanation writes it", err))
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Error(diff)
	}
}
