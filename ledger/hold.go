package ledger

import "time"

// ReserveCall asks the hot counters for a hold on a user and, if it is limited, a token: both or neither (L3).
// Repeating a call with the same Hold is harmless and gives the same answer.
type ReserveCall struct {
	Hold        ID
	Incarnation ID // journal incarnation that answers for the hold
	Partition   int
	Epoch       uint64 // the epoch the node believes open
	User        int64
	Token       int64 // 0: the token is unlimited, only the user is held
	Min         int64 // quota units below which the request is refused; ≥ 0
	Want        int64 // quota units wanted; ≥ Min
}

// Outcome is what the hot counters answered.
type Outcome int

// The outcomes of a Reserve, Extend, Settle or Void.
const (
	OutcomeGranted    Outcome = iota // Amount units are held (at least Min; less than Want: a partial hold)
	OutcomeRefused                   // Account has less than Min and nothing open (or cannot pay an extension)
	OutcomeBusy                      // Account has less than Min, but open holds may still return some: retry
	OutcomeNeedLoad                  // Missing are not loaded: load them and repeat
	OutcomeRebuilding                // the epoch is not open, or not the one named, or begun on another server
	OutcomeGone                      // the incarnation was dropped, or the hold is unknown
)

// ReserveReply answers a ReserveCall or an ExtendCall.
type ReserveReply struct {
	Outcome Outcome
	Amount  int64     // OutcomeGranted: the hold's total
	Account Account   // OutcomeRefused, OutcomeBusy: the account in the way
	Left    int64     // its available quota units
	Missing []Account // OutcomeNeedLoad
}

// ExtendCall raises a hold to a new total; lower totals are ignored. Unknown holds are refused (OutcomeGone).
type ExtendCall struct {
	Hold        ID
	Incarnation ID
	Partition   int
	Epoch       uint64
	To          int64 // the hold's new total, quota units
}

// ReleaseCall ends a hold: Charge < 0 voids it, otherwise it is settled at Charge. Idempotent by hold id; a call of
// another epoch than the current one, or for a hold that is not there, does nothing.
type ReleaseCall struct {
	Hold        ID
	Incarnation ID
	Partition   int
	Epoch       uint64
	Charge      int64 // quota units; -1 voids
}

// OpenHold is one open hold, as a node re-asserts it into a new epoch and as verify reads it.
type OpenHold struct {
	Hold        ID
	Incarnation ID
	User        int64
	Token       int64 // 0: not held
	Amount      int64
}

// LoadCall installs balances read from the database, all from one snapshot whose offset is Offset. It does nothing if the epoch is
// not open or not Epoch, or Offset is below the floor (DESIGN 7).
type LoadCall struct {
	Partition int
	Epoch     uint64
	Offset    int64
	Balances  map[Account]Balance
}

// Sum is what a range of offsets did to one account.
type Sum struct {
	Account Account
	Granted int64
	Charged int64
	Settled int64 // the part of Charged that belongs to holds of the epoch named in ApplyCall on this account
}

// BeginCall starts an epoch. AllocateEpoch of the database fills all of it but Gone.
type BeginCall struct {
	Partition int
	Epoch     uint64 // above every number before it
	// Opened is the newest epoch that was opened before, as far as the database knows; 0: none. Older holds are not counted there and so
	// must not come back.
	Opened uint64
	Offset int64 // floor and done
	Gone   []ID  // incarnations that were given up
}

// ApplyCall brings the counters of a partition from offset From to offset To (exclusive).
type ApplyCall struct {
	Partition int
	Epoch     uint64
	From, To  int64
	Sums      []Sum
}

// ApplyReply says where the counters stand afterwards.
type ApplyReply struct {
	Done int64
	// SplitAt is non-zero if an account was loaded at an offset strictly between From and To: nothing was changed, and the caller
	// repeats with the two halves.
	SplitAt int64
}

// Counters is the state of one partition's hot counters, as consumers and nodes look at it.
type Counters struct {
	Partition int
	Present   bool   // false: missing (flushed, new server)
	Foreign   bool   // begun on another server than the one that answers now
	Epoch     uint64 // 0 if not Present
	Open      bool   // false while rebuilding
	Opened    uint64 // the newest epoch that was opened before this one; 0: none is known
	Floor     int64
	Done      int64
	Members   []ID // incarnations that hold or held something in this epoch
	Reports   []ID // incarnations that re-asserted and reported (while rebuilding)
	Dropped   []ID // tombstones
}

// HotAccount is the hot state of one account, read at one instant with the partition's done (verify).
type HotAccount struct {
	Account   Account
	Loaded    bool
	Granted   int64
	Charged   int64
	Settled   int64
	Held      int64
	OpenHolds int64
	At        int64 // offset at which it was loaded
	Done      int64 // the partition's done at the same instant
}

// EpochRecord says that an epoch was opened: events at offsets ≥ End that name an older epoch are late, unless their
// incarnation reported (DESIGN 7). It stays so when later epochs are opened.
type EpochRecord struct {
	Partition int
	Epoch     uint64
	End       int64
	Reporters []ID
	OpenedAt  time.Time
}
