package ledger

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shopspring/decimal"
)

// Agreement is what a check of a logged bill comes to.
type Agreement string

// The ways a logged bill can compare. Of the first two nothing is owed; the third is a change of prices; the fourth is what an operator
// should look at before the switch; the fifth says nothing either way.
const (
	BillMatched  Agreement = "matched"   // today's options give the quota that was charged, to the unit
	BillDerived  Agreement = "derived"   // they do with a factor that the log does not hold and the quota shows
	BillRepriced Agreement = "repriced"  // the row's own ratios give the quota, but today's options hold other ones
	BillDiffers  Agreement = "different" // neither today's options nor the row's own ratios give it
	BillUnrated  Agreement = "unrated"   // the row does not hold what its price depends on
)

// Agreements lists all of them, in the order in which reports show them.
func Agreements() []Agreement {
	return []Agreement{BillMatched, BillDerived, BillRepriced, BillDiffers, BillUnrated}
}

// Change is one factor that a row was billed with and that today's options do not hold.
type Change struct {
	Factor string `json:"factor"`
	Then   string `json:"then"`
	Now    string `json:"now"`
}

// Comparison is the outcome of one check.
type Comparison struct {
	Agreement Agreement
	Reason    string   // one of a few texts; rows are grouped by it. Empty for BillMatched, the factors for BillRepriced.
	Quota     int64    // what today's options make of the row; 0 if nothing
	Own       int64    // what the row's own ratios make of it; 0 if nothing, or not looked at
	Changes   []Change // BillRepriced: what is not the same today
	Usage     Usage    // as the row tells it
	Rating    Rating   // today's, of Quota
}

// Checker rates logged bills again. It is not safe for concurrent use: the clock of its expressions is the row's own time.
type Checker struct {
	book    *PriceBook
	compile ExpressionCompiler
	at      time.Time
	exprs   map[string]Expression // sources that rows carry; bounded by maxLoggedExprs
}

// maxLoggedExprs bounds the expressions remembered (L7): more than an operator ever writes. Beyond it none of a row's own is looked at.
const maxLoggedExprs = 1024

// NewChecker makes a checker of New API's option values, as ParsePriceBookWith reads them. compiler gives the compiler of billing
// expressions with a clock, as package rating does; nil leaves models billed by expression unrated.
func NewChecker(options map[string]string, compiler func(now func() time.Time) ExpressionCompiler) (*Checker, error) {
	c := &Checker{exprs: make(map[string]Expression)}
	if compiler != nil {
		c.compile = compiler(func() time.Time { return c.at })
	}
	var err error
	c.book, err = ParsePriceBookWith(options, c.compile)
	return c, err
}

// Book is the price book of today's options.
func (c *Checker) Book() *PriceBook { return c.book }

// Check rates a row by today's options, and where that gives another quota finds out why.
func (c *Checker) Check(row *LoggedBill) Comparison {
	c.at = time.Unix(row.CreatedAt, 0)
	d := row.details()
	out := Comparison{Usage: d.usage}
	in := RateInput{
		Model: row.Model, UserGroup: row.UserGroup, Group: row.Group, Endpoint: d.endpoint, Usage: d.usage,
		AcceptUnpriced: d.rating.ModelRatio == unpricedRatio.String(),
	}
	bill, err := c.book.Rate(in)
	if err == nil {
		out.Quota, out.Rating = bill.Quota, bill.Rating
		if bill.Quota == row.Quota {
			out.Agreement = BillMatched
			return out
		}
		if c.derive(row, &d, in, &out) {
			return out
		}
	}
	c.explain(row, &d, err != nil, &out)
	return out
}

// The reasons that rows are grouped by.
const (
	reasonPictures   = "number, size or quality of pictures: not in the log, read from the quota (a whole multiple of the price)"
	reasonRules      = "the expression looks at the request: what had matched is read from the row"
	reasonArithmetic = "neither today's options nor the row's own ratios give the quota"
	reasonRule       = "the row's own ratios are today's, and give another quota by today's rules"
	reasonCeiling    = "above the largest bill of one request, 2,147,483,647"
	reasonNoDetails  = "the row has no details (column other): ratios and cached tokens of that request are not known"
	reasonTask       = "asynchronous task: seconds and size are in the request, not in the log"
	reasonImage      = "picture request: number, size and quality are not in the log, and the quota is no whole multiple of the price"
	reasonRequest    = "the expression looks at the request, which is not in the log"
	reasonParts      = "the expression prices images or audio, whose tokens are not in the log"
	reasonFee        = "a fee that New API charges for a refused request"
	reasonUnknown    = "the row has details that are not known here: "
	reasonNoPrice    = "the model has no price in today's options, and the row does not tell it"
)

// derive looks for a factor that the log does not hold and that makes today's bill right: the pictures of an image request,
// or the rules of an expression that looks at the request.
func (c *Checker) derive(row *LoggedBill, d *loggedDetails, in RateInput, out *Comparison) bool {
	if d.rating.Mode == ModeExpr && out.Rating.Mode == ModeExpr {
		quota, ok := c.byRules(row, d, c.book.exprs[row.Model], out.Rating)
		if !ok || quota != row.Quota {
			return false
		}
		out.Agreement, out.Reason, out.Quota = BillDerived, reasonRules, quota
		return true
	}
	times, ok := pictures(d, row.Quota, out.Quota)
	if !ok {
		return false
	}
	in.Other = times
	bill, err := c.book.Rate(in)
	if err != nil || bill.Quota != row.Quota {
		return false
	}
	out.Agreement, out.Reason, out.Quota, out.Rating = BillDerived, reasonPictures, bill.Quota, bill.Rating
	return true
}

// maxPictures bounds the factor of an image request (L7): ten pictures, each at three times the price for the largest size
// in the best quality.
const maxPictures = 30

// pictures gives the whole number of times that a charged quota is the price of one picture.
func pictures(d *loggedDetails, charged, single int64) (decimal.Decimal, bool) {
	if !d.images() || single <= 0 {
		return one, false
	}
	times := decimal.NewFromInt(charged).DivRound(decimal.NewFromInt(single), 0)
	return times, times.GreaterThan(one) && times.LessThanOrEqual(decimal.NewFromInt(maxPictures))
}

// byRules prices a row by an expression whose look at the request is replaced by the rules that the row says had matched.
// The request itself is not in the log: an expression that asks for it finds nothing.
func (c *Checker) byRules(row *LoggedBill, d *loggedDetails, expr Expression, r Rating) (int64, bool) {
	if expr == nil {
		return 0, false
	}
	usd, _, err := expr.Price(expressionInput(d.usage, expr))
	if err != nil {
		return 0, false
	}
	var n numbers
	q := &Quote{mode: ModeExpr, book: c.book, key: QuoteKey{Model: row.Model}, group: n.read(r.GroupRatio, one)}
	for _, rule := range d.rules {
		if rule.Get("matched").Bool() {
			usd = usd.Mul(n.read(rule.Get("multiplier").Raw, one))
		}
	}
	tools, _ := q.toolCharge(d.usage.Tools)
	quota, _ := q.round(usd.Mul(c.book.unit).Mul(q.group).Shift(-6).Round(0).Add(tools))
	if d.usage.Prompt+d.usage.Completion == 0 && tools.IsZero() {
		quota = 0
	}
	return quota, n.err == nil
}

// explain files a row that today's options do not explain.
func (c *Checker) explain(row *LoggedBill, d *loggedDetails, unpriced bool, out *Comparison) {
	own, ok := c.own(row, d)
	if ok {
		out.Own = own.quota
	}
	switch {
	case ok && own.quota == row.Quota:
		out.Agreement = BillRepriced
		out.Changes = c.changes(row, d, own, unpriced, &out.Rating)
		if len(out.Changes) == 0 {
			out.Agreement, out.Reason = BillDiffers, reasonRule
			return
		}
		out.Reason = factorsOf(out.Changes)
	case !d.present:
		out.Agreement, out.Reason = BillUnrated, reasonNoDetails
	case d.fee:
		out.Agreement, out.Reason = BillUnrated, reasonFee
	case d.task:
		out.Agreement, out.Reason = BillUnrated, reasonTask
	case d.images():
		out.Agreement, out.Reason = BillUnrated, reasonImage
	case row.Quota > MaxBill:
		out.Agreement, out.Reason = BillDiffers, reasonCeiling
	case d.rating.Mode == ModeExpr && c.missing(row, d) != "":
		out.Agreement, out.Reason = BillUnrated, c.missing(row, d)
	case len(d.unknown) > 0:
		out.Agreement, out.Reason = BillUnrated, reasonUnknown+strings.Join(d.unknown, ", ")
	case unpriced && !ok:
		out.Agreement, out.Reason = BillUnrated, reasonNoPrice
	default:
		out.Agreement, out.Reason = BillDiffers, reasonArithmetic
	}
}

// missing says what an expression needs that the row does not hold; empty if nothing.
func (c *Checker) missing(row *LoggedBill, d *loggedDetails) string {
	expr := c.expression(row, d)
	switch uses := func(name string) bool { return expr.Uses(name) }; {
	case expr == nil:
		return reasonNoPrice
	case slices.ContainsFunc([]string{"param", "header"}, uses):
		return reasonRequest
	case slices.ContainsFunc([]string{"img", "img_o", "ai", "ao"}, uses):
		return reasonParts
	}
	return ""
}

// expression is the one that a row carries, or today's of its model; nil if there is none that can be used.
func (c *Checker) expression(row *LoggedBill, d *loggedDetails) Expression {
	if d.expr == "" || c.compile == nil {
		return c.book.exprs[row.Model]
	}
	if known, ok := c.exprs[d.expr]; ok {
		return known
	}
	expr, err := c.compile(d.expr)
	if err != nil {
		expr = nil // written in another version of the language: not to be judged
	}
	if len(c.exprs) < maxLoggedExprs {
		c.exprs[d.expr] = expr
	}
	return expr
}

// ownBill is what the ratios of a row give.
type ownBill struct {
	quota int64
	times decimal.Decimal // of an image request
	unit  decimal.Decimal // QuotaPerUnit: today's, or another that the quota shows
}

// own rates a row by the ratios that it names.
func (c *Checker) own(row *LoggedBill, d *loggedDetails) (ownBill, bool) {
	own := ownBill{times: one, unit: c.book.unit}
	if !d.present {
		return own, false
	}
	if d.rating.Mode == ModeExpr {
		var ok bool
		own.quota, ok = c.byRules(row, d, c.expression(row, d), d.rating)
		return own, ok
	}
	bill, ok := rateAgain(d, own)
	if own.quota = bill; !ok || bill == row.Quota {
		return own, ok
	}
	if times, isImage := pictures(d, row.Quota, bill); isImage {
		own.times = times
		own.quota, ok = rateAgain(d, own)
		return own, ok
	}
	if unit, found := impliedUnit(row, d); found {
		other := own
		other.unit = unit
		if other.quota, ok = rateAgain(d, other); ok && other.quota == row.Quota {
			return other, true
		}
	}
	return own, true
}

// rateAgain prices a row's usage by its own ratios.
func rateAgain(d *loggedDetails, own ownBill) (int64, bool) {
	rating := d.rating
	rating.QuotaPerUnit = own.unit.String()
	q, err := rating.quote()
	if err != nil {
		return 0, false
	}
	bill, err := q.Rate(d.usage, own.times)
	return bill.Quota, err == nil
}

// impliedUnit is the QuotaPerUnit that a row's price per call shows: a row does not name it. Only whole thousands are believed, and
// only of a price that tells one thousand from the next.
func impliedUnit(row *LoggedBill, d *loggedDetails) (decimal.Decimal, bool) {
	var n numbers
	each := n.read(d.rating.ModelPrice, decimal.Zero).Mul(n.read(d.rating.GroupRatio, one))
	if n.err != nil || d.rating.Mode != ModePrice || each.Shift(3).LessThan(one) {
		return one, false
	}
	unit := decimal.NewFromInt(row.Quota).DivRound(each, -3)
	return unit, unit.Sign() > 0 && unit.LessThanOrEqual(decimal.NewFromInt(maxRatio))
}

// changes lists what a row was billed with and today's options hold otherwise, as far as it bears on this row.
func (c *Checker) changes(row *LoggedBill, d *loggedDetails, own ownBill, unpriced bool, now *Rating) []Change {
	then, u := &d.rating, &d.usage
	if unpriced {
		return []Change{{"the model has no price any more", modeOf(then), "none"}}
	}
	var list []Change
	note := func(factor, then, now string, bears bool) {
		var n numbers
		if bears && !n.read(then, one).Equal(n.read(now, one)) {
			list = append(list, Change{factor, then, now})
		}
	}
	if then.Mode != now.Mode {
		list = append(list, Change{"way of billing", modeOf(then), modeOf(now)})
	} else {
		text := then.Mode == ModeRatio
		note("model ratio", then.ModelRatio, now.ModelRatio, text)
		note("completion ratio", then.CompletionRatio, now.CompletionRatio, text && u.Completion != 0)
		note("cache ratio", then.CacheRatio, now.CacheRatio, text && u.CacheRead != 0)
		note("cache write ratio", then.CacheWriteRatio, now.CacheWriteRatio, text && u.CacheWrite+u.CacheWrite5m+u.CacheWrite1h != 0)
		note("image ratio", then.ImageRatio, now.ImageRatio, text && u.ImageIn != 0)
		note("audio ratio", then.AudioRatio, now.AudioRatio, text && then.AudioRatio != "")
		note("audio output ratio", then.AudioOutRatio, now.AudioOutRatio, text && then.AudioRatio != "")
		note("price of audio input", then.AudioInPrice, now.AudioInPrice, text && u.AudioIn != 0)
		note("price per call", then.ModelPrice, now.ModelPrice, then.Mode == ModePrice)
	}
	if then.Mode == ModeExpr && d.expr != "" && d.expr != c.book.exprSource[row.Model] {
		list = append(list, Change{"expression", d.expr, c.book.exprSource[row.Model]})
	}
	note("group ratio", then.GroupRatio, now.GroupRatio, true)
	note(OptionQuotaPerUnit, own.unit.String(), c.book.unit.String(), true)
	if toolsOf(then) != toolsOf(now) {
		list = append(list, Change{"tool prices", toolsOf(then), toolsOf(now)})
	}
	return list
}

// factorsOf names the changed factors, for the reason that rows are grouped by.
func factorsOf(changes []Change) string {
	names := make([]string, len(changes))
	for i, c := range changes {
		names[i] = c.Factor
	}
	return strings.Join(names, ", ")
}

// modeOf says how a rating bills, in a few words.
func modeOf(r *Rating) string {
	switch r.Mode {
	case ModePrice:
		return "$" + r.ModelPrice + " a call"
	case ModeExpr:
		return "an expression"
	}
	return "model ratio " + r.ModelRatio
}

// toolsOf lists the tool prices of a rating.
func toolsOf(r *Rating) string {
	var b strings.Builder
	for _, t := range r.Tools {
		fmt.Fprintf(&b, "%d x %s at $%s; ", t.Count, t.Name, t.Price)
	}
	return strings.TrimSuffix(b.String(), "; ")
}
