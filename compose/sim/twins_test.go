package sim

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/usagelog"
)

// logTwin is the log: partitions of records, with what ledger.Fold says of each prefix beside them. TestLogIsTheLog holds it against the
// embedded broker.
type logTwin struct {
	w          *world
	partitions []*partition
}

// partition is one partition of the log.
type partition struct {
	records []ledger.Record
	states  []ledger.DeadState // what each record is to the dead-letter store, by the log alone
	seen    map[ledger.ID]*ledger.Watermark
	dead    map[ledger.ID]bool // dead letters that wait
	fold    *ledger.Fold
	counted []bool                              // whether each record counts
	after   []map[ledger.Account]ledger.Balance // balances of the accounts that are watched, after each record
	watched map[ledger.Account]ledger.Balance   // after all
	changed chan struct{}
}

func newLogTwin(w *world) *logTwin {
	l := &logTwin{w: w}
	for range w.cfg.partitions {
		p := &partition{
			seen: map[ledger.ID]*ledger.Watermark{}, dead: map[ledger.ID]bool{}, changed: make(chan struct{}),
			watched: map[ledger.Account]ledger.Balance{},
		}
		p.fold = ledger.NewFold(func(_ int, offset int64) ledger.DeadState { return p.states[offset] })
		l.partitions = append(l.partitions, p)
	}
	return l
}

func (p *partition) end() int64 { return int64(len(p.records)) }

// append puts an event at the end.
func (l *logTwin) append(n int, value []byte) *ledger.Record {
	p := l.partitions[n]
	r := ledger.Record{Partition: n, Offset: p.end(), Value: value}
	r.Event, r.Err = ledger.Decode(value)
	p.states = append(p.states, p.state(&r))
	p.records = append(p.records, r)
	counts := p.fold.Apply(&r)
	p.counted = append(p.counted, counts)
	if counts {
		next := make(map[ledger.Account]ledger.Balance, len(p.watched)+1)
		for a, b := range p.watched {
			next[a] = b
		}
		for _, d := range r.Event.Deltas(nil) {
			next[d.Account] = p.fold.Balance(d.Account)
		}
		p.watched = next
	}
	p.after = append(p.after, p.watched)
	close(p.changed)
	p.changed = make(chan struct{})
	return &p.records[r.Offset]
}

// state is what a record is to the dead-letter store: poison is refused until a re-drive finds its dead letter waiting.
func (p *partition) state(r *ledger.Record) ledger.DeadState {
	e := &r.Event
	mark := p.seen[e.Producer]
	if mark == nil {
		mark = &ledger.Watermark{}
		p.seen[e.Producer] = mark
	}
	switch {
	case r.Err != nil || mark.See(e.Seq, e.Prev) == ledger.SightDuplicate:
	case e.Redrive && p.dead[e.ID]:
		delete(p.dead, e.ID)
		return ledger.DeadRedriven
	case refusePoison(e):
		p.dead[e.ID] = true
		return ledger.DeadOriginal
	}
	return ledger.DeadNone
}

// at returns the balance of an account by the first n records.
func (p *partition) at(n int64, a ledger.Account) ledger.Balance {
	if n <= 0 {
		return ledger.Balance{}
	}
	return p.after[n-1][a]
}

func (l *logTwin) fetch(n int, offset int64, most int) (eventlog.Batch, error) {
	p := l.partitions[n]
	if offset < 0 || offset > p.end() {
		return eventlog.Batch{}, eventlog.ErrOutOfRange
	}
	to := min(p.end(), offset+int64(most))
	b := eventlog.Batch{Records: append([]ledger.Record(nil), p.records[offset:to]...), Next: to, End: p.end()}
	for i := range b.Records {
		b.Bytes += len(b.Records[i].Value)
	}
	return b, nil
}

func (l *logTwin) readAt(n int, offset int64) (ledger.Record, error) {
	p := l.partitions[n]
	if offset < 0 || offset >= p.end() {
		return ledger.Record{}, eventlog.ErrOutOfRange
	}
	return p.records[offset], nil
}

// logOf is the log as one process reads and writes it.
type logOf struct {
	p   *proc
	who string // of the process's parts
}

const (
	produceTimeout = 10 * time.Second // the client's
	pollWait       = time.Second
)

// shipTo is what a shipper of one journal writes to.
func (l logOf) append(ctx context.Context, n int, parcels []ledger.Parcel) error {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	// What a late attempt writes is what it was given, whatever became of the lane since.
	values := make([][]byte, len(parcels))
	for i := range parcels {
		values[i] = parcels[i].Value
	}
	w := l.p.w
	return l.p.do(ctx, toLog, l.who+fmt.Sprintf("produce %s/%d", parcels[0].Producer, n), func() error {
		if time.Now().Before(l.p.muted) {
			return errDown
		}
		for _, v := range values {
			w.shipped(w.log.append(n, bytes.Clone(v)))
		}
		w.tell("%s: %d events from %s reach the log at %d/%d", l.p.name, len(values), short(parcels[0].Producer), n, w.log.partitions[n].end()-int64(len(values)))
		return nil
	})
}

// Fetch is eventlog.Client.Fetch.
func (l logOf) Fetch(ctx context.Context, n int, offset int64) (b eventlog.Batch, err error) {
	until := time.Now().Add(pollWait)
	for {
		var changed chan struct{}
		err = l.p.do(ctx, toLog, l.who+fmt.Sprintf("fetch %d/%d", n, offset), func() (err error) {
			changed = l.p.w.log.partitions[n].changed
			b, err = l.p.w.log.fetch(n, offset, 1+l.p.w.rand.IntN(40))
			return err
		})
		wait := time.Until(until)
		if err != nil || len(b.Records) > 0 || wait <= 0 {
			return b, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return b, ctx.Err()
		}
		timer.Stop()
	}
}

// Bounds is eventlog.Client.Bounds.
func (l logOf) Bounds(ctx context.Context, n int) (first, end int64, err error) {
	err = l.p.do(ctx, toLog, l.who+fmt.Sprintf("bounds %d", n), func() error { end = l.p.w.log.partitions[n].end(); return nil })
	return 0, end, err
}

// ReadAt is eventlog.Client.ReadAt.
func (l logOf) ReadAt(ctx context.Context, n int, offset int64) (r ledger.Record, err error) {
	err = l.p.do(ctx, toLog, l.who+fmt.Sprintf("read %d/%d", n, offset), func() (err error) { r, err = l.p.w.log.readAt(n, offset); return err })
	return r, err
}

// holdEnds is what cmd makes of the database's epochs and eventlog.Client.HoldEnds.
func (l logOf) holdEnds(ctx context.Context, n int, oldest uint64, holds map[ledger.ID]bool) (ends []ledger.ReleaseCall, err error) {
	from := int64(0)
	err = l.p.do(ctx, toBank, l.who+fmt.Sprintf("epochs %d", n), func() error {
		for _, e := range l.p.w.bank.epochs {
			if e.Partition == n && e.Epoch < oldest {
				from = max(from, e.End)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, end, err := l.Bounds(ctx, n)
	if err != nil {
		return nil, err
	}
	err = l.Read(ctx, n, min(from, end), end, func(records []ledger.Record) error {
		for i := range records {
			if e := &records[i].Event; records[i].Err == nil && e.Hold != nil && !e.Redrive && holds[e.Hold.ID] {
				ends = append(ends, ledger.ReleaseCall{Hold: e.Hold.ID, Incarnation: e.Producer, Partition: n, Epoch: e.Hold.Epoch, Charge: e.Charged})
			}
		}
		return nil
	})
	return ends, err
}

// Read is eventlog.Client.Read.
func (l logOf) Read(ctx context.Context, n int, from, to int64, fn func([]ledger.Record) error) error {
	for from < to {
		var b eventlog.Batch
		err := l.p.do(ctx, toLog, l.who+fmt.Sprintf("read again %d/%d", n, from), func() (err error) {
			if end := l.p.w.log.partitions[n].end(); to > end {
				return fmt.Errorf("the log ends at %d: %w", end, eventlog.ErrOutOfRange)
			}
			b, err = l.p.w.log.fetch(n, from, min(int(to-from), 1+l.p.w.rand.IntN(20)))
			return err
		})
		if err != nil {
			return err
		}
		if err := fn(b.Records); err != nil {
			return err
		}
		from = b.Next
	}
	return nil
}

// usageTwin is the usage log as usagelog.Writer has it: of rows with one event id the one at the lowest place stays.
type usageTwin struct {
	rows      map[ledger.ID]usagelog.Row
	positions map[int]usagelog.Position
}

func newUsageTwin() *usageTwin {
	return &usageTwin{rows: map[ledger.ID]usagelog.Row{}, positions: map[int]usagelog.Position{}}
}

func (u *usageTwin) position(n int) usagelog.Position {
	if at, ok := u.positions[n]; ok {
		return at
	}
	return usagelog.Position{LastOffset: -1}
}

func (u *usageTwin) put(r *usagelog.Row) {
	if old, ok := u.rows[r.EventID]; !ok || r.Offset < old.Offset {
		u.rows[r.EventID] = *r
	}
}

// move stores a position: the highest ever stored counts.
func (u *usageTwin) move(n int, to usagelog.Position) {
	if to.Offset > u.position(n).Offset || u.position(n).LastOffset < 0 {
		u.positions[n] = to
	}
}

// usageOf is the usage log as one process writes it.
type usageOf struct {
	p *proc
}

// Position implements usagelog.Writer.
func (u usageOf) Position(ctx context.Context, n int) (at usagelog.Position, err error) {
	err = u.p.do(ctx, toUsage, fmt.Sprintf("position %d", n), func() error { at = u.p.w.usage.position(n); return nil })
	return at, err
}

// Append implements usagelog.Writer: rows first, positions last, each a step of its own.
func (u usageOf) Append(ctx context.Context, batches ...usagelog.Batch) error {
	for i := range batches {
		b := &batches[i]
		for len(b.Rows) > 0 {
			part := b.Rows
			err := u.p.do(ctx, toUsage, fmt.Sprintf("insert %d/%d", b.Partition, b.Rows[0].Offset), func() error {
				part = part[:1+u.p.w.rand.IntN(len(part))]
				for i := range part {
					u.p.w.usage.put(&part[i])
				}
				return nil
			})
			if err != nil {
				return err
			}
			b.Rows = b.Rows[len(part):]
		}
	}
	for i := range batches {
		b := &batches[i]
		err := u.p.do(ctx, toUsage, fmt.Sprintf("store position %d/%d", b.Partition, b.Position.Offset), func() error {
			u.p.w.usage.move(b.Partition, b.Position)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AdoptLog implements usagelog.Writer; nobody adopts a log here.
func (u usageOf) AdoptLog(context.Context, int, int64) error { panic("sim: no log is adopted") }
