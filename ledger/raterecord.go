package ledger

import (
	"fmt"

	"github.com/shopspring/decimal"
)

// Rating returns what a bill of this quote will say was applied, before any usage is known: the journal keeps it beside an open
// request, so that recovery can price it without a price book.
func (q *Quote) Rating() Rating { return q.rated }

// Charge prices a usage by a recorded rating, with the formulas of Quote.Rate. Expressions cannot be evaluated again from
// their record; like a record that does not parse they give MaxBill, which the caller bounds by the hold.
func (r *Rating) Charge(u Usage) int64 {
	q, err := r.quote()
	if err != nil {
		return MaxBill
	}
	return q.Price(u)
}

// quote makes the quote that a rating is the record of.
func (r *Rating) quote() (*Quote, error) {
	if r.Mode != ModePrice && r.Mode != ModeRatio {
		return nil, fmt.Errorf("rating of mode %q cannot be applied again", r.Mode)
	}
	var n numbers
	q := &Quote{rated: *r, book: &PriceBook{unit: n.read(r.QuotaPerUnit, defaultUnit), tools: table{}}}
	for _, t := range r.Tools {
		q.book.tools[t.Name] = n.read(t.Price, decimal.Zero)
		q.searchModel = q.searchModel || t.Name == ToolSearchPreview
	}
	if n.err != nil {
		return nil, n.err
	}
	return q, q.setPrices()
}

// defaultUnit is QuotaPerUnit where a record names none.
var defaultUnit = decimal.NewFromInt(500_000)

// numbers reads decimals and keeps the first error.
type numbers struct{ err error }

func (n *numbers) read(text string, otherwise decimal.Decimal) decimal.Decimal {
	if text == "" {
		return otherwise
	}
	d, err := parseNumber(text)
	if n.err == nil {
		n.err = err
	}
	return d
}

// setPrices sets the unit prices from what q.rated records, whether that comes from a price book or from a journal: what is
// held, billed and recovered is priced by one function.
func (q *Quote) setPrices() error {
	r := &q.rated
	var n numbers
	q.mode = r.Mode
	q.group = n.read(r.GroupRatio, one)
	switch r.Mode {
	case ModePrice:
		q.call = n.read(r.ModelPrice, decimal.Zero).Mul(q.book.unit).Mul(q.group)
	case ModeRatio:
		q.perToken = n.read(r.ModelRatio, decimal.Zero).Mul(q.group)
		q.exact[dimText] = q.perToken
		q.exact[dimCacheRead] = q.perToken.Mul(n.read(r.CacheRatio, one))
		q.exact[dimCacheWrite] = q.perToken.Mul(n.read(r.CacheWriteRatio, defaultCacheWrite))
		q.exact[dimCacheWrite1h] = q.exact[dimCacheWrite].Mul(hourCacheWrite)
		q.exact[dimImageIn] = q.perToken.Mul(n.read(r.ImageRatio, one))
		q.exact[dimOutput] = q.perToken.Mul(n.read(r.CompletionRatio, one))
		if q.audioModel = r.AudioRatio != ""; q.audioModel {
			q.exact[dimAudioIn] = q.perToken.Mul(n.read(r.AudioRatio, one))
			q.exact[dimAudioOut] = q.exact[dimAudioIn].Mul(n.read(r.AudioOutRatio, one))
		} else if q.audioApart = r.AudioInPrice != ""; q.audioApart {
			q.exact[dimAudioIn] = n.read(r.AudioInPrice, decimal.Zero).Mul(q.book.unit).Mul(q.group).Shift(-6) // per million
		}
	}
	if n.err != nil {
		return fmt.Errorf("read recorded ratios: %w", n.err)
	}
	q.scaled = scale(q.exact)
	q.bound = q.holdWeights()
	return nil
}
