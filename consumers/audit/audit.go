// Package audit proves that the projections agree with the log, and rebuilds them from it (DESIGN 10).
//
// Verify takes one snapshot of the database and holds everything else against it at the snapshot's offsets (L4): the fold of
// the log, the usage log's exact sums, and the hot counters, each account at the offset where it stands. It lists apart what L3
// allows. Replay folds the log, or the usage log, and writes the balances in place. Where the log or the usage log no longer reach
// back, both begin at a stored snapshot; Retain takes those, as a duty of the master. All work under traffic, on any node, and
// change nothing but what replay is asked to. A crash leaves each partition either replayed or as it was; hot counters
// that loaded balances which a replay then changed are told by a verify and set right by another replay.
package audit

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// Log is the event log; *eventlog.Client satisfies it.
type Log interface {
	Bounds(ctx context.Context, partition int) (first, end int64, err error)
	Read(ctx context.Context, partition int, from, to int64, fn func([]ledger.Record) error) error
	// ReadAt returns one record; eventlog.ErrNoRecord if there is none at that offset.
	ReadAt(ctx context.Context, partition int, offset int64) (ledger.Record, error)
}

// Counters is what is read of the hot counters, and how an epoch is begun.
type Counters interface {
	State(ctx context.Context, partitions ...int) ([]ledger.Counters, error)
	All(ctx context.Context, partition int, account func(ledger.HotAccount) error, hold func(ledger.OpenHold) error) error
	Begin(ctx context.Context, call ledger.BeginCall) (bool, error)
}

// Stores is everything that is compared.
type Stores struct {
	DB       *sqlstore.Store
	Log      Log
	Usage    usagelog.Store
	Counters Counters // nil: they live in another process and are not looked at
	// UsageKept is how long rows of the usage log live (LOG_SQL_CLICKHOUSE_TTL_DAYS); 0: for ever. Then what they add up to is
	// counted from a snapshot on, which Retain takes.
	UsageKept time.Duration
}

// Bounds of a report (L7): a report is for people. What is beyond is counted.
const (
	maxDifferences = 200
	maxExamples    = 20
)

// Difference is one disagreement.
type Difference struct {
	Store   string `json:"store"`   // "MySQL ledger_accounts", "MySQL users.quota", "usage log", "hot counters", …
	Account string `json:"account"` // "user/7"
	What    string `json:"what"`    // "granted", "charged", …
	Want    int64  `json:"want"`
	Got     int64  `json:"got"`
}

// Verdict is the result of a verify.
type Verdict struct {
	Accounts    int          `json:"accounts"`     // accounts of the database that were compared
	Events      int64        `json:"events"`       // records of the log that were folded
	Hot         int          `json:"hot_accounts"` // accounts compared in the hot counters
	Holds       int          `json:"open_holds"`
	Differences []Difference `json:"differences"`
	More        int          `json:"more_differences,omitempty"` // beyond the list
	Lagging     []string     `json:"lagging,omitempty"`          // what did not catch up in time, and was not compared
	Exceptions  Exceptions   `json:"exceptions"`
}

// Exceptions are the charges that L3 allows above what was held. They are no differences.
type Exceptions struct {
	Late        Tally    `json:"late"`         // charges of nodes that an epoch did not wait for
	Excess      Tally    `json:"excess"`       // the upstream reported more than the hold was priced for
	Redriven    Tally    `json:"redriven"`     // dead letters applied later
	Overdrawn   Tally    `json:"overdrawn"`    // users below zero at present, for these reasons or because their quota was lowered
	DeadLetters int      `json:"dead_letters"` // waiting for a re-drive
	Examples    []string `json:"examples,omitempty"`
}

// Tally counts events and their quota units.
type Tally struct {
	Events int64 `json:"events"`
	Quota  int64 `json:"quota"`
}

func (t *Tally) add(quota int64) { t.Events++; t.Quota += quota }

// OK reports whether everything was compared and agrees.
func (v *Verdict) OK() bool { return len(v.Differences) == 0 && v.More == 0 && len(v.Lagging) == 0 }

func (v *Verdict) differ(store string, account ledger.Account, what string, want, got int64) {
	if want == got {
		return
	}
	if len(v.Differences) == maxDifferences {
		v.More++
		return
	}
	v.Differences = append(v.Differences, Difference{store, account.String(), what, want, got})
}

func (v *Verdict) differBalance(store string, account ledger.Account, want, got ledger.Balance) {
	v.differ(store, account, "granted", want.Granted, got.Granted)
	v.differ(store, account, "charged", want.Charged, got.Charged)
	v.differ(store, account, "requests", want.Requests, got.Requests)
}

// Print writes the verdict for people.
func (v *Verdict) Print(w io.Writer) {
	fmt.Fprintf(w, "verify: %d accounts, %d log records, %d hot accounts, %d open holds\n", v.Accounts, v.Events, v.Hot, v.Holds)
	for _, d := range v.Differences {
		fmt.Fprintf(w, "  DIFFERS  %-22s %-14s %-9s want %d, got %d (%+d)\n", d.Store, d.Account, d.What, d.Want, d.Got, d.Got-d.Want)
	}
	if v.More > 0 {
		fmt.Fprintf(w, "  … and %d more differences\n", v.More)
	}
	for _, l := range v.Lagging {
		fmt.Fprintf(w, "  LAGGING  %s\n", l)
	}
	e := v.Exceptions
	for _, x := range []struct {
		name string
		t    Tally
	}{{"late charges", e.Late}, {"charges above the hold", e.Excess}, {"re-driven dead letters", e.Redriven}, {"users below zero", e.Overdrawn}} {
		if x.t.Events > 0 {
			fmt.Fprintf(w, "  allowed  %d %s, %d quota units\n", x.t.Events, x.name, x.t.Quota)
		}
	}
	if e.DeadLetters > 0 {
		fmt.Fprintf(w, "  waiting  %d dead letters for a re-drive\n", e.DeadLetters)
	}
	for _, x := range e.Examples {
		fmt.Fprintf(w, "           %s\n", x)
	}
	if v.OK() {
		fmt.Fprintln(w, "verify: OK: log = balances = usage log = hot counters")
	} else {
		fmt.Fprintln(w, "verify: NOT OK")
	}
}

// example keeps a line about an exception.
func (e *Exceptions) example(format string, args ...any) {
	if len(e.Examples) < maxExamples {
		e.Examples = append(e.Examples, fmt.Sprintf(format, args...))
	}
}

// sortDifferences puts them in an order that does not depend on maps.
func (v *Verdict) sortDifferences() {
	slices.SortFunc(v.Differences, func(a, b Difference) int {
		for _, c := range []int{strings.Compare(a.Store, b.Store), strings.Compare(a.Account, b.Account)} {
			if c != 0 {
				return c
			}
		}
		return strings.Compare(a.What, b.What)
	})
}
