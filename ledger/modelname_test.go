package ledger

import (
	"encoding/json"
	"testing"

	"github.com/shopspring/decimal"
)

// CompletionRatioMeta is New API's own resolution of 281 names under its default options: our rules must agree on each,
// on the ratio and on whether it is locked.
func TestCompletionRatiosMatchNewAPIs(t *testing.T) {
	options := recordedOptions(t, "defaults.json")
	var meta map[string]struct {
		Locked bool        `json:"locked"`
		Ratio  json.Number `json:"ratio"`
	}
	if err := json.Unmarshal([]byte(options["CompletionRatioMeta"]), &meta); err != nil {
		t.Fatal(err)
	}
	if len(meta) != 281 {
		t.Fatalf("%d names recorded, want 281", len(meta))
	}
	b := mustBook(t, options)
	for name, want := range meta {
		ratio, err := parseNumber(want.Ratio.String())
		if err != nil {
			t.Fatal(err)
		}
		if got := b.completionRatio(normalModel(name)); !got.Equal(ratio) {
			t.Errorf("%s: completion ratio %s, New API has %s", name, got, ratio)
		}
		if _, locked := builtinCompletion(normalModel(name)); locked != want.Locked {
			t.Errorf("%s: locked %v, New API says %v", name, locked, want.Locked)
		}
	}
}

// Rules that the recorded names do not show, or that are easily broken.
func TestCompletionRatioRules(t *testing.T) {
	b := mustBook(t, map[string]string{OptionCompletionRatio: `{"gpt-5": 3, "gpt-3.5-turbo": 2.5, "vendor/claude-3-x": 6, "gpt-4-1106": 9}`})
	for name, want := range map[string]string{
		"gpt-5":              "8",   // locked
		"gpt-3.5-turbo":      "2.5", // overridable
		"vendor/claude-3-x":  "6",   // a slash: the option first
		"vendor2/claude-3-x": "5",
		"my-claude-3-clone":  "5",
		"gpt-4-1106":         "3",
		"gpt-4-1106-preview": "2",
		"gpt-4o-all":         "2",
		"gpt-5.4-x":          "6",
		"gpt-5.4-nano-x":     "6.25",
		"llama3-70b-8192":    "1.3389830508474576",
		"whatever":           "1",
	} {
		if got := b.completionRatio(normalModel(name)); !got.Equal(decimal.RequireFromString(want)) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestNormalModel(t *testing.T) {
	for name, want := range map[string]string{
		"gpt-4-gizmo-g-abc":                         "gpt-4-gizmo-*",
		"gpt-4o-gizmo-xyz":                          "gpt-4o-gizmo-*",
		"gemini-2.5-pro-thinking-1024":              "gemini-2.5-pro-thinking-*",
		"gemini-2.5-flash-thinking-0":               "gemini-2.5-flash-thinking-*",
		"gemini-2.5-flash-lite-preview-thinking-12": "gemini-2.5-flash-lite-thinking-*",
		"gemini-2.5-pro":                            "gemini-2.5-pro",
		"claude-opus-4-6-thinking":                  "claude-opus-4-6-thinking",
		"gpt-4o":                                    "gpt-4o",
	} {
		if got := normalModel(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// New API looks lite models with a thinking budget up under a name that its own table does not have. An operator's entry under
// that name is what it bills by; without one the shipped entry is used instead of refusing the model.
func TestLiteModelsWithThinkingBudget(t *testing.T) {
	const model = "gemini-2.5-flash-lite-preview-thinking-1024"
	for _, c := range []struct {
		name, key, ratios, ratio, price string
	}{
		{"shipped table", "", "", "0.05", ""},
		{"operator's ratio", OptionModelRatio, `{"gemini-2.5-flash-lite-thinking-*": 3, "gemini-2.5-flash-lite-preview-thinking-*": 4}`, "3", ""},
		{"operator's price", OptionModelPrice, `{"gemini-2.5-flash-lite-thinking-*": 0.5}`, "", "0.5"},
	} {
		options := map[string]string{}
		if c.key != "" {
			options[c.key] = c.ratios
		}
		q, err := mustBook(t, options).Quote(model, "default", "")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if q.rated.ModelRatio != c.ratio || q.rated.ModelPrice != c.price {
			t.Errorf("%s: ratio %q, price %q; want %q, %q", c.name, q.rated.ModelRatio, q.rated.ModelPrice, c.ratio, c.price)
		}
	}
}
