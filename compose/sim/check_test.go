package sim

import (
	"slices"
	"strings"

	"ledgerline/ledger"
)

// accounts are the limited ones.
var accounts = []ledger.Account{
	{Kind: ledger.UserAccount, ID: 1},
	{Kind: ledger.TokenAccount, ID: 10},
	{Kind: ledger.TokenAccount, ID: 11},
	{Kind: ledger.UserAccount, ID: 2},
	{Kind: ledger.TokenAccount, ID: 20},
	{Kind: ledger.TokenAccount, ID: 21},
}

// userOf is who owns a limited account.
func userOf(a ledger.Account) int64 {
	if a.Kind == ledger.TokenAccount {
		return a.ID / 10
	}
	return a.ID
}

// verify is what verify reads of the counters: what an account has is what the log says at max(at, done).
func (w *world) verify() {
	for _, a := range accounts {
		n := ledger.Partition(userOf(a), w.cfg.partitions)
		st, _ := w.hot.State(w.t.Context(), n)
		if !st[0].Present || st[0].Foreign {
			continue
		}
		list, _ := w.hot.Accounts(w.t.Context(), n, []ledger.Account{a})
		h := &list[0]
		if !h.Loaded {
			continue
		}
		at := w.verifyAt(h)
		if end := w.log.partitions[n].end(); at > end {
			continue
		}
		want := w.log.partitions[n].at(at, a)
		if h.Granted != want.Granted || h.Charged != want.Charged {
			w.violation("verify: the counters of %s have granted %d, charged %d at %d (done %d); the log says %d and %d",
				a, h.Granted, h.Charged, h.At, h.Done, want.Granted, want.Charged)
		}
	}
}

// verifyAt is the position of an account in the counters.
func (w *world) verifyAt(h *ledger.HotAccount) int64 { return max(h.At, h.Done) }

// late reports whether a charge is one of a node that was not waited for: an epoch that is newer than its own was opened at or before its
// offset, without its incarnation.
func (w *world) late(r *ledger.Record) bool {
	return slices.ContainsFunc(w.opened, func(o ledger.EpochRecord) bool {
		return o.Partition == r.Partition && o.End <= r.Offset && r.Event.Hold.Epoch < o.Epoch && !slices.Contains(o.Reporters, r.Event.Producer)
	})
}

// checkSpent is L3, over every prefix of the log: nobody was charged more than was granted, but for the exceptions listed there.
func (w *world) checkSpent() {
	for _, p := range w.log.partitions {
		granted, spent := map[ledger.Account]int64{}, map[ledger.Account]int64{}
		for i := range p.records {
			r := &p.records[i]
			if !p.counted[i] {
				continue
			}
			e := &r.Event
			late := e.Kind.IsUsage() && e.Hold != nil && w.late(r)
			if late {
				w.counts.Late++
			}
			for _, d := range e.Deltas(nil) {
				switch {
				case !e.Kind.IsUsage():
					granted[d.Account] += max(0, d.Balance.Granted) // what is lowered is an exception
				case late || e.Redrive || d.Account.Kind == ledger.ChannelAccount:
				default:
					spent[d.Account] += min(e.Charged, e.Hold.Amount)
				}
			}
			for _, a := range accounts {
				if spent[a] > granted[a] {
					w.violation("%s is overspent at %d/%d: %d of %d granted (L3)", a, r.Partition, r.Offset, spent[a], granted[a])
					return
				}
			}
		}
	}
}

// checkBills holds what was billed against what the clients saw: nothing lost, nothing doubled (P1).
func (w *world) checkBills() {
	bills := map[ledger.ID][]*ledger.Record{}
	for _, p := range w.log.partitions {
		for i := range p.records {
			r := &p.records[i]
			if !r.Event.Kind.IsUsage() {
				continue
			}
			// A dead letter that waits is listed: it is neither lost nor billed.
			if p.counted[i] || p.states[i] == ledger.DeadOriginal && p.dead[r.Event.ID] {
				bills[r.Event.Hold.ID] = append(bills[r.Event.Hold.ID], r)
			}
		}
	}
	for _, r := range w.requests {
		if r.admitted {
			w.checkBill(r, bills[r.hold])
		}
	}
}

func (w *world) checkBill(r *request, bills []*ledger.Record) {
	if len(bills) > 1 {
		w.violation("request %d, hold %s, was billed %d times (P1)", r.n, short(r.hold), len(bills))
		return
	}
	if len(bills) == 0 {
		if !r.rotten && ((r.got > 0 || r.finished) && !r.lost && !r.weak || r.finished && !r.lost) {
			w.violation("request %d, hold %s, was never billed; the client has %d chunks, finished: %v (P1)", r.n, short(r.hold), r.got, r.finished)
		}
		return
	}
	e := &bills[0].Event
	low, high := promptUnits+r.got, promptUnits+r.produced+r.plan.more
	switch {
	case r.rotten:
		low = 0
	case r.finished:
		low, high = r.charge, r.charge
	case r.weak || r.got == 0:
		low = 0
	}
	if e.Charged < low || e.Charged > high {
		w.violation("request %d, hold %s, was charged %d, not %d to %d (P1)", r.n, short(r.hold), e.Charged, low, high)
	}
	if e.Kind == ledger.KindUsageRecovered {
		w.counts.Recovered++
		if e.Source != ledger.SourceRecovered {
			w.violation("request %d was recovered and is not flagged", r.n)
		}
	}
}

// checkStores is L4: log = database = counters = usage log, per account, and the columns of New API follow.
func (w *world) checkStores() {
	for _, a := range accounts {
		n := ledger.Partition(userOf(a), w.cfg.partitions)
		p := w.log.partitions[n]
		want := p.at(p.end(), a)
		acc, row := w.bank.accounts[place{a, 0}], w.bank.rows[a]
		if acc.balance != want {
			w.violation("%s: the database has %+v, the log says %+v (L4)", a, acc.balance, want)
		}
		if acc.pending != 0 || acc.written != acc.balance.Left() || row.column != acc.written {
			w.violation("%s never came to rest: balance %d, written %d, column %d, pending %d", a, acc.balance.Left(), acc.written, row.column, acc.pending)
		}
		if truth := w.withoutAdoptions(p, a) + row.edits; acc.balance.Left() != truth {
			w.violation("%s: balance %d, but credits - usage + edits = %d", a, acc.balance.Left(), truth)
		}
		list, _ := w.hot.Accounts(w.t.Context(), n, []ledger.Account{a})
		if h := &list[0]; h.Held != 0 || h.OpenHolds != 0 || h.Settled != 0 && !w.settledForGood(a) {
			w.violation("the counters kept something: %+v", *h)
		}
	}
	w.checkCodes()
	w.checkUsageLog()
}

// checkCodes: whoever used a code has its credit.
func (w *world) checkCodes() {
	for name, c := range w.bank.codes {
		if c.usedBy == 0 {
			continue
		}
		p := w.log.partitions[ledger.Partition(c.usedBy, w.cfg.partitions)]
		if !slices.ContainsFunc(p.records, func(r ledger.Record) bool {
			return p.counted[r.Offset] && r.Event.User == c.usedBy && strings.HasPrefix(r.Event.Key, "redeem:"+name)
		}) {
			w.violation("user %d used %s and never got its credit", c.usedBy, name)
		}
	}
}

// settledForGood reports whether settled may keep something until the next epoch: the charge of a dead letter is not applied, and is not given
// back either; that of an event that a disk has lost never comes.
func (w *world) settledForGood(a ledger.Account) bool {
	for _, r := range w.requests {
		if r.admitted && (r.plan.channel >= poisonChannel || r.rotten) && (a.Kind == ledger.UserAccount && r.user == a.ID || r.token == a.ID) {
			return true
		}
	}
	return false
}

// withoutAdoptions is what the log says of an account's balance, hand edits apart.
func (w *world) withoutAdoptions(p *partition, a ledger.Account) (left int64) {
	for i := range p.records {
		e := &p.records[i].Event
		if !p.counted[i] || e.Kind == ledger.KindCreditAdopted {
			continue
		}
		for _, d := range e.Deltas(nil) {
			if d.Account == a {
				left += d.Balance.Left()
			}
		}
	}
	return left
}

// checkUsageLog adds the usage log up, dead letters apart, each event and each key once.
func (w *world) checkUsageLog() {
	sums := map[ledger.Account]ledger.Balance{}
	first := map[string]int64{}
	for _, row := range w.usage.rows {
		if at, ok := first[row.Key]; row.Key != "" && (!ok || row.Offset < at) {
			first[row.Key] = row.Offset
		}
	}
	for id, row := range w.usage.rows {
		if w.log.partitions[row.Partition].dead[id] || row.Key != "" && row.Offset != first[row.Key] {
			continue
		}
		e, err := ledger.Decode(row.Event)
		if err != nil {
			w.violation("the usage log has a row that is no event: %v", err)
			return
		}
		for _, d := range e.Deltas(nil) {
			sums[d.Account] = sums[d.Account].Plus(d.Balance)
		}
	}
	for _, a := range accounts {
		p := w.log.partitions[ledger.Partition(userOf(a), w.cfg.partitions)]
		if want := p.at(p.end(), a); sums[a] != want {
			w.violation("%s: the usage log adds up to %+v, the log to %+v (L4)", a, sums[a], want)
		}
	}
}
