package journal_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// fill appends, ships and acknowledges events until n segments were put away.
func fill(t *testing.T, j *journal.Journal, n int) {
	t.Helper()
	for i := range 13 * n {
		wait(t)(j.Event(credit(i, 1)))
		drain(t, j)
		synctest.Wait()
	}
}

func TestKeptSegmentsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(journaltest.NewDisk(1).Process())
		cfg.Keep = 2 * time.Hour
		j := create(t, cfg)
		fill(t, j, 4)
		kept := j.Stats().KeptBytes
		if kept < 3*cfg.SegmentBytes/2 {
			t.Fatalf("%d bytes kept", kept)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := j.Stats().KeptBytes; got != kept {
			t.Fatalf("%d of %d bytes kept after half the time", got, kept)
		}
		time.Sleep(time.Hour + 2*time.Minute)
		synctest.Wait()
		if got := j.Stats().KeptBytes; got != 0 {
			t.Fatalf("%d bytes kept after the time", got)
		}
		for range journal.Reship(cfg, incarnation, -1, ledger.Hole{After: 0, Through: 5}) {
			t.Fatal("still on the disk")
		}
	})
}

func TestKeptSegmentsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := journaltest.NewDisk(1)
		cfg := config(disk.Process())
		cfg.Keep, cfg.KeepBytes = time.Hour, 9<<10
		j := create(t, cfg)
		fill(t, j, 6)
		if got := j.Stats().KeptBytes; got == 0 || got > cfg.KeepBytes {
			t.Fatalf("%d bytes kept, bound %d", got, cfg.KeepBytes)
		}
		disk.PowerLoss() // what is kept is counted again by whoever adopts it
		cfg.FS = disk.Process()
		again, _ := adopt(t, cfg)
		if got := again.Stats().KeptBytes; got == 0 || got > 2*cfg.KeepBytes {
			t.Fatalf("%d bytes kept after the adoption", got)
		}
	})
}

func TestSweepLeavesWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := journaltest.NewDisk(1)
		renames := 0
		disk.Inject(func(op journaltest.Op) journaltest.Fault {
			if op.Kind == "rename" {
				if renames++; renames == 2 {
					return journaltest.KillBefore
				}
			}
			return journaltest.NoFault
		})
		cfg := config(disk.Process())
		if _, err := journal.Create(cfg, incarnation); !errors.Is(err, journaltest.ErrKilled) {
			t.Fatal(err)
		}
		disk.Inject(nil)
		cfg.FS = disk.Process()
		if free, err := journal.Adoptable(cfg); err != nil || len(free) != 0 {
			t.Fatalf("an unfinished directory is adoptable: %v %v", free, err)
		}
		j, err := journal.Create(cfg, id(77))
		if err != nil {
			t.Fatal(err)
		}
		if err := journal.Sweep(cfg); err != nil {
			t.Fatal(err)
		}
		names, err := cfg.FS.List(cfg.Root)
		if err != nil || len(names) != 1 || names[0] != id(77).String() {
			t.Fatalf("after sweep: %v %v", names, err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if err := journal.Sweep(cfg); err != nil {
			t.Fatal(err)
		}
		if free, err := journal.Adoptable(cfg); err != nil || len(free) != 1 {
			t.Fatalf("sweep took what is to be recovered: %v %v", free, err)
		}
	})
}

// TestNewerVersionIsLeftAlone: a directory of a newer version of the program is refused and not touched.
func TestNewerVersionIsLeftAlone(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	if err := create(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	data, err := disk.ReadFile(segmentPath(1))
	if err != nil {
		t.Fatal(err)
	}
	newer := journal.WithVersion(data, 2)
	if err := disk.WriteFile(segmentPath(1), newer); err != nil {
		t.Fatal(err)
	}
	if _, _, err := journal.Adopt(cfg, incarnation); !errors.Is(err, journal.ErrNewer) {
		t.Fatal(err)
	}
	if after, _ := disk.ReadFile(segmentPath(1)); string(after) != string(newer) {
		t.Fatal("it was changed")
	}
}
