package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
)

// MaxOptionBytes bounds an option's value (L7): a price table of ten thousand models takes about an eighth of it.
const MaxOptionBytes = 4 << 20

// SetOption stores one option. Check the value first: nodes keep what they had if it does not parse, but New API would not.
func (s *Store) SetOption(ctx context.Context, key, value string) error {
	return s.SetOptions(ctx, map[string]string{key: value})
}

// SetOptions stores options, all or none.
func (s *Store) SetOptions(ctx context.Context, options map[string]string) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		if err := tx.setOptions(ctx, options); err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(options)) {
			if err := tx.audit(ctx, "set option "+key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set options: %w", err)
	}
	return nil
}

func (tx *Tx) setOptions(ctx context.Context, options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := options[key]
		if key == "" || len(key) > 191 || len(value) > MaxOptionBytes {
			return fmt.Errorf("option %.40q: a name has 1 to 191 characters and a value at most %d bytes", key, MaxOptionBytes)
		}
		if _, err := tx.Exec(ctx, "INSERT INTO options (`key`, `value`) VALUES (?, ?)"+tx.s.onConflict("`key`", "`value`"), key, value); err != nil {
			return fmt.Errorf("option %s: %w", key, err)
		}
	}
	tx.Changed(ChangeOption, 0)
	return nil
}

// Options reads all options as they are stored.
func (s *Store) Options(ctx context.Context) (map[string]string, error) {
	options := map[string]string{}
	err := s.read(ctx, "SELECT `key`, `value` FROM options", nil, func(scan func(...any) error) error {
		var key string
		var value sql.NullString
		err := scan(&key, &value)
		options[key] = value.String
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read options: %w", err)
	}
	return options, nil
}
