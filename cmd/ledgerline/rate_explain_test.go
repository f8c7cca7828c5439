package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// explain runs rate -model and returns what it printed.
func explain(t *testing.T, env map[string]string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := rateCommand(t.Context(), args, envOf(env), &out, io.Discard)
	return out.String(), err
}

func TestRateExplainsABill(t *testing.T) {
	options, err := filepath.Abs(recordedOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("usage.json", []byte(`{"prompt_tokens": 100, "completion_tokens": 50}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string // lines, their columns parted by two spaces or more
	}{
		{"Anthropic by its shape", []string{
			"-model", "claude-sonnet-4-20250514", "-set", "groups", "-user-group", "vip", "-group", "svip", "-usage",
			`{"input_tokens":3,"output_tokens":7,"cache_creation_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":40,"ephemeral_1h_input_tokens":40}}`,
		}, []string{
			"claude-sonnet-4-20250514 on /v1/messages, a user of group vip in group svip",
			"completion ratio  5  built in, locked: an option does not change it",
			"group ratio  1.1  option GroupGroupRatio, users of vip in svip",
			"cache write, 1 hour  40  × 1.5 × 1.25 × 1.6 × 1.1  132",
			"sum  318.45", "bill  half away from zero  318", "318 quota units = $0.000636",
		}},
		{"an Anthropic stream", []string{
			"-model", "claude-sonnet-4-20250514", "-set", "groups", "-stream", "-usage",
			`{"message_start":{"input_tokens":100,"output_tokens":1},"message_delta":{"output_tokens":50}}`,
		}, []string{"text input  100  × 1.5 × 1  150", "bill  exact  525"}},
		{"Gemini by its shape", []string{
			"-model", "gemini-2.5-flash", "-set", "groups", "-usage",
			`{"promptTokenCount":30,"candidatesTokenCount":4,"totalTokenCount":34,"promptTokensDetails":[{"modality":"AUDIO","tokenCount":20}]}`,
		}, []string{
			"price of audio input  $1 per million  built in", "audio input  20  × $1 per million × 500000 × 1  10",
		}},
		{"a usage from a file, at least one", []string{"-model", "gpt-4.1-nano", "-set", "groups", "-group", "micro", "-usage", "@usage.json"}, []string{
			"bill  at least 1, because tokens of a model that is not free were used  1",
		}},
		{"pictures", []string{"-model", "dall-e-3", "-set", "groups", "-endpoint", "/v1/images/generations", "-request", `{"n":2,"size":"1024x1792"}`}, []string{
			"times  4  the request: number, size and quality of pictures", "call  1  × $0.04 × 500000 × 1 × 4  80000",
		}},
		{"an expression", []string{"-model", "tier-param", "-set", "tiered", "-request", `{"service_tier":"fast"}`, "-usage", `{"prompt_tokens":3,"completion_tokens":3339}`}, []string{
			"expression, tier base  1  × $22043.999999999996 per million × 500000 × 1  11021.999999999998", "c  3339  the usage", "bill  half away from zero  11022",
		}},
		{"tools of Responses", []string{
			"-model", "gpt-4o", "-set", "custom", "-endpoint", "/v1/responses", "-usage", `{"input_tokens":328,"output_tokens":52}`,
			"-items", `[{"type":"web_search_call"},{"type":"web_search_call"}]`, "-request", `{"tools":[{"type":"web_search_preview"}]}`,
		}, []string{
			"web_search_preview  2  × $25 per 1,000 × 500000 × 1  25000", "bill  half away from zero  25764",
		}},
		{"another type of channel", []string{"-model", "deepseek-chat", "-set", "groups", "-channel-type", "43", "-usage", `{"prompt_tokens":100,"completion_tokens":50,"prompt_cache_hit_tokens":60}`}, []string{
			"cache read  60  × 0.135 × 0.25 × 1  2.025",
		}},
		{"auto", []string{"-model", "gpt-4o", "-set", "groups", "-group", "auto", "-usage", `{"prompt_tokens":100}`}, []string{"gpt-4o on /v1/chat/completions, a user of group default in group micro"}},
		{"no such group", []string{"-model", "gpt-4o", "-set", "groups", "-group", "svp", "-usage", `{"completion_tokens":1}`}, []string{
			"group ratio  1  no entry", "note: no option names a group svp, so its ratio is 1; those named are default, free, micro, svip, third, vip",
		}},
		{"one unit", []string{"-model", "gpt-4o-mini", "-set", "groups", "-usage", `{"prompt_tokens":1}`}, []string{"1 quota unit = $0.000002"}},
		{"nothing", []string{"-model", "gpt-4o", "-set", "groups", "-usage", `{"promptTokenCount":0}`}, []string{"note: usage no input"}},
	} {
		out, err := explain(t, nil, append([]string{"-options", options}, c.args...)...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var lines []string
		for line := range strings.Lines(out) {
			var columns []string
			for part := range strings.SplitSeq(strings.TrimSpace(line), "  ") {
				if part = strings.TrimSpace(part); part != "" {
					columns = append(columns, part)
				}
			}
			lines = append(lines, strings.Join(columns, "  "))
		}
		for _, want := range c.want {
			if !strings.Contains("\n"+strings.Join(lines, "\n")+"\n", "\n"+want+"\n") {
				t.Errorf("%s: no line %q in\n%s", c.name, want, out)
			}
		}
	}
}

// Without -options the prices are those of the database, which is only read.
func TestRateExplainsByTheDatabase(t *testing.T) {
	t.Chdir(t.TempDir())
	file := smallDatabase(t, 1, func(exec func(string, ...any)) {
		exec(`INSERT INTO options VALUES ('AutoGroups', '["staff", "vip", "default"]'), ('UserUsableGroups', '{"vip": "VIP"}')`)
	})
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := explain(t, map[string]string{"SQLITE_PATH": file}, "-model", "house", "-group", "auto", "-usage", `{"prompt_tokens":100}`, "-json")
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Quota  int64
		Group  string
		Prices string
		Terms  []struct{ Quota string }
	}
	if err := json.Unmarshal([]byte(out), &bill); err != nil {
		t.Fatal(err)
	}
	if bill.Quota != 200 || bill.Group != "vip" || bill.Prices != "the database" || len(bill.Terms) != 1 || bill.Terms[0].Quota != "200" {
		t.Errorf("%+v", bill)
	}
	// A user's own group may be used, too; a key that may use none of the groups has no price.
	if out, err := explain(t, map[string]string{"SQLITE_PATH": file}, "-model", "house", "-user-group", "staff", "-group", "auto", "-usage", `{"prompt_tokens":1}`); err != nil ||
		!strings.Contains(out, "in group staff") {
		t.Errorf("%v\n%s", err, out)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the database was changed: %v", err)
	}
}

func TestRateExplainRefuses(t *testing.T) {
	options, err := filepath.Abs(recordedOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	groups := filepath.Join(options, "groups.json")
	mine := filepath.Join(t.TempDir(), "mine.json")
	if err := os.WriteFile(mine, []byte(`{"AutoGroups": ["vip"], "UserUsableGroups": {"default": "d"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
		use  bool // a mistake of the caller: exit code 2
	}{
		{"no model", []string{"-usage", "{}"}, "-model is missing", true},
		{"a file, too", []string{"-model", "gpt-4o", "-options", groups, "bills.jsonl"}, `unexpected argument "bills.jsonl"`, true},
		{"unknown model", []string{"-model", "gpt-4o-mimi", "-options", groups, "-usage", `{"prompt_tokens":1}`}, "names that begin alike: gpt-4o-mini", false},
		{"a model like no other", []string{"-model", "zzz", "-options", groups, "-usage", `{"prompt_tokens":1}`}, "model zzz has no price: neither ModelRatio nor ModelPrice names it", false},
		{"broken usage", []string{"-model", "gpt-4o", "-options", groups, "-usage", `{"prompt_tokens":`}, "rate -usage: a JSON object is needed", true},
		{"a usage that is a list", []string{"-model", "gpt-4o", "-options", groups, "-usage", `[1]`}, "a JSON object is needed, not [1]", true},
		{"a usage of nobody's", []string{"-model", "gpt-4o", "-options", groups, "-usage", `{"tokens":1}`}, "no token figure that is known", true},
		{"a usage of two", []string{"-model", "gpt-4o", "-options", groups, "-usage", `{"input_tokens":1}`}, "-endpoint /v1/messages or -endpoint /v1/responses", true},
		{"no usage file", []string{"-model", "gpt-4o", "-options", groups, "-usage", `@none.json`}, "none.json", false},
		{"items that are none", []string{"-model", "gpt-4o", "-options", groups, "-items", `{}`}, "rate -items: a JSON list is needed", true},
		{"a directory without a name", []string{"-model", "gpt-4o", "-options", options}, "-set must be one of custom, defaults", true},
		{"a name that is not there", []string{"-model", "gpt-4o", "-options", options, "-set", "mine"}, "-set must be one of custom, defaults", true},
		{"a name without a directory", []string{"-model", "gpt-4o", "-set", "mine"}, "-set names a file", true},
		{"an endpoint that is none", []string{"-model", "gpt-4o", "-options", groups, "-endpoint", "chat"}, "/v1/chat/completions is needed", true},
		{"auto, and no group", []string{"-model", "gpt-4o", "-options", mine, "-group", "auto", "-usage", `{"prompt_tokens":1}`}, "may use none of AutoGroups (vip)", false},
		{"no database", []string{"-model", "gpt-4o", "-usage", `{"prompt_tokens":1}`}, "or give -options", true},
	} {
		_, err := explain(t, nil, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
			continue
		}
		if _, isUsage := errors.AsType[*usageError](err); isUsage != c.use {
			t.Errorf("%s: usage error %v, want %v", c.name, isUsage, c.use)
		}
	}
}
