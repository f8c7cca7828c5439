package dialect

import (
	"math"
	"strings"

	"github.com/tidwall/gjson"

	"ledgerline/ledger"
)

// UsageKind says which upstream's usage object is decoded.
type UsageKind uint8

// The usage objects that upstreams send.
const (
	// UsageOpenAI is the object of chat completions, completions, embeddings, rerank and of all compatible upstreams.
	UsageOpenAI UsageKind = iota
	// UsageDeepSeek is UsageOpenAI plus prompt_cache_hit_tokens, which only DeepSeek's own channel type is believed on.
	UsageDeepSeek
	// UsageResponses is the object of the Responses and Images endpoints: input_tokens, output_tokens.
	UsageResponses
	// UsageAnthropic is the object of Messages; a stream sends two, see AnthropicUsage.
	UsageAnthropic
	// UsageGemini is usageMetadata of generateContent.
	UsageGemini
)

// Channel type codes of New API that decide how usage is read (fact sheet 7.6).
const (
	channelAnthropic = 14
	channelGemini    = 24
	channelDeepSeek  = 43
)

// UsageKindOf gives the kind of usage that a channel of New API's type code returns on an upstream path such as
// "/v1/responses". Unknown types speak OpenAI's.
func UsageKindOf(channelType int, path string) UsageKind {
	switch channelType {
	case channelAnthropic:
		return UsageAnthropic
	case channelGemini:
		return UsageGemini
	}
	switch {
	case strings.HasPrefix(path, "/v1/responses"), strings.HasPrefix(path, "/v1/images/"):
		return UsageResponses
	case channelType == channelDeepSeek:
		return UsageDeepSeek
	}
	return UsageOpenAI
}

// MaxPlausibleTokens is the largest token figure that is believed: New API keeps token counts in signed 32-bit columns, and no
// model reads or writes a tenth of it in one request.
const MaxPlausibleTokens = math.MaxInt32

// UsageVerdict is the set of what is odd about a reported usage. The zero value is a clean usage.
type UsageVerdict uint16

// What can be odd about a usage.
const (
	UsageMissing      UsageVerdict = 1 << iota // no usage object, or one without any token figure
	UsageNoInput                               // the input figure is missing or 0
	UsageNoOutput                              // the output figure is missing or 0
	UsageNegative                              // a figure is below 0
	UsageAbsurd                                // a figure is above MaxPlausibleTokens
	UsageMalformed                             // a figure is not a whole number; it is read as 0, or cut to whole
	UsageInconsistent                          // total is given, not 0, and not the sum of input and output
	UsageParts                                 // cached, image or audio tokens exceed what they are part of
)

var verdictNames = []string{"missing", "no_input", "no_output", "negative", "absurd", "malformed", "inconsistent_total", "parts_exceed_whole"}

// Has reports whether any of the flags is set.
func (v UsageVerdict) Has(flags UsageVerdict) bool { return v&flags != 0 }

// Zero reports that neither input nor output was reported: nothing can be billed from it.
func (v UsageVerdict) Zero() bool {
	return v&(UsageNoInput|UsageNoOutput) == UsageNoInput|UsageNoOutput
}

// Credible reports that the figures can be billed as they are: there are some, and none is impossible. A total that does not
// add up and parts that exceed the whole are billed as reported, as New API does.
func (v UsageVerdict) Credible() bool {
	return !v.Zero() && !v.Has(UsageMissing|UsageNegative|UsageAbsurd|UsageMalformed)
}

// Flags names what is set, for the event's flags: "usage_missing", "usage_negative", …
func (v UsageVerdict) Flags() []string {
	var flags []string
	for i, name := range verdictNames {
		if v&(1<<i) != 0 {
			flags = append(flags, "usage_"+name)
		}
	}
	return flags
}

// DecodeUsage reads one usage object. The figures are returned as reported, impossible ones included: the caller bills
// them only if the verdict is Credible.
func DecodeUsage(kind UsageKind, raw []byte) (ledger.Usage, UsageVerdict) {
	root := gjson.ParseBytes(raw)
	if !root.IsObject() {
		return ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput
	}
	var f figures
	switch kind {
	case UsageAnthropic:
		var merged AnthropicUsage
		merged.add(root)
		return merged.Usage()
	case UsageGemini:
		f.gemini(root)
	case UsageResponses:
		f.responses(root)
	default:
		f.openAI(root, kind == UsageDeepSeek)
	}
	return f.usage, f.judge()
}

// figures gathers a usage and what was odd while reading it.
type figures struct {
	usage   ledger.Usage
	total   int64
	seen    bool // a token figure was there
	verdict UsageVerdict
}

// number reads one figure.
func (f *figures) number(v gjson.Result) int64 {
	if v.Type == gjson.Null {
		return 0
	}
	if v.Type != gjson.Number {
		f.verdict |= UsageMalformed
		return 0
	}
	f.seen = true
	switch {
	case v.Num != math.Trunc(v.Num):
		f.verdict |= UsageMalformed
	case v.Num < 0:
		f.verdict |= UsageNegative
	case v.Num > MaxPlausibleTokens:
		f.verdict |= UsageAbsurd
	}
	const beyond = 1 << 52 // where float64 stops counting; absurd anyway
	return int64(max(-beyond, min(beyond, v.Num)))
}

func (f *figures) openAI(root gjson.Result, deepSeek bool) {
	u := &f.usage
	var hit, writeAlias int64
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "prompt_tokens":
			u.Prompt = f.number(v)
		case "completion_tokens":
			u.Completion = f.number(v)
		case "total_tokens":
			f.total = f.number(v)
		case "prompt_tokens_details":
			writeAlias = f.inputDetails(v)
		case "completion_tokens_details":
			f.outputDetails(v)
		case "claude_cache_creation_5_m_tokens":
			u.CacheWrite5m = f.number(v)
		case "claude_cache_creation_1_h_tokens":
			u.CacheWrite1h = f.number(v)
		case "prompt_cache_hit_tokens":
			if deepSeek {
				hit = f.number(v)
			}
		}
		return true
	})
	if u.CacheWrite == 0 {
		u.CacheWrite = writeAlias
	}
	if u.CacheRead == 0 {
		u.CacheRead = hit
	}
}

func (f *figures) responses(root gjson.Result) {
	u := &f.usage
	var writeAlias int64
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "input_tokens":
			u.Prompt = f.number(v)
		case "output_tokens":
			u.Completion = f.number(v)
		case "total_tokens":
			f.total = f.number(v)
		case "input_tokens_details":
			writeAlias = f.inputDetails(v)
		case "output_tokens_details":
			f.outputDetails(v)
		}
		return true
	})
	if u.CacheWrite == 0 {
		u.CacheWrite = writeAlias
	}
}

// inputDetails reads the parts of the input and returns the cache writes under their older name.
func (f *figures) inputDetails(details gjson.Result) (writeAlias int64) {
	u := &f.usage
	if !details.IsObject() {
		return 0
	}
	details.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "cached_tokens":
			u.CacheRead = f.number(v)
		case "cache_write_tokens":
			u.CacheWrite = f.number(v)
		case "cached_creation_tokens":
			writeAlias = f.number(v)
		case "image_tokens":
			u.ImageIn = f.number(v)
		case "audio_tokens":
			u.AudioIn = f.number(v)
		}
		return true
	})
	return writeAlias
}

func (f *figures) outputDetails(details gjson.Result) {
	u := &f.usage
	if !details.IsObject() {
		return
	}
	details.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "reasoning_tokens":
			u.Reasoning = f.number(v)
		case "audio_tokens":
			u.AudioOut = f.number(v)
		case "image_tokens":
			u.ImageOut = f.number(v)
		}
		return true
	})
}

func (f *figures) gemini(root gjson.Result) {
	u := &f.usage
	var candidates, toolPrompt int64
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "promptTokenCount":
			u.Prompt = f.number(v)
		case "toolUsePromptTokenCount":
			toolPrompt = f.number(v)
		case "candidatesTokenCount":
			candidates = f.number(v)
		case "thoughtsTokenCount":
			u.Reasoning = f.number(v)
		case "cachedContentTokenCount":
			u.CacheRead = f.number(v)
		case "totalTokenCount":
			f.total = f.number(v)
		case "promptTokensDetails":
			u.AudioIn, u.ImageIn = f.modalities(v)
		case "candidatesTokensDetails":
			u.AudioOut, u.ImageOut = f.modalities(v)
		}
		return true
	})
	u.Prompt += toolPrompt
	u.Completion = candidates + u.Reasoning
}

// modalities sums the audio and the image tokens of a details list of Gemini's.
func (f *figures) modalities(list gjson.Result) (audio, image int64) {
	if !list.IsArray() {
		return 0, 0
	}
	list.ForEach(func(_, entry gjson.Result) bool {
		switch entry.Get("modality").Str {
		case "AUDIO":
			audio += f.number(entry.Get("tokenCount"))
		case "IMAGE":
			image += f.number(entry.Get("tokenCount"))
		}
		return true
	})
	return audio, image
}

// judge completes the verdict once all figures are read.
func (f *figures) judge() UsageVerdict {
	u, v := f.usage, f.verdict
	if !f.seen {
		v |= UsageMissing
	}
	if u.Prompt == 0 {
		v |= UsageNoInput
	}
	if u.Completion == 0 {
		v |= UsageNoOutput
	}
	if f.total != 0 && f.total != u.Prompt+u.Completion {
		v |= UsageInconsistent
	}
	if u.Semantics != ledger.SemanticsAnthropic && !v.Has(UsageNegative) &&
		(u.CacheRead+u.CacheWrite > u.Prompt || u.ImageIn+u.AudioIn > u.Prompt || u.ImageOut+u.AudioOut > u.Completion) {
		v |= UsageParts
	}
	return v
}
