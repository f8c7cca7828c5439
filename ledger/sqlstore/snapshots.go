package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"ledgerline/ledger"
)

// SnapshotInfo describes a stored snapshot of one partition.
type SnapshotInfo struct {
	ID         int64
	Partition  int
	Offset     int64 // everything below is in it
	LastOffset int64
	LastEvent  ledger.ID
	Accounts   int
	Marks      int
	Keys       int
	TakenAt    time.Time
}

// Snapshot is what a fold needs to go on from Offset instead of from the beginning of the log.
type Snapshot struct {
	SnapshotInfo
	Balances map[ledger.Account]ledger.Balance
	Marks    map[ledger.ID]ledger.Watermark
	Keys     []string
}

// snapshotEntries is how many entries one stored chunk holds: below 1 MB with the longest keys (L7).
const snapshotEntries = 4000

// snapshotChunk is one row of ledger_snapshot_chunks.
type snapshotChunk struct {
	Accounts []snapshotAccount `json:"accounts,omitempty"`
	Marks    []snapshotMark    `json:"marks,omitempty"`
	Keys     []string          `json:"keys,omitempty"`
}

type snapshotAccount struct {
	Kind     ledger.AccountKind `json:"k"`
	ID       int64              `json:"i"`
	Granted  int64              `json:"g,omitempty"`
	Charged  int64              `json:"c,omitempty"`
	Requests int64              `json:"r,omitempty"`
}

type snapshotMark struct {
	Producer ledger.ID `json:"p"`
	ledger.Watermark
}

// snapshotWriter stores entries in chunks.
type snapshotWriter struct {
	tx    *Tx
	id    int64
	seq   int
	count int
	chunk snapshotChunk
}

func (w *snapshotWriter) flush(ctx context.Context) error {
	if w.count == 0 {
		return nil
	}
	body, err := json.Marshal(w.chunk)
	if err != nil {
		return err
	}
	_, err = w.tx.Exec(ctx, "INSERT INTO ledger_snapshot_chunks (snapshot, seq, body) VALUES (?, ?, ?)", w.id, w.seq, body)
	w.seq, w.count, w.chunk = w.seq+1, 0, snapshotChunk{}
	return err
}

// TakeSnapshot stores position, balances, watermarks (with holes) and used keys of a partition, in one transaction under the
// partition's lock: nothing of it can change meanwhile.
func (s *Store) TakeSnapshot(ctx context.Context, partition int) (SnapshotInfo, error) {
	var info SnapshotInfo
	err := s.Tx(ctx, func(tx *Tx) error { var err error; info, err = tx.takeSnapshot(ctx, partition); return err })
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("take snapshot of partition %d: %w", partition, err)
	}
	return info, nil
}

func (tx *Tx) takeSnapshot(ctx context.Context, partition int) (SnapshotInfo, error) {
	var info SnapshotInfo
	if _, _, err := tx.lockPartition(ctx, partition); err != nil {
		return info, err
	}
	states, err := tx.partitions(ctx, " WHERE part = ?", partition)
	if err != nil {
		return info, err
	}
	if _, err := tx.s.partitionCount(ctx, tx); err != nil {
		return info, err
	}
	p := states[0]
	info = SnapshotInfo{Partition: partition, Offset: p.Offset, LastOffset: p.LastOffset, LastEvent: p.LastEvent, TakenAt: tx.s.now()}
	r, err := tx.Exec(ctx, "INSERT INTO ledger_snapshots (part, next_offset, last_offset, last_event, accounts, marks, event_keys, taken_at) VALUES (?, ?, ?, ?, 0, 0, 0, ?)",
		partition, p.Offset, p.LastOffset, p.LastEvent[:], info.TakenAt.UnixMilli())
	if err != nil {
		return info, err
	}
	if info.ID, err = r.LastInsertId(); err != nil {
		return info, err
	}
	w := &snapshotWriter{tx: tx, id: info.ID}
	if err := w.accounts(ctx, &info); err != nil {
		return info, err
	}
	if err := w.marks(ctx, &info); err != nil {
		return info, err
	}
	if err := w.keys(ctx, &info); err != nil {
		return info, err
	}
	if err := w.flush(ctx); err != nil {
		return info, err
	}
	_, err = tx.Exec(ctx, "UPDATE ledger_snapshots SET accounts = ?, marks = ?, event_keys = ? WHERE id = ?", info.Accounts, info.Marks, info.Keys, info.ID)
	return info, err
}

// pages runs a query page by page and stores a chunk after each: it cannot be written while rows are being read from the
// same connection. page returns whether the page was full.
func (w *snapshotWriter) pages(ctx context.Context, page func() (full bool, err error)) error {
	for {
		full, err := page()
		if err != nil {
			return err
		}
		if err := w.flush(ctx); err != nil {
			return err
		}
		if !full {
			return nil
		}
	}
}

func (w *snapshotWriter) accounts(ctx context.Context, info *SnapshotInfo) error {
	kind, id := "", int64(0)
	return w.pages(ctx, func() (bool, error) {
		n := 0
		err := w.tx.each(ctx, "SELECT kind, id, granted, charged, requests FROM ledger_accounts WHERE part = ? AND (kind > ? OR kind = ? AND id > ?) ORDER BY kind, id LIMIT ?",
			[]any{info.Partition, kind, kind, id, snapshotEntries}, func(scan func(...any) error) error {
				var a snapshotAccount
				err := scan(&a.Kind, &a.ID, &a.Granted, &a.Charged, &a.Requests)
				w.chunk.Accounts = append(w.chunk.Accounts, a)
				kind, id = string(a.Kind), a.ID
				n++
				return err
			})
		info.Accounts += n
		w.count += n
		return n == snapshotEntries, err
	})
}

func (w *snapshotWriter) marks(ctx context.Context, info *SnapshotInfo) error {
	last := ledger.ID{}
	return w.pages(ctx, func() (bool, error) {
		n := 0
		err := w.tx.each(ctx, "SELECT producer, mark, holes FROM ledger_watermarks WHERE part = ? AND producer > ? ORDER BY producer LIMIT ?",
			[]any{info.Partition, last[:], snapshotEntries}, func(scan func(...any) error) error {
				id, mark, err := scanMark(scan)
				w.chunk.Marks = append(w.chunk.Marks, snapshotMark{id, mark})
				last = id
				n++
				return err
			})
		info.Marks += n
		w.count += n
		return n == snapshotEntries, err
	})
}

func (w *snapshotWriter) keys(ctx context.Context, info *SnapshotInfo) error {
	last := ""
	return w.pages(ctx, func() (bool, error) {
		n := 0
		err := w.tx.each(ctx, "SELECT event_key, user_id FROM ledger_outbox WHERE state = 'applied' AND event_key > ? ORDER BY event_key LIMIT ?",
			[]any{last, snapshotEntries}, func(scan func(...any) error) error {
				var user int64
				if err := scan(&last, &user); err != nil {
					return err
				}
				n++
				if ledger.Partition(user, w.tx.s.knownPartitions()) == info.Partition {
					w.chunk.Keys = append(w.chunk.Keys, last)
					w.count++
					info.Keys++
				}
				return nil
			})
		return n == snapshotEntries, err
	})
}

// Snapshots returns the stored snapshots, by partition and offset.
func (s *Store) Snapshots(ctx context.Context) ([]SnapshotInfo, error) {
	var list []SnapshotInfo
	err := s.read(ctx, "SELECT "+snapshotColumns+" FROM ledger_snapshots ORDER BY part, next_offset, id", nil, func(scan func(...any) error) error {
		info, err := scanSnapshot(scan)
		list = append(list, info)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	return list, nil
}

const snapshotColumns = "id, part, next_offset, last_offset, last_event, accounts, marks, event_keys, taken_at"

func scanSnapshot(scan func(...any) error) (SnapshotInfo, error) {
	var info SnapshotInfo
	var id idColumn
	var at int64
	err := scan(&info.ID, &info.Partition, &info.Offset, &info.LastOffset, &id, &info.Accounts, &info.Marks, &info.Keys, &at)
	info.LastEvent, info.TakenAt = id.ID, time.UnixMilli(at)
	return info, err
}

// LoadSnapshot reads a snapshot, or ErrNotFound.
func (s *Store) LoadSnapshot(ctx context.Context, id int64) (*Snapshot, error) {
	snap := &Snapshot{Balances: map[ledger.Account]ledger.Balance{}, Marks: map[ledger.ID]ledger.Watermark{}}
	err := s.View(ctx, func(tx *Tx) error {
		found := false
		err := tx.each(ctx, "SELECT "+snapshotColumns+" FROM ledger_snapshots WHERE id = ?", []any{id}, func(scan func(...any) error) (err error) {
			found = true
			snap.SnapshotInfo, err = scanSnapshot(scan)
			return err
		})
		if err != nil {
			return err
		}
		if !found {
			return ErrNotFound
		}
		return tx.each(ctx, "SELECT body FROM ledger_snapshot_chunks WHERE snapshot = ? ORDER BY seq", []any{id}, snap.add)
	})
	if err == nil && (len(snap.Balances) != snap.Accounts || len(snap.Marks) != snap.SnapshotInfo.Marks || len(snap.Keys) != snap.SnapshotInfo.Keys) {
		err = fmt.Errorf("it holds %d accounts, %d marks and %d keys, and should hold %d, %d and %d",
			len(snap.Balances), len(snap.Marks), len(snap.Keys), snap.Accounts, snap.SnapshotInfo.Marks, snap.SnapshotInfo.Keys)
	}
	if err != nil {
		return nil, fmt.Errorf("load snapshot %d: %w", id, err)
	}
	return snap, nil
}

func (snap *Snapshot) add(scan func(...any) error) error {
	var body []byte
	if err := scan(&body); err != nil {
		return err
	}
	var c snapshotChunk
	if err := json.Unmarshal(body, &c); err != nil {
		return err
	}
	for _, a := range c.Accounts {
		snap.Balances[ledger.Account{Kind: a.Kind, ID: a.ID}] = ledger.Balance{Granted: a.Granted, Charged: a.Charged, Requests: a.Requests}
	}
	for _, m := range c.Marks {
		snap.Marks[m.Producer] = m.Watermark
	}
	snap.Keys = append(snap.Keys, c.Keys...)
	return nil
}

// DeleteSnapshot removes a snapshot; one that is not there is no error.
func (s *Store) DeleteSnapshot(ctx context.Context, id int64) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		for _, q := range []string{"DELETE FROM ledger_snapshot_chunks WHERE snapshot = ?", "DELETE FROM ledger_snapshots WHERE id = ?"} {
			if _, err := tx.Exec(ctx, q, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %d: %w", id, err)
	}
	return nil
}
