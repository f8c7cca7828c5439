package rating

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
)

func noon() time.Time { return time.Date(2026, 3, 4, 12, 30, 0, 0, time.UTC) } // a Wednesday

func TestPrice(t *testing.T) {
	body := []byte(`{"service_tier":"fast","n":3,"meta":{"deep":true}}`)
	header := func(name string) string {
		if name == "X-Plan" {
			return "gold,beta"
		}
		return ""
	}
	for _, c := range []struct {
		source, want, tier string
	}{
		{`tier("flat", p * 0.15 + c * 0.6)`, "75", "flat"},
		{`v1: p * 2`, "200", ""},
		{`len <= 200 ? tier("short", p) : tier("long", p * 2)`, "200", "long"},
		{`tier("base", p) * (param("service_tier") == "fast" ? 2 : 1)`, "200", "base"},
		{`param("absent") == nil ? 1 : 2`, "1", ""},
		{`param("meta.deep") ? 1 : 2`, "1", ""},
		{`has(header("X-Plan"), "beta") ? 5 : 6`, "5", ""},
		{`has(param("absent"), "x") ? 5 : 6`, "6", ""},
		{`hour() * 100 + minute()`, "1230", ""},
		{`hour("Asia/Tokyo") + weekday("UTC") + month() + day()`, "31", ""},
		{`max(p, c) + min(1, 2) + abs(-3) + ceil(0.2) + floor(1.9)`, "106", ""},
		{`0.1 + 0.2`, "0.30000000000000004", ""},
		{`tier("whole", 3)`, "3", "whole"},
		{`cr + cc + cc1h + img + img_o + ai + ao`, "28", ""},
	} {
		e, err := Compiler(noon)(c.source)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		usd, tier, err := e.Price(ledger.ExpressionInput{
			Prompt: 100, Completion: 100, Length: 300, CacheRead: 1, CacheWrite: 2, CacheWrite1h: 3, ImageIn: 4, ImageOut: 5, AudioIn: 6, AudioOut: 7,
			Body: body, Header: header,
		})
		if err != nil || usd.String() != c.want || tier != c.tier {
			t.Errorf("%s: %s, tier %q, %v; want %s, %q", c.source, usd, tier, err, c.want, c.tier)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, source := range []string{
		"",
		"p *",
		"price(p)",
		`"text"`,
		"map([1, 2], # * p)",
		"reduce(1..1000000, # + #acc)",
		`p + "x"`,
		strings.Repeat("1+", 5000) + "1",
		strings.Repeat(" ", maxSource+1),
	} {
		if _, err := Compiler(noon)(source); err == nil {
			t.Errorf("%.40q compiles", source)
		}
	}
}

func TestPriceFails(t *testing.T) {
	for _, source := range []string{
		`p / 0`,
		`hour("Mars/Olympus")`,
		`param("service_tier") * 2.0`,
		`tier("x", param("service_tier"))`,
		`(p - p) / (c - c)`,
	} {
		e, err := Compiler(noon)(source)
		if err != nil {
			continue // refused even earlier
		}
		if usd, _, err := e.Price(ledger.ExpressionInput{Prompt: 1, Body: []byte(`{"service_tier":"fast"}`)}); err == nil {
			t.Errorf("%s gives %s", source, usd)
		}
	}
}

// Holds of expressions bound every price (L3), and a partial hold pays for what it says.
func TestExpressionHolds(t *testing.T) {
	book, err := ledger.ParsePriceBookWith(map[string]string{
		ledger.OptionBillingMode: `{"a": "tiered_expr", "b": "tiered_expr", "c": "tiered_expr"}`,
		ledger.OptionBillingExpr: `{
			"a": "tier(\"base\", p * 2.5 + c * 15 + cr * 0.25)",
			"b": "len <= 20000 ? tier(\"standard\", p * 3 + c * 15 + cr * 0.3 + cc * 3.75 + cc1h * 6) : tier(\"long\", p * 6 + c * 22.5 + cr * 0.6 + cc * 7.5 + cc1h * 12)",
			"c": "(tier(\"base\", p * 0.43 + c * 3.06 + img * 0.78 + ai * 3.81 + ao * 15.11)) * (param(\"service_tier\") == \"fast\" ? 2 : 1)"}`,
	}, Compiler(noon))
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 3000 {
		model := string('a' + rune(r.IntN(3)))
		q, err := book.Quote(model, "default", "")
		if err != nil {
			t.Fatal(err)
		}
		q = q.For([]byte(`{"service_tier":"fast"}`), nil)
		u := ledger.Usage{Prompt: r.Int64N(40000), Completion: r.Int64N(9000)}
		u.CacheRead = r.Int64N(u.Prompt + 1)
		u.CacheWrite = r.Int64N(u.Prompt - u.CacheRead + 1)
		u.CacheWrite1h = r.Int64N(u.CacheWrite + 1)
		u.AudioOut = r.Int64N(u.Completion + 1)
		if hold, price := q.Hold(ledger.InputTokens(u), u.Completion), q.Price(u); hold < price {
			t.Fatalf("%s: hold %d below the price %d of %+v", model, hold, price, u)
		}
		quota := r.Int64N(200000)
		n := q.OutputFor(u.Prompt, quota)
		if n > 0 && q.Price(ledger.Usage{Prompt: u.Prompt, Completion: n}) > quota {
			t.Fatalf("%s: OutputFor(%d, %d) = %d costs more", model, u.Prompt, quota, n)
		}
		if q.Price(ledger.Usage{Prompt: u.Prompt, Completion: n + 1}) <= quota {
			t.Fatalf("%s: OutputFor(%d, %d) = %d, one more is paid for", model, u.Prompt, quota, n)
		}
	}
}

// Tiers look at the whole input, also where the upstream counts cached tokens beside the prompt.
func TestLengthCountsCachedTokens(t *testing.T) {
	book, err := ledger.ParsePriceBookWith(map[string]string{
		ledger.OptionBillingMode: `{"m": "tiered_expr"}`,
		ledger.OptionBillingExpr: `{"m": "len <= 100 ? tier(\"short\", p * 2 + cr) : tier(\"long\", p * 4 + cr)"}`,
	}, Compiler(noon))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		usage ledger.Usage
		tier  string
		quota int64
	}{
		{ledger.Usage{Semantics: ledger.SemanticsAnthropic, Prompt: 60, CacheRead: 40}, "short", 80},
		{ledger.Usage{Semantics: ledger.SemanticsAnthropic, Prompt: 60, CacheRead: 41}, "long", 141},
		{ledger.Usage{Prompt: 100, CacheRead: 40}, "short", 80},
		{ledger.Usage{Prompt: 101, CacheRead: 41}, "long", 141},
	} {
		bill, err := book.Rate(ledger.RateInput{Model: "m", UserGroup: "default", Usage: c.usage})
		if err != nil || bill.Rating.Tier != c.tier || bill.Quota != c.quota {
			t.Errorf("%+v: tier %q, %d, %v; want %q, %d", c.usage, bill.Rating.Tier, bill.Quota, err, c.tier, c.quota)
		}
	}
}

func TestMalformedExpressionNamesTheOption(t *testing.T) {
	_, err := ledger.ParsePriceBookWith(map[string]string{
		ledger.OptionBillingMode: `{"mine": "tiered_expr"}`,
		ledger.OptionBillingExpr: `{"mine": "p *"}`,
	}, Compiler(noon))
	if err == nil || !strings.Contains(err.Error(), ledger.OptionBillingExpr) || !strings.Contains(err.Error(), "mine") {
		t.Errorf("error %v does not name the option and the model", err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`tier("base", p * 2.5 + c * 15 + cr * 0.25)`)
	f.Add(`v1:len <= 200000 ? p : c`)
	f.Add(`(tier("base", p)) * (param("service_tier") == "fast" ? 2 : 1)`)
	f.Fuzz(func(t *testing.T, source string) {
		e, err := Compiler(noon)(source)
		if err != nil {
			return
		}
		if usd, _, err := e.Price(ledger.ExpressionInput{Prompt: 3, Completion: 4, Body: []byte(`{"a":[1]}`)}); err == nil {
			_ = usd.String()
		}
	})
}

func BenchmarkPrice(b *testing.B) {
	e, err := Compiler(noon)(`len <= 200000 ? tier("standard", p * 3 + c * 15 + cr * 0.3 + cc * 3.75) : tier("long", p * 6 + c * 22.5)`)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := e.Price(ledger.ExpressionInput{Prompt: 1000, Completion: 500, Length: 1000}); err != nil {
			b.Fatal(err)
		}
	}
}
