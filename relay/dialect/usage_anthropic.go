package dialect

import (
	"github.com/tidwall/gjson"

	"ledgerline/ledger"
)

// AnthropicUsage merges the usage objects of one Messages stream: message_start brings the input, message_delta the output
// and sometimes the input again. The later figure wins, but a 0 or a missing one never overwrites a figure already
// seen. The zero value is ready to use.
type AnthropicUsage struct {
	f      figures
	search int64
}

// Add merges one raw usage object; what is not an object is ignored.
func (a *AnthropicUsage) Add(raw []byte) {
	if root := gjson.ParseBytes(raw); root.IsObject() {
		a.add(root)
	}
}

func (a *AnthropicUsage) add(root gjson.Result) {
	u := &a.f.usage
	keep := func(into *int64, v gjson.Result) {
		if n := a.f.number(v); n != 0 {
			*into = n
		}
	}
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "input_tokens":
			keep(&u.Prompt, v)
		case "output_tokens":
			keep(&u.Completion, v)
		case "cache_read_input_tokens":
			keep(&u.CacheRead, v)
		case "cache_creation_input_tokens":
			keep(&u.CacheWrite, v)
		case "cache_creation":
			keep(&u.CacheWrite5m, v.Get("ephemeral_5m_input_tokens"))
			keep(&u.CacheWrite1h, v.Get("ephemeral_1h_input_tokens"))
		case "server_tool_use":
			keep(&a.search, v.Get("web_search_requests"))
		}
		return true
	})
}

// Usage gives what was merged so far.
func (a *AnthropicUsage) Usage() (ledger.Usage, UsageVerdict) {
	u := a.f.usage
	u.Semantics = ledger.SemanticsAnthropic
	if a.search > 0 {
		u.Tools = []ledger.Tool{{Name: ledger.ToolWebSearch, Count: a.search}}
	}
	f := a.f
	f.usage = u
	return u, f.judge()
}
