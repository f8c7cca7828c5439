package sqlstore

import (
	"context"
	"fmt"

	"ledgerline/ledger"
)

// VerifySnapshot is one look at the database, for verify (DESIGN 10). It is valid inside the function it is given to.
type VerifySnapshot struct {
	Partitions  []PartitionState
	Epochs      []ledger.EpochRecord
	Producers   []Producer
	Dead        func(partition int, offset int64) ledger.DeadState
	DeadLetters int // waiting for a re-drive
	tx          *Tx
}

// VerifyAccount is one account with New API's row beside it.
type VerifyAccount struct {
	ledger.Account
	Partition        int // −1: what a channel had used before Ledgerline
	Balance          ledger.Balance
	Written, Pending int64
	Stored           bool // there is an account; if not, only New API's row
	Listed           bool // there is New API's row
	// Column is quota or remain_quota: Left + Pending, unless somebody edited it or it cannot hold that much. Used and Requests
	// are New API's counters: the balance's Charged and Requests plus BaseUsed and BaseRequests. A channel's Used is the sum
	// of Charged over its accounts of all partitions.
	Column, Used, Requests int64
	BaseUsed, BaseRequests int64
}

// Verify calls fn with one snapshot of the database.
func (s *Store) Verify(ctx context.Context, fn func(*VerifySnapshot) error) error {
	return s.View(ctx, func(tx *Tx) error {
		v := &VerifySnapshot{tx: tx}
		var err error
		if v.Partitions, err = tx.partitions(ctx, ""); err != nil {
			return fmt.Errorf("read partitions: %w", err)
		}
		if v.Epochs, err = tx.epochs(ctx, -1); err != nil {
			return fmt.Errorf("read epochs: %w", err)
		}
		if v.Producers, err = tx.producers(ctx, ""); err != nil {
			return fmt.Errorf("read producers: %w", err)
		}
		if v.Dead, v.DeadLetters, err = tx.deadIndex(ctx); err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		return fn(v)
	})
}

// newAPIRows are New API's columns beside an account, by kind: balance, used, requests.
var newAPIRows = []struct {
	kind    ledger.AccountKind
	table   string
	columns string
}{
	{ledger.UserAccount, "users", "COALESCE(t.quota, 0), COALESCE(t.used_quota, 0), COALESCE(t.request_count, 0)"},
	{ledger.TokenAccount, "tokens", "COALESCE(t.remain_quota, 0), COALESCE(t.used_quota, 0), 0"},
	{ledger.ChannelAccount, "channels", "0, COALESCE(t.used_quota, 0), 0"},
}

// Accounts calls fn for every account, and for every user, token and channel of New API's without one: by kind (user,
// token, channel), id and partition, those without an account last. Nothing is held in memory.
func (v *VerifySnapshot) Accounts(ctx context.Context, fn func(VerifyAccount) error) error {
	for _, n := range newAPIRows {
		kind := string(n.kind)
		queries := []string{
			"SELECT a.id, a.slot, a.part, a.granted, a.charged, a.requests, a.written, a.pending_adopt, a.base_used, a.base_requests, 1, t.id IS NOT NULL, " + n.columns +
				" FROM ledger_accounts a LEFT JOIN " + n.table + " t ON t.id = a.id WHERE a.kind = '" + kind + "' ORDER BY a.id, a.slot",
			"SELECT t.id, 0, -1, 0, 0, 0, 0, 0, 0, 0, 0, 1, " + n.columns + " FROM " + n.table + " t WHERE NOT EXISTS (SELECT 1 FROM ledger_accounts a WHERE a.kind = '" + kind +
				"' AND a.id = t.id) ORDER BY t.id",
		}
		for _, q := range queries {
			err := v.tx.each(ctx, q, nil, func(scan func(...any) error) error {
				a := VerifyAccount{Account: ledger.Account{Kind: n.kind}}
				var slot int
				err := scan(&a.ID, &slot, &a.Partition, &a.Balance.Granted, &a.Balance.Charged, &a.Balance.Requests, &a.Written, &a.Pending,
					&a.BaseUsed, &a.BaseRequests, &a.Stored, &a.Listed, &a.Column, &a.Used, &a.Requests)
				if err != nil {
					return err
				}
				return fn(a)
			})
			if err != nil {
				return fmt.Errorf("read %s accounts: %w", kind, err)
			}
		}
	}
	return nil
}
