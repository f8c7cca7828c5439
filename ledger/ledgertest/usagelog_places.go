package ledgertest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

// testUsagePositions: a position never moves back, whatever a zombie stores late.
func testUsagePositions(t *testing.T, log UsageLog) {
	ctx := t.Context()
	s := newUsageSource(t, 2, 4)
	for range 6 {
		s.send(s.usage())
	}
	s.put([]byte("rubbish"))
	appendUsage(ctx, t, log, s, 0, 4)
	appendUsage(ctx, t, log, s, 4, 7)
	appendUsage(ctx, t, log, s, 2, 3) // a zombie
	offset, last, event, err := log.Position(ctx, 4)
	if err != nil {
		t.Fatal(err)
	}
	if offset != 7 || last != 5 || event != s.records[5].Event.ID {
		t.Errorf("Position = %d, %d, %s; want 7, 5, %s", offset, last, event, s.records[5].Event.ID)
	}
	if offset, _, _, err := log.Position(ctx, 3); err != nil || offset != 0 {
		t.Errorf("position of another partition = %d, %v", offset, err)
	}
}

// testUsageAdopt: after another log was adopted, offsets begin again and nothing of the first log is lost or mixed in.
func testUsageAdopt(t *testing.T, log UsageLog) {
	ctx := t.Context()
	first := newUsageSource(t, 3, 0)
	for range 30 {
		first.send(first.usage())
	}
	appendUsage(ctx, t, log, first, 0, 30)
	before := usageTotals(ctx, t, log, nil, []int64{30})
	if err := log.AdoptLog(ctx, 0, 0); err != nil {
		t.Fatal(err)
	}
	offset, last, event, err := log.Position(ctx, 0)
	if err != nil || offset != 0 || last != -1 || !event.IsZero() {
		t.Errorf("Position = %d, %d, %s, %v; want 0, -1, none", offset, last, event, err)
	}
	if diff := cmp.Diff(before, usageTotals(ctx, t, log, nil, []int64{0})); diff != "" {
		t.Errorf("Totals after adoption (-before +after):\n%s", diff)
	}
	second := newUsageSource(t, 4, 0)
	second.ids = first.ids
	for range 10 {
		second.send(second.usage())
	}
	second.put(first.records[3].Value) // a copy of an event of the first log
	appendUsage(ctx, t, log, second, 0, 11)

	fold := ledger.NewFold(nil)
	var want []string
	for _, s := range []*usageSource{first, second} {
		for _, r := range s.records {
			fold.Apply(&r)
			want = append(want, string(r.Value))
		}
	}
	if diff := cmp.Diff(fold.Balances(), usageTotals(ctx, t, log, nil, []int64{11})); diff != "" {
		t.Errorf("Totals of both logs (-want +got):\n%s", diff)
	}
	checkUsageScan(ctx, t, log, second, 0, 11)
	checkUsageScan(ctx, t, log, second, 4, 9)
	var got []string
	err = log.Scan(ctx, 0, -1, 11, func(_ int64, value []byte) error {
		got = append(got, string(value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Scan of both logs (-want +got):\n%s", diff)
	}
}

// testUsageDead: what cannot be decoded is kept, once, with its bytes.
func testUsageDead(t *testing.T, log UsageLog) {
	ctx := t.Context()
	s := newUsageSource(t, 5, 1)
	s.put([]byte("\x00\xff'\\ rubbish"))
	s.send(s.usage())
	s.put(nil)
	appendUsage(ctx, t, log, s, 0, 3)
	appendUsage(ctx, t, log, s, 0, 3)
	got, err := log.DeadLetters(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int64]string{0: "\x00\xff'\\ rubbish", 2: ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	page, err := log.List(ctx, UsageQuery{Limit: 10})
	if err != nil || page.Total != 1 {
		t.Errorf("List has %d rows, %v; want 1", page.Total, err)
	}
}
