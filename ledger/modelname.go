package ledger

import (
	"strings"

	"github.com/shopspring/decimal"
)

// The entry of the option tables for gemini-2.5-flash-lite with a thinking budget. New API looks for the first name alone,
// but the table that it ships has only the second, so with that table it refuses these models as unpriced.
const (
	liteThinking        = "gemini-2.5-flash-lite-thinking-*"
	litePreviewThinking = "gemini-2.5-flash-lite-preview-thinking-*"
)

// priceName is normalModel for the tables of this book: where they have the shipped name of an entry and not the one that
// New API looks for, its evident meaning is honoured.
func (b *PriceBook) priceName(model string) string {
	name := normalModel(model)
	if _, priced := b.modelPrice[name]; name != liteThinking || priced {
		return name
	}
	if _, priced := b.modelRatio[name]; priced {
		return name
	}
	return litePreviewThinking
}

// normalModel gives the name under which a model's prices are looked up: families of ids that differ only in a custom
// suffix share one entry of the option tables (fact sheet 4.2).
func normalModel(name string) string {
	switch {
	case strings.HasPrefix(name, "gpt-4-gizmo"):
		return "gpt-4-gizmo-*"
	case strings.HasPrefix(name, "gpt-4o-gizmo"):
		return "gpt-4o-gizmo-*"
	case strings.Contains(name, "-thinking-"):
		for _, family := range []string{"gemini-2.5-flash-lite", "gemini-2.5-flash", "gemini-2.5-pro"} {
			if strings.HasPrefix(name, family) {
				return family + "-thinking-*"
			}
		}
	}
	return name
}

// completionRatio gives the ratio of output to input price of a model, by its normal name. Order: a name with a slash takes its option first; a locked rule; the option; the rule.
// Source: fact sheet 10.3 as corrected by the recorded bills.
func (b *PriceBook) completionRatio(name string) decimal.Decimal {
	option, set := b.completion[name]
	if set && strings.Contains(name, "/") {
		return option
	}
	ratio, locked := builtinCompletion(name)
	if set && !locked {
		return option
	}
	return ratio
}

// Completion ratios that are quotients of two prices: the recorded bills carry the float64 nearest to the exact quotient in its
// shortest decimal form. The constant expressions are exact until NewFromFloat makes them float64.
var (
	ratioFlash    = decimal.NewFromFloat(2.5 / 0.3)
	ratioPreview  = decimal.NewFromFloat(3.5 / 0.15)
	ratioLlama70b = decimal.NewFromFloat(0.79 / 0.59)
	ratioNano54   = decimal.RequireFromString("6.25")
	ratioLlama2   = decimal.RequireFromString("1.25")
)

func ratio(n int64) decimal.Decimal { return decimal.NewFromInt(n) }

// builtinCompletion is the rule table. locked means that no option can change the ratio.
func builtinCompletion(name string) (r decimal.Decimal, locked bool) {
	switch {
	case strings.HasPrefix(name, "gpt-"):
		return gptCompletion(name)
	case name == "chatgpt-4o-latest":
		return ratio(3), true
	case strings.HasPrefix(name, "o1"), strings.HasPrefix(name, "o3"):
		return ratio(4), true
	case strings.Contains(name, "claude-3"), claude4(name):
		return ratio(5), true
	case strings.HasPrefix(name, "mistral-"):
		return ratio(3), true
	case strings.HasPrefix(name, "gemini-"):
		return geminiCompletion(name)
	case strings.HasPrefix(name, "command"):
		return commandCompletion(name)
	case strings.HasPrefix(name, "ERNIE-"):
		for _, family := range []string{"ERNIE-Speed-", "ERNIE-Lite-", "ERNIE-Character", "ERNIE-Functions"} {
			if strings.HasPrefix(name, family) {
				return ratio(2), true
			}
		}
	}
	switch name {
	case "llama2-70b-4096":
		return ratioLlama2, true
	case "llama3-8b-8192":
		return ratio(2), true
	case "llama3-70b-8192":
		return ratioLlama70b, true
	}
	if strings.HasSuffix(name, "-all") || strings.HasSuffix(name, "-gizmo-*") {
		return ratio(2), false
	}
	return ratio(1), false
}

// claude4 recognises the Claude 4 families (claude-opus-4-6, claude-sonnet-4-5-…).
func claude4(name string) bool {
	for _, family := range []string{"claude-sonnet-4", "claude-opus-4", "claude-haiku-4"} {
		if strings.Contains(name, family) {
			return true
		}
	}
	return false
}

// gptCompletion holds the rules of names that begin with gpt-.
func gptCompletion(name string) (r decimal.Decimal, locked bool) {
	switch {
	case strings.HasSuffix(name, "-all"), strings.HasSuffix(name, "-gizmo-*"):
		return ratio(2), false
	case name == "gpt-4o-2024-05-13":
		return ratio(3), true
	case strings.HasPrefix(name, "gpt-4o-mini-tts"):
		return ratio(20), false
	case strings.HasPrefix(name, "gpt-4o"):
		return ratio(4), false
	case strings.HasPrefix(name, "gpt-5.4-nano"):
		return ratioNano54, true
	case strings.HasPrefix(name, "gpt-5.4"):
		return ratio(6), true
	case strings.HasPrefix(name, "gpt-5."):
		return ratio(6), false
	case strings.HasPrefix(name, "gpt-5"):
		return ratio(8), true
	case strings.HasPrefix(name, "gpt-4.5-preview"):
		return ratio(2), true
	case strings.HasPrefix(name, "gpt-4-turbo"), strings.HasSuffix(name, "gpt-4-1105"), strings.HasSuffix(name, "gpt-4-1106"):
		return ratio(3), true
	}
	return ratio(2), false
}

// geminiCompletion holds the rules of names that begin with gemini-.
func geminiCompletion(name string) (r decimal.Decimal, locked bool) {
	switch {
	case strings.HasPrefix(name, "gemini-1.5"), strings.HasPrefix(name, "gemini-2.0"):
		return ratio(4), true
	case strings.HasPrefix(name, "gemini-2.5-pro"):
		return ratio(8), false
	case strings.HasPrefix(name, "gemini-2.5-flash-lite"):
		return ratio(4), false
	case strings.HasPrefix(name, "gemini-2.5-flash-preview"):
		if strings.HasSuffix(name, "-nothinking") {
			return ratio(4), false
		}
		return ratioPreview, false
	case strings.HasPrefix(name, "gemini-2.5-flash"), strings.HasPrefix(name, "gemini-robotics-er-1.5"):
		return ratioFlash, false
	case strings.HasPrefix(name, "gemini-3-pro-image"):
		return ratio(60), false
	case strings.HasPrefix(name, "gemini-3-pro"):
		return ratio(6), false
	}
	return ratio(4), false
}

// commandCompletion holds the rules of names that begin with command.
func commandCompletion(name string) (r decimal.Decimal, locked bool) {
	switch name {
	case "command-r":
		return ratio(3), true
	case "command-r-plus":
		return ratio(5), true
	case "command-r-08-2024", "command-r-plus-08-2024":
		return ratio(4), true
	}
	return ratio(4), false
}

// Separate prices of audio input of Gemini models, US dollars per million tokens (recorded bills). Those tokens leave the prompt.
var geminiAudioPrices = []struct {
	prefix string
	price  decimal.Decimal
}{
	{"gemini-2.5-flash", decimal.NewFromInt(1)},
	{"gemini-2.0-flash", decimal.RequireFromString("0.7")},
}

// audioInputPrice gives the separate price of a model's audio input, if it has one.
func audioInputPrice(name string) (decimal.Decimal, bool) {
	// No recorded bill tells the audio price of the lite models: their audio is billed as plain prompt tokens.
	if strings.HasPrefix(name, "gemini-2.5-flash-lite") || strings.HasPrefix(name, "gemini-2.0-flash-lite") {
		return decimal.Decimal{}, false
	}
	for _, p := range geminiAudioPrices {
		if strings.HasPrefix(name, p.prefix) {
			return p.price, true
		}
	}
	return decimal.Decimal{}, false
}
