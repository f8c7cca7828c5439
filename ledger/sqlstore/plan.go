package sqlstore

import (
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// sum is what a stretch of records does to one account.
type sum struct {
	account  ledger.Account
	owner    int64 // the user whose records touch it
	balance  ledger.Balance
	adopted  int64          // leaves pending_adopt
	known    int64          // joins written before the column is looked at (DESIGN 9: an adoption whose row is missing)
	opened   ledger.Balance // brought by openings: New API's counters had it already
	charged  int64          // raises New API's used_quota
	requests int64          // raises request_count
	usedAt   int64          // Unix milliseconds of the newest request
}

// plan is what a stretch of records would do. It is built in memory before anything is written, so its size grows with
// the accounts in the stretch, not with the records.
type plan struct {
	sums  []sum
	index [3]map[int64]int // by kind: account id to place in sums

	used      map[string]bool // keys that the stretch itself applies
	flip      []string        // keys with a row, to be marked applied
	missing   []*ledger.Event // keyed events without a row
	redriven  []redriven
	finished  []string // outbox keys of re-drives that are done with, applied or not
	skipped   []int64  // offsets whose key or re-drive is used up
	applied   int      // records that count
	adopted   int      // hand edits found, set when the plan was written, like the two below
	saturated []ledger.Account
	alarms    []string
	scratch   []ledger.Delta
}

// redriven is a dead letter that the stretch applies.
type redriven struct {
	event  ledger.ID
	offset int64
}

func kindIndex(kind ledger.AccountKind) int {
	switch kind {
	case ledger.UserAccount:
		return 0
	case ledger.TokenAccount:
		return 1
	default:
		return 2
	}
}

// at returns the sum of an account, new if need be.
func (p *plan) at(account ledger.Account, owner int64) *sum {
	m := p.index[kindIndex(account.Kind)]
	i, ok := m[account.ID]
	if !ok {
		i = len(p.sums)
		m[account.ID] = i
		p.sums = append(p.sums, sum{account: account, owner: owner})
	}
	return &p.sums[i]
}

// plan sums up records, given by their places in the batch, with what is known of their keys. It asks nobody: the
// rules are those of ledger.Fold, in the same order.
func (f *flush) plan(places []int) (*plan, error) {
	p := &plan{used: map[string]bool{}}
	for i := range p.index {
		p.index[i] = make(map[int64]int, len(f.accounts[i]))
	}
	for _, at := range places {
		if err := f.planRecord(p, &f.call.Records[at]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (f *flush) planRecord(p *plan, r *ledger.Record) error {
	e := &r.Event
	if f.partitionOf(e.User) != f.call.Partition {
		return &permanentError{"foreign_user", fmt.Sprintf("user %d belongs to partition %d, not %d", e.User, f.partitionOf(e.User), f.call.Partition)}
	}
	if e.Redrive {
		p.finished = append(p.finished, redriveKey(e.ID))
		if !f.dead[e.ID] || p.redrives(e.ID) {
			p.skipped = append(p.skipped, r.Offset)
			return nil
		}
		p.redriven = append(p.redriven, redriven{e.ID, r.Offset})
	}
	known := f.keys[e.Key]
	if e.Key != "" {
		if known.state == outboxApplied || p.used[e.Key] {
			p.skipped = append(p.skipped, r.Offset)
			return nil
		}
		p.used[e.Key] = true
		if known.state == "" {
			p.missing = append(p.missing, e)
		} else {
			p.flip = append(p.flip, e.Key)
		}
	}
	p.applied++
	return p.addDeltas(e, known.amount)
}

// redrives reports whether the stretch already applies a re-drive of an event.
func (p *plan) redrives(id ledger.ID) bool {
	return slices.ContainsFunc(p.redriven, func(r redriven) bool { return r.event == id })
}

// addDeltas adds what e does to its accounts. noted is the amount that its outbox row added to pending_adopt.
func (p *plan) addDeltas(e *ledger.Event, noted int64) error {
	p.scratch = e.Deltas(p.scratch[:0])
	adopts := e.Kind == ledger.KindCreditAdopted || e.Kind == ledger.KindAccountOpened
	for _, d := range p.scratch {
		s := p.at(d.Account, e.User)
		if e.Kind.IsUsage() {
			s.usedAt = max(s.usedAt, e.Time)
		}
		ok := addBalance(&s.balance, d.Balance)
		if e.Kind == ledger.KindAccountOpened {
			ok = ok && addBalance(&s.opened, d.Balance)
		}
		if adopts {
			// The row's transaction moved the column's difference into pending_adopt and written; the event takes it from
			// there into the balance. What the row did not note (it is missing, or of another amount) joins written, so that
			// the next look at the column, below, finds what really is still to be adopted.
			left, ok1 := sub(d.Balance.Granted, d.Balance.Charged)
			rest, ok2 := sub(left, noted)
			ok = ok && ok1 && ok2 && addTo(&s.adopted, noted) && addTo(&s.known, rest)
		} else {
			ok = ok && addTo(&s.charged, d.Balance.Charged) && addTo(&s.requests, d.Balance.Requests)
		}
		if !ok {
			return &permanentError{"overflow", fmt.Sprintf("the changes of %s leave 64 bits", d.Account)}
		}
	}
	return nil
}

func addBalance(to *ledger.Balance, b ledger.Balance) bool {
	return addTo(&to.Granted, b.Granted) && addTo(&to.Charged, b.Charged) && addTo(&to.Requests, b.Requests)
}

func addTo(to *int64, n int64) bool {
	var ok bool
	*to, ok = add(*to, n)
	return ok
}

// ids returns the accounts of the plan, ascending.
func (p *plan) ids() ids {
	var out ids
	for i, list := range []*[]int64{&out.users, &out.tokens, &out.channels} {
		*list = make([]int64, 0, len(p.index[i]))
		for id := range p.index[i] {
			*list = append(*list, id)
		}
		slices.Sort(*list)
	}
	return out
}
