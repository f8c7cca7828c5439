package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// A projection adopts a log only where it was stopped by one, and the refusal says where that is: going back in the log that it comes from
// would cost it its snapshots, and count again what its marks have forgotten.
func TestOnlyForeignLogsAreAdopted(t *testing.T) {
	t.Parallel()
	s := cluster(t)
	s.open()
	users := s.cast(2)
	c := newClients(t)
	s.play(c, 8, traceOrders(t, 20, users))
	s.books.settled(c.answered(), users...)
	part := s.books.number("SELECT MIN(part) FROM ledger_partitions WHERE last_offset >= 0")
	other := s.books.number("SELECT MAX(part) FROM ledger_partitions")
	adopt := func(projection string, p int64, more ...string) ran {
		return s.run(append([]string{"consume", "-adopt-log", "-projection", projection, "-partition", fmt.Sprint(p)}, more...)...)
	}
	refused := func(projection string, p int64, stopped string) {
		t.Helper()
		got := adopt(projection, p)
		last := lastLine(got.stderr)
		for _, want := range []string{fmt.Sprintf("-partition %d:", p), "stopped by another log: " + stopped + " (", "-yes"} {
			if got.code != 2 || !strings.Contains(last, want) {
				t.Errorf("%s of partition %d: exit code %d, %q does not say %q", projection, p, got.code, got.stderr, want)
			}
		}
	}
	before := s.books.number("SELECT next_offset FROM ledger_partitions WHERE part = ?", part)
	refused("quota", part, "none")
	refused("usagelog", part, "none")
	if now := s.books.number("SELECT next_offset FROM ledger_partitions WHERE part = ?", part); now != before {
		t.Errorf("a refused partition went from %d to %d", before, now)
	}
	// As if the topic had been made anew, with as many records.
	s.books.exec("UPDATE ledger_partitions SET last_event = ? WHERE part = ?", []byte("another event   "), part)
	refused("quota", other, fmt.Sprint(part))
	for _, got := range []ran{adopt("quota", part), adopt("quota", part, "-yes")} {
		if got.code != 0 || !strings.Contains(got.stdout, fmt.Sprintf("at offset 0 of partition %d", part)) {
			t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		}
	}
	s.play(c, 8, traceOrders(t, 20, users))
	s.books.settled(c.answered(), users...)
	s.verified()
}
