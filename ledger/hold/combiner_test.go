package hold

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// flights is a fake of the way to Redis: trips wait until they are let go.
type flights struct {
	started chan []*call
	land    chan error
}

func (f *flights) fly(calls []*call) {
	f.started <- calls
	err := <-f.land
	for _, c := range calls {
		c.err = err
	}
}

func testCombiner(trips int) (*combiner, *flights) {
	f := &flights{make(chan []*call), make(chan error)}
	return newCombiner(trips, f.fly), f
}

func newTestCall() *call { return &call{} }

// start calls do in a goroutine of its own, and returns where its error will come.
func start(ctx context.Context, c *combiner, calls ...*call) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.do(ctx, calls...) }()
	synctest.Wait()
	return ended
}

func TestCombinerCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(2)
		const callers = 100
		var ends []<-chan error
		for range callers {
			ends = append(ends, start(t.Context(), c, newTestCall()))
		}
		// The first call left at once and alone; all others gathered behind it.
		for _, want := range []int{1, callers - 1} {
			if calls := <-f.started; len(calls) != want {
				t.Fatalf("a trip with %d calls, want %d", len(calls), want)
			}
			f.land <- nil
		}
		for _, end := range ends {
			if err := <-end; err != nil {
				t.Fatal(err)
			}
		}
		if s := c.read(); s.Trips != 2 || s.Calls != callers || s.Waiting != 0 || s.Failures != 0 {
			t.Fatalf("stats %+v", s)
		}
	})
}

// free is how many trips may begin.
func (c *combiner) free() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turns
}

// A trip that takes long holds up what comes behind it for a moment only, and those that come then wait for either.
func TestCombinerFliesBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(2)
		first := start(t.Context(), c, newTestCall())
		<-f.started
		begun := time.Now()
		second := start(t.Context(), c, newTestCall())
		if calls := <-f.started; len(calls) != 1 || time.Since(begun) != besideAfter {
			t.Fatalf("a trip with %d calls after %s, want 1 after %s", len(calls), time.Since(begun), besideAfter)
		}
		waits := start(t.Context(), c, newTestCall())
		f.land <- nil // whichever it is
		synctest.Wait()
		if n := c.free(); n != 1 {
			t.Fatalf("%d turns are free while a trip is on its way and nobody is late, want 1", n)
		}
		if calls := <-f.started; len(calls) != 1 || time.Since(begun) != 2*besideAfter {
			t.Fatalf("a trip with %d calls after %s, want 1 after %s", len(calls), time.Since(begun), 2*besideAfter)
		}
		late := start(t.Context(), c, newTestCall())
		<-time.After(2 * besideAfter) // of the bubble's own time
		if n := c.free(); n != 0 {
			t.Fatalf("%d turns are free, want none", n)
		}
		f.land <- nil
		<-f.started // who was late has the turn, though another trip is on its way
		f.land <- nil
		f.land <- nil
		if err := errors.Join(<-first, <-second, <-waits, <-late); err != nil {
			t.Fatal(err)
		}
		if c.turns != 2 || len(c.waiting) != 0 {
			t.Fatalf("%d turns and %d calls are left, want 2 and 0", c.turns, len(c.waiting))
		}
	})
}

func TestCombinerBoundsATrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(1)
		first := start(t.Context(), c, newTestCall())
		calls := make([]*call, MaxTrip+10)
		for i := range calls {
			calls[i] = newTestCall()
		}
		many := start(t.Context(), c, calls...)
		<-f.started
		f.land <- nil
		for _, want := range [][]*call{calls[:MaxTrip], calls[MaxTrip:]} {
			got := <-f.started
			if len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
				t.Fatalf("a trip with %d calls, want %d in order", len(got), len(want))
			}
			f.land <- nil
		}
		if err := errors.Join(<-first, <-many); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCombinerPassesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(1)
		lost := errors.New("lost")
		end := start(t.Context(), c, newTestCall(), newTestCall())
		<-f.started
		f.land <- lost
		if err := <-end; !errors.Is(err, lost) {
			t.Fatalf("error %v", err)
		}
		if s := c.read(); s.Failures != 2 {
			t.Fatalf("stats %+v", s)
		}
	})
}

// A caller that leaves takes along what has not left yet; its call that is under way goes on, and so do the others'.
func TestCombinerAbandons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(1)
		first := start(t.Context(), c, newTestCall())
		<-f.started
		gone := errors.New("the client has gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		leaves, stays := start(ctx, c, newTestCall()), start(t.Context(), c, newTestCall())
		cancel(gone)
		if err := <-leaves; !errors.Is(err, gone) {
			t.Fatalf("error %v", err)
		}
		f.land <- nil
		if calls := <-f.started; len(calls) != 1 {
			t.Fatalf("a trip with %d calls, want the one that stayed", len(calls))
		}
		f.land <- nil
		if err := errors.Join(<-first, <-stays); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCombinerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(1)
		first := start(t.Context(), c, newTestCall())
		<-f.started
		ctx, cancel := context.WithCancel(t.Context())
		calls := make([]*call, MaxWaiting)
		for i := range calls {
			calls[i] = newTestCall()
		}
		many := start(ctx, c, calls...)
		if err := c.do(t.Context(), newTestCall()); !errors.Is(err, ErrOverloaded) {
			t.Fatalf("error %v", err)
		}
		cancel()
		if err := <-many; !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
		f.land <- nil
		if err := <-first; err != nil {
			t.Fatal(err)
		}
	})
}

// Calls that are in no hurry leave with the trip that somebody else needs, ahead of who came later; alone they leave after a while.
func TestCombinerIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(2)
		const company = 2 * time.Millisecond
		patient := func(calls ...*call) <-chan error {
			ended := make(chan error, 1)
			go func() { ended <- c.doWithin(t.Context(), patience{company: company}, calls...) }()
			synctest.Wait()
			return ended
		}
		begun := time.Now()
		releases := []*call{newTestCall(), newTestCall()}
		released := patient(releases...)
		reserve := newTestCall()
		reserved := start(t.Context(), c, reserve)
		if calls := <-f.started; len(calls) != 3 || calls[0] != releases[0] || calls[2] != reserve || time.Since(begun) != 0 {
			t.Fatalf("a trip with %d calls after %s, want the two that waited and the reserve, at once", len(calls), time.Since(begun))
		}
		f.land <- nil
		if err := errors.Join(<-released, <-reserved); err != nil {
			t.Fatal(err)
		}
		alone := patient(newTestCall())
		if calls := <-f.started; len(calls) != 1 || time.Since(begun) != company {
			t.Fatalf("a trip with %d calls after %s, want one after %s", len(calls), time.Since(begun), company)
		}
		f.land <- nil
		if err := <-alone; err != nil {
			t.Fatal(err)
		}
	})
}

// A turn goes to one that waits, once, whatever becomes of it; a call that is not answered in time fails, and gives its turn on.
func TestCombinerHandsTurnsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f := testCombiner(1)
		bounded := func(calls ...*call) <-chan error {
			ended := make(chan error, 1)
			go func() {
				ended <- c.doWithin(t.Context(), patience{company: time.Millisecond, whole: 3 * time.Millisecond}, calls...)
			}()
			synctest.Wait()
			return ended
		}
		for range 3 { // a turn that got lost would be missed in the next round
			first := start(t.Context(), c, newTestCall())
			<-f.started
			begun := time.Now()
			late := bounded(newTestCall())
			if err := <-late; !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 3*time.Millisecond {
				t.Fatalf("error %v after %s", err, time.Since(begun))
			}
			ctx, cancel := context.WithCancel(t.Context())
			leaves, stays := start(ctx, c, newTestCall()), start(t.Context(), c, newTestCall())
			// The turn is handed to the one that leaves at the same moment: it may fly, or hand the turn on.
			cancel()
			f.land <- nil
			if calls := <-f.started; len(calls) == 0 || len(calls) > 2 {
				t.Fatalf("a trip with %d calls", len(calls))
			}
			f.land <- nil
			if err := <-leaves; err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if err := errors.Join(<-first, <-stays); err != nil {
				t.Fatal(err)
			}
		}
		if c.turns != 1 || len(c.waiting) != 0 {
			t.Fatalf("%d turns and %d calls are left, want 1 and 0", c.turns, len(c.waiting))
		}
	})
}

// No turn is lost among many callers, patient ones and ones that leave: it would be missed in the end, or somebody would wait for ever.
func TestCombinerUnderLoad(t *testing.T) {
	c := newCombiner(2, func([]*call) { runtime.Gosched() })
	const callers, rounds = 64, 300
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			for i := range rounds {
				ctx, cancel := context.WithCancel(t.Context())
				if (n+i)%100 == 0 {
					cancel()
				}
				p := patience{whole: time.Minute}
				if n%8 == 0 {
					p.company = time.Millisecond
				}
				if err := c.doWithin(ctx, p, newTestCall(), newTestCall()); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	if c.turns != 2 || len(c.waiting) != 0 {
		t.Fatalf("%d turns and %d calls are left, want 2 and 0", c.turns, len(c.waiting))
	}
}
