package ledger

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// LoggedBill is one row of New API's table `logs` of type 2 (consume): what was charged, and as much of why as the row tells.
type LoggedBill struct {
	ID         int64
	CreatedAt  int64 // Unix seconds
	RequestID  string
	UserID     int64
	UserGroup  string // of the user today; the row does not hold it
	Group      string // the group used, "auto" resolved
	Model      string
	Prompt     int64
	Completion int64
	Quota      int64
	Other      []byte // JSON with the keys of fact sheet 6.2, or empty
}

// loggedDetails is what the JSON of a row says of its price.
type loggedDetails struct {
	present  bool // the row has details at all
	usage    Usage
	rating   Rating // the ratios that New API says it applied
	expr     string // source of the billing expression, if the row carries it
	rules    []gjson.Result
	endpoint string
	task     bool
	fee      bool
	unknown  []string // keys that are not known here, sorted: they may bear on the price
	later    loggedLater
}

// loggedLater are members that mean something only together.
type loggedLater struct {
	special, price, mode, tier, write5m            gjson.Result
	audio, ws, audioRatio, audioOutRatio           gjson.Result
	audioInput, audioOutput, textInput, textOutput gjson.Result
}

// otherDetails are the further keys of a row's JSON whose meaning is known (fact sheet 6.2). They do not bear on the price, or
// only repeat what others say: what is not known at all makes a difference hard to judge.
var otherDetails = setOf(`
	frt reasoning_effort is_model_mapped upstream_model_name is_system_prompt_overwritten request_conversion
	cache_creation_ratio_1h cache_write_tokens input_tokens_total image
	billing_source billing_preference subscription_id subscription_pre_consumed subscription_post_delta subscription_plan_id
	subscription_plan_title subscription_total subscription_used subscription_remain subscription_consumed wallet_quota_deducted
	stream_status po reject_reason admin_info audit_info op usage_billing_path local_count_tokens quota_saturation`)

func setOf(names string) map[string]bool {
	set := make(map[string]bool)
	for name := range strings.FieldsSeq(names) {
		set[name] = true
	}
	return set
}

// maxUnknownKeys bounds how many unknown keys of a row are named (L7).
const maxUnknownKeys = 4

// details reads the JSON of a row.
func (row *LoggedBill) details() loggedDetails {
	d := loggedDetails{usage: Usage{Prompt: row.Prompt, Completion: row.Completion}}
	root := gjson.ParseBytes(row.Other)
	if !root.IsObject() || !gjson.ValidBytes(row.Other) {
		return d
	}
	root.ForEach(func(key, v gjson.Result) bool {
		d.present = true
		switch {
		case d.count(key.Str, v), d.ratio(key.Str, v), d.mark(key.Str, v), d.later.keep(key.Str, v):
		case otherDetails[key.Str]:
		case strings.Contains(key.Str, "violation"):
			d.fee = true
		default:
			d.unknown = append(d.unknown, key.Str)
		}
		return true
	})
	slices.Sort(d.unknown)
	d.unknown = d.unknown[:min(len(d.unknown), maxUnknownKeys)]
	d.finish(row)
	return d
}

// count reads a number of tokens or calls.
func (d *loggedDetails) count(key string, v gjson.Result) bool {
	u := &d.usage
	switch key {
	case "cache_tokens":
		u.CacheRead = v.Int()
	case "cache_creation_tokens":
		u.CacheWrite = v.Int()
	case "cache_creation_tokens_5m":
		u.CacheWrite5m = v.Int()
	case "cache_creation_tokens_1h":
		u.CacheWrite1h = v.Int()
	case "image_output": // New API's name for images in the input
		u.ImageIn = v.Int()
	case "audio_input_token_count":
		u.AudioIn = v.Int()
	case "tool_surcharges":
		v.ForEach(func(_, call gjson.Result) bool {
			name := call.Get("name").Str
			u.Tools = append(u.Tools, Tool{name, call.Get("count").Int()})
			d.rating.Tools = append(d.rating.Tools, ToolPrice{name, call.Get("count").Int(), call.Get("price").Raw})
			return len(u.Tools) < maxLoggedTools
		})
	default:
		return false
	}
	return true
}

// maxLoggedTools bounds the kinds of tools that one row is read for (L7): there are five.
const maxLoggedTools = 32

// ratio reads a factor.
func (d *loggedDetails) ratio(key string, v gjson.Result) bool {
	r := &d.rating
	var into *string
	switch key {
	case "model_ratio":
		into = &r.ModelRatio
	case "completion_ratio":
		into = &r.CompletionRatio
	case "cache_ratio":
		into = &r.CacheRatio
	case "cache_creation_ratio":
		into = &r.CacheWriteRatio
	case "image_ratio":
		into = &r.ImageRatio
	case "group_ratio":
		into = &r.GroupRatio
	case "audio_input_price":
		into = &r.AudioInPrice
	default:
		return false
	}
	if v.Type == gjson.Number {
		*into = v.Raw
	}
	return true
}

// mark reads what a row says about itself.
func (d *loggedDetails) mark(key string, v gjson.Result) bool {
	switch key {
	case "claude":
		if v.Bool() {
			d.usage.Semantics = SemanticsAnthropic
		}
	case "usage_semantic":
		if v.Str == string(SemanticsAnthropic) {
			d.usage.Semantics = SemanticsAnthropic
		}
	case "request_path":
		d.endpoint, _, _ = strings.Cut(v.Str, "?")
	case "task_id":
		d.task = true
	case "audio_input_seperate_price": //nolint:misspell // New API's spelling; its price and count are keys of their own
	case "request_rules":
		d.rules = v.Array()
	case "expr_b64":
		if source, err := base64.StdEncoding.DecodeString(v.Str); err == nil {
			d.expr = string(source)
		}
	default:
		return false
	}
	return true
}

// keep keeps one of the members that are looked at when all are read.
func (l *loggedLater) keep(key string, v gjson.Result) bool {
	switch key {
	case "user_group_ratio":
		l.special = v
	case "model_price":
		l.price = v
	case "billing_mode":
		l.mode = v
	case "matched_tier":
		l.tier = v
	case "cache_creation_ratio_5m":
		l.write5m = v
	case "audio":
		l.audio = v
	case "ws":
		l.ws = v
	case "audio_ratio":
		l.audioRatio = v
	case "audio_completion_ratio":
		l.audioOutRatio = v
	case "audio_input":
		l.audioInput = v
	case "audio_output":
		l.audioOutput = v
	case "text_input":
		l.textInput = v
	case "text_output":
		l.textOutput = v
	default:
		return false
	}
	return true
}

// finish settles what depends on several keys: the way of billing, the group, and the four counts of an audio answer.
func (d *loggedDetails) finish(row *LoggedBill) {
	r, l := &d.rating, &d.later
	if l.special.Type == gjson.Number && l.special.Num >= 0 {
		r.GroupRatio, r.GroupSpecial = l.special.Raw, true
	}
	if r.CacheWriteRatio == "" {
		r.CacheWriteRatio = l.write5m.Raw
	}
	switch {
	case l.mode.Str == modeExpr:
		r.Mode, r.ModelRatio, r.Tier = ModeExpr, "", l.tier.Str
	case l.price.Type == gjson.Number && l.price.Num >= 0:
		r.Mode, r.ModelPrice = ModePrice, l.price.Raw
	default:
		r.Mode = ModeRatio
	}
	if l.audio.Bool() || l.ws.Bool() {
		u := &d.usage
		r.AudioRatio, r.AudioOutRatio = l.audioRatio.Raw, l.audioOutRatio.Raw
		u.AudioIn, u.AudioOut = l.audioInput.Int(), l.audioOutput.Int()
		u.Prompt = l.textInput.Int() + u.AudioIn
		u.Completion = l.textOutput.Int() + u.AudioOut
	}
	for _, prefix := range []string{"/suno/", "/mj/", "/v1/video", "/kling/", "/jimeng/"} {
		d.task = d.task || strings.HasPrefix(d.endpoint, prefix)
	}
	d.task = d.task || strings.HasPrefix(row.Model, "mj_") || strings.HasPrefix(row.Model, "suno_")
}

// images reports whether the request asked for pictures: their number, size and quality are not in the log.
func (d *loggedDetails) images() bool { return strings.HasPrefix(d.endpoint, "/v1/images/") }
