package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// errRefused is a permanent error: the record is dead-lettered.
var errRefused = errors.New("refused")

// flush is one call of bank.Flush in work; its rules are those of sqlstore's plan and apply.
type flush struct {
	b      *bank
	call   sqlstore.FlushCall
	result sqlstore.FlushResult
	keys   map[string]outboxRow // what the batch's keys are, as this transaction leaves them; state "" if there is no row
	dead   map[ledger.ID]bool   // dead letters that a re-drive may still apply
}

// Flush is sqlstore.Store.Flush.
func (b *bank) Flush(call sqlstore.FlushCall) (sqlstore.FlushResult, error) {
	p := &b.parts[call.Partition]
	if p.Offset != call.From {
		return sqlstore.FlushResult{}, fmt.Errorf("%w: it is %d", sqlstore.ErrFenced, p.Offset)
	}
	if call.To == call.From {
		return sqlstore.FlushResult{}, nil
	}
	f := &flush{b: b, call: call, keys: map[string]outboxRow{}, dead: map[ledger.ID]bool{}}
	places := f.sift()
	f.load(places)
	for i := range call.Records {
		if call.Records[i].Err != nil {
			f.bury(i)
		}
	}
	if len(places) > 0 {
		f.settle(places)
	}
	slices.Sort(f.result.Skipped)
	p.Offset, p.LastFrom, p.LastTo, p.Skipped = call.To, call.From, call.To, slices.Clone(f.result.Skipped)
	for i := len(call.Records) - 1; i >= 0; i-- {
		if r := &call.Records[i]; !r.Event.ID.IsZero() {
			p.LastOffset, p.LastEvent = r.Offset, r.Event.ID
			break
		}
	}
	return f.result, nil
}

// sift decides which records are new, by the watermarks.
func (f *flush) sift() (places []int) {
	for i := range f.call.Records {
		r := &f.call.Records[i]
		if r.Err != nil {
			continue
		}
		of := markOf{f.call.Partition, r.Event.Producer}
		mark := f.b.marks[of]
		if mark == nil {
			mark = &ledger.Watermark{}
			f.b.marks[of] = mark
		}
		before := mark.Mark
		switch mark.See(r.Event.Seq, r.Event.Prev) {
		case ledger.SightDuplicate:
			f.result.Duplicates++
			f.result.Skipped = append(f.result.Skipped, r.Offset)
			continue
		case ledger.SightAfterHole:
			f.result.Holes = append(f.result.Holes, sqlstore.HoleFound{
				Producer: r.Event.Producer, Hole: ledger.Hole{After: before, Through: r.Event.Prev}, Offset: r.Offset,
			})
		case ledger.SightFillsHole:
			f.result.Filled++
		case ledger.SightNew:
		}
		places = append(places, i)
	}
	return places
}

func (f *flush) load(places []int) {
	for _, at := range places {
		e := &f.call.Records[at].Event
		if r := f.b.outbox[e.Key]; e.Key != "" && r != nil {
			f.keys[e.Key] = *r
		}
		if e.Redrive {
			f.dead[e.ID] = slices.ContainsFunc(f.b.dead, func(d sqlstore.DeadLetter) bool { return d.Event == e.ID && !d.Redriven })
		}
	}
}

// settle applies records, or halves them until the one that can never be applied is found.
func (f *flush) settle(places []int) {
	p, err := f.plan(places)
	switch {
	case err == nil:
		f.apply(p)
	case len(places) == 1:
		f.bury(places[0])
	default:
		half := len(places) / 2
		f.settle(places[:half])
		f.settle(places[half:])
	}
}

// plan is what a stretch of records does.
type plan struct {
	order    []place
	sums     map[place]*sum
	used     map[string]bool
	flip     []string
	missing  []*ledger.Event
	redriven []int // places in the batch
	finished []string
	skipped  []int64
	applied  int
}

type sum struct {
	owner          int64
	balance        ledger.Balance
	adopted, known int64
}

func (f *flush) plan(places []int) (*plan, error) {
	p := &plan{sums: map[place]*sum{}, used: map[string]bool{}}
	for _, at := range places {
		if err := f.planRecord(p, at); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (f *flush) planRecord(p *plan, at int) error {
	r := &f.call.Records[at]
	e := &r.Event
	if ledger.Partition(e.User, f.b.partitions) != f.call.Partition || f.b.refuse(e) {
		return errRefused
	}
	if e.Redrive {
		p.finished = append(p.finished, "redrive:"+e.ID.String())
		again := slices.ContainsFunc(p.redriven, func(i int) bool { return f.call.Records[i].Event.ID == e.ID })
		if !f.dead[e.ID] || again {
			p.skipped = append(p.skipped, r.Offset)
			return nil
		}
		p.redriven = append(p.redriven, at)
	}
	known := f.keys[e.Key]
	if e.Key != "" {
		if known.state == "applied" || p.used[e.Key] {
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
	f.addDeltas(p, e, known.amount)
	return nil
}

// addDeltas adds what e does to its accounts. noted is the amount that its outbox row added to pending_adopt.
func (f *flush) addDeltas(p *plan, e *ledger.Event, noted int64) {
	for _, d := range e.Deltas(nil) {
		at := f.b.placeOf(d.Account, f.call.Partition)
		s := p.sums[at]
		if s == nil {
			s = &sum{owner: e.User}
			p.sums[at] = s
			p.order = append(p.order, at)
		}
		s.balance = s.balance.Plus(d.Balance)
		if e.Kind == ledger.KindCreditAdopted || e.Kind == ledger.KindAccountOpened {
			// The row's transaction moved the difference into pending_adopt and written; what it did not note joins written, so that
			// the next look at the column finds what really is still to be adopted (DESIGN 9).
			s.adopted += noted
			s.known += d.Balance.Left() - noted
		}
	}
}

// apply writes a plan.
func (f *flush) apply(p *plan) {
	b := f.b
	for _, key := range slices.Concat(p.flip, p.finished) {
		if r := b.outbox[key]; r != nil {
			r.state = "applied"
		}
	}
	for _, e := range p.missing {
		b.insert(e.Key, *e, 0, "applied", f.call.Now)
		f.result.Restored = append(f.result.Restored, e.Key)
		f.redo(e)
	}
	for _, at := range p.redriven {
		r := &f.call.Records[at]
		for i := range b.dead {
			if d := &b.dead[i]; d.Event == r.Event.ID && !d.Redriven {
				d.Redriven, d.RedrivePartition, d.RedriveOffset = true, r.Partition, r.Offset
			}
		}
		delete(f.dead, r.Event.ID)
	}
	for _, at := range p.order {
		s := p.sums[at]
		acc := b.accounts[at]
		if acc == nil {
			acc = &account{part: f.call.Partition}
			b.accounts[at] = acc
		}
		acc.pending -= s.adopted
		acc.written += s.known
		owner := s.owner
		if r := b.rows[at.Account]; r != nil && r.owner != 0 {
			owner = r.owner
		}
		if b.adopt(at.Account, acc, owner, f.call.Now) {
			f.result.Adopted++
		}
		acc.balance = acc.balance.Plus(s.balance)
		b.write(at.Account, acc)
	}
	for key := range p.used {
		f.keys[key] = outboxRow{state: "applied"}
	}
	f.result.Applied += p.applied
	f.result.Accounts += len(p.order)
	f.result.Skipped = append(f.result.Skipped, p.skipped...)
}

// redo brings the business row after its credit, when the database lost the transaction that wrote both.
func (f *flush) redo(e *ledger.Event) {
	kind, rest, _ := strings.Cut(e.Key, ":")
	name, _, _ := strings.Cut(rest, ":")
	if kind != "redeem" {
		return
	}
	c := f.b.codes[name]
	if c != nil && (c.usedBy == 0 || c.usedBy == e.User) {
		c.usedBy = e.User
		return
	}
	f.result.Alarms = append(f.result.Alarms, e.Key+": the credit is in the log, but its row is missing or taken by somebody else")
}

// bury puts a record into the dead-letter store.
func (f *flush) bury(at int) {
	r := &f.call.Records[at]
	f.result.Skipped = append(f.result.Skipped, r.Offset)
	if r.Err == nil && r.Event.Redrive {
		f.result.Alarms = append(f.result.Alarms, "the re-drive of "+r.Event.ID.String()+" failed")
		delete(f.b.outbox, "redrive:"+r.Event.ID.String())
		return
	}
	d := sqlstore.DeadLetter{
		Partition: r.Partition, Offset: r.Offset, Event: r.Event.ID, User: r.Event.User, Kind: r.Event.Kind, Value: r.Value,
		RedrivePartition: -1, RedriveOffset: -1, At: f.call.Now,
	}
	f.b.dead = append(slices.DeleteFunc(f.b.dead, func(o sqlstore.DeadLetter) bool {
		return o.Partition == d.Partition && o.Offset == d.Offset
	}), d)
	f.result.Dead = append(f.result.Dead, d)
	if r.Err != nil {
		return
	}
	f.dead[r.Event.ID] = true
	if k := f.keys[r.Event.Key]; r.Event.Key != "" && k.state != "" && k.state != "applied" {
		k.state = "dead"
		f.keys[r.Event.Key] = k
		f.b.outbox[r.Event.Key].state = "dead"
	}
}
