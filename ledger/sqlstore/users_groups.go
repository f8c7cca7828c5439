package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// UserGroups returns the groups of users, deleted ones too. Ids that are no user's are not in the result. It works on a
// database that is not migrated. Ask for a few thousand at most: each is a parameter.
func (s *Store) UserGroups(ctx context.Context, ids []int64) (map[int64]string, error) {
	groups := make(map[int64]string, len(ids))
	if len(ids) == 0 {
		return groups, nil
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	query := "SELECT id, `group` FROM users WHERE id IN (?" + strings.Repeat(", ?", len(ids)-1) + ")"
	err := s.read(ctx, query, args, func(scan func(...any) error) error {
		var id int64
		var group sql.NullString
		err := scan(&id, &group)
		groups[id] = group.String
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the users' groups: %w", err)
	}
	return groups, nil
}
