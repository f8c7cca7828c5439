package consumers

import (
	"context"
	"errors"

	"ledgerline/ledger"
)

// ErrFenced is returned by a sink whose stored position is not the one that Apply names: another consumer was here. The runner
// reads the position again and goes on from it.
var ErrFenced = errors.New("the stored position was moved by another consumer")

// Position is how far a sink has come in one partition. It is stored together with the effect.
type Position struct {
	Offset int64 // everything below is in the sink
	// LastEvent is the id of the last record applied that had one, and LastOffset where it lies. They tell the log from
	// another one that was put in its place. A zero LastEvent means that there was none yet.
	LastEvent  ledger.ID
	LastOffset int64
}

// Sink is one projection.
type Sink interface {
	// Position returns how far the sink has come in partition.
	Position(ctx context.Context, partition int) (Position, error)
	// Apply stores the effect of records and the position to, together or not at all, if the stored position is from. Records
	// lie in [from, to) in offset order; one with Err set is to be dead-lettered. It returns ErrFenced if the position is
	// another one; any other error is taken for a passing one, and the same call is repeated. Records and their values may
	// be kept.
	Apply(ctx context.Context, partition int, from, to int64, records []ledger.Record) error
}

// Looker is a Sink that has something to look after while nothing comes: the hot counters' epochs.
type Looker interface {
	// Look is called when a partition is taken over, after each Apply, and about every Config.LookEvery, from the goroutine that
	// calls Apply. Its errors are logged and counted, and do not keep records from being applied; ErrFenced makes the
	// runner read the position again.
	Look(ctx context.Context, partition int) error
}
