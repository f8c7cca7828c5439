package ledger

import (
	"fmt"

	"github.com/shopspring/decimal"
)

// Rating returns what a bill of this quote will say was applied, before any usage is known: the journal keeps it beside an open request, so
// that recovery can price it without a price book.
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

// quote rebuilds the unit prices that a rating records.
func (r *Rating) quote() (*Quote, error) {
	number := func(text string, otherwise decimal.Decimal) (decimal.Decimal, error) {
		if text == "" {
			return otherwise, nil
		}
		return parseNumber(text)
	}
	var firstErr error
	get := func(text string, otherwise decimal.Decimal) decimal.Decimal {
		d, err := number(text, otherwise)
		if err != nil && firstErr == nil {
			firstErr = err
		}
		return d
	}
	q := &Quote{book: &PriceBook{unit: get(r.QuotaPerUnit, decimal.NewFromInt(500_000))}, mode: r.Mode, rated: *r}
	q.group = get(r.GroupRatio, one)
	switch r.Mode {
	case ModePrice:
		q.call = get(r.ModelPrice, decimal.Zero).Mul(q.book.unit).Mul(q.group)
	case ModeRatio:
		q.perToken = get(r.ModelRatio, decimal.Zero).Mul(q.group)
		q.exact[dimText] = q.perToken
		q.exact[dimCacheRead] = q.perToken.Mul(get(r.CacheRatio, one))
		q.exact[dimCacheWrite] = q.perToken.Mul(get(r.CacheWriteRatio, defaultCacheWrite))
		q.exact[dimCacheWrite1h] = q.exact[dimCacheWrite].Mul(hourCacheWrite)
		q.exact[dimImageIn] = q.perToken.Mul(get(r.ImageRatio, one))
		q.exact[dimOutput] = q.perToken.Mul(get(r.CompletionRatio, one))
		if q.audioModel = r.AudioRatio != ""; q.audioModel {
			q.exact[dimAudioIn] = q.perToken.Mul(get(r.AudioRatio, one))
			q.exact[dimAudioOut] = q.exact[dimAudioIn].Mul(get(r.AudioOutRatio, one))
		} else if r.AudioInPrice != "" {
			q.audioApart = true
			q.exact[dimAudioIn] = get(r.AudioInPrice, decimal.Zero).Mul(q.book.unit).Mul(q.group).Shift(-6)
		}
	default:
		return nil, fmt.Errorf("rating of mode %q cannot be applied again", r.Mode)
	}
	q.scaled = scale(q.exact)
	return q, firstErr
}
