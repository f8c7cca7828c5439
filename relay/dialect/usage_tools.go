package dialect

import (
	"github.com/tidwall/gjson"

	"ledgerline/ledger"
)

// maxToolItems bounds the output items that are looked at: more tool calls than any provider makes in one answer.
const maxToolItems = 1024

// ResponseTools counts the calls of provider-side tools in the output items of a Responses answer (a JSON array).
// request is the client's body: it says which web search tool was asked for, for they have different prices. Order:
// file search, image generation, web search.
func ResponseTools(request, items []byte) []ledger.Tool {
	var files, images, searches int64
	seen := 0
	gjson.ParseBytes(items).ForEach(func(_, item gjson.Result) bool {
		switch item.Get("type").Str {
		case "file_search_call":
			files++
		case "image_generation_call":
			images++
		case "web_search_call":
			searches++
		}
		seen++
		return seen < maxToolItems
	})
	var tools []ledger.Tool
	if files > 0 {
		tools = append(tools, ledger.Tool{Name: ledger.ToolFileSearch, Count: files})
	}
	if images > 0 {
		tools = append(tools, ledger.Tool{Name: ledger.ToolImageGeneration, Count: images})
	}
	if searches > 0 {
		tools = append(tools, ledger.Tool{Name: searchTool(request), Count: searches})
	}
	return tools
}

// searchTool names the web search tool that a request declares.
func searchTool(request []byte) string {
	name := ledger.ToolWebSearch
	gjson.GetBytes(request, "tools").ForEach(func(_, tool gjson.Result) bool {
		switch tool.Get("type").Str {
		case "web_search_preview", "web_search_preview_2025_03_11":
			name = ledger.ToolSearchPreview
			return false
		case "web_search":
			return false
		}
		return true
	})
	return name
}
