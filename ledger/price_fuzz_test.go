package ledger

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"testing"
)

// FuzzPriceBook reads any text as any of the options: it is refused by name, or prices every request from 0 to the largest bill.
func FuzzPriceBook(f *testing.F) {
	f.Add(uint8(0), `{"gpt-4o": 1.25, "a*": 0}`, int64(1000), int64(500))
	f.Add(uint8(1), `{"m": -1e308}`, int64(math.MaxInt64), int64(math.MaxInt64))
	f.Add(uint8(2), `{"m": 1e999999999}`, int64(1), int64(0))
	f.Add(uint8(3), `{"m": "0.1", "m": [[[[[1]]]]]}`, int64(0), int64(1))
	f.Add(uint8(4), `{"default": 1e-400, "vip": null}`, int64(1), int64(1))
	f.Add(uint8(5), `NaN`, int64(1), int64(1))
	keys := slices.Sorted(maps.Keys(defaultOptions()))
	f.Fuzz(func(t *testing.T, which uint8, text string, prompt, completion int64) {
		key := keys[int(which)%len(keys)]
		book, err := ParsePriceBook(map[string]string{key: text})
		if err != nil {
			var option *OptionError
			if !errors.As(err, &option) || option.Key != key {
				t.Errorf("option %s is refused with %v", key, err)
			}
			return
		}
		usage := Usage{Prompt: max(0, prompt), Completion: max(0, completion)}
		for _, model := range append(book.Models()[:min(3, len(book.Models()))], "m", "gpt-4o", "gpt-4o-mini-search-preview") {
			bill, err := book.Rate(RateInput{Model: model, UserGroup: "default", Group: "vip", Usage: usage, AcceptUnpriced: true})
			if err == nil && (bill.Quota < 0 || bill.Quota > MaxBill) {
				t.Errorf("%s: %d units for %+v", model, bill.Quota, usage)
			}
		}
	})
}

// FuzzCharge applies any recorded rating again: what a journal says was applied, whoever wrote it, costs from 0 to the largest bill.
func FuzzCharge(f *testing.F) {
	f.Add(`{"mode":"ratio","model_ratio":"1.25","completion_ratio":"4","group_ratio":"1"}`, int64(10), int64(20))
	f.Add(`{"mode":"price","model_price":"-5","group_ratio":"1e400"}`, int64(0), int64(0))
	f.Add(`{"mode":"ratio","model_ratio":"NaN","tools":[{"name":"web_search","price":"1e-300","calls":9}]}`, int64(math.MaxInt64), int64(1))
	f.Add(`{"mode":"ratio","quota_per_unit":"0","model_ratio":"99999999999999999999999999","group_ratio":"0"}`, int64(1), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, text string, prompt, completion int64) {
		var r Rating
		if json.Unmarshal([]byte(text), &r) != nil {
			return
		}
		if got := r.Charge(Usage{Prompt: max(0, prompt), Completion: max(0, completion)}); got < 0 || got > MaxBill {
			t.Errorf("%d units", got)
		}
	})
}
