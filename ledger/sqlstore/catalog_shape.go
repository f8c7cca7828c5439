package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// New API's tables are taken as they are (P7): a database of an older version lacks some columns. A missing one is read as
// NULL and not written; what the column stood for then has its default.

// shapes are the columns of New API's tables, by table.
type shapes map[string]map[string]bool

// shapedTables are the tables whose columns differ between versions of New API.
var shapedTables = []string{"users", "tokens", "channels", "redemptions", "top_ups"}

// runner is how a query is run: by a transaction, on its own connection, or outside of any.
type runner func(ctx context.Context, query string, args []any, fn func(scan func(...any) error) error) error

// loadShapes reads once which columns there are. A column that is added later is used from the next start on.
func (s *Store) loadShapes(ctx context.Context, run runner) (shapes, error) {
	s.mu.Lock()
	known := s.shapes
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	known = shapes{}
	for _, table := range shapedTables {
		q, args := "SELECT name FROM pragma_table_info(?)", []any{table}
		if s.mysql {
			q = "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?"
		}
		columns := map[string]bool{}
		err := run(ctx, q, args, func(scan func(...any) error) error {
			var name string
			err := scan(&name)
			columns[strings.ToLower(name)] = true
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the columns of %s: %w", table, err)
		}
		if len(columns) == 0 && slices.Contains(neededTables, table) {
			return nil, fmt.Errorf("the database has no table %s: is it migrated?", table)
		}
		known[table] = columns
	}
	s.mu.Lock()
	s.shapes = known
	s.mu.Unlock()
	return known, nil
}

// columnsOf returns a list of columns, separated by ", ", with NULL in the place of those that the table lacks. An expression
// over a column that is there in every version stays as it is.
func (s *Store) columnsOf(ctx context.Context, run runner, table, list string) (string, error) {
	known, err := s.loadShapes(ctx, run)
	if err != nil {
		return "", err
	}
	parts := strings.Split(list, ", ")
	for i, part := range parts {
		name := strings.Trim(part, "`")
		if len(name) == len(part)-2 && !known[table][name] {
			parts[i] = "NULL"
		}
	}
	return strings.Join(parts, ", "), nil
}

// assignment is one column to write.
type assignment struct {
	column string
	value  any
}

// present leaves out the columns that the table lacks.
func (tx *Tx) present(ctx context.Context, table string, list []assignment) (columns []string, args []any, err error) {
	known, err := tx.s.loadShapes(ctx, tx.each)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range list {
		if known[table][a.column] {
			columns = append(columns, "`"+a.column+"`")
			args = append(args, a.value)
		}
	}
	return columns, args, nil
}

// insert adds a row and returns its id.
func (tx *Tx) insert(ctx context.Context, table string, list []assignment) (int64, error) {
	columns, args, err := tx.present(ctx, table, list)
	if err != nil {
		return 0, err
	}
	result, err := tx.Exec(ctx, "INSERT INTO "+table+" ("+strings.Join(columns, ", ")+") VALUES ("+marks(len(args))+")", args...)
	if err != nil {
		return 0, err
	}
	return result.LastInsertId()
}

// update changes a row by its id.
func (tx *Tx) update(ctx context.Context, table string, id int64, list []assignment) error {
	columns, args, err := tx.present(ctx, table, list)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "UPDATE "+table+" SET "+strings.Join(columns, " = ?, ")+" = ? WHERE id = ?", append(args, id)...)
	return err
}
