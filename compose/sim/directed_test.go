package sim

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ledgerline/ledger/sqlstore"
)

// Directed histories: what random search found once, or does not reach.

// directed plays a history without chance: three nodes with a disk each, no faults but those of f, and then the usual checks.
func directed(t *testing.T, f func(w *world), change ...func(*config)) (w *world) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(t, 1)
		w.telling, w.quiet = true, true
		w.cfg = config{
			partitions: 1, nodes: 3, ownDisks: true, span: 30 * time.Second, lookEvery: 100 * time.Millisecond, orphanAfter: 20 * time.Second,
			maxRecords: 50, segmentBytes: 16 << 10, memoryBytes: 1 << 20, grant: 60,
		}
		for _, c := range change {
			c(&w.cfg)
		}
		w.log = newLogTwin(w)
		w.begin()
		f(w)
		w.finish()
		if w.violated != nil {
			t.Errorf("%v\n%s", w.violated, strings.Join(w.story, "\n"))
		}
	})
	return w
}

// ask makes a client send a request to a node: one whole answer of so many chunks for token 10.
func (w *world) ask(n *node, chunks int64, think time.Duration) *request {
	r := &request{n: len(w.requests), user: 1, token: 10, plan: plan1{chunks: chunks, whole: true, think: think, channel: 1}}
	w.requests = append(w.requests, r)
	w.send(n, r)
	return r
}

// A node whose journal has failed takes nothing more, also if it is given up meanwhile: with a new journal it would go on, and
// what the failed one could not write would wait for a restart that nobody sees a reason for.
func TestDirectedFailedJournalStaysFailed(t *testing.T) {
	directed(t, func(w *world) {
		n := w.nodes[0]
		w.after(3*time.Second, func() { n.proc.badSync = true; w.ask(n, 3, 0) })
		w.after(5*time.Second, func() {
			for _, p := range w.bank.producers {
				if p.Node == n.name && !w.bank.GiveUp(p.ID, p.Beat, time.Now()) {
					t.Error("not given up")
				}
			}
		})
		w.after(15*time.Second, func() {
			if n.desk == nil || n.desk.Failed() == nil {
				t.Error("the node goes on with a new journal")
			}
			w.killNode(n)
		})
	})
}

// The mark of retirement cannot be written at first: the journal is closed all the same, later, and the node forgets it.
func TestDirectedRetirementFails(t *testing.T) {
	directed(t, func(w *world) {
		n := w.nodes[0]
		w.after(3*time.Second, func() { w.ask(n, 3, time.Minute) })
		w.after(4*time.Second, func() { w.killNode(n) })
		failed := 0
		w.fail = func(c *call) bool {
			if strings.HasPrefix(c.name, "sync ") && strings.HasSuffix(c.name, "/retired") && failed < 2 {
				failed++
				return true
			}
			return false
		}
		w.after(29*time.Second, func() {
			if failed == 0 || n.desk == nil || n.desk.Adopted() > 0 {
				t.Errorf("%d failures, %d journals are still adopted", failed, n.desk.Adopted())
			}
		})
	})
}

// A disk never comes back, and the database has lost the registration of the journal on it: nobody is left who could give it up, and yet
// its holds end.
func TestDirectedRegistrationLostWithItsDisk(t *testing.T) {
	directed(t, func(w *world) {
		n := w.nodes[0]
		w.after(3*time.Second, func() { w.ask(n, 3, time.Minute) })
		w.after(4*time.Second, func() {
			before := len(w.bank.producers)
			w.bank.producers = slices.DeleteFunc(w.bank.producers, func(p sqlstore.Producer) bool { return p.Node == n.name })
			if list, _ := w.hot.State(t.Context(), 0); len(w.bank.producers) != before-1 || len(list[0].Members) == 0 {
				t.Errorf("%d of %d incarnations are left, %d hold something", len(w.bank.producers), before, len(list[0].Members))
			}
			w.lose(n.disk)
		})
	})
}

// A reserve is executed in one epoch and answered in the next: the hold is not in the counters any more, so the answer counts as lost
// (model/holds.py, reply_across_epochs).
func TestDirectedReplyAcrossEpochs(t *testing.T) {
	directed(t, func(w *world) {
		a, b := w.nodes[0], w.nodes[1]
		late := false
		w.slowReply = func(c *call) time.Duration {
			if late || c.p != a.proc || !strings.HasPrefix(c.name, "reserve ") || time.Since(w.begun) < 4*time.Second {
				return 0
			}
			late = true
			return 2500 * time.Millisecond
		}
		w.after(3*time.Second, func() { w.ask(a, 1, 0) }) // the accounts are loaded
		w.after(5*time.Second, func() { w.ask(a, 40, 0) })
		w.after(5100*time.Millisecond, w.hot.Flush)
		w.after(7*time.Second, func() { w.ask(b, 40, 2*time.Second) })
	})
}

// A node sleeps through a whole epoch: it was opened without the node, others were given what the node held, and it is gone again, too, when the node
// comes back and finds the next one rebuilding. What it holds must not come back with it (L3): its request ends, and is charged as late.
// Either the database or the counters know which epoch was opened.
func TestDirectedEpochSleptThrough(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(w *world)
	}{
		{"the counters are flushed", func(w *world) { w.hot.Flush() }},
		{"the database is restored, the counters go on elsewhere", func(w *world) {
			producers := w.bank.producers
			w.bank.tables = w.backup.clone()
			w.bank.producers = producers
			w.hot.Promote(w.hot.Save())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := directed(t, func(w *world) {
				a, b := w.nodes[0], w.nodes[1]
				w.after(3*time.Second, func() { w.ask(a, 40, time.Minute) })
				w.after(4*time.Second, func() {
					backup := w.bank.clone()
					w.backup = &backup
					a.proc.frozen = true
					w.hot.Flush()
				})
				w.after(12*time.Second, func() {
					if len(w.opened) != 2 {
						t.Errorf("%d epochs were opened, want one without the node", len(w.opened))
					}
					w.ask(b, 40, 20*time.Second)
				})
				w.after(16*time.Second, func() { c.lose(w); a.proc.frozen = false })
			}, func(c *config) {
				c.patienceDead, c.patienceLive, c.orphanAfter = 3*time.Second, 6*time.Second, time.Minute
			})
			if w.counts.Late != 1 {
				t.Errorf("%d late charges, want that of the node that slept", w.counts.Late)
			}
		})
	}
}

// A consumer is stopped between the database's record of an epoch and its opening. Who takes over waits until a node that had been given up
// waiting for has reported after all, and notes a later end; then the first one goes on. What the node had charged before it reported is
// below the end that is noted, so it is not late, and has to be counted before anybody is given anything (L3).
func TestDirectedOpenedByZombie(t *testing.T) {
	for _, after := range []time.Duration{0, 20, 40, 60, 80} {
		directed(t, func(w *world) {
			a, b := w.nodes[0], w.nodes[1]
			stored, opens := 0, 0
			var zombie *consumer
			w.slowCall = func(c *call) time.Duration {
				switch {
				case strings.HasPrefix(c.name, "quota: flush ") && stored == 1: // the database is slow
					return time.Second
				case strings.HasPrefix(c.name, "open ") && time.Since(w.begun) > 6*time.Second:
					if opens++; opens > 1 {
						return time.Millisecond
					}
					for _, one := range w.consumers {
						if one.proc == c.p {
							zombie = one
						}
					}
					c.p.frozen = true
					w.after(100*time.Millisecond, w.fill)
					w.after(time.Second+after*time.Millisecond, func() { a.proc.muted = time.Time{} })
				}
				return 0
			}
			w.fail = func(c *call) bool {
				if strings.HasPrefix(c.name, "quota: store epoch") && time.Since(w.begun) > 6*time.Second {
					if stored++; stored == 2 {
						zombie.proc.frozen = false
					}
				}
				return false
			}
			w.after(3*time.Second, func() { w.ask(a, 1, 0) }) // the accounts are loaded
			w.after(4*time.Second, func() { a.proc.muted = w.begun.Add(time.Minute); w.ask(a, 40, 0) })
			w.after(5*time.Second, w.hot.Flush)
			for at := 12 * time.Second; at < 20*time.Second; at += 20 * time.Millisecond {
				w.after(at, func() { w.ask(b, 40, 0) })
			}
		}, func(c *config) {
			c.patienceDead, c.patienceLive, c.orphanAfter = 3*time.Second, 6*time.Second, time.Minute
		})
	}
}

// The journal of a damaged book fails while its doubtful requests are closed: it is adopted anew, and who was at it stops. Each try reads the log.
func TestDirectedDoubtfulJournalFails(t *testing.T) {
	tries, failed := 0, false
	directed(t, func(w *world) {
		n := w.nodes[0]
		var dir string
		w.after(3*time.Second, func() { w.ask(n, 3, time.Minute) })
		w.after(4*time.Second, func() { w.ask(n, 1, 0) })
		w.after(5*time.Second, func() {
			i := slices.IndexFunc(w.bank.producers, func(p sqlstore.Producer) bool { return p.Node == n.name })
			dir = journalRoot + "/" + w.bank.producers[i].ID.String()
			w.killNode(n)
			name := dir + "/0000000000000001.seg"
			data, err := n.disk.ReadFile(name)
			must(t, err)
			must(t, n.disk.Flip(name, int64(len(bytes.TrimRight(data, "\x00"))-1), 0)) // the last frame
		})
		w.fail = func(c *call) bool {
			if strings.HasPrefix(c.name, "ends: epochs ") {
				tries++
			}
			first := tries > 0 && !failed && strings.HasPrefix(c.name, "sync "+dir)
			failed = failed || first
			return first
		}
	})
	if !failed || tries > 2 {
		t.Errorf("the journal failed: %v; the log was asked %d times, want once for each adoption at the most", failed, tries)
	}
}

// A disk hangs while a node looks for journals to adopt, which holds up all its duties. It goes on saying that it lives, and what runs on it
// ends as usual; but not for ever, or its holds would stay for as long as the disk hangs.
func TestDirectedDutyHangs(t *testing.T) {
	const hangs, think = 5 * time.Second, 150 * time.Second
	for _, c := range []struct {
		name    string
		hang    time.Duration
		givenUp int
	}{{"less than a minute", 50 * time.Second, 0}, {"minutes", 200 * time.Second, 1}} {
		t.Run(c.name, func(t *testing.T) {
			w := directed(t, func(w *world) {
				n, hung := w.nodes[0], false
				w.slowCall = func(call *call) time.Duration {
					if hung || call.p != n.proc || call.name != "list "+journalRoot || time.Since(w.begun) < hangs {
						return 0
					}
					hung = true
					return c.hang
				}
				w.after(3*time.Second, func() { w.ask(n, 40, think) })
				var last uint64
				for at := 10 * time.Second; at < hangs+55*time.Second; at += 4 * time.Second { // a beat comes every 3 s
					w.after(at, func() {
						for _, p := range w.bank.producers {
							if p.Node == n.name && p.Beat <= last {
								t.Errorf("the node is silent after %s: beat %d after %d", at, p.Beat, last)
							} else if p.Node == n.name {
								last = p.Beat
							}
						}
					})
				}
			}, func(c *config) { c.span = 5 * time.Minute })
			if w.counts.GivenUp != c.givenUp || w.counts.Late != c.givenUp {
				t.Errorf("given up %d times, %d late charges, want %d", w.counts.GivenUp, w.counts.Late, c.givenUp)
			}
		})
	}
}
