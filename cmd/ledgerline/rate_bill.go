package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/shopspring/decimal"
	"github.com/tidwall/gjson"

	"ledgerline/ledger"
	"ledgerline/relay/dialect"
)

// billInput is the part of a recorded bill that a rater may look at: what was asked, what the upstream answered, and the
// options in force. What New API made of it is in billLine alone.
type billInput struct {
	ID            string          `json:"id"`
	Tag           string          `json:"tag"`
	Endpoint      string          `json:"endpoint"`
	Stream        bool            `json:"stream"`
	Model         string          `json:"model"`
	ChannelType   *int            `json:"channel_type"` // null: no channel served it, nothing is owed
	UserGroup     string          `json:"user_group"`
	TokenGroup    string          `json:"token_group"` // empty: the user's
	OptionsSet    string          `json:"options_set"`
	Request       json.RawMessage `json:"request"`
	Usage         json.RawMessage `json:"usage"`
	UpstreamText  *string         `json:"upstream_text"` // null: the recording's usual answer
	UpstreamCut   int             `json:"upstream_cut"`  // chunks after which the stream was cut; 0: it was not
	UpstreamItems json.RawMessage `json:"upstream_output_items"`

	UpstreamReasoning string `json:"upstream_reasoning_text"`
	UpstreamToolCalls []struct {
		Function struct {
			Name      string `json:"name"`
			Arguments string `json:"arguments"`
		} `json:"function"`
	} `json:"upstream_tool_calls"`
}

// billLine is one line of the file: the input, and the quota it is expected to come to.
type billLine struct {
	billInput
	Log *struct {
		Quota int64 `json:"quota"`
	} `json:"log"` // null: no bill
}

// priced is what a rater made of a bill.
type priced struct {
	billed    bool // false: nothing is owed and nothing is logged
	bill      ledger.Bill
	usage     ledger.Usage
	verdict   dialect.UsageVerdict
	recounted bool  // the upstream gave no usage to bill: the tokens are an estimate
	slack     int64 // recounted: quota units that the recorded bill may be off besides recountPercent
}

// tariff is the prices that one options file makes.
type tariff struct {
	book       *ledger.PriceBook
	autoGroups []string
	usable     map[string]string // UserUsableGroups; nil: every group
}

// price rates one bill from its input. An error is an *ledger.UnpricedError or *ledger.UnsupportedError, or says why the
// line cannot be read.
func (t tariff) price(in billInput) (priced, error) {
	if in.ChannelType == nil {
		return priced{}, nil
	}
	out, ask, err := t.ask(in)
	if err != nil {
		return priced{}, err
	}
	if out.bill, err = t.book.Rate(ask); err != nil || !out.recounted {
		return out, err
	}
	ask.Usage = ledger.Usage{Prompt: recountTokens, Completion: recountTokens}
	slack, err := t.book.Rate(ask)
	out.slack = slack.Quota
	return out, err
}

// ask makes the question for the price book: the usage decoded, the group resolved.
func (t tariff) ask(in billInput) (priced, ledger.RateInput, error) {
	out := priced{billed: true}
	in.readUsage(&out)
	group := in.TokenGroup
	if group == "auto" {
		var err error
		if group, err = t.auto(in.UserGroup); err != nil {
			return out, ledger.RateInput{}, err
		}
	}
	return out, ledger.RateInput{
		Model:     in.Model,
		UserGroup: in.UserGroup,
		Group:     group,
		Endpoint:  in.Endpoint,
		Usage:     out.usage,
		Other:     in.imageFactor(),
		Body:      in.Request,
	}, nil
}

// readUsage decodes the usage and fills in what New API counts itself when it is missing.
func (in billInput) readUsage(out *priced) {
	kind := dialect.UsageKindOf(*in.ChannelType, in.Endpoint)
	if kind == dialect.UsageAnthropic && in.Stream {
		var merged dialect.AnthropicUsage
		merged.Add([]byte(gjson.GetBytes(in.Usage, "message_start").Raw))
		merged.Add([]byte(gjson.GetBytes(in.Usage, "message_delta").Raw))
		out.usage, out.verdict = merged.Usage()
	} else {
		out.usage, out.verdict = dialect.DecodeUsage(kind, in.Usage)
	}
	if kind == dialect.UsageResponses && len(in.UpstreamItems) > 0 {
		out.usage.Tools = dialect.ResponseTools(in.Request, in.UpstreamItems)
	}
	in.fillUsage(kind, out)
}

// fillUsage applies New API's rules for answers without a usage that can be billed (notes of the recorded bills).
func (in billInput) fillUsage(kind dialect.UsageKind, out *priced) {
	missing := out.verdict.Zero()
	switch {
	case strings.HasPrefix(in.Endpoint, "/v1/images/"):
		if missing {
			out.usage.Prompt = 1 // an image answer without usage counts as one token, so that a price per call is billed
		}
	case in.Endpoint == "/v1/audio/speech":
		// Speech is billed by the characters read out; the answer is audio, of a length that only New API measured.
		out.recounted = true
		out.usage = ledger.Usage{Prompt: int64(utf8.RuneCountInString(gjson.GetBytes(in.Request, "input").Str)), Completion: 1, AudioOut: 1}
	case !in.Stream && (kind == dialect.UsageResponses || kind == dialect.UsageAnthropic):
		// Billed as reported: nothing.
	case in.Stream && missing, !in.Stream && out.usage.Prompt == 0:
		out.recounted = true
		out.usage.Prompt = in.countPrompt()
		switch {
		case out.usage.Completion != 0:
		case kind == dialect.UsageAnthropic: // a stream with empty usage objects: only the prompt is estimated
		case in.Endpoint == "/v1/completions" && !in.Stream: // the text of these answers is not looked at
		case answerless[in.Endpoint]:
		default:
			out.usage.Completion = in.countAnswer()
		}
	}
}

// answerless are the endpoints whose answers have no text.
var answerless = map[string]bool{"/v1/embeddings": true, "/v1/moderations": true, "/v1/rerank": true}

// imageFactor is what the request of an image multiplies the price by: the number of images, and for DALL·E 3 its size and
// quality, after OpenAI's price list (standard square 1, standard wide or HD square 2, HD wide 3).
func (in billInput) imageFactor() decimal.Decimal {
	if !strings.HasPrefix(in.Endpoint, "/v1/images/") {
		return decimal.Decimal{}
	}
	factor := decimal.NewFromInt(max(1, gjson.GetBytes(in.Request, "n").Int()))
	if in.Model != "dall-e-3" {
		return factor
	}
	size := gjson.GetBytes(in.Request, "size").Str
	wide := size == "1024x1792" || size == "1792x1024"
	hd := gjson.GetBytes(in.Request, "quality").Str == "hd"
	switch {
	case wide && hd:
		return factor.Mul(decimal.NewFromInt(3))
	case wide, hd:
		return factor.Mul(decimal.NewFromInt(2))
	}
	return factor
}

// explain says in one line what a bill was made of.
func (p priced) explain() string {
	if !p.billed {
		return "no channel served it, nothing is owed"
	}
	text := explainRating(p.usage, &p.bill.Rating)
	if p.recounted {
		text += "; tokens counted here, the upstream reported none"
	}
	if flags := p.verdict.Flags(); len(flags) > 0 {
		text += "; " + strings.Join(flags, ", ")
	}
	return text
}

// explainRating says in one line which tokens were billed at which factors.
func explainRating(u ledger.Usage, r *ledger.Rating) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", r.Mode, usageText(&u))
	switch r.Mode {
	case ledger.ModeRatio:
		fmt.Fprintf(&b, "; model ratio %s, output ratio %s, group ratio %s", r.ModelRatio, r.CompletionRatio, r.GroupRatio)
	case ledger.ModePrice:
		fmt.Fprintf(&b, "; $%s a call, group ratio %s", r.ModelPrice, r.GroupRatio)
	case ledger.ModeExpr:
		fmt.Fprintf(&b, "; tier %s, group ratio %s", r.Tier, r.GroupRatio)
	}
	if r.Other != "" {
		fmt.Fprintf(&b, ", times %s", r.Other)
	}
	for _, t := range r.Tools {
		fmt.Fprintf(&b, "; %d × %s at $%s per 1,000", t.Count, t.Name, t.Price)
	}
	return b.String()
}
