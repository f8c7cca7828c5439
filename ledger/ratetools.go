package ledger

import (
	"strings"

	"github.com/shopspring/decimal"
)

// Names of provider-side tools with a price per call (fact sheet 4.3).
const (
	ToolWebSearch       = "web_search"
	ToolSearchPreview   = "web_search_preview"
	ToolFileSearch      = "file_search"
	ToolGoogleSearch    = "google_search"
	ToolImageGeneration = "image_generation"
)

// defaultToolPrices are US dollars per 1,000 calls; a key with a colon is for models whose name begins so.
var defaultToolPrices = table{
	ToolWebSearch:                   decimal.NewFromInt(10),
	ToolSearchPreview:               decimal.NewFromInt(10),
	ToolSearchPreview + ":gpt-4o*":  decimal.NewFromInt(25),
	ToolSearchPreview + ":gpt-4.1*": decimal.NewFromInt(25),
	ToolFileSearch:                  decimal.RequireFromString("2.5"),
	ToolGoogleSearch:                decimal.NewFromInt(14),
	ToolImageGeneration:             decimal.NewFromInt(150),
}

// ToolPrice is what one kind of tool call was billed at.
type ToolPrice struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
	Price string `json:"price"` // US dollars per 1,000 calls
}

// toolPrice gives US dollars per 1,000 calls of a tool for the quote's model: the longest model prefix that is named wins,
// the operator's entry over the default. A tool nobody priced is free.
func (q *Quote) toolPrice(tool string) decimal.Decimal {
	price, _ := q.toolPriceFrom(tool)
	return price
}

// toolPriceFrom is toolPrice, and who set it.
func (q *Quote) toolPriceFrom(tool string) (price decimal.Decimal, from string) {
	price, from = defaultToolPrices[tool], fromBuiltIn
	if own, ok := q.book.tools[tool]; ok {
		price, from = own, "option "+OptionToolPrices
	}
	longest := -1
	for i, prices := range []table{defaultToolPrices, q.book.tools} {
		for key, p := range prices {
			name, prefix, scoped := strings.Cut(key, ":")
			prefix = strings.TrimSuffix(prefix, "*")
			// On equal prefixes the operator's table, looked at last, wins.
			if scoped && name == tool && len(prefix) >= longest && strings.HasPrefix(q.key.Model, prefix) {
				price, longest = p, len(prefix)
				if from = fromBuiltIn + ", " + key; i == 1 {
					from = "option " + OptionToolPrices + ", " + key
				}
			}
		}
	}
	return price, from
}

// toolCharge prices tool calls in quota units and says at which prices.
func (q *Quote) toolCharge(tools []Tool) (decimal.Decimal, []ToolPrice) {
	total := decimal.Zero
	var prices []ToolPrice
	for _, t := range tools {
		price := q.toolPrice(t.Name)
		if t.Count <= 0 || price.IsZero() {
			continue
		}
		prices = append(prices, ToolPrice{t.Name, t.Count, price.String()})
		total = total.Add(price.Mul(decimal.NewFromInt(t.Count)))
	}
	return total.Mul(q.book.unit).Mul(q.group).Shift(-3), prices
}

// searchSurcharge is the price in quota units of the web search that every call of a search-preview model makes.
func (q *Quote) searchSurcharge() decimal.Decimal {
	if !q.searchModel {
		return decimal.Zero
	}
	return q.toolPrice(ToolSearchPreview).Mul(q.book.unit).Mul(q.group).Shift(-3)
}

// withSearch adds the search of a search-preview model to the tools that the answer reported, once.
func (q *Quote) withSearch(tools []Tool) []Tool {
	if !q.searchModel {
		return tools
	}
	for _, t := range tools {
		if t.Name == ToolSearchPreview {
			return tools
		}
	}
	return append(append(make([]Tool, 0, len(tools)+1), tools...), Tool{ToolSearchPreview, 1})
}
