package ledger

import (
	"maps"
	"slices"
)

// PriceOptions lists the option keys that a price book reads, sorted. A value of one of them must go through
// ParsePriceBook before it is stored.
func PriceOptions() []string {
	keys := slices.Collect(maps.Keys(defaultOptions()))
	for _, key := range []string{optionNewGroupRatio, optionNewGroupGroupRatio} {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return slices.Sorted(slices.Values(keys))
}

// EffectiveOption is the value that a price book uses for a key, given the options as stored: the stored one, that under
// the key's newer name, or New API's default. ok is false for a key that is no price option.
func EffectiveOption(options map[string]string, key string) (value string, ok bool) {
	if value, ok = options[key]; ok {
		return value, ok
	}
	newer := map[string]string{OptionGroupRatio: optionNewGroupRatio, OptionGroupGroupRatio: optionNewGroupGroupRatio}[key]
	if value, ok = options[newer]; ok && newer != "" {
		return value, ok
	}
	value, ok = defaultOptions()[key]
	return value, ok
}
