package sqlstore

import (
	"errors"
	"fmt"
	"testing"

	"ledgerline/ledger"
)

// replayed folds a log from the beginning, or from a snapshot, and replays it.
func replayed(t *testing.T, s *Store, l *logOf, from *Snapshot) (ReplayResult, error) {
	t.Helper()
	fold := ledger.NewFold(value[func(int, int64) ledger.DeadState](t)(s.DeadIndex(t.Context())))
	at := int64(0)
	if from != nil {
		fold.Resume(l.partition, from.Balances, from.Marks, from.Keys)
		at = from.Offset
	}
	end := value[PartitionState](t)(s.Partition(t.Context(), l.partition)).Offset
	for ; at < end; at++ {
		fold.Apply(&l.records[at])
	}
	return s.ReplayPartition(t.Context(), ReplayCall{Partition: l.partition, Offset: end, Balances: fold.Balances()})
}

func TestReplayRestoresEmptiedAndEditedProjections(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		logs := map[int]*logOf{}
		exec(t, s, "INSERT INTO channels (id, `key`, used_quota) VALUES (1, 'k', 1000)")
		for p := range 2 {
			u := userIn(p, 0)
			exec(t, s, "INSERT INTO users (id, username, password, aff_code, quota, used_quota, request_count) VALUES (?, ?, 'x', ?, 500, 40, 4)", u, ledgerName(u), ledgerName(u))
			exec(t, s, "INSERT INTO tokens (id, user_id, `key`, remain_quota, used_quota) VALUES (?, ?, ?, 300, 30)", 100+p, u, ledgerName(u))
			logs[p] = newLog(p)
		}
		value[OpenResult](t)(s.OpenAccounts(ctx))
		pump(t, s, logs)
		for p, l := range logs {
			for range 5 {
				l.add(id(uint64(10+p)), usage(userIn(p, 0), int64(100+p), 1, 3))
			}
			l.flush(t, s)
		}
		exec(t, s, "UPDATE users SET quota = quota + 11 WHERE id = ?", userIn(0, 0))
		value[ScanResult](t)(s.ScanAll(ctx)) // an adoption that is not applied yet
		before := fmt.Sprint(dumpAll(t, s)["users"], dumpAll(t, s)["tokens"], dumpAll(t, s)["channels"])
		balances := balancesOf(t, s)
		check := func(what string, changed int) {
			t.Helper()
			got := 0
			for _, l := range logs {
				r, err := replayed(t, s, l, nil)
				must(t, err)
				got += r.Changed
			}
			if got != changed {
				t.Errorf("%s: %d balances changed, want %d", what, got, changed)
			}
			diff(t, what, balancesOf(t, s), balances)
			if after := fmt.Sprint(dumpAll(t, s)["users"], dumpAll(t, s)["tokens"], dumpAll(t, s)["channels"]); after != before {
				t.Errorf("%s: New API's tables\n%s\nwant\n%s", what, after, before)
			}
		}
		check("nothing wrong", 0)
		exec(t, s, "UPDATE ledger_accounts SET charged = charged + 1 WHERE kind = 'user' AND part = 0")
		check("one unit in ledger_accounts", 1)
		exec(t, s, "UPDATE users SET used_quota = 1, request_count = 0")
		check("New API's counters edited", 0)
		must(t, s.Tx(ctx, func(tx *Tx) error {
			for _, q := range []string{
				"DELETE FROM ledger_accounts WHERE slot <> -1", "UPDATE users SET quota = 0, used_quota = 0, request_count = 0",
				"UPDATE tokens SET remain_quota = 0, used_quota = 0", "UPDATE channels SET used_quota = 0",
			} {
				if _, err := tx.Exec(ctx, q); err != nil {
					return err
				}
			}
			return nil
		}))
		check("everything emptied", 6)
		pump(t, s, logs)
		if q := number(t, s, "SELECT quota FROM users WHERE id = ?", userIn(0, 0)); q != 500-15+11 {
			t.Errorf("quota %d after the adoption", q)
		}
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_accounts WHERE pending_adopt <> 0"); n != 0 {
			t.Errorf("%d accounts have something pending", n)
		}
	})
}

func TestReplayIsFenced(t *testing.T) {
	s := initialised(t, openSQLite(t))
	if _, err := s.ReplayPartition(t.Context(), ReplayCall{Partition: 0, Offset: 5}); !errors.Is(err, ErrFenced) {
		t.Errorf("%v", err)
	}
}

func TestSnapshotHoldsWhatAFoldNeeds(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(2, 0)
		user(t, s, u)
		l, p := newLog(2), id(1)
		l.add(p, ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 100, Key: businessKey(u, "admin", "x")})
		l.seq[p] = 5 // a hole: 2 to 5
		l.add(p, usage(u, 0, 3, 7))
		l.flush(t, s)
		info := value[SnapshotInfo](t)(s.TakeSnapshot(ctx, 2))
		value[SnapshotInfo](t)(s.TakeSnapshot(ctx, 0))
		if info.Offset != 2 || info.Accounts != 2 || info.Marks != 1 || info.Keys != 1 || info.LastEvent != l.records[1].Event.ID {
			t.Errorf("%+v", info)
		}
		snap := value[*Snapshot](t)(s.LoadSnapshot(ctx, info.ID))
		diff(t, "balances", snap.Balances, map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: u}: {Granted: 100, Charged: 7, Requests: 1}, {Kind: ledger.ChannelAccount, ID: 3}: {Charged: 7, Requests: 1},
		})
		diff(t, "marks", snap.Marks, map[ledger.ID]ledger.Watermark{p: {Mark: 6, Holes: []ledger.Hole{{After: 1, Through: 5}}}})
		diff(t, "keys", snap.Keys, []string{businessKey(u, "admin", "x")})

		// The log below the snapshot is gone; above it come a copy of a record, one that fills the hole, and a used key.
		again := l.records[1].Event
		l.put(again)
		fill := usage(u, 0, 3, 2)
		fill.Version, fill.ID, fill.Producer, fill.Seq, fill.Prev = 1, id(50), p, 4, 1
		l.put(fill)
		l.add(id(9), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 100, Key: businessKey(u, "admin", "x")})
		l.flush(t, s)
		r, err := replayed(t, s, l, snap)
		must(t, err)
		if r.Changed != 0 || r.Accounts != 2 {
			t.Errorf("a replay from the snapshot differs: %+v", r)
		}
		if n := number(t, s, "SELECT charged FROM ledger_accounts WHERE kind = 'user'"); n != 9 {
			t.Errorf("charged %d, want 9", n)
		}
		list := value[[]SnapshotInfo](t)(s.Snapshots(ctx))
		if len(list) != 2 || list[1].ID != info.ID {
			t.Errorf("snapshots %+v", list)
		}
		must(t, s.DeleteSnapshot(ctx, info.ID))
		if _, err := s.LoadSnapshot(ctx, info.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("a deleted snapshot: %v", err)
		}
	})
}

func TestVerifySeesOneInstant(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(0, 0)
		user(t, s, u)
		exec(t, s, "INSERT INTO users (id, username, password, aff_code, quota) VALUES (999999, 'stranger', 'x', 'z', 5)")
		l := newLog(0)
		l.add(id(1), usage(u, 0, 1, 7))
		l.flush(t, s)
		l.add(id(1), usage(u, 0, 1, 100))
		must(t, s.Verify(ctx, func(v *VerifySnapshot) error {
			l.flush(t, s) // traffic goes on
			if v.Partitions[0].Offset != 1 {
				t.Errorf("offset %d", v.Partitions[0].Offset)
			}
			var got []VerifyAccount
			if err := v.Accounts(ctx, func(a VerifyAccount) error { got = append(got, a); return nil }); err != nil {
				return err
			}
			b := ledger.Balance{Charged: 7, Requests: 1}
			diff(t, "accounts", got, []VerifyAccount{
				{Account: ledger.Account{Kind: ledger.UserAccount, ID: u}, Balance: b, Written: -7, Stored: true, Listed: true, Column: -7, Used: 7, Requests: 1},
				{Account: ledger.Account{Kind: ledger.UserAccount, ID: 999999}, Partition: -1, Listed: true, Column: 5},
				{Account: ledger.Account{Kind: ledger.ChannelAccount, ID: 1}, Balance: b, Stored: true},
			})
			return nil
		}))
	})
}
