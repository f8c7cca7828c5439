package hold

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	"ledgerline/ledger"
)

// Local is the counters inside the process, for a single node: each method is what the Redis script of the same name does,
// under the mutex of its partition. It starts no goroutine and reads no clock, so a simulation that calls it is
// deterministic. Its contents end with the process; a new one is empty, which is a loss like any other.
type Local struct {
	mu    sync.Mutex // guards what follows; taken before a partition's mutex, never after
	run   string
	parts map[int]*localPartition
	watch map[*func([]byte)]struct{}
}

// localPartition is the state of model/holds.py's class Redis.
type localPartition struct {
	mu sync.Mutex
	counters
}

type counters struct {
	epoch        uint64 // 0: missing
	open         bool
	opened       uint64 // the newest epoch that was opened before this one
	run          string // the server that the epoch began on
	floor, done  int64
	accounts     map[ledger.Account]*account
	incarnations map[ledger.ID]incarnation
	holds        map[ledger.ID]map[ledger.ID]*openHold // by incarnation, by hold id
}

type account struct {
	granted, charged, settled, held, open int64
	at                                    int64 // -1: not loaded
}

type openHold struct {
	user, token, amount int64
}

type incarnation struct {
	member, reported, dropped bool
}

// NewLocal returns empty counters.
func NewLocal() *Local {
	return &Local{run: rand.Text(), parts: map[int]*localPartition{}, watch: map[*func([]byte)]struct{}{}}
}

// enter locks a partition and returns it with the identity of the server that answers for it.
func (l *Local) enter(partition int) (*localPartition, string) {
	l.mu.Lock()
	p := l.parts[partition]
	if p == nil {
		p = &localPartition{}
		l.parts[partition] = p
	}
	run := l.run
	l.mu.Unlock()
	p.mu.Lock()
	return p, run
}

// here reports whether there are counters, begun on the server that answers now.
func (c *counters) here(run string) bool { return c.epoch != 0 && c.run == run }

func (c *counters) account(a ledger.Account) *account {
	acc := c.accounts[a]
	if acc == nil {
		acc = &account{at: -1}
		c.accounts[a] = acc
	}
	return acc
}

// available returns granted − charged − settled − held, clamped to ±MaxUnits. It subtracts in two limbs, as the scripts do: the
// difference of four int64 may not fit into one.
func (a *account) available() int64 {
	const limb, mask = 32, 1<<32 - 1
	high := a.granted>>limb - a.charged>>limb - a.settled>>limb - a.held>>limb
	low := a.granted&mask - a.charged&mask - a.settled&mask - a.held&mask
	high, low = high+low>>limb, low&mask
	switch {
	case high >= 1<<21:
		return MaxUnits
	case high < -1<<21:
		return -MaxUnits
	}
	return max(-MaxUnits, high<<limb+low)
}

// peek returns an account that may not be there, without making it.
func (c *counters) peek(a ledger.Account) account {
	if acc := c.accounts[a]; acc != nil {
		return *acc
	}
	return account{at: -1}
}

func (c *counters) notLoaded(accounts []ledger.Account) (missing []ledger.Account) {
	for _, a := range accounts {
		if c.peek(a).at < 0 {
			missing = append(missing, a)
		}
	}
	return missing
}

// Reserve implements [Admission].
func (l *Local) Reserve(_ context.Context, call ledger.ReserveCall) (ledger.ReserveReply, error) {
	if err := checkReserve(&call); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("reserve hold: %w", err)
	}
	p, run := l.enter(call.Partition)
	defer p.mu.Unlock()
	return p.reserve(&call, run), nil
}

func (c *counters) reserve(call *ledger.ReserveCall, run string) ledger.ReserveReply {
	if !c.here(run) || !c.open || c.epoch != call.Epoch {
		return ledger.ReserveReply{Outcome: ledger.OutcomeRebuilding}
	}
	inc := c.incarnations[call.Incarnation]
	if inc.dropped {
		return ledger.ReserveReply{Outcome: ledger.OutcomeGone}
	}
	accounts := accountsOf(call.User, call.Token)
	if missing := c.notLoaded(accounts); missing != nil {
		return ledger.ReserveReply{Outcome: ledger.OutcomeNeedLoad, Missing: missing}
	}
	if known := c.holds[call.Incarnation][call.Hold]; known != nil {
		return ledger.ReserveReply{Outcome: ledger.OutcomeGranted, Amount: known.amount}
	}
	amount := call.Want
	var busy *ledger.ReserveReply
	for _, a := range accounts {
		acc := c.accounts[a]
		left := acc.available()
		switch {
		case left < call.Min && acc.open == 0:
			return ledger.ReserveReply{Outcome: ledger.OutcomeRefused, Account: a, Left: left}
		case left < call.Want && acc.open > 0 && busy == nil:
			busy = &ledger.ReserveReply{Outcome: ledger.OutcomeBusy, Account: a, Left: left}
		}
		amount = min(amount, left)
	}
	if busy != nil {
		return *busy
	}
	c.hold(call.Incarnation, call.Hold, openHold{call.User, call.Token, amount})
	return ledger.ReserveReply{Outcome: ledger.OutcomeGranted, Amount: amount}
}

func (c *counters) hold(inc, id ledger.ID, h openHold) {
	c.join(inc)
	c.holds[inc][id] = &h
	for _, a := range accountsOf(h.user, h.token) {
		acc := c.account(a)
		acc.held += h.amount
		acc.open++
	}
}

func (c *counters) join(inc ledger.ID) {
	flags := c.incarnations[inc]
	if !flags.member {
		flags.member = true
		c.incarnations[inc] = flags
		c.holds[inc] = map[ledger.ID]*openHold{}
	}
}

// Extend implements [Admission].
func (l *Local) Extend(_ context.Context, call ledger.ExtendCall) (ledger.ReserveReply, error) {
	if err := checkExtend(&call); err != nil {
		return ledger.ReserveReply{}, fmt.Errorf("extend hold: %w", err)
	}
	p, run := l.enter(call.Partition)
	defer p.mu.Unlock()
	return p.extend(&call, run), nil
}

func (c *counters) extend(call *ledger.ExtendCall, run string) ledger.ReserveReply {
	if !c.here(run) || !c.open || c.epoch != call.Epoch {
		return ledger.ReserveReply{Outcome: ledger.OutcomeRebuilding}
	}
	h := c.holds[call.Incarnation][call.Hold]
	if h == nil {
		return ledger.ReserveReply{Outcome: ledger.OutcomeGone}
	}
	more := call.To - h.amount
	if more <= 0 {
		return ledger.ReserveReply{Outcome: ledger.OutcomeGranted, Amount: h.amount}
	}
	accounts := accountsOf(h.user, h.token)
	if missing := c.notLoaded(accounts); missing != nil {
		return ledger.ReserveReply{Outcome: ledger.OutcomeNeedLoad, Missing: missing}
	}
	for _, a := range accounts {
		if left := c.accounts[a].available(); left < more {
			return ledger.ReserveReply{Outcome: ledger.OutcomeRefused, Account: a, Left: left}
		}
	}
	for _, a := range accounts {
		c.accounts[a].held += more
	}
	h.amount = call.To
	return ledger.ReserveReply{Outcome: ledger.OutcomeGranted, Amount: h.amount}
}

// Release implements [Admission].
func (l *Local) Release(_ context.Context, calls []ledger.ReleaseCall) error {
	for i := range calls {
		if err := checkRelease(&calls[i]); err != nil {
			return fmt.Errorf("release hold: %w", err)
		}
	}
	for i := range calls {
		p, _ := l.enter(calls[i].Partition)
		p.finish(&calls[i])
		p.mu.Unlock()
	}
	return nil
}

func (c *counters) finish(call *ledger.ReleaseCall) {
	if c.epoch == 0 || c.epoch != call.Epoch {
		return
	}
	h := c.release(call.Incarnation, call.Hold)
	if h == nil || call.Charge < 0 {
		return
	}
	for _, a := range accountsOf(h.user, h.token) {
		c.accounts[a].settled += call.Charge
	}
}

// release takes a hold out of its accounts and returns it, or nil if there is no such hold.
func (c *counters) release(inc, id ledger.ID) *openHold {
	h := c.holds[inc][id]
	if h == nil {
		return nil
	}
	delete(c.holds[inc], id)
	for _, a := range accountsOf(h.user, h.token) {
		acc := c.accounts[a]
		acc.held -= h.amount
		acc.open--
	}
	return h
}

// Load implements [Admission].
func (l *Local) Load(_ context.Context, call ledger.LoadCall) error {
	if err := checkLoad(&call); err != nil {
		return fmt.Errorf("load accounts: %w", err)
	}
	p, run := l.enter(call.Partition)
	defer p.mu.Unlock()
	if !p.here(run) || !p.open || p.epoch != call.Epoch || call.Offset < p.floor {
		return nil
	}
	for a, b := range call.Balances {
		if !counted(a) {
			continue
		}
		if acc := p.account(a); acc.at < 0 {
			acc.granted, acc.charged, acc.at = b.Granted, b.Charged, call.Offset
		}
	}
	return nil
}
