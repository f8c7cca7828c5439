package ledger

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/shopspring/decimal"
)

// Option keys of New API that decide prices, as stored in its `options` table (fact sheet 10.2).
const (
	OptionModelRatio           = "ModelRatio"                            // model -> ratio; 1 is 2 US dollars per million tokens
	OptionModelPrice           = "ModelPrice"                            // model -> US dollars per call
	OptionCompletionRatio      = "CompletionRatio"                       // model -> output price over input price
	OptionCacheRatio           = "CacheRatio"                            // model -> cache read price over input price
	OptionCreateCacheRatio     = "CreateCacheRatio"                      // model -> cache write price over input price
	OptionImageRatio           = "ImageRatio"                            // model -> image input price over input price
	OptionAudioRatio           = "AudioRatio"                            // model -> audio input price over input price
	OptionAudioCompletionRatio = "AudioCompletionRatio"                  // model -> audio output price over audio input price
	OptionGroupRatio           = "GroupRatio"                            // group -> factor
	OptionGroupGroupRatio      = "GroupGroupRatio"                       // user group -> group used -> factor
	OptionQuotaPerUnit         = "QuotaPerUnit"                          // quota units per US dollar
	OptionSelfUseMode          = "SelfUseModeEnabled"                    // unpriced models are billed at UnpricedRatio
	OptionToolPrices           = "tool_price_setting.prices"             // tool, or tool:model-prefix* -> US dollars per 1,000 calls
	OptionBillingMode          = "billing_setting.billing_mode"          // model -> "tiered_expr"
	OptionBillingExpr          = "billing_setting.billing_expr"          // model -> expression, US dollars per million tokens
	optionNewGroupRatio        = "group_ratio_setting.group_ratio"       // newer names of the group maps, read
	optionNewGroupGroupRatio   = "group_ratio_setting.group_group_ratio" // when the older key is absent
)

// modeExpr is the value of OptionBillingMode that bills a model by expression.
const modeExpr = "tiered_expr"

// Bounds of a price book (L7).
const (
	// maxRatio bounds a ratio, price or QuotaPerUnit: a billion times the base price is a typing error, and the bound keeps
	// the big-number arithmetic short.
	maxRatio = 1e9
	// maxOptionBytes bounds one option's JSON text: New API's own table is 12 KB, this leaves room for 100,000 models.
	maxOptionBytes = 8 << 20
	// maxQuotes bounds the quotes a book remembers: 1,000 models in 16 groups. Further ones are computed each time.
	maxQuotes = 16384
)

//go:embed pricedefaults.json
var priceDefaults []byte // the tables that New API ships (facts), used where an option is not set

// defaultOptions decodes priceDefaults once; they are part of the binary, so a mistake in them is a bug.
var defaultOptions = sync.OnceValue(func() map[string]string {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(priceDefaults, &raw); err != nil {
		panic("ledger: pricedefaults.json: " + err.Error())
	}
	out := make(map[string]string, len(raw))
	for key, value := range raw {
		out[key] = string(value)
	}
	return out
})

// PriceBook is one version of all prices. It is immutable and safe for concurrent use: the relay swaps a pointer when
// an option changes, and every event names the version it was rated with, so it can be rated again (DESIGN 4).
type PriceBook struct {
	version string

	modelRatio, modelPrice, completion, cache, cacheWrite table
	image, audio, audioOut, group, tools                  table
	groupGroup                                            map[string]table
	unit                                                  decimal.Decimal // quota units per US dollar, > 0
	selfUse                                               bool
	exprSource                                            map[string]string // model -> expression, only of models in that mode
	exprs                                                 map[string]Expression
	stored                                                map[string]string // option key -> the key it was stored under; none: New API's default

	mu     sync.RWMutex
	quotes map[QuoteKey]*Quote // bounded by maxQuotes
}

// OptionError says which option cannot be used and why. The caller keeps the book it had.
type OptionError struct {
	Key     string // option key
	Problem string
}

func (e *OptionError) Error() string { return "option " + e.Key + ": " + e.Problem }

// ParsePriceBook reads a book from New API's option values, key to text as stored. A key that is missing has New API's
// default; one that is present replaces the default table as a whole. Values that are not prices are ignored. The error is an
// *OptionError. Models billed by expression are refused with an *UnsupportedError when rated; see ParsePriceBookWith.
func ParsePriceBook(options map[string]string) (*PriceBook, error) {
	return ParsePriceBookWith(options, nil)
}

// ParsePriceBookWith is ParsePriceBook with a compiler for billing expressions; an expression that does not compile
// makes the option malformed. A nil compiler leaves expression billing unsupported.
func ParsePriceBookWith(options map[string]string, compile ExpressionCompiler) (*PriceBook, error) {
	effective, stored := make(map[string]string), make(map[string]string)
	maps.Copy(effective, defaultOptions())
	for old, renamed := range map[string]string{OptionGroupRatio: optionNewGroupRatio, OptionGroupGroupRatio: optionNewGroupGroupRatio} {
		if text, ok := options[renamed]; ok {
			effective[old], stored[old] = text, renamed
		}
	}
	for key := range defaultOptions() {
		if text, ok := options[key]; ok {
			effective[key], stored[key] = text, key
		}
	}
	for key, text := range effective {
		if len(text) > maxOptionBytes {
			return nil, &OptionError{key, fmt.Sprintf("%d bytes, at most %d are read", len(text), maxOptionBytes)}
		}
	}

	b := &PriceBook{version: versionOf(effective), stored: stored, quotes: make(map[QuoteKey]*Quote)}
	for _, t := range []struct {
		key  string
		into *table
	}{
		{OptionModelRatio, &b.modelRatio},
		{OptionModelPrice, &b.modelPrice},
		{OptionCompletionRatio, &b.completion},
		{OptionCacheRatio, &b.cache},
		{OptionCreateCacheRatio, &b.cacheWrite},
		{OptionImageRatio, &b.image},
		{OptionAudioRatio, &b.audio},
		{OptionAudioCompletionRatio, &b.audioOut},
		{OptionGroupRatio, &b.group},
		{OptionToolPrices, &b.tools},
	} {
		parsed, err := parseTable(t.key, effective[t.key])
		if err != nil {
			return nil, err
		}
		*t.into = parsed
	}
	if err := b.parseRest(effective, compile); err != nil {
		return nil, err
	}
	return b, nil
}

// parseRest reads the options that are not a plain name-to-number table.
func (b *PriceBook) parseRest(effective map[string]string, compile ExpressionCompiler) error {
	var err error
	if b.groupGroup, err = parseNestedTable(OptionGroupGroupRatio, effective[OptionGroupGroupRatio]); err != nil {
		return err
	}
	if b.unit, err = parseNumber(effective[OptionQuotaPerUnit]); err != nil || b.unit.IsZero() {
		return &OptionError{OptionQuotaPerUnit, fmt.Sprintf("%.40q is not a number above 0 and up to %g", effective[OptionQuotaPerUnit], maxRatio)}
	}
	// New API stores the word true or false; anything but true means false there, and here is an error.
	switch text := strings.TrimSpace(effective[OptionSelfUseMode]); text {
	case "true":
		b.selfUse = true
	case "false", "":
	default:
		return &OptionError{OptionSelfUseMode, fmt.Sprintf("%.40q is neither true nor false", text)}
	}
	return b.parseExpressions(effective, compile)
}

// parseExpressions keeps the expression of every model whose billing mode asks for one, and compiles it.
func (b *PriceBook) parseExpressions(effective map[string]string, compile ExpressionCompiler) error {
	modes, err := parseTexts(OptionBillingMode, effective[OptionBillingMode])
	if err != nil {
		return err
	}
	sources, err := parseTexts(OptionBillingExpr, effective[OptionBillingExpr])
	if err != nil {
		return err
	}
	b.exprSource = make(map[string]string)
	b.exprs = make(map[string]Expression)
	for model, mode := range modes {
		if mode != modeExpr {
			continue
		}
		source := sources[model]
		b.exprSource[model] = source
		if compile == nil || source == "" {
			continue
		}
		program, err := compile(source)
		if err != nil {
			return &OptionError{OptionBillingExpr, fmt.Sprintf("model %q: %v", model, err)}
		}
		b.exprs[model] = program
	}
	return nil
}

// Version names the content of the book: equal options give equal versions, on every node.
func (b *PriceBook) Version() string { return b.version }

// QuotaPerUnit is the number of quota units in one US dollar.
func (b *PriceBook) QuotaPerUnit() decimal.Decimal { return b.unit }

// Models lists the names that have a price of their own, sorted. Wildcard names ("gpt-4-gizmo-*") are among them.
func (b *PriceBook) Models() []string {
	names := make(map[string]struct{})
	for _, t := range []table{b.modelRatio, b.modelPrice} {
		for name := range t {
			names[name] = struct{}{}
		}
	}
	for name := range b.exprSource {
		names[name] = struct{}{}
	}
	return slices.Sorted(maps.Keys(names))
}

// Groups lists the groups that have a ratio of their own, sorted; every other one has 1.
func (b *PriceBook) Groups() []string {
	return slices.Sorted(maps.Keys(b.group))
}

// versionOf hashes the effective options. 16 hex digits name a few thousand versions without a clash.
func versionOf(effective map[string]string) string {
	h := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(effective)) {
		fmt.Fprintf(h, "%d:%s=%d:%s\n", len(key), key, len(effective[key]), effective[key])
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
