package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
)

const (
	// singleNode is the lock of a node that has its log or its counters in its own process.
	singleNode = "ledgerline-single-node"
	// signOfLife is how long the heartbeats of other nodes are watched: two of them and a bit.
	signOfLife = 7 * time.Second
	// lockPatience and lockPause say how long the lock is asked for, and how often.
	lockPatience = 2 * time.Second
	lockPause    = 50 * time.Millisecond
)

// claim makes sure that a node with parts that live in its own process is alone on its database: its counters would allow
// what others have spent (L3), and its log would not be the others' (L4). It returns the lock that keeps others away.
func claim(ctx context.Context, cfg *config, db *sqlstore.Store, log *slog.Logger) (*sqlstore.Lock, error) {
	lock, err := waitLock(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("claim the database: %w", err)
	}
	if lock == nil {
		return nil, errors.New(cfg.taken())
	}
	if !cfg.alone() {
		lock.Unlock()
		return nil, nil //nolint:nilnil // nothing is held, and nothing is wrong
	}
	others, err := otherNodes(ctx, cfg, db, func() {
		log.Info("nodes are on the books of this database that did not stop cleanly: watching whether they live", "for", signOfLife)
		select {
		case <-time.After(signOfLife):
		case <-ctx.Done():
		}
	})
	if err == nil && len(others) > 0 {
		err = usagef("this database belongs to a cluster that runs (%s): set KAFKA_BROKERS and REDIS_CONN_STRING as they are set there", strings.Join(others, ", "))
	}
	if err == nil && !cfg.looksOn {
		err = endDiskless(ctx, db)
	}
	if err != nil {
		lock.Unlock()
		return nil, err
	}
	return lock, nil
}

// waitLock takes the lock of nodes that must be alone; nil if somebody keeps it. Nodes of a cluster that start at the same time hold it
// for a moment, and a node that stops for a little longer.
func waitLock(ctx context.Context, db *sqlstore.Store) (*sqlstore.Lock, error) {
	for deadline := time.Now().Add(lockPatience); ; {
		lock, got, err := db.TryLock(ctx, singleNode)
		if err != nil || got {
			return lock, err
		}
		if time.Now().After(deadline) {
			return nil, nil //nolint:nilnil // it is kept, and nothing is wrong
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock: %w", ctx.Err())
		}
	}
}

// alone reports whether the log or the counters live in this process.
func (c *config) alone() bool { return c.embedded() || c.RedisURL == "" }

// taken says what to do about a node that must be alone and runs on this database.
func (c *config) taken() string {
	switch {
	case c.looksOn:
		return "a node runs on this database with its log or its counters in its own process: run the command in its folder, on its machine, or with its DATA_DIR"
	case c.alone():
		return "another node runs on this database: to run several, set KAFKA_BROKERS and REDIS_CONN_STRING on every node"
	}
	return "a node without KAFKA_BROKERS or REDIS_CONN_STRING runs on this database: set both there, then start this one"
}

// otherNodes names the nodes whose heartbeat moves while it pauses. What is live by the books and has its journal here, with
// nobody writing it, is this node's own past. Beats are compared with themselves, never with a clock.
func otherNodes(ctx context.Context, cfg *config, db *sqlstore.Store, pause func()) ([]string, error) {
	own, err := journal.Adoptable(journal.Config{Root: cfg.JournalDir, Partitions: cfg.KafkaPartitions})
	if err != nil {
		return nil, fmt.Errorf("look for other nodes: %w", err)
	}
	before, err := liveProducers(ctx, db, own)
	if err != nil || len(before) == 0 {
		return nil, err
	}
	pause()
	now, err := liveProducers(ctx, db, own)
	var names []string
	for id, p := range now {
		if old, ok := before[id]; (!ok || old.Beat != p.Beat) && !slices.Contains(names, p.Node) {
			names = append(names, p.Node)
		}
	}
	slices.Sort(names)
	return names, err
}

// endDiskless gives up what nodes that kept their journal in memory left on the books: whoever is alone on the database knows that they
// are dead, and that nobody can recover them, so the first epoch need not wait for them.
func endDiskless(ctx context.Context, db *sqlstore.Store) error {
	left, err := liveProducers(ctx, db, nil)
	if err != nil {
		return err
	}
	for id, p := range left {
		if !p.Diskless {
			continue
		}
		if _, err := db.GiveUp(ctx, id, p.Beat); err != nil {
			return fmt.Errorf("give up the incarnation of a node that is gone: %w", err)
		}
	}
	return nil
}

func liveProducers(ctx context.Context, db *sqlstore.Store, but []ledger.ID) (map[ledger.ID]sqlstore.Producer, error) {
	all, err := db.Producers(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for other nodes: %w", err)
	}
	live := map[ledger.ID]sqlstore.Producer{}
	for i := range all {
		if all[i].State == sqlstore.ProducerLive && !slices.Contains(but, all[i].ID) {
			live[all[i].ID] = all[i]
		}
	}
	return live, nil
}
