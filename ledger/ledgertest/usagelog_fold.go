package ledgertest

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

func testUsageEmpty(t *testing.T, log UsageLog) {
	ctx := t.Context()
	offset, last, event, err := log.Position(ctx, 3)
	if err != nil || offset != 0 || last != -1 || !event.IsZero() {
		t.Errorf("Position = %d, %d, %s, %v; want 0, -1, none", offset, last, event, err)
	}
	page, err := log.List(ctx, UsageQuery{Limit: 10})
	if err != nil || page.Total != 0 || len(page.Rows) != 0 {
		t.Errorf("List = %+v, %v", page, err)
	}
	if got := usageTotals(ctx, t, log, nil, []int64{0, 0, 0}); len(got) != 0 {
		t.Errorf("Totals = %v", got)
	}
	if offsets, _, err := log.Lookup(ctx, "req-0-0"); err != nil || len(offsets) != 0 {
		t.Errorf("Lookup = %v, %v", offsets, err)
	}
}

// usageTotals reads Totals into a map, and fails if an account comes twice.
func usageTotals(ctx context.Context, t *testing.T, log UsageLog, from, to []int64) map[ledger.Account]ledger.Balance {
	t.Helper()
	all := map[ledger.Account]ledger.Balance{}
	err := log.Totals(ctx, from, to, func(a ledger.Account, b ledger.Balance) error {
		if _, ok := all[a]; ok {
			t.Errorf("Totals reports %s twice", a)
		}
		all[a] = b
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// foldUsage is what the log adds up to between the cuts, by the reference.
func foldUsage(sources []*usageSource, from, to []int64) map[ledger.Account]ledger.Balance {
	below := func(cut []int64) map[ledger.Account]ledger.Balance {
		fold := ledger.NewFold(nil)
		for p, s := range sources {
			for _, r := range s.records {
				if r.Offset < cut[p] {
					fold.Apply(&r)
				}
			}
		}
		return fold.Balances()
	}
	sums := below(to)
	if from != nil {
		for a, b := range below(from) {
			s := sums[a]
			sums[a] = ledger.Balance{Granted: s.Granted - b.Granted, Charged: s.Charged - b.Charged, Requests: s.Requests - b.Requests}
		}
	}
	for a, b := range sums {
		if b.IsZero() {
			delete(sums, a)
		}
	}
	return sums
}

// testUsageFold appends logs with every kind of event and every kind of copy, in batches that overlap and repeat, and
// compares sums and scans with the reference (L4).
func testUsageFold(t *testing.T, log UsageLog) {
	const partitions, length, seed = 3, 700, 7
	ctx := t.Context()
	var sources []*usageSource
	for p := range partitions {
		s := newUsageSource(t, seed, p)
		for len(s.records) < length {
			s.any()
		}
		sources = append(sources, s)
		for from := 0; from < len(s.records); {
			to := min(from+1+s.rng.IntN(200), len(s.records))
			appendUsage(ctx, t, log, s, from, to)
			if s.rng.IntN(2) == 0 { // the position was lost, or a zombie is at work
				from = max(from-s.rng.IntN(50), 0)
				appendUsage(ctx, t, log, s, from, to)
			}
			from = to
		}
	}
	cut := func(at ...int64) []int64 { return at }
	for _, c := range [][2][]int64{
		{nil, cut(length, length, length)},
		{nil, cut(0, 10, 333)},
		{cut(100, 0, 699), cut(length, 0, length)},
		{cut(50, 250, 400), cut(350, 500, 420)},
	} {
		if diff := cmp.Diff(foldUsage(sources, c[0], c[1]), usageTotals(ctx, t, log, c[0], c[1])); diff != "" {
			t.Errorf("Totals from %v to %v (-want +got):\n%s", c[0], c[1], diff)
		}
	}
	if err := log.Totals(ctx, nil, cut(length+1, 0, 0), func(ledger.Account, ledger.Balance) error { return nil }); err == nil {
		t.Error("Totals beyond the position gave no error")
	}
	for _, s := range sources {
		checkUsageScan(ctx, t, log, s, 0, length)
		checkUsageScan(ctx, t, log, s, 123, 456)
	}
}

func appendUsage(ctx context.Context, t *testing.T, log UsageLog, s *usageSource, from, to int) {
	t.Helper()
	if err := log.Append(ctx, s.partition, int64(to), s.records[from:to]); err != nil {
		t.Fatal(err)
	}
}

// checkUsageScan holds a scan against the log: every decodable record, copies too.
func checkUsageScan(ctx context.Context, t *testing.T, log UsageLog, s *usageSource, from, to int64) {
	t.Helper()
	type place struct {
		Offset int64
		Value  string
	}
	var want, got []place
	for _, r := range s.records {
		if r.Err == nil && r.Offset >= from && r.Offset < to {
			want = append(want, place{r.Offset, string(r.Value)})
		}
	}
	err := log.Scan(ctx, s.partition, from, to, func(offset int64, value []byte) error {
		got = append(got, place{offset, string(value)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Scan of partition %d from %d to %d (-want +got):\n%s", s.partition, from, to, diff)
	}
}

// testUsageLowest: whichever copy comes first, the row is at the lowest place, so that a cut between them has it.
func testUsageLowest(t *testing.T, log UsageLog) {
	ctx := t.Context()
	s := newUsageSource(t, 1, 0)
	first := s.send(s.usage())
	s.send(s.usage())
	again := first.Event
	again.Redrive = true
	s.send(again)
	for _, cut := range [][2]int{{2, 3}, {0, 3}, {2, 3}} {
		appendUsage(ctx, t, log, s, cut[0], cut[1])
	}
	offsets, events, err := log.Lookup(ctx, first.Event.Request.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{0}, offsets); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{string(first.Value)}, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	sources := []*usageSource{s}
	for cut := range int64(4) {
		if diff := cmp.Diff(foldUsage(sources, nil, []int64{cut}), usageTotals(ctx, t, log, nil, []int64{cut})); diff != "" {
			t.Errorf("Totals below %d (-want +got):\n%s", cut, diff)
		}
	}
	checkUsageScan(ctx, t, log, s, 0, 3)
}

// testUsageKeys: two events with one business key (its outbox row was lost and made again) count once, the first; keys
// differ in every byte.
func testUsageKeys(t *testing.T, log UsageLog) {
	ctx := t.Context()
	s := newUsageSource(t, 1, 0)
	grant := func(key string, amount int64) {
		s.send(ledger.Event{Kind: ledger.KindCreditGranted, User: 7, Granted: amount, Key: key})
	}
	grant("redeem:AbC:7", 1)
	grant("redeem:abc:7", 10)
	grant("redeem:AbC:7", 100)
	grant("redeem:AbC:7 ", 1000)
	appendUsage(ctx, t, log, s, 0, 4)
	account := ledger.Account{Kind: ledger.UserAccount, ID: 7}
	for _, c := range []struct {
		from []int64
		to   int64
		want int64
	}{{nil, 1, 1}, {nil, 3, 11}, {nil, 4, 1011}, {[]int64{1}, 4, 1010}, {[]int64{2}, 3, 0}} {
		if got := usageTotals(ctx, t, log, c.from, []int64{c.to})[account].Granted; got != c.want {
			t.Errorf("granted from %v to %d = %d, want %d", c.from, c.to, got, c.want)
		}
	}
}
