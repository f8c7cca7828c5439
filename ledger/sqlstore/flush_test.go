package sqlstore

import (
	"errors"
	"strconv"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

func TestFlushWritesBalancesAndColumns(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(2, 0)
		user(t, s, u)
		token(t, s, 9, u)
		channel(t, s, 3)
		l, p := newLog(2), id(1)
		l.add(p, ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 1000})
		l.add(p, ledger.Event{Kind: ledger.KindTokenLimited, User: u, Token: 9, Granted: 500})
		l.add(p, usage(u, 9, 3, 30))
		l.add(p, usage(u, 9, 3, 12))
		r := l.flush(t, s)
		if r.Applied != 4 || len(r.Skipped) != 0 || len(r.Alarms) != 0 || r.Adopted != 0 {
			t.Errorf("result %+v", r)
		}
		diff(t, "balances", balancesOf(t, s), map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: u}:    {Granted: 1000, Charged: 42, Requests: 2},
			{Kind: ledger.TokenAccount, ID: 9}:   {Granted: 500, Charged: 42, Requests: 2},
			{Kind: ledger.ChannelAccount, ID: 3}: {Charged: 42, Requests: 2},
		})
		for q, want := range map[string]int64{
			"SELECT quota FROM users":                  958,
			"SELECT used_quota FROM users":             42,
			"SELECT request_count FROM users":          2,
			"SELECT remain_quota FROM tokens":          458,
			"SELECT used_quota FROM tokens":            42,
			"SELECT accessed_time FROM tokens":         1_700_000_003,
			"SELECT used_quota FROM channels":          42,
			"SELECT COUNT(*) FROM ledger_dead_letters": 0,
		} {
			if got := number(t, s, q); got != want {
				t.Errorf("%s: %d, want %d", q, got, want)
			}
		}
		state := value[PartitionState](t)(s.Partition(ctx, 2))
		diff(t, "position", state, PartitionState{Partition: 2, Offset: 4, LastTo: 4, LastOffset: 3, LastEvent: l.records[3].Event.ID})
		offset, got, err := s.Balances(ctx, 2, []ledger.Account{{Kind: ledger.UserAccount, ID: u}, {Kind: ledger.TokenAccount, ID: 9}, {Kind: ledger.TokenAccount, ID: 77}, {Kind: ledger.ChannelAccount, ID: 3}})
		must(t, err)
		if offset != 4 || len(got) != 4 || got[ledger.Account{Kind: ledger.TokenAccount, ID: 9}].Left() != 458 {
			t.Errorf("balances at %d: %v", offset, got)
		}
		if _, err := s.Flush(ctx, l.call(0, 4)); !errors.Is(err, ErrFenced) {
			t.Errorf("a second flush of the same range: %v", err)
		}
	})
}

func TestFlushSkipsDuplicatesAndRecordsHoles(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u := userIn(0, 0)
		user(t, s, u)
		l, p := newLog(0), id(1)
		at := func(seq, prev uint64) {
			e := usage(u, 0, 0, 1)
			e.Version, e.ID, e.Producer, e.Seq, e.Prev = 1, id(100+seq), p, seq, prev
			l.put(e)
		}
		at(1, 0)
		at(2, 1)
		at(2, 1) // produced twice
		at(9, 7) // 3 to 7 are missing
		r := l.flush(t, s)
		diff(t, "holes", r.Holes, []HoleFound{{Producer: p, Hole: ledger.Hole{After: 2, Through: 7}, Offset: 3}})
		diff(t, "skipped", r.Skipped, []int64{2})
		at(5, 2) // fills a part
		at(5, 2)
		at(7, 5)
		at(9, 7)
		r = l.flush(t, s)
		if r.Filled != 2 || r.Duplicates != 2 || r.Applied != 2 {
			t.Errorf("%+v", r)
		}
		diff(t, "skipped", r.Skipped, []int64{5, 7})
		if n := number(t, s, "SELECT charged FROM ledger_accounts"); n != 5 {
			t.Errorf("charged %d, want 5", n)
		}
	})
}

func TestFlushRefusesWhatIsOutOfPlace(t *testing.T) {
	s := initialised(t, openSQLite(t))
	l := newLog(0)
	for range 3 {
		l.add(id(1), usage(userIn(0, 0), 0, 0, 1))
	}
	for name, call := range map[string]FlushCall{
		"backwards":       {From: 3, To: 1},
		"record below":    {From: 1, To: 3, Records: l.records},
		"record above":    {From: 0, To: 2, Records: l.records},
		"other partition": {Partition: 1, From: 0, To: 3, Records: l.records},
		"twice":           {From: 0, To: 3, Records: append(l.records[:2:2], l.records[1])},
	} {
		if _, err := s.Flush(t.Context(), call); err == nil || errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// New API's columns may be int: what does not fit is held at the limit, the account is not; an edit to a column at its
// limit says nothing and is overwritten.
func TestSaturation(t *testing.T) {
	s := openMySQL(t, ledgertest.MySQL(t))
	must(t, s.Migrate(t.Context()))
	for _, c := range []string{"users MODIFY quota int", "users MODIFY used_quota int", "users MODIFY request_count int"} {
		exec(t, s, "ALTER TABLE "+c+" DEFAULT 0")
	}
	initialised(t, s)
	u := userIn(0, 0)
	user(t, s, u)
	channel(t, s, 1)
	account := ledger.Account{Kind: ledger.UserAccount, ID: u}
	logs := map[int]*logOf{0: newLog(0)}
	l := logs[0]
	const limit = 1<<31 - 1
	l.add(id(1), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 5 << 31})
	r := l.flush(t, s)
	diff(t, "saturated", r.Saturated, []ledger.Account{account})
	l.add(id(1), usage(u, 0, 1, 3<<31))
	l.flush(t, s)
	for _, column := range []string{"quota", "used_quota"} {
		if n := number(t, s, "SELECT "+column+" FROM users"); n != limit {
			t.Errorf("%s %d, want %d", column, n, limit)
		}
	}
	if n := number(t, s, "SELECT used_quota FROM channels"); n != 3<<31 {
		t.Errorf("channel used %d: its column is wide", n)
	}
	exec(t, s, "UPDATE users SET quota = 17")
	scan := value[ScanResult](t)(s.ScanAll(t.Context()))
	if scan.Adopted != 0 || len(scan.Alarms) != 1 {
		t.Errorf("%+v", scan)
	}
	if n := number(t, s, "SELECT quota FROM users"); n != limit {
		t.Errorf("quota %d, want it back at %d", n, limit)
	}
	// Back in range the column follows again, edits too, and a correction lowers the counter.
	l.add(id(1), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: -2 << 31})
	l.add(id(1), ledger.Event{Kind: ledger.KindUsageAdjusted, User: u, Charged: -100})
	if r := l.flush(t, s); len(r.Saturated) != 0 {
		t.Errorf("still saturated: %+v", r)
	}
	exec(t, s, "UPDATE users SET quota = quota + 5")
	value[ScanResult](t)(s.ScanAll(t.Context()))
	pump(t, s, logs)
	if n := number(t, s, "SELECT quota FROM users"); n != 105 {
		t.Errorf("quota %d, want 105", n)
	}
	if n := number(t, s, "SELECT used_quota FROM users"); n != limit-100 {
		t.Errorf("used_quota %d, want %d", n, limit-100)
	}
}

// A user or token that was deleted for good still has its account: the events were served.
func TestDeletedUserIsCharged(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u := userIn(0, 0)
		l := newLog(0)
		l.add(id(1), usage(u, 55, 66, 3))
		l.flush(t, s)
		diff(t, "balances", balancesOf(t, s), map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: u}:     {Charged: 3, Requests: 1},
			{Kind: ledger.TokenAccount, ID: 55}:   {Charged: 3, Requests: 1},
			{Kind: ledger.ChannelAccount, ID: 66}: {Charged: 3, Requests: 1},
		})
	})
}

// A credit whose transaction the database lost is applied all the same, and its code is used up again.
func TestLostTransactionIsRedone(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u, other := userIn(0, 0), userIn(0, 1)
		user(t, s, u)
		user(t, s, other)
		exec(t, s, "INSERT INTO redemptions (`key`, status, quota) VALUES ('A', 1, 20), ('b:B', 3, 20)")
		exec(t, s, "UPDATE redemptions SET used_user_id = ? WHERE `key` = 'b:B'", other)
		exec(t, s, "INSERT INTO top_ups (user_id, trade_no, status) VALUES (?, 'T-1', 'pending')", u)
		exec(t, s, "UPDATE users SET aff_quota = 30, username = 'carol' WHERE id = ?", u)
		l := newLog(0)
		keys := []string{businessKey(u, "redeem", "A"), businessKey(u, "redeem", "b:B"), businessKey(u, "topup", "T-1"), businessKey(u, "invite", "x"), businessKey(u, "invite", "y")}
		for _, key := range keys {
			l.add(id(1), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 20, Key: key})
		}
		gone := userIn(0, 2)
		for who, name := range map[int64]string{u: "carol", other: "dave", gone: "erin"} {
			l.add(id(1), ledger.Event{Kind: ledger.KindCreditGranted, User: who, Granted: 20, Key: businessKey(who, "signup", "z"), Request: &ledger.Request{Username: name}})
		}
		r := l.flush(t, s)
		if r.Applied != 8 || len(r.Restored) != 8 || len(r.Alarms) != 4 { // b:B; the second reward; dave and erin
			t.Errorf("%+v", r)
		}
		for q, want := range map[string]int64{
			"SELECT COUNT(*) FROM redemptions WHERE `key` = 'A' AND status = 3 AND redeemed_time > 0 AND used_user_id = " + strconv.FormatInt(u, 10): 1,
			"SELECT used_user_id FROM redemptions WHERE `key` = 'b:B'":                                                                               other,
			"SELECT COUNT(*) FROM top_ups WHERE status = 'success'":                                                                                  1,
			"SELECT COUNT(*) FROM ledger_outbox WHERE state = 'applied'":                                                                             8,
			"SELECT aff_quota FROM users WHERE id = " + strconv.FormatInt(u, 10):                                                                     10,
			"SELECT quota FROM users WHERE id = " + strconv.FormatInt(u, 10):                                                                         120,
		} {
			if got := number(t, s, q); got != want {
				t.Errorf("%s: %d, want %d", q, got, want)
			}
		}
	})
}
