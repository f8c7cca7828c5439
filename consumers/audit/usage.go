package audit

import (
	"context"
	"errors"
	"fmt"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// usageLog compares the usage log's exact sums with the balances of the snapshot, which it uses up: sums over [from, M) must be what the
// balances gained since the snapshots at from. A dead letter is in the usage log where it happened, and in the balances
// where it was re-driven.
func (a *auditor) usageLog(ctx context.Context) error {
	if ok, err := a.await(ctx, "the usage log", func() (bool, error) {
		for p, m := range a.snap.offsets {
			pos, err := a.Usage.Position(ctx, p)
			if err != nil || pos.Offset < m {
				return false, err
			}
		}
		return true, nil
	}); err != nil || !ok {
		return err
	}
	from, err := a.usageFrom(ctx)
	if err != nil {
		return err
	}
	if err := a.addDead(ctx, from); err != nil {
		return err
	}
	err = a.Usage.Totals(ctx, from, a.snap.offsets, func(account ledger.Account, got ledger.Balance) error {
		a.verdict.differBalance(storeUsage, account, a.snap.balances[account].Balance, got)
		delete(a.snap.balances, account)
		return nil
	})
	if err != nil {
		return fmt.Errorf("sum up the usage log: %w", err)
	}
	for account, e := range a.snap.balances {
		a.verdict.differBalance(storeUsage, account, e.Balance, ledger.Balance{})
	}
	// The column that people read says the same as the sums.
	err = a.Usage.Shown(ctx, a.snap.offsets, func(account ledger.Account, more int64) error {
		a.verdict.differ(storeUsage, account, "quota shown beyond charged", 0, more)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the quotas that the usage log shows: %w", err)
	}
	return nil
}

// usageFrom takes what the snapshots held off the balances, where the usage log no longer reaches back, and returns the offsets of those
// snapshots; nil if it holds everything.
func (a *auditor) usageFrom(ctx context.Context) ([]int64, error) {
	if a.UsageKept == 0 {
		return nil, nil
	}
	from := make([]int64, len(a.snap.offsets))
	begun := false
	for p := range from {
		begin := a.inUsage(p)
		if begin.snapshot == nil {
			continue
		}
		snapshot, err := a.DB.LoadSnapshot(ctx, begin.snapshot.ID)
		if err != nil {
			return nil, fmt.Errorf("load the snapshot to begin at: %w", err)
		}
		from[p], begun = begin.offset, true
		for account, b := range snapshot.Balances {
			a.gain(account, negative(b))
		}
	}
	if !begun {
		return nil, nil
	}
	return from, nil
}

// gain changes what the usage log is expected to say of an account.
func (a *auditor) gain(account ledger.Account, b ledger.Balance) {
	e := a.snap.balances[account]
	e.Balance = e.Plus(b)
	a.snap.balances[account] = e
}

// addDead moves each dead letter from the place where it was re-driven, if it was, to where it happened. A letter and its
// re-drive may lie on both sides of from and of M.
func (a *auditor) addDead(ctx context.Context, from []int64) error {
	within := func(partition int, offset int64) bool {
		return offset >= 0 && offset < a.snap.offsets[partition] && (from == nil || offset >= from[partition])
	}
	seen := map[ledger.ID]bool{} // an event may be dead at several places; to the usage log it is one, at the first of them
	return a.deadLetters(ctx, func(l *sqlstore.DeadLetter) error {
		ev, err := ledger.Decode(l.Value)
		if err != nil || seen[ev.ID] {
			return nil //nolint:nilerr // what cannot be decoded is not in the usage log either
		}
		seen[ev.ID] = true
		there := within(l.Partition, l.Offset)
		counted := l.Redriven && within(l.RedrivePartition, l.RedriveOffset)
		if !l.Redriven && ev.Key != "" {
			// Moved again, it may have been applied as an event of its own.
			if counted, err = a.DB.OutboxApplied(ctx, ev.Key); err != nil && !errors.Is(err, sqlstore.ErrNotFound) {
				return fmt.Errorf("read the key of a dead letter: %w", err)
			}
		}
		for _, d := range ev.Deltas(nil) {
			switch {
			case there && !counted:
				a.gain(d.Account, d.Balance)
			case counted && !there:
				a.gain(d.Account, negative(d.Balance))
			}
		}
		return nil
	})
}

func negative(b ledger.Balance) ledger.Balance {
	return ledger.Balance{Granted: -b.Granted, Charged: -b.Charged, Requests: -b.Requests}
}
