package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/tidwall/gjson"

	"ledgerline/ledger"
)

// explainFlags are the flags of the form of rate that explains one bill.
type explainFlags struct {
	model, usage, userGroup, group, endpoint, request, items, set string
	channel                                                       int
	stream, asJSON                                                bool
}

// Channel type codes of New API that a usage object's shape tells.
const (
	typeOpenAI    = 1
	typeAnthropic = 14
	typeGemini    = 24
)

func (f *explainFlags) define(flags *flag.FlagSet) {
	flags.StringVar(&f.model, "model", "", "explain a bill of this `model`, as the client asks for it")
	flags.StringVar(&f.usage, "usage", "", "the upstream's usage object, as `JSON` or @FILE; none: nothing was reported")
	flags.StringVar(&f.userGroup, "user-group", "default", "`group` of the user")
	flags.StringVar(&f.group, "group", "", "`group` of the key; auto takes the first of AutoGroups (default: the user's)")
	flags.StringVar(&f.endpoint, "endpoint", "", "`path` that the client asked (default: the one that the usage is of)")
	flags.StringVar(&f.request, "request", "", "the client's request, as `JSON` or @FILE: pictures and expressions are priced by it")
	flags.StringVar(&f.items, "items", "", "the output items of a Responses answer, as `JSON` or @FILE: tool calls are counted in them")
	flags.IntVar(&f.channel, "channel-type", 0, "New API's `type` of the channel (default: the one whose usage it is)")
	flags.BoolVar(&f.stream, "stream", false, "the answer was a stream; of Anthropic's two usage objects then give {\"message_start\": …, \"message_delta\": …}")
	flags.StringVar(&f.set, "set", "", "with a directory as -options: `name` of the file in it, without .json")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
}

// explained is what is printed.
type explained struct {
	ledger.Explanation
	Endpoint    string   `json:"endpoint"`
	ChannelType int      `json:"channel_type"`
	Prices      string   `json:"prices"`          // where they are from
	Notes       []string `json:"notes,omitempty"` // what was odd
}

// explainOne is `ledgerline rate -model`.
func explainOne(ctx context.Context, f rateFlags, getenv func(string) string, stdout, stderr io.Writer) error {
	in, err := f.one.input()
	if err != nil {
		return err
	}
	t, from, err := f.tariff(ctx, getenv, stderr)
	if err != nil {
		return err
	}
	out, ask, err := t.ask(in)
	if err != nil {
		return fmt.Errorf("rate: %w", err)
	}
	bill := explained{Endpoint: in.Endpoint, ChannelType: *in.ChannelType, Prices: from}
	if bill.Explanation, err = t.book.Explain(ask); err != nil {
		if _, unpriced := errors.AsType[*ledger.UnpricedError](err); unpriced {
			return fmt.Errorf("rate: %w, in the prices of %s%s", err, from, similar(in.Model, t.book.Models()))
		}
		return fmt.Errorf("rate: %w", err)
	}
	if group := bill.Group; !bill.Rating.GroupSpecial && !slices.Contains(t.book.Groups(), group) {
		bill.Notes = append(bill.Notes, fmt.Sprintf("no option names a group %s, so its ratio is 1; those named are %s", group, strings.Join(t.book.Groups(), ", ")))
	}
	if out.recounted {
		bill.Notes = append(bill.Notes, "the upstream reported no tokens that can be billed: they were counted here, and New API's own count differs a little")
	}
	for _, name := range out.verdict.Flags() {
		bill.Notes = append(bill.Notes, strings.ReplaceAll(name, "_", " "))
	}
	if f.one.asJSON {
		return printJSON(stdout, bill)
	}
	return bill.print(stdout)
}

// input checks the flags and makes a bill's input of them.
func (f *explainFlags) input() (in billInput, err error) {
	if f.model == "" {
		return in, usagef("rate: -model is missing; see ledgerline rate -h")
	}
	in = billInput{Model: f.model, UserGroup: f.userGroup, TokenGroup: f.group, Stream: f.stream, Endpoint: f.endpoint}
	if in.Usage, err = jsonFlag("-usage", f.usage, '{'); err != nil {
		return in, err
	}
	if in.Request, err = jsonFlag("-request", f.request, '{'); err != nil {
		return in, err
	}
	if in.UpstreamItems, err = jsonFlag("-items", f.items, '['); err != nil {
		return in, err
	}
	channel, endpoint, err := shapeOf(in.Usage, f.endpoint)
	if err != nil && f.channel == 0 {
		return in, err
	}
	if f.channel != 0 {
		channel = f.channel
	}
	in.ChannelType = &channel
	if in.Endpoint == "" {
		in.Endpoint = endpoint
	}
	if !strings.HasPrefix(in.Endpoint, "/v1") {
		return in, usagef("rate -endpoint %q: a path such as /v1/chat/completions is needed", f.endpoint)
	}
	if len(in.Request) == 0 {
		in.Request = json.RawMessage("{}")
	}
	return in, nil
}

// jsonFlag reads a value of JSON, or of a file that @ names. opening is the first character that it must have.
func jsonFlag(name, value string, opening byte) (json.RawMessage, error) {
	if value == "" {
		return nil, nil
	}
	text := []byte(value)
	if path, isFile := strings.CutPrefix(value, "@"); isFile {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("rate %s: %w", name, err)
		}
	}
	kind := map[byte]string{'{': "object", '[': "list"}[opening]
	var raw json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, usagef("rate %s: a JSON %s is needed: %v", name, kind, err)
	}
	if raw[0] != opening {
		return nil, usagef("rate %s: a JSON %s is needed, not %.40s", name, kind, raw)
	}
	return raw, nil
}

// shapeOf tells by a usage object which upstream speaks and which endpoint it answers.
func shapeOf(usage []byte, endpoint string) (channel int, path string, err error) {
	has := func(keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { return gjson.GetBytes(usage, key).Exists() })
	}
	switch {
	case has("promptTokenCount", "candidatesTokenCount", "totalTokenCount"):
		return typeGemini, "/v1/chat/completions", nil
	case has("message_start", "message_delta", "cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use"),
		has("input_tokens") && strings.HasPrefix(endpoint, "/v1/messages"):
		return typeAnthropic, "/v1/messages", nil
	case has("prompt_tokens", "completion_tokens"), len(usage) == 0:
		return typeOpenAI, "/v1/chat/completions", nil
	case has("input_tokens", "output_tokens") && endpoint != "":
		return typeOpenAI, "/v1/responses", nil
	case has("input_tokens", "output_tokens"):
		return 0, "", usagef("rate -usage: input_tokens may be of Anthropic or of the Responses endpoint: add -endpoint /v1/messages or -endpoint /v1/responses")
	}
	return 0, "", usagef("rate -usage: no token figure that is known: prompt_tokens (OpenAI), input_tokens (Responses, Anthropic) or promptTokenCount (Gemini) is needed, or -channel-type to say whose it is")
}

// tariff finds the prices: a file, one of a directory, or the database's own.
func (f *rateFlags) tariff(ctx context.Context, getenv func(string) string, stderr io.Writer) (t tariff, from string, err error) {
	if f.options == "" {
		if f.one.set != "" {
			return t, "", usagef("rate: -set names a file in the directory of -options")
		}
		return databaseTariff(ctx, getenv, stderr)
	}
	path := f.options
	info, err := os.Stat(path)
	if err != nil {
		return t, "", fmt.Errorf("read options: %w", err)
	}
	if info.IsDir() {
		if path, err = optionFile(path, f.one.set); err != nil {
			return t, "", err
		}
	}
	t, err = readTariff(path)
	return t, path, err
}

// optionFile picks the file of a directory: the one that is named, or the only one.
func optionFile(dir, set string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", fmt.Errorf("read options: %w", err)
	}
	var names []string
	for _, path := range found {
		names = append(names, strings.TrimSuffix(filepath.Base(path), ".json"))
	}
	switch {
	case set == "" && len(found) == 1:
		return found[0], nil
	case set == "" && len(found) == 0:
		return "", fmt.Errorf("read options: %s has no file *.json", dir)
	case set == "" || !slices.Contains(names, set):
		return "", usagef("rate: -set must be one of %s", strings.Join(names, ", "))
	}
	return filepath.Join(dir, set+".json"), nil
}

// databaseTariff reads the prices of the database, which is not touched.
func databaseTariff(ctx context.Context, getenv func(string) string, stderr io.Writer) (t tariff, from string, err error) {
	cfg, err := loadConfig(getenv)
	if err != nil {
		return t, "", err
	}
	cfg.looksOn = true
	if err := cfg.hasDatabase(); err != nil {
		return t, "", usagef("%v; or give -options", err)
	}
	call := &importCall{cfg: cfg, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	db, err := call.openReadOnly(ctx)
	if err != nil {
		return t, "", err
	}
	defer func() { logClose(call.log, "database", db.Close()) }()
	options, err := db.Options(ctx)
	if err != nil {
		return t, "", fmt.Errorf("rate: %w", err)
	}
	if t, err = tariffOf(options); err != nil {
		return t, "", fmt.Errorf("rate: %w", err)
	}
	return t, "the database", nil
}

// similar names models that a mistyped name may mean.
func similar(name string, models []string) string {
	const enough, most = 4, 5
	var near []string
	for common := len(name); common >= enough && len(near) == 0; common-- {
		for _, m := range models {
			if strings.HasPrefix(m, name[:common]) && len(near) < most {
				near = append(near, m)
			}
		}
	}
	if len(near) == 0 {
		return ""
	}
	return "; names that begin alike: " + strings.Join(near, ", ")
}

// print writes the explanation for a terminal.
func (e *explained) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s on %s, a user of group %s in group %s\n", e.Model, e.Endpoint, e.UserGroup, e.Group)
	if e.PricedAs != "" {
		fmt.Fprintf(t, "priced as %s\n", e.PricedAs)
	}
	fmt.Fprintf(t, "prices of %s, price book %s\n", e.Prices, e.Book)
	fmt.Fprintf(t, "usage read as: %s\n", usageText(&e.Usage))
	fmt.Fprintln(t, "\nfactor\tvalue\tfrom")
	long := ""
	for _, f := range e.Factors {
		const widest = 40 // what is longer would make the column as wide
		value := f.Value
		if len(value) > widest {
			value, long = "see below", long+fmt.Sprintf("\n%s: %s\n", f.Name, f.Value)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Name, value, f.From)
	}
	fmt.Fprint(t, long)
	fmt.Fprintln(t, "\npart\tcount\tfactors\tquota units")
	for _, term := range e.Terms {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", term.What, term.Count, term.Formula, term.Quota)
	}
	fmt.Fprintf(t, "sum\t\t\t%s\n", e.Exact)
	fmt.Fprintf(t, "bill\t\t%s\t%d\n", e.Rounding, e.Quota)
	units := "units"
	if e.Quota == 1 {
		units = "unit"
	}
	fmt.Fprintf(t, "\n%d quota %s = $%s\n", e.Quota, units, e.USD)
	for _, note := range e.Notes {
		fmt.Fprintf(t, "note: %s\n", note)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// usageText lists what a usage object was understood to say.
func usageText(u *ledger.Usage) string {
	text := fmt.Sprintf("input %d, output %d", u.Prompt, u.Completion)
	for _, part := range []struct {
		name  string
		count int64
	}{
		{"cache read", u.CacheRead},
		{"cache write", u.CacheWrite},
		{"of it 5 minutes", u.CacheWrite5m},
		{"of it 1 hour", u.CacheWrite1h},
		{"image input", u.ImageIn},
		{"image output", u.ImageOut},
		{"audio input", u.AudioIn},
		{"audio output", u.AudioOut},
		{"reasoning", u.Reasoning},
	} {
		if part.count != 0 {
			text += fmt.Sprintf(", %s %d", part.name, part.count)
		}
	}
	if u.Semantics == ledger.SemanticsAnthropic {
		text += " (cached input beside the input, not in it)"
	}
	return text
}
