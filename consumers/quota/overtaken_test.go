package quota_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"ledgerline/consumers/quota"
	"ledgerline/ledger"
)

// overtaken is a store in which another consumer takes a number just before an epoch is stored as open.
type overtaken struct {
	quota.Store
	once sync.Once
}

func (o *overtaken) StoreEpoch(ctx context.Context, e ledger.EpochRecord) (stored bool, err error) {
	o.once.Do(func() { _, err = o.AllocateEpoch(ctx, e.Partition, e.Epoch) })
	if err != nil {
		return false, err
	}
	return o.Store.StoreEpoch(ctx, e)
}

// An epoch does not open once a later one has a number: that one was told which were opened before it (L3).
func TestOvertakenEpochDoesNotOpen(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.sink = quota.New(quota.Config{Store: &overtaken{Store: r.store}, Counters: r.counters, Log: r.log, Logger: testLogger(r.notes)})
		r.sink.SetNow(r.clock.now)
		n := r.node(1)
		epoch := r.begin()
		r.report(n)
		r.look(r.sink)
		r.isOpen(false, "another consumer has taken a number")
		if list, err := r.store.Epochs(t.Context(), 0); err != nil || len(list) > 0 {
			t.Errorf("stored as opened: %+v, %v", list, err)
		}
		r.clock.pass(time.Minute)
		if next := r.openEpoch(n); next <= epoch || r.state().Opened != 0 {
			t.Errorf("epoch %d after %d: %+v", next, epoch, r.state())
		}
	})
}
