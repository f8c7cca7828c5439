package ledger

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/shopspring/decimal"
)

// RateInput is one answered request, as far as its price depends on it.
type RateInput struct {
	Model     string // as asked for by the client
	UserGroup string
	Group     string // the group used, "auto" resolved; empty means UserGroup
	Endpoint  string // path that the client asked, "/v1/chat/completions"; empty means that one
	Usage     Usage
	// Other multiplies the price: number of images, size, seconds. Zero means 1. Tool calls and separately priced audio
	// are not multiplied.
	Other          decimal.Decimal
	AcceptUnpriced bool                // see QuoteKey
	Body           []byte              // the client's request; only expressions look at it
	Header         func(string) string // of the client's request; only expressions look at it
}

const chatEndpoint = "/v1/chat/completions"

// Bill is the price of one request and all that explains it.
type Bill struct {
	Quota  int64 // quota units, from 0 to MaxBill
	Rating Rating
}

// Rate prices one request: exact decimal arithmetic, rounded once, half away from zero (L8). The formulas are New
// API's (fact sheet 4.3). Errors are those of Quote, or an expression that failed.
func (b *PriceBook) Rate(in RateInput) (Bill, error) {
	q, err := b.QuoteFor(in.key())
	if err != nil {
		return Bill{}, err
	}
	return q.For(in.Body, in.Header).Rate(in.Usage, in.Other)
}

// key is what the unit prices of a request depend on.
func (in *RateInput) key() QuoteKey {
	return QuoteKey{
		Model:          in.Model,
		UserGroup:      in.UserGroup,
		Group:          in.Group,
		AcceptUnpriced: in.AcceptUnpriced,
		NotChat:        in.Endpoint != "" && in.Endpoint != chatEndpoint,
	}
}

// Rate is PriceBook.Rate for a quote that is at hand. other is RateInput.Other.
func (q *Quote) Rate(u Usage, other decimal.Decimal) (Bill, error) {
	bill := Bill{Rating: q.rated}
	if other.IsZero() {
		other = one
	}
	if !other.Equal(one) {
		bill.Rating.Other = other.String()
	}
	if quota, ok := q.fast(u); ok && other.Equal(one) {
		bill.Quota = quota
		return bill, nil
	}
	tools := q.withSearch(u.Tools)
	toolQuota, toolPrices := q.toolCharge(tools)
	bill.Rating.Tools = toolPrices
	if u.Prompt+u.Completion == 0 && len(toolPrices) == 0 {
		return bill, nil // nothing billable, cached tokens or not: New API asks for input or output
	}
	var exact decimal.Decimal
	switch q.mode {
	case ModePrice:
		exact = q.call.Mul(other)
	case ModeExpr:
		in := expressionInput(u, q.expr)
		in.Body, in.Header = q.body, q.header
		usd, tier, err := q.expr.Price(in)
		if err != nil {
			return Bill{}, fmt.Errorf("evaluate billing expression of %s: %w", q.key.Model, err)
		}
		bill.Rating.Tier = tier
		exact = usd.Mul(q.book.unit).Mul(q.group).Shift(-6).Round(0)
	default:
		exact = q.tokens(u, other)
	}
	bill.Quota, bill.Rating.Saturated = q.round(exact.Add(toolQuota))
	return bill, nil
}

// Price is the bill of a usage without its explanation; it does not allocate where the fast path serves. A failing
// expression is priced at MaxBill.
func (q *Quote) Price(u Usage) int64 {
	if quota, ok := q.fast(u); ok {
		return quota
	}
	bill, err := q.Rate(u, one)
	if err != nil {
		return MaxBill
	}
	return bill.Quota
}

// tokens sums the priced tokens.
func (q *Quote) tokens(u Usage, other decimal.Decimal) decimal.Decimal {
	counts := q.split(u)
	sum := decimal.Zero
	for dim, n := range counts {
		if dim == dimAudioIn && q.audioApart {
			continue // not multiplied by other
		}
		sum = sum.Add(q.exact[dim].Mul(decimal.NewFromInt(n)))
	}
	sum = sum.Mul(other)
	if q.audioApart {
		sum = sum.Add(q.exact[dimAudioIn].Mul(decimal.NewFromInt(counts[dimAudioIn])))
	}
	return sum
}

// split sorts the tokens of a usage by how they are priced.
func (q *Quote) split(u Usage) [dimensions]int64 {
	var n [dimensions]int64
	if q.audioModel && (u.AudioIn != 0 || u.AudioOut != 0) {
		// Audio answers are billed by four prices; cached tokens cost as much as fresh ones.
		n[dimText] = max(u.Prompt-u.AudioIn, 0)
		n[dimAudioIn] = u.AudioIn
		n[dimOutput] = max(u.Completion-u.AudioOut, 0)
		n[dimAudioOut] = u.AudioOut
		return n
	}
	n[dimCacheRead] = u.CacheRead
	n[dimCacheWrite1h] = u.CacheWrite1h
	n[dimCacheWrite] = max(u.CacheWrite, u.CacheWrite5m+u.CacheWrite1h) - u.CacheWrite1h
	n[dimImageIn] = u.ImageIn
	n[dimOutput] = u.Completion
	if q.audioApart {
		n[dimAudioIn] = u.AudioIn
	}
	n[dimText] = u.Prompt
	if u.Semantics == SemanticsAnthropic {
		n[dimImageIn] = 0 // part of Prompt and priced as it
	} else {
		n[dimText] = max(u.Prompt-u.CacheRead-u.CacheWrite-u.ImageIn-n[dimAudioIn], 0)
	}
	return n
}

// InputTokens is the number of input tokens that a usage is billed for, cached ones included, whatever its semantics: the
// number that a hold's prompt bound must not be below.
func InputTokens(u Usage) int64 {
	text := u.Prompt
	images, audio := u.ImageIn, u.AudioIn
	if u.Semantics == SemanticsAnthropic {
		images, audio = 0, 0
	} else {
		text = max(u.Prompt-u.CacheRead-u.CacheWrite-images-audio, 0)
	}
	return text + u.CacheRead + max(u.CacheWrite, u.CacheWrite5m+u.CacheWrite1h) + images + audio
}

// round makes quota units of an exact price: half away from zero, at least 1 if tokens of a model that is not free were billed,
// at most MaxBill.
func (q *Quote) round(exact decimal.Decimal) (quota int64, saturated bool) {
	exact = exact.Round(0)
	switch {
	case exact.GreaterThan(decimal.NewFromInt(MaxBill)):
		return MaxBill, true
	case exact.Sign() > 0:
		return exact.IntPart(), false
	case q.mode == ModeRatio && !q.perToken.IsZero():
		return 1, false
	}
	return 0, false
}

// Bounds of the fast path: prices and scale that fit 64 bits, and token counts so small that the sum of all dimensions
// fits 128 bits.
const (
	maxFastScale  = 18
	maxFastTokens = 1 << 40
)

// scaledWeights are the exact prices as integers of 10^-digits quota units.
type scaledWeights struct {
	ok   bool
	unit uint64 // 10^digits
	per  [dimensions]uint64
}

// scale converts exact prices to integers of one scale, if they fit.
func scale(exact [dimensions]decimal.Decimal) scaledWeights {
	digits := int32(0)
	for i, d := range exact {
		if !d.IsZero() {
			digits = max(digits, fraction(exact[i]))
		}
	}
	if digits > maxFastScale {
		return scaledWeights{}
	}
	w := scaledWeights{ok: true, unit: uint64(math.Pow10(int(digits)))}
	for i, d := range exact {
		n := d.Shift(digits).BigInt()
		if !n.IsUint64() {
			return scaledWeights{}
		}
		w.per[i] = n.Uint64()
	}
	return w
}

// fraction counts the decimal places of d without trailing zeros.
func fraction(d decimal.Decimal) int32 {
	_, places, found := strings.Cut(d.String(), ".")
	if !found {
		return 0
	}
	return int32(len(strings.TrimRight(places, "0")))
}

// fast prices the usual usage, without tools and without odd figures, in integers.
func (q *Quote) fast(u Usage) (int64, bool) {
	if q.mode != ModeRatio || !q.scaled.ok || q.searchModel || len(u.Tools) != 0 || u.Prompt+u.Completion <= 0 {
		return 0, false
	}
	counts := q.split(u)
	var hi, lo uint64
	for dim, n := range counts {
		if n < 0 || n > maxFastTokens {
			return 0, false
		}
		h, l := bits.Mul64(uint64(n), q.scaled.per[dim])
		var carry uint64
		lo, carry = bits.Add64(lo, l, 0)
		hi, _ = bits.Add64(hi, h, carry)
	}
	lo, carry := bits.Add64(lo, q.scaled.unit/2, 0)
	hi += carry
	if hi >= q.scaled.unit {
		return 0, false // far past MaxBill: the exact path says so
	}
	quota, _ := bits.Div64(hi, lo, q.scaled.unit)
	if quota > MaxBill {
		return 0, false
	}
	if quota == 0 && !q.perToken.IsZero() {
		quota = 1
	}
	return int64(quota), true
}
