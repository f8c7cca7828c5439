package ledgertest

import (
	"context"
	"testing"
	"time"

	"ledgerline/ledger"
)

// UsageLog is what the conformance suite asks of a usage log.
type UsageLog interface {
	// Append stores records of one partition, in offset order, and then the position to.
	Append(ctx context.Context, partition int, to int64, records []ledger.Record) error
	// Position returns how far the log has come, and the last decodable record below: its place, or -1, and its id.
	Position(ctx context.Context, partition int) (offset, lastOffset int64, lastEvent ledger.ID, err error)
	AdoptLog(ctx context.Context, partition int, offset int64) error

	List(ctx context.Context, q UsageQuery) (UsagePage, error)
	// Stat returns the quota of the rows that match, and requests and tokens of the 60 s before now.
	Stat(ctx context.Context, q UsageQuery, now time.Time) (quota, rpm, tpm int64, err error)
	// Shares returns tokens, requests and quota of the rows that match by "HOUR MODEL", or, if byUser, by "HOUR USERNAME".
	Shares(ctx context.Context, q UsageQuery, byUser bool) (map[string][3]int64, error)
	TokenLatest(ctx context.Context, token int64) ([]UsageRow, error)
	// Lookup returns the offsets and the canonical JSON of a request's events, in the order of their places.
	Lookup(ctx context.Context, requestID string) (offsets []int64, events []string, err error)

	Totals(ctx context.Context, from, to []int64, fn func(ledger.Account, ledger.Balance) error) error
	Scan(ctx context.Context, partition int, from, to int64, fn func(offset int64, value []byte) error) error
	// DeadLetters returns the raw values by offset.
	DeadLetters(ctx context.Context, partition int) (map[int64]string, error)
}

// UsageQuery selects rows, by New API's rules.
type UsageQuery struct {
	Type                                                                int
	Start, End                                                          int64
	User, Token, Channel                                                int64
	Username, ModelName, TokenName, Group, RequestID, UpstreamRequestID string
	Skip, Limit                                                         int
}

// UsageRow is a row of a listing, as far as the suite looks at it.
type UsageRow struct {
	CreatedAt int64
	Type      int64
	Quota     int64
	User      int64
	Model     string
	RequestID string
}

// UsagePage is a page of a listing.
type UsagePage struct {
	Rows  []UsageRow
	Total int
	More  bool
}

// TestUsageLog runs the conformance suite. open returns an empty usage log of the test's own.
func TestUsageLog(t *testing.T, open func(t *testing.T) UsageLog) {
	for name, test := range map[string]func(*testing.T, UsageLog){
		"empty":                testUsageEmpty,
		"sums equal the fold":  testUsageFold,
		"lowest place stays":   testUsageLowest,
		"key counts once":      testUsageKeys,
		"positions":            testUsagePositions,
		"another log":          testUsageAdopt,
		"filters":              testUsageFilters,
		"patterns":             testUsagePatterns,
		"paging":               testUsagePaging,
		"stat":                 testUsageStat,
		"shares":               testUsageShares,
		"token":                testUsageToken,
		"dead letters":         testUsageDead,
		"odd texts and clocks": testUsageOdd,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}
