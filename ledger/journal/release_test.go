package journal_test

import (
	"testing"
	"testing/synctest"

	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// The ends of holds that the counters have not taken are found by every recovery, however long ago they were shipped: the adopter would
// otherwise drop a hold whose charge the quota consumer has taken out of settled.
func TestEndsStayUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := journaltest.NewDisk(1)
		process := disk.Process()
		cfg := config(process)
		cfg.AwaitReleases = true
		j := create(t, cfg)
		const holds = 40 // some ten segments
		ends := make([]journal.Commit, 0, holds)
		for n := range holds {
			wait(t)(j.Open(openRecord(n)))
			var c journal.Commit
			var err error
			if n%3 == 0 {
				_, c, err = j.Void(id(n))
			} else {
				c, err = j.Settle(settleEvent(n))
			}
			wait(t)(c, err)
			ends = append(ends, c)
		}
		drain(t, j)
		synctest.Wait()
		before := j.Stats().Segments
		if before < 5 {
			t.Fatalf("%d segments, too few to show anything", before)
		}
		j.Released(ends[:holds/2]...)
		synctest.Wait()
		if after := j.Stats().Segments; after >= before {
			t.Errorf("%d segments after half of the ends were released, %d before", after, before)
		}
		process.Kill()

		for range 2 { // an adopter that dies before it has released anything leaves all of it to the next one
			process = disk.Process()
			cfg.FS = process
			var found journal.Recovered
			j, found = adopt(t, cfg)
			have := map[string]bool{}
			for _, r := range found.Releases {
				have[r.Hold.String()] = true
			}
			for n := holds / 2; n < holds; n++ {
				if !have[id(n).String()] {
					t.Fatalf("the end of hold %d is gone", n)
				}
			}
			drain(t, j)
			wait(t)(j.Event(credit(1, 1)))
			drain(t, j)
			synctest.Wait()
			if s := j.Stats(); s.Segments < 3 {
				t.Fatalf("%d segments are left before anything was released", s.Segments)
			}
			process.Kill()
		}
		cfg.FS = disk.Process()
		j, _ = adopt(t, cfg)
		j.ReleasedRecovered()
		drain(t, j)
		wait(t)(j.Event(credit(2, 1)))
		drain(t, j)
		synctest.Wait()
		if s := j.Stats(); s.Segments != 1 {
			t.Errorf("%d segments are left after all was released", s.Segments)
		}
		if err := j.Retire(); err != nil {
			t.Error(err)
		}
	})
}
