package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	recordedBills   = "../../ledger/testdata/newapi/newapi-bills.jsonl"
	recordedOptions = "../../ledger/testdata/newapi/options"
)

// Every bill that New API made from reported tokens comes out to the unit, of all kinds; of those whose tokens it counted
// itself all but three, and these within the stated tolerance.
func TestRateRecordedBills(t *testing.T) {
	report, err := rateFile(t.Context(), recordedOptions, recordedBills)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(report.different, report.unsupported...) {
		t.Errorf("%s: ours %s, theirs %s: %s", f.id, f.ours, f.theirs, f.reason)
	}
	want := tally{bills: 1019, matched: 1016, recounted: 3}
	if diff := cmp.Diff(want, report.total, cmp.AllowUnexported(tally{})); diff != "" {
		t.Errorf("total: %s", diff)
	}
	recounted := map[string]int{}
	for tag, t := range report.tags {
		if t.recounted > 0 {
			recounted[tag] = t.recounted
		}
	}
	// Answers of 7,500 characters: 2,160 tokens by our weights, 2,161 (Claude's 2,280 and 2,281) by New API's.
	wantTags := map[string]int{"missing_usage": 3}
	if diff := cmp.Diff(wantTags, recounted); diff != "" {
		t.Errorf("recounted by tag: %s", diff)
	}
}

// What New API made of a request is never an input: with all of it replaced by nonsense, but for the quota that is
// compared, every result is the same.
func TestRateReadsNoOutcome(t *testing.T) {
	text, err := os.ReadFile(recordedBills)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		var bill map[string]json.RawMessage
		if err := json.Unmarshal(line, &bill); err != nil {
			t.Fatal(err)
		}
		var log struct{ Quota *int64 }
		if err := json.Unmarshal(bill["log"], &log); err != nil {
			t.Fatal(err)
		}
		if log.Quota != nil {
			bill["log"] = json.RawMessage(fmt.Sprintf(`{"quota":%d,"prompt_tokens":77,"other":{"model_ratio":99,"local_count_tokens":true}}`, *log.Quota))
		}
		for _, key := range []string{"delta", "client_usage", "before", "held_at_upstream", "status", "upstream"} {
			bill[key] = json.RawMessage(`{"user_quota":-1,"prompt_tokens":1}`)
		}
		changed, err := json.Marshal(bill)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(changed, '\n'))
	}
	path := filepath.Join(t.TempDir(), "bills.jsonl")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, err := rateFile(t.Context(), recordedOptions, recordedBills)
	if err != nil {
		t.Fatal(err)
	}
	blind, err := rateFile(t.Context(), recordedOptions, path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain, blind, cmp.AllowUnexported(rateReport{}, tally{}, finding{})); diff != "" {
		t.Error(diff)
	}
}

// oneBill is a line that can be rated, with the quota it is said to have cost.
func oneBill(id string, quota string) string {
	return `{"id":"` + id + `","tag":"t","endpoint":"/v1/chat/completions","model":"gpt-4o","channel_type":1,"user_group":"default","options_set":"plain",` +
		`"request":{},"usage":{"prompt_tokens":100,"completion_tokens":10},"log":` + quota + `}`
}

func TestRateCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("plain.json", `{"QuotaPerUnit": 500000, "ModelRatio": {"gpt-4o": 1.25}}`)
	good := oneBill("good", `{"quota":175}`)
	for _, c := range []struct {
		name  string
		args  []string
		out   string // part of standard output
		err   string // part of the error; empty: none
		usage bool   // the error is the caller's: exit code 2
	}{
		{"matching", []string{"-options", dir, write("a.jsonl", good+"\n\n"+good)}, "total  2      2", "", false},
		{"differing", []string{"-options", dir, write("b.jsonl", good+"\n"+oneBill("bad", `{"quota":176}`))}, "bad        175   176     t    gpt-4o  ratio: input 100, output 10", "1 of 2 bills differ", false},
		{"a bill where none was", []string{"-options", dir, write("c.jsonl", oneBill("bad", `null`))}, "bad        175   none", "1 of 1 bills differ", false},
		{"counted too far off", []string{"-options", dir, write("k.jsonl", strings.ReplaceAll(oneBill("far", `{"quota":9999}`), `{"prompt_tokens":100,"completion_tokens":10}`, "null"))}, "tokens counted here", "1 of 1 bills differ", false},
		{"unpriced", []string{"-options", dir, write("d.jsonl", strings.ReplaceAll(good, "gpt-4o", "nobody"))}, "model nobody has no price", "", false},
		{"no arguments", nil, "", "-options DIR", true},
		{"unknown flag", []string{"-fast"}, "", "-fast", true},
		{"help", []string{"-h"}, "usage: ledgerline rate", "", false},
		{"no directory", []string{"-options", filepath.Join(dir, "none"), "x"}, "", "none: no such file", false},
		{"a file as directory", []string{"-options", write("f", ""), "x"}, "", "is not a directory", false},
		{"no file", []string{"-options", dir, filepath.Join(dir, "none.jsonl")}, "", "none.jsonl: no such file", false},
		{"bad line", []string{"-options", dir, write("e.jsonl", good+"\n{\n")}, "", "e.jsonl:2: decode bill", false},
		{"line of something else", []string{"-options", dir, write("g.jsonl", "{}\n")}, "", "g.jsonl:1: decode bill: id", false},
		{"unknown options", []string{"-options", dir, write("h.jsonl", strings.ReplaceAll(good, "plain", "fancy"))}, "", "h.jsonl:1: read options: open", false},
		{"options elsewhere", []string{"-options", dir, write("i.jsonl", strings.ReplaceAll(good, "plain", "../plain"))}, "", "not a plain name", false},
		{"malformed option", []string{"-options", dir, write("j.jsonl", strings.ReplaceAll(good, "plain", "broken"))}, "", "broken.json: option ModelRatio", false},
	} {
		write("broken.json", `{"ModelRatio": [1]}`)
		t.Run(c.name, func(t *testing.T) {
			var out, stderr bytes.Buffer
			err := rateCommand(t.Context(), c.args, nil, &out, &stderr)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
			if _, isUsage := errors.AsType[*usageError](err); isUsage != c.usage {
				t.Errorf("usage error %v, want %v", isUsage, c.usage)
			}
			if !strings.Contains(out.String(), c.out) {
				t.Errorf("output lacks %q:\n%s", c.out, out.String())
			}
		})
	}
}

// The classes of characters are fitted to texts of few kinds; what matters for others is that nothing runs away.
func TestEstimateOfOddTexts(t *testing.T) {
	for _, c := range []struct {
		text        string
		least, most int64
	}{
		{"", 0, 0},
		{"a", 1, 2},
		{"\x00\xff\u200b", 1, 3},
		{strings.Repeat("supercalifragilistic", 50), 1, 2}, // one word, however long
		{"1234567890", 1, 3},
		{"日本語のテキスト", 5, 10},
		{"한국어 텍스트", 4, 9},
		{"😀😀😀😀", 4, 12},
		{"\n\n\n\n", 1, 4},
		{"الكتابة العربية", 2, 5},
	} {
		for name, w := range map[string]*classWeights{"usual": &usualWeights, "claude": &claudeWeights, "gemini": &geminiWeights} {
			if got := w.estimate(c.text); got < c.least || got > c.most {
				t.Errorf("%s, %.20q: %d tokens, want %d to %d", name, c.text, got, c.least, c.most)
			}
		}
	}
}
