package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"ledgerline/ledger"
)

// ReplayCall sets the balances of one partition to what a fold of its log says at Offset.
type ReplayCall struct {
	Partition int
	Offset    int64 // the fold's position, which must be the stored one
	// Balances holds every account that the partition's log touched. Accounts of the partition that are not in it are set to
	// zero, so the fold must have begun at the beginning, or at a snapshot.
	Balances map[ledger.Account]ledger.Balance
	// Advance, if set, is asked for the balances at another offset than Offset, while the partition's row is locked: without it
	// a partition that is flushed all the time could not be replayed. It may be asked again, for the same offset or a later one.
	Advance func(ctx context.Context, offset int64) (map[ledger.Account]ledger.Balance, error)
}

// ReplayResult says what a replay changed.
type ReplayResult struct {
	Accounts  int // accounts written
	Changed   int // accounts whose balance was another one
	Adopted   int // hand edits found on the way
	Saturated []ledger.Account
	Alarms    []string
}

// ReplayPartition writes folded balances in place, under the partition's lock and by the rule of DESIGN 9: first the
// hand edits are adopted, then the balance is set, then the columns are written through. New API's counters are set to
// what the account says. ErrFenced means that the partition went on meanwhile (or back), and there is no Advance to
// follow it: fold the rest and call again.
//
// An account without a row (somebody emptied ledger_accounts) is made anew; what its column holds is then no edit, and
// what was pending is what the outbox says.
func (s *Store) ReplayPartition(ctx context.Context, call ReplayCall) (ReplayResult, error) {
	var result ReplayResult
	err := s.Tx(ctx, func(tx *Tx) error { var err error; result, err = tx.replay(ctx, call); return err })
	if err != nil {
		return ReplayResult{}, fmt.Errorf("replay partition %d: %w", call.Partition, err)
	}
	return result, nil
}

func (tx *Tx) replay(ctx context.Context, call ReplayCall) (ReplayResult, error) {
	var result ReplayResult
	offset, _, err := tx.lockPartition(ctx, call.Partition)
	if err != nil {
		return result, err
	}
	switch {
	case offset == call.Offset && call.Balances != nil:
	case call.Advance == nil || offset < call.Offset:
		return result, fmt.Errorf("%w: it is %d, the fold is at %d", ErrFenced, offset, call.Offset)
	default:
		if tx.s.mysql { // the fold takes its time
			if _, err := tx.Exec(ctx, unboundedSilence); err != nil {
				return result, err
			}
		}
		if call.Balances, err = call.Advance(ctx, offset); err != nil {
			return result, fmt.Errorf("fold to offset %d: %w", offset, err)
		}
	}
	if _, err := tx.s.partitionCount(ctx, tx); err != nil {
		return result, err
	}
	want, err := tx.partitionAccounts(ctx, call)
	if err != nil {
		return result, err
	}
	pending, err := tx.pendingAdoptions(ctx, call.Partition)
	if err != nil {
		return result, err
	}
	for _, group := range splitIDs(want) {
		sh, err := tx.lockAccounts(ctx, call.Partition, group)
		if err != nil {
			return result, err
		}
		for _, a := range sh.accounts {
			if !a.stored {
				due := pending[a.Account]
				a.written, a.pending, a.baseUsed, a.baseRequests = a.column, due.amount, due.opened.Charged, due.opened.Requests
			}
			if err := sh.adopt(a); err != nil {
				return result, err
			}
			if to := call.Balances[a.Account]; to != a.balance {
				a.balance = to
				result.Changed++
			}
		}
		if err := sh.write(ctx, true); err != nil {
			return result, err
		}
		result.Accounts += len(sh.accounts)
		result.Adopted += len(sh.adopted)
		result.Saturated = append(result.Saturated, sh.saturated...)
		result.Alarms = append(result.Alarms, sh.alarms...)
	}
	return result, tx.setChannels(ctx, want.channels)
}

// partitionAccounts returns the accounts that the partition has or should have.
func (tx *Tx) partitionAccounts(ctx context.Context, call ReplayCall) (ids, error) {
	sets := [3]map[int64]bool{{}, {}, {}}
	for a := range call.Balances {
		sets[kindIndex(a.Kind)][a.ID] = true
	}
	err := tx.each(ctx, "SELECT kind, id FROM ledger_accounts WHERE part = ?", []any{call.Partition}, func(scan func(...any) error) error {
		var a ledger.Account
		err := scan(&a.Kind, &a.ID)
		sets[kindIndex(a.Kind)][a.ID] = true
		return err
	})
	if err != nil {
		return ids{}, fmt.Errorf("read the partition's accounts: %w", err)
	}
	sorted := func(i int) []int64 { return slices.Sorted(maps.Keys(sets[i])) }
	return ids{users: sorted(0), tokens: sorted(1), channels: sorted(2)}, nil
}

// splitIDs cuts a partition's accounts into stretches that fit into memory and statements.
func splitIDs(all ids) []ids {
	var out []ids
	for list := range slices.Chunk(all.users, rowsPerStatement) {
		out = append(out, ids{users: list})
	}
	for list := range slices.Chunk(all.tokens, rowsPerStatement) {
		out = append(out, ids{tokens: list})
	}
	for list := range slices.Chunk(all.channels, rowsPerStatement) {
		out = append(out, ids{channels: list})
	}
	return out
}

// unapplied is what adoptions and openings in the outbox have not brought into an account yet.
type unapplied struct {
	amount int64          // what pending_adopt must be
	opened ledger.Balance // what the base columns must be
}

// pendingAdoptions returns what is not applied yet, per account of the partition.
func (tx *Tx) pendingAdoptions(ctx context.Context, partition int) (map[ledger.Account]unapplied, error) {
	pending := map[ledger.Account]unapplied{}
	q := "SELECT user_id, amount, event FROM ledger_outbox WHERE state IN ('new', 'moved', 'dead') AND kind IN ('credit.adopted', 'account.opened')"
	err := tx.each(ctx, q, nil, func(scan func(...any) error) error {
		var user, amount int64
		var body []byte
		if err := scan(&user, &amount, &body); err != nil {
			return err
		}
		if ledger.Partition(user, tx.s.knownPartitions()) != partition {
			return nil
		}
		var e ledger.Event
		if err := json.Unmarshal(body, &e); err != nil {
			return err
		}
		a := ledger.Account{Kind: ledger.UserAccount, ID: e.User}
		if e.Account == ledger.TokenAccount {
			a = ledger.Account{Kind: ledger.TokenAccount, ID: e.Token}
		}
		due := pending[a]
		due.amount += amount
		if e.Kind == ledger.KindAccountOpened {
			due.opened = due.opened.Plus(ledger.Balance{Charged: e.Charged, Requests: e.Requests})
		}
		pending[a] = due
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read pending adoptions: %w", err)
	}
	return pending, nil
}

// setChannels sets used_quota of channels to the sum over their accounts of all partitions. The rows are locked before the
// sums are read, and a flush raises them after its account, so no flush falls between.
func (tx *Tx) setChannels(ctx context.Context, list []int64) error {
	if len(list) == 0 {
		return nil
	}
	used, err := tx.lockChannels(ctx, list)
	if err != nil {
		return fmt.Errorf("lock channels: %w", err)
	}
	sums, err := tx.channelSums(ctx, list)
	if err != nil {
		return fmt.Errorf("sum up channels: %w", err)
	}
	limit := tx.s.column("channels.used_quota")
	for _, id := range list {
		have, ok := used[id]
		if should := limit.clip(sums[id]); ok && should != have {
			if _, err := tx.Exec(ctx, "UPDATE channels SET used_quota = ? WHERE id = ?", should, id); err != nil {
				return fmt.Errorf("set channel %d: %w", id, err)
			}
		}
	}
	return nil
}
