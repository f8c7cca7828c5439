package usagelog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Rows that were copied from New API's logs stand in ledger_usage beside the rows of events, so that every list, sum and
// query of New API's finds them. They are no events: their kind and partition are no event's, they move nothing, and
// ledger_events does not have them. So verify and replay pass over them (L4).
const (
	// KindImported is the kind of a copied row.
	KindImported = "newapi.log"
	// PartImported is the partition of a copied row, far above any of the log (KAFKA_PARTITIONS is at most 1,024).
	PartImported = 65535
)

// Importer is what import -logs needs of a usage log.
type Importer interface {
	// Import stores copied rows and after them how far their source was read. Rows are known by their id, so it may be repeated.
	Import(ctx context.Context, source string, rows []Row, next int64) error
	// Imported returns what Import stored for a source, 0 if nothing, and the number of copied rows of all sources.
	Imported(ctx context.Context, source string) (next, rows int64, err error)
	// Place says which database this is. OpenLogs' result has it, too: equal places are one database.
	Place(ctx context.Context) (string, error)
	// HasLogs reports whether the database has a table `logs` of New API's, which lists and sums read beside ours.
	HasLogs() bool
}

// Import implements Importer: one transaction.
func (s *SQL) Import(ctx context.Context, source string, rows []Row, next int64) error {
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		if err := s.insertRows(ctx, tx, &Batch{Rows: rows}); err != nil {
			return fmt.Errorf("insert rows: %w", err)
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO ledger_usage_imports (source, next, updated_at) VALUES (?, ?, ?)"+s.rewrite("source", "next"), //nolint:gosec // tables and columns are our own, values are parameters
			source, next, s.now().UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("import into usage log: %w", err)
	}
	return nil
}

// Imported implements Importer.
func (s *SQL) Imported(ctx context.Context, source string) (next, rows int64, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT next FROM ledger_usage_imports WHERE source = ?", source).Scan(&next)
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		err = s.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM ledger_usage WHERE kind = ?", KindImported).Scan(&rows)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read how far the import came: %w", err)
	}
	return next, rows, nil
}

// Place implements Importer.
func (s *SQL) Place(ctx context.Context) (string, error) { return sqlPlace(ctx, s.db, s.mysql) }

// HasLogs implements Importer.
func (s *SQL) HasLogs() bool { return s.logs.present() }

// sqlPlace asks the server who it is: a DSN may name it in several ways.
func sqlPlace(ctx context.Context, db *sql.DB, my bool) (string, error) {
	query := "SELECT 'sqlite:' || file FROM pragma_database_list WHERE name = 'main'"
	if my {
		query = "SELECT CONCAT('mysql:', @@hostname, ':', @@port, '/', DATABASE())"
	}
	var place string
	if err := db.QueryRowContext(ctx, query).Scan(&place); err != nil {
		return "", fmt.Errorf("ask which database this is: %w", err)
	}
	return clip(place, maxNameBytes), nil
}

// Import implements Importer: the rows first, then how far they reach.
func (c *ClickHouse) Import(ctx context.Context, source string, rows []Row, next int64) error {
	for len(rows) > 0 {
		part := rows[:insertable(rows)]
		rows = rows[len(part):]
		if err := c.insert(ctx, "ledger_usage", usageTable, part); err != nil {
			return fmt.Errorf("import into usage log: %w", err)
		}
	}
	const statement = "INSERT INTO ledger_usage_imports (source, next, updated_at)"
	err := c.batch(ctx, statement, func(batch driver.Batch) error { return batch.Append(source, next, c.now().UnixMilli()) })
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
	return nil
}

// Imported implements Importer.
func (c *ClickHouse) Imported(ctx context.Context, source string) (next, rows int64, err error) {
	err = c.conn.QueryRow(ctx, "SELECT max(next) FROM ledger_usage_imports WHERE source = ?", source).Scan(&next)
	if err == nil {
		err = c.conn.QueryRow(ctx, "SELECT toInt64(count()) FROM ledger_usage FINAL WHERE kind = ?", KindImported).Scan(&rows)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read how far the import came: %w", err)
	}
	return next, rows, nil
}

// Place implements Importer.
func (c *ClickHouse) Place(ctx context.Context) (string, error) {
	var place string
	err := c.conn.QueryRow(ctx, "SELECT concat('clickhouse:', toString(serverUUID()), '/', currentDatabase())").Scan(&place)
	if err != nil {
		return "", fmt.Errorf("ask which database this is: %w", err)
	}
	return place, nil
}

// HasLogs implements Importer.
func (c *ClickHouse) HasLogs() bool { return c.logs.present() }
