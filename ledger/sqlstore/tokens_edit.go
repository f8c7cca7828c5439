package sqlstore

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"ledgerline/ledger"
)

// TokenView is an API key as lists and forms show it.
type TokenView struct {
	TokenRow
	Remain    int64 // what is left of its limit, quota units; below zero for unlimited keys in use
	Used      int64
	DeletedAt time.Time
}

var tokenViews = source[TokenView]{"tokens", tokenColumns + ", `remain_quota`, `used_quota`, `deleted_at`", scanTokenView, nil}

func scanTokenView(scan func(...any) error) (*TokenView, error) {
	var v TokenView
	var remain, used looseInt
	var deleted looseTime
	row, err := scanToken(func(dest ...any) error { return scan(append(dest, &remain, &used, &deleted)...) })
	if err != nil {
		return nil, err
	}
	v.TokenRow, v.Remain, v.Used, v.DeletedAt = *row, remain.Int64, used.Int64, deleted.Time
	return &v, nil
}

// TokenFilter selects keys that are not deleted. User 0 selects those of all users.
type TokenFilter struct {
	User    int64
	Keyword string // a part of the name
	Key     string // a part of the key, with or without "sk-"
}

// Tokens lists keys, newest first, with the number of all that match.
func (s *Store) Tokens(ctx context.Context, f TokenFilter, page Page) (list []*TokenView, total int, err error) {
	w := &conditions{}
	w.add("deleted_at IS NULL")
	if f.User != 0 {
		w.add("`user_id` = ?", f.User)
	}
	if f.Keyword != "" {
		w.add("`name` LIKE ? ESCAPE '!'", like(f.Keyword))
	}
	if f.Key != "" {
		w.add("(`key` LIKE ? ESCAPE '!' OR `key` = ?)", like(f.Key), s.HashKey(f.Key))
	}
	err = s.View(ctx, func(tx *Tx) error {
		list, total, err = listed(ctx, tx, query[TokenView]{tokenViews, w, "`id` DESC", page})
		if err != nil {
			return err
		}
		return tx.freshenTokens(ctx, list)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list tokens: %w", err)
	}
	return list, total, nil
}

func (tx *Tx) freshenTokens(ctx context.Context, list []*TokenView) error {
	columns := make(map[int64]*int64, len(list))
	for _, v := range list {
		columns[v.ID] = &v.Remain
	}
	return tx.freshen(ctx, ledger.TokenAccount, columns)
}

// TokenView reads a key that is not deleted, with its balance as of now. user 0 means any owner; else a key of another
// user is ErrNotFound, as one that is not there.
func (s *Store) TokenView(ctx context.Context, user, id int64) (v *TokenView, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		v, err = pick(ctx, tx, tokenViews, " WHERE id = ? AND deleted_at IS NULL", id)
		if err == nil && user != 0 && v.UserID != user {
			err = ErrNotFound
		}
		if err != nil {
			return err
		}
		return tx.freshenTokens(ctx, []*TokenView{v})
	})
	if err != nil {
		return nil, fmt.Errorf("read token %d: %w", id, err)
	}
	return v, nil
}

// CountTokens returns how many keys, not deleted, a user has.
func (s *Store) CountTokens(ctx context.Context, user int64) (n int, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		return tx.QueryRow(ctx, "SELECT COUNT(*) FROM tokens WHERE user_id = ? AND deleted_at IS NULL", []any{user}, &n)
	})
	if err != nil {
		return 0, fmt.Errorf("count tokens of user %d: %w", user, err)
	}
	return n, nil
}

// TokenEdit is a key in the middle of a change: its row is locked.
type TokenEdit struct {
	TokenView // Remain is what will be left once the outbox is applied

	Raise  int64 // by how much the limit rises, or falls if it is negative
	Delete bool  // soft delete
}

// EditToken locks a key that is not deleted, lets fn change it, and stores the change. fn may refuse with an error, which is returned,
// and may be called again after a deadlock. It may change Name, Status, ExpiredTime, Unlimited, the model limits, AllowIPs,
// Group, CrossGroupRetry and AutoGroups of the row, and the fields of TokenEdit; the limit only by Raise (DESIGN 9). It returns
// the key as it will be, and the outbox key of Raise or "". user 0 means any owner. ErrNotFound.
func (s *Store) EditToken(ctx context.Context, user, id int64, fn func(*TokenEdit) error) (token *TokenView, key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		token, key = nil, ""
		v, err := pick(ctx, tx, tokenViews, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), id)
		if err == nil && user != 0 && v.UserID != user {
			err = ErrNotFound
		}
		if err != nil {
			return err
		}
		if v.Remain, err = tx.lockedLeft(ctx, ledger.Account{Kind: ledger.TokenAccount, ID: id}, v.UserID, v.Remain); err != nil {
			return err
		}
		edit := &TokenEdit{TokenView: *v}
		if err := fn(edit); err != nil {
			return err
		}
		if err := tx.storeToken(ctx, edit); err != nil {
			return err
		}
		if edit.Raise != 0 {
			if key, err = tx.limitToken(ctx, v.UserID, id, edit.Raise); err != nil {
				return err
			}
			edit.Remain = clampedAdd(edit.Remain, edit.Raise)
		}
		token = &edit.TokenView
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("change token %d: %w", id, err)
	}
	return token, key, nil
}

func (tx *Tx) storeToken(ctx context.Context, t *TokenEdit) error {
	if t.Delete {
		t.DeletedAt, t.Deleted = tx.s.now(), true
	}
	err := tx.update(ctx, "tokens", t.ID, []assignment{
		{"status", t.Status},
		{"name", t.Name},
		{"expired_time", t.ExpiredTime},
		{"unlimited_quota", t.Unlimited},
		{"model_limits_enabled", t.ModelLimitsEnabled},
		{"model_limits", t.ModelLimits},
		{"allow_ips", t.AllowIPs},
		{"group", t.Group},
		{"cross_group_retry", t.CrossGroupRetry},
		{"auto_groups", t.AutoGroups},
		{"deleted_at", timeText(t.DeletedAt)},
	})
	if err != nil {
		return err
	}
	tx.Changed(ChangeToken, t.ID)
	return nil
}

// DeleteTokens soft-deletes keys of a user, all or none, and returns how many went. Those that are another's or gone already
// are passed over.
func (s *Store) DeleteTokens(ctx context.Context, user int64, ids []int64) (n int, err error) {
	if len(ids) > rowsPerStatement {
		return 0, fmt.Errorf("delete tokens: %s at once, at most %d", strconv.Itoa(len(ids)), rowsPerStatement)
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		n = 0
		q := new(statement).text("SELECT id FROM tokens WHERE user_id = ").int(user).text(" AND deleted_at IS NULL AND id IN (").ints(ids).text(") ORDER BY id" + tx.ForUpdate())
		if len(ids) == 0 {
			return nil
		}
		list, err := tx.ids(ctx, q.String())
		if err != nil || len(list) == 0 {
			return err
		}
		set := new(statement).text("UPDATE tokens SET `deleted_at` = ? WHERE id IN (").ints(list).text(")")
		if _, err := tx.Exec(ctx, set.String(), timeText(s.now())); err != nil {
			return err
		}
		for _, id := range list {
			tx.Changed(ChangeToken, id)
		}
		n = len(list)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("delete tokens: %w", err)
	}
	return n, nil
}
