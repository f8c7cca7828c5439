package console

import (
	"context"
	"slices"
	"time"
)

const (
	// appliedWithin bounds the wait for a change of quota. It commonly takes a few tens of milliseconds; while the event log
	// is down it is answered without: the event is in the outbox and will be applied (P1).
	appliedWithin = 2 * time.Second
	// appliedPoll is how often the outbox row is looked at.
	appliedPoll = 5 * time.Millisecond
)

// effective makes a write count on this node before it is answered: the catalog knows it, and if it moved quota under the
// outbox keys given, the move is applied. It never fails: what is written is written, and the node follows by itself.
func (x *call) effective(keys ...string) {
	c := x.console
	waiting := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return key == "" })
	if len(waiting) > 0 {
		c.cfg.Kick() // first: the event is on its way while the catalog is read
	}
	ctx := context.WithoutCancel(x.ctx()) // the client's leaving changes nothing about the write
	if err := c.cfg.Catalog.Refresh(ctx); err != nil {
		c.log.Warn("the catalog was not refreshed after a write; it follows by itself", "request", x.id, "error", err)
	}
	if len(waiting) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	ticker := time.NewTicker(appliedPoll)
	defer ticker.Stop()
	for len(waiting) > 0 {
		applied, err := c.cfg.Store.OutboxApplied(ctx, waiting[0])
		if err == nil && applied {
			waiting = waiting[1:]
			continue
		}
		select {
		case <-ctx.Done():
			c.log.Info("a change of quota is on its way but not applied yet", "request", x.id, "key", waiting[0])
			return
		case <-ticker.C:
		}
	}
}
