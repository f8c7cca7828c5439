package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ledgerline/ledger"
)

// Meta returns the value of a name in ledger_meta, or ErrNotFound.
func (s *Store) Meta(ctx context.Context, name string) (string, error) {
	var value string
	err := notFound(s.db.QueryRowContext(ctx, metaQuery, name).Scan(&value))
	if err != nil {
		return "", fmt.Errorf("read meta %s: %w", name, err)
	}
	return value, nil
}

// SetMeta stores a value under a name of at most 64 ASCII characters.
func (s *Store) SetMeta(ctx context.Context, name, value string) error {
	err := s.Tx(ctx, func(tx *Tx) error { return tx.setMeta(ctx, name, value) })
	if err != nil {
		return fmt.Errorf("store meta %s: %w", name, err)
	}
	return nil
}

const metaQuery = "SELECT value FROM ledger_meta WHERE name = ?"

func (tx *Tx) meta(ctx context.Context, name, lock string) (value string, err error) {
	err = tx.QueryRow(ctx, metaQuery+lock, []any{name}, &value)
	return value, err
}

func (tx *Tx) setMeta(ctx context.Context, name, value string) error {
	_, err := tx.Exec(ctx, "INSERT INTO ledger_meta (name, value) VALUES (?, ?)"+tx.s.onConflict("name", "value"), name, value)
	return err
}

// LogInfo is what the database knows of the event log it belongs to.
type LogInfo struct {
	Topic      string `json:"topic"`
	ClusterID  string `json:"cluster_id"`
	Partitions int    `json:"partitions"` // P, fixed for ever: an account's partition depends on it
}

const logMeta = "log"

// InitLog stores info and makes a row for each partition, if the database has none yet. It returns what is stored, which
// the caller compares with what it found: P of the database is the one that counts (DESIGN 4).
func (s *Store) InitLog(ctx context.Context, info LogInfo) (LogInfo, error) {
	if info.Partitions < 1 {
		return LogInfo{}, fmt.Errorf("store the log's place: %d partitions", info.Partitions)
	}
	text, err := json.Marshal(info)
	if err != nil {
		return LogInfo{}, fmt.Errorf("store the log's place: %w", err)
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		insert := "INSERT INTO ledger_meta (name, value) VALUES (?, ?)" + s.onConflict("name")
		if _, err := tx.Exec(ctx, insert, logMeta, string(text)); err != nil {
			return err
		}
		if info, err = tx.logInfo(ctx, tx.ForUpdate()); err != nil {
			return err
		}
		for p := range info.Partitions {
			insert := "INSERT INTO ledger_partitions (part, skipped, last_event) VALUES (?, '[]', ?)" + s.onConflict("part")
			if _, err := tx.Exec(ctx, insert, p, make([]byte, len(ledger.ID{}))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return LogInfo{}, fmt.Errorf("store the log's place: %w", err)
	}
	return info, nil
}

func (tx *Tx) logInfo(ctx context.Context, lock string) (LogInfo, error) {
	var info LogInfo
	text, err := tx.meta(ctx, logMeta, lock)
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal([]byte(text), &info)
}

// Log returns what InitLog stored, or ErrNotFound.
func (s *Store) Log(ctx context.Context) (LogInfo, error) {
	var info LogInfo
	err := s.View(ctx, func(tx *Tx) error { var err error; info, err = tx.logInfo(ctx, ""); return err })
	if err != nil {
		return LogInfo{}, fmt.Errorf("read the log's place: %w", err)
	}
	return info, nil
}

// partitionCount returns P, which never changes once it is stored.
func (s *Store) partitionCount(ctx context.Context, tx *Tx) (int, error) {
	if n := s.knownPartitions(); n > 0 {
		return n, nil
	}
	info, err := tx.logInfo(ctx, "")
	if errors.Is(err, ErrNotFound) {
		return 0, errors.New("the database knows no log yet: InitLog was not called")
	}
	if err != nil {
		return 0, fmt.Errorf("read the number of partitions: %w", err)
	}
	s.mu.Lock()
	s.partitions = info.Partitions
	s.mu.Unlock()
	return info.Partitions, nil
}

// knownPartitions returns P after partitionCount was called, else 0.
func (s *Store) knownPartitions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partitions
}
