package ledger

import "github.com/shopspring/decimal"

// Expression is a compiled billing expression of one model. It must be pure but for the clock it was compiled with, safe
// for concurrent use, and bounded in time and memory by whoever compiled it (L7). Package ledger/rating has one.
type Expression interface {
	// Price evaluates to US dollars per million tokens, summed over all tokens, and the name of the tier that matched.
	Price(ExpressionInput) (usd decimal.Decimal, tier string, err error)
	// Uses reports whether the expression prices the named variable (cr, cc, cc1h, img, img_o, ai, ao).
	Uses(variable string) bool
}

// ExpressionCompiler turns the source of a billing expression into a program, or says what is wrong with it.
type ExpressionCompiler func(source string) (Expression, error)

// ExpressionInput holds the variables of a billing expression (fact sheet 4.3). A sub-category is taken out of Prompt or
// Completion only if the expression prices it.
type ExpressionInput struct {
	Prompt       int64  // p
	Completion   int64  // c
	Length       int64  // len: the whole input, cached or not
	CacheRead    int64  // cr
	CacheWrite   int64  // cc, without the one-hour part
	CacheWrite1h int64  // cc1h
	ImageIn      int64  // img
	ImageOut     int64  // img_o
	AudioIn      int64  // ai
	AudioOut     int64  // ao
	Body         []byte // the client's request, for param()
	Header       func(name string) string
}

// expressionInput fills the variables from a usage.
func expressionInput(u Usage, e Expression) ExpressionInput {
	hour := u.CacheWrite1h
	in := ExpressionInput{
		Prompt:       u.Prompt,
		Completion:   u.Completion,
		Length:       u.Prompt,
		CacheRead:    u.CacheRead,
		CacheWrite:   max(u.CacheWrite, u.CacheWrite5m+hour) - hour,
		CacheWrite1h: hour,
		ImageIn:      u.ImageIn,
		ImageOut:     u.ImageOut,
		AudioIn:      u.AudioIn,
		AudioOut:     u.AudioOut,
	}
	if u.Semantics == SemanticsAnthropic {
		in.Length += in.CacheRead + in.CacheWrite + in.CacheWrite1h
	} else {
		for _, part := range []struct {
			name   string
			tokens int64
		}{
			{"cr", in.CacheRead},
			{"cc", in.CacheWrite},
			{"cc1h", in.CacheWrite1h},
			{"img", in.ImageIn},
			{"ai", in.AudioIn},
		} {
			if e.Uses(part.name) {
				in.Prompt -= part.tokens
			}
		}
	}
	if e.Uses("img_o") {
		in.Completion -= in.ImageOut
	}
	if e.Uses("ao") {
		in.Completion -= in.AudioOut
	}
	in.Prompt, in.Completion = max(in.Prompt, 0), max(in.Completion, 0)
	return in
}

// For binds the quote to a client's request: an expression may look at the body and the headers. Quotes of other modes
// are returned as they are.
func (q *Quote) For(body []byte, header func(name string) string) *Quote {
	if q.mode != ModeExpr {
		return q
	}
	bound := *q
	bound.body, bound.header = body, header
	return &bound
}

// expressionHold bounds the price of an expression from above by pricing the whole input, and the whole output, as each
// sub-category in turn. That is a bound for every expression that is linear in the tokens of a tier and whose tiers do
// not get cheaper as the input grows, which the expressions of providers' price lists are. One that fails holds MaxBill.
func (q *Quote) expressionHold(prompt, output int64) int64 {
	inputs := []ExpressionInput{{Prompt: prompt}}
	outputs := []ExpressionInput{{Completion: output}}
	for _, part := range []struct {
		name   string
		in     ExpressionInput
		output bool
	}{
		{name: "cr", in: ExpressionInput{CacheRead: prompt}},
		{name: "cc", in: ExpressionInput{CacheWrite: prompt}},
		{name: "cc1h", in: ExpressionInput{CacheWrite1h: prompt}},
		{name: "img", in: ExpressionInput{ImageIn: prompt}},
		{name: "ai", in: ExpressionInput{AudioIn: prompt}},
		{name: "img_o", in: ExpressionInput{ImageOut: output}, output: true},
		{name: "ao", in: ExpressionInput{AudioOut: output}, output: true},
	} {
		switch {
		case !q.expr.Uses(part.name):
		case part.output:
			outputs = append(outputs, part.in)
		default:
			inputs = append(inputs, part.in)
		}
	}
	highest := decimal.Zero
	for _, in := range inputs {
		for _, out := range outputs {
			in.Length = prompt
			in.Completion, in.ImageOut, in.AudioOut = out.Completion, out.ImageOut, out.AudioOut
			in.Body, in.Header = q.body, q.header
			usd, _, err := q.expr.Price(in)
			if err != nil {
				return MaxBill
			}
			highest = decimal.Max(highest, usd)
		}
	}
	units := highest.Mul(q.book.unit).Mul(q.group).Shift(-6).Add(q.searchSurcharge()).Round(0)
	if units.GreaterThanOrEqual(decimal.NewFromInt(MaxBill)) {
		return MaxBill
	}
	return units.IntPart()
}
