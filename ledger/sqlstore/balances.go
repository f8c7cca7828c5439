package sqlstore

import (
	"context"
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// maxBalances bounds one call of Balances (L7): it answers for the few accounts of the requests that wait.
const maxBalances = rowsPerStatement

// Balances returns the partition's offset and the balances of accounts of it, all from one snapshot: one statement, so one
// look at the database. Every account asked for is in the map; one that the database does not know, or that belongs to
// another partition, has a zero balance.
func (s *Store) Balances(ctx context.Context, partition int, accounts []ledger.Account) (offset int64, balances map[ledger.Account]ledger.Balance, err error) {
	if len(accounts) > maxBalances {
		return 0, nil, fmt.Errorf("read balances: %d accounts, more than %d", len(accounts), maxBalances)
	}
	byKind := map[ledger.AccountKind][]int64{}
	balances = make(map[ledger.Account]ledger.Balance, len(accounts))
	for _, a := range accounts {
		byKind[a.Kind] = append(byKind[a.Kind], a.ID)
		balances[a] = ledger.Balance{}
	}
	q := new(statement).text("SELECT next_offset, '', 0, 0, 0, 0 FROM ledger_partitions WHERE part = ").int(int64(partition))
	for _, kind := range []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount, ledger.ChannelAccount} {
		list := byKind[kind]
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		slot := 0
		if kind == ledger.ChannelAccount {
			slot = partition
		}
		q.text(" UNION ALL SELECT -1, kind, id, granted, charged, requests FROM ledger_accounts WHERE kind = '" + string(kind) + "' AND slot = ").int(int64(slot)).
			text(" AND part = ").int(int64(partition)).text(" AND id IN (").ints(slices.Compact(list)).text(")")
	}
	found := false
	err = s.read(ctx, q.String(), nil, func(scan func(...any) error) error {
		var at int64
		var a ledger.Account
		var b ledger.Balance
		if err := scan(&at, &a.Kind, &a.ID, &b.Granted, &b.Charged, &b.Requests); err != nil {
			return err
		}
		if a.Kind == "" {
			offset, found = at, true
		} else {
			balances[a] = b
		}
		return nil
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read balances of partition %d: %w", partition, err)
	}
	return offset, balances, nil
}
