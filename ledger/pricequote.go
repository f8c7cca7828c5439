package ledger

import (
	"fmt"
	"math"
	"math/bits"
	"sort"
	"strings"

	"github.com/shopspring/decimal"
)

// MaxBill is the largest bill of one request, in quota units: New API caps bills at a signed 32-bit number, and its columns
// may be that wide.
const MaxBill = math.MaxInt32

// MaxOutput is what OutputFor answers where output costs nothing: more tokens than any request can produce.
const MaxOutput = 1 << 40

// The pricing modes, as Rating.Mode names them.
const (
	ModeRatio = "ratio" // tokens times ratios
	ModePrice = "price" // a price per call
	ModeExpr  = "expr"  // a billing expression
)

// unpricedRatio is the model ratio of a model without a price where such models are accepted (fact sheet 4.2).
var unpricedRatio = decimal.RequireFromString("37.5")

// Defaults of the ratios a model has no entry for (fact sheet 4.2), and the one-hour cache write over the plain one.
var (
	one               = decimal.NewFromInt(1)
	half              = decimal.RequireFromString("0.5")
	defaultCacheWrite = decimal.RequireFromString("1.25")
	hourCacheWrite    = decimal.RequireFromString("1.6")
)

// QuoteKey is all that the unit prices of a request depend on.
type QuoteKey struct {
	Model     string // as asked for by the client
	UserGroup string
	Group     string // the group whose channel serves; empty means UserGroup. Resolve "auto" before.
	// AcceptUnpriced is the user's own setting to accept models without a price.
	AcceptUnpriced bool
	// NotChat says that the endpoint is another than chat completions: only there does a search-preview model search the
	// web once per call.
	NotChat bool
}

// UnpricedError refuses a model that has no price (New API: model_price_error).
type UnpricedError struct {
	Model  string
	Reason string
}

func (e *UnpricedError) Error() string { return "model " + e.Model + " has no price: " + e.Reason }

// UnsupportedError refuses a way of billing that this book was not built to rate.
type UnsupportedError struct {
	Model  string
	Reason string
}

func (e *UnsupportedError) Error() string {
	return "model " + e.Model + " cannot be rated: " + e.Reason
}

// Quote holds the unit prices of one model for one pair of groups. It is immutable, shared and safe for concurrent use;
// its integer paths do not allocate, because the relay prices a hold several times per request.
type Quote struct {
	book  *PriceBook
	key   QuoteKey
	name  string // normal name
	mode  string
	rated Rating // all but Other and Saturated

	perToken    decimal.Decimal // model ratio × group ratio
	group       decimal.Decimal
	call        decimal.Decimal // ModePrice: quota units of one call, group included
	expr        Expression      // ModeExpr
	body        []byte          // ModeExpr: the client's request, see For
	header      func(string) string
	audioModel  bool // the model has audio ratios: audio tokens are priced by them
	audioApart  bool // audio input has a price of its own (Gemini)
	searchModel bool // the model searches the web once per call

	exact  [dimensions]decimal.Decimal // quota units per token
	scaled scaledWeights               // the same as integers, if they fit
	bound  holdWeights                 // upper bounds for holds
}

// The ways a token can be priced.
const (
	dimText = iota
	dimCacheRead
	dimCacheWrite
	dimCacheWrite1h
	dimImageIn
	dimAudioIn
	dimOutput
	dimAudioOut
	dimensions
)

// Quote gives the unit prices of a model on chat completions for a user's group and the group used. The error is an *UnpricedError or an
// *UnsupportedError.
func (b *PriceBook) Quote(model, userGroup, group string) (*Quote, error) {
	return b.QuoteFor(QuoteKey{Model: model, UserGroup: userGroup, Group: group})
}

// QuoteFor is Quote with all that can matter.
func (b *PriceBook) QuoteFor(key QuoteKey) (*Quote, error) {
	if key.Group == "" {
		key.Group = key.UserGroup
	}
	b.mu.RLock()
	q := b.quotes[key]
	b.mu.RUnlock()
	if q != nil {
		return q, nil
	}
	q, err := b.newQuote(key)
	if err != nil {
		return nil, err
	}
	// Names come from clients: only those the book itself lists are remembered, so no client can fill the map (L7).
	if b.lists(key.Model) {
		b.mu.Lock()
		if len(b.quotes) < maxQuotes {
			b.quotes[key] = q
		}
		b.mu.Unlock()
	}
	return q, nil
}

// lists reports whether the book has an entry under exactly this name.
func (b *PriceBook) lists(model string) bool {
	_, ratio := b.modelRatio[model]
	_, price := b.modelPrice[model]
	_, expr := b.exprSource[model]
	return ratio || price || expr
}

func (b *PriceBook) newQuote(key QuoteKey) (*Quote, error) {
	q := &Quote{book: b, key: key, name: b.priceName(key.Model)}
	q.searchModel = !key.NotChat && strings.Contains(key.Model, "search-preview")
	q.rated = Rating{Book: b.version, QuotaPerUnit: b.unit.String()}
	group, special := b.groupRatio(key.UserGroup, key.Group)
	q.rated.GroupRatio, q.rated.GroupSpecial = group.String(), special

	if source, ok := b.exprSource[key.Model]; ok {
		if err := q.byExpression(source); err != nil {
			return nil, err
		}
	} else if price, ok := b.modelPrice[q.name]; ok {
		q.rated.Mode, q.rated.ModelPrice = ModePrice, price.String()
	} else if err := q.byRatio(); err != nil {
		return nil, err
	}
	if q.searchModel {
		q.rated.Tools = []ToolPrice{{ToolSearchPreview, 1, q.toolPrice(ToolSearchPreview).String()}}
	}
	if err := q.setPrices(); err != nil {
		return nil, fmt.Errorf("price model %s: %w", key.Model, err)
	}
	return q, nil
}

// groupRatio gives the factor of a pair of groups, and whether it is one made for that pair. A group that no option names has 1.
func (b *PriceBook) groupRatio(userGroup, group string) (decimal.Decimal, bool) {
	if special, ok := b.groupGroup[userGroup][group]; ok {
		return special, true
	}
	return b.group.or(group, one), false
}

func (q *Quote) byExpression(source string) error {
	if source == "" {
		return &UnpricedError{q.key.Model, "its billing mode is " + modeExpr + " but it has no expression"}
	}
	q.rated.Mode = ModeExpr
	q.expr = q.book.exprs[q.key.Model]
	if q.expr == nil {
		return &UnsupportedError{q.key.Model, "billing by expression"}
	}
	return nil
}

// byRatio notes the ratios of a model that is billed by tokens.
func (q *Quote) byRatio() error {
	b := q.book
	model, ok := b.modelRatio[q.name]
	if !ok {
		if !b.selfUse && !q.key.AcceptUnpriced {
			return &UnpricedError{q.key.Model, "neither " + OptionModelRatio + " nor " + OptionModelPrice + " names it"}
		}
		model = unpricedRatio
	}
	r := &q.rated
	r.Mode = ModeRatio
	r.ModelRatio = model.String()
	r.CompletionRatio = b.completionRatio(q.name).String()
	r.CacheRatio = b.cache.or(q.name, one).String()
	r.CacheWriteRatio = b.cacheWrite.or(q.name, defaultCacheWrite).String()
	r.ImageRatio = b.image.or(q.name, one).String()
	_, hasAudio := b.audio[q.name]
	_, hasAudioOut := b.audioOut[q.name]
	if hasAudio || hasAudioOut {
		r.AudioRatio, r.AudioOutRatio = b.audio.or(q.name, one).String(), b.audioOut.or(q.name, one).String()
	} else if price, apart := audioInputPrice(q.name); apart {
		r.AudioInPrice = price.String()
	}
	return nil
}

// Mode is how the model is billed: ModeRatio, ModePrice or ModeExpr.
func (q *Quote) Mode() string { return q.mode }

// Free reports that no usage of this quote can cost anything but tool calls.
func (q *Quote) Free() bool {
	switch q.mode {
	case ModePrice:
		return q.call.IsZero()
	case ModeRatio:
		return q.perToken.IsZero()
	}
	return q.group.IsZero()
}

// boundScale is the scale of hold weights: billionths of a quota unit, rounded up, so that a million tokens are overestimated
// by a thousandth of a unit at most.
const boundScale = 9

// holdWeights are upper bounds of what tokens cost, in 10^-boundScale quota units.
type holdWeights struct {
	input, output uint64 // the dearest way a token of the input, of the output can be priced
	fixed         uint64 // per request
	least         int64  // the smallest bill of a request with tokens
}

func (q *Quote) holdWeights() holdWeights {
	var w holdWeights
	if q.mode == ModeRatio {
		in := decimal.Max(q.exact[dimText], q.exact[dimCacheRead], q.exact[dimCacheWrite], q.exact[dimCacheWrite1h], q.exact[dimImageIn], q.exact[dimAudioIn])
		out := decimal.Max(q.exact[dimOutput], q.exact[dimAudioOut])
		w.input, w.output = ceilScaled(in), ceilScaled(out)
		if !q.perToken.IsZero() {
			w.least = 1
		}
	}
	w.fixed = ceilScaled(q.fixedPrice())
	return w
}

// ceilScaled gives d × 10^boundScale rounded up, or the largest number if it does not fit: such a price is past MaxBill
// for one token.
func ceilScaled(d decimal.Decimal) uint64 {
	n := d.Shift(boundScale).Ceil().BigInt()
	if !n.IsUint64() {
		return math.MaxUint64
	}
	return n.Uint64()
}

// Hold is an upper bound, in quota units, of what any usage costs whose InputTokens ≤ prompt and whose Completion ≤ output,
// whatever part of them is cached, images or audio (each token is priced the dearest way it could be). Tool calls are not
// in it, but for the one of a search-preview model. It is what a reservation asks for (DESIGN 6); at most MaxBill, as
// bills are. Arguments below 0 count as 0.
func (q *Quote) Hold(prompt, output int64) int64 {
	if q.mode == ModeExpr {
		return q.expressionHold(max(prompt, 0), max(output, 0))
	}
	inHi, inLo := bits.Mul64(uint64(max(prompt, 0)), q.bound.input)
	outHi, outLo := bits.Mul64(uint64(max(output, 0)), q.bound.output)
	lo, carry := bits.Add64(inLo, outLo, 0)
	hi, over := bits.Add64(inHi, outHi, carry)
	lo, carry = bits.Add64(lo, q.bound.fixed, 0)
	hi, over2 := bits.Add64(hi, 0, carry)
	lo, carry = bits.Add64(lo, boundUnit/2, 0) // rounded as bills are, which keeps the bound and makes it tight
	hi, over3 := bits.Add64(hi, 0, carry)
	if over|over2|over3 != 0 || hi >= boundUnit {
		return MaxBill
	}
	units, _ := bits.Div64(hi, lo, boundUnit)
	if units >= MaxBill {
		return MaxBill
	}
	least := q.bound.least
	if prompt <= 0 && output <= 0 {
		least = 0
	}
	return max(int64(units), least)
}

const boundUnit = 1_000_000_000 // 10^boundScale

// Least is the price of a counted text prompt and one output token: the least that a request is admitted for (the `min` of
// DESIGN 6).
func (q *Quote) Least(prompt int64) int64 {
	return q.Price(Usage{Prompt: max(prompt, 0), Completion: 1})
}

// OutputFor is the largest number of output tokens, from 0 to MaxOutput, that a partial hold of quota units pays for after
// a prompt of so many tokens: n tokens cost at most quota, n+1 would cost more (output tokens of a model with audio ratios count
// at the dearer of text and audio). Unlike in Hold the prompt is priced as text, so that the last request of an account is not cut short of what it can pay; an upstream that then reports cache
// writes or images in the prompt charges more than the hold, which L3 counts as its first exception. It is 0 as well when
// quota does not even pay for the prompt.
func (q *Quote) OutputFor(prompt, quota int64) int64 {
	prompt = max(prompt, 0)
	if quota >= MaxBill {
		return MaxOutput
	}
	if q.mode == ModeExpr {
		return int64(sort.Search(MaxOutput, func(n int) bool {
			return q.Price(Usage{Prompt: prompt, Completion: int64(n) + 1}) > quota
		}))
	}
	if quota < q.bound.least || quota < 0 {
		return 0
	}
	// The bill is rounded half away from zero: it is ≤ quota while the exact price is below quota + 1/2.
	left := decimal.NewFromInt(quota).Add(half).Sub(q.fixedPrice()).Sub(q.exact[dimText].Mul(decimal.NewFromInt(prompt)))
	if left.Sign() <= 0 {
		return 0
	}
	each := decimal.Max(q.exact[dimOutput], q.exact[dimAudioOut])
	if each.IsZero() {
		return MaxOutput
	}
	n, rest := left.QuoRem(each, 0)
	if rest.IsZero() {
		n = n.Sub(one)
	}
	return min(n.IntPart(), MaxOutput)
}

// fixedPrice is what every request costs besides its tokens, in quota units.
func (q *Quote) fixedPrice() decimal.Decimal { return q.call.Add(q.searchSurcharge()) }
