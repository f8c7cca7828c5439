package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"
	"time"

	"ledgerline/ledger"
)

//go:embed import_bills.html
var billsPage string

// shownModels bounds the list of models on the page: the dearest ones.
const shownModels = 40

// pageTemplate is made when it is needed; a mistake in it is a bug that a test finds.
func pageTemplate() *template.Template {
	return template.Must(template.New("bills").Funcs(template.FuncMap{
		"signed": signedThousands, "thousands": thousands, "blank": blank, "stamp": stamp, "dollars": dollars,
		"title": func(a ledger.Agreement) string { return strings.ToLower(outcomes[a].title) },
		"clock": func(t time.Time) string { return t.Format(time.DateTime) },
	}).Parse(billsPage))
}

// pageRow is one outcome on the page.
type pageRow struct {
	Kind, Title, Text string
	Share             string
	Width             string // of its part of the bar, in per cent
	*billsSum
	USD string
}

// writePage writes the report as one self-contained HTML file.
func (r *billsReport) writePage(path string) error {
	page, err := r.page()
	if err != nil {
		return err
	}
	if err := writeFile(path, page); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func (r *billsReport) page() ([]byte, error) {
	var rows []pageRow
	for _, a := range ledger.Agreements() {
		s := r.of(a)
		rows = append(rows, pageRow{
			Kind: string(a), Title: strings.ToLower(outcomes[a].title), Text: outcomes[a].text, Share: share(s.Bills, r.Bills),
			Width: fmt.Sprintf("%.3f", 100*float64(s.Bills)/float64(max(r.Bills, 1))), billsSum: s, USD: r.usd(s.Difference()),
		})
	}
	tone := "good"
	switch agreed := r.of(ledger.BillMatched).Bills + r.of(ledger.BillDerived).Bills; {
	case r.of(ledger.BillDiffers).Bills > 0:
		tone = "bad"
	case agreed < r.Bills:
		tone = "fair"
	}
	models := r.topModels()
	var out bytes.Buffer
	err := pageTemplate().Execute(&out, map[string]any{
		"Report": r, "Rows": rows, "Reasons": r.ordered(), "Tone": tone, "Verdict": r.verdict(),
		"Models": models[:min(len(models), shownModels)], "MoreModels": max(len(models)-shownModels, 0),
		"Rate": thousands(int64(r.rate())), "Made": time.Now().UTC().Format(time.DateTime) + " UTC",
		"Span": r.spanText(),
	})
	if err != nil {
		return nil, fmt.Errorf("make the report page: %w", err)
	}
	return out.Bytes(), nil
}

// spanText says which bills were asked for.
func (r *billsReport) spanText() string {
	switch s := r.Span; {
	case s.Since == 0 && s.Until == 0:
		return "all bills"
	case s.Until == 0:
		return "since " + stamp(s.Since)
	case s.Since == 0:
		return "before " + stamp(s.Until)
	default:
		return stamp(s.Since) + " to " + stamp(s.Until)
	}
}

// thousands writes a number in groups of three digits.
func thousands(n int64) string {
	text := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// signedThousands is thousands with a sign for what is more, too.
func signedThousands(n int64) string {
	if n > 0 {
		return "+" + thousands(n)
	}
	return thousands(n)
}

// dollars is the method usd for templates, with a sign before the currency.
func dollars(r *billsReport, quota int64) string {
	text := r.usd(quota)
	if rest, below := strings.CutPrefix(text, "-"); below {
		return "-$" + rest
	}
	return "$" + text
}
