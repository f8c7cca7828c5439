package journal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// TestFailureIsSticky holds that after a failed write, fsync or full disk nothing is promised any more, what was promised is
// still shipped, and nothing else is.
func TestFailureIsSticky(t *testing.T) {
	faults := map[string]func(*journaltest.Disk){
		"fsync": func(d *journaltest.Disk) { failOnce(d, "sync", journaltest.FailIO) },
		"write": func(d *journaltest.Disk) { failOnce(d, "write", journaltest.FailIO) },
		"short": func(d *journaltest.Disk) { failOnce(d, "write", journaltest.ShortWrite) },
		"full":  func(d *journaltest.Disk) { d.SetFree(0) },
	}
	for name, inject := range faults {
		t.Run(name, func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			p := disk.Process()
			j := create(t, config(p))
			wait(t)(j.Open(openRecord(1)))
			wait(t)(j.Open(openRecord(2)))
			wait(t)(j.Settle(settleEvent(1)))
			inject(disk)
			ev := settleEvent(2)
			ev.Request.Model = strings.Repeat("m", 1<<10) // more than what is left of a block
			c, err := j.Settle(ev)
			if err == nil {
				err = c.Wait(t.Context())
			}
			if !errors.Is(err, journal.ErrFailed) {
				t.Fatalf("settle on a failing disk: %v", err)
			}
			if name == "full" && !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the cause is lost: %v", err)
			}
			select {
			case <-j.FailedC():
			default:
				t.Fatal("FailedC is open")
			}
			disk.SetFree(-1) // the disk works again: too late
			for what, err := range map[string]error{
				"open": second(j.Open(openRecord(3))), "event": second(j.Event(credit(1, 1))),
				"failed": j.Failed(), "retire": j.Retire(),
			} {
				if !errors.Is(err, journal.ErrFailed) {
					t.Errorf("%s: %v", what, err)
				}
			}
			got, err := j.Next(t.Context(), 10)
			if err != nil || len(got) != 1 || got[0].Seq != 1 {
				t.Fatalf("next: %v %v", got, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if got, err := j.Next(ctx, 10); len(got) > 0 || !errors.Is(err, context.Canceled) {
				t.Fatalf("handed out what is not synced: %v %v", got, err)
			}
			if err := j.Close(); !errors.Is(err, journal.ErrFailed) {
				t.Fatalf("close: %v", err)
			}
			adopted, _ := adopt(t, config(disk.Process()))
			wait(t)(adopted.Event(credit(2, 1)))
		})
	}
}

func second(_ journal.Commit, err error) error { return err }

func failOnce(d *journaltest.Disk, kind string, fault journaltest.Fault) {
	done := false
	d.Inject(func(op journaltest.Op) journaltest.Fault {
		if done || op.Kind != kind {
			return journaltest.NoFault
		}
		done = true
		return fault
	})
}

// TestFailedFsyncIsRepaired: a settle whose fsync failed is readable in the page cache; recovery ships it only after it has put it
// on the disk once more, for the system takes it for clean.
func TestFailedFsyncIsRepaired(t *testing.T) {
	for seed := range uint64(20) {
		disk := journaltest.NewDisk(seed)
		p := disk.Process()
		j := create(t, config(p))
		wait(t)(j.Open(openRecord(1)))
		failOnce(disk, "sync", journaltest.FailIO)
		if c, err := j.Settle(settleEvent(1)); err != nil || c.Wait(t.Context()) == nil {
			t.Fatal("the failed fsync went unnoticed")
		}
		p.Kill()
		again, rec := adopt(t, config(disk.Process()))
		if len(rec.Opens) != 0 || len(rec.Releases) != 1 {
			t.Fatalf("recovered %+v", rec)
		}
		if got, err := again.Next(t.Context(), 9); err != nil || len(got) != 1 {
			t.Fatalf("shipped %v, %v", got, err)
		}
		disk.PowerLoss()
		_, rec = adopt(t, config(disk.Process()))
		if len(rec.Opens) != 0 || len(rec.Releases) != 1 || len(rec.Damage) != 0 {
			t.Fatalf("seed %d: after the power came back: %+v", seed, rec)
		}
	}
}

func segmentPath(index int) string {
	return fmt.Sprintf("/data/journal/%s/%016d.seg", incarnation, index)
}

// TestDamageIsReported flips bits in what was synced: it is never taken for a torn tail, and everything else is read.
func TestDamageIsReported(t *testing.T) {
	build := func(t *testing.T) *journaltest.Disk {
		disk := journaltest.NewDisk(3)
		j := create(t, config(disk.Process()))
		for n := range 30 {
			wait(t)(j.Open(openRecord(n)))
			if n%2 == 0 {
				wait(t)(j.Settle(settleEvent(n)))
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		return disk
	}
	whole, err := build(t).ReadFile(segmentPath(2))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{2, 90, 104, 500, 1500, int64(len(whole)) - 3} {
		t.Run(fmt.Sprint("middle segment, byte ", at), func(t *testing.T) {
			disk := build(t)
			if err := disk.Flip(segmentPath(2), at, 3); err != nil {
				t.Fatal(err)
			}
			for range 2 { // reported again, until somebody looks after it
				j, rec := adopt(t, config(disk.Process()))
				if len(rec.Damage) != 1 || rec.Damage[0].File != segmentPath(2) || rec.Damage[0].Offset > at ||
					rec.Damage[0].Offset+rec.Damage[0].Length <= at {
					t.Fatalf("damage at %d: %v", at, rec.Damage)
				}
				if n := len(rec.Opens) + len(rec.Releases); n < 28 || n > 31 {
					t.Fatalf("only %d of 30 holds were read", n)
				}
				if len(j.Damage()) != 1 || j.Stats().Damages != 1 {
					t.Fatal("not in the statistics")
				}
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	flipLast := func(t *testing.T, disk *journaltest.Disk) {
		names, _ := disk.Process().List("/data/journal/" + incarnation.String())
		last := 0
		for _, n := range names {
			var i int
			if _, err := fmt.Sscanf(n, "%d.seg", &i); err == nil {
				last = max(last, i)
			}
		}
		data, _ := disk.ReadFile(segmentPath(last))
		if err := disk.Flip(segmentPath(last), int64(len(data))-2, 1); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("last frame of the last segment", func(t *testing.T) {
		disk := build(t)
		flipLast(t, disk)
		j, rec := adopt(t, config(disk.Process()))
		if len(rec.Damage) != 1 || rec.TornBytes != 0 {
			t.Fatalf("a synced frame was cut off as torn: %+v", rec)
		}
		before := j.LastSeq(0) + j.LastSeq(1) + j.LastSeq(2) + j.LastSeq(3)
		ev := credit(1, 1)
		wait(t)(j.Event(ev))
		if ev.Seq < 1<<24 {
			t.Fatalf("seq %d (of %d) may have been given out before", ev.Seq, before)
		}
	})
	t.Run("last frame, and the mark that it was synced is lost", func(t *testing.T) {
		disk := build(t)
		flipLast(t, disk)
		if err := disk.Flip("/data/journal/"+incarnation.String()+"/slots", 9, 1); err != nil {
			t.Fatal(err)
		}
		_, rec := adopt(t, config(disk.Process()))
		if rec.TornBytes == 0 || len(rec.Opens) == 0 {
			t.Fatalf("%+v", rec)
		}
		for _, o := range rec.Opens {
			if !o.Doubtful {
				t.Errorf("hold %d may have ended in what was cut off", o.Hold[15])
			}
		}
	})
	t.Run("slots", func(t *testing.T) {
		disk := build(t)
		if err := disk.Flip("/data/journal/"+incarnation.String()+"/slots", 9, 1); err != nil {
			t.Fatal(err)
		}
		_, rec := adopt(t, config(disk.Process()))
		if len(rec.Damage) != 1 || len(rec.Opens) != 15 || rec.Opens[0].Slot.Found || rec.Opens[0].Doubtful {
			t.Fatalf("%v, %d open", rec.Damage, len(rec.Opens))
		}
	})
	t.Run("missing segment", func(t *testing.T) {
		disk := build(t)
		if err := disk.Process().Remove(segmentPath(2)); err != nil {
			t.Fatal(err)
		}
		_, rec := adopt(t, config(disk.Process()))
		if len(rec.Damage) != 1 || !strings.Contains(rec.Damage[0].Reason, "missing") {
			t.Fatalf("%v", rec.Damage)
		}
		doubtful := 0
		for _, o := range rec.Opens {
			if o.Doubtful {
				doubtful++
			}
		}
		if doubtful == 0 || doubtful == len(rec.Opens) {
			t.Fatalf("%d of %d doubtful", doubtful, len(rec.Opens))
		}
	})
}

// TestDamagedSegmentIsSetAside: when everything readable in it is shipped and closed it leaves recovery, but not the disk.
func TestDamagedSegmentIsSetAside(t *testing.T) {
	disk := journaltest.NewDisk(3)
	cfg := config(disk.Process())
	j := create(t, cfg)
	for n := range 10 {
		wait(t)(j.Event(credit(n, 1)))
	}
	_ = j.Close()
	if err := disk.Flip(segmentPath(1), 600, 0); err != nil {
		t.Fatal(err)
	}
	j, rec := adopt(t, cfg)
	if len(rec.Damage) != 1 {
		t.Fatal(rec.Damage)
	}
	got := drain(t, j)
	checkOrder(t, got, nil)
	holes := 0
	var mark ledger.Watermark
	for _, p := range got {
		if mark.See(p.Seq, p.Prev) == ledger.SightAfterHole {
			holes++
		}
	}
	if len(got) != 9 || holes != 1 {
		t.Fatalf("%d events shipped, %d holes", len(got), holes)
	}
	wait(t)(j.Event(credit(11, 1)))
	drain(t, j)
	eventually(t, func() bool { return j.Stats().Segments == 1 })
	if err := j.Retire(); err != nil {
		t.Fatal(err)
	}
	if err := journal.Sweep(cfg); err != nil {
		t.Fatal(err)
	}
	met := 0
	for _, err := range journal.Reship(cfg, incarnation, -1, ledger.Hole{Through: 1 << 60}) {
		if _, ok := errors.AsType[*journal.DamageError](err); ok {
			met++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if met != 1 {
		t.Fatalf("%d damages left for the operator", met)
	}
}

// A journal that a full disk lets nobody make leaves nothing behind: every try would fill the disk more.
func TestCreateOnAFullDisk(t *testing.T) {
	disk := journaltest.NewDisk(1)
	for free := int64(100); ; free *= 2 {
		disk.SetFree(free)
		p := disk.Process()
		j, err := journal.Create(config(p), incarnation)
		if err == nil {
			_ = j.Close()
			if free == 100 {
				t.Fatal("100 bytes were enough")
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if left, err := p.List(config(p).Root); err != nil || len(left) > 0 {
			t.Fatalf("with %d bytes free: %v is left behind, %v", free, left, err)
		}
	}
}

func TestOwnership(t *testing.T) {
	disk := journaltest.NewDisk(1)
	p := disk.Process()
	j := create(t, config(p))
	wait(t)(j.Open(openRecord(1)))
	other := config(disk.Process())
	if free, err := journal.Adoptable(other); err != nil || len(free) != 0 {
		t.Fatalf("adoptable while its owner lives: %v %v", free, err)
	}
	if _, _, err := journal.Adopt(other, incarnation); !errors.Is(err, journal.ErrLocked) {
		t.Fatalf("adopt while its owner lives: %v", err)
	}
	if _, err := journal.Create(other, incarnation); err == nil {
		t.Fatal("created twice")
	}
	p.Kill()
	if free, err := journal.Adoptable(other); err != nil || len(free) != 1 || free[0] != incarnation {
		t.Fatalf("adoptable after a kill: %v %v", free, err)
	}
	wrong := other
	wrong.Partitions = 5
	if _, _, err := journal.Adopt(wrong, incarnation); err == nil || !strings.Contains(err.Error(), "partitions") {
		t.Fatalf("adopted with another number of partitions: %v", err)
	}
	again, rec := adopt(t, other)
	if len(rec.Opens) != 1 {
		t.Fatal(rec)
	}
	if _, _, err := journal.Adopt(config(disk.Process()), incarnation); !errors.Is(err, journal.ErrLocked) {
		t.Fatalf("adopted twice: %v", err)
	}
	_ = again.Close()
	if err := j.Failed(); err != nil {
		t.Fatal("the dead one noticed nothing yet:", err)
	}
	if _, err := j.Event(credit(1, 1)); err != nil {
		t.Fatal(err)
	}
	<-j.FailedC() // and as soon as it touches the disk it does
}

// TestLongLivedOpensDoNotPin: segments behind a request that stays open are given up, and the request is still recovered, with
// its slot.
func TestLongLivedOpensDoNotPin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := journaltest.NewDisk(1)
		p := disk.Process()
		j := create(t, config(p))
		wait(t)(j.Open(openRecord(200)))
		wait(t)(j.Reopen(id(200), 8, 77))
		j.Slot(id(200)).RaiseProgress(5, 50)
		for n := range 150 {
			wait(t)(j.Open(openRecord(n)))
			wait(t)(j.Settle(settleEvent(n)))
			drain(t, j)
			synctest.Wait()
			if s := j.Stats(); s.Segments > 4 {
				t.Fatalf("request %d: %d segments are live", n, s.Segments)
			}
		}
		s := j.Stats()
		if s.CopiedFrames == 0 || s.CopiedFrames > 30 {
			t.Fatalf("%d copies", s.CopiedFrames)
		}
		j.Slot(id(200)).RaiseProgress(9, 90)
		p.Kill()
		_, rec := adopt(t, config(disk.Process()))
		if len(rec.Opens) != 1 {
			t.Fatalf("recovered %+v", rec.Opens)
		}
		o := rec.Opens[0]
		if o.Hold != id(200) || o.Epoch != 8 || o.Amount != 77 || o.Slot.Chunks != 9 || o.Slot.Bytes != 90 {
			t.Fatalf("recovered %+v", o)
		}
	})
}

// TestManyOpensDoNotFeedOnTheirCopies: open records that outweigh everything else are not copied round and round.
func TestManyOpensDoNotFeedOnTheirCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := create(t, config(journaltest.NewDisk(1).Process()))
		for n := range 60 {
			wait(t)(j.Open(openRecord(n)))
			synctest.Wait()
		}
		if s := j.Stats(); s.CopiedFrames > 60 {
			t.Fatalf("%d copies of 60 records", s.CopiedFrames)
		}
	})
}

// TestShipperBehind: what does not fit in memory is read from the disk, in order, each once; a new shipper starts over.
func TestShipperBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(journaltest.NewDisk(1).Process())
		cfg.MemoryBytes, cfg.InFlight = 16<<10, 40
		j := create(t, cfg)
		total := 0
		add := func(n int) {
			for range n {
				total++
				wait(t)(j.Event(credit(total, int64(1+total%9))))
			}
		}
		add(100)
		s := j.Stats()
		if !s.Behind || s.MemoryBytes > cfg.MemoryBytes || s.Depth != 100 {
			t.Fatalf("%+v", s)
		}
		var all []ledger.Parcel
		next := func(most int) {
			got, err := j.Next(t.Context(), most)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, got...)
		}
		for len(all) < 40 {
			next(7)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			synctest.Wait()
			cancel()
		}()
		if got, err := j.Next(ctx, 7); err == nil {
			t.Fatalf("more than %d in flight: %d", cfg.InFlight, len(got))
		}
		for _, p := range all {
			j.Acked(p.Partition, p.Seq)
		}
		for len(all) < 70 {
			next(5)
		}
		add(30)
		j.Rewind()
		all = all[:40]
		for len(all) < total {
			next(7)
			for _, p := range all {
				j.Acked(p.Partition, p.Seq)
			}
		}
		checkOrder(t, all, map[int]uint64{})
		add(3) // back in memory
		if j.Stats().Behind {
			t.Fatal("still behind")
		}
		next(10)
		checkOrder(t, all, map[int]uint64{})
		for _, p := range all {
			j.Acked(p.Partition, p.Seq)
		}
		if s := j.Stats(); s.Depth != 0 || s.InFlight != 0 || len(all) != total || s.OldestUnackedAge != 0 {
			t.Fatalf("%d of %d, %+v", len(all), total, s)
		}
	})
}

func TestAckOfWhatWasNeverShipped(t *testing.T) {
	j := create(t, config(journaltest.NewDisk(1).Process()))
	wait(t)(j.Event(credit(1, 1)))
	defer func() {
		if recover() == nil {
			t.Error("an acknowledgement for what was not handed out was taken")
		}
	}()
	j.Acked(ledger.Partition(1, partitions), 1)
}

func TestAwaitAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := create(t, config(journaltest.NewDisk(1).Process()))
		ev := credit(1, 1)
		wait(t)(j.Event(ev))
		p := ledger.Partition(1, partitions)
		done := make(chan error, 1)
		go func() { done <- j.AwaitAcked(t.Context(), p, ev.Seq) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatal("did not wait:", err)
		default:
		}
		drain(t, j)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		go func() { done <- j.AwaitAcked(t.Context(), p, 99) }()
		synctest.Wait()
		_ = j.Close()
		if err := <-done; !errors.Is(err, journal.ErrClosed) {
			t.Fatal(err)
		}
	})
}

// TestUnreadableSegment: a disk that forgets what it had is noticed when the shipper reads it back, and not written to any more.
func TestUnreadableSegment(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	cfg.MemoryBytes = 1
	j := create(t, cfg)
	for n := range 12 {
		wait(t)(j.Event(credit(n, 1)))
	}
	if err := disk.Flip(segmentPath(1), 700, 0); err != nil {
		t.Fatal(err)
	}
	var got []ledger.Parcel
	for len(got) < 11 {
		more, err := j.Next(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, more...)
	}
	checkOrder(t, got, nil)
	if err := j.Failed(); !errors.Is(err, journal.ErrFailed) || len(j.Damage()) != 1 {
		t.Fatalf("%v, %v", err, j.Damage())
	}
}

// TestSlotIsFreedWhenTheEndIsDurable: a slot that is reused while the settle of its hold can still be lost would lose the hold's
// progress with it.
func TestSlotIsFreedWhenTheEndIsDurable(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	cfg.Slots = 1
	j := create(t, cfg)
	wait(t)(j.Open(openRecord(1)))
	j.Slot(id(1)).RaiseProgress(5, 55)
	gate := make(chan struct{})
	disk.Inject(func(op journaltest.Op) journaltest.Fault {
		if op.Kind != "write" {
			return journaltest.NoFault
		}
		<-gate
		return journaltest.KillBefore
	})
	c, err := j.Settle(settleEvent(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Open(openRecord(2)); !errors.Is(err, journal.ErrFull) {
		t.Errorf("the slot was given away too early: %v", err)
	}
	close(gate)
	if err := c.Wait(t.Context()); err == nil {
		t.Fatal("settled after a kill")
	}
	disk.Inject(nil)
	_, rec := adopt(t, config(disk.Process()))
	if len(rec.Opens) != 1 || rec.Opens[0].Slot.Chunks != 5 {
		t.Fatalf("%+v", rec.Opens)
	}
}

// TestAcknowledgementsAreRemembered: after a kill only what was not acknowledged is shipped again.
func TestAcknowledgementsAreRemembered(t *testing.T) {
	disk := journaltest.NewDisk(1)
	p := disk.Process()
	j := create(t, config(p))
	for n := range 5 {
		wait(t)(j.Event(credit(n, 1)))
	}
	partition := ledger.Partition(1, partitions)
	for seq := uint64(1); seq <= 3; seq++ {
		if got, err := j.Next(t.Context(), 1); err != nil || got[0].Seq != seq {
			t.Fatal(got, err)
		}
		j.Acked(partition, seq)
	}
	p.Kill()
	again, _ := adopt(t, config(disk.Process()))
	if got := again.AckedThrough(partition); got != 3 {
		t.Fatalf("acknowledged through %d", got)
	}
	if got := drain(t, again); len(got) != 2 || got[0].Seq != 4 {
		t.Fatalf("shipped again: %+v", got)
	}
}

// TestReshipReadsWhatIsSynced: a record whose fsync failed may be read, and must not be shipped.
func TestReshipReadsWhatIsSynced(t *testing.T) {
	disk := journaltest.NewDisk(1)
	cfg := config(disk.Process())
	j := create(t, cfg)
	wait(t)(j.Event(credit(1, 1)))
	failOnce(disk, "sync", journaltest.FailIO)
	if c, err := j.Event(credit(2, 1)); err != nil || c.Wait(t.Context()) == nil {
		t.Fatal("the failed fsync went unnoticed")
	}
	n := 0
	for p, err := range journal.Reship(cfg, incarnation, -1, ledger.Hole{Through: 9}) {
		if n++; err != nil || p.Seq != 1 {
			t.Fatal(p.Seq, err)
		}
	}
	if n != 1 {
		t.Fatalf("%d events", n)
	}
}

// TestReread: what one stuck partition left behind is read again, and nothing that Next did not hand out.
func TestReread(t *testing.T) {
	j := create(t, config(journaltest.NewDisk(1).Process()))
	for n := range 60 {
		wait(t)(j.Event(credit(n, int64(1+n%9))))
	}
	var handed []ledger.Parcel
	for len(handed) < 40 {
		got, err := j.Next(t.Context(), 40-len(handed))
		if err != nil {
			t.Fatal(err)
		}
		handed = append(handed, got...)
	}
	for partition := range partitions {
		var want, got []uint64
		for _, p := range handed {
			if p.Partition == partition && p.Seq > 5 {
				want = append(want, p.Seq)
			}
		}
		for after := uint64(5); ; {
			more, err := j.Reread(t.Context(), partition, after, 700)
			if err != nil {
				t.Fatal(err)
			}
			if len(more) == 0 {
				break
			}
			if len(more) > 3 {
				t.Fatalf("%d events in 700 bytes", len(more))
			}
			checkOrder(t, more, nil)
			for _, p := range more {
				got = append(got, p.Seq)
				after = p.Seq
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("partition %d: %v, want %v", partition, got, want)
		}
	}
}

// TestNoSegmentGoesBeforeTheNextIsThere: when the next segment cannot be made, the last one stays even if nothing in it is needed
// any more. A directory without a segment could never be adopted, and its incarnation never be closed.
func TestNoSegmentGoesBeforeTheNextIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := journaltest.NewDisk(1)
		cfg := config(disk.Process())
		cfg.SegmentBytes = 4 << 10
		j := create(t, cfg)
		disk.Inject(func(op journaltest.Op) journaltest.Fault {
			if op.Kind == "sync" && strings.HasSuffix(op.Path, ".seg.tmp") {
				return journaltest.FailIO
			}
			return journaltest.NoFault
		})
		for n := 1; j.Failed() == nil; n++ {
			c, err := j.Event(credit(n, 1))
			if err == nil {
				err = c.Wait(t.Context())
			}
			if err != nil && !errors.Is(err, journal.ErrFailed) {
				t.Fatal(err)
			}
		}
		disk.Inject(nil)
		parcels, err := j.Next(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parcels {
			j.Acked(p.Partition, p.Seq)
		}
		synctest.Wait() // the journal has looked for what it can put away
		_ = j.Close()
		adopted, found := adopt(t, config(disk.Process()))
		if len(found.Damage) > 0 || len(found.Opens) > 0 {
			t.Errorf("found %+v", found)
		}
		wait(t)(adopted.Event(credit(1, 1)))
		_ = adopted.Close()
	})
}
