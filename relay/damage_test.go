package relay_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/journal/journaltest"
	"ledgerline/relay/desk"
	"ledgerline/relay/relaytest"
)

// damageBill spoils the record in the only journal's segments that holds the bill of a request.
func (s *stack) damageBill(disk *journaltest.Disk, request string) {
	s.Helper()
	process := disk.Process()
	defer process.Kill()
	ids, err := process.List("/journal")
	s.must(err)
	for _, id := range ids {
		names, err := process.List(filepath.Join("/journal", id))
		s.must(err)
		for _, name := range names {
			if !strings.HasSuffix(name, ".seg") {
				continue
			}
			path := filepath.Join("/journal", id, name)
			data, err := disk.ReadFile(path)
			s.must(err)
			// The open record holds the request's id too, and comes first.
			event := bytes.Index(data, []byte(`"kind":"usage.settled"`))
			for event >= 0 {
				next := bytes.Index(data[event+1:], []byte(`"kind":"usage.settled"`))
				end := len(data)
				if next >= 0 {
					end = event + 1 + next
				}
				if bytes.Contains(data[event:end], []byte(request)) {
					s.must(disk.Flip(path, int64(event), 3))
					return
				}
				if event = end; next < 0 {
					break
				}
			}
		}
	}
	s.Fatalf("no journal has the bill of %s", request)
}

// A journal that has lost the bill of a request which the log has bills it no second time; one that the log never got is billed from the
// open record, flagged; and the holds of both end with the charge that counts (L2, L6).
func TestDamagedBill(t *testing.T) {
	for _, shipped := range []bool{true, false} {
		t.Run(map[bool]string{true: "in the log", false: "not in the log"}[shipped], func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			process := disk.Process()
			s := newStack(t, relaytest.Script{})
			f := &flaky{Local: s.counters}
			w := &wire{ship: s.ship(), changed: make(chan struct{})}
			n := s.start(onDisk(process), behind(f), func(c *nodeConfig) { c.ship = w.run })
			a := n.account(start, start)
			f.deaf.Store(true) // the counters do not hear of the ends
			if !shipped {
				w.set(true)
			}
			one := n.post(a.key, chatPath, chat("completion=7;prompt=21"))
			two := n.post(a.key, chatPath, chat("completion=3;prompt=11"))
			if one.status != 200 || two.status != 200 {
				t.Fatal(one.status, two.status)
			}
			if shipped {
				n.event(one.request())
				n.event(two.request())
				n.await("the acknowledgements", func() bool { return n.metric("ledgerline_journal_depth_events") == 0 })
			}
			process.Kill()
			if got := n.post(a.key, chatPath, chat("")); got.status != 503 { // it notices
				t.Fatal(got.status, got.body)
			}
			n.stop()
			s.damageBill(disk, one.request())
			asked := 0

			next := s.start(onDisk(disk.Process()), func(c *nodeConfig) {
				c.desk = func(d *desk.Config) {
					d.HoldEnds = func(ctx context.Context, p int, oldest uint64, holds map[ledger.ID]bool) ([]ledger.ReleaseCall, error) {
						if asked++; asked == 1 {
							return nil, errors.New("the log is away for a moment")
						}
						return s.holdEnds(ctx, p, oldest, holds)
					}
				}
			})
			next.await("the journal to be closed", func() bool { return next.adopted() == 0 })
			left := next.left(a.users, a.user)
			events := next.clerk.usage()
			if len(events) != 2 || left != start-next.charged() {
				t.Fatalf("%d units are left after %d bills of %d: %+v", left, len(events), next.charged(), events)
			}
			for _, ev := range events {
				recovered := ev.Kind == ledger.KindUsageRecovered
				switch ev.Request.ID {
				case one.request():
					if recovered == shipped || recovered != slices.Contains(ev.Flags, desk.FlagJournalDamaged) {
						t.Errorf("the request whose bill was lost: %s, flags %v", ev.Kind, ev.Flags)
					}
				case two.request():
					if recovered || ev.Charged != price(11, 3) {
						t.Errorf("the other one: %+v", ev)
					}
				}
			}
		})
	}
}
