package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/pressly/goose/v3"

	"ledgerline/migrations"
)

const (
	migrationTable = "ledger_migrations"
	migrationLock  = "migrate"
	// migrationPoll is how often a second master looks whether the first one has finished.
	migrationPoll = 200 * time.Millisecond
)

func (s *Store) provider() (*goose.Provider, error) {
	dialect, files := goose.DialectSQLite3, migrations.SQLite()
	if s.mysql {
		dialect, files = goose.DialectMySQL, migrations.MySQL()
	}
	p, err := goose.NewProvider(dialect, s.write, files,
		goose.WithTableName(migrationTable), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return p, nil
}

// Migrate brings the schema to this binary's version, forward only, under the database lock, which it waits for as long
// as ctx allows. A schema that is newer is refused (ErrSchemaNewer). Killed in the middle, it is simply run again.
func (s *Store) Migrate(ctx context.Context) error {
	lock, err := s.waitLock(ctx, migrationLock)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer lock.Unlock()
	if err := s.beginVersions(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	p, err := s.provider()
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate: read schema version: %w", err)
	}
	if current > target {
		return &SchemaError{Database: current, Binary: target}
	}
	results, err := p.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	for _, r := range results {
		s.log.Info("migrated database", "version", r.Source.Version, "took", r.Duration)
	}
	return nil
}

// beginVersions notes version 0 in a table of versions that is empty: goose makes the table and notes that in two steps on MySQL, and
// refuses to go on where a master was killed between them. The caller holds the lock.
func (s *Store) beginVersions(ctx context.Context) error {
	var rows int
	err := s.write.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+migrationTable).Scan(&rows)
	if isNoTable(err) || err == nil && rows > 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if _, err := s.write.ExecContext(ctx, "INSERT INTO "+migrationTable+" (version_id, is_applied) VALUES (0, 1)"); err != nil {
		return fmt.Errorf("note schema version 0: %w", err)
	}
	return nil
}

// CheckSchema returns nil if the schema is this binary's, else a *SchemaError that wraps ErrSchemaNewer or ErrSchemaOlder.
func (s *Store) CheckSchema(ctx context.Context) error {
	p, err := s.provider()
	if err != nil {
		return err
	}
	sources := p.ListSources()
	want := sources[len(sources)-1].Version
	var have int64
	err = s.db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version_id), 0) FROM "+migrationTable).Scan(&have)
	if err != nil && !isNoTable(err) {
		return fmt.Errorf("read schema version: %w", err)
	}
	if have != want {
		return &SchemaError{Database: have, Binary: want}
	}
	return nil
}
