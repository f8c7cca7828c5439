package usagelog

import (
	"encoding/json"
	"math/big"
	"strconv"

	"ledgerline/ledger"
)

// otherBytes is the usual size of Row.Other.
const otherBytes = 640

// otherOf returns the JSON that New API's pages read their details from, keys in alphabetical order: what was applied
// to price the request, and what only an administrator sees, under admin_info. Events that are not about a request have
// none, except for their key and flags.
func otherOf(e *ledger.Event) string {
	if e.Rating == nil && e.Usage == nil && e.Request == nil && e.Key == "" && len(e.Flags) == 0 {
		return ""
	}
	o := object{buf: make([]byte, 0, otherBytes)}
	o.buf = append(o.buf, '{')
	if e.Kind.IsUsage() || e.Kind == ledger.KindUsageAdjusted {
		o.usage(e)
	} else {
		o.admin(e)
		if q := e.Request; q != nil {
			o.text("request_path", q.Endpoint)
			if q.Status != 0 {
				o.number("status_code", int64(q.Status))
			}
		}
	}
	return string(append(o.buf, '}'))
}

// none stands for a ledger part that an event does not have.
var (
	noRating  ledger.Rating
	noUsage   ledger.Usage
	noRequest ledger.Request
)

func (o *object) usage(e *ledger.Event) {
	r, u, q := &noRating, &noUsage, &noRequest
	if e.Rating != nil {
		r = e.Rating
	}
	if e.Usage != nil {
		u = e.Usage
	}
	if e.Request != nil {
		q = e.Request
	}
	o.admin(e)
	o.audio(r, u)
	if r.Mode == ledger.ModeExpr {
		o.text("billing_mode", "tiered_expr")
	}
	o.text("billing_source", "wallet")
	o.cache(r, u)
	o.decimal("completion_ratio", r.CompletionRatio, "0")
	if q.FirstMS > 0 {
		o.number("frt", q.FirstMS)
	} else {
		o.number("frt", -1000) // New API's mark for "not measured"
	}
	o.decimal("group_ratio", r.GroupRatio, "1")
	if u.ImageIn != 0 {
		o.flag("image")
		o.number("image_output", u.ImageIn) // New API's name for images in the input
		o.decimal("image_ratio", r.ImageRatio, "1")
	}
	if q.Sent != "" && q.Sent != q.Model {
		o.flag("is_model_mapped")
	}
	o.text("matched_tier", r.Tier)
	o.decimal("model_price", r.ModelPrice, "-1")
	o.decimal("model_ratio", r.ModelRatio, "0")
	o.text("request_path", q.Endpoint)
	if isAudio(r, u) {
		o.number("text_input", max(u.Prompt-u.AudioIn, 0))
		o.number("text_output", max(u.Completion-u.AudioOut, 0))
	}
	o.tools(r.Tools)
	if q.Sent != "" && q.Sent != q.Model {
		o.text("upstream_model_name", q.Sent)
	}
	o.text("usage_semantic", string(u.Semantics))
	if r.GroupSpecial {
		o.decimal("user_group_ratio", r.GroupRatio, "-1")
	} else {
		o.number("user_group_ratio", -1)
	}
}

// admin writes what users do not see: see Entry.ForUser.
func (o *object) admin(e *ledger.Event) {
	counted := e.Source == ledger.SourceCounted || e.Source == ledger.SourceRecovered
	saturated := e.Rating != nil && e.Rating.Saturated
	if e.Channel == 0 && e.Node == "" && e.Key == "" && len(e.Flags) == 0 && !counted && !saturated {
		return
	}
	o.key("admin_info")
	o.buf = append(o.buf, '{')
	if len(e.Flags) > 0 {
		o.key("flags")
		o.buf = append(o.buf, '[')
		for i, f := range e.Flags {
			if i > 0 {
				o.buf = append(o.buf, ',')
			}
			o.quote(f)
		}
		o.buf = append(o.buf, ']')
	}
	o.text("ledger_key", e.Key)
	if counted {
		o.flag("local_count_tokens")
	}
	o.text("node_name", e.Node)
	if saturated {
		o.flag("quota_saturation")
	}
	if q := e.Request; q != nil && q.Retries > 0 {
		o.number("retries", int64(q.Retries))
	}
	o.text("usage_source", string(e.Source))
	if e.Channel != 0 {
		o.key("use_channel")
		o.buf = append(o.buf, '[', '"')
		o.buf = strconv.AppendInt(o.buf, e.Channel, 10)
		o.buf = append(o.buf, '"', ']')
	}
	o.buf = append(o.buf, '}')
}

// isAudio reports whether the answer was priced by the four prices of audio models.
func isAudio(r *ledger.Rating, u *ledger.Usage) bool {
	return (u.AudioIn != 0 || u.AudioOut != 0) && r.AudioInPrice == ""
}

func (o *object) audio(r *ledger.Rating, u *ledger.Usage) {
	switch {
	case u.AudioIn != 0 && r.AudioInPrice != "":
		o.decimal("audio_input_price", r.AudioInPrice, "0")
		o.flag("audio_input_seperate_price") //nolint:misspell // New API's spelling
		o.number("audio_input_token_count", u.AudioIn)
	case isAudio(r, u):
		o.flag("audio")
		o.decimal("audio_completion_ratio", r.AudioOutRatio, "1")
		o.number("audio_input", u.AudioIn)
		o.number("audio_output", u.AudioOut)
		o.decimal("audio_ratio", r.AudioRatio, "1")
	}
}

func (o *object) cache(r *ledger.Rating, u *ledger.Usage) {
	if u.CacheWrite != 0 || u.Semantics == ledger.SemanticsAnthropic {
		o.decimal("cache_creation_ratio", r.CacheWriteRatio, "1")
		if u.CacheWrite1h != 0 {
			o.decimal("cache_creation_ratio_1h", hourRatio(r.CacheWriteRatio), "1.6")
		}
		if u.CacheWrite5m != 0 {
			o.decimal("cache_creation_ratio_5m", r.CacheWriteRatio, "1")
		}
		o.number("cache_creation_tokens", u.CacheWrite)
		o.count("cache_creation_tokens_1h", u.CacheWrite1h)
		o.count("cache_creation_tokens_5m", u.CacheWrite5m)
	}
	o.decimal("cache_ratio", r.CacheRatio, "1")
	o.number("cache_tokens", u.CacheRead)
	o.count("cache_write_tokens", u.CacheWrite)
	if u.Semantics == ledger.SemanticsAnthropic {
		o.flag("claude")
	}
}

// hourRatio is the ratio of tokens that are written to the cache for an hour: New API's fixed multiple of the usual one.
func hourRatio(ratio string) string {
	if !isNumber(ratio) || len(ratio) > maxRatioBytes {
		return ""
	}
	r, ok := new(big.Rat).SetString(ratio)
	if !ok {
		return ""
	}
	r.Mul(r, big.NewRat(8, 5))
	digits, _ := r.FloatPrec() // a decimal times 1.6 is a decimal
	return r.FloatString(digits)
}

// maxRatioBytes bounds a ratio that is worked with (L7): a ratio has a few digits.
const maxRatioBytes = 64

func (o *object) tools(tools []ledger.ToolPrice) {
	if len(tools) == 0 {
		return
	}
	o.key("tool_surcharges")
	o.buf = append(o.buf, '[')
	for i, t := range tools {
		if i > 0 {
			o.buf = append(o.buf, ',')
		}
		o.buf = append(o.buf, '{')
		o.number("count", t.Count)
		o.text("name", t.Name)
		o.decimal("price", t.Price, "0")
		o.buf = append(o.buf, '}')
	}
	o.buf = append(o.buf, ']')
}

// object writes the members of a JSON object.
type object struct{ buf []byte }

func (o *object) key(name string) {
	if o.buf[len(o.buf)-1] != '{' {
		o.buf = append(o.buf, ',')
	}
	o.buf = append(append(append(o.buf, '"'), name...), '"', ':')
}

func (o *object) number(name string, n int64) {
	o.key(name)
	o.buf = strconv.AppendInt(o.buf, n, 10)
}

// count writes a number that is left out when it is zero.
func (o *object) count(name string, n int64) {
	if n != 0 {
		o.number(name, n)
	}
}

// flag writes a member that is only there when it is true.
func (o *object) flag(name string) {
	o.key(name)
	o.buf = append(o.buf, "true"...)
}

// text writes a string that is left out when it is empty.
func (o *object) text(name, value string) {
	if value != "" {
		o.key(name)
		o.quote(value)
	}
}

// decimal writes a number that is at hand as text; what is no number becomes a string, so that the whole stays JSON.
func (o *object) decimal(name, value, otherwise string) {
	o.key(name)
	switch {
	case value == "":
		o.buf = append(o.buf, otherwise...)
	case isNumber(value):
		o.buf = append(o.buf, value...)
	default:
		o.quote(value)
	}
}

func (o *object) quote(s string) {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic("usagelog: a string cannot fail to encode: " + err.Error())
			}
			o.buf = append(o.buf, quoted...)
			return
		}
	}
	o.buf = append(append(append(o.buf, '"'), s...), '"')
}

// isNumber reports whether s is a plain decimal in JSON's form, without an exponent.
func isNumber(s string) bool {
	digits := func() (n int) {
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	if s != "" && s[0] == '-' {
		s = s[1:]
	}
	n := digits()
	if n == 0 || n > 1 && s[0] == '0' {
		return false
	}
	if s = s[n:]; s == "" {
		return true
	}
	if s[0] != '.' {
		return false
	}
	s = s[1:]
	return s != "" && digits() == len(s)
}
