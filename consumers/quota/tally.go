package quota

import "ledgerline/ledger"

// tally adds up what records do to users and tokens.
type tally struct {
	skip          map[int64]bool // offsets that the database did not apply
	epoch         uint64
	users, tokens map[int64]*ledger.Sum
	deltas        []ledger.Delta
}

func newTally(skipped []int64, epoch uint64) *tally {
	t := &tally{epoch: epoch, users: map[int64]*ledger.Sum{}, tokens: map[int64]*ledger.Sum{}}
	if len(skipped) > 0 {
		t.skip = make(map[int64]bool, len(skipped))
	}
	for _, o := range skipped {
		t.skip[o] = true
	}
	return t
}

// clear forgets the sums.
func (t *tally) clear() {
	clear(t.users)
	clear(t.tokens)
}

// add takes those of the records that lie in a range. Settled is the part of a charge that the hold's own epoch has counted in
// advance (DESIGN 7): events of other epochs never touch it.
func (t *tally) add(records []ledger.Record, r span) {
	for i := range records {
		rec := &records[i]
		if rec.Offset < r.from || rec.Offset >= r.to || rec.Err != nil || t.skip[rec.Offset] {
			continue
		}
		h := rec.Event.Hold
		settles := h != nil && h.Epoch == t.epoch
		t.deltas = rec.Event.Deltas(t.deltas[:0])
		for _, d := range t.deltas {
			switch d.Account.Kind {
			case ledger.UserAccount:
				plus(t.users, &d, settles)
			case ledger.TokenAccount:
				plus(t.tokens, &d, settles && h.Token)
			case ledger.ChannelAccount: // has no counters
			}
		}
	}
}

func plus(sums map[int64]*ledger.Sum, d *ledger.Delta, settles bool) {
	sum := sums[d.Account.ID]
	if sum == nil {
		sum = &ledger.Sum{Account: d.Account}
		sums[d.Account.ID] = sum
	}
	sum.Granted += d.Balance.Granted
	sum.Charged += d.Balance.Charged
	if settles {
		sum.Settled += d.Balance.Charged
	}
}

func (t *tally) sums() []ledger.Sum {
	out := make([]ledger.Sum, 0, len(t.users)+len(t.tokens))
	for _, by := range []map[int64]*ledger.Sum{t.users, t.tokens} {
		for _, v := range by {
			out = append(out, *v)
		}
	}
	return out
}
