package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shopspring/decimal"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// Bounds of a report (L7): it is kept in memory and in the state file while the check runs.
const (
	maxReasons  = 60  // further ones are counted together
	maxModels   = 500 // likewise
	maxExamples = 5   // per reason: enough to look into, few enough to read
)

// The names under which what is beyond the bounds is counted.
const (
	furtherReasons = "(further reasons)"
	furtherModels  = "(further models)"
)

// billsSum adds up bills: as New API charged them, and as today's options make them.
type billsSum struct {
	Bills   int64 `json:"bills"`
	Charged int64 `json:"charged"` // quota units
	Today   int64 `json:"today"`   // quota units; of bills that today's options give a price
}

func (s *billsSum) add(bill *ledger.LoggedBill, out *ledger.Comparison) {
	s.Bills++
	s.Charged += bill.Quota
	s.Today += out.Quota
}

// Difference is what today's options would have charged more; below zero: less.
func (s *billsSum) Difference() int64 { return s.Today - s.Charged }

// billExample is one bill that is not simply matched.
type billExample struct {
	ID         int64           `json:"id,omitempty"` // of the row; ClickHouse has none
	Request    string          `json:"request_id,omitempty"`
	Time       time.Time       `json:"time"`
	User       int64           `json:"user_id"`
	Group      string          `json:"group"`
	Model      string          `json:"model"`
	Usage      ledger.Usage    `json:"usage"`
	Charged    int64           `json:"charged"`
	Today      int64           `json:"today"`
	Own        int64           `json:"by_own_ratios"`
	Changes    []ledger.Change `json:"changes,omitempty"`
	Calculated string          `json:"calculated,omitempty"` // how Today came about
}

// billsReason is a group of bills.
type billsReason struct {
	Agreement ledger.Agreement `json:"agreement"`
	Reason    string           `json:"reason"`
	billsSum
	Examples []billExample `json:"examples"`
}

// billsModel is a model's share.
type billsModel struct {
	billsSum
	Agreed   int64 `json:"agreed"`   // matched or derived
	Repriced int64 `json:"repriced"` //
	Differs  int64 `json:"different"`
	Unrated  int64 `json:"unrated"`
}

// billsReport is what a check found.
type billsReport struct {
	Source  string                         `json:"source"`
	Span    usagelog.BillSpan              `json:"span"`
	First   int64                          `json:"first"` // Unix seconds of the first bill
	Last    int64                          `json:"last"`
	Book    string                         `json:"price_book"`
	PerUSD  decimal.Decimal                `json:"quota_per_usd"`
	Seconds float64                        `json:"seconds"`
	Bills   int64                          `json:"bills"`
	Tokens  int64                          `json:"tokens"`
	Totals  map[ledger.Agreement]*billsSum `json:"totals"`
	Reasons map[string]*billsReason        `json:"reasons"`
	Models  map[string]*billsModel         `json:"models"`
}

func newBillsReport(book *ledger.PriceBook, source string, span usagelog.BillSpan) *billsReport {
	r := &billsReport{
		Source: source, Span: span, Book: book.Version(), PerUSD: book.QuotaPerUnit(),
		Totals: make(map[ledger.Agreement]*billsSum), Reasons: make(map[string]*billsReason), Models: make(map[string]*billsModel),
	}
	for _, a := range ledger.Agreements() {
		r.Totals[a] = &billsSum{}
	}
	return r
}

// of returns the sum of the bills with one outcome.
func (r *billsReport) of(a ledger.Agreement) *billsSum { return r.Totals[a] }

// add files one bill.
func (r *billsReport) add(bill *ledger.LoggedBill, out *ledger.Comparison) {
	if r.Bills == 0 || bill.CreatedAt < r.First {
		r.First = bill.CreatedAt
	}
	r.Last = max(r.Last, bill.CreatedAt)
	r.Bills++
	r.Tokens += bill.Prompt + bill.Completion
	r.of(out.Agreement).add(bill, out)
	r.model(bill.Model).add(bill, out)
	if out.Agreement != ledger.BillMatched {
		r.reason(out).add(bill, out)
	}
}

func (r *billsReport) model(name string) *billsModel {
	if m := r.Models[name]; m != nil {
		return m
	}
	if len(r.Models) >= maxModels {
		name = furtherModels
	}
	if r.Models[name] == nil {
		r.Models[strings.Clone(name)] = &billsModel{}
	}
	return r.Models[name]
}

func (m *billsModel) add(bill *ledger.LoggedBill, out *ledger.Comparison) {
	m.billsSum.add(bill, out)
	switch out.Agreement {
	case ledger.BillMatched, ledger.BillDerived:
		m.Agreed++
	case ledger.BillRepriced:
		m.Repriced++
	case ledger.BillDiffers:
		m.Differs++
	case ledger.BillUnrated:
		m.Unrated++
	}
}

func (r *billsReport) reason(out *ledger.Comparison) *billsReason {
	key := string(out.Agreement) + ": " + out.Reason
	if known := r.Reasons[key]; known != nil {
		return known
	}
	reason := out.Reason
	if len(r.Reasons) >= maxReasons {
		reason = furtherReasons
		key = string(out.Agreement) + ": " + reason
	}
	if r.Reasons[key] == nil {
		r.Reasons[key] = &billsReason{Agreement: out.Agreement, Reason: reason}
	}
	return r.Reasons[key]
}

func (s *billsReason) add(bill *ledger.LoggedBill, out *ledger.Comparison) {
	s.billsSum.add(bill, out)
	if len(s.Examples) >= maxExamples {
		return
	}
	example := billExample{
		ID: bill.ID, Request: bill.RequestID, Time: time.Unix(bill.CreatedAt, 0).UTC(), User: bill.UserID, Group: bill.Group, Model: bill.Model,
		Usage: out.Usage, Charged: bill.Quota, Today: out.Quota, Own: out.Own, Changes: out.Changes,
	}
	if out.Rating.Mode != "" {
		example.Calculated = explainRating(out.Usage, &out.Rating)
	}
	s.Examples = append(s.Examples, example)
}

// ordered lists the reasons in the order of their weight for the reader: what differs first, then by how many bills there are.
func (r *billsReport) ordered() []*billsReason {
	rank := map[ledger.Agreement]int{ledger.BillDiffers: 0, ledger.BillUnrated: 1, ledger.BillRepriced: 2, ledger.BillDerived: 3}
	return slices.SortedFunc(maps.Values(r.Reasons), func(a, b *billsReason) int {
		return cmp.Or(cmp.Compare(rank[a.Agreement], rank[b.Agreement]), cmp.Compare(b.Bills, a.Bills), cmp.Compare(a.Reason, b.Reason))
	})
}

// modelRow is a model in a list.
type modelRow struct {
	Name string
	*billsModel
}

// topModels lists models by what was charged, the dearest first.
func (r *billsReport) topModels() []modelRow {
	var rows []modelRow
	for name, m := range r.Models {
		rows = append(rows, modelRow{name, m})
	}
	slices.SortFunc(rows, func(a, b modelRow) int { return cmp.Or(cmp.Compare(b.Charged, a.Charged), cmp.Compare(a.Name, b.Name)) })
	return rows
}

// usd turns quota units into dollars.
func (r *billsReport) usd(quota int64) string {
	if r.PerUSD.IsZero() {
		return "?"
	}
	return decimal.NewFromInt(quota).DivRound(r.PerUSD, 6).String()
}

// signed shows a difference with its sign.
func signed(n int64) string {
	if n > 0 {
		return fmt.Sprintf("+%d", n)
	}
	return fmt.Sprint(n)
}

// share is a part in per cent, rounded down: 100% means all.
func share(part, whole int64) string {
	if whole == 0 {
		return "0%"
	}
	tenths := decimal.NewFromInt(part).Shift(4).Div(decimal.NewFromInt(whole)).Floor().Shift(-2)
	return tenths.String() + "%"
}

// outcomes says what the answers mean, in the order of ledger.Agreements.
var outcomes = map[ledger.Agreement]struct{ title, text string }{
	ledger.BillMatched:  {"agree", "Today's options give the quota that was charged, to the unit."},
	ledger.BillDerived:  {"agree, derived", "They do, with a factor that the log does not hold and the quota shows."},
	ledger.BillRepriced: {"prices changed since", "The ratios written in the row give its quota; the options hold other ones today."},
	ledger.BillDiffers:  {"DIFFERENT", "Neither today's options nor the row's own ratios give the quota."},
	ledger.BillUnrated:  {"not re-ratable", "The row does not hold what its price depended on."},
}

// verdict is the report in one sentence.
func (r *billsReport) verdict() string {
	agreed := r.of(ledger.BillMatched).Bills + r.of(ledger.BillDerived).Bills
	switch differ := r.of(ledger.BillDiffers); {
	case r.Bills == 0:
		return "There are no bills to check."
	case agreed == r.Bills:
		return fmt.Sprintf("All %s bills agree to the unit.", thousands(r.Bills))
	case differ.Bills > 0:
		return fmt.Sprintf("Bills that differ for no known reason: %s of %s. Look at the examples before the switch.", thousands(differ.Bills), thousands(r.Bills))
	default:
		return fmt.Sprintf("No bill contradicts: %s of %s agree to the unit, the others are explained below.", thousands(agreed), thousands(r.Bills))
	}
}

// print writes the report for a terminal.
func (r *billsReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\n\n", r.verdict())
	if r.Bills > 0 {
		fmt.Fprintf(t, "logs of %s, %s to %s\n", r.Source, stamp(r.First), stamp(r.Last))
		fmt.Fprintf(t, "price book %s, %s quota units to the dollar; %.0f rows/s\n\n", r.Book, r.PerUSD, r.rate())
	}
	fmt.Fprintln(t, "\tbills\tshare\tcharged\ttoday\tdifference\tUSD")
	for _, a := range ledger.Agreements() {
		s := r.of(a)
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%d\t%s\t%s\n", outcomes[a].title, s.Bills, share(s.Bills, r.Bills), s.Charged, s.Today, signed(s.Difference()), r.usd(s.Difference()))
	}
	for _, reason := range r.ordered() {
		fmt.Fprintf(t, "\n%s: %s\n", outcomes[reason.Agreement].title, reason.Reason)
		fmt.Fprintf(t, "  bills: %d; charged %d, today %d: %s quota units, %s\n", reason.Bills, reason.Charged, reason.Today, signed(reason.Difference()), dollars(r, reason.Difference()))
		for _, e := range reason.Examples {
			fmt.Fprintf(t, "  %s\n", e.line())
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}

// line is an example in one line.
func (e *billExample) line() string {
	var b strings.Builder
	name := fmt.Sprintf("row %d", e.ID)
	if e.ID == 0 {
		name = "request " + e.Request
	}
	fmt.Fprintf(&b, "%s, %s, %s, group %s: charged %d, today %d", name, e.Time.Format(time.DateTime)+" UTC", e.Model, e.Group, e.Charged, e.Today)
	for _, c := range e.Changes {
		fmt.Fprintf(&b, "; %s: then %s, now %s", c.Factor, blank(c.Then), blank(c.Now))
	}
	if len(e.Changes) == 0 && e.Calculated != "" {
		fmt.Fprintf(&b, " (%s)", e.Calculated)
	}
	return b.String()
}

func blank(s string) string {
	const longest = 200 // an expression may be long
	switch {
	case s == "":
		return "none"
	case len(s) > longest:
		return strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}

func stamp(second int64) string { return time.Unix(second, 0).UTC().Format(time.DateTime) + " UTC" }

// rate is how many rows were checked in a second.
func (r *billsReport) rate() float64 {
	if r.Seconds <= 0 {
		return 0
	}
	return float64(r.Bills) / r.Seconds
}

// billsView is the report as -json prints it: lists in the order of the printed report, with what follows from the sums.
type billsView struct {
	Verdict  string             `json:"verdict"`
	OK       bool               `json:"ok"` // no bill differs for no known reason
	Source   string             `json:"source"`
	Span     usagelog.BillSpan  `json:"span"`
	First    int64              `json:"first"`
	Last     int64              `json:"last"`
	Book     string             `json:"price_book"`
	PerUSD   decimal.Decimal    `json:"quota_per_usd"`
	Bills    int64              `json:"bills"`
	Tokens   int64              `json:"tokens"`
	Rate     int64              `json:"rows_per_second"`
	Outcomes []billsOutcomeView `json:"outcomes"`
	Reasons  []billsReasonView  `json:"reasons"`
	Models   []billsModelView   `json:"models"`
}

type billsSumView struct {
	billsSum
	Difference    int64  `json:"difference"`
	DifferenceUSD string `json:"difference_usd"`
}

type billsOutcomeView struct {
	Outcome ledger.Agreement `json:"outcome"`
	billsSumView
}

type billsReasonView struct {
	Outcome ledger.Agreement `json:"outcome"`
	Reason  string           `json:"reason"`
	billsSumView
	Examples []billExample `json:"examples"`
}

type billsModelView struct {
	Model string `json:"model"`
	billsModel
}

func (r *billsReport) view() billsView {
	v := billsView{
		Verdict: r.verdict(), OK: r.of(ledger.BillDiffers).Bills == 0, Source: r.Source, Span: r.Span, First: r.First, Last: r.Last,
		Book: r.Book, PerUSD: r.PerUSD, Bills: r.Bills, Tokens: r.Tokens, Rate: int64(r.rate()),
	}
	sum := func(s billsSum) billsSumView { return billsSumView{s, s.Difference(), r.usd(s.Difference())} }
	for _, a := range ledger.Agreements() {
		v.Outcomes = append(v.Outcomes, billsOutcomeView{a, sum(*r.of(a))})
	}
	for _, s := range r.ordered() {
		v.Reasons = append(v.Reasons, billsReasonView{s.Agreement, s.Reason, sum(s.billsSum), s.Examples})
	}
	for _, m := range r.topModels() {
		v.Models = append(v.Models, billsModelView{m.Name, *m.billsModel})
	}
	return v
}
