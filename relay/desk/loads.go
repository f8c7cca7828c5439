package desk

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"ledgerline/ledger"
)

// maxLoad bounds the accounts of one load (L7): the database answers for twice as many at once.
const maxLoad = 1000

// loads puts concurrent loads together: while one of a partition is under way, what others need gathers for the next. So a thousand
// requests of one user after a rebuild are one query, and those of a thousand users a few.
type loads struct {
	now func(ctx context.Context, p int, epoch uint64, accounts []ledger.Account) error

	mu sync.Mutex
	by map[loadKey]*gathering // guarded by mu; those with a load under way
}

type loadKey struct {
	partition int
	epoch     uint64
}

type gathering struct {
	current *load   // under way
	next    []*load // at most as many as requests wait
}

type load struct {
	accounts []ledger.Account
	done     chan struct{} // closed when err is set
	err      error
}

// load returns when the accounts, of a request that waits, were installed in the counters or could not be, or ctx has ended.
func (l *loads) load(ctx context.Context, key loadKey, missing []ledger.Account) error {
	if len(missing) == 0 {
		return nil
	}
	l.mu.Lock()
	g := l.by[key]
	if g == nil {
		g = &gathering{}
		l.by[key] = g
		// It serves everybody who waits, so it does not die with the client that began it.
		go l.run(context.WithoutCancel(ctx), key, g)
	}
	mine := g.with(missing)
	l.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// with returns the load that has the accounts: one that does already, or the last that has room for them.
func (g *gathering) with(accounts []ledger.Account) *load {
	if g.current.has(accounts) {
		return g.current
	}
	for _, one := range g.next {
		if one.has(accounts) {
			return one
		}
	}
	if n := len(g.next); n == 0 || len(g.next[n-1].accounts)+len(accounts) > maxLoad {
		g.next = append(g.next, &load{done: make(chan struct{})})
	}
	one := g.next[len(g.next)-1]
	for _, a := range accounts {
		if !slices.Contains(one.accounts, a) {
			one.accounts = append(one.accounts, a)
		}
	}
	return one
}

func (l *load) has(accounts []ledger.Account) bool {
	return l != nil && !slices.ContainsFunc(accounts, func(a ledger.Account) bool { return !slices.Contains(l.accounts, a) })
}

// run loads until nothing has gathered.
func (l *loads) run(ctx context.Context, key loadKey, g *gathering) {
	for {
		l.mu.Lock()
		if g.current = nil; len(g.next) == 0 {
			delete(l.by, key)
			l.mu.Unlock()
			return
		}
		one := g.next[0]
		g.current, g.next = one, g.next[1:]
		l.mu.Unlock()
		one.err = l.now(ctx, key.partition, key.epoch, one.accounts)
		close(one.done)
	}
}

func (d *Desk) loadNow(ctx context.Context, p int, epoch uint64, missing []ledger.Account) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	offset, balances, err := d.cfg.Bank.Balances(ctx, p, missing)
	if err != nil {
		return fmt.Errorf("load balances: %w", err)
	}
	err = d.cfg.Counters.Load(ctx, ledger.LoadCall{Partition: p, Epoch: epoch, Offset: offset, Balances: balances})
	if err != nil {
		return fmt.Errorf("install balances: %w", err)
	}
	return nil
}
