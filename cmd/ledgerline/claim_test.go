package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// A node with parts in its own process finds the nodes of a cluster by the heartbeats that move. Neither a node that died nor this
// node's own past, whose journal lies here, keeps it from starting.
func TestOtherNodes(t *testing.T) {
	ctx := t.Context()
	t.Chdir(t.TempDir())
	cfg, err := loadConfig(envOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := sqlstore.Open(ctx, sqlstore.Config{SQLitePath: cfg.SQLitePath, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	paused := 0
	look := func(beating ...ledger.ID) []string {
		t.Helper()
		names, err := otherNodes(ctx, cfg, db, func() {
			paused++
			if _, err := db.Heartbeat(ctx, beating...); err != nil {
				t.Fatal(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	register := func(node string) ledger.ID {
		t.Helper()
		id := ledger.ID(uuid.Must(uuid.NewV7()))
		if err := db.RegisterProducer(ctx, sqlstore.Producer{ID: id, Node: node}); err != nil {
			t.Fatal(err)
		}
		return id
	}

	if got := look(); got != nil || paused != 0 {
		t.Errorf("an empty database: nodes %v after %d pauses, want none and no wait", got, paused)
	}
	past := register("me")
	if err := os.MkdirAll(filepath.Join(cfg.JournalDir, past.String()), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != nil || paused != 0 {
		t.Errorf("only an own journal that nobody writes: nodes %v after %d pauses, want none and no wait", got, paused)
	}
	dead, one, two := register("dead"), register("n2"), register("n1")
	if diff := cmp.Diff([]string{"n1", "n2"}, look(one, two)); diff != "" {
		t.Errorf("nodes that live (-want +got):\n%s", diff)
	}
	if err := db.CloseProducer(ctx, one); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != nil {
		t.Errorf("with %s dead and the others stopped: nodes %v, want none", dead, got)
	}
}

// The database of a node that must be alone is refused to the next one, whichever kind that is.
func TestClaim(t *testing.T) {
	t.Chdir(t.TempDir())
	log := slog.New(slog.DiscardHandler)
	embedded, err := loadConfig(envOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := loadConfig(envOf(map[string]string{"KAFKA_BROKERS": "k:9092", "REDIS_CONN_STRING": "redis://r:6379"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(embedded.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := sqlstore.Open(t.Context(), sqlstore.Config{SQLitePath: embedded.SQLitePath, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	try := func(cfg *config) (*sqlstore.Lock, error) {
		return claim(context.WithoutCancel(t.Context()), cfg, db, log)
	}
	if lock, err := try(cluster); err != nil || lock != nil {
		t.Fatalf("a node of a cluster: lock %v, error %v; want neither", lock, err)
	}
	lock, err := try(embedded)
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]*config{"embedded": embedded, "cluster": cluster} {
		if _, err := try(cfg); err == nil {
			t.Errorf("a second node (%s) was let onto the database of one that must be alone", name)
		}
	}
	lock.Unlock()
	// What a node without a disk left is given up: nobody can recover it, and the first epoch would wait for it in vain. What has a disk
	// is waited for.
	for i, diskless := range []bool{false, true} {
		p := sqlstore.Producer{ID: ledger.ID{0: byte(i + 1)}, Node: "past", Diskless: diskless}
		if err := db.RegisterProducer(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if lock, err = try(embedded); err != nil {
		t.Fatalf("after the first one stopped: %v", err)
	}
	lock.Unlock()
	left, err := db.Producers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		if gone := p.State == sqlstore.ProducerGone; gone != p.Diskless {
			t.Errorf("diskless %v: %s", p.Diskless, p.State)
		}
	}
}
