package ledger

// MaxHoles bounds the holes kept per producer and partition (L7). A hole is the mark of a log that lost records, so
// this many mean a broken log, not a busy one.
const MaxHoles = 64

// Hole is a stretch of a producer's sequence, After < seq ≤ Through, of which a record was expected and not seen.
type Hole struct {
	After   uint64 `json:"after"`
	Through uint64 `json:"through"`
}

// Watermark is what a sink knows of one producer in one partition: the highest sequence applied, and the holes below it.
type Watermark struct {
	Mark  uint64 `json:"mark"`
	Holes []Hole `json:"holes,omitempty"`
}

// Sight is the verdict on a record.
type Sight int

// The verdicts of Watermark.See.
const (
	// SightNew: apply it.
	SightNew Sight = iota
	// SightDuplicate: it was applied before, skip it.
	SightDuplicate
	// SightAfterHole: apply it; records before it are missing, which the caller must alarm (L6).
	SightAfterHole
	// SightFillsHole: apply it; it was missing before.
	SightFillsHole
)

// See decides on a record with sequence seq whose predecessor in the partition is prev, and moves the watermark.
// It is the only rule for duplicates: no projection may use another (L2).
func (w *Watermark) See(seq, prev uint64) Sight {
	if seq > w.Mark {
		sight := SightNew
		if prev > w.Mark {
			w.addHole(Hole{After: w.Mark, Through: prev})
			sight = SightAfterHole
		}
		w.Mark = seq
		return sight
	}
	for i, h := range w.Holes {
		if seq <= h.After || seq > h.Through {
			continue
		}
		rest := make([]Hole, 0, len(w.Holes)+1)
		rest = append(rest, w.Holes[:i]...)
		if prev > h.After {
			rest = append(rest, Hole{h.After, prev})
		}
		if seq < h.Through {
			rest = append(rest, Hole{seq, h.Through})
		}
		w.Holes = append(rest, w.Holes[i+1:]...)
		w.bound()
		return SightFillsHole
	}
	return SightDuplicate
}

// addHole and bound drop the newest hole when there are too many: its records, should they ever come, are then
// skipped as duplicates. The hole was alarmed when it was met; counting a record twice would be worse (L2).
func (w *Watermark) addHole(h Hole) {
	w.Holes = append(w.Holes, h)
	w.bound()
}

func (w *Watermark) bound() {
	w.Holes = w.Holes[:min(len(w.Holes), MaxHoles)]
}
