package hold

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"

	"ledgerline/ledger"
)

// Holds implements [Membership].
func (l *Local) Holds(_ context.Context, partition int, inc ledger.ID) ([]ledger.OpenHold, error) {
	if err := checkPartition(partition); err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	p, _ := l.enter(partition)
	defer p.mu.Unlock()
	return p.list(inc), nil
}

func (c *counters) list(inc ledger.ID) []ledger.OpenHold {
	var list []ledger.OpenHold
	for id, h := range c.holds[inc] {
		list = append(list, ledger.OpenHold{Hold: id, Incarnation: inc, User: h.user, Token: h.token, Amount: h.amount})
	}
	sortHolds(list)
	return list
}

func sortHolds(holds []ledger.OpenHold) {
	slices.SortFunc(holds, func(a, b ledger.OpenHold) int { return compareIDs(a.Hold, b.Hold) })
}

func (c *counters) hot(a ledger.Account) ledger.HotAccount {
	acc := c.peek(a)
	return acc.hot(a, c.doneOrNone())
}

func (c *counters) doneOrNone() int64 {
	if c.epoch == 0 {
		return -1
	}
	return c.done
}

func (a account) hot(name ledger.Account, done int64) ledger.HotAccount {
	h := ledger.HotAccount{
		Account: name, Loaded: a.at >= 0, Granted: a.granted, Charged: a.charged, Settled: a.settled,
		Held: a.held, OpenHolds: a.open, Done: done,
	}
	if h.Loaded {
		h.At = a.at
	}
	return h
}

// Accounts implements [Inspection].
func (l *Local) Accounts(_ context.Context, partition int, accounts []ledger.Account) ([]ledger.HotAccount, error) {
	if err := checkPartition(partition); err != nil {
		return nil, fmt.Errorf("read hot accounts: %w", err)
	}
	p, _ := l.enter(partition)
	defer p.mu.Unlock()
	list := make([]ledger.HotAccount, len(accounts))
	for i, a := range accounts {
		list[i] = p.hot(a)
	}
	return list, nil
}

// All implements [Inspection]. Accounts come in the order of their names, holds in that of incarnation and id, all of one
// instant.
func (l *Local) All(_ context.Context, partition int, visit func(ledger.HotAccount) error, hold func(ledger.OpenHold) error) error {
	if err := checkPartition(partition); err != nil {
		return fmt.Errorf("read hot accounts: %w", err)
	}
	p, _ := l.enter(partition)
	names := slices.SortedFunc(maps.Keys(p.accounts), func(a, b ledger.Account) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	accounts := make([]ledger.HotAccount, len(names))
	for i, a := range names {
		accounts[i] = p.hot(a)
	}
	var holds []ledger.OpenHold
	for _, inc := range slices.SortedFunc(maps.Keys(p.holds), compareIDs) {
		holds = append(holds, p.list(inc)...)
	}
	p.mu.Unlock()
	for _, a := range accounts {
		if err := visit(a); err != nil {
			return err
		}
	}
	for _, h := range holds {
		if err := hold(h); err != nil {
			return err
		}
	}
	return nil
}

// Check implements [Inspection]; nothing can be wrong with the process's own memory.
func (l *Local) Check(context.Context) error { return nil }

// Notify implements [News]: it calls every watcher in the caller's goroutine.
func (l *Local) Notify(_ context.Context, payload []byte) error {
	l.mu.Lock()
	watchers := slices.Collect(maps.Keys(l.watch))
	l.mu.Unlock()
	for _, fn := range watchers {
		(*fn)(payload)
	}
	return nil
}

// Watch implements [News].
func (l *Local) Watch(ctx context.Context, fn func(payload []byte)) error {
	l.mu.Lock()
	l.watch[&fn] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.watch, &fn)
		l.mu.Unlock()
	}()
	fn(nil)
	<-ctx.Done()
	return ctx.Err()
}

// Flush loses everything at once, as FLUSHALL does. It is for simulations and tests.
func (l *Local) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts = map[int]*localPartition{}
}

// Image is a copy of the counters, as a lagging replica or an old file on disk has it.
type Image struct {
	parts map[int]counters
}

// Save copies the counters.
func (l *Local) Save() Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	image := Image{map[int]counters{}}
	for n, p := range l.parts {
		p.mu.Lock()
		image.parts[n] = p.copy()
		p.mu.Unlock()
	}
	return image
}

// Promote makes another server of l, with the contents of an image: a replica that lagged, or a restart with old data. All
// epochs in it are foreign from now on. It is for simulations and tests.
func (l *Local) Promote(image Image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.run = rand.Text()
	l.parts = map[int]*localPartition{}
	for n, c := range image.parts {
		l.parts[n] = &localPartition{counters: c.copy()}
	}
}

func (c *counters) copy() counters {
	d := *c
	d.incarnations = maps.Clone(c.incarnations)
	if c.epoch == 0 {
		return d
	}
	d.accounts, d.holds = map[ledger.Account]*account{}, map[ledger.ID]map[ledger.ID]*openHold{}
	for name, a := range c.accounts {
		d.accounts[name] = new(*a)
	}
	for inc, holds := range c.holds {
		d.holds[inc] = map[ledger.ID]*openHold{}
		for id, h := range holds {
			d.holds[inc][id] = new(*h)
		}
	}
	return d
}
