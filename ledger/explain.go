package ledger

import (
	"fmt"
	"strings"

	"github.com/shopspring/decimal"
)

// Explanation is one bill, taken apart for a person: what each factor is and where it comes from, what each kind of token
// comes to, and how the sum becomes quota units. It is made from the same prices as the bill.
type Explanation struct {
	Model     string      `json:"model"`
	PricedAs  string      `json:"priced_as,omitempty"` // the name that prices are looked up under, if it is another
	UserGroup string      `json:"user_group"`
	Group     string      `json:"group"`
	Mode      string      `json:"mode"`
	Book      string      `json:"price_book"`
	Usage     Usage       `json:"usage"`
	Factors   []Factor    `json:"factors"`
	Terms     []Term      `json:"terms"`
	Exact     string      `json:"exact"`    // quota units before rounding
	Rounding  string      `json:"rounding"` // how they become Quota
	Quota     int64       `json:"quota"`
	USD       string      `json:"usd"`
	Rating    Rating      `json:"rating"`
	formula   exactTotals // the sums that Exact is made of
}

// Factor is one number of a bill and who set it.
type Factor struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// Term is a part of a bill.
type Term struct {
	What    string `json:"what"`
	Count   int64  `json:"count"`
	Formula string `json:"formula"` // the factors that Count is multiplied by
	Quota   string `json:"quota"`   // exact, in quota units
}

// exactTotals are the parts of a bill that are treated differently when it is rounded.
type exactTotals struct{ tokens, tools decimal.Decimal }

// Where a factor comes from.
const (
	fromDefault = "New API's default table"
	fromBuiltIn = "built in"
	fromLocked  = "built in, locked: an option does not change it"
	fromNothing = "no entry"
)

// Explain prices a request as Rate does, and says how. Errors are those of Rate.
func (b *PriceBook) Explain(in RateInput) (Explanation, error) {
	bill, err := b.Rate(in)
	if err != nil {
		return Explanation{}, err
	}
	q, err := b.QuoteFor(in.key())
	if err != nil {
		return Explanation{}, err
	}
	q = q.For(in.Body, in.Header)
	e := Explanation{
		Model: in.Model, UserGroup: in.UserGroup, Group: q.key.Group, Mode: q.mode, Book: b.version, Usage: in.Usage,
		Quota: bill.Quota, Rating: bill.Rating, USD: decimal.NewFromInt(bill.Quota).DivRound(b.unit, 12).String(),
	}
	if q.name != in.Model && q.mode != ModeExpr {
		e.PricedAs = q.name
	}
	other := in.Other
	if other.IsZero() {
		other = one
	}
	switch q.mode {
	case ModePrice:
		e.perCall(q, other)
	case ModeExpr:
		if err := e.expression(q); err != nil {
			return Explanation{}, err
		}
	default:
		e.perToken(q, other)
	}
	e.tools(q)
	e.finish(q)
	return e, nil
}

// nothing reports that there is nothing to bill: see Quote.Rate.
func (e *Explanation) nothing() bool {
	return e.Usage.Prompt+e.Usage.Completion == 0 && len(e.Rating.Tools) == 0
}

func (e *Explanation) factor(name, value, from string) {
	e.Factors = append(e.Factors, Factor{name, value, from})
}

func (e *Explanation) term(what string, count int64, formula string, quota decimal.Decimal) {
	e.Terms = append(e.Terms, Term{what, count, formula, quota.String()})
}

// from says which table holds an entry.
func (b *PriceBook) from(option, name string, t table) string {
	_, has := t[name]
	switch stored := b.stored[option]; {
	case !has:
		return fromNothing
	case stored != "":
		return "option " + stored
	default:
		return fromDefault
	}
}

// groupFactor notes the ratio of the groups.
func (e *Explanation) groupFactor(q *Quote) {
	b, key := q.book, q.key
	from := b.from(OptionGroupRatio, key.Group, b.group)
	if q.rated.GroupSpecial {
		from = fmt.Sprintf("option %s, users of %s in %s", b.stored[OptionGroupGroupRatio], key.UserGroup, key.Group)
	}
	e.factor("group ratio", q.rated.GroupRatio, from)
}

// unitFactor notes the value of a dollar, where it is part of the price.
func (e *Explanation) unitFactor(b *PriceBook) {
	from := "New API's default"
	if stored := b.stored[OptionQuotaPerUnit]; stored != "" {
		from = "option " + stored
	}
	e.factor("quota units per dollar", b.unit.String(), from)
}

func (e *Explanation) otherFactor(other decimal.Decimal) string {
	if other.Equal(one) {
		return ""
	}
	e.factor("times", other.String(), "the request: number, size and quality of pictures")
	return " × " + other.String()
}

func (e *Explanation) perCall(q *Quote, other decimal.Decimal) {
	b, r := q.book, &q.rated
	e.factor("price per call", "$"+r.ModelPrice, b.from(OptionModelPrice, q.name, b.modelPrice))
	e.unitFactor(b)
	e.groupFactor(q)
	formula := fmt.Sprintf("× $%s × %s × %s%s", r.ModelPrice, b.unit, r.GroupRatio, e.otherFactor(other))
	if e.nothing() {
		return
	}
	exact := q.call.Mul(other)
	e.term("call", 1, formula, exact)
	e.formula.tokens = exact
}

// perToken lists the token counts by how each is priced.
func (e *Explanation) perToken(q *Quote, other decimal.Decimal) {
	e.ratioFactors(q)
	times := e.otherFactor(other)
	if e.nothing() {
		return
	}
	r, counts := &q.rated, q.split(e.Usage)
	for _, d := range []struct {
		dim        int
		what, more string
	}{
		{dimText, "text input", ""},
		{dimCacheRead, "cache read", r.CacheRatio},
		{dimCacheWrite, "cache write", r.CacheWriteRatio},
		{dimCacheWrite1h, "cache write, 1 hour", r.CacheWriteRatio + " × " + hourCacheWrite.String()},
		{dimImageIn, "image input", r.ImageRatio},
		{dimAudioIn, "audio input", r.AudioRatio},
		{dimOutput, "output", r.CompletionRatio},
		{dimAudioOut, "audio output", r.AudioRatio + " × " + r.AudioOutRatio},
	} {
		n := counts[d.dim]
		if n == 0 {
			continue
		}
		exact := q.exact[d.dim].Mul(decimal.NewFromInt(n))
		if d.dim == dimAudioIn && q.audioApart {
			e.term(d.what, n, fmt.Sprintf("× $%s per million × %s × %s", r.AudioInPrice, q.book.unit, r.GroupRatio), exact)
		} else {
			factors := []string{r.ModelRatio}
			if d.more != "" {
				factors = append(factors, d.more)
			}
			exact = exact.Mul(other)
			e.term(d.what, n, "× "+strings.Join(append(factors, r.GroupRatio), " × ")+times, exact)
		}
		e.formula.tokens = e.formula.tokens.Add(exact)
	}
}

// ratioFactors notes the ratios that bear on a usage.
func (e *Explanation) ratioFactors(q *Quote) {
	b, r, u := q.book, &q.rated, &e.Usage
	from := b.from(OptionModelRatio, q.name, b.modelRatio)
	if from == fromNothing {
		from = "no entry; such models are accepted at this ratio"
	}
	e.factor("model ratio", r.ModelRatio, from)
	e.factor("completion ratio", r.CompletionRatio, b.fromCompletion(q.name))
	for _, f := range []struct {
		name, value, option string
		t                   table
		bears               bool
	}{
		{"cache ratio", r.CacheRatio, OptionCacheRatio, b.cache, u.CacheRead != 0},
		{"cache write ratio", r.CacheWriteRatio, OptionCreateCacheRatio, b.cacheWrite, u.CacheWrite+u.CacheWrite5m+u.CacheWrite1h != 0},
		{"image ratio", r.ImageRatio, OptionImageRatio, b.image, u.ImageIn != 0},
		{"audio ratio", r.AudioRatio, OptionAudioRatio, b.audio, q.audioModel && u.AudioIn+u.AudioOut != 0},
		{"audio output ratio", r.AudioOutRatio, OptionAudioCompletionRatio, b.audioOut, q.audioModel && u.AudioOut != 0},
	} {
		if f.bears {
			e.factor(f.name, f.value, b.from(f.option, q.name, f.t))
		}
	}
	if u.CacheWrite1h != 0 {
		e.factor("1-hour cache write", hourCacheWrite.String(), fromBuiltIn+": times the cache write ratio")
	}
	if q.audioApart && u.AudioIn != 0 {
		e.factor("price of audio input", "$"+r.AudioInPrice+" per million", fromBuiltIn)
		e.unitFactor(b)
	}
	e.groupFactor(q)
}

// fromCompletion says which rule gives a completion ratio: see completionRatio.
func (b *PriceBook) fromCompletion(name string) string {
	_, set := b.completion[name]
	_, locked := builtinCompletion(name)
	switch {
	case set && (!locked || strings.Contains(name, "/")):
		return b.from(OptionCompletionRatio, name, b.completion)
	case locked:
		return fromLocked
	}
	return fromBuiltIn
}

// expression lists the variables of a billing expression.
func (e *Explanation) expression(q *Quote) error {
	b := q.book
	e.factor("expression", b.exprSource[q.key.Model], "option "+b.stored[OptionBillingExpr])
	e.unitFactor(b)
	e.groupFactor(q)
	if e.nothing() {
		return nil
	}
	in := expressionInput(e.Usage, q.expr)
	in.Body, in.Header = q.body, q.header
	usd, tier, err := q.expr.Price(in)
	if err != nil {
		return fmt.Errorf("evaluate billing expression of %s: %w", q.key.Model, err)
	}
	for _, v := range []struct {
		name  string
		count int64
	}{
		{"p", in.Prompt},
		{"c", in.Completion},
		{"len", in.Length},
		{"cr", in.CacheRead},
		{"cc", in.CacheWrite},
		{"cc1h", in.CacheWrite1h},
		{"img", in.ImageIn},
		{"img_o", in.ImageOut},
		{"ai", in.AudioIn},
		{"ao", in.AudioOut},
	} {
		if v.name == "p" || v.name == "c" || q.expr.Uses(v.name) {
			e.factor(v.name, fmt.Sprint(v.count), "the usage")
		}
	}
	what := "expression"
	if tier != "" {
		what += ", tier " + tier
	}
	exact := usd.Mul(b.unit).Mul(q.group).Shift(-6)
	e.term(what, 1, fmt.Sprintf("× $%s per million × %s × %s", usd, b.unit, q.rated.GroupRatio), exact)
	e.formula.tokens = exact
	return nil
}

// tools lists the calls of provider-side tools.
func (e *Explanation) tools(q *Quote) {
	for _, t := range q.withSearch(e.Usage.Tools) {
		price, from := q.toolPriceFrom(t.Name)
		if t.Count <= 0 || price.IsZero() {
			continue
		}
		e.factor(t.Name, "$"+price.String()+" per 1,000 calls", from)
		exact := price.Mul(decimal.NewFromInt(t.Count)).Mul(q.book.unit).Mul(q.group).Shift(-3)
		e.term(t.Name, t.Count, fmt.Sprintf("× $%s per 1,000 × %s × %s", price, q.book.unit, q.rated.GroupRatio), exact)
		e.formula.tools = e.formula.tools.Add(exact)
	}
}

// finish says how the sum becomes whole units.
func (e *Explanation) finish(q *Quote) {
	tokens := e.formula.tokens
	rule := "half away from zero"
	if q.mode == ModeExpr && !tokens.Equal(tokens.Round(0)) {
		if !e.formula.tools.IsZero() {
			rule = "the expression half away from zero, then the sum"
		}
		tokens = tokens.Round(0)
	}
	total := tokens.Add(e.formula.tools)
	e.Exact = e.formula.tokens.Add(e.formula.tools).String()
	rounded := total.Round(0)
	switch {
	case len(e.Terms) == 0:
		e.Rounding = "nothing billable: neither input nor output tokens, and no tool calls"
	case e.Rating.Saturated:
		e.Rounding = fmt.Sprintf("capped at %d, the largest bill of one request", int64(MaxBill))
	case rounded.Sign() <= 0 && e.Quota == 1:
		e.Rounding = "at least 1, because tokens of a model that is not free were used"
	case total.Equal(rounded) && decimal.RequireFromString(e.Exact).Equal(rounded):
		e.Rounding = "exact"
	default:
		e.Rounding = rule
	}
}
