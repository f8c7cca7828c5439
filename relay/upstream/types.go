package upstream

// Channel type codes of New API that the relay speaks.
const (
	TypeOpenAI   = 1
	TypeAzure    = 3
	TypeDeepSeek = 43
)

// bases are the addresses of the providers whose API is OpenAI's, for channels that name none.
var bases = map[int]string{
	TypeOpenAI:   "https://api.openai.com",
	20:           "https://openrouter.ai/api",
	25:           "https://api.moonshot.cn",
	27:           "https://api.perplexity.ai",
	31:           "https://api.lingyiwanwu.com",
	40:           "https://api.siliconflow.cn",
	42:           "https://api.mistral.ai",
	TypeDeepSeek: "https://api.deepseek.com",
	48:           "https://api.x.ai",
}

// compatible are the types whose chat, completions and embeddings API is OpenAI's once the channel names its address: Azure,
// Ollama, custom ones, FastGPT, Tencent, 360, Xinference, Submodel, Sub2API, New API and the ones above.
var compatible = map[int]bool{TypeAzure: true, 4: true, 8: true, 19: true, 22: true, 23: true, 47: true, 53: true, 59: true, 60: true}

// OpenAICompatible reports whether the relay can serve a channel of this type.
func OpenAICompatible(channelType int) bool {
	_, known := bases[channelType]
	return known || compatible[channelType]
}
