package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-sql-driver/mysql"
	"modernc.org/sqlite"
)

// Tx is one transaction. It must not be used after the function it was given to has returned.
//
// Lock order, which every transaction keeps: the partition's row, outbox rows by key, users by id, tokens by id, accounts
// by (kind, id), then everything else; the change log is last. A deadlock is still possible with New API's own writers,
// and is repeated.
type Tx struct {
	s       *Store
	tx      *sql.Tx
	fault   func(statement string) error
	changes []Change
}

// txAttempts bounds the repeats of a business transaction (L7): a deadlock that comes back this often is a fault to show.
const txAttempts = 6

// commitError is a COMMIT whose answer was an error, or none.
type commitError struct{ error }

func (e *commitError) Unwrap() error { return e.error }

// mayRepeat reports whether a transaction that failed with err certainly left nothing, and may succeed if repeated. A
// connection that broke during COMMIT leaves the outcome open: such a transaction is never repeated here.
func mayRepeat(err error) bool {
	if !IsTransient(err) {
		return false
	}
	if _, open := errors.AsType[*commitError](err); !open {
		return true
	}
	_, said := errors.AsType[*mysql.MySQLError](err)
	_, local := errors.AsType[*sqlite.Error](err)
	return said || local
}

// Tx runs fn in one write transaction and commits it, or rolls it back if fn fails. A transient failure is repeated a few
// times, so fn must be repeatable: it must set, not add to, what it hands out. An error that IsTransient may still have
// been a commit whose answer was lost; unique keys and fences tell.
func (s *Store) Tx(ctx context.Context, fn func(*Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := s.once(ctx, fn)
		if err == nil || attempt == txAttempts || !mayRepeat(err) || ctx.Err() != nil {
			return err
		}
		pause := time.Duration(1<<attempt) * time.Millisecond
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause + rand.N(pause)):
		}
	}
}

// once runs fn in one write transaction, without repeats. Everything up to the COMMIT is the caller's and fn's; the commit
// point of every write of this package is the Commit below.
func (s *Store) once(ctx context.Context, fn func(*Tx) error) (err error) {
	if err := s.ask("BEGIN"); err != nil {
		return err
	}
	raw, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	tx := &Tx{s: s, tx: raw, fault: s.fault}
	defer func() {
		if err != nil {
			_ = raw.Rollback()
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.writeChanges(ctx); err != nil {
		return err
	}
	if err := s.ask("COMMIT"); err != nil {
		return err
	}
	if err := raw.Commit(); err != nil {
		return &commitError{fmt.Errorf("commit transaction: %w", err)}
	}
	return nil
}

func (s *Store) ask(statement string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(statement)
}

// View runs fn in a read-only transaction that sees one snapshot of the database.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	opts := &sql.TxOptions{ReadOnly: true}
	if s.mysql {
		opts.Isolation = sql.LevelRepeatableRead
	}
	raw, err := s.db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() { _ = raw.Rollback() }()
	return fn(&Tx{s: s, tx: raw})
}

// ForUpdate returns what ends a SELECT that must lock its rows: " FOR UPDATE", or nothing on SQLite, whose write
// transactions are alone.
func (tx *Tx) ForUpdate() string { return tx.s.forUpdate }

// Exec runs a statement. Parameters are ? on every engine.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := tx.ask(query); err != nil {
		return nil, err
	}
	return tx.tx.ExecContext(ctx, query, args...)
}

// Query runs a query. The caller closes the rows and checks their error.
func (tx *Tx) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := tx.ask(query); err != nil {
		return nil, err
	}
	return tx.tx.QueryContext(ctx, query, args...)
}

// QueryRow runs a query of at most one row. A row that is not there is ErrNotFound.
func (tx *Tx) QueryRow(ctx context.Context, query string, args []any, dest ...any) error {
	if err := tx.ask(query); err != nil {
		return err
	}
	err := tx.tx.QueryRowContext(ctx, query, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

func (tx *Tx) ask(statement string) error {
	if tx.fault == nil {
		return nil
	}
	return tx.fault(statement)
}

// each runs a query and calls fn for each row.
func (tx *Tx) each(ctx context.Context, query string, args []any, fn func(scan func(...any) error) error) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// savepoint runs fn so that, if it fails, nothing of it remains in the transaction. If it cannot be undone, the error is
// that alone: fn's own error must not be mistaken for one whose effects are gone.
func (tx *Tx) savepoint(ctx context.Context, fn func() error) error {
	if _, err := tx.Exec(ctx, "SAVEPOINT ledgerline"); err != nil {
		return err
	}
	err := fn()
	if err == nil {
		_, err = tx.Exec(ctx, "RELEASE SAVEPOINT ledgerline")
		return err
	}
	if _, rollback := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT ledgerline"); rollback != nil {
		return fmt.Errorf("roll back to savepoint: %w (after: %v)", rollback, err) //nolint:errorlint // see above
	}
	return err
}

// read runs one query outside of a transaction.
func (s *Store) read(ctx context.Context, query string, args []any, fn func(scan func(...any) error) error) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// notFound turns the driver's word for "no row" into ErrNotFound.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
