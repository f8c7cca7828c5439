package ledgertest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

// usageListing is a log whose listings the suite knows.
func usageListing(t *testing.T, log UsageLog) *usageSource {
	s := newUsageSource(t, 6, 0)
	for i := range 40 {
		e := s.usage()
		e.User, e.Token, e.Channel = int64(1+i%2), int64(10+i%4), int64(1+i%3)
		e.Charged = int64(1000 + i)
		e.Request.Username = []string{"ann", "b%b"}[i%2]
		e.Request.Model = []string{"gpt-4o", "gpt_4o", "claude"}[i%3]
		e.Request.TokenName = []string{"app", "App2"}[i/20]
		e.Request.Group = []string{"default", "vip", "svip", "default"}[i%4]
		e.Request.Upstream = fmt.Sprintf("up-%d", i)
		e.Time = usageEpoch + int64(i)*1000
		if i%5 == 4 {
			e.Kind, e.Granted, e.Charged, e.Requests, e.Usage = ledger.KindCreditGranted, 5, 0, 0, nil
			e.Key = fmt.Sprintf("topup:T%d:%d", i, e.User)
		}
		s.send(e)
	}
	appendUsage(t.Context(), t, log, s, 0, 40)
	appendUsage(t.Context(), t, log, s, 10, 40) // copies must not show
	return s
}

func testUsageFilters(t *testing.T, log UsageLog) {
	s := usageListing(t, log)
	const start = usageEpoch / 1000
	isTopUp := func(i int) bool { return i%5 == 4 }
	for name, c := range map[string]struct {
		query UsageQuery
		match func(i int) bool
	}{
		"all":       {UsageQuery{}, func(int) bool { return true }},
		"consume":   {UsageQuery{Type: 2}, func(i int) bool { return !isTopUp(i) }},
		"top-up":    {UsageQuery{Type: 1}, isTopUp},
		"times":     {UsageQuery{Start: start + 5, End: start + 7}, func(i int) bool { return i >= 5 && i <= 7 }},
		"user":      {UsageQuery{User: 2}, func(i int) bool { return i%2 == 1 }},
		"token":     {UsageQuery{Token: 11}, func(i int) bool { return i%4 == 1 }},
		"channel":   {UsageQuery{Channel: 3}, func(i int) bool { return i%3 == 2 }},
		"username":  {UsageQuery{Username: "ann"}, func(i int) bool { return i%2 == 0 }},
		"model":     {UsageQuery{ModelName: "gpt_4o"}, func(i int) bool { return i%3 == 1 }},
		"pattern":   {UsageQuery{ModelName: "gpt%"}, func(i int) bool { return i%3 != 2 }},
		"literal _": {UsageQuery{ModelName: "%t_4%"}, func(i int) bool { return i%3 == 1 }},
		"tokenname": {UsageQuery{TokenName: "app"}, func(i int) bool { return i < 20 }},
		"group":     {UsageQuery{Group: "vip"}, func(i int) bool { return i%4 == 1 }},
		"request":   {UsageQuery{RequestID: "req-0-7"}, func(i int) bool { return i == 7 }},
		"upstream":  {UsageQuery{UpstreamRequestID: "up-9"}, func(i int) bool { return i == 9 }},
		"several":   {UsageQuery{User: 1, Type: 2, ModelName: "claude", Channel: 3}, func(i int) bool { return i%2 == 0 && i%3 == 2 && !isTopUp(i) }},
		"none":      {UsageQuery{User: 3}, func(int) bool { return false }},
		"quote":     {UsageQuery{Username: `a'"\b`}, func(int) bool { return false }},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			for i := len(s.records) - 1; i >= 0; i-- {
				if c.match(i) {
					want = append(want, s.records[i].Event.Request.ID)
				}
			}
			c.query.Limit = 100
			page, err := log.List(t.Context(), c.query)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range page.Rows {
				got = append(got, r.RequestID)
			}
			if diff := cmp.Diff(want, got); diff != "" || page.Total != len(want) || page.More {
				t.Errorf("total %d (want %d), more %v, requests (-want +got):\n%s", page.Total, len(want), page.More, diff)
			}
		})
	}
}

func testUsagePatterns(t *testing.T, log UsageLog) {
	for _, pattern := range []string{"%", "a%", "%%%abc", "%a%b%c", "%é%"} {
		if _, err := log.List(t.Context(), UsageQuery{ModelName: pattern, Limit: 1}); err == nil {
			t.Errorf("model name %q was not refused", pattern)
		}
		if _, _, _, err := log.Stat(t.Context(), UsageQuery{Username: pattern}, time.Unix(usageEpoch/1000, 0)); err == nil {
			t.Errorf("username %q was not refused", pattern)
		}
	}
}

func testUsagePaging(t *testing.T, log UsageLog) {
	s := usageListing(t, log)
	var got []string
	for skip := 0; skip < 50; skip += 7 {
		page, err := log.List(t.Context(), UsageQuery{Skip: skip, Limit: 7})
		if err != nil {
			t.Fatal(err)
		}
		if page.Total != 40 {
			t.Errorf("page at %d: total %d, want 40", skip, page.Total)
		}
		for _, r := range page.Rows {
			got = append(got, r.RequestID)
		}
	}
	var want []string
	for i := len(s.records) - 1; i >= 0; i-- {
		want = append(want, s.records[i].Event.Request.ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	page, err := log.List(t.Context(), UsageQuery{Limit: 1, Type: 2, User: 2})
	if err != nil || len(page.Rows) != 1 {
		t.Fatalf("List = %+v, %v", page, err)
	}
	wantRow := UsageRow{CreatedAt: usageEpoch/1000 + 37, Type: 2, Quota: 1037, User: 2, Model: "gpt_4o", RequestID: "req-0-37"}
	if diff := cmp.Diff(wantRow, page.Rows[0]); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
}

func testUsageStat(t *testing.T, log UsageLog) {
	s := usageListing(t, log)
	const start = usageEpoch / 1000
	now := time.Unix(start+90, 0) // the 60 s before it begin with record 30
	var quota, annQuota, recent, tokens int64
	for i, r := range s.records {
		if r.Event.Kind != ledger.KindUsageSettled {
			continue
		}
		if i <= 20 {
			quota += r.Event.Charged
		}
		if i%2 == 0 {
			annQuota += r.Event.Charged
			if i >= 30 {
				recent++
				tokens += r.Event.Usage.Prompt + r.Event.Usage.Completion
			}
		}
	}
	got, _, _, err := log.Stat(t.Context(), UsageQuery{Start: start, End: start + 20}, now)
	if err != nil || got != quota {
		t.Errorf("quota = %d, %v; want %d", got, err, quota)
	}
	got, rpm, tpm, err := log.Stat(t.Context(), UsageQuery{Username: "ann", Type: 1}, now)
	if err != nil || got != annQuota || rpm != recent || tpm != tokens {
		t.Errorf("Stat = %d, %d, %d, %v; want %d, %d, %d", got, rpm, tpm, err, annQuota, recent, tokens)
	}
}

func testUsageShares(t *testing.T, log UsageLog) {
	s := usageListing(t, log)
	for _, c := range []struct {
		query  UsageQuery
		byUser bool
		match  func(e *ledger.Event) bool
	}{
		{UsageQuery{}, false, func(*ledger.Event) bool { return true }},
		{UsageQuery{Username: "ann"}, false, func(e *ledger.Event) bool { return e.User == 1 }},
		{UsageQuery{Type: 1, End: usageEpoch/1000 + 9}, true, func(e *ledger.Event) bool { return e.Time <= usageEpoch+9000 }},
		{UsageQuery{User: 3}, true, func(*ledger.Event) bool { return false }},
	} {
		want := map[string][3]int64{}
		for i := range s.records {
			e := &s.records[i].Event
			if e.Kind != ledger.KindUsageSettled || !c.match(e) {
				continue
			}
			name := e.Request.Model
			if c.byUser {
				name = e.Request.Username
			}
			key := fmt.Sprint(e.Time/1000/3600*3600, " ", name)
			sum := want[key]
			want[key] = [3]int64{sum[0] + e.Usage.Prompt + e.Usage.Completion, sum[1] + 1, sum[2] + e.Charged}
		}
		got, err := log.Shares(t.Context(), c.query, c.byUser)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%+v by user %v: %v, shares (-want +got):\n%s", c.query, c.byUser, err, diff)
		}
	}
	if _, err := log.Shares(t.Context(), UsageQuery{Username: "%"}, false); err == nil {
		t.Error("a pattern of wildcards was not refused")
	}
}

func testUsageToken(t *testing.T, log UsageLog) {
	s := usageListing(t, log)
	rows, err := log.TokenLatest(t.Context(), 12)
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, r := range rows {
		got = append(got, r.RequestID)
	}
	for i := len(s.records) - 1; i >= 0; i-- {
		if s.records[i].Event.Token == 12 {
			want = append(want, s.records[i].Event.Request.ID)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows of the token (-want +got):\n%s", diff)
	}
}

// testUsageOdd: whatever a decodable event holds, it goes in (L6), and its amounts count.
func testUsageOdd(t *testing.T, log UsageLog) {
	ctx := t.Context()
	s := newUsageSource(t, 8, 0)
	long := strings.Repeat("長い", 300)
	for i := range 105 { // a month each, more than one INSERT of ClickHouse takes
		e := s.usage()
		e.Time = usageEpoch + int64(i)*31*86400_000
		s.send(e)
	}
	for _, at := range []int64{-5, 0, 1, 1<<63 - 1, -1 << 63} {
		e := s.usage()
		e.Time = at
		e.Node, e.Note, e.Key = long, long, "x:"+long+":7"
		e.Request = &ledger.Request{
			ID: long, Username: long, TokenName: long, Group: long, Model: long, IP: long, Upstream: long, Sent: "a\"\\\x00\n",
			Endpoint: "\x00", TotalMS: -1 << 63, FirstMS: 1<<63 - 1,
		}
		e.Rating.ModelRatio, e.Rating.GroupRatio = "NaN", "1e5"
		e.Flags = []string{"'", "\\", "\x00"}
		r := s.send(e)
		s.put([]byte(strings.Replace(string(r.Value), `"note":"長`, "\"note\":\"\xff\xfe", 1))) // not UTF-8, a copy
	}
	appendUsage(ctx, t, log, s, 0, len(s.records))
	cut := []int64{s.next}
	if diff := cmp.Diff(foldUsage([]*usageSource{s}, nil, cut), usageTotals(ctx, t, log, nil, cut)); diff != "" {
		t.Errorf("Totals (-want +got):\n%s", diff)
	}
	checkUsageScan(ctx, t, log, s, 0, s.next)
	if page, err := log.List(ctx, UsageQuery{Limit: 100}); err != nil || page.Total != 110 || len(page.Rows) != 100 {
		t.Errorf("List has %d of %d rows, %v; want 100 of 110", len(page.Rows), page.Total, err)
	}
}
