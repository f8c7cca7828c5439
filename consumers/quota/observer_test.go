package quota_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"ledgerline/consumers/quota"
	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// patchyRegistry can be out of reach.
type patchyRegistry struct {
	*sqlstore.Store
	unreadable, unwritable bool
}

func (p *patchyRegistry) Producers(ctx context.Context) ([]sqlstore.Producer, error) {
	if p.unreadable {
		return nil, errAway
	}
	return p.Store.Producers(ctx)
}

func (p *patchyRegistry) GiveUp(ctx context.Context, id ledger.ID, beat uint64) (bool, error) {
	if p.unwritable {
		return false, errAway
	}
	return p.Store.GiveUp(ctx, id, beat)
}

// watch is an observer and its clock.
type watch struct {
	t        *testing.T
	registry *patchyRegistry
	observer quota.Observer
	at       time.Time
}

const orphanAfter = time.Minute

func newWatch(t *testing.T, after time.Duration) (*watch, *producer) {
	r := localRig(t)
	n := r.node(1)
	p := &patchyRegistry{Store: r.store}
	return &watch{t: t, registry: p, observer: quota.NewObserver(p, after), at: r.clock.at}, n
}

// observe looks as often as the observer does, for so long.
func (w *watch) observe(d time.Duration) {
	for range d / quota.ObserveEvery {
		w.at = w.at.Add(quota.ObserveEvery)
		if err := w.observer.Look(w.t.Context(), w.at); err != nil && !errors.Is(err, errAway) {
			w.t.Fatal(err)
		}
	}
}

func (w *watch) want(state sqlstore.ProducerState, when string) {
	w.t.Helper()
	list, err := w.registry.Store.Producers(w.t.Context())
	must(w.t, err)
	if len(list) != 1 || list[0].State != state {
		w.t.Fatalf("%s: %+v, want %s", when, list, state)
	}
}

func TestObserverGivesUpWhoIsSilent(t *testing.T) {
	w, n := newWatch(t, orphanAfter)
	w.observe(orphanAfter - 10*time.Second)
	_, err := w.registry.Heartbeat(t.Context(), n.id)
	must(t, err)
	w.observe(orphanAfter)
	w.want(sqlstore.ProducerLive, "it beat once")
	w.observe(10 * time.Second)
	w.want(sqlstore.ProducerGone, "it was silent")
}

// A node without a disk is not waited for as long as one that may come back and settle: nobody can.
func TestObserverGivesUpDisklessSoon(t *testing.T) {
	for _, after := range []time.Duration{0, 15 * time.Minute} {
		w, _ := newWatch(t, after)
		id := testID('d', 1)
		must(t, w.registry.RegisterProducer(t.Context(), sqlstore.Producer{ID: id, Node: "diskless", Diskless: true}))
		w.observe(quota.DisklessAfter - 10*time.Second)
		for range 2 {
			list, err := w.registry.Store.Producers(t.Context())
			must(t, err)
			for _, p := range list {
				if p.State != sqlstore.ProducerLive {
					t.Fatalf("HOLD_ORPHAN_AFTER %s: %s was given up too early", after, p.Node)
				}
			}
			_, err = w.registry.Heartbeat(t.Context(), id)
			must(t, err)
			w.observe(quota.DisklessAfter - 10*time.Second)
		}
		w.observe(20 * time.Second)
		list, err := w.registry.Store.Producers(t.Context())
		must(t, err)
		for _, p := range list {
			if gone := p.State == sqlstore.ProducerGone; gone != p.Diskless {
				t.Errorf("HOLD_ORPHAN_AFTER %s: %s is %s", after, p.Node, p.State)
			}
		}
	}
}

func TestObserverDoesNotCountWhatItDidNotSee(t *testing.T) {
	w, _ := newWatch(t, orphanAfter)
	w.observe(orphanAfter / 2)
	w.registry.unreadable = true
	w.observe(10 * orphanAfter)
	w.registry.unreadable = false
	w.observe(orphanAfter/2 - 10*time.Second)
	w.want(sqlstore.ProducerLive, "the database could not be read")
	w.at = w.at.Add(time.Hour) // the observer itself was stopped
	w.observe(quota.ObserveEvery)
	w.want(sqlstore.ProducerLive, "the observer was away")
	w.observe(orphanAfter)
	w.want(sqlstore.ProducerGone, "it was silent")
}

// A database that can be read and not written keeps everybody from beating.
func TestObserverBeginsAnewWhenItCannotWrite(t *testing.T) {
	w, _ := newWatch(t, orphanAfter)
	w.registry.unwritable = true
	w.observe(3*orphanAfter - 20*time.Second)
	w.registry.unwritable = false
	w.observe(15 * time.Second)
	w.want(sqlstore.ProducerLive, "the database could not be written")
}

func TestObserverThatNeverGivesUp(t *testing.T) {
	w, _ := newWatch(t, 0)
	w.observe(time.Hour)
	w.want(sqlstore.ProducerLive, "0 means never")
}
