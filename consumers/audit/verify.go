package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// The stores by the names that a difference gives them.
const (
	storeAccounts = "MySQL ledger_accounts"
	storeUsage    = "usage log"
	storeHot      = "hot counters"
)

// entry is one account of the snapshot.
type entry struct {
	ledger.Balance
	folded bool // a partition's fold knew it
}

// snapshot is what one look at the database said.
type snapshot struct {
	states    []sqlstore.PartitionState // by partition; their offsets are M
	offsets   []int64                   // M
	epochs    map[int][]ledger.EpochRecord
	producers map[ledger.ID]sqlstore.ProducerState
	dead      func(partition int, offset int64) ledger.DeadState
	deadCount int
	balances  map[ledger.Account]entry
}

// auditor holds what the steps of one verify share.
type auditor struct {
	*beginnings
	snap     *snapshot
	verdict  *Verdict
	channels map[ledger.Account]ledger.Balance // folded so far: a channel has events in every partition
	changed  int                               // accounts whose balance is another one than the fold's
	gaps     bool                              // a partition could not be folded
	left     time.Duration                     // how long stores that lag may still be waited for
}

// Verify compares everything. Stores that have not caught up with the database when it was looked at are waited for, patience all
// together; what then still lags is reported and not compared.
//
// It holds the accounts of the database in memory, about 100 bytes each, and those of one partition's fold.
func Verify(ctx context.Context, s Stores, patience time.Duration) (*Verdict, error) {
	return verifyAt(ctx, s, patience, time.Now())
}

func verifyAt(ctx context.Context, s Stores, patience time.Duration, now time.Time) (*Verdict, error) {
	a := &auditor{verdict: &Verdict{}, channels: map[ledger.Account]ledger.Balance{}, left: patience}
	var err error
	if a.beginnings, err = newBeginnings(ctx, s, now); err != nil {
		return nil, err
	}
	if a.snap, err = a.verdict.look(ctx, s.DB); err != nil {
		return nil, err
	}
	for p := range a.snap.states {
		if err := a.partition(ctx, p); err != nil {
			return nil, err
		}
	}
	a.unfolded()
	if err := a.usageLog(ctx); err != nil {
		return nil, err
	}
	a.verdict.sortDifferences()
	return a.verdict, nil
}

// look takes the snapshot, and compares New API's columns with the accounts inside it.
func (v *Verdict) look(ctx context.Context, db *sqlstore.Store) (*snapshot, error) {
	snap := &snapshot{
		epochs: map[int][]ledger.EpochRecord{}, producers: map[ledger.ID]sqlstore.ProducerState{}, balances: map[ledger.Account]entry{},
	}
	var channel channelColumn
	err := db.Verify(ctx, func(s *sqlstore.VerifySnapshot) error {
		snap.states, snap.offsets = s.Partitions, make([]int64, len(s.Partitions))
		for i, p := range s.Partitions {
			if p.Partition != i {
				return fmt.Errorf("partition %d has no row", i)
			}
			snap.offsets[i] = p.Offset
		}
		for _, e := range s.Epochs {
			snap.epochs[e.Partition] = append(snap.epochs[e.Partition], e)
		}
		for i := range s.Producers {
			snap.producers[s.Producers[i].ID] = s.Producers[i].State
		}
		snap.dead, snap.deadCount = s.Dead, s.DeadLetters
		v.Exceptions.DeadLetters = s.DeadLetters
		return s.Accounts(ctx, func(a sqlstore.VerifyAccount) error {
			if a.Stored && a.Partition >= 0 {
				e := snap.balances[a.Account]
				e.Balance = e.Plus(a.Balance)
				snap.balances[a.Account] = e
			}
			v.columns(&a, &channel)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the balances: %w", err)
	}
	channel.end(v)
	v.Accounts = len(snap.balances)
	return snap, nil
}

// columns compares New API's columns with the account beside them. A column that somebody edited differs until the edit
// is adopted.
func (v *Verdict) columns(a *sqlstore.VerifyAccount, channel *channelColumn) {
	if a.Kind == ledger.ChannelAccount {
		channel.add(v, a)
		return
	}
	if !a.Listed || !a.Stored {
		return
	}
	v.differColumn(storeAccounts, a.Account, "written", a.Balance.Left()+a.Pending, a.Written)
	switch a.Kind {
	case ledger.UserAccount:
		v.differ("MySQL users.quota", a.Account, "quota", a.Written, a.Column)
		v.differColumn("MySQL users.used_quota", a.Account, "used", a.Balance.Charged+a.BaseUsed, a.Used)
		v.differColumn("MySQL users.request_count", a.Account, "requests", a.Balance.Requests+a.BaseRequests, a.Requests)
		if left := a.Balance.Left(); left < 0 {
			v.Exceptions.Overdrawn.add(-left)
			v.Exceptions.example("%s is %d below zero", a.Account, -left)
		}
	case ledger.TokenAccount:
		v.differ("MySQL tokens.remain_quota", a.Account, "quota", a.Written, a.Column)
		v.differColumn("MySQL tokens.used_quota", a.Account, "used", a.Balance.Charged+a.BaseUsed, a.Used)
	case ledger.ChannelAccount:
	}
}

// differColumn is differ for a column that may be too small for what it should hold: an int that is at its end is none.
func (v *Verdict) differColumn(store string, account ledger.Account, what string, want, got int64) {
	if want > got && got == math.MaxInt32 || want < got && got == math.MinInt32 {
		return
	}
	v.differ(store, account, what, want, got)
}

// channelColumn adds up the accounts of one channel, which come one after another.
type channelColumn struct {
	id, used, sum int64
	listed        bool
}

func (c *channelColumn) add(v *Verdict, a *sqlstore.VerifyAccount) {
	if c.id != a.ID {
		c.end(v)
		*c = channelColumn{id: a.ID}
	}
	c.sum += a.Balance.Charged
	c.used, c.listed = a.Used, a.Listed
}

// end compares the channel that was added up. A channel that was deleted has no column.
func (c *channelColumn) end(v *Verdict) {
	if c.listed {
		v.differColumn("MySQL channels.used_quota", ledger.Account{Kind: ledger.ChannelAccount, ID: c.id}, "used", c.sum, c.used)
	}
}

// partition folds one partition of the log up to the snapshot, compares the balances, and goes on to the hot counters.
func (a *auditor) partition(ctx context.Context, p int) error {
	state := &a.snap.states[p]
	same, err := a.holds(ctx, p, state.LastOffset, state.LastEvent)
	if err != nil {
		return err
	}
	if !same {
		a.cannotFold("partition %d of the log is not the one that the balances were made from: record %d is not event %s", p, state.LastOffset, state.LastEvent)
		return nil
	}
	begin, err := a.inLog(ctx, p)
	if errors.Is(err, errNoBeginning) {
		a.cannotFold("%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	fold := ledger.NewFold(a.snap.dead)
	if err := a.resume(ctx, fold, begin); err != nil {
		return err
	}
	err = a.readLog(ctx, p, span{begin.offset, state.Offset}, func(r *ledger.Record) error {
		a.verdict.Events++
		if fold.Apply(r) {
			a.exceptions(r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.balances(fold)
	if a.Counters == nil {
		return nil
	}
	return a.hotPartition(ctx, p, fold)
}

func (a *auditor) lags(format string, args ...any) {
	a.verdict.Lagging = append(a.verdict.Lagging, fmt.Sprintf(format, args...))
}

// cannotFold is lags for a partition whose accounts are not known from the log.
func (a *auditor) cannotFold(format string, args ...any) {
	a.gaps = true
	a.lags(format, args...)
}

// balances compares the accounts of one partition with its fold. Those of channels are added up first.
func (a *auditor) balances(fold *ledger.Fold) {
	fold.Each(func(account ledger.Account, want ledger.Balance) bool {
		if account.Kind == ledger.ChannelAccount {
			a.channels[account] = a.channels[account].Plus(want)
			return true
		}
		a.compare(account, want)
		return true
	})
}

func (a *auditor) compare(account ledger.Account, want ledger.Balance) {
	got, stored := a.snap.balances[account]
	if got.Balance != want {
		a.changed++
	}
	a.verdict.differBalance(storeAccounts, account, want, got.Balance)
	if stored {
		got.folded = true
		a.snap.balances[account] = got
	}
}

// unfolded compares the channels, and names accounts that no event made. If a partition could not be folded, its accounts are not
// known from those.
func (a *auditor) unfolded() {
	if a.gaps {
		return
	}
	for account, want := range a.channels {
		a.compare(account, want)
	}
	for account, e := range a.snap.balances {
		if !e.folded {
			if !e.IsZero() {
				a.changed++
			}
			a.verdict.differBalance(storeAccounts, account, ledger.Balance{}, e.Balance)
		}
	}
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

// Late reports whether a record is a late charge (DESIGN 7): an epoch that is newer than its hold's was opened at or before its
// offset, and without its incarnation. That need not be the newest: a node may sleep through one and report to the next. epochs are of its
// partition, ascending.
func Late(epochs []ledger.EpochRecord, r *ledger.Record) bool {
	if r.Event.Hold == nil || r.Event.Hold.Amount == 0 {
		return false
	}
	for i := len(epochs) - 1; i >= 0 && epochs[i].Epoch > r.Event.Hold.Epoch; i-- {
		if epochs[i].End <= r.Offset && !slices.Contains(epochs[i].Reporters, r.Event.Producer) {
			return true
		}
	}
	return false
}

// await polls until done says so, and reports a store that lags.
func (a *auditor) await(ctx context.Context, what string, done func() (bool, error)) (bool, error) {
	for {
		ok, err := done()
		if ok {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if a.left <= 0 {
			reason := "has not caught up with the balances"
			if err != nil {
				reason = err.Error()
			}
			a.lags("%s: %s", what, reason)
			return false, nil
		}
		start := time.Now()
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
		a.left -= time.Since(start)
	}
}
