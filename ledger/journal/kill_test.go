//go:build unix

package journal_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// childRoot, if set, makes the test binary a node that appends until it is killed.
const childRoot = "LEDGERLINE_JOURNAL_CHILD"

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		if err := child(root); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func osConfig(root string) journal.Config {
	return journal.Config{Root: root, Partitions: partitions, SegmentBytes: 64 << 10, BlockBytes: 16 << 10, MaxBytes: 64 << 20, Slots: 4096, Keep: time.Hour}
}

// child says on its standard output what it was promised, a line for each promise, after it was given and never before.
func child(root string) error {
	j, err := journal.Create(osConfig(root), incarnation)
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	go func() {
		for {
			got, err := j.Next(context.Background(), 50)
			if err != nil {
				return
			}
			for _, p := range got {
				say("shipped %d %d", p.Seq, p.Partition)
				j.Acked(p.Partition, p.Seq)
			}
		}
	}()
	errs := make(chan error)
	for worker := range 4 {
		go func() {
			for n := worker; ; n += 4 {
				if err := childRequest(j, n, say); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

func childRequest(j *journal.Journal, n int, say func(string, ...any)) error {
	done := func(c journal.Commit, err error) error {
		if err != nil {
			return err
		}
		return c.Wait(context.Background())
	}
	if err := done(j.Open(openRecord(n))); err != nil {
		return err
	}
	say("opened %d", n)
	slot := j.Slot(id(n))
	slot.SetForwarded(int64(n))
	for chunk := range int64(3) {
		slot.RaiseProgress(chunk+1, 10*(chunk+1))
	}
	say("streamed %d", n)
	if n%9 == 0 && n < 3000 {
		return nil // stays open
	}
	if err := done(j.Settle(settleEvent(n))); err != nil {
		return err
	}
	say("settled %d", n)
	return nil
}

// TestKill9 kills a real process in the middle of its work. Recovery finds what was promised, or more, never less.
func TestKill9(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		root := t.TempDir()
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), childRoot+"="+root)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := map[string]map[int]bool{"opened": {}, "streamed": {}, "settled": {}, "shipped": {}}
		lines, enough := 0, 200+rand.IntN(3000)
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			word, number, _ := strings.Cut(sc.Text(), " ")
			n := 0
			if _, err := fmt.Sscan(number, &n); err != nil || said[word] == nil {
				continue // a line cut by the kill, or a complaint
			}
			said[word][n] = true
			if lines++; lines == enough {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if lines < enough {
			t.Fatalf("round %d: the child ended after %d lines", round, lines)
		}
		checkKilled(t, root, said)
	}
}

func checkKilled(t *testing.T, root string, said map[string]map[int]bool) {
	t.Helper()
	cfg := osConfig(root)
	free, err := journal.Adoptable(cfg)
	if err != nil || len(free) != 1 {
		t.Fatal(free, err)
	}
	j, rec := adopt(t, cfg)
	if len(rec.Damage) > 0 {
		t.Fatal(rec.Damage)
	}
	seen := map[int]bool{}
	for p, err := range journal.Reship(cfg, incarnation, -1, ledger.Hole{Through: 1 << 60}) {
		if err != nil {
			t.Fatal(err)
		}
		ev, err := ledger.Decode(p.Value)
		if err != nil {
			t.Fatal(err)
		}
		n := numberOf(ev.Hold.ID)
		if seen[n] {
			t.Fatalf("hold %d was settled twice", n)
		}
		seen[n] = true
	}
	for n := range said["settled"] {
		if !seen[n] {
			t.Errorf("the settle of %d was promised and is gone", n)
		}
	}
	open := map[int]bool{}
	for _, o := range rec.Opens {
		n := numberOf(o.Hold)
		open[n] = true
		if seen[n] {
			t.Errorf("hold %d is open and settled", n)
		}
		if said["streamed"][n] && (!o.Slot.Found || o.Slot.Chunks != 3 || o.Slot.Bytes != 30 || o.Slot.Channel != int64(n)) {
			t.Errorf("hold %d: slot %+v", n, o.Slot)
		}
	}
	for n := range said["opened"] {
		if !open[n] && !seen[n] {
			t.Errorf("hold %d was promised to be open, and is gone", n)
		}
	}
	got := drain(t, j)
	checkOrder(t, got, nil)
	t.Logf("%d opened, %d settled, %d shipped; %d found open, %d settled, %d to ship", len(said["opened"]), len(said["settled"]),
		len(said["shipped"]), len(open), len(seen), len(got))
}

func numberOf(hold ledger.ID) int {
	n := 0
	for _, b := range hold[8:] {
		n = n<<8 | int(b)
	}
	return n
}
