package journal_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// world is a disk, the processes that work on it one after the other, and what was promised to whom.
type world struct {
	t    *testing.T
	disk *journaltest.Disk
	cfg  journal.Config
	rand *rand.Rand

	created        bool
	opened, closed map[int]bool // promised: a Commit returned nil
	tried          map[int]bool // Open was called
	chunks         map[int]int64
	log            []ledger.Parcel // the broker: everything ever shipped, duplicates too
	power          bool            // the power went at least once: slots may be stale
	eventID        int
}

func newWorld(t *testing.T, seed uint64) *world {
	disk := journaltest.NewDisk(seed)
	cfg := config(disk.Process())
	cfg.Keep = time.Hour
	return &world{
		t: t, disk: disk, cfg: cfg, rand: rand.New(rand.NewPCG(seed, 1)),
		opened: map[int]bool{}, closed: map[int]bool{}, tried: map[int]bool{}, chunks: map[int]int64{},
	}
}

// live is one process's life: requests come, are answered and shipped, until something fails or they are all done.
func (w *world) live() {
	j, err := journal.Create(w.cfg, incarnation)
	if err != nil {
		return
	}
	w.created = true
	defer func() { _ = j.Close() }()
	w.requests(j, 0, 60)
}

// requests returns false once the journal or the process is gone.
func (w *world) requests(j *journal.Journal, from, to int) bool {
	ok := func(c journal.Commit, err error) bool {
		if err == nil {
			err = c.Wait(w.t.Context())
		}
		synctest.Wait()
		return err == nil && j.Failed() == nil && w.cfg.FS.(*journaltest.Process).Alive()
	}
	for n := from; n < to+4; n++ {
		if n < to {
			w.tried[n] = true
			if !ok(j.Open(openRecord(n))) {
				return false
			}
			w.opened[n] = true
			slot := j.Slot(id(n))
			slot.SetForwarded(3)
			w.chunks[n] = chunksOf(n)
			slot.RaiseProgress(w.chunks[n], 5)
		}
		if k := n - 4; k >= from && k%8 != 0 { // every eighth stays open, and is copied forward
			if k%3 == 0 {
				_, c, err := j.Void(id(k))
				if !ok(c, err) {
					return false
				}
			} else if !ok(j.Settle(settleEvent(k))) {
				return false
			}
			w.closed[k] = true
		}
		if n%5 == 0 && !w.ship(j) {
			return false
		}
	}
	return true
}

// chunksOf is the progress of hold n: less than that of the holds that had its slot before.
func chunksOf(n int) int64 { return int64(1000 - n) }

// ship sends what is there; an acknowledgement may be lost.
func (w *world) ship(j *journal.Journal) bool {
	for j.Stats().Depth > int64(j.Stats().InFlight) {
		got, err := j.Next(w.t.Context(), 3)
		if err != nil {
			return false
		}
		w.log = append(w.log, got...)
		if w.rand.IntN(4) > 0 {
			for _, p := range got {
				j.Acked(p.Partition, p.Seq)
			}
		}
		synctest.Wait()
	}
	return j.Failed() == nil
}

// recover adopts the directory, checks what it says, and ends every open hold. false: it died again.
func (w *world) recover() bool {
	w.t.Helper()
	w.cfg.FS = w.disk.Process()
	j, rec, err := journal.Adopt(w.cfg, incarnation)
	if errors.Is(err, fs.ErrNotExist) && !w.created {
		return true
	}
	if err != nil {
		if errors.Is(err, journaltest.ErrKilled) {
			return false
		}
		w.t.Fatalf("adopt: %v", err)
	}
	defer func() { _ = j.Close() }()
	w.checkRecovered(rec)
	for i := range rec.Opens {
		o := &rec.Opens[i]
		w.eventID++
		ev := &ledger.Event{
			Version: 1, Kind: ledger.KindUsageRecovered, ID: id(3_000_000 + w.eventID), Time: 1, User: o.User, Token: o.Token,
			Charged: 1, Requests: 1, Hold: &ledger.HoldRef{ID: o.Hold, Epoch: o.Epoch, Amount: o.Amount}, Source: ledger.SourceRecovered,
		}
		c, err := j.Settle(ev)
		if err == nil {
			err = c.Wait(w.t.Context())
		}
		if err != nil {
			return false
		}
		w.closed[int(o.Hold[15])] = true
		synctest.Wait()
	}
	for j.Stats().Depth > 0 {
		j.Rewind() // whose acknowledgement was lost is shipped again
		if !w.ship(j) {
			return false
		}
	}
	if err := j.Retire(); err != nil {
		if errors.Is(err, journaltest.ErrKilled) {
			return errors.Is(w.adoptAgain(), journal.ErrRetired)
		}
		w.t.Fatal(err)
	}
	return true
}

func (w *world) adoptAgain() error {
	w.cfg.FS = w.disk.Process()
	j, _, err := journal.Adopt(w.cfg, incarnation)
	if err == nil {
		_ = j.Close()
	}
	return err
}

func (w *world) checkRecovered(rec journal.Recovered) {
	w.t.Helper()
	for _, d := range rec.Damage {
		w.t.Errorf("damage: %s", d)
	}
	open, released := map[int]bool{}, map[int]bool{}
	for _, o := range rec.Opens {
		n := int(o.Hold[15])
		open[n] = true
		switch {
		case !w.tried[n]:
			w.t.Errorf("hold %d was never opened", n)
		case w.closed[n]:
			w.t.Errorf("hold %d was closed, and is open again", n)
		case o.Request.ID != openRecord(n).Request.ID || o.Amount != int64(100+n) || o.Rating.ModelRatio != "1.25":
			w.t.Errorf("hold %d came back as %+v", n, o.OpenRecord)
		case !w.power && (!o.Slot.Found || o.Slot.Chunks != w.chunks[n] || o.Slot.Forwarded != w.opened[n]):
			w.t.Errorf("hold %d: slot %+v after a kill, stored %d chunks", n, o.Slot, w.chunks[n])
		case o.Slot.Found && o.Slot.Chunks != chunksOf(n) && o.Slot != (journal.SlotState{Found: true, Forwarded: o.Slot.Forwarded, Channel: o.Slot.Channel}):
			w.t.Errorf("hold %d has the slot of another one: %+v", n, o.Slot)
		case o.Doubtful && rec.TornBytes == 0:
			w.t.Errorf("hold %d is doubtful", n)
		}
	}
	for _, r := range rec.Releases {
		n := int(r.Hold[15])
		released[n] = true
		if open[n] || !w.tried[n] || r.Epoch != 7 || r.Incarnation != incarnation {
			w.t.Errorf("release %+v, open %v", r, open[n])
		}
	}
	for n := range released {
		w.closed[n] = true // recovery has made it durable, if it was not
	}
	for n := range w.opened {
		if !open[n] && !released[n] && !w.closed[n] {
			w.t.Errorf("hold %d was promised to be open, and is gone", n)
		}
	}
}

// audit plays the broker's log to a consumer: each settled hold is billed once, and nothing is missing.
func (w *world) audit() {
	w.t.Helper()
	marks := map[int]*ledger.Watermark{}
	billed := map[int]int{}
	for _, p := range w.log {
		if marks[p.Partition] == nil {
			marks[p.Partition] = &ledger.Watermark{}
		}
		switch marks[p.Partition].See(p.Seq, p.Prev) {
		case ledger.SightNew:
			ev, err := ledger.Decode(p.Value)
			if err != nil {
				w.t.Fatal(err)
			}
			billed[int(ev.Hold.ID[15])]++
		case ledger.SightDuplicate:
		case ledger.SightAfterHole, ledger.SightFillsHole:
			w.t.Errorf("hole before seq %d of partition %d", p.Seq, p.Partition)
		}
	}
	for n := range w.tried {
		switch {
		case billed[n] > 1:
			w.t.Errorf("hold %d was billed %d times", n, billed[n])
		case billed[n] == 0 && w.opened[n] && (n%3 != 0 || n%8 == 0):
			w.t.Errorf("hold %d was opened and never billed", n)
		}
	}
}

var crashes = map[string]journaltest.Fault{
	"kill before": journaltest.KillBefore, "kill within": journaltest.KillWithin, "kill after": journaltest.KillAfter,
	"power before": journaltest.PowerBefore, "power after": journaltest.PowerAfter,
	"error": journaltest.FailIO, "short write": journaltest.ShortWrite,
}

// TestCrashAtEveryStep ends a process at each call it makes to the disk, and recovers.
func TestCrashAtEveryStep(t *testing.T) {
	for name, fault := range crashes {
		t.Run(name, func(t *testing.T) {
			stride := 1
			if testing.Short() {
				stride = 7
			}
			for at := int64(1); ; at += int64(stride) {
				reached := false
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, uint64(at))
					w.power = strings.HasPrefix(name, "power")
					w.disk.Inject(func(op journaltest.Op) journaltest.Fault {
						if op.N == at {
							reached = true
							return fault
						}
						return journaltest.NoFault
					})
					w.live()
					w.disk.Inject(nil)
					if fault == journaltest.FailIO || fault == journaltest.ShortWrite {
						w.cfg.FS.(*journaltest.Process).Kill()
					}
					if !w.recover() {
						t.Fatal("recovery died by itself")
					}
					w.audit()
				})
				if t.Failed() {
					t.Fatalf("crash at call %d", at)
				}
				if !reached {
					if at < 200 {
						t.Fatalf("only %d calls", at)
					}
					break
				}
			}
		})
	}
}

// TestCrashDuringRecovery crashes the live process at a random call and then its recoveries, again and again, at each call.
func TestCrashDuringRecovery(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 40
	}
	for seed := range uint64(runs) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed)
			crash := func(within int64) {
				at := w.disk.Ops() + 1 + w.rand.Int64N(within)
				fault := journaltest.KillBefore + journaltest.Fault(w.rand.IntN(5))
				w.disk.Inject(func(op journaltest.Op) journaltest.Fault {
					if op.N != at {
						return journaltest.NoFault
					}
					w.power = w.power || fault >= journaltest.PowerBefore
					return fault
				})
			}
			crash(400)
			w.live()
			w.cfg.FS.(*journaltest.Process).Kill()
			for range 4 {
				crash(40)
				if w.recover() {
					break
				}
			}
			w.disk.Inject(nil)
			if err := w.adoptAgain(); !errors.Is(err, journal.ErrRetired) && !w.recover() {
				t.Fatal("recovery died by itself")
			}
			w.audit()
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestTornAtEveryByte cuts the last segment at every byte of its last records, and leaves zeros from that byte on: a write whose end never
// reached the disk, in a file that grew with it, or in one that had grown before.
func TestTornAtEveryByte(t *testing.T) {
	disk := journaltest.NewDisk(1)
	p := disk.Process()
	j := create(t, config(p))
	for n := range 3 {
		wait(t)(j.Open(openRecord(n)))
	}
	wait(t)(j.Settle(settleEvent(0)))
	size := j.Stats().LiveBytes
	p.Kill()
	name := fmt.Sprintf("/data/journal/%s/%016d.seg", incarnation, 1)
	whole, err := disk.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := disk.ReadFile(fmt.Sprintf("/data/journal/%s/slots", incarnation))
	if err != nil {
		t.Fatal(err)
	}
	clear(slots[64:128]) // no synced mark: it may be as old as that after a power loss
	opensOf := func(segment []byte) int {
		again := journaltest.NewDisk(1)
		q := again.Process()
		dir := fmt.Sprintf("/data/journal/%s", incarnation)
		if err := errors.Join(q.MkdirAll(dir), again.WriteFile(dir+"/slots", slots),
			again.WriteFile(fmt.Sprintf("%s/%016d.seg", dir, 1), segment)); err != nil {
			t.Fatal(err)
		}
		r, rec := adopt(t, config(q))
		if len(rec.Damage) > 0 {
			t.Fatalf("cut at %d: %v", len(segment), rec.Damage)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return len(rec.Opens)
	}
	var short, blank []int
	for cut := size; cut >= 100; cut-- {
		zeroed := append(whole[:cut:cut], make([]byte, len(whole)-int(cut))...)
		short, blank = append(short, opensOf(whole[:cut])), append(blank, opensOf(zeroed))
	}
	for what, opens := range map[string][]int{"shrinks": short, "is zeros from its end on": blank} {
		if got, want := fmt.Sprint(slices.Compact(opens)), "[2 3 2 1 0]"; got != want {
			t.Errorf("open holds as the segment %s: %s, want %s", what, got, want)
		}
	}
}
