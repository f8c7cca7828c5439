package ledger

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mustBook parses a book from options or fails the test.
func mustBook(t testing.TB, options map[string]string) *PriceBook {
	t.Helper()
	b, err := ParsePriceBook(options)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recordedOptions reads an options file recorded from New API.
func recordedOptions(t testing.TB, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/newapi/options", name))
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	options := make(map[string]string)
	for key, value := range raw {
		options[key] = string(value)
	}
	return options
}

// The built-in tables are New API's: a book from no options equals one from all of its recorded defaults.
func TestDefaultsAreNewAPIs(t *testing.T) {
	none, all := mustBook(t, nil), mustBook(t, recordedOptions(t, "defaults.json"))
	for name, tables := range map[string][2]table{
		OptionModelRatio:           {none.modelRatio, all.modelRatio},
		OptionModelPrice:           {none.modelPrice, all.modelPrice},
		OptionCompletionRatio:      {none.completion, all.completion},
		OptionCacheRatio:           {none.cache, all.cache},
		OptionCreateCacheRatio:     {none.cacheWrite, all.cacheWrite},
		OptionImageRatio:           {none.image, all.image},
		OptionAudioRatio:           {none.audio, all.audio},
		OptionAudioCompletionRatio: {none.audioOut, all.audioOut},
		OptionGroupRatio:           {none.group, all.group},
	} {
		if len(tables[0]) != len(tables[1]) {
			t.Errorf("%s: %d built-in entries, %d recorded", name, len(tables[0]), len(tables[1]))
		}
		for key, want := range tables[1] {
			if got, ok := tables[0][key]; !ok || !got.Equal(want) {
				t.Errorf("%s %s: built-in %s, recorded %s", name, key, got, want)
			}
		}
	}
	if !none.unit.Equal(all.unit) {
		t.Errorf("QuotaPerUnit %s, recorded %s", none.unit, all.unit)
	}
}

func TestParsePriceBookNamesTheMalformedOption(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{OptionModelRatio, `{"gpt-4": "fifteen"}`, "ModelRatio"},
		{OptionModelRatio, `{"gpt-4": -1}`, `"gpt-4"`},
		{OptionModelRatio, `{"gpt-4": 1e300}`, `"gpt-4"`},
		{OptionModelRatio, `[1]`, "JSON object"},
		{OptionModelPrice, `{`, "JSON object"},
		{OptionCompletionRatio, `{"a": null, "b": {}}`, OptionCompletionRatio},
		{OptionGroupGroupRatio, `{"vip": {"svip": "x"}}`, `"vip"`},
		{OptionGroupGroupRatio, `{"vip": 1}`, `"vip"`},
		{OptionQuotaPerUnit, `0`, "0"},
		{OptionQuotaPerUnit, `lots`, "lots"},
		{OptionSelfUseMode, `yes`, "yes"},
		{OptionBillingExpr, `{"m": 3}`, OptionBillingExpr},
		{OptionToolPrices, `{"web_search": true}`, OptionToolPrices},
	} {
		_, err := ParsePriceBook(map[string]string{c.key: c.value})
		problem, ok := errors.AsType[*OptionError](err)
		if !ok {
			t.Errorf("%s=%s: error %v, want an OptionError", c.key, c.value, err)
			continue
		}
		if problem.Key != c.key || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%s: error %q does not name %q", c.key, c.value, err, c.want)
		}
	}
}

// A key that is set replaces the whole default table, an empty one empties it, and other keys do not matter.
func TestOptionsReplaceDefaults(t *testing.T) {
	b := mustBook(t, map[string]string{OptionModelRatio: `{"mine": 2}`, OptionModelPrice: "", "Theme": "{broken"})
	if _, err := b.Quote("gpt-4o", "default", ""); err == nil {
		t.Error("gpt-4o still has its default ratio")
	}
	if _, err := b.Quote("dall-e-3", "default", ""); err == nil {
		t.Error("dall-e-3 still has its default price")
	}
	if got := b.Models(); len(got) != 1 || got[0] != "mine" {
		t.Errorf("models %v, want only mine", got)
	}
}

func TestNewerGroupKeys(t *testing.T) {
	b := mustBook(t, map[string]string{optionNewGroupRatio: `{"gold": 0.5}`})
	if got, _ := b.groupRatio("gold", "gold"); got.String() != "0.5" {
		t.Errorf("group ratio %s, want 0.5 from %s", got, optionNewGroupRatio)
	}
	b = mustBook(t, map[string]string{optionNewGroupRatio: `{"gold": 0.5}`, OptionGroupRatio: `{"gold": 0.25}`})
	if got, _ := b.groupRatio("gold", "gold"); got.String() != "0.25" {
		t.Errorf("group ratio %s, want 0.25 from %s", got, OptionGroupRatio)
	}
}

func TestVersionNamesTheContent(t *testing.T) {
	a, b := mustBook(t, nil), mustBook(t, map[string]string{"SystemName": "x"})
	if a.Version() != b.Version() || len(a.Version()) != 16 {
		t.Errorf("versions %q and %q of equal prices", a.Version(), b.Version())
	}
	if c := mustBook(t, map[string]string{OptionQuotaPerUnit: "1000"}); c.Version() == a.Version() {
		t.Error("another QuotaPerUnit has the same version")
	}
}

func TestUnpricedModel(t *testing.T) {
	b := mustBook(t, nil)
	_, err := b.Rate(RateInput{Model: "no-such-model", UserGroup: "default", Usage: Usage{Prompt: 1}})
	if _, ok := errors.AsType[*UnpricedError](err); !ok {
		t.Fatalf("error %v, want an UnpricedError", err)
	}
	in := RateInput{Model: "no-such-model", UserGroup: "default", Usage: Usage{Prompt: 100}, AcceptUnpriced: true}
	if bill, err := b.Rate(in); err != nil || bill.Quota != 3750 {
		t.Errorf("accepted unpriced model: %d, %v; want 3750", bill.Quota, err)
	}
	b = mustBook(t, map[string]string{OptionSelfUseMode: "true"})
	in.AcceptUnpriced = false
	if bill, err := b.Rate(in); err != nil || bill.Quota != 3750 {
		t.Errorf("self use: %d, %v; want 3750", bill.Quota, err)
	}
}

func TestExpressionWithoutCompilerIsUnsupported(t *testing.T) {
	b := mustBook(t, map[string]string{
		OptionBillingMode: `{"gpt-4o": "tiered_expr", "gpt-4": "tiered_expr", "o3": "ratio"}`,
		OptionBillingExpr: `{"gpt-4o": "p * 2"}`,
	})
	_, err := b.Quote("gpt-4o", "default", "")
	if _, ok := errors.AsType[*UnsupportedError](err); !ok {
		t.Errorf("error %v, want an UnsupportedError", err)
	}
	_, err = b.Quote("gpt-4", "default", "")
	if _, ok := errors.AsType[*UnpricedError](err); !ok {
		t.Errorf("error %v, want an UnpricedError: the mode has no expression", err)
	}
	if _, err := b.Quote("o3", "default", ""); err != nil {
		t.Errorf("a model of another mode is refused: %v", err)
	}
}

// Names from clients must not fill the memory of a book (L7).
func TestQuotesAreBounded(t *testing.T) {
	b := mustBook(t, map[string]string{OptionSelfUseMode: "true"})
	for _, name := range []string{"gpt-4o", "gpt-4o-gizmo-1", "gpt-4o-gizmo-2", "anything", "gpt-4o"} {
		if _, err := b.Quote(name, "default", ""); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.quotes) != 1 {
		t.Errorf("%d quotes remembered, want only the listed model's", len(b.quotes))
	}
}
