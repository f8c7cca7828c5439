package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
)

// UserEdit is a user in the middle of a change: its row is locked, so what a caller reads here cannot change under it.
type UserEdit struct {
	UserView // Quota is what will be left once the outbox is applied

	Password string // hash of a new password; "" keeps the old one
	Grant    int64  // quota to add, or to take if it is negative
	Note     string // for the event of Grant and for the audit trail; "" leaves no audit event
	Delete   bool   // soft delete
	// Revoke ends every session of the user but Keep.
	Revoke bool
	Keep   ledger.ID
}

// EditUser locks a user that is not deleted, lets fn change it, and stores the change. fn may refuse with an error, which is
// returned, and may be called again after a deadlock. It may change Username, DisplayName, Role, Status, Email, Group,
// Setting, Remark and AccessToken of the row, and the fields of UserEdit; balances only by Grant (DESIGN 9). It returns the
// user as stored, and the key of the outbox row of Grant or "". ErrNotFound; ErrExists: the name or token is taken.
func (s *Store) EditUser(ctx context.Context, id int64, fn func(*UserEdit) error) (user *UserView, key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		user, key = nil, ""
		v, err := pick(ctx, tx, userViews, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), id)
		if err != nil {
			return err
		}
		if v.Quota, err = tx.lockedLeft(ctx, ledger.Account{Kind: ledger.UserAccount, ID: id}, id, v.Quota); err != nil {
			return err
		}
		edit := &UserEdit{UserView: *v}
		if err := fn(edit); err != nil {
			return err
		}
		if err := tx.storeUser(ctx, edit); err != nil {
			return err
		}
		if edit.Grant != 0 {
			if key, err = tx.grant(ctx, credit{id, edit.Username, edit.Grant, "admin", edit.Note}); err != nil {
				return err
			}
			edit.Quota = clampedAdd(edit.Quota, edit.Grant)
		}
		user = &edit.UserView
		if edit.Note != "" {
			return tx.audit(ctx, edit.Note)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("change user %d: %w", id, err)
	}
	return user, key, nil
}

func (tx *Tx) storeUser(ctx context.Context, u *UserEdit) error {
	now := tx.s.now()
	if u.Revoke || u.Delete {
		u.AuthVersion++
		if _, err := tx.Exec(ctx, "UPDATE ledger_sessions SET revoked_at = ? WHERE user_id = ? AND sid <> ? AND revoked_at = 0", now.Unix(), u.ID, u.Keep[:]); err != nil {
			return fmt.Errorf("end sessions: %w", err)
		}
		if _, err := tx.Exec(ctx, "UPDATE ledger_sessions SET auth_version = ? WHERE user_id = ? AND sid = ?", u.AuthVersion, u.ID, u.Keep[:]); err != nil {
			return fmt.Errorf("keep session: %w", err)
		}
	}
	if u.Delete {
		u.DeletedAt, u.Deleted = now, true
	}
	access, err := tx.keepAccess(ctx, u.AccessToken)
	if err != nil {
		return err
	}
	err = tx.update(ctx, "users", u.ID, []assignment{
		{"username", u.Username},
		{"display_name", u.DisplayName},
		{"role", u.Role},
		{"status", u.Status},
		{"email", u.Email},
		{"group", u.Group},
		{"setting", u.Setting},
		{"remark", u.Remark},
		{"access_token", nullable(access)},
		{"auth_version", u.AuthVersion},
		{"deleted_at", timeText(u.DeletedAt)},
	})
	if isDuplicate(err) {
		return ErrExists
	}
	if err != nil {
		return err
	}
	if u.Password != "" {
		if err := tx.setPassword(ctx, u.ID, u.Password); err != nil {
			return err
		}
	}
	tx.Changed(ChangeUser, u.ID)
	return nil
}

func (tx *Tx) setPassword(ctx context.Context, user int64, hash string) error {
	if _, err := tx.Exec(ctx, "UPDATE users SET `password` = ? WHERE id = ?", hash, user); err != nil {
		return fmt.Errorf("store password: %w", err)
	}
	return nil
}

// GiveAffCode gives a user an invitation code, if there is none yet, and returns it. ErrNotFound.
func (s *Store) GiveAffCode(ctx context.Context, user int64) (code string, err error) {
	for length := shortAffCode; ; length += shortAffCode {
		err = s.Tx(ctx, func(tx *Tx) error {
			v, err := pick(ctx, tx, userRows, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), user)
			if err != nil {
				return err
			}
			if code = v.AffCode; code != "" {
				return nil
			}
			if code, err = randomText(length); err != nil {
				return err
			}
			tx.Changed(ChangeUser, user)
			return tx.update(ctx, "users", user, []assignment{{"aff_code", code}})
		})
		if !isDuplicate(err) || length >= longAffCode {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("give user %d an invitation code: %w", user, err)
	}
	return code, nil
}

// ErrTooLittle means that there is less than was asked for.
var ErrTooLittle = errors.New("there is less than that")

// TransferReward turns what a user earned by invitations into quota, and returns the outbox key of the credit. ErrNotFound,
// ErrTooLittle.
func (s *Store) TransferReward(ctx context.Context, user, amount int64) (key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		v, err := pick(ctx, tx, userViews, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), user)
		if err != nil {
			return err
		}
		if amount <= 0 || v.AffQuota < amount {
			return ErrTooLittle
		}
		if err := tx.update(ctx, "users", user, []assignment{{"aff_quota", v.AffQuota - amount}}); err != nil {
			return err
		}
		key, err = tx.grant(ctx, credit{user, v.Username, amount, "invite", "reward for invitations"})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("transfer the reward of user %d: %w", user, err)
	}
	return key, nil
}

// Rehash replaces a user's password hash if it still is the one that was verified. Nothing else changes; no session ends.
func (s *Store) Rehash(ctx context.Context, user int64, from, to string) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		var stored string
		err := tx.QueryRow(ctx, "SELECT `password` FROM users WHERE id = ?"+tx.ForUpdate(), []any{user}, &stored)
		if errors.Is(err, ErrNotFound) || err == nil && stored != from {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.setPassword(ctx, user, to)
	})
	if err != nil {
		return fmt.Errorf("rehash the password of user %d: %w", user, err)
	}
	return nil
}

// timeText is a time as New API's datetime columns take it on both engines; the zero time is NULL.
func timeText(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02 15:04:05.000")
}
