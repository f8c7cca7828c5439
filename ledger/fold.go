package ledger

// Fold is the state that a stretch of the log adds up to: balances, and what is needed to count each event once.
// It is the reference that MySQL, Redis and the usage log are held against (L4): replay and verify run it.
type Fold struct {
	Balances map[Account]Balance
	marks    map[producerPlace]*Watermark
	keys     map[string]bool
	dead     func(partition int, offset int64) DeadState
	scratch  []Delta
}

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
	return &Fold{
		Balances: map[Account]Balance{},
		marks:    map[producerPlace]*Watermark{},
		keys:     map[string]bool{},
		dead:     dead,
	}
}

// Resume adds what a snapshot of one partition holds, so that the fold goes on from the snapshot's offset as if it had read
// everything below.
func (f *Fold) Resume(partition int, balances map[Account]Balance, marks map[ID]Watermark, keys []string) {
	for account, b := range balances {
		f.Balances[account] = f.Balances[account].Plus(b)
	}
	for producer, mark := range marks {
		mark.Holes = append([]Hole(nil), mark.Holes...)
		f.marks[producerPlace{partition, producer}] = &mark
	}
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
	place := producerPlace{r.Partition, r.Event.Producer}
	mark := f.marks[place]
	if mark == nil {
		mark = &Watermark{}
		f.marks[place] = mark
	}
	if mark.See(r.Event.Seq, r.Event.Prev) == SightDuplicate {
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
		f.keys[r.Event.Key] = true
	}
	f.scratch = r.Event.Deltas(f.scratch[:0])
	for _, d := range f.scratch {
		f.Balances[d.Account] = f.Balances[d.Account].Plus(d.Balance)
	}
	return true
}

// SetDead replaces the dead-letter store's answers, for a fold that goes on after more was dead-lettered.
func (f *Fold) SetDead(dead func(partition int, offset int64) DeadState) { f.dead = dead }
