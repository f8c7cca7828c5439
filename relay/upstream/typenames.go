package upstream

import "strconv"

// typeNames are the providers behind New API's channel types.
var typeNames = map[int]string{
	1: "OpenAI", 2: "Midjourney", 3: "Azure", 4: "Ollama", 5: "MidjourneyPlus", 8: "Custom", 14: "Anthropic", 15: "Baidu", 16: "Zhipu", 17: "Ali",
	18: "Xunfei", 19: "360", 20: "OpenRouter", 22: "FastGPT", 23: "Tencent", 24: "Gemini", 25: "Moonshot", 26: "Zhipu v4", 27: "Perplexity",
	31: "LingYiWanWu", 33: "AWS", 34: "Cohere", 35: "MiniMax", 36: "Suno", 37: "Dify", 38: "Jina", 39: "Cloudflare", 40: "SiliconFlow", 41: "Vertex",
	42: "Mistral", 43: "DeepSeek", 44: "MokaAI", 45: "VolcEngine", 46: "Baidu v2", 47: "Xinference", 48: "xAI", 49: "Coze", 50: "Kling", 51: "Jimeng",
	52: "Vidu", 53: "Submodel", 54: "Doubao video", 55: "Sora", 56: "Replicate", 57: "Codex", 58: "Advanced custom", 59: "Sub2API", 60: "New API",
}

// TypeName returns the name of the provider behind a channel type.
func TypeName(channelType int) string {
	if name, ok := typeNames[channelType]; ok {
		return name
	}
	return "unknown type " + strconv.Itoa(channelType)
}
