package usagelog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// TestBillsOfLogs: on every engine the bills of a span are read once each, in order, in bounded batches, from any place where
// reading can go on, and nothing that was written after the beginning.
func TestBillsOfLogs(t *testing.T) {
	const (
		base  = 1_764_288_000
		count = 9000 // more than two batches
	)
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ctx, cfg := t.Context(), config(t)
			db := rawOf(t, cfg)
			db.exec(newAPITables[name])
			for from := 0; from < count; from += 1000 {
				var values []string
				for i := from; i < from+1000; i++ {
					kind := 2
					if i%10 == 9 {
						kind = 5
					}
					// The rows of the first seconds are many: a batch ends within one.
					second := base + max(0, i-5000)/3
					values = append(values, fmt.Sprintf("(%d, %d, %d, 'gpt-4o', %d, 3, 4, 'vip', '{\"n\":%d}')", i%7, second, kind, i, i))
				}
				db.exec("INSERT INTO logs (user_id, created_at, type, model_name, quota, prompt_tokens, completion_tokens, `group`, other) VALUES " + strings.Join(values, ", "))
			}
			logs, err := usagelog.OpenLogs(ctx, usagelog.Config{DSN: cfg.DSN, SQLitePath: cfg.SQLitePath})
			if err != nil {
				t.Fatal(err)
			}
			defer logs.Close()

			spans := []usagelog.BillSpan{{}, {Since: base + 100}, {Until: base + 500}, {Since: base + 100, Until: base + 101}}
			found := map[usagelog.BillSpan]usagelog.BillsAt{}
			for _, span := range spans {
				at, ok, err := logs.FindBills(ctx, span)
				if err != nil || !ok {
					t.Fatalf("%+v: find bills: %v, %v", span, ok, err)
				}
				found[span] = at
			}
			db.exec(fmt.Sprintf("INSERT INTO logs (user_id, created_at, type, quota, `group`, other) VALUES (1, %d, 2, -1, '', '')", base+400_000))
			for _, span := range spans {
				at := found[span]
				want := map[int64]bool{}
				for i := range int64(count) {
					second := base + max(0, i-5000)/3
					if i%10 != 9 && second >= span.Since && (span.Until == 0 || second < span.Until) {
						want[i] = true
					}
				}
				got, places := readBills(t, logs, span, at)
				checkBillSet(t, fmt.Sprintf("%+v", span), got, want)
				if rows := len(want); rows > 8000 && len(places) < 3 {
					t.Errorf("%+v: %d rows came in %d batches", span, rows, len(places))
				}
				// From every place on exactly the rest comes.
				for _, p := range places {
					if p.next == 0 || p.next > at.Last {
						continue
					}
					rest, _ := readBills(t, logs, span, usagelog.BillsAt{First: p.next, Last: at.Last})
					checkBillSet(t, fmt.Sprintf("%+v from %d", span, p.next), append(got[:p.read:p.read], rest...), want)
				}
			}
			if _, ok, err := logs.FindBills(ctx, usagelog.BillSpan{Since: base + 500_000}); ok || err != nil {
				t.Errorf("bills found after the last: %v, %v", ok, err)
			}
		})
	}
}

// A row whose JSON was blown up does not fill the memory: it comes without the rest of it.
func TestBillsOfLogsAreBounded(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ctx, cfg := t.Context(), config(t)
			db := rawOf(t, cfg)
			db.exec(newAPITables[name])
			db.exec("INSERT INTO logs (user_id, created_at, type, quota, `group`, other) VALUES (1, 1764288000, 2, 5, '', '{\"n\":\"" + strings.Repeat("x", 100_000) + "\"}')")
			logs, err := usagelog.OpenLogs(ctx, usagelog.Config{DSN: cfg.DSN, SQLitePath: cfg.SQLitePath})
			if err != nil {
				t.Fatal(err)
			}
			defer logs.Close()
			at, _, err := logs.FindBills(ctx, usagelog.BillSpan{})
			if err != nil {
				t.Fatal(err)
			}
			bills, _ := readBills(t, logs, usagelog.BillSpan{}, at)
			if len(bills) != 1 || bills[0].Quota != 5 || len(bills[0].Other) != 16_384 {
				t.Errorf("%d bills, the first with %d bytes", len(bills), len(bills[0].Other))
			}
		})
	}
}

// readPlace is where a batch ended.
type readPlace struct {
	read int
	next int64
}

func readBills(t *testing.T, logs *usagelog.Logs, span usagelog.BillSpan, at usagelog.BillsAt) (bills []ledger.LoggedBill, places []readPlace) {
	t.Helper()
	err := logs.Bills(t.Context(), span, at, func(batch []ledger.LoggedBill, next int64) error {
		bills = append(bills, batch...)
		places = append(places, readPlace{len(bills), next})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bills, places
}

// checkBillSet compares bills, whose quota is their number, with what must be there once each.
func checkBillSet(t *testing.T, what string, bills []ledger.LoggedBill, want map[int64]bool) {
	t.Helper()
	got := map[int64]bool{}
	last := int64(0)
	for _, b := range bills {
		if got[b.Quota] {
			t.Fatalf("%s: bill %d came twice", what, b.Quota)
		}
		got[b.Quota] = true
		if b.CreatedAt < last {
			t.Fatalf("%s: bill %d of second %d came after one of %d", what, b.Quota, b.CreatedAt, last)
		}
		last = b.CreatedAt
		full := ledger.LoggedBill{
			ID: b.ID, CreatedAt: b.CreatedAt, UserID: b.Quota % 7, Group: "vip", Model: "gpt-4o", Prompt: 3, Completion: 4, Quota: b.Quota,
			Other: fmt.Appendf(nil, `{"n":%d}`, b.Quota),
		}
		if diff := cmp.Diff(full, b); diff != "" {
			t.Fatalf("%s: %s", what, diff)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s: %d bills, want %d", what, len(got), len(want))
	}
}
