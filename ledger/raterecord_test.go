package ledger

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
)

// What a journal remembers of a price gives the same bill as the price book did: for every model of the book, for
// models that search, have audio or a price per call, in groups with ratios, and after a trip through JSON.
func TestRatingChargesAsItsQuote(t *testing.T) {
	book := mustBook(t, map[string]string{
		OptionGroupRatio: `{"default":1,"vip":0.7,"dear":3}`, OptionGroupGroupRatio: `{"vip":{"dear":1.13}}`,
		OptionQuotaPerUnit: "400000", OptionSelfUseMode: "true",
	})
	models := append(book.Models(), "gpt-4o-search-preview", "gpt-4o-audio-preview", "gemini-2.5-flash", "never-heard-of")
	random := rand.New(rand.NewPCG(1, 2))
	for _, model := range models {
		for _, groups := range [][2]string{{"default", "default"}, {"vip", "dear"}} {
			q, err := book.Quote(model, groups[0], groups[1])
			if err != nil {
				t.Fatalf("%s: %v", model, err)
			}
			text, err := json.Marshal(q.Rating())
			if err != nil {
				t.Fatal(err)
			}
			var recorded Rating
			if err := json.Unmarshal(text, &recorded); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				u := Usage{Prompt: random.Int64N(5000), Completion: random.Int64N(3000)}
				if u.CacheRead = random.Int64N(3); u.CacheRead > 0 {
					u.CacheRead, u.CacheWrite, u.AudioIn, u.ImageIn = u.Prompt/3, u.Prompt/7, u.Prompt/9, u.Prompt/11
					u.AudioOut = u.Completion / 5
				}
				if got, want := recorded.Charge(u), q.Price(u); got != want {
					t.Fatalf("%s in %v: %+v costs %d by its record %s, %d by its quote", model, groups, u, got, text, want)
				}
			}
		}
	}
}

// A record that cannot be applied is the dearest bill, which its hold bounds.
func TestRatingThatCannotBeAppliedAgain(t *testing.T) {
	for _, r := range []Rating{{Mode: ModeExpr}, {}, {Mode: ModeRatio, ModelRatio: "dear"}, {Mode: ModeRatio, ModelRatio: "1", GroupRatio: "-1"}} {
		if got := r.Charge(Usage{Prompt: 1}); got != MaxBill {
			t.Errorf("%+v charges %d, want %d", r, got, int64(MaxBill))
		}
	}
}
