package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// Snapshots bound what a replay or a verify needs of a usage log whose rows expire (DESIGN 10). How far they lie apart: a day, or a
// sixteenth of the rows' life if that is longer, so that there are never many (L7); but four in a life, so that there
// is always one that is old enough to be worth something and young enough that nothing after it has expired.
func snapshotInterval(kept time.Duration) time.Duration {
	return min(max(24*time.Hour, kept/16), kept/4)
}

// snapshotMargin is how much younger than the oldest rows a snapshot must be for a fold to begin there: a row expires by the time of its
// event, and an event may have waited in a journal for the log to come back. What waited for longer than this and was made before the
// rows' life began is lost to the usage log at once: a verify then names it, and a replay needs the log as its source.
func snapshotMargin(kept time.Duration) time.Duration { return min(24*time.Hour, kept/4) }

// Retention is what Retain works on.
type Retention struct {
	DB    *sqlstore.Store
	Usage usagelog.Keeper
	Days  int // LOG_SQL_CLICKHOUSE_TTL_DAYS; 0: rows stay for ever
	Log   *slog.Logger
	Now   func() time.Time // nil means time.Now
}

// Retain takes the snapshots that are due, drops those that nobody can need, and sets the life of the usage log's rows. If there is
// a partition without a snapshot that the remaining rows reach, rows stop expiring, and the error is a *usagelog.RetentionError
// (after the one that kept a snapshot from being taken). It is a duty of the master, at start and every hour; two masters
// do no harm.
func Retain(ctx context.Context, r Retention) error {
	if r.Days <= 0 {
		if err := r.Usage.SetTTL(ctx, 0, time.Time{}); err != nil {
			return fmt.Errorf("let rows of the usage log stay: %w", err)
		}
		return nil
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	lock, got, err := r.DB.TryLock(ctx, "ledgerline-snapshots")
	if err != nil {
		return fmt.Errorf("lock the snapshots: %w", err)
	}
	if !got {
		return nil // another master is at it
	}
	defer lock.Unlock()
	needed, failed := r.snapshots(ctx)
	if err := r.Usage.SetTTL(ctx, r.Days, needed); err != nil {
		return errors.Join(failed, fmt.Errorf("let rows of the usage log expire: %w", err))
	}
	return failed
}

// snapshots takes and drops snapshots, and returns the time of the oldest one that is needed: in each partition the oldest that is
// younger than the rows are kept, or else the newest there is.
func (r *Retention) snapshots(ctx context.Context) (needed time.Time, err error) {
	list, err := r.DB.Snapshots(ctx)
	if err != nil {
		return needed, fmt.Errorf("read snapshots: %w", err)
	}
	states, err := r.DB.Partitions(ctx)
	if err != nil {
		return needed, fmt.Errorf("read positions: %w", err)
	}
	var failed []error
	for i := range states {
		p := states[i].Partition
		mine := slices.DeleteFunc(slices.Clone(list), func(s sqlstore.SnapshotInfo) bool { return s.Partition != p })
		slices.SortFunc(mine, func(a, b sqlstore.SnapshotInfo) int { return a.TakenAt.Compare(b.TakenAt) })
		at, err := r.partition(ctx, p, mine)
		failed = append(failed, err)
		if i == 0 || at.Before(needed) {
			needed = at
		}
	}
	return needed, errors.Join(failed...)
}

// partition does it for one partition, whose snapshots are given oldest first.
func (r *Retention) partition(ctx context.Context, p int, list []sqlstore.SnapshotInfo) (needed time.Time, err error) {
	now, kept := r.Now(), time.Duration(r.Days)*24*time.Hour
	if n := len(list); n == 0 || now.Sub(list[n-1].TakenAt) >= snapshotInterval(kept) {
		info, failed := r.DB.TakeSnapshot(ctx, p)
		if err = failed; err == nil {
			list = append(list, info)
			r.Log.Info("a snapshot was taken", "partition", p, "offset", info.Offset, "accounts", info.Accounts)
		}
	}
	if len(list) == 0 {
		return time.Time{}, err
	}
	young := slices.IndexFunc(list, func(s sqlstore.SnapshotInfo) bool { return !s.TakenAt.Before(now.Add(-kept)) })
	if young < 0 {
		return list[len(list)-1].TakenAt, err
	}
	// One older stays: rows expire a while after their time, and Kafka has everything anyway.
	for i := range list[:max(0, young-1)] {
		if failed := r.DB.DeleteSnapshot(ctx, list[i].ID); failed != nil {
			err = errors.Join(err, fmt.Errorf("drop a snapshot that nobody needs: %w", failed))
		}
	}
	return list[young].TakenAt, err
}
