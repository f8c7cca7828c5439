package usagelog

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

var update = flag.Bool("update", false, "write the golden files")

// deltasOf is what the amounts of a row mean to Totals.
func deltasOf(r *Row) map[ledger.Account]ledger.Balance {
	all := map[ledger.Account]ledger.Balance{}
	for kind, id := range map[ledger.AccountKind]int64{
		ledger.UserAccount: r.UserID, ledger.TokenAccount: r.TokenID, ledger.ChannelAccount: r.ChannelID,
	} {
		b := ledger.Balance{Granted: r.Granted, Charged: r.Charged, Requests: r.Requests}
		if id != 0 && !b.IsZero() && (r.Moves == MovesAll || r.Moves == string(kind)) {
			all[ledger.Account{Kind: kind, ID: id}] = b
		}
	}
	return all
}

// TestRowMovesWhatTheEventMoves holds the amounts of rows against Event.Deltas, for every kind and account (L4).
func TestRowMovesWhatTheEventMoves(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	kinds := []ledger.Kind{
		ledger.KindUsageSettled, ledger.KindUsageRecovered, ledger.KindUsageAdjusted, ledger.KindCreditGranted,
		ledger.KindCreditAdopted, ledger.KindTokenLimited, ledger.KindAccountOpened, ledger.KindAudit,
	}
	accounts := []ledger.AccountKind{"", ledger.UserAccount, ledger.TokenAccount, ledger.ChannelAccount, "other"}
	for range 5000 {
		e := ledger.Event{
			Kind: kinds[rng.IntN(len(kinds))], Account: accounts[rng.IntN(len(accounts))],
			User: 1 + rng.Int64N(3), Token: rng.Int64N(3), Channel: rng.Int64N(3),
			Granted: rng.Int64N(7) - 3, Charged: rng.Int64N(7) - 3, Requests: rng.Int64N(2),
		}
		want := map[ledger.Account]ledger.Balance{}
		for _, d := range e.Deltas(nil) {
			want[d.Account] = d.Balance
		}
		row := RowOf(&ledger.Record{Event: e})
		if diff := cmp.Diff(want, deltasOf(&row)); diff != "" {
			t.Fatalf("%+v (-want +got):\n%s", e, diff)
		}
	}
}

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		kind    ledger.Kind
		key     string
		flag    string
		charged int64
		want    int
		quota   int64
	}{
		{ledger.KindUsageSettled, "", "", 7, TypeConsume, 7},
		{ledger.KindUsageRecovered, "", "", 7, TypeConsume, 7},
		{ledger.KindUsageAdjusted, "rerate:R:E:1", "", 7, TypeConsume, 7},
		{ledger.KindUsageAdjusted, "rerate:R:E:1", "", -7, TypeRefund, 7},
		{ledger.KindCreditGranted, "redeem:C:1", "", 0, TypeTopUp, 0},
		{ledger.KindCreditGranted, "topup:T:1", "", 0, TypeTopUp, 0},
		{ledger.KindCreditGranted, "signup:1", "", 0, TypeSystem, 0},
		{ledger.KindCreditGranted, "admin:X:1", "", 0, TypeManage, 0},
		{ledger.KindCreditAdopted, "adopt:X:1", "", 0, TypeSystem, 0},
		{ledger.KindAccountOpened, "open:1", "", 0, TypeSystem, 0},
		{ledger.KindTokenLimited, "token:X:1", "", 0, TypeManage, 0},
		{ledger.KindAudit, "", "", 0, TypeManage, 0},
		{ledger.KindAudit, "", "login", 0, TypeLogin, 0},
		{ledger.KindAudit, "error:X:1", "", 0, TypeError, 0},
		{ledger.KindAudit, "", "system", 0, TypeSystem, 0},
	} {
		e := ledger.Event{Kind: c.kind, Key: c.key, Charged: c.charged, User: 1}
		if c.flag != "" {
			e.Flags = []string{"x", c.flag}
		}
		row := RowOf(&ledger.Record{Event: e})
		if row.Type != c.want || row.Quota != c.quota {
			t.Errorf("%s %q %q: type %d quota %d, want %d and %d", c.kind, c.key, c.flag, row.Type, row.Quota, c.want, c.quota)
		}
	}
}

// TestRowsOfBalancesSayTheirAmount holds the log to saying what happened where New API's columns have no room for it.
func TestRowsOfBalancesSayTheirAmount(t *testing.T) {
	for want, e := range map[string]ledger.Event{
		"opening balance of the user: 500 quota units granted, 20 of them used": {Kind: ledger.KindAccountOpened, Account: ledger.UserAccount, Granted: 500, Charged: 20},
		"opening balance of key 7: 5 quota units granted, 0 of them used":       {Kind: ledger.KindAccountOpened, Account: ledger.TokenAccount, Token: 7, Granted: 5},
		"balance of the user edited in the database: +1000 quota units":         {Kind: ledger.KindCreditAdopted, Account: ledger.UserAccount, Granted: 1000},
		"balance of key 7 edited in the database: -3 quota units":               {Kind: ledger.KindCreditAdopted, Account: ledger.TokenAccount, Token: 7, Granted: -3},
		"by hand": {Kind: ledger.KindCreditAdopted, Granted: 1, Note: "by hand"},
		"":        {Kind: ledger.KindCreditGranted, Granted: 1},
	} {
		if row := RowOf(&ledger.Record{Event: e}); row.Content != want {
			t.Errorf("content %q, want %q", row.Content, want)
		}
	}
}

// goldenEvents are events whose details New API's pages show.
var goldenEvents = map[string]ledger.Event{
	"plain": {
		Kind: ledger.KindUsageSettled, User: 4, Token: 8, Channel: 2, Charged: 35, Requests: 1, Node: "node-1", Source: ledger.SourceUpstream,
		Request: &ledger.Request{Endpoint: "/v1/chat/completions", Model: "gpt-4o"},
		Usage:   &ledger.Usage{Prompt: 10, Completion: 9},
		Rating:  &ledger.Rating{Mode: "ratio", ModelRatio: "1.25", CompletionRatio: "4", CacheRatio: "0.5", GroupRatio: "0.6"},
	},
	"stream, mapped, cached, own ratio": {
		Kind: ledger.KindUsageSettled, Channel: 1, Source: ledger.SourceCounted, Flags: []string{"no_usage"},
		Request: &ledger.Request{Endpoint: "/v1/messages", Model: "sonnet", Sent: "claude-sonnet-4", Stream: true, FirstMS: 310, Retries: 2},
		Usage: &ledger.Usage{
			Semantics: ledger.SemanticsAnthropic, Prompt: 10, Completion: 9, CacheRead: 50, CacheWrite: 30, CacheWrite5m: 10, CacheWrite1h: 20,
		},
		Rating: &ledger.Rating{ModelRatio: "1.5", CompletionRatio: "5", CacheRatio: "0.1", CacheWriteRatio: "1.25", GroupRatio: "0.5", GroupSpecial: true},
	},
	"audio, tools, saturated": {
		Kind:   ledger.KindUsageSettled,
		Usage:  &ledger.Usage{AudioIn: 5, AudioOut: 6, ImageIn: 7},
		Rating: &ledger.Rating{AudioRatio: "16", AudioOutRatio: "2", Saturated: true, Tools: []ledger.ToolPrice{{Name: "web_search", Count: 2, Price: "10"}}},
	},
	"priced, separate audio": {
		Kind:   ledger.KindUsageSettled,
		Usage:  &ledger.Usage{AudioIn: 5},
		Rating: &ledger.Rating{Mode: "price", ModelPrice: "0.04", AudioInPrice: "0.7"},
	},
	"expression": {Kind: ledger.KindUsageAdjusted, Key: "rerate:R:E:1", Rating: &ledger.Rating{Mode: "expr", Tier: "base \"1\""}},
	"credit":     {Kind: ledger.KindCreditGranted, Key: "topup:T1:7", Node: "node-2"},
	"nothing":    {Kind: ledger.KindAudit, Note: "option changed"},
}

func TestOtherGolden(t *testing.T) {
	got := map[string]json.RawMessage{}
	for name, e := range goldenEvents {
		row := RowOf(&ledger.Record{Event: e})
		if row.Other == "" {
			row.Other = `""`
		}
		got[name] = json.RawMessage(row.Other)
	}
	text, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	path := filepath.Join("testdata", "other.json")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Errorf("details (-want +got):\n%s", diff)
	}
}

func TestForUser(t *testing.T) {
	for other, want := range map[string]string{
		"":                                      "",
		`{"frt":3}`:                             `{"frt":3}`,
		`{"admin_info":{"x":1},"frt":3}`:        `{"frt":3}`,
		`{"admin_info":{"x":1}}`:                "",
		`{"audit_info":{},"op":{"action":"a"}}`: `{"op":{"action":"a"}}`,
		`broken "admin_info"`:                   "",
	} {
		if got := (Entry{Other: other, ChannelName: "acme"}).ForUser(); got.Other != want || got.ChannelName != "" {
			t.Errorf("ForUser of %q = %q, want %q", other, got.Other, want)
		}
	}
}

func TestKeysStayDifferent(t *testing.T) {
	long := strings.Repeat("k", maxKeyBytes)
	seen := map[string]string{}
	for _, key := range []string{"", "a", long, long + "a", long + "b"} {
		short := keyOf(key)
		if len(short) > maxKeyBytes {
			t.Errorf("key of %d bytes: %d", len(key), len(short))
		}
		if other, ok := seen[short]; ok {
			t.Errorf("%q and %q have one key", key, other)
		}
		seen[short] = key
	}
}

func TestIsNumber(t *testing.T) {
	for s, want := range map[string]bool{
		"0": true, "-1": true, "1.25": true, "0.5": true, "10": true, "": false, "-": false, ".5": false, "1.": false, "01": false,
		"1e5": false, "NaN": false, "+1": false, "1.2.3": false,
	} {
		if got := isNumber(s); got != want {
			t.Errorf("isNumber(%q) = %v", s, got)
		}
		if want && !json.Valid([]byte(s)) {
			t.Errorf("%q is no JSON", s)
		}
	}
}

func TestInsertable(t *testing.T) {
	rows := make([]Row, 400)
	for i := range rows {
		rows[i].CreatedAt = int64(i) * spanSeconds
	}
	if n := insertable(rows); n != maxInsertSpans {
		t.Errorf("%d months in one INSERT, want %d", n, maxInsertSpans)
	}
	rows = make([]Row, 3)
	for i := range rows {
		rows[i].Event = make([]byte, maxInsertBytes)
	}
	if n := insertable(rows); n != 1 {
		t.Errorf("%d large rows in one INSERT, want 1", n)
	}
}

// FuzzRowOf: whatever decodes makes a row that a database takes, and its details are JSON.
func FuzzRowOf(f *testing.F) {
	for _, e := range goldenEvents {
		e.Version, e.ID, e.Producer, e.Seq, e.User = ledger.EventVersion, ledger.ID{1}, ledger.ID{2}, 1, 7
		value, err := e.Encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r := ledger.Record{Value: value}
		r.Event, r.Err = ledger.Decode(value)
		row := RowOf(&r) // must not panic even on what did not decode
		for name, text := range map[string]struct {
			value string
			limit int
		}{
			"username": {row.Username, maxNameBytes}, "token": {row.TokenName, maxNameBytes}, "model": {row.ModelName, maxNameBytes},
			"group": {row.Group, maxNameBytes}, "ip": {row.IP, maxNameBytes}, "node": {row.Node, maxNameBytes},
			"request": {row.RequestID, maxRequestBytes}, "upstream": {row.UpstreamRequestID, maxUpstreamBytes},
			"content": {row.Content, ledger.MaxEventBytes * 3}, "other": {row.Other, ledger.MaxEventBytes * 7}, "kind": {string(row.Kind), maxKindBytes},
		} {
			if len(text.value) > text.limit || !utf8.ValidString(text.value) {
				t.Errorf("%s: %d bytes (limit %d), valid %v", name, len(text.value), text.limit, utf8.ValidString(text.value))
			}
		}
		if len(row.Key) > maxKeyBytes || row.CreatedAt < 0 || row.CreatedAt > maxCreatedAt || row.UseTime < 0 || row.Seq < 0 || row.Prev < 0 {
			t.Errorf("out of range: %+v", row)
		}
		if row.Other != "" && !json.Valid([]byte(row.Other)) {
			t.Errorf("details are no JSON: %s", row.Other)
		}
	})
}
