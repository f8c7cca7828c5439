package sqlstore

import (
	"errors"
	"testing"

	"ledgerline/ledger"
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
