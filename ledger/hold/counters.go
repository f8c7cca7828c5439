package hold

import (
	"context"
	"errors"
	"fmt"

	"ledgerline/ledger"
)

// MaxUnits bounds the quota units of one hold, and what is reported as left: Lua computes in doubles, which are exact up to
// here (18 billion US dollars). Balances have the whole range of int64.
const MaxUnits = 1<<53 - 1

// MaxOffset bounds log offsets and epoch numbers, for the same reason as [MaxUnits].
const MaxOffset = 1<<53 - 1

// MaxPartition bounds partition numbers: Kafka clusters hold far fewer partitions of one topic.
const MaxPartition = 1<<16 - 1

// Admission is what one request needs. Every answer is an [ledger.Outcome]; an error means that nothing is known: the call may
// or may not have been executed, and is repeated with the same ids or voided.
type Admission interface {
	// Reserve holds Want on the user and, if Token is not 0, on the token; or, only if each account that cannot pay Want has no
	// open hold, the smallest of what they have left, if that is at least Min. Refused names an account with less than Min and
	// nothing open, Busy one that open holds stand in the way of. A repeated call returns the hold that is there.
	Reserve(ctx context.Context, call ledger.ReserveCall) (ledger.ReserveReply, error)
	// Extend raises a hold to a new total, or returns the total that it has. NeedLoad is answered, too: a hold re-asserted into
	// a new epoch may be on accounts that nobody loaded yet.
	Extend(ctx context.Context, call ledger.ExtendCall) (ledger.ReserveReply, error)
	// Release settles and voids holds. What is not there, or of another epoch, is passed over.
	Release(ctx context.Context, calls []ledger.ReleaseCall) error
	// Load installs the balances of accounts that are not loaded yet, if the epoch is open and the one named, and the offset not
	// below the floor; else it does nothing, and the next Reserve says so.
	Load(ctx context.Context, call ledger.LoadCall) error
}

// Membership is what a node does for its incarnations, besides admission.
type Membership interface {
	// State returns the counters of each partition named, in that order.
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	// Reassert puts the open holds of an incarnation into an epoch that is rebuilding; holds that are there already are left as
	// they are. accepted is false if that epoch is not rebuilding, or the incarnation was dropped in it.
	Reassert(ctx context.Context, partition int, epoch uint64, incarnation ledger.ID, holds []ledger.OpenHold) (accepted bool, err error)
	// Report notes, in an epoch that is rebuilding, that the incarnations have re-asserted and shipped all of this partition.
	Report(ctx context.Context, partition int, epoch uint64, incarnations ...ledger.ID) error
	// Holds returns the open holds of one incarnation, ordered by hold id.
	Holds(ctx context.Context, partition int, incarnation ledger.ID) ([]ledger.OpenHold, error)
}

// Upkeep is what the quota consumer does, and who recovers a journal.
type Upkeep interface {
	// Begin starts a new epoch: empty, rebuilding, floor and done at Offset, on the server that executes it. The incarnations in
	// Gone are as good as dropped in it from the first moment: one that still lives and does not know cannot join. ok is false if
	// the counters there, foreign or not, have this number or a higher one. What they know to have been opened counts beside the
	// call's Opened: a database may have lost its last transactions.
	Begin(ctx context.Context, call ledger.BeginCall) (ok bool, err error)
	// OpenEpoch raises the floor and opens the epoch. ok is false if it is not rebuilding.
	OpenEpoch(ctx context.Context, partition int, epoch uint64, floor int64) (ok bool, err error)
	// Apply adds sums if done is at From; see [ledger.ApplyReply]. Done is -1 where the counters are missing or foreign. The
	// floor is raised to To whether or not done is at From, unless SplitAt is answered. Accounts of other kinds than users and
	// tokens are passed over; an account named twice is an error.
	Apply(ctx context.Context, call ledger.ApplyCall) (ledger.ApplyReply, error)
	// Drop releases every hold of an incarnation and refuses its reserves until the next epoch.
	Drop(ctx context.Context, partition int, incarnation ledger.ID) error
}

// Inspection is what verify and the start-up check read.
type Inspection interface {
	// Accounts returns the named accounts in that order, all at one instant with done (-1: no counters).
	Accounts(ctx context.Context, partition int, accounts []ledger.Account) ([]ledger.HotAccount, error)
	// All calls account for every account, page by page, each page at one instant with its Done, and then hold for every hold. An
	// account or hold that is there all along is seen at least once, and may be seen twice. The first error ends it.
	All(ctx context.Context, partition int, account func(ledger.HotAccount) error, hold func(ledger.OpenHold) error) error
	// Check reports what makes the server unfit to hold the counters.
	Check(ctx context.Context) error
}

// News carries "something changed" between nodes; a message can be lost, so it only ever hastens what polling finds anyway.
type News interface {
	// Notify sends payload to every Watch, in no particular order with others.
	Notify(ctx context.Context, payload []byte) error
	// Watch calls fn for every message until ctx is done, and returns its error. It calls fn with nil whenever messages may have
	// been missed: once at its begin, and after every gap in the connection.
	Watch(ctx context.Context, fn func(payload []byte)) error
}

// Counters is the whole of what both implementations offer; users declare or embed the part that they need.
type Counters interface {
	Admission
	Membership
	Upkeep
	Inspection
	News
}

var (
	_ Counters = (*Local)(nil)
	_ Counters = (*Redis)(nil)
)

func checkPartition(partition int) error {
	if partition < 0 || partition > MaxPartition {
		return fmt.Errorf("partition %d is not in 0..%d", partition, MaxPartition)
	}
	return nil
}

func checkEpoch(partition int, epoch uint64) error {
	if epoch == 0 || epoch > MaxOffset {
		return fmt.Errorf("epoch %d is not in 1..%d", epoch, int64(MaxOffset))
	}
	return checkPartition(partition)
}

func checkOffset(offset int64) error {
	if offset < 0 || offset > MaxOffset {
		return fmt.Errorf("offset %d is not in 0..%d", offset, int64(MaxOffset))
	}
	return nil
}

func checkUnits(units int64) error {
	if units < 0 || units > MaxUnits {
		return fmt.Errorf("%d quota units are not in 0..%d", units, int64(MaxUnits))
	}
	return nil
}

func checkReserve(c *ledger.ReserveCall) error {
	switch {
	case c.Hold.IsZero() || c.Incarnation.IsZero():
		return errors.New("no hold id or no incarnation")
	case c.User <= 0 || c.Token < 0:
		return fmt.Errorf("user %d, token %d", c.User, c.Token)
	case c.Min > c.Want:
		return fmt.Errorf("min %d is above want %d", c.Min, c.Want)
	}
	return errors.Join(checkPartition(c.Partition), checkUnits(c.Min), checkUnits(c.Want))
}

func checkExtend(c *ledger.ExtendCall) error {
	if c.Hold.IsZero() || c.Incarnation.IsZero() {
		return errors.New("no hold id or no incarnation")
	}
	return errors.Join(checkPartition(c.Partition), checkUnits(c.To))
}

func checkRelease(c *ledger.ReleaseCall) error {
	if c.Hold.IsZero() || c.Incarnation.IsZero() {
		return errors.New("no hold id or no incarnation")
	}
	return checkPartition(c.Partition)
}

func checkOpenHold(h *ledger.OpenHold) error {
	if h.Hold.IsZero() || h.User <= 0 || h.Token < 0 {
		return fmt.Errorf("hold %s of user %d, token %d", h.Hold, h.User, h.Token)
	}
	return checkUnits(h.Amount)
}

func checkLoad(call *ledger.LoadCall) error {
	return errors.Join(checkPartition(call.Partition), checkOffset(call.Offset))
}

func checkBegin(call *ledger.BeginCall) error {
	if call.Opened >= call.Epoch {
		return fmt.Errorf("epoch %d, and %d was opened before", call.Epoch, call.Opened)
	}
	return errors.Join(checkEpoch(call.Partition, call.Epoch), checkOffset(call.Offset))
}

func checkOpen(partition int, epoch uint64, floor int64) error {
	return errors.Join(checkEpoch(partition, epoch), checkOffset(floor))
}

func checkReassert(partition int, epoch uint64, inc ledger.ID, holds []ledger.OpenHold) error {
	if inc.IsZero() {
		return errors.New("no incarnation")
	}
	for i := range holds {
		if err := checkOpenHold(&holds[i]); err != nil {
			return err
		}
	}
	return checkEpoch(partition, epoch)
}

// checkApply also drops the accounts that have no counters, and reports an account that is named twice.
func checkApply(call *ledger.ApplyCall) ([]ledger.Sum, error) {
	if call.From > call.To {
		return nil, fmt.Errorf("from %d is above to %d", call.From, call.To)
	}
	if err := errors.Join(checkPartition(call.Partition), checkOffset(call.From), checkOffset(call.To)); err != nil {
		return nil, err
	}
	sums := make([]ledger.Sum, 0, len(call.Sums))
	seen := make(map[ledger.Account]bool, len(call.Sums))
	for _, sum := range call.Sums {
		if !counted(sum.Account) {
			continue
		}
		if seen[sum.Account] {
			return nil, fmt.Errorf("account %s is named twice", sum.Account)
		}
		seen[sum.Account] = true
		sums = append(sums, sum)
	}
	return sums, nil
}

// counted reports whether an account has hot counters: only users and tokens can be limited.
func counted(a ledger.Account) bool {
	return a.Kind == ledger.UserAccount || a.Kind == ledger.TokenAccount
}

// accountsOf returns the accounts of a hold, in the order in which they are looked at.
func accountsOf(user, token int64) []ledger.Account {
	accounts := []ledger.Account{{Kind: ledger.UserAccount, ID: user}}
	if token != 0 {
		accounts = append(accounts, ledger.Account{Kind: ledger.TokenAccount, ID: token})
	}
	return accounts
}
