package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// Three nodes without a disk (JOURNAL=kafka): kill -9 loses what was in mid-stream and nothing that came to its end, which is billed
// once; the holds of the dead end; while Kafka is away they say so instead of serving what they could not bill; SIGTERM loses
// nothing; and none of them writes a file.
func TestWithoutDisk(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs real engines")
	}
	s := privateCluster(t)
	s.env["JOURNAL"] = "kafka"
	s.open()
	users := s.cast(3)
	tr := s.background(10, users)
	for _, n := range s.nodes {
		tr.moreDone(t, 25)
		n.kill()
		tr.moreDone(t, 10)
		n.start()
		n.ready()
	}

	s.kafka.Kill()
	// A node asks the log all the time: none has to wait for a request that waits in vain.
	within(t, 2*patience, "the nodes to refuse", func() error {
		for _, r := range tr.seen() {
			if r.status == http.StatusServiceUnavailable && r.code == "log_unreachable" {
				return nil
			}
		}
		return fmt.Errorf("no client was told that the log is away")
	})
	s.kafka.Start()
	tr.moreDone(t, 25)

	before := len(tr.answered())
	last := s.nodes[len(s.nodes)-1]
	if code := last.terminate(); code != 0 {
		t.Errorf("exit code %d: %s", code, tail(last.stderr.String()))
	}
	tr.moreDone(t, 10)
	for _, r := range tr.answered()[before:] {
		if !r.whole {
			t.Errorf("a request was cut by a clean stop: %+v", r)
		}
	}
	last.start()
	last.ready()
	tr.stop()

	// Their holds end when they are given up: nobody can close their journals.
	within(t, 2*patience, "the dead are given up", func() error {
		if n := s.books.number("SELECT COUNT(*) FROM ledger_producers WHERE state = 'gone'"); n != int64(len(s.nodes)) {
			return fmt.Errorf("%d of %d", n, len(s.nodes))
		}
		return nil
	})
	whole := tr.answered()
	n := 0
	for _, r := range whole {
		if r.whole {
			whole[n] = r
			n++
		}
	}
	t.Logf("%d requests came to their end, %d were cut", n, len(whole)-n)
	s.books.settled(whole[:n], users...)
	s.verified()
	for _, n := range s.nodes {
		for _, folder := range []string{"data", "journal"} {
			if files, err := os.ReadDir(filepath.Join(n.dir, folder)); !os.IsNotExist(err) {
				t.Errorf("%s wrote %v, %v", n.name, files, err)
			}
		}
	}
}
