package dialect

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

func TestDecodeUsage(t *testing.T) {
	anthropic := ledger.SemanticsAnthropic
	for _, c := range []struct {
		name    string
		kind    UsageKind
		raw     string
		want    ledger.Usage
		verdict UsageVerdict
	}{
		{"plain", UsageOpenAI, `{"prompt_tokens":7,"completion_tokens":232,"total_tokens":239}`, ledger.Usage{Prompt: 7, Completion: 232}, 0},
		{
			"details", UsageOpenAI,
			`{"prompt_tokens":100,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":10,"cache_write_tokens":20,"image_tokens":5,"audio_tokens":6},
			  "completion_tokens_details":{"reasoning_tokens":9,"audio_tokens":8,"image_tokens":7}}`,
			ledger.Usage{Prompt: 100, Completion: 50, CacheRead: 10, CacheWrite: 20, ImageIn: 5, AudioIn: 6, Reasoning: 9, AudioOut: 8, ImageOut: 7},
			0,
		},
		{"older name of cache writes", UsageOpenAI, `{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_creation_tokens":40}}`, ledger.Usage{Prompt: 100, Completion: 1, CacheWrite: 40}, 0},
		{"cache lifetimes", UsageOpenAI, `{"prompt_tokens":100,"completion_tokens":1,"claude_cache_creation_5_m_tokens":20,"claude_cache_creation_1_h_tokens":30}`, ledger.Usage{Prompt: 100, Completion: 1, CacheWrite5m: 20, CacheWrite1h: 30}, 0},
		{"null details", UsageOpenAI, `{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":null,"completion_tokens_details":null}`, ledger.Usage{Prompt: 1, Completion: 1}, 0},
		{"hits of another's channel", UsageOpenAI, `{"prompt_tokens":100,"completion_tokens":1,"prompt_cache_hit_tokens":60}`, ledger.Usage{Prompt: 100, Completion: 1}, 0},
		{"hits", UsageDeepSeek, `{"prompt_tokens":100,"completion_tokens":1,"prompt_cache_hit_tokens":60}`, ledger.Usage{Prompt: 100, Completion: 1, CacheRead: 60}, 0},
		{"cached tokens before hits", UsageDeepSeek, `{"prompt_cache_hit_tokens":60,"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":10}}`, ledger.Usage{Prompt: 100, Completion: 1, CacheRead: 10}, 0},
		{"embeddings", UsageOpenAI, `{"prompt_tokens":8,"total_tokens":8}`, ledger.Usage{Prompt: 8}, UsageNoOutput},
		{"names of another dialect", UsageOpenAI, `{"input_tokens":100,"output_tokens":50}`, ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput},
		{"null", UsageOpenAI, `null`, ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput},
		{"nothing", UsageOpenAI, ``, ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput},
		{"a list", UsageOpenAI, `[1]`, ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput},
		{"empty", UsageOpenAI, `{}`, ledger.Usage{}, UsageMissing | UsageNoInput | UsageNoOutput},
		{"zero", UsageOpenAI, `{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}`, ledger.Usage{}, UsageNoInput | UsageNoOutput},
		{"negative", UsageOpenAI, `{"prompt_tokens":-5,"completion_tokens":10,"total_tokens":5}`, ledger.Usage{Prompt: -5, Completion: 10}, UsageNegative},
		{"largest plausible", UsageOpenAI, `{"prompt_tokens":2147483647,"completion_tokens":1}`, ledger.Usage{Prompt: 2147483647, Completion: 1}, 0},
		{"absurd", UsageOpenAI, `{"prompt_tokens":2147483648,"completion_tokens":1}`, ledger.Usage{Prompt: 2147483648, Completion: 1}, UsageAbsurd},
		{"absurder", UsageOpenAI, `{"prompt_tokens":1e300,"completion_tokens":-1e300}`, ledger.Usage{Prompt: 1 << 52, Completion: -1 << 52}, UsageAbsurd | UsageNegative},
		{"text", UsageOpenAI, `{"prompt_tokens":"12","completion_tokens":1}`, ledger.Usage{Completion: 1}, UsageMalformed | UsageNoInput},
		{"fraction", UsageOpenAI, `{"prompt_tokens":1.5,"completion_tokens":2.0}`, ledger.Usage{Prompt: 1, Completion: 2}, UsageMalformed},
		{"wrong total", UsageOpenAI, `{"prompt_tokens":100,"completion_tokens":50,"total_tokens":9999}`, ledger.Usage{Prompt: 100, Completion: 50}, UsageInconsistent},
		{"parts", UsageOpenAI, `{"prompt_tokens":100,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":150}}`, ledger.Usage{Prompt: 100, Completion: 50, CacheRead: 150}, UsageParts},
		{
			"responses", UsageResponses,
			`{"input_tokens":100,"output_tokens":50,"total_tokens":150,"input_tokens_details":{"cached_tokens":10,"cache_write_tokens":20},"output_tokens_details":{"reasoning_tokens":3}}`,
			ledger.Usage{Prompt: 100, Completion: 50, CacheRead: 10, CacheWrite: 20, Reasoning: 3},
			0,
		},
		{
			"anthropic", UsageAnthropic,
			`{"input_tokens":5,"output_tokens":6,"cache_read_input_tokens":70,"cache_creation_input_tokens":80,
			  "cache_creation":{"ephemeral_5m_input_tokens":30,"ephemeral_1h_input_tokens":50},"server_tool_use":{"web_search_requests":3}}`,
			ledger.Usage{
				Semantics: anthropic, Prompt: 5, Completion: 6, CacheRead: 70, CacheWrite: 80, CacheWrite5m: 30, CacheWrite1h: 50,
				Tools: []ledger.Tool{{Name: "web_search", Count: 3}},
			},
			0,
		},
		{"anthropic, only cache", UsageAnthropic, `{"input_tokens":0,"output_tokens":0,"cache_read_input_tokens":1000}`, ledger.Usage{Semantics: anthropic, CacheRead: 1000}, UsageNoInput | UsageNoOutput},
		{
			"gemini", UsageGemini,
			`{"promptTokenCount":9,"candidatesTokenCount":4,"thoughtsTokenCount":604,"totalTokenCount":617,"cachedContentTokenCount":1,
			  "promptTokensDetails":[{"modality":"AUDIO","tokenCount":4},{"modality":"TEXT","tokenCount":0},{"modality":"IMAGE","tokenCount":5}]}`,
			ledger.Usage{Prompt: 9, Completion: 608, Reasoning: 604, CacheRead: 1, AudioIn: 4, ImageIn: 5},
			0,
		},
		{
			"gemini with tools and media", UsageGemini,
			`{"promptTokenCount":10,"toolUsePromptTokenCount":5,"candidatesTokenCount":20,"totalTokenCount":35,"candidatesTokensDetails":[{"modality":"AUDIO","tokenCount":7},{"modality":"IMAGE","tokenCount":8}]}`,
			ledger.Usage{Prompt: 15, Completion: 20, AudioOut: 7, ImageOut: 8},
			0,
		},
	} {
		got, verdict := DecodeUsage(c.kind, []byte(c.raw))
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if verdict != c.verdict {
			t.Errorf("%s: verdict %v, want %v", c.name, verdict.Flags(), c.verdict.Flags())
		}
	}
}

func TestUsageVerdict(t *testing.T) {
	for _, c := range []struct {
		verdict  UsageVerdict
		zero     bool
		credible bool
		flags    string
	}{
		{0, false, true, ""},
		{UsageNoOutput, false, true, "usage_no_output"},
		{UsageInconsistent | UsageParts, false, true, "usage_inconsistent_total usage_parts_exceed_whole"},
		{UsageNoInput | UsageNoOutput, true, false, "usage_no_input usage_no_output"},
		{UsageMissing | UsageNoInput | UsageNoOutput, true, false, "usage_missing usage_no_input usage_no_output"},
		{UsageNegative, false, false, "usage_negative"},
		{UsageAbsurd, false, false, "usage_absurd"},
		{UsageMalformed, false, false, "usage_malformed"},
	} {
		if c.verdict.Zero() != c.zero || c.verdict.Credible() != c.credible || strings.Join(c.verdict.Flags(), " ") != c.flags {
			t.Errorf("%b: zero %v, credible %v, flags %v", c.verdict, c.verdict.Zero(), c.verdict.Credible(), c.verdict.Flags())
		}
	}
}

func TestAnthropicStreamMerge(t *testing.T) {
	for _, c := range []struct {
		name, start, delta string
		want               ledger.Usage
	}{
		{"output only", `{"input_tokens":100,"output_tokens":1}`, `{"output_tokens":50}`, ledger.Usage{Prompt: 100, Completion: 50}},
		{"later wins", `{"input_tokens":100,"output_tokens":1}`, `{"input_tokens":120,"output_tokens":50,"cache_read_input_tokens":10}`, ledger.Usage{Prompt: 120, Completion: 50, CacheRead: 10}},
		{"zero keeps", `{"input_tokens":7,"output_tokens":1,"cache_read_input_tokens":1000}`, `{"input_tokens":0,"output_tokens":0,"cache_read_input_tokens":0}`, ledger.Usage{Prompt: 7, Completion: 1, CacheRead: 1000}},
		{"empty delta", `{"input_tokens":100,"output_tokens":1}`, `{}`, ledger.Usage{Prompt: 100, Completion: 1}},
		{"no start", `null`, `{"input_tokens":88,"output_tokens":9}`, ledger.Usage{Prompt: 88, Completion: 9}},
		{"lifetimes stay", `{"input_tokens":1,"output_tokens":1,"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":3}}`, `{"output_tokens":4}`, ledger.Usage{Prompt: 1, Completion: 4, CacheWrite: 5, CacheWrite5m: 2, CacheWrite1h: 3}},
	} {
		var m AnthropicUsage
		m.Add([]byte(c.start))
		m.Add([]byte(c.delta))
		got, _ := m.Usage()
		c.want.Semantics = ledger.SemanticsAnthropic
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	var none AnthropicUsage
	none.Add([]byte(`{}`))
	if _, v := none.Usage(); !v.Has(UsageMissing) {
		t.Error("a stream of empty usage objects is not missing its usage")
	}
}

func TestUsageKindOf(t *testing.T) {
	for _, c := range []struct {
		channel int
		path    string
		want    UsageKind
	}{
		{1, "/v1/chat/completions", UsageOpenAI},
		{1, "/v1/messages", UsageOpenAI},
		{1, "/v1/responses", UsageResponses},
		{1, "/v1/images/generations", UsageResponses},
		{14, "/v1/chat/completions", UsageAnthropic},
		{24, "/v1/chat/completions", UsageGemini},
		{43, "/v1/chat/completions", UsageDeepSeek},
		{20, "/v1/messages", UsageOpenAI},
		{999, "", UsageOpenAI},
	} {
		if got := UsageKindOf(c.channel, c.path); got != c.want {
			t.Errorf("channel %d, %s: %d, want %d", c.channel, c.path, got, c.want)
		}
	}
}

func TestResponseTools(t *testing.T) {
	items := `[{"type":"web_search_call"},{"type":"message"},{"type":"file_search_call"},{"type":"web_search_call"},{"type":"function_call"},{"type":"image_generation_call"}]`
	for _, c := range []struct {
		request, items string
		want           []ledger.Tool
	}{
		{`{"tools":[{"type":"web_search_preview"},{"type":"file_search"}]}`, items, []ledger.Tool{{Name: "file_search", Count: 1}, {Name: "image_generation", Count: 1}, {Name: "web_search_preview", Count: 2}}},
		{`{"tools":[{"type":"web_search"}]}`, `[{"type":"web_search_call"}]`, []ledger.Tool{{Name: "web_search", Count: 1}}},
		{`{}`, `[{"type":"web_search_call"}]`, []ledger.Tool{{Name: "web_search", Count: 1}}},
		{`{"tools":[{"type":"web_search"}]}`, `[{"type":"message"}]`, nil},
		{``, ``, nil},
		{`{}`, `[` + strings.Repeat(`{"type":"file_search_call"},`, maxToolItems+5) + `{}]`, []ledger.Tool{{Name: "file_search", Count: maxToolItems}}},
	} {
		if diff := cmp.Diff(c.want, ResponseTools([]byte(c.request), []byte(c.items))); diff != "" {
			t.Errorf("%.60s: %s", c.items, diff)
		}
	}
}

// A decoder of what strangers send must not panic, and what it calls credible must be safe to bill.
func FuzzDecodeUsage(f *testing.F) {
	for _, seed := range []string{
		`{"prompt_tokens":7,"completion_tokens":232,"total_tokens":239,"prompt_tokens_details":{"cached_tokens":1}}`,
		`{"input_tokens":5,"output_tokens":6,"cache_creation":{"ephemeral_5m_input_tokens":30},"server_tool_use":{"web_search_requests":3}}`,
		`{"promptTokenCount":4,"promptTokensDetails":[{"modality":"AUDIO","tokenCount":4}]}`,
		`{"prompt_tokens":-1e999,"completion_tokens":"x"}`,
		`{"prompt_tokens":{"prompt_tokens":1}}`,
		`{`,
	} {
		for kind := range UsageGemini + 1 {
			f.Add(uint8(kind), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		u, v := DecodeUsage(UsageKind(kind)%(UsageGemini+1), raw)
		if !v.Credible() {
			return
		}
		// A Gemini figure is the sum of several, each plausible; their list may be long.
		most := int64(MaxPlausibleTokens) * int64(len(raw)+1)
		for _, n := range []int64{
			u.Prompt, u.Completion, u.CacheRead, u.CacheWrite, u.CacheWrite5m, u.CacheWrite1h, u.ImageIn, u.ImageOut, u.AudioIn, u.AudioOut, u.Reasoning,
		} {
			if n < 0 || n > most {
				t.Errorf("credible usage %+v of %q", u, raw)
			}
		}
	})
}

func BenchmarkDecodeUsage(b *testing.B) {
	raw := []byte(`{"prompt_tokens":1234,"completion_tokens":567,"total_tokens":1801,"prompt_tokens_details":{"cached_tokens":128,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":64,"audio_tokens":0}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, v := DecodeUsage(UsageOpenAI, raw); !v.Credible() {
			b.Fatal("not credible")
		}
	}
}
