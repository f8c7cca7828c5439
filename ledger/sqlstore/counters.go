package sqlstore

import (
	"context"
	"fmt"

	"ledgerline/ledger"
)

// AdoptCounters takes over what New API counted while it ran in our place: used_quota and request_count of users, used_quota of keys
// and channels. Balances are adopted by event (ScanAll); these counters are no balances, so what they hold beyond our events
// becomes part of what they held before us. It returns how many rows were adopted.
//
// Call it at the start of a master if New API may have been at work: the database is New API's (WayBack) and every node had
// stopped in order. At any other time a difference is a mistake that verify must name, and it is left alone.
func (s *Store) AdoptCounters(ctx context.Context) (adopted int, err error) {
	open, err := s.WayBack(ctx)
	if err != nil || !open {
		return 0, err
	}
	var live int
	if err := s.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM ledger_producers WHERE state = ?", ProducerLive).Scan(&live); err != nil {
		return 0, fmt.Errorf("adopt counters: look for nodes: %w", err)
	}
	if live > 0 {
		return 0, nil
	}
	for _, kind := range []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount, ledger.ChannelAccount} {
		list, err := s.readIDs(ctx, differingCounters[kind])
		if err == nil {
			err = chunks(list, func(list []int64) error {
				n := 0
				err := s.Tx(ctx, func(tx *Tx) (err error) {
					if kind == ledger.ChannelAccount {
						n, err = tx.adoptChannelCounters(ctx, list)
					} else {
						n, err = tx.adoptCounters(ctx, kind, list)
					}
					return err
				})
				adopted += n
				return err
			})
		}
		if err != nil {
			return adopted, fmt.Errorf("adopt counters of %ss: %w", kind, err)
		}
	}
	return adopted, nil
}

// differingCounters find the rows whose counters are not what the accounts say.
var differingCounters = map[ledger.AccountKind]string{
	ledger.UserAccount: "SELECT t.id FROM users t JOIN ledger_accounts a ON a.kind = 'user' AND a.id = t.id AND a.slot = 0" +
		" WHERE COALESCE(t.used_quota, 0) <> a.charged + a.base_used OR COALESCE(t.request_count, 0) <> a.requests + a.base_requests ORDER BY t.id",
	ledger.TokenAccount: "SELECT t.id FROM tokens t JOIN ledger_accounts a ON a.kind = 'token' AND a.id = t.id AND a.slot = 0" +
		" WHERE COALESCE(t.used_quota, 0) <> a.charged + a.base_used ORDER BY t.id",
	ledger.ChannelAccount: "SELECT t.id FROM channels t JOIN (SELECT id, SUM(charged) AS used FROM ledger_accounts WHERE kind = 'channel' GROUP BY id) a ON a.id = t.id" +
		" WHERE COALESCE(t.used_quota, 0) <> a.used ORDER BY t.id",
}

// beyond returns what a counter holds beyond what is known of it. A counter at the end of its column says nothing.
func (r columnRange) beyond(counter int64, known ...int64) int64 {
	var sum int64
	for _, n := range known {
		sum = clampedAdd(sum, n)
	}
	if !r.holds(sum) {
		return 0
	}
	more, ok := sub(counter, sum)
	if !ok {
		return 0
	}
	return more
}

func (tx *Tx) adoptCounters(ctx context.Context, kind ledger.AccountKind, list []int64) (n int, err error) {
	want := ids{users: list}
	table := "users"
	if kind == ledger.TokenAccount {
		want, table = ids{tokens: list}, "tokens"
	}
	sh, err := tx.lockAccounts(ctx, -1, want)
	if err != nil {
		return 0, err
	}
	for _, a := range sh.accounts {
		used := tx.s.column(table+".used_quota").beyond(a.used, a.balance.Charged, a.baseUsed)
		requests := int64(0)
		if kind == ledger.UserAccount {
			requests = tx.s.column("users.request_count").beyond(a.counted, a.balance.Requests, a.baseRequests)
		}
		if !a.stored || !a.listed || used == 0 && requests == 0 {
			continue
		}
		_, err := tx.Exec(ctx, "UPDATE ledger_accounts SET base_used = base_used + ?, base_requests = base_requests + ? WHERE kind = ? AND id = ? AND slot = 0",
			used, requests, string(kind), a.ID)
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

func (tx *Tx) adoptChannelCounters(ctx context.Context, list []int64) (n int, err error) {
	if err := tx.s.loadColumns(ctx, tx); err != nil {
		return 0, err
	}
	used, err := tx.lockChannels(ctx, list)
	if err != nil {
		return 0, err
	}
	sums, err := tx.channelSums(ctx, list)
	if err != nil {
		return 0, err
	}
	for _, id := range list {
		more := tx.s.column("channels.used_quota").beyond(used[id], sums[id])
		if more == 0 {
			continue
		}
		if _, err := tx.Exec(ctx, "UPDATE ledger_accounts SET charged = charged + ? WHERE kind = 'channel' AND id = ? AND slot = -1", more, id); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}
