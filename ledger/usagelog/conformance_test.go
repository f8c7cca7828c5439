package usagelog_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/usagelog"
)

// suite adapts a store to the conformance suite.
type suite struct{ usagelog.Store }

func (s suite) Append(ctx context.Context, partition int, to int64, records []ledger.Record) error {
	at, err := s.Store.Position(ctx, partition)
	if err != nil {
		return err
	}
	return s.Store.Append(ctx, batchOf(partition, at, to, records))
}

// batchOf makes the batch that the consumer makes.
func batchOf(partition int, at usagelog.Position, to int64, records []ledger.Record) usagelog.Batch {
	b := usagelog.Batch{Partition: partition, Position: at, Rows: make([]usagelog.Row, 0, len(records))}
	b.Position.Offset = to
	for i := range records {
		r := &records[i]
		if r.Err != nil {
			b.Dead = append(b.Dead, usagelog.DeadLetter{
				Place:  usagelog.Place{Partition: partition, Offset: r.Offset},
				Reason: r.Err.Error(), Value: r.Value, At: time.Unix(1_764_374_400, 0),
			})
			continue
		}
		b.Rows = append(b.Rows, usagelog.RowOf(r))
		b.Position.LastEvent, b.Position.LastOffset = r.Event.ID, r.Offset
	}
	return b
}

func (s suite) Position(ctx context.Context, partition int) (int64, int64, ledger.ID, error) {
	p, err := s.Store.Position(ctx, partition)
	return p.Offset, p.LastOffset, p.LastEvent, err
}

func filterOf(q ledgertest.UsageQuery) usagelog.Filter {
	return usagelog.Filter{
		Type: q.Type, Start: q.Start, End: q.End, User: q.User, Token: q.Token, Channel: q.Channel, Username: q.Username,
		ModelName: q.ModelName, TokenName: q.TokenName, Group: q.Group, RequestID: q.RequestID, UpstreamRequestID: q.UpstreamRequestID,
	}
}

func rowsOf(entries []usagelog.Entry) []ledgertest.UsageRow {
	var all []ledgertest.UsageRow
	for _, e := range entries {
		all = append(all, ledgertest.UsageRow{
			CreatedAt: e.CreatedAt, Type: e.Type, Quota: e.Quota, User: e.UserID, Model: e.ModelName, RequestID: e.RequestID,
		})
	}
	return all
}

func (s suite) List(ctx context.Context, q ledgertest.UsageQuery) (ledgertest.UsagePage, error) {
	l, err := s.Store.List(ctx, filterOf(q), usagelog.Page{Skip: q.Skip, Limit: q.Limit})
	return ledgertest.UsagePage{Rows: rowsOf(l.Entries), Total: l.Total, More: l.More}, err
}

func (s suite) Stat(ctx context.Context, q ledgertest.UsageQuery, now time.Time) (quota, rpm, tpm int64, err error) {
	st, err := s.Store.Stat(ctx, filterOf(q), now)
	return st.Quota, st.RPM, st.TPM, err
}

func (s suite) Shares(ctx context.Context, q ledgertest.UsageQuery, byUser bool) (map[string][3]int64, error) {
	by := usagelog.ByModel
	if byUser {
		by = usagelog.ByUser
	}
	all, err := s.Store.Shares(ctx, filterOf(q), by)
	found := map[string][3]int64{}
	for _, one := range all {
		found[fmt.Sprint(one.Hour, " ", one.Model+one.Username)] = [3]int64{one.Tokens, one.Count, one.Quota}
	}
	return found, err
}

func (s suite) TokenLatest(ctx context.Context, token int64) ([]ledgertest.UsageRow, error) {
	all, err := s.Store.TokenLatest(ctx, token)
	return rowsOf(all), err
}

func (s suite) Lookup(ctx context.Context, requestID string) (offsets []int64, events []string, err error) {
	found, err := s.Store.Lookup(ctx, requestID)
	for _, f := range found {
		offsets, events = append(offsets, f.Offset), append(events, string(f.Event))
	}
	return offsets, events, err
}

func (s suite) DeadLetters(ctx context.Context, partition int) (map[int64]string, error) {
	all, err := s.Store.DeadLetters(ctx, partition, -1, 100)
	values := map[int64]string{}
	for _, d := range all {
		values[d.Offset] = string(d.Value)
	}
	return values, err
}

// open opens and migrates a store that is closed when the test ends.
func open(t testing.TB, cfg usagelog.Config) usagelog.Store {
	t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := usagelog.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // it may be repeated
		if err := s.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CheckSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// configs returns the three databases.
var configs = map[string]func(t testing.TB) usagelog.Config{
	"sqlite": func(t testing.TB) usagelog.Config {
		return usagelog.Config{SQLitePath: filepath.Join(t.TempDir(), "one-api.db?_busy_timeout=30000")}
	},
	"mysql":      func(t testing.TB) usagelog.Config { return usagelog.Config{DSN: ledgertest.MySQL(t), MaxOpen: 10} },
	"clickhouse": func(t testing.TB) usagelog.Config { return usagelog.Config{DSN: ledgertest.ClickHouse(t)} },
}

func TestConformance(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			ledgertest.TestUsageLog(t, func(t *testing.T) ledgertest.UsageLog { return suite{open(t, config(t))} })
		})
	}
}
