package sqlstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"ledgerline/ledger"
)

// KeyLength is the length of an API key, without "sk-".
const KeyLength = 48

// CreateToken inserts an API key with the given limit (quota units; it counts only if the key is not unlimited). A missing
// Key is made. It returns the row, with the key itself also where it is stored sealed, and the outbox key of its limit event, ""
// if there is none. ErrExists: the key is taken.
func (s *Store) CreateToken(ctx context.Context, t TokenRow, limit int64) (row TokenRow, event string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		row, event, err = tx.createToken(ctx, t, limit)
		return err
	})
	if err != nil {
		return t, "", fmt.Errorf("create token: %w", err)
	}
	return row, event, nil
}

func (tx *Tx) createToken(ctx context.Context, t TokenRow, limit int64) (row TokenRow, event string, err error) {
	if t.Key == "" {
		if t.Key, err = randomText(KeyLength); err != nil {
			return t, "", err
		}
	}
	now := tx.s.now().Unix()
	kept, err := tx.keepKey(ctx, t.Key)
	if err != nil {
		return t, "", err
	}
	if t.Sealed = kept != t.Key; t.Sealed {
		// While keys are being sealed the same one may still be there in plain text.
		var other int64
		if err := tx.QueryRow(ctx, "SELECT id FROM tokens WHERE `key` = ?", []any{t.Key}, &other); !errors.Is(err, ErrNotFound) {
			return t, "", cmp.Or(err, ErrExists)
		}
	}
	t.ID, err = tx.insert(ctx, "tokens", []assignment{
		{"user_id", t.UserID},
		{"key", kept},
		{"status", TokenEnabled},
		{"name", t.Name},
		{"created_time", now},
		{"accessed_time", now},
		{"expired_time", t.ExpiredTime},
		{"remain_quota", 0},
		{"unlimited_quota", t.Unlimited},
		{"model_limits_enabled", t.ModelLimitsEnabled},
		{"model_limits", t.ModelLimits},
		{"allow_ips", t.AllowIPs},
		{"used_quota", 0},
		{"group", t.Group},
		{"cross_group_retry", t.CrossGroupRetry},
		{"auto_groups", t.AutoGroups},
	})
	if isDuplicate(err) {
		return t, "", ErrExists
	}
	if err != nil {
		return t, "", err
	}
	t.Status, t.CreatedTime, t.AccessedTime = TokenEnabled, now, now
	if err := tx.EnsureAccount(ctx, ledger.Account{Kind: ledger.TokenAccount, ID: t.ID}, t.UserID); err != nil {
		return t, "", err
	}
	if limit != 0 {
		if event, err = tx.limitToken(ctx, t.UserID, t.ID, limit); err != nil {
			return t, "", err
		}
	}
	tx.Changed(ChangeToken, t.ID)
	return t, event, nil
}

// limitToken puts a change of a token's limit into the outbox and returns its key.
func (tx *Tx) limitToken(ctx context.Context, user, token, delta int64) (string, error) {
	if delta > MaxGrant || delta < -MaxGrant {
		return "", ErrGrant
	}
	random, err := randomText(20)
	if err != nil {
		return "", err
	}
	key := businessKey(user, "limit", random)
	request := by(ctx, "")
	if actor, ok := ctx.Value(actorKey{}).(Actor); ok && actor.User == user {
		request = actor.request(actor.Username)
	}
	_, err = tx.Outbox(ctx, ledger.Event{
		Kind: ledger.KindTokenLimited, User: user, Token: token, Account: ledger.TokenAccount, Granted: delta, Request: request,
		Note: fmt.Sprintf("limit of key %d changed by %d", token, delta),
	}, key)
	return key, err
}
