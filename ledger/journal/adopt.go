package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"ledgerline/ledger"
)

// Recovered is what Adopt found in a directory. The caller settles or voids each open hold through the adopted journal, and
// repeats the releases at the hot counters; all of it may be done again after a crash, because both go by hold id.
type Recovered struct {
	Opens []OpenState
	// Releases are the settles (Charge ≥ 0) and voids (Charge −1) in the live segments. Those in segments already put away are
	// covered by dropping the incarnation once it is closed (DESIGN 7).
	Releases  []ledger.ReleaseCall
	Damage    []Damage
	TornBytes int64 // cut off the end: a write that was never synced, so promised to nobody
}

// OpenState is a hold that was neither settled nor voided.
type OpenState struct {
	OpenRecord // the last one: its epoch and amount are those of the last reopen
	Slot       SlotState
	// Doubtful: behind its open record there is damage, or an end that was cut off as torn: it may have been closed by a record that was lost.
	Doubtful bool
}

// seqGap is skipped in the sequence after anything was lost at the end: more than a segment's worth of events, so that no
// number that may have been given out, and shipped, is given out twice (L2: consumers would take it for a duplicate).
const seqGap = 1 << 24

// Incarnations returns the incarnations that have a directory in Config.Root, retired ones too, ascending.
func Incarnations(cfg Config) ([]ledger.ID, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	names, err := cfg.FS.List(cfg.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list journals: %w", err)
	}
	var ids []ledger.ID
	for _, name := range names {
		if id, err := ledger.ParseID(name); err == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ledger.ID) int { return slices.Compare(a[:], b[:]) })
	return ids, nil
}

// Adoptable returns the incarnations whose directories are neither retired nor locked at this moment. Another process may be
// faster: Adopt then says ErrLocked.
func Adoptable(cfg Config) ([]ledger.ID, error) {
	ids, err := Incarnations(cfg)
	if err != nil {
		return nil, err
	}
	cfg, _ = cfg.withDefaults()
	var free []ledger.ID
	for _, id := range ids {
		dir := filepath.Join(cfg.Root, id.String())
		names, err := cfg.FS.List(dir)
		if errors.Is(err, fs.ErrNotExist) || slices.Contains(names, retiredName) {
			continue
		}
		lock, err := cfg.FS.Lock(filepath.Join(dir, lockName))
		if errors.Is(err, ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = lock.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("look at journal %s: %w", id, err)
		}
		free = append(free, id)
	}
	return free, nil
}

// Retired reports whether the directory of an incarnation is kept for Reship only: all of it is in the log and settled.
func Retired(cfg Config, incarnation ledger.ID) (bool, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return false, err
	}
	names, err := cfg.FS.List(filepath.Join(cfg.Root, incarnation.String()))
	if err != nil {
		return false, fmt.Errorf("look at journal %s: %w", incarnation, err)
	}
	return slices.Contains(names, retiredName), nil
}

// Adopt locks the directory of a dead incarnation, reads it, and goes on as that incarnation, continuing its sequence. It
// appends nothing: a crash at any point leaves a directory from which the next Adopt finds the same. Errors: ErrLocked,
// ErrRetired, ErrNewer, fs.ErrNotExist.
func Adopt(cfg Config, incarnation ledger.ID) (*Journal, Recovered, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, Recovered{}, err
	}
	dir := filepath.Join(cfg.Root, incarnation.String())
	lock, err := cfg.FS.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, Recovered{}, fmt.Errorf("adopt journal: %w", err)
	}
	j := newJournal(cfg, incarnation, dir, lock)
	rec, err := j.adopt()
	if err != nil {
		return nil, Recovered{}, errors.Join(fmt.Errorf("adopt journal %s: %w", incarnation, err), j.release())
	}
	go j.run()
	if len(rec.Damage) > 0 {
		j.log.Error("journal has damage", "stretches", len(rec.Damage), "first", rec.Damage[0].String())
	}
	return j, rec, nil
}

func (j *Journal) adopt() (Recovered, error) {
	files := j.cfg.FS
	names, err := files.List(j.dir)
	if err != nil {
		return Recovered{}, err
	}
	if slices.Contains(names, retiredName) {
		return Recovered{}, ErrRetired
	}
	indexes := segmentIndexes(names)
	if len(indexes) == 0 {
		return Recovered{}, errors.New("directory holds no segment")
	}
	if j.kept, err = keptSegments(files, j.dir, names); err != nil {
		return Recovered{}, err
	}
	r := &recovery{j: j, opens: map[ledger.ID]*openState{}, at: map[ledger.ID]position{}}
	if err := r.openSlots(); err != nil {
		return Recovered{}, err
	}
	if err := r.readAll(indexes); err != nil {
		return Recovered{}, err
	}
	r.resume()
	j.recovering = j.cfg.AwaitReleases
	if err := j.begin(j.dir, max(indexes[len(indexes)-1], r.mark.Segment)+1); err != nil {
		return Recovered{}, err
	}
	j.noteDamage(r.out.Damage...)
	return r.finish(), nil
}

// Total returns the hold's total in quota units as last known: opened, reopened or extended.
func (o *OpenState) Total() int64 { return max(o.Amount, o.Slot.Total) }
