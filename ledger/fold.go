package ledger

import "strings"

// Fold is the state that a stretch of the log adds up to: balances, and what is needed to count each event once.
// It is the reference that MySQL, Redis and the usage log are held against (L4): replay and verify run it.
type Fold struct {
	cells   [len(accountKinds)]map[int64]*Balance // by kind and id
	block   []Balance                             // where new cells are taken from
	marks   map[producerPlace]*Watermark
	last    *Watermark // of lastAt: a producer sends many at once
	lastAt  producerPlace
	keys    map[string]bool
	dead    func(partition int, offset int64) DeadState
	scratch []Delta
}

// foldBlock is how many balances are allocated at once.
const foldBlock = 256

// DeadState says what the dead-letter store knows of one offset.
type DeadState int

// The states of an offset with regard to the dead-letter store.
const (
	DeadNone     DeadState = iota // no dead letter
	DeadOriginal                  // the record was dead-lettered: it counts only through its re-drive
	DeadRedriven                  // the record is the re-drive that was applied
)

type producerPlace struct {
	partition int
	producer  ID
}

// NewFold returns an empty fold. dead answers for the dead-letter store; nil means that there never was one.
func NewFold(dead func(partition int, offset int64) DeadState) *Fold {
	if dead == nil {
		dead = func(int, int64) DeadState { return DeadNone }
	}
	f := &Fold{marks: map[producerPlace]*Watermark{}, keys: map[string]bool{}, dead: dead}
	for i := range f.cells {
		f.cells[i] = map[int64]*Balance{}
	}
	return f
}

// cell returns where the balance of an account is kept.
func (f *Fold) cell(a Account) *Balance {
	by := f.cells[a.Kind.index()]
	b := by[a.ID]
	if b == nil {
		if len(f.block) == 0 {
			f.block = make([]Balance, foldBlock)
		}
		b, f.block = &f.block[0], f.block[1:]
		by[a.ID] = b
	}
	return b
}

// Balance returns the balance of one account.
func (f *Fold) Balance(a Account) Balance {
	if b := f.cells[a.Kind.index()][a.ID]; b != nil {
		return *b
	}
	return Balance{}
}

// Each calls fn for every account that an event moved, in no order, until it returns false.
func (f *Fold) Each(fn func(Account, Balance) bool) {
	for i, by := range f.cells {
		for id, b := range by {
			if !fn(Account{accountKinds[i], id}, *b) {
				return
			}
		}
	}
}

// Balances returns a copy of all balances.
func (f *Fold) Balances() map[Account]Balance {
	n := 0
	for _, by := range f.cells {
		n += len(by)
	}
	all := make(map[Account]Balance, n)
	f.Each(func(a Account, b Balance) bool { all[a] = b; return true })
	return all
}

// Resume adds what a snapshot of one partition holds, so that the fold goes on from the snapshot's offset as if it had read
// everything below.
func (f *Fold) Resume(partition int, balances map[Account]Balance, marks map[ID]Watermark, keys []string) {
	for account, b := range balances {
		cell := f.cell(account)
		*cell = cell.Plus(b)
	}
	for producer, mark := range marks {
		mark.Holes = append([]Hole(nil), mark.Holes...)
		f.marks[producerPlace{partition, producer}] = &mark
	}
	f.last = nil
	for _, key := range keys {
		f.keys[key] = true
	}
}

// Apply adds one record, in offset order within its partition, and reports whether it counted. A record that could not
// be decoded counts nothing (it is in the dead-letter store).
func (f *Fold) Apply(r *Record) bool {
	if r.Err != nil {
		return false
	}
	if f.mark(producerPlace{r.Partition, r.Event.Producer}).See(r.Event.Seq, r.Event.Prev) == SightDuplicate {
		return false
	}
	switch f.dead(r.Partition, r.Offset) {
	case DeadOriginal:
		return false
	case DeadNone:
		if r.Event.Redrive {
			return false
		}
	case DeadRedriven:
	}
	if r.Event.Key != "" {
		if f.keys[r.Event.Key] {
			return false
		}
		f.keys[strings.Clone(r.Event.Key)] = true // it is a part of the whole record
	}
	f.scratch = r.Event.Deltas(f.scratch[:0])
	for _, d := range f.scratch {
		cell := f.cell(d.Account)
		*cell = cell.Plus(d.Balance)
	}
	return true
}

// mark returns the watermark of a producer.
func (f *Fold) mark(place producerPlace) *Watermark {
	if f.last != nil && f.lastAt == place {
		return f.last
	}
	mark := f.marks[place]
	if mark == nil {
		mark = &Watermark{}
		f.marks[place] = mark
	}
	f.last, f.lastAt = mark, place
	return mark
}

// SetDead replaces the dead-letter store's answers, for a fold that goes on after more was dead-lettered.
func (f *Fold) SetDead(dead func(partition int, offset int64) DeadState) { f.dead = dead }
