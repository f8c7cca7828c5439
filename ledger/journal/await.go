package journal

import (
	"fmt"
	"time"

	"ledgerline/ledger"
)

// logWait is an event that is not in the log yet, under Config.AwaitLog.
type logWait struct {
	*fate
	seq uint64
	at  time.Time // when it was journaled
}

// awaitLog returns what the Commit of an event waits for beside the file, nil for the file alone. The file is in memory and the event
// is handed out only when it is written there, so the log's word stands for both.
func (j *Journal) awaitLog(r *record) *fate {
	if !j.cfg.AwaitLog {
		return nil
	}
	f := &fate{done: make(chan struct{})}
	p := ledger.Partition(r.User, j.cfg.Partitions)
	j.ship.waits[p] = append(j.ship.waits[p], logWait{f, r.Seq, time.Now()})
	return f
}

// logAnswers refuses a user's requests while the log does not acknowledge the events of the partition: what they would owe could
// not be recorded (L1). It also bounds what such a journal keeps in memory while the log is away (L7). Those that are refused come
// back as soon as the shipper, which goes on trying, gets its first acknowledgement.
func (j *Journal) logAnswers(user int64) error {
	if !j.cfg.AwaitLog {
		return nil
	}
	p := ledger.Partition(user, j.cfg.Partitions)
	if w := j.ship.waits[p]; len(w) > 0 {
		if waited := time.Since(w[0].at); waited > logPatience {
			return fmt.Errorf("%w: partition %d, for %s", ErrNoLog, p, waited.Round(time.Second))
		}
	}
	return nil
}

// endWaitsThrough ends the waits for what the log has acknowledged.
func (s *shipping) endWaitsThrough(partition int, seq uint64) {
	w := s.waits[partition]
	n := 0
	for n < len(w) && w[n].seq <= seq {
		w[n].finish(nil)
		n++
	}
	if s.waits[partition] = w[n:]; n == len(w) {
		s.waits[partition] = nil
	}
}

// endWaits ends every wait without an acknowledgement.
func (s *shipping) endWaits(err error) {
	for p, list := range s.waits {
		for _, w := range list {
			w.finish(err)
		}
		s.waits[p] = nil
	}
}

// Unlogged returns how many partitions refuse requests because the log does not acknowledge their events (Config.AwaitLog).
func (j *Journal) Unlogged() (partitions int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, w := range j.ship.waits {
		if len(w) > 0 && time.Since(w[0].at) > logPatience {
			partitions++
		}
	}
	return partitions
}
