package ledger_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
)

func checkerOf(t testing.TB, options map[string]string) *ledger.Checker {
	t.Helper()
	c, err := ledger.NewChecker(options, func(now func() time.Time) ledger.ExpressionCompiler { return rating.Compiler(now) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// optionsOf reads a recorded options file.
func optionsOf(t testing.TB, set string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/newapi/options/" + set + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	options := make(map[string]string)
	for key, value := range raw {
		options[key] = string(value)
	}
	return options
}

// recordedRow is the logs row of a recorded bill, with the options that were in force.
type recordedRow struct {
	id, tag, options string
	row              ledger.LoggedBill
}

func recordedRows(t testing.TB) []recordedRow {
	t.Helper()
	text, err := os.ReadFile("testdata/newapi/newapi-bills.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var rows []recordedRow
	for line := range bytes.Lines(text) {
		var bill struct {
			ID, Tag   string
			Endpoint  string
			Options   string `json:"options_set"`
			UserGroup string `json:"user_group"`
			Log       *struct {
				Quota      int64
				Prompt     int64 `json:"prompt_tokens"`
				Completion int64 `json:"completion_tokens"`
				Group      string
				Model      string `json:"model_name"`
				Other      map[string]json.RawMessage
			}
		}
		if err := json.Unmarshal(line, &bill); err != nil {
			t.Fatal(err)
		}
		if bill.Log == nil {
			continue
		}
		l := bill.Log
		l.Other["request_path"], _ = json.Marshal(bill.Endpoint) // the recording left it out; rows have it
		other, err := json.Marshal(l.Other)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, recordedRow{bill.ID, bill.Tag, bill.Options, ledger.LoggedBill{
			UserGroup: bill.UserGroup, Group: l.Group, Model: l.Model, Prompt: l.Prompt, Completion: l.Completion, Quota: l.Quota, Other: other,
		}})
	}
	return rows
}

// Every row that New API logged in the recording comes out to the unit again, those with tokens that it counted itself too: the row
// holds the count.
func TestCheckRecordedRows(t *testing.T) {
	checkers := map[string]*ledger.Checker{}
	got := map[ledger.Agreement]int{}
	for _, r := range recordedRows(t) {
		c := checkers[r.options]
		if c == nil {
			c = checkerOf(t, optionsOf(t, r.options))
			checkers[r.options] = c
		}
		out := c.Check(&r.row)
		got[out.Agreement]++
		if out.Agreement != ledger.BillMatched {
			t.Logf("%s %s %s: %s (%s): ours %d, own %d, theirs %d %v", r.id, r.tag, r.row.Model, out.Agreement, out.Reason, out.Quota, out.Own, r.row.Quota, out.Changes)
		}
	}
	// Derived: three rows by an expression that looked at the request, three of pictures in a size, a quality, a number.
	want := map[ledger.Agreement]int{ledger.BillMatched: 999, ledger.BillDerived: 6}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Under the options of another time no recorded row is a riddle: where today's bill is another, the row's own ratios give its quota
// and the factors that changed are named.
func TestCheckUnderOtherOptions(t *testing.T) {
	now := checkerOf(t, optionsOf(t, "defaults"))
	got := map[ledger.Agreement]int{}
	for _, r := range recordedRows(t) {
		if r.options == "tiered" || r.options == "unit100k" {
			continue // an expression, and QuotaPerUnit beside a tool or an expression, are not in these rows
		}
		out := now.Check(&r.row)
		got[out.Agreement]++
		switch out.Agreement {
		case ledger.BillRepriced:
			if out.Own != r.row.Quota || len(out.Changes) == 0 {
				t.Errorf("%s: repriced, but its own ratios give %d of %d; changed %v", r.id, out.Own, r.row.Quota, out.Changes)
			}
		case ledger.BillMatched, ledger.BillDerived:
		default:
			t.Errorf("%s %s %s: %s (%s): ours %d, own %d, theirs %d", r.id, r.tag, r.row.Model, out.Agreement, out.Reason, out.Quota, out.Own, r.row.Quota)
		}
	}
	if got[ledger.BillRepriced] < 100 {
		t.Errorf("only %d rows were repriced", got[ledger.BillRepriced])
	}
	t.Log(got)
}

// A row whose quota is off by one is never called right.
func TestCheckSeesOneUnit(t *testing.T) {
	checkers := map[string]*ledger.Checker{}
	for _, r := range recordedRows(t) {
		c := checkers[r.options]
		if c == nil {
			c = checkerOf(t, optionsOf(t, r.options))
			checkers[r.options] = c
		}
		r.row.Quota++
		if out := c.Check(&r.row); out.Agreement != ledger.BillDiffers && out.Agreement != ledger.BillUnrated {
			t.Errorf("%s %s: one unit more is called %s (%s)", r.id, r.tag, out.Agreement, out.Reason)
		}
	}
}

func TestCheck(t *testing.T) {
	options := optionsOf(t, "groups")
	options[ledger.OptionModelRatio] = `{"text": 2, "claude-3-x": 1.5, "pic-tokens": 1}`
	options[ledger.OptionModelPrice] = `{"call": 0.5, "dall-e-3": 0.04, "mj_imagine": 0.1}`
	options[ledger.OptionBillingMode] = `{"tier": "tiered_expr", "night": "tiered_expr", "asks": "tiered_expr", "sees": "tiered_expr"}`
	options[ledger.OptionBillingExpr] = `{"tier": "tier(\"base\", p * 4 + c * 8)", "night": "p * (hour() < 6 ? 2 : 4)",
		"asks": "p * (param(\"fast\") == true ? 4 : 2)", "sees": "p * 2 + img * 8"}`
	c := checkerOf(t, options)
	const plain = `"model_price":-1,"user_group_ratio":-1,"group_ratio":1`
	for _, test := range []struct {
		name  string
		row   ledger.LoggedBill
		other string
		want  ledger.Agreement
		has   string // part of the reason
		ours  int64
	}{
		{"text", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 200}, plain + `,"model_ratio":2,"completion_ratio":1`, ledger.BillMatched, "", 200},
		{"no details, right", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 200}, "-", ledger.BillMatched, "", 200},
		{"no details, wrong", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 150}, "-", ledger.BillUnrated, "no details", 200},
		{"broken details", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 150}, `"model_ratio":`, ledger.BillUnrated, "no details", 200},
		{"another model ratio", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 300}, plain + `,"model_ratio":3,"completion_ratio":1`, ledger.BillRepriced, "model ratio", 200},
		{"two changes", ledger.LoggedBill{Model: "text", Prompt: 100, Completion: 100, Quota: 900}, plain + `,"model_ratio":3,"completion_ratio":2`, ledger.BillRepriced, "model ratio, completion ratio", 400},
		{"a change that does not bear", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 300}, plain + `,"model_ratio":3,"completion_ratio":9`, ledger.BillRepriced, "model ratio", 200},
		{"another group ratio", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 100}, `"model_price":-1,"group_ratio":0.5,"user_group_ratio":-1,"model_ratio":2,"completion_ratio":1`, ledger.BillRepriced, "group ratio", 200},
		{"a ratio of a pair of groups", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 50}, `"model_price":-1,"group_ratio":9,"user_group_ratio":0.25,"model_ratio":2,"completion_ratio":1`, ledger.BillRepriced, "group ratio", 200},
		{"was by the call", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 5000}, `"model_price":0.01,"group_ratio":1`, ledger.BillRepriced, "way of billing", 200},
		{"no price any more", ledger.LoggedBill{Model: "gone", Prompt: 100, Quota: 300}, plain + `,"model_ratio":3,"completion_ratio":1`, ledger.BillRepriced, "no price any more", 0},
		{"accepted without a price", ledger.LoggedBill{Model: "gone", Prompt: 100, Quota: 3750}, plain + `,"model_ratio":37.5,"completion_ratio":1`, ledger.BillMatched, "", 3750},
		{"no price and wrong", ledger.LoggedBill{Model: "gone", Prompt: 100, Quota: 7}, "-", ledger.BillUnrated, "no details", 0},
		{"wrong", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 201}, plain + `,"model_ratio":2,"completion_ratio":1`, ledger.BillDiffers, "neither", 200},
		{"unknown detail", ledger.LoggedBill{Model: "text", Prompt: 100, Quota: 5200}, plain + `,"model_ratio":2,"completion_ratio":1,"web_search_price":10`, ledger.BillUnrated, "web_search_price", 200},
		{"by the call", ledger.LoggedBill{Model: "call", Prompt: 1, Quota: 250000}, `"model_price":0.5,"group_ratio":1`, ledger.BillMatched, "", 250000},
		{"another QuotaPerUnit", ledger.LoggedBill{Model: "call", Prompt: 1, Quota: 50000}, `"model_price":0.5,"group_ratio":1`, ledger.BillRepriced, "QuotaPerUnit", 250000},
		{"three pictures", ledger.LoggedBill{Model: "dall-e-3", Prompt: 1, Quota: 60000}, `"model_price":0.04,"group_ratio":1,"request_path":"/v1/images/generations"`, ledger.BillDerived, "pictures", 60000},
		{"pictures by tokens", ledger.LoggedBill{Model: "pic-tokens", Prompt: 50, Quota: 200}, plain + `,"model_ratio":1,"completion_ratio":1,"request_path":"/v1/images/generations"`, ledger.BillDerived, "pictures", 200},
		{"not whole pictures", ledger.LoggedBill{Model: "dall-e-3", Prompt: 1, Quota: 61000}, `"model_price":0.04,"group_ratio":1,"request_path":"/v1/images/generations"`, ledger.BillUnrated, "whole multiple", 20000},
		{"pictures at another price", ledger.LoggedBill{Model: "dall-e-3", Prompt: 1, Quota: 75000}, `"model_price":0.05,"group_ratio":1,"request_path":"/v1/images/generations"`, ledger.BillRepriced, "price per call", 20000},
		{"a task", ledger.LoggedBill{Model: "mj_imagine", Quota: 123}, `"model_price":0.1,"group_ratio":1,"task_id":"t1"`, ledger.BillUnrated, "asynchronous", 0},
		{"a fee", ledger.LoggedBill{Model: "text", Quota: 25000}, plain + `,"model_ratio":2,"violation_fee":true`, ledger.BillUnrated, "fee", 0},
		{"above the ceiling", ledger.LoggedBill{Model: "text", Prompt: 2e9, Quota: 4e9}, plain + `,"model_ratio":2,"completion_ratio":1`, ledger.BillDiffers, "largest bill", ledger.MaxBill},
		{"at the ceiling", ledger.LoggedBill{Model: "text", Prompt: 2e9, Quota: ledger.MaxBill}, plain + `,"model_ratio":2,"completion_ratio":1,"admin_info":{"quota_saturation":{}}`, ledger.BillMatched, "", ledger.MaxBill},
		{"anthropic before it was named", ledger.LoggedBill{Model: "claude-3-x", Prompt: 10, Quota: 30}, plain + `,"model_ratio":1.5,"completion_ratio":5,"claude":true,"cache_tokens":10,"cache_ratio":1`, ledger.BillMatched, "", 30},
		{"expression", ledger.LoggedBill{Model: "tier", Prompt: 100, Quota: 200}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1`, ledger.BillMatched, "", 200},
		{"another expression", ledger.LoggedBill{Model: "tier", Prompt: 100, Quota: 50}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1,"expr_b64":"cCAqIDE="`, ledger.BillRepriced, "expression", 200},
		{"an expression beyond us", ledger.LoggedBill{Model: "gone", Prompt: 100, Quota: 50}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1,"expr_b64":"cCAqICg="`, ledger.BillUnrated, "no price", 0},
		{"an expression, wrong", ledger.LoggedBill{Model: "tier", Prompt: 100, Quota: 50}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1`, ledger.BillDiffers, "neither", 200},
		{"by night", ledger.LoggedBill{Model: "night", Prompt: 100, Quota: 100, CreatedAt: 3600}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1`, ledger.BillMatched, "", 100},
		{"by day", ledger.LoggedBill{Model: "night", Prompt: 100, Quota: 200, CreatedAt: 36000}, `"billing_mode":"tiered_expr","model_price":0,"group_ratio":1`, ledger.BillMatched, "", 200},
		{"asks, and the row answers", ledger.LoggedBill{Model: "asks", Prompt: 100, Quota: 200}, `"billing_mode":"tiered_expr","group_ratio":1,"request_rules":[{"multiplier":2,"matched":true},{"multiplier":5,"matched":false}]`, ledger.BillDerived, "read from the row", 200},
		{"asks, and nobody answers", ledger.LoggedBill{Model: "asks", Prompt: 100, Quota: 200}, `"billing_mode":"tiered_expr","group_ratio":1`, ledger.BillUnrated, "looks at the request", 100},
		{"sees", ledger.LoggedBill{Model: "sees", Prompt: 100, Quota: 220}, `"billing_mode":"tiered_expr","group_ratio":1`, ledger.BillUnrated, "images or audio", 100},
		{"a tool at another price", ledger.LoggedBill{Model: "text", Prompt: 1, Quota: 6002}, plain + `,"model_ratio":2,"completion_ratio":1,"tool_surcharges":[{"name":"web_search","count":1,"price":12}]`, ledger.BillRepriced, "tool prices", 5002},
	} {
		row := test.row
		row.UserGroup, row.Group = "default", "default"
		if row.Other = []byte("{" + test.other + "}"); test.other == "-" {
			row.Other = nil
		}
		out := c.Check(&row)
		if out.Agreement != test.want || !strings.Contains(out.Reason, test.has) || out.Quota != test.ours || test.has == "" && out.Reason != "" {
			t.Errorf("%s: %s, %q, ours %d, own %d, changes %v; want %s, %q, %d", test.name, out.Agreement, out.Reason, out.Quota, out.Own, out.Changes, test.want, test.has, test.ours)
		}
	}
}

// Whatever lies in the column `other`, a check ends with one of its answers.
func FuzzCheck(f *testing.F) {
	c := checkerOf(f, nil)
	for _, r := range recordedRows(f)[:50] {
		f.Add(r.row.Other, r.row.Prompt, r.row.Completion, r.row.Quota)
	}
	f.Add([]byte(`{"audio":true,"text_input":-1,"model_ratio":1e300}`), int64(-1), int64(1)<<62, int64(-5))
	f.Fuzz(func(t *testing.T, other []byte, prompt, completion, quota int64) {
		row := ledger.LoggedBill{Model: "gpt-4o", Group: "default", UserGroup: "default", Prompt: prompt, Completion: completion, Quota: quota, Other: other}
		out := c.Check(&row)
		if !slices.Contains(ledger.Agreements(), out.Agreement) || (out.Reason == "") != (out.Agreement == ledger.BillMatched) {
			t.Errorf("%q: %q with reason %q", other, out.Agreement, out.Reason)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	c := checkerOf(b, optionsOf(b, "custom"))
	var rows []recordedRow
	for _, r := range recordedRows(b) {
		if r.options == "custom" {
			rows = append(rows, r)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.Check(&rows[i%len(rows)].row)
	}
}
