package sim

import (
	"context"
	"fmt"
	"io"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/desk"
)

// Lock is not a step: it is free or not, at once.
func (f filesOf) Lock(name string) (io.Closer, error) {
	if f.p.dead.Load() {
		return nil, errKilled
	}
	return f.fs.Lock(name)
}

// countersOf is the hot counters as one process calls them.
type countersOf struct{ p *proc }

// countersTimeout is go-redis's.
const countersTimeout = 3 * time.Second

func (c countersOf) do(ctx context.Context, name string, exec func() error) error {
	ctx, cancel := context.WithTimeout(ctx, countersTimeout)
	defer cancel()
	return c.p.do(ctx, toCounters, name, exec)
}

func (c countersOf) Reserve(ctx context.Context, call ledger.ReserveCall) (r ledger.ReserveReply, err error) {
	err = c.do(ctx, "reserve "+call.Hold.String(), func() (err error) {
		r, err = c.p.w.hot.Reserve(ctx, call)
		c.p.w.tell("%s: reserve %s for user %d, token %d, %d to %d: %s", c.p.name, short(call.Hold), call.User, call.Token, call.Min, call.Want, outcome(&r))
		return err
	})
	return r, err
}

func (c countersOf) Extend(ctx context.Context, call ledger.ExtendCall) (r ledger.ReserveReply, err error) {
	err = c.do(ctx, "extend "+call.Hold.String(), func() (err error) {
		r, err = c.p.w.hot.Extend(ctx, call)
		c.p.w.tell("%s: extend %s to %d: %s", c.p.name, short(call.Hold), call.To, outcome(&r))
		return err
	})
	return r, err
}

func outcome(r *ledger.ReserveReply) string {
	switch r.Outcome {
	case ledger.OutcomeGranted:
		return fmt.Sprintf("%d held", r.Amount)
	case ledger.OutcomeRefused:
		return fmt.Sprintf("refused, %s has %d", r.Account, r.Left)
	case ledger.OutcomeBusy:
		return fmt.Sprintf("busy, %s has %d", r.Account, r.Left)
	case ledger.OutcomeNeedLoad:
		return "not loaded"
	case ledger.OutcomeRebuilding:
		return "rebuilding"
	default:
		return "gone"
	}
}

func (c countersOf) Release(ctx context.Context, calls []ledger.ReleaseCall) error {
	return c.do(ctx, "release "+calls[0].Hold.String(), func() error {
		if c.p.w.telling {
			for i := range calls {
				c.p.w.tell("%s: release %s of epoch %d at %d", c.p.name, short(calls[i].Hold), calls[i].Epoch, calls[i].Charge)
			}
		}
		return c.p.w.hot.Release(ctx, calls)
	})
}

func (c countersOf) Load(ctx context.Context, call ledger.LoadCall) error {
	return c.do(ctx, fmt.Sprintf("load %d/%d", call.Partition, call.Offset), func() error {
		c.p.w.tell("%s: load into epoch %d at %d: %v", c.p.name, call.Epoch, call.Offset, call.Balances)
		return c.p.w.hot.Load(ctx, call)
	})
}

func (c countersOf) State(ctx context.Context, partitions ...int) (st []ledger.Counters, err error) {
	err = c.do(ctx, fmt.Sprint("state ", partitions[0]), func() (err error) { st, err = c.p.w.hot.State(ctx, partitions...); return err })
	return st, err
}

// Reassert is called under a mutex of the desk.
func (c countersOf) Reassert(ctx context.Context, n int, epoch uint64, inc ledger.ID, holds []ledger.OpenHold) (ok bool, err error) {
	err = c.p.atOnce(toCounters, func() (err error) {
		ok, err = c.p.w.hot.Reassert(ctx, n, epoch, inc, holds)
		return err
	})
	return ok, err
}

func (c countersOf) Report(ctx context.Context, n int, epoch uint64, incarnations ...ledger.ID) error {
	return c.do(ctx, fmt.Sprintf("report %d", n), func() error {
		c.p.w.tell("%s: report %d incarnations to epoch %d", c.p.name, len(incarnations), epoch)
		return c.p.w.hot.Report(ctx, n, epoch, incarnations...)
	})
}

func (c countersOf) Drop(ctx context.Context, n int, inc ledger.ID) error {
	return c.do(ctx, fmt.Sprintf("drop %d/%s", n, inc), func() error {
		c.p.w.tell("%s: drop %s", c.p.name, short(inc))
		return c.p.w.hot.Drop(ctx, n, inc)
	})
}

func (c countersOf) Holds(ctx context.Context, n int, inc ledger.ID) (list []ledger.OpenHold, err error) {
	err = c.do(ctx, fmt.Sprintf("holds %d", n), func() (err error) { list, err = c.p.w.hot.Holds(ctx, n, inc); return err })
	return list, err
}

func (c countersOf) Begin(ctx context.Context, call ledger.BeginCall) (ok bool, err error) {
	err = c.do(ctx, fmt.Sprintf("begin %d/%d", call.Partition, call.Epoch), func() (err error) {
		ok, err = c.p.w.hot.Begin(ctx, call)
		if ok {
			c.p.w.counts.Epochs++
		}
		c.p.w.tell("%s: begin epoch %d at %d, after %d: %v", c.p.name, call.Epoch, call.Offset, call.Opened, ok)
		return err
	})
	return ok, err
}

func (c countersOf) OpenEpoch(ctx context.Context, n int, epoch uint64, floor int64) (ok bool, err error) {
	err = c.do(ctx, fmt.Sprintf("open %d/%d", n, epoch), func() (err error) {
		ok, err = c.p.w.hot.OpenEpoch(ctx, n, epoch, floor)
		if ok {
			c.p.w.opened = append(c.p.w.opened, c.p.w.stored[n])
		}
		c.p.w.tell("%s: open epoch %d at %d: %v", c.p.name, epoch, floor, ok)
		return err
	})
	return ok, err
}

func (c countersOf) Apply(ctx context.Context, call ledger.ApplyCall) (r ledger.ApplyReply, err error) {
	err = c.do(ctx, fmt.Sprintf("apply %d/%d", call.Partition, call.From), func() (err error) {
		r, err = c.p.w.hot.Apply(ctx, call)
		c.p.w.tell("%s: apply [%d,%d) of epoch %d: %+v", c.p.name, call.From, call.To, call.Epoch, r)
		return err
	})
	return r, err
}

// bankOf is the database as one process calls it, by the clock of its machine.
type bankOf struct {
	p   *proc
	who string // of the process's parts
}

func (b bankOf) do(ctx context.Context, name string, exec func() error) error {
	return b.p.do(ctx, toBank, b.who+name, exec)
}

func (b bankOf) Partition(ctx context.Context, n int) (st sqlstore.PartitionState, err error) {
	err = b.do(ctx, fmt.Sprintf("partition %d", n), func() (err error) { st, err = b.p.w.bank.Partition(n); return err })
	return st, err
}

func (b bankOf) Flush(ctx context.Context, call sqlstore.FlushCall) (r sqlstore.FlushResult, err error) {
	err = b.do(ctx, fmt.Sprintf("flush %d/%d", call.Partition, call.From), func() (err error) {
		call.Now = b.p.now()
		r, err = b.p.w.bank.Flush(call)
		b.p.w.counts.Duplicates += r.Duplicates
		for _, h := range r.Holes {
			if b.p.w.rotten[h.Producer] {
				continue
			}
			b.p.w.violation("events of %s are missing, or out of order, before %d/%d (L5)", short(h.Producer), call.Partition, h.Offset)
		}
		b.p.w.tell("%s: flush [%d,%d): skipped %v, %v", b.p.name, call.From, call.To, r.Skipped, err)
		return err
	})
	return r, err
}

func (b bankOf) AllocateEpoch(ctx context.Context, n int, atLeast uint64) (call ledger.BeginCall, err error) {
	err = b.do(ctx, fmt.Sprintf("allocate %d", n), func() error {
		call = b.p.w.bank.AllocateEpoch(n, atLeast, b.p.now())
		return nil
	})
	return call, err
}

func (b bankOf) StoreEpoch(ctx context.Context, r ledger.EpochRecord) (stored bool, err error) {
	err = b.do(ctx, fmt.Sprintf("store epoch %d", r.Partition), func() error {
		stored = b.p.w.bank.StoreEpoch(r)
		if old := b.p.w.stored[r.Partition]; stored && (r.Epoch > old.Epoch || r.Epoch == old.Epoch && r.End >= old.End) {
			b.p.w.stored[r.Partition] = r
		}
		return nil
	})
	return stored, err
}

// Producers is called under a mutex that the partitions of one process share.
func (b bankOf) Producers(ctx context.Context) (list []sqlstore.Producer, err error) {
	read := func() error { list = b.p.w.bank.Producers(); return nil }
	if b.p.w.cfg.partitions > 1 {
		err = b.p.atOnce(toBank, read)
	} else {
		err = b.do(ctx, "producers", read)
	}
	return list, err
}

func (b bankOf) GiveUp(ctx context.Context, id ledger.ID, beat uint64) (gone bool, err error) {
	err = b.do(ctx, "give up "+id.String(), func() error {
		gone = b.p.w.bank.GiveUp(id, beat, b.p.now())
		if gone {
			b.p.w.counts.GivenUp++
			b.p.w.tell("%s: %s is given up", b.p.name, short(id))
		}
		return nil
	})
	return gone, err
}

// PruneProducers implements quota.Registry. Nobody has been closed for a week.
func (b bankOf) PruneProducers(context.Context, time.Time) (int, error) { return 0, nil }

func (b bankOf) Balances(ctx context.Context, n int, accounts []ledger.Account) (offset int64, list map[ledger.Account]ledger.Balance, err error) {
	err = b.do(ctx, fmt.Sprintf("balances %d/%v", n, accounts), func() (err error) {
		offset, list, err = b.p.w.bank.Balances(n, accounts)
		return err
	})
	return offset, list, err
}

func (b bankOf) RegisterProducer(ctx context.Context, id ledger.ID, node string) error {
	return b.do(ctx, "register", func() error {
		b.p.w.tell("%s: register %s", b.p.name, short(id))
		err := b.p.w.bank.RegisterProducer(id, node, b.p.now())
		if err == nil {
			b.p.w.bank.producer(id).Diskless = b.p.diskless
		}
		return err
	})
}

func (b bankOf) Heartbeat(ctx context.Context, ids []ledger.ID) (gone []ledger.ID, err error) {
	err = b.do(ctx, "beat", func() error { gone = b.p.w.bank.Heartbeat(ids, b.p.now()); return nil })
	return gone, err
}

func (b bankOf) CloseProducer(ctx context.Context, id ledger.ID) error {
	return b.do(ctx, "close "+id.String(), func() error {
		b.p.w.tell("%s: close %s", b.p.name, short(id))
		return b.p.w.bank.CloseProducer(id, b.p.now())
	})
}

// outboxOf is the outbox as one process moves it.
type outboxOf struct{ p *proc }

func (o outboxOf) PendingOutbox(ctx context.Context, limit int) (rows []desk.OutboxRow, err error) {
	err = o.p.do(ctx, toBank, "outbox", func() error {
		for _, r := range o.p.w.bank.OutboxPending(limit, o.p.now()) {
			rows = append(rows, desk.OutboxRow{Key: r.Key, Event: r.Event})
			o.p.w.tell("%s: moves %s", o.p.name, r.Key)
		}
		return nil
	})
	return rows, err
}

func (o outboxOf) MovedOutbox(ctx context.Context, keys []string) error {
	return o.p.do(ctx, toBank, "moved", func() error { o.p.w.bank.OutboxMoved(keys, o.p.now()); return nil })
}
