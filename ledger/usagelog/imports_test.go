package usagelog_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/usagelog"
)

// oldRows is more than two batches of a copy.
const oldRows = 12_000

// oldLogs makes New API's table with oldRows rows of type consume and quota 7, 20 to a second, and a few odd ones.
func oldLogs(t *testing.T, name string) usagelog.Config {
	t.Helper()
	cfg := configs[name](t)
	db := rawOf(t, cfg)
	db.exec(newAPITables[name])
	columns := "INSERT INTO logs (id, user_id, created_at, type, content, username, model_name, quota, prompt_tokens, is_stream, token_id, channel_id, `group`, other) VALUES "
	var values []string
	for i := range oldRows {
		id := i + 1
		if name == "clickhouse" {
			id = 0 // it numbers no rows, so that those of a second differ in their content alone
		}
		values = append(values, fmt.Sprintf("(%d, %d, %d, 2, 'row %d', 'ann', 'gpt-4o', 7, 3, 1, 5, 6, 'default', '{\"group_ratio\":1}')", id, 1+i%3, 20*day+i/20, i))
		if len(values) == 1000 || i == oldRows-1 {
			db.exec(columns + strings.Join(values, ", "))
			values = values[:0]
		}
	}
	return cfg
}

// copyAll copies what is new, and stops after so many batches (0: never) as a kill would: before the batch is stored, or after.
func copyAll(ctx context.Context, t *testing.T, from usagelog.Config, into usagelog.Store, stop int, stored bool) {
	t.Helper()
	logs, err := usagelog.OpenLogs(ctx, from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logs.Close() }()
	place, err := logs.Place(ctx)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := into.Imported(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	killed, batches := errors.New("killed"), 0
	err = logs.Copy(ctx, next, func(rows []usagelog.Row, next int64) error {
		if batches++; batches == stop && !stored {
			return killed
		}
		if err := into.Import(ctx, place, rows, next); err != nil {
			return err
		}
		if batches == stop {
			return killed
		}
		return nil
	})
	if stop > 0 && !errors.Is(err, killed) || stop == 0 && err != nil {
		t.Fatalf("copy: %v", err)
	}
}

// TestLogsAreCopiedOnce: from every database into every other, killed between any two batches and run again, each row is there once,
// beside the rows of events, and moves no account.
func TestLogsAreCopiedOnce(t *testing.T) {
	for source := range configs {
		for target, config := range configs {
			t.Run(source+" to "+target, func(t *testing.T) {
				ctx, from, cfg := t.Context(), oldLogs(t, source), config(t)
				s := open(t, cfg)
				if err := (suite{s}).Append(ctx, 0, 1, []ledger.Record{requestAt(t, 0, 21*day, nil)}); err != nil {
					t.Fatal(err)
				}
				for stop := range 3 {
					copyAll(ctx, t, from, s, stop+1, false)
					copyAll(ctx, t, from, s, 1, true)
				}
				for range 2 {
					copyAll(ctx, t, from, s, 0, true)
					if _, n, err := s.Imported(ctx, ""); err != nil || n != oldRows {
						t.Fatalf("%d rows copied, %v; want %d", n, err, oldRows)
					}
				}
				st, err := s.Stat(ctx, usagelog.Filter{Username: "ann"}, time.Unix(22*day, 0))
				if diff := cmp.Diff(usagelog.Stat{Quota: 7*oldRows + 10}, st); diff != "" || err != nil {
					t.Errorf("Stat %v (-want +got):\n%s", err, diff)
				}
				list, err := s.List(ctx, usagelog.Filter{End: 20 * day}, usagelog.Page{Limit: 100})
				if err != nil || list.Total != 20 || len(list.Entries) != 20 {
					t.Fatalf("the first second has %d rows, %d shown, %v; want 20", list.Total, len(list.Entries), err)
				}
				for _, e := range list.Entries {
					e.ID, e.UserID, e.Content = 0, 0, ""
					want := usagelog.Entry{
						CreatedAt: 20 * day, Type: usagelog.TypeConsume, Username: "ann", ModelName: "gpt-4o", Quota: 7, PromptTokens: 3, IsStream: true,
						TokenID: 5, ChannelID: 6, Group: "default", Other: `{"group_ratio":1}`,
					}
					if diff := cmp.Diff(want, e); diff != "" {
						t.Fatalf("row (-want +got):\n%s", diff)
					}
				}
				wantOneEvent(ctx, t, s)
			})
		}
	}
}

// wantOneEvent checks that verify and replay see the one event and none of what was copied.
func wantOneEvent(ctx context.Context, t *testing.T, s usagelog.Store) {
	t.Helper()
	got := map[ledger.Account]ledger.Balance{}
	err := s.Totals(ctx, nil, []int64{1}, func(a ledger.Account, b ledger.Balance) error { got[a] = b; return nil })
	one := ledger.Balance{Charged: 10, Requests: 1}
	want := map[ledger.Account]ledger.Balance{
		{Kind: ledger.UserAccount, ID: 1}: one, {Kind: ledger.TokenAccount, ID: 5}: one, {Kind: ledger.ChannelAccount, ID: 6}: one,
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Totals %v (-want +got):\n%s", err, diff)
	}
	if err := s.Shown(ctx, []int64{1}, func(a ledger.Account, more int64) error { return fmt.Errorf("%s shows %d more", a, more) }); err != nil {
		t.Error(err)
	}
	events := 0
	if err := s.Scan(ctx, 0, -1, 1, func(int64, []byte) error { events++; return nil }); err != nil || events != 1 {
		t.Errorf("%d events, %v; want 1", events, err)
	}
}

// TestOddLogsAreCopied: NULLs, types that SQLite lets through, equal rows without an id, texts of any size and times of any century.
func TestOddLogsAreCopied(t *testing.T) {
	for source := range configs {
		t.Run(source, func(t *testing.T) {
			ctx, from, s := t.Context(), configs[source](t), open(t, configs["mysql"](t))
			db := rawOf(t, from)
			db.exec(newAPITables[source])
			rows, quota := int64(5), int64(14)
			db.exec("INSERT INTO logs (user_id, created_at, type, content, quota, model_name) VALUES (1, -5, 2, '" + strings.Repeat("x", 3<<20) + "', 7, '" + strings.Repeat("m", 190) + "')")
			db.exec("INSERT INTO logs (user_id, created_at, type, quota) VALUES (1, 99999999999, 9, 0)")
			switch source {
			case "clickhouse":
				for range 3 {
					db.exec("INSERT INTO logs (user_id, created_at, type, quota, content) VALUES (1, 5, 3, 0, 'thrice')")
				}
				quota = 7
			case "sqlite":
				db.exec("INSERT INTO logs (user_id, created_at, type, quota, is_stream, content) VALUES ('no number', 'never', 2, '7 units', 'yes', x'ff00')")
				db.exec("INSERT INTO logs (id) VALUES (-9), (-8)")
			default:
				db.exec("INSERT INTO logs (user_id, type, quota) VALUES (NULL, 2, 7)")
				db.exec("INSERT INTO logs (id) VALUES (-9), (-8)")
			}
			for range 2 {
				copyAll(ctx, t, from, s, 0, true)
			}
			if _, n, err := s.Imported(ctx, ""); err != nil || n != rows {
				t.Errorf("%d rows copied, %v; want %d", n, err, rows)
			}
			if st, err := s.Stat(ctx, usagelog.Filter{}, time.Unix(1<<33, 0)); err != nil || st.Quota != quota {
				t.Errorf("quota %d, %v; want %d", st.Quota, err, quota)
			}
		})
	}
}
