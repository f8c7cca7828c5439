package ledger

// Source says where the token figures of a usage event come from.
type Source string

const (
	// SourceUpstream marks figures that the upstream reported.
	SourceUpstream Source = "upstream"
	// SourceCounted marks figures that the relay counted because the upstream reported none, or none that can be true.
	SourceCounted Source = "counted"
	// SourceRecovered marks figures rebuilt from the journal after the node died in mid-request.
	SourceRecovered Source = "recovered"
)

// Semantics says whether Usage.Prompt already contains the cached tokens.
type Semantics string

const (
	// SemanticsOpenAI counts cached and created tokens inside Prompt.
	SemanticsOpenAI Semantics = ""
	// SemanticsAnthropic counts cached and created tokens beside Prompt.
	SemanticsAnthropic Semantics = "anthropic"
)

// Usage is what one answer consumed, in tokens, in one form for all dialects. All counts are ≥ 0: a decoder
// that meets a negative or absurd figure does not build a Usage (see relay/meter for the rules).
type Usage struct {
	Semantics    Semantics `json:"semantics,omitempty"`
	Prompt       int64     `json:"prompt,omitempty"`         // input tokens; see Semantics
	Completion   int64     `json:"completion,omitempty"`     // output tokens, reasoning included
	CacheRead    int64     `json:"cache_read,omitempty"`     // input tokens read from the provider's cache
	CacheWrite   int64     `json:"cache_write,omitempty"`    // input tokens written to it, all lifetimes together
	CacheWrite5m int64     `json:"cache_write_5m,omitempty"` // the part of CacheWrite kept 5 minutes
	CacheWrite1h int64     `json:"cache_write_1h,omitempty"` // the part of CacheWrite kept 1 hour
	ImageIn      int64     `json:"image_in,omitempty"`       // the part of Prompt that is images
	ImageOut     int64     `json:"image_out,omitempty"`      // the part of Completion that is images
	AudioIn      int64     `json:"audio_in,omitempty"`       // the part of Prompt that is audio
	AudioOut     int64     `json:"audio_out,omitempty"`      // the part of Completion that is audio
	Reasoning    int64     `json:"reasoning,omitempty"`      // the part of Completion that is reasoning; informative
	Tools        []Tool    `json:"tools,omitempty"`          // calls of the provider's own tools that cost extra
}

// Tool counts the calls of one provider-side tool, such as web_search.
type Tool struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}
