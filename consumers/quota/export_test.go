package quota

import (
	"context"
	"log/slog"
	"time"

	"ledgerline/ledger"
)

// What tests set and call.
const (
	MaxSums       = maxSums
	PatienceDead  = patienceDead
	PatienceLive  = patienceLive
	ApplyPatience = applyPatience
	ObserveEvery  = observeEvery
	DisklessAfter = disklessAfter
)

// SetNow gives the sink a clock.
func (s *Sink) SetNow(now func() time.Time) { s.now = now }

// Observer is the observer, look by look.
type Observer struct{ o *observer }

// NewObserver returns an observer that has seen nothing yet.
func NewObserver(registry Registry, orphanAfter time.Duration) Observer {
	return Observer{&observer{registry: registry, orphanAfter: orphanAfter, log: slog.New(slog.DiscardHandler), still: map[ledger.ID]*stillness{}}}
}

// Look reads the heartbeats once, at the time given.
func (o Observer) Look(ctx context.Context, now time.Time) error { return o.o.look(ctx, now) }
