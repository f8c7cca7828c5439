package audit_test

import (
	"testing"

	"ledgerline/consumers/audit"
)

// A topic that was made anew and adopted, twice: from then on everything agrees, and a replay from the new log gives the same.
func TestVerifyAfterTheLogWasAdopted(t *testing.T) {
	onEngines(t, func(w *world) {
		for range 2 {
			w.traffic(5)
			w.settle()
			for p := range partitions {
				w.log.records[p] = nil
				must(t, w.db.AdoptLog(t.Context(), p, 0))
				must(t, w.usage.AdoptLog(t.Context(), p, 0))
			}
			w.consume()
			w.traffic(3)
			w.settle()
			w.agrees()
		}
		w.emptyBalances()
		if r := w.replay(audit.ReplayOptions{Source: audit.FromLog, Target: audit.ToBalances}); r.Changed == 0 {
			t.Errorf("%+v", r)
		}
		w.settle()
		w.agrees()
	})
}
