package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// pollEvery is how often a store that lags is looked at.
const pollEvery = 20 * time.Millisecond

// snapshot is what one look at the database said.
type snapshot struct {
	offsets    []int64 // M, by partition
	skipped    [][]int64
	epochs     map[int][]ledger.EpochRecord
	closed     map[ledger.ID]bool
	dead       func(partition int, offset int64) ledger.DeadState
	deadCount  int
	balances   map[ledger.Account]ledger.Balance
	channels   map[int64]channelUse
	partitions int
}

// channelUse is what a channel's accounts of all partitions sum up to, and the column that should say so.
type channelUse struct{ sum, column int64 }

// Verify compares everything. What does not catch up with the snapshot within patience is reported as lagging.
func Verify(ctx context.Context, s Stores, patience time.Duration) (*Verdict, error) {
	v := &Verdict{}
	snap, err := v.look(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	waitCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a := &auditor{Stores: s, snap: snap, verdict: v}
	if err := a.log(ctx); err != nil {
		return nil, err
	}
	if err := a.usageLog(ctx, waitCtx); err != nil {
		return nil, err
	}
	if s.Counters != nil {
		if err := a.hotCounters(ctx, waitCtx); err != nil {
			return nil, err
		}
	}
	v.sortDifferences()
	return v, nil
}

// look takes the snapshot, and compares New API's columns with the accounts inside it.
func (v *Verdict) look(ctx context.Context, db *sqlstore.Store) (*snapshot, error) {
	snap := &snapshot{
		epochs: map[int][]ledger.EpochRecord{}, closed: map[ledger.ID]bool{}, balances: map[ledger.Account]ledger.Balance{},
		channels: map[int64]channelUse{},
	}
	err := db.Verify(ctx, func(s *sqlstore.VerifySnapshot) error {
		snap.partitions = len(s.Partitions)
		snap.offsets, snap.skipped = make([]int64, snap.partitions), make([][]int64, snap.partitions)
		for _, p := range s.Partitions {
			snap.offsets[p.Partition], snap.skipped[p.Partition] = p.Offset, p.Skipped
		}
		for _, e := range s.Epochs {
			snap.epochs[e.Partition] = append(snap.epochs[e.Partition], e)
		}
		for _, p := range s.Producers {
			snap.closed[p.ID] = p.State == sqlstore.ProducerClosed
		}
		snap.dead, snap.deadCount = s.Dead, s.DeadLetters
		v.Exceptions.DeadLetters = s.DeadLetters
		return s.Accounts(ctx, func(a sqlstore.VerifyAccount) error {
			if a.Stored {
				v.Accounts++
				if a.Partition >= 0 { // what a channel had used before Ledgerline is no event
					snap.balances[a.Account] = snap.balances[a.Account].Plus(a.Balance)
				}
			}
			v.columns(&a)
			if a.Kind == ledger.ChannelAccount && a.Listed {
				used := snap.channels[a.ID]
				snap.channels[a.ID] = channelUse{sum: used.sum + a.Balance.Charged + a.BaseUsed, column: a.Used}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the balances: %w", err)
	}
	for id, used := range snap.channels {
		v.differ("MySQL channels.used_quota", ledger.Account{Kind: ledger.ChannelAccount, ID: id}, "used", used.sum, used.column)
	}
	return snap, nil
}

// columns compares New API's columns with the account beside them. A column that somebody edited differs until the edit
// is adopted.
func (v *Verdict) columns(a *sqlstore.VerifyAccount) {
	if !a.Listed || !a.Stored {
		return
	}
	switch a.Kind {
	case ledger.UserAccount:
		v.differ("MySQL users.quota", a.Account, "quota", a.Written, a.Column)
		v.differ("MySQL users.used_quota", a.Account, "used", a.Balance.Charged+a.BaseUsed, a.Used)
		v.differ("MySQL users.request_count", a.Account, "requests", a.Balance.Requests+a.BaseRequests, a.Requests)
	case ledger.TokenAccount:
		v.differ("MySQL tokens.remain_quota", a.Account, "quota", a.Written, a.Column)
		v.differ("MySQL tokens.used_quota", a.Account, "used", a.Balance.Charged+a.BaseUsed, a.Used)
	case ledger.ChannelAccount:
	}
}

// auditor holds what the steps of one verify share.
type auditor struct {
	Stores
	snap    *snapshot
	verdict *Verdict
	folds   []*ledger.Fold // by partition, at the snapshot's offset
}

// log folds the log up to the snapshot and compares the balances.
func (a *auditor) log(ctx context.Context) error {
	total := map[ledger.Account]ledger.Balance{}
	for p := range a.snap.partitions {
		fold := ledger.NewFold(a.snap.dead)
		first, _, err := a.Log.Bounds(ctx, p)
		if err != nil {
			return fmt.Errorf("read the bounds of partition %d: %w", p, err)
		}
		if first > 0 {
			a.verdict.Lagging = append(a.verdict.Lagging,
				fmt.Sprintf("partition %d of the log begins at offset %d: what was before cannot be folded from it", p, first))
		}
		if err := a.fold(ctx, fold, p, span{first, a.snap.offsets[p]}); err != nil {
			return err
		}
		for account, b := range fold.Balances() {
			total[account] = total[account].Plus(b)
		}
		a.folds = append(a.folds, fold)
	}
	a.compare("MySQL ledger_accounts", total, a.snap.balances)
	return nil
}

type span struct{ from, to int64 }

func (a *auditor) fold(ctx context.Context, fold *ledger.Fold, partition int, r span) error {
	err := a.Log.Read(ctx, partition, r.from, r.to, func(records []ledger.Record) error {
		for i := range records {
			rec := &records[i]
			a.verdict.Events++
			if fold.Apply(rec) {
				a.exceptions(rec)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fold partition %d of the log: %w", partition, err)
	}
	return nil
}

// exceptions counts the charges that L3 allows beside what was held.
func (a *auditor) exceptions(r *ledger.Record) {
	ev, e := &r.Event, &a.verdict.Exceptions
	if ev.Redrive {
		e.Redriven.add(ev.Charged)
	}
	if !ev.Kind.IsUsage() || ev.Hold == nil {
		return
	}
	if over := ev.Charged - ev.Hold.Amount; over > 0 {
		e.Excess.add(over)
		e.example("charged %d above its hold: event %s, user %d", over, ev.ID, ev.User)
	}
	if Late(a.snap.epochs[r.Partition], r) {
		e.Late.add(ev.Charged)
		e.example("late: event %s, user %d, %d units", ev.ID, ev.User, ev.Charged)
	}
}

// Late reports whether a record is a late charge (DESIGN 7): its hold's epoch is older than the one that was open at its
// offset, and its incarnation did not report to that one. epochs are of its partition, ascending.
func Late(epochs []ledger.EpochRecord, r *ledger.Record) bool {
	if r.Event.Hold == nil || r.Event.Hold.Amount == 0 {
		return false
	}
	for i := len(epochs) - 1; i >= 0; i-- {
		if epochs[i].End <= r.Offset {
			return r.Event.Hold.Epoch < epochs[i].Epoch && !slices.Contains(epochs[i].Reporters, r.Event.Producer)
		}
	}
	return false
}

// compare names every account in which got differs from want.
func (a *auditor) compare(store string, want, got map[ledger.Account]ledger.Balance) {
	for account, w := range want {
		a.verdict.differBalance(store, account, w, got[account])
	}
	for account, g := range got {
		if _, known := want[account]; !known {
			a.verdict.differBalance(store, account, ledger.Balance{}, g)
		}
	}
}

// usageLog compares the usage log's exact sums with the balances. A dead letter is in the usage log, where it happened, and not in
// the balances until it is re-driven.
func (a *auditor) usageLog(ctx, waitCtx context.Context) error {
	if !a.await(waitCtx, "the usage log", func() (bool, error) {
		for p, m := range a.snap.offsets {
			pos, err := a.Usage.Position(ctx, p)
			if err != nil || pos.Offset < m {
				return false, err
			}
		}
		return true, nil
	}) {
		return nil
	}
	want := make(map[ledger.Account]ledger.Balance, len(a.snap.balances))
	for account, b := range a.snap.balances {
		want[account] = b
	}
	if a.snap.deadCount > 0 {
		if err := a.addDead(ctx, want); err != nil {
			return err
		}
	}
	got := make(map[ledger.Account]ledger.Balance, len(want))
	err := a.Usage.Totals(ctx, nil, a.snap.offsets, func(account ledger.Account, b ledger.Balance) error {
		got[account] = b
		return nil
	})
	if err != nil {
		return fmt.Errorf("sum up the usage log: %w", err)
	}
	a.compare("usage log", want, got)
	err = a.Usage.Shown(ctx, a.snap.offsets, func(account ledger.Account, more int64) error {
		charged := got[account].Charged
		a.verdict.differ("usage log quota", account, "quota", charged, charged+more)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the quotas that the usage log shows: %w", err)
	}
	return nil
}

// addDead adds the dead letters that waited at the snapshot.
func (a *auditor) addDead(ctx context.Context, to map[ledger.Account]ledger.Balance) error {
	const page = 500
	partition, offset := -1, int64(-1)
	for {
		letters, err := a.DB.DeadLetters(ctx, partition, offset, page)
		if err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		for i := range letters {
			l := &letters[i]
			partition, offset = l.Partition, l.Offset
			waiting := l.RedriveOffset < 0 || l.RedriveOffset >= a.snap.offsets[l.RedrivePartition]
			if l.Offset >= a.snap.offsets[l.Partition] || !waiting {
				continue
			}
			ev, err := ledger.Decode(l.Value)
			if err != nil {
				continue // it could not be decoded by the usage log either
			}
			for _, d := range ev.Deltas(nil) {
				to[d.Account] = to[d.Account].Plus(d.Balance)
			}
		}
		if len(letters) < page {
			return nil
		}
	}
}

// await polls until done says so, and reports a store that lags.
func (a *auditor) await(ctx context.Context, what string, done func() (bool, error)) bool {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok {
			return true
		}
		select {
		case <-ctx.Done():
			reason := "has not caught up with the balances"
			if err != nil {
				reason = err.Error()
			}
			a.verdict.Lagging = append(a.verdict.Lagging, what+": "+reason)
			return false
		case <-ticker.C:
		}
	}
}

// hotCounters compares every account of the hot counters, each with the fold of the log at the offset where it stands, and every hold with
// the registry.
func (a *auditor) hotCounters(ctx, waitCtx context.Context) error {
	for p := range a.snap.partitions {
		if !a.await(waitCtx, fmt.Sprintf("the hot counters of partition %d", p), func() (bool, error) {
			st, err := a.Counters.State(ctx, p)
			return err == nil && st[0].Present && !st[0].Foreign && st[0].Open && st[0].Done >= a.snap.offsets[p], err
		}) {
			continue
		}
		if err := a.hotPartition(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// maxHot bounds the accounts of one partition that verify holds in memory at once.
const maxHot = 5_000_000

func (a *auditor) hotPartition(ctx context.Context, partition int) error {
	var accounts []ledger.HotAccount
	seen := map[ledger.Account]int{}
	holds := map[ledger.ID]ledger.OpenHold{}
	err := a.Counters.All(ctx, partition, func(h ledger.HotAccount) error {
		if !h.Loaded {
			return nil
		}
		if len(accounts) == maxHot {
			return errors.New("more hot accounts in one partition than verify holds")
		}
		if i, twice := seen[h.Account]; twice {
			accounts[i] = h
			return nil
		}
		seen[h.Account] = len(accounts)
		accounts = append(accounts, h)
		return nil
	}, func(h ledger.OpenHold) error {
		holds[h.Hold] = h
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the hot counters of partition %d: %w", partition, err)
	}
	a.verdict.Holds += len(holds)
	for id, h := range holds {
		if a.snap.closed[h.Incarnation] {
			a.verdict.differ("hot counters", ledger.Account{Kind: ledger.UserAccount, ID: h.User}, "hold "+id.String()+" of a closed incarnation", 0, h.Amount)
		}
	}
	return a.compareHot(ctx, partition, accounts)
}

// compareHot folds on from the snapshot, and compares each account where it stands: at max(at, done).
func (a *auditor) compareHot(ctx context.Context, partition int, accounts []ledger.HotAccount) error {
	place := func(h *ledger.HotAccount) int64 { return max(h.At, h.Done) }
	slices.SortFunc(accounts, func(x, y ledger.HotAccount) int { return int(max(-1, min(1, place(&x)-place(&y)))) })
	// What was dead-lettered since the snapshot must not count either.
	dead, err := a.DB.DeadIndex(ctx)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	fold, at := a.folds[partition], a.snap.offsets[partition]
	fold.SetDead(dead)
	for i := range accounts {
		h := &accounts[i]
		to := place(h)
		if to < at {
			// It stood below the snapshot when it was read: a new epoch began meanwhile. The next verify sees it.
			a.verdict.Lagging = append(a.verdict.Lagging, fmt.Sprintf("the hot counters of partition %d began anew during verify", partition))
			return nil
		}
		if to > at {
			if err := a.fold(ctx, fold, partition, span{at, to}); err != nil {
				return err
			}
			at = to
		}
		want := fold.Balances()[h.Account]
		a.verdict.Hot++
		a.verdict.differ("hot counters", h.Account, "granted", want.Granted, h.Granted)
		a.verdict.differ("hot counters", h.Account, "charged", want.Charged, h.Charged)
	}
	return nil
}
