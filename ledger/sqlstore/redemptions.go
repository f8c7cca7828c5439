package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Redemption code statuses, as New API numbers them.
const (
	RedemptionEnabled  = 1
	RedemptionDisabled = 2
	RedemptionUsed     = 3
)

// MaxCodes bounds the redemption codes of one request (L7), as New API does.
const MaxCodes = 100

// Redemption is a code that gives its quota once.
type Redemption struct {
	ID           int64
	UserID       int64 // who made it
	Key          string
	Status       int
	Name         string
	Quota        int64
	CreatedTime  int64 // Unix seconds, as all times here
	RedeemedTime int64
	UsedBy       int64
	ExpiredTime  int64 // 0: never
	DeletedAt    time.Time
}

var redemptionRows = source[Redemption]{"redemptions", "`id`, `user_id`, `key`, `status`, `name`, `quota`, `created_time`, `redeemed_time`, `used_user_id`, `expired_time`, `deleted_at`", scanRedemption, nil}

func scanRedemption(scan func(...any) error) (*Redemption, error) {
	var r Redemption
	var numbers [7]looseInt
	var key, name sql.NullString
	var deleted looseTime
	err := scan(&r.ID, &numbers[0], &key, &numbers[1], &name, &numbers[2], &numbers[3], &numbers[4], &numbers[5], &numbers[6], &deleted)
	r.UserID, r.Key, r.Status, r.Name, r.Quota = numbers[0].Int64, key.String, int(numbers[1].Int64), name.String, numbers[2].Int64
	r.CreatedTime, r.RedeemedTime, r.UsedBy, r.ExpiredTime = numbers[3].Int64, numbers[4].Int64, numbers[5].Int64, numbers[6].Int64
	r.DeletedAt = deleted.Time
	return &r, err
}

// The reasons why a code is not redeemed.
var (
	ErrCodeUsed    = errors.New("the code has been used")
	ErrCodeExpired = errors.New("the code has expired, or is disabled")
)

// Redeem gives a code's quota to a user and returns it, with the outbox key of the credit. The key names the code, so that whatever
// happens to the row, a code counts once. ErrNotFound, ErrCodeUsed, ErrCodeExpired.
func (s *Store) Redeem(ctx context.Context, user int64, code string) (quota int64, key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var name sql.NullString
		if err := tx.QueryRow(ctx, "SELECT username FROM users WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), []any{user}, &name); err != nil {
			return err
		}
		r, err := pick(ctx, tx, redemptionRows, " WHERE `key` = ? AND deleted_at IS NULL"+tx.ForUpdate(), code)
		if err == nil && r.Key != code {
			err = ErrNotFound // the column's collation may not tell letters apart
		}
		if err != nil {
			return err
		}
		now := s.now().Unix()
		switch {
		case r.Status == RedemptionUsed:
			return ErrCodeUsed
		case r.Status != RedemptionEnabled, r.ExpiredTime != 0 && r.ExpiredTime < now:
			return ErrCodeExpired
		}
		_, err = tx.Exec(ctx, "UPDATE redemptions SET `status` = ?, `redeemed_time` = ?, `used_user_id` = ? WHERE id = ?", RedemptionUsed, now, user, r.ID)
		if err != nil {
			return err
		}
		quota = r.Quota
		key, err = tx.grantOnce(ctx, credit{user, name.String, r.Quota, "redeem", "redeemed code " + strconv.FormatInt(r.ID, 10)}, r.Key)
		if errors.Is(err, ErrExists) {
			return ErrCodeUsed
		}
		return err
	})
	if err != nil {
		return 0, "", fmt.Errorf("redeem a code: %w", err)
	}
	return quota, key, nil
}

// CreateRedemptions makes count codes, at most MaxCodes, and returns them.
func (s *Store) CreateRedemptions(ctx context.Context, r Redemption, count int) (codes []string, err error) {
	if count < 1 || count > MaxCodes || r.Quota <= 0 || r.Quota > MaxGrant {
		return nil, fmt.Errorf("make codes: %d of %d quota units", count, r.Quota)
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		codes = codes[:0]
		for range count {
			var raw [16]byte
			if _, err := rand.Read(raw[:]); err != nil {
				return err
			}
			code := hex.EncodeToString(raw[:])
			_, err := tx.insert(ctx, "redemptions", []assignment{
				{"user_id", r.UserID},
				{"key", code},
				{"status", RedemptionEnabled},
				{"name", r.Name},
				{"quota", r.Quota},
				{"created_time", s.now().Unix()},
				{"redeemed_time", 0},
				{"used_user_id", 0},
				{"expired_time", r.ExpiredTime},
			})
			if err != nil {
				return err
			}
			codes = append(codes, code)
		}
		return tx.audit(ctx, fmt.Sprintf("created %d redemption codes named %q of %d quota units", count, r.Name, r.Quota))
	})
	if err != nil {
		return nil, fmt.Errorf("make codes: %w", err)
	}
	return codes, nil
}

// EditRedemption locks a code that is not deleted, lets fn change its name, status, quota and expiry, and stores the change. fn may
// refuse with an error, which is returned, and may be called again. A code that fn returns with DeletedAt set is soft-deleted. ErrNotFound.
func (s *Store) EditRedemption(ctx context.Context, id int64, fn func(*Redemption) error) (r *Redemption, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		r, err = pick(ctx, tx, redemptionRows, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), id)
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
		if r.Quota <= 0 || r.Quota > MaxGrant {
			return ErrGrant
		}
		err := tx.update(ctx, "redemptions", id, []assignment{
			{"name", r.Name},
			{"status", r.Status},
			{"quota", r.Quota},
			{"expired_time", r.ExpiredTime},
			{"deleted_at", timeText(r.DeletedAt)},
		})
		if err != nil {
			return err
		}
		return tx.audit(ctx, fmt.Sprintf("changed redemption code %s (ID: %d)", r.Name, id))
	})
	if err != nil {
		return nil, fmt.Errorf("change code %d: %w", id, err)
	}
	return r, nil
}

// Redemption reads a code that is not deleted. ErrNotFound.
func (s *Store) Redemption(ctx context.Context, id int64) (*Redemption, error) {
	return one(ctx, s, redemptionRows, " WHERE id = ? AND deleted_at IS NULL", id)
}

// Redemptions lists codes that are not deleted, newest first, with the number of all that match. keyword is an id or the beginning of a name.
func (s *Store) Redemptions(ctx context.Context, keyword string, page Page) (list []*Redemption, total int, err error) {
	w := &conditions{}
	w.add("deleted_at IS NULL")
	if keyword != "" {
		text, args := "`name` LIKE ? ESCAPE '!'", []any{like(keyword)[1:]}
		if id, err := strconv.ParseInt(keyword, 10, 64); err == nil {
			text, args = text+" OR `id` = ?", append(args, id)
		}
		w.add("("+text+")", args...)
	}
	err = s.View(ctx, func(tx *Tx) error {
		list, total, err = listed(ctx, tx, query[Redemption]{redemptionRows, w, "`id` DESC", page})
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list codes: %w", err)
	}
	return list, total, nil
}

// DeleteInvalidRedemptions soft-deletes codes that are used, disabled or expired, and returns how many went.
func (s *Store) DeleteInvalidRedemptions(ctx context.Context) (n int64, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		now := s.now()
		invalid, args := "`status` <> ?", []any{timeText(now), RedemptionEnabled}
		known, err := s.loadShapes(ctx, tx.each)
		if err != nil {
			return err
		}
		if known["redemptions"]["expired_time"] {
			invalid, args = invalid+" OR (`expired_time` <> 0 AND `expired_time` < ?)", append(args, now.Unix())
		}
		result, err := tx.Exec(ctx, "UPDATE redemptions SET deleted_at = ? WHERE deleted_at IS NULL AND ("+invalid+")", args...)
		if err != nil {
			return err
		}
		if n, err = result.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return tx.audit(ctx, fmt.Sprintf("deleted %d redemption codes that were used, disabled or expired", n))
	})
	if err != nil {
		return 0, fmt.Errorf("delete codes: %w", err)
	}
	return n, nil
}
