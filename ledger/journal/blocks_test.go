package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// segments returns the bytes of every segment in the directory, live ones and others, by name.
func segments(t *testing.T, disk *journaltest.Disk) map[string][]byte {
	t.Helper()
	dir := "/data/journal/" + incarnation.String()
	names, err := disk.Process().List(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, name := range names {
		if !strings.HasPrefix(name, "0000") {
			continue
		}
		if found[name], err = disk.ReadFile(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// blank returns how many zeros data ends in.
func blank(data []byte) int { return len(data) - len(bytes.TrimRight(data, "\x00")) }

// TestSegmentsGrowInBlocks: the rest of a block is zeros behind the last frame. Only the newest segment has them, and none that was sealed,
// closed, adopted or retired.
func TestSegmentsGrowInBlocks(t *testing.T) {
	disk := journaltest.NewDisk(1)
	p := disk.Process()
	cfg := config(p)
	cfg.Keep = 1 << 40
	j := create(t, cfg)
	sizes := map[int]bool{}
	for n := range 30 {
		wait(t)(j.Event(credit(n, 1)))
		newest := fmt.Sprintf("%016d.seg", j.Stats().Segments)
		for name, data := range segments(t, disk) {
			switch {
			case name == newest && len(data)%(1<<10) != 0:
				t.Fatalf("%s has %d bytes: no whole blocks", name, len(data))
			case name == newest:
				sizes[len(data)] = true
			case blank(data) > 0:
				t.Fatalf("%s was sealed with %d zeros at its end", name, blank(data))
			}
		}
	}
	if len(sizes) != 4 {
		t.Errorf("segments of 4 KiB grew to %v", sizes)
	}
	p.Kill()

	cfg.FS = disk.Process()
	again, rec := adopt(t, cfg)
	if len(rec.Damage) > 0 || rec.TornBytes != 0 {
		t.Fatalf("zeros were taken for something: %+v", rec)
	}
	var live int64
	for name, data := range segments(t, disk) {
		if strings.HasSuffix(name, ".seg") {
			live += int64(len(data))
		}
		if blank(data) > 0 {
			t.Errorf("%s was adopted with %d zeros at its end", name, blank(data))
		}
	}
	if s := again.Stats(); s.LiveBytes != live {
		t.Errorf("%d live bytes, the files have %d", s.LiveBytes, live)
	}
	ev := credit(31, 1)
	if wait(t)(again.Event(ev)); ev.Seq != 31 {
		t.Errorf("seq %d: a clean end leaves no gap in the sequence", ev.Seq)
	}
	drain(t, again)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range segments(t, disk) {
		if blank(data) > 0 {
			t.Errorf("%s was closed with %d zeros at its end", name, blank(data))
		}
	}

	cfg.FS = disk.Process()
	last, _ := adopt(t, cfg)
	wait(t)(last.Event(credit(32, 1)))
	drain(t, last)
	if err := last.Retire(); err != nil {
		t.Fatal(err)
	}
	events := 0
	for _, err := range journal.Reship(cfg, incarnation, -1, ledger.Hole{Through: 1 << 60}) {
		if events++; err != nil {
			t.Error(err)
		}
	}
	if events != 32 {
		t.Errorf("%d events are kept", events)
	}
	for name, data := range segments(t, disk) {
		if !strings.HasSuffix(name, ".kept") || blank(data) > 0 {
			t.Errorf("%s was retired with %d zeros at its end", name, blank(data))
		}
	}
}

// TestBlocksInADiskThatIsFull: what fits into the block is taken; the next block is refused as a write is, and what closes the requests
// that are open is found by the next owner.
func TestBlocksInADiskThatIsFull(t *testing.T) {
	disk := journaltest.NewDisk(1)
	j := create(t, config(disk.Process()))
	wait(t)(j.Event(credit(1, 1)))
	disk.SetFree(100) // not a block
	durable := 1
	for {
		c, err := j.Event(credit(durable+1, 1))
		if err == nil {
			err = c.Wait(t.Context())
		}
		if err == nil {
			durable++
			continue
		}
		if !errors.Is(err, journal.ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		break
	}
	if durable < 3 {
		t.Errorf("%d events of some 300 bytes fit into a block of 1 KiB", durable)
	}
	if err := j.Close(); !errors.Is(err, journal.ErrFailed) {
		t.Fatal(err)
	}
	disk.SetFree(-1)
	again, rec := adopt(t, config(disk.Process()))
	if len(rec.Damage) > 0 || again.LastSeq(ledger.Partition(1, partitions)) != uint64(durable) {
		t.Fatalf("found %+v, through %d", rec, again.LastSeq(ledger.Partition(1, partitions)))
	}
	wait(t)(again.Event(credit(100, 1)))
}

// TestBlocksAreWithinTheBound: a journal admits no more than fits on the disk that it was given (L7).
func TestBlocksAreWithinTheBound(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	cfg.MaxBytes = 4 * cfg.SegmentBytes
	j := create(t, cfg)
	for n := 0; ; n++ {
		c, err := j.Event(credit(n, 1))
		if errors.Is(err, journal.ErrFull) {
			break
		}
		wait(t)(c, err)
		var size int64
		for _, data := range segments(t, disk) {
			size += int64(len(data))
		}
		if size > cfg.MaxBytes {
			t.Fatalf("%d bytes on the disk, bound %d", size, cfg.MaxBytes)
		}
	}
}

// TestZerosInThePlaceOfRecords: zeros are the clean end of the last segment only behind all that was synced.
func TestZerosInThePlaceOfRecords(t *testing.T) {
	for name, tt := range map[string]struct {
		records int  // of five, the last ones, that are zeros
		middle  bool // not the last ones, but the third
		forget  bool // the synced mark is lost, as it may be with the power
		damage  int
		left    int
	}{
		"none":                                     {left: 5},
		"the last one, which was synced":           {records: 1, damage: 1, left: 4},
		"three, which were synced":                 {records: 3, damage: 1, left: 2},
		"one in the middle":                        {middle: true, damage: 1, left: 4},
		"one in the middle, and the mark":          {middle: true, forget: true, damage: 1, left: 4},
		"the last one, that nobody knows of":       {records: 1, forget: true, left: 4},
		"all of them, and nobody knows of any":     {records: 5, forget: true, left: 0},
		"none, and nobody knows how far it synced": {forget: true, left: 5},
	} {
		t.Run(name, func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			p := disk.Process()
			j := create(t, config(p))
			ends := []int64{j.Stats().LiveBytes}
			for n := range 5 {
				wait(t)(j.Event(credit(n, 1)))
				ends = append(ends, j.Stats().LiveBytes)
			}
			p.Kill()
			data, err := disk.ReadFile(segmentPath(1))
			if err != nil {
				t.Fatal(err)
			}
			if tt.middle {
				clear(data[ends[2]:ends[3]])
			} else {
				clear(data[ends[5-tt.records]:ends[5]])
			}
			if err := disk.WriteFile(segmentPath(1), data); err != nil {
				t.Fatal(err)
			}
			if tt.forget {
				slots, _ := disk.ReadFile("/data/journal/" + incarnation.String() + "/slots")
				clear(slots[64:128])
				if err := disk.WriteFile("/data/journal/"+incarnation.String()+"/slots", slots); err != nil {
					t.Fatal(err)
				}
			}
			again, rec := adopt(t, config(disk.Process()))
			if len(rec.Damage) != tt.damage || rec.TornBytes != 0 {
				t.Errorf("found %+v", rec)
			}
			for _, d := range rec.Damage {
				from := ends[5-tt.records]
				if tt.middle {
					from = ends[2]
				}
				if d.Offset != from || d.Offset+d.Length > ends[5] {
					t.Errorf("%s: the records lie from %d to %d", d, from, ends[5])
				}
			}
			if got := drain(t, again); len(got) != tt.left {
				t.Errorf("%d events are left", len(got))
			}
			ev := credit(9, 1)
			wait(t)(again.Event(ev))
			if lost := ev.Seq > 1<<24; lost != (tt.damage > 0) {
				t.Errorf("seq %d after %d damages", ev.Seq, tt.damage)
			}
		})
	}
}

// Under a load that never pauses, while one batch is fsynced the next is pending: what the log has acknowledged goes all the same, or the
// journal would fill up and refuse (L7).
func TestSegmentsGoUnderLoad(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	cfg.SegmentBytes, cfg.Keep = 8<<10, 0
	j := create(t, cfg)
	const events = 2000
	n, most := 0, int64(0)
	done := make(chan struct{})
	disk.Inject(func(op journaltest.Op) journaltest.Fault {
		if op.Kind != "sync" || !strings.HasSuffix(op.Path, ".seg") || n > events {
			return journaltest.NoFault
		}
		if n++; n > events {
			close(done)
			return journaltest.NoFault
		}
		c, err := j.Event(credit(n, 1))
		if err != nil {
			t.Error(err)
		}
		c.Done() // it is urgent: the writer finds it pending when this fsync is over
		drain(t, j)
		most = max(most, j.Stats().LiveBytes)
		return journaltest.NoFault
	})
	wait(t)(j.Event(credit(0, 1)))
	<-done
	if allowed := 4 * cfg.SegmentBytes; most > allowed {
		t.Errorf("the journal took %d bytes with everything acknowledged, more than %d", most, allowed)
	}
}
