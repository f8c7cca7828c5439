package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/shopspring/decimal"
)

// table maps a name (model, group or tool) to an exact decimal.
type table map[string]decimal.Decimal

// or returns the entry, or the default if there is none.
func (t table) or(name string, missing decimal.Decimal) decimal.Decimal {
	if d, ok := t[name]; ok {
		return d
	}
	return missing
}

// parseTable reads a JSON object of numbers. The empty text is an empty table, as an option that was cleared is stored.
func parseTable(key, text string) (table, error) {
	if strings.TrimSpace(text) == "" {
		return table{}, nil
	}
	var raw map[string]json.Number
	if err := decodeStrict(text, &raw); err != nil {
		return nil, &OptionError{key, "want a JSON object of numbers: " + err.Error()}
	}
	t := make(table, len(raw))
	for name, number := range raw {
		d, err := parseNumber(number.String())
		if err != nil {
			return nil, &OptionError{key, fmt.Sprintf("entry %q: %v", name, err)}
		}
		t[name] = d
	}
	return t, nil
}

// parseNestedTable reads a JSON object of objects of numbers.
func parseNestedTable(key, text string) (map[string]table, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var raw map[string]json.RawMessage
	if err := decodeStrict(text, &raw); err != nil {
		return nil, &OptionError{key, "want a JSON object of objects: " + err.Error()}
	}
	out := make(map[string]table, len(raw))
	for name, inner := range raw {
		t, err := parseTable(key, string(inner))
		if problem, ok := errors.AsType[*OptionError](err); ok {
			return nil, &OptionError{key, fmt.Sprintf("entry %q: %s", name, problem.Problem)}
		}
		out[name] = t
	}
	return out, nil
}

// parseTexts reads a JSON object of strings.
func parseTexts(key, text string) (map[string]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var out map[string]string
	if err := decodeStrict(text, &out); err != nil {
		return nil, &OptionError{key, "want a JSON object of strings: " + err.Error()}
	}
	return out, nil
}

// decodeStrict decodes one JSON value and nothing after it.
func decodeStrict(text string, into any) error {
	return json.Unmarshal([]byte(text), into)
}

// parseNumber reads a ratio or price. New API holds these as float64, so the text goes through one and back to the
// shortest decimal that names it; from there on all arithmetic is exact (L8).
func parseNumber(text string) (decimal.Decimal, error) {
	f, err := strconv.ParseFloat(strings.Trim(strings.TrimSpace(text), `"`), 64)
	if err != nil || f != f || f < 0 || f > maxRatio {
		return decimal.Decimal{}, fmt.Errorf("%.40q is not a number from 0 to %g", text, maxRatio)
	}
	return decimal.NewFromString(strconv.FormatFloat(f, 'g', -1, 64))
}
