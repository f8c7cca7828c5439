package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

const (
	// maxHot bounds the accounts and the holds of one partition that verify keeps in memory at once (L7).
	maxHot = 5_000_000
	// maxHotReads bounds how often the counters of a partition are read again because a new epoch began meanwhile.
	maxHotReads = 50
)

// hotState is what one partition's counters hold, read within one epoch.
type hotState struct {
	accounts []ledger.HotAccount
	holds    map[ledger.ID]ledger.OpenHold
}

// place is the offset at which an account stands: what is below it is in its figures.
func place(h *ledger.HotAccount) int64 { return max(h.At, h.Done) }

// hotPartition compares every account of one partition's counters with the fold of the log at the offset where it stands, and every
// hold with the registry. fold is at the snapshot; it goes on from there.
func (a *auditor) hotPartition(ctx context.Context, p int, fold *ledger.Fold) error {
	var hot *hotState
	reads := 0
	ok, err := a.await(ctx, fmt.Sprintf("the hot counters of partition %d", p), func() (bool, error) {
		st, err := a.Counters.State(ctx, p)
		if err != nil || !inUse(&st[0]) || st[0].Done < a.snap.offsets[p] {
			return false, err
		}
		if reads++; reads > maxHotReads {
			a.left = 0
			return false, errors.New("a new epoch began each time they were read")
		}
		if hot, err = a.readHot(ctx, p); err != nil {
			return false, err
		}
		// Pages of two epochs do not belong together, and an account of a new one may stand below the snapshot.
		after, err := a.Counters.State(ctx, p)
		return err == nil && inUse(&after[0]) && after[0].Epoch == st[0].Epoch, err
	})
	if err != nil || !ok {
		return err
	}
	a.verdict.Holds += len(hot.holds)
	if err := a.holders(ctx, hot.holds); err != nil {
		return err
	}
	return a.compareHot(ctx, p, fold, hot.accounts)
}

func inUse(st *ledger.Counters) bool { return st.Present && !st.Foreign && st.Open }

func (a *auditor) readHot(ctx context.Context, p int) (*hotState, error) {
	hot := &hotState{holds: map[ledger.ID]ledger.OpenHold{}}
	err := a.Counters.All(ctx, p, func(h ledger.HotAccount) error {
		if len(hot.accounts) == maxHot {
			return errors.New("more hot accounts in one partition than verify holds")
		}
		if h.Loaded {
			hot.accounts = append(hot.accounts, h)
		}
		return nil
	}, func(h ledger.OpenHold) error {
		if len(hot.holds) == maxHot {
			return errors.New("more open holds in one partition than verify holds")
		}
		hot.holds[h.Hold] = h
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the hot counters of partition %d: %w", p, err)
	}
	return hot, nil
}

// holders checks that each hold belongs to an incarnation that is registered and was not closed at the snapshot.
func (a *auditor) holders(ctx context.Context, holds map[ledger.ID]ledger.OpenHold) error {
	var unknown []ledger.OpenHold
	for _, h := range holds {
		state, known := a.snap.producers[h.Incarnation]
		if !known {
			unknown = append(unknown, h)
		} else if state == sqlstore.ProducerClosed {
			a.strayHold(&h, "closed")
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	now, err := a.DB.Producers(ctx) // it may have registered since
	if err != nil {
		return fmt.Errorf("read incarnations: %w", err)
	}
	for i := range unknown {
		h := &unknown[i]
		if !slices.ContainsFunc(now, func(p sqlstore.Producer) bool { return p.ID == h.Incarnation }) {
			a.strayHold(h, "unknown")
		}
	}
	return nil
}

func (a *auditor) strayHold(h *ledger.OpenHold, what string) {
	account := ledger.Account{Kind: ledger.UserAccount, ID: h.User}
	a.verdict.differ(storeHot, account, fmt.Sprintf("hold %s of the %s incarnation %s", h.Hold, what, h.Incarnation), 0, max(1, h.Amount))
}

// compareHot folds on from the snapshot, and compares each account where it stands.
func (a *auditor) compareHot(ctx context.Context, p int, fold *ledger.Fold, accounts []ledger.HotAccount) error {
	if len(accounts) == 0 {
		return nil
	}
	slices.SortFunc(accounts, func(x, y ledger.HotAccount) int { return cmp.Compare(place(&x), place(&y)) })
	// What was dead-lettered since the snapshot does not count either. After a restore the database may be behind the counters.
	last := place(&accounts[len(accounts)-1])
	ok, err := a.await(ctx, fmt.Sprintf("the database, behind the hot counters of partition %d,", p), func() (bool, error) {
		st, err := a.DB.Partition(ctx, p)
		return err == nil && st.Offset >= last, err
	})
	if err != nil || !ok {
		return err
	}
	dead, err := a.DB.DeadIndex(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	fold.SetDead(dead)
	i := 0
	upTo := func(offset int64) {
		for ; i < len(accounts) && place(&accounts[i]) <= offset; i++ {
			a.compareAccount(fold, &accounts[i])
		}
	}
	err = a.readLog(ctx, p, span{a.snap.offsets[p], last}, func(r *ledger.Record) error {
		upTo(r.Offset)
		fold.Apply(r)
		return nil
	})
	upTo(last)
	return err
}

func (a *auditor) compareAccount(fold *ledger.Fold, h *ledger.HotAccount) {
	want := fold.Balance(h.Account)
	a.verdict.Hot++
	a.verdict.differ(storeHot, h.Account, "granted", want.Granted, h.Granted)
	a.verdict.differ(storeHot, h.Account, "charged", want.Charged, h.Charged)
}
