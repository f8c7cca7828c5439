package usagelog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/usagelog"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

func TestCheckDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"": "", "local": "", "root:secret@tcp(db:3306)/logs": "", "root:secret@tcp(db:3306)/logs?x=a%3A%2F%2Fb": "",
		"clickhouse://u:secret@h:9000/db": "", "tcp://h:9000/db": "", "http://h:8123/db": "", "https://h:8443/db?compress=zstd": "",
		"postgres://u:secret@h/db": "postgres", "root:secret@tcp(db:3306)/": "no database", "http://h:8123/db?dial_timeout=x": "dial timeout",
	} {
		err := usagelog.CheckDSN(dsn)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "LOG_SQL_DSN")) {
			t.Errorf("CheckDSN(%q) = %v, want %q", dsn, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("CheckDSN(%q) repeats the password: %v", dsn, err)
		}
	}
}

// TestMergesKeepTheLowestPlace: what FINAL promises must also be what a merge leaves.
func TestMergesKeepTheLowestPlace(t *testing.T) {
	ctx, cfg := t.Context(), configs["clickhouse"](t)
	s := open(t, cfg)
	db := rawOf(t, cfg)
	log := suite{s}
	first := requestAt(t, 3, 20*day, nil)
	for _, offset := range []int64{9, 3, 7} {
		r := first
		r.Offset = offset
		if err := log.Append(ctx, 0, offset+1, []ledger.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"ledger_usage", "ledger_events", "ledger_usage_positions"} {
		db.exec("OPTIMIZE TABLE " + table + " FINAL")
	}
	for query, want := range map[string]int64{
		"SELECT toInt64(count()) FROM ledger_usage":                     1,
		"SELECT max(log_offset) FROM ledger_usage":                      3,
		"SELECT toInt64(count()) FROM ledger_events":                    3,
		"SELECT toInt64(count()) FROM ledger_usage_positions":           1,
		"SELECT max(next_offset) FROM ledger_usage_positions":           10,
		"SELECT toInt64(max(version) - min(version)) FROM ledger_usage": 0,
	} {
		if got := db.count(query); got != want {
			t.Errorf("%s = %d, want %d", query, got, want)
		}
	}
}

// TestNewConnectionsInsert: whichever call a connection is made for, it works.
func TestNewConnectionsInsert(t *testing.T) {
	s := open(t, configs["clickhouse"](t))
	var all sync.WaitGroup
	for p := range 8 {
		all.Go(func() {
			r := requestAt(t, int64(p), 20*day, func(e *ledger.Event) { e.User = int64(p + 1) })
			r.Partition = p
			if err := s.Append(t.Context(), batchOf(p, usagelog.Position{}, int64(p)+1, []ledger.Record{r})); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if list, err := s.List(t.Context(), usagelog.Filter{}, usagelog.Page{Limit: 10}); err != nil || list.Total != 8 {
		t.Errorf("List = %+v, %v; want 8 rows", list, err)
	}
}

func TestTTL(t *testing.T) {
	ctx, cfg := t.Context(), configs["clickhouse"](t)
	now := time.Unix(20_000*day, 0)
	cfg.Now = func() time.Time { return now }
	s := open(t, cfg)
	db := rawOf(t, cfg)
	ttls := func(days int) int64 {
		return db.count(fmt.Sprintf("SELECT toInt64(count()) FROM system.tables WHERE database = currentDatabase() AND engine_full LIKE '%% TTL %%toIntervalDay(%d)%%'", days))
	}
	for _, step := range []struct {
		days    int
		needed  time.Time
		refused bool
		want    int // days; 0: no TTL
	}{
		{0, time.Time{}, false, 0},
		{30, now.AddDate(0, 0, -30), false, 30},
		{30, now.AddDate(0, 0, -29), false, 30},
		{7, now, false, 7},
		{7, now.AddDate(0, 0, -8), true, 0},
		{90, time.Time{}, true, 0},
		{90, now, false, 90},
		{0, time.Time{}, false, 0},
	} {
		err := s.SetTTL(ctx, step.days, step.needed)
		if _, refused := err.(*usagelog.RetentionError); refused != step.refused || err != nil && !refused { //nolint:errorlint // exactly this error is wanted
			t.Errorf("%+v: %v", step, err)
		}
		for days, tables := range map[int]int64{7: 0, 30: 0, 90: 0} {
			if days == step.want {
				tables = 2
			}
			if got := ttls(days); got != tables {
				t.Errorf("%+v: %d tables with a TTL of %d days, want %d", step, got, days, tables)
			}
		}
	}
}

// TestClickHouseDies kills the server again and again while two consumers append the same log: in the end every event is
// there once (L2).
func TestClickHouseDies(t *testing.T) {
	if testing.Short() {
		t.Skip("kills servers")
	}
	server := ledgertest.StartClickHouse(t)
	cfg := usagelog.Config{DSN: server.ClickHouseDSN("default")}
	s := open(t, cfg)
	const length, batch = 4000, 100
	fold := ledger.NewFold(nil)
	var records []ledger.Record
	for i := range int64(length) {
		r := requestAt(t, i, 20*day+i, func(e *ledger.Event) { e.User, e.Charged = 1+i%7, i })
		fold.Apply(&r)
		records = append(records, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	refused := 0
	var mu sync.Mutex
	consume := func() {
		for ctx.Err() == nil {
			at, err := s.Position(ctx, 0)
			if err == nil {
				if at.Offset == length {
					return
				}
				to := min(at.Offset+batch, length)
				err = s.Append(ctx, batchOf(0, at, to, records[at.Offset:to]))
			}
			if err != nil {
				mu.Lock()
				refused++
				mu.Unlock()
			}
		}
	}
	var consumers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		consumers.Go(consume)
	}
	go func() { consumers.Wait(); close(done) }()
	rng := rand.New(rand.NewPCG(1, 1))
	kills := 0
	for alive := true; alive; {
		select {
		case <-done:
			alive = false
		case <-time.After(time.Duration(50+rng.IntN(400)) * time.Millisecond):
			if kills < 5 {
				server.Kill()
				kills++
				server.Start()
			}
		}
	}
	if ctx.Err() != nil {
		t.Fatal("the consumers did not come to the end")
	}
	t.Logf("%d kills, %d refusals", kills, refused)
	if kills == 0 || refused == 0 {
		t.Errorf("%d kills, %d refusals: nothing was tested", kills, refused)
	}
	got := map[ledger.Account]ledger.Balance{}
	err := s.Totals(ctx, nil, []int64{length}, func(a ledger.Account, b ledger.Balance) error {
		got[a] = b
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fold.Balances(), got); diff != "" {
		t.Errorf("Totals (-want +got):\n%s", diff)
	}
}
