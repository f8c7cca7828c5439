package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kinds of the change log.
const (
	ChangeUser    = "user"
	ChangeToken   = "token"
	ChangeChannel = "channel"
	ChangeOption  = "option"
)

const userColumns = "`id`, `username`, `display_name`, `role`, `status`, `email`, `group`, `setting`, `access_token`, `aff_code`, " +
	"`inviter_id`, `remark`, `auth_version`, `created_at`, `last_login_at`, `deleted_at` IS NOT NULL"

func scanUser(scan func(...any) error) (*UserRow, error) {
	var r UserRow
	var name, display, email, group, setting, access, aff, remark sql.NullString
	var role, status, inviter, auth, created, login looseInt
	err := scan(&r.ID, &name, &display, &role, &status, &email, &group, &setting, &access, &aff, &inviter, &remark, &auth,
		&created, &login, &r.Deleted)
	if err != nil {
		return nil, err
	}
	r.Username, r.DisplayName, r.Role, r.Status = name.String, display.String, int(role.Int64), int(status.Int64)
	r.Email, r.Group, r.Setting, r.AccessToken = email.String, group.String, setting.String, strings.TrimSpace(access.String)
	r.AffCode, r.InviterID, r.Remark, r.AuthVersion = aff.String, inviter.Int64, remark.String, auth.Int64
	r.CreatedAt, r.LastLoginAt = created.Int64, login.Int64
	if r.Group == "" {
		r.Group = "default"
	}
	if !auth.Valid {
		r.AuthVersion = firstAuthVersion
	}
	return &r, nil
}

// firstAuthVersion is a user's auth version before anything ended their sessions, as in New API.
const firstAuthVersion = 1

const tokenColumns = "`id`, `user_id`, `key`, `status`, `name`, `created_time`, `accessed_time`, `expired_time`, `unlimited_quota`, " +
	"`model_limits_enabled`, `model_limits`, `allow_ips`, `group`, `cross_group_retry`, `auto_groups`, `deleted_at` IS NOT NULL"

func scanToken(scan func(...any) error) (*TokenRow, error) {
	var r TokenRow
	var user, status, created, accessed, expired looseInt
	var key, name, limits, ips, group, auto sql.NullString
	var unlimited, limited, cross looseBool
	err := scan(&r.ID, &user, &key, &status, &name, &created, &accessed, &expired, &unlimited, &limited, &limits, &ips,
		&group, &cross, &auto, &r.Deleted)
	if err != nil {
		return nil, err
	}
	r.Sealed = isSealedToken(key.String)
	r.UserID, r.Key, r.Status, r.Name = user.Int64, strings.TrimSpace(key.String), int(status.Int64), name.String
	r.CreatedTime, r.AccessedTime, r.ExpiredTime = created.Int64, accessed.Int64, expired.Int64
	r.Unlimited, r.ModelLimitsEnabled, r.ModelLimits, r.AllowIPs = unlimited.Bool, limited.Bool, limits.String, ips.String
	r.Group, r.CrossGroupRetry, r.AutoGroups = group.String, cross.Bool, auto.String
	return &r, nil
}

const channelColumns = "`id`, `type`, `key`, `open_ai_organization`, `test_model`, `status`, `name`, `weight`, `created_time`, " +
	"`test_time`, `response_time`, `base_url`, `other`, `balance`, `balance_updated_time`, `models`, `group`, `used_quota`, " +
	"`model_mapping`, `status_code_mapping`, `priority`, `auto_ban`, `other_info`, `tag`, `setting`, `param_override`, " +
	"`header_override`, `remark`, `channel_info`, `settings`"

func scanChannel(scan func(...any) error) (*ChannelRow, error) {
	var r ChannelRow
	var org, test, name, base, other, models, group, mapping, status, info, tag, setting, param, header, remark, channel, settings sql.NullString
	var kind, st, weight, created, tested, response, updated, used, priority, ban looseInt
	var balance looseFloat
	err := scan(&r.ID, &kind, &r.Key, &org, &test, &st, &name, &weight, &created, &tested, &response, &base, &other, &balance,
		&updated, &models, &group, &used, &mapping, &status, &priority, &ban, &info, &tag, &setting, &param, &header, &remark,
		&channel, &settings)
	if err != nil {
		return nil, err
	}
	r.Type, r.Status, r.Weight, r.Priority = int(kind.Int64), int(st.Int64), weight.Int64, priority.Int64
	r.CreatedTime, r.TestTime, r.ResponseTime, r.BalanceUpdated = created.Int64, tested.Int64, response.Int64, updated.Int64
	r.Organization, r.TestModel, r.Name, r.BaseURL, r.Other = org.String, test.String, name.String, base.String, other.String
	r.Balance, r.Models, r.Group, r.UsedQuota = balance.Float64, models.String, group.String, used.Int64
	r.ModelMapping, r.StatusCodeMapping, r.AutoBan = mapping.String, status.String, !ban.Valid || ban.Int64 != 0
	r.OtherInfo, r.Tag, r.Setting, r.ParamOverride = info.String, tag.String, setting.String, param.String
	r.HeaderOverride, r.Remark, r.ChannelInfo, r.Settings = header.String, remark.String, channel.String, settings.String
	return &r, nil
}

// LoadCatalog streams all users, tokens and channels that are not deleted, and all options, into a sink, from one
// snapshot. It returns the number of the newest change that the snapshot contains.
func (s *Store) LoadCatalog(ctx context.Context, into CatalogSink) (seq int64, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		if seq, err = tx.lastChange(ctx, ""); err != nil {
			return err
		}
		err := eachOf(ctx, tx, userRows, " WHERE deleted_at IS NULL", nil, func(r *UserRow) { into.User(r) })
		if err != nil {
			return fmt.Errorf("read users: %w", err)
		}
		err = eachOf(ctx, tx, tokenRows, " WHERE deleted_at IS NULL", nil, func(r *TokenRow) { into.Token(r) })
		if err != nil {
			return fmt.Errorf("read tokens: %w", err)
		}
		err = eachOf(ctx, tx, channelRows, "", nil, func(r *ChannelRow) { into.Channel(r, false) })
		if err != nil {
			return fmt.Errorf("read channels: %w", err)
		}
		return tx.options(ctx, into)
	})
	return seq, err
}

func (tx *Tx) options(ctx context.Context, into CatalogSink) error {
	err := tx.each(ctx, "SELECT `key`, `value` FROM options", nil, func(scan func(...any) error) error {
		var key string
		var value sql.NullString
		if err := scan(&key, &value); err != nil {
			return err
		}
		into.Option(key, value.String)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	return nil
}

// CatalogRow reads what a change names again into a sink: one row, or all options. A row that is gone is passed as deleted.
func (s *Store) CatalogRow(ctx context.Context, change Change, into CatalogSink) error {
	switch change.Kind {
	case ChangeUser:
		r, err := s.User(ctx, change.ID)
		if errors.Is(err, ErrNotFound) {
			r, err = &UserRow{ID: change.ID, Deleted: true}, nil
		}
		if err == nil {
			into.User(r)
		}
		return err
	case ChangeToken:
		r, err := s.Token(ctx, change.ID)
		if errors.Is(err, ErrNotFound) {
			r, err = &TokenRow{ID: change.ID, Deleted: true}, nil
		}
		if err == nil {
			into.Token(r)
		}
		return err
	case ChangeChannel:
		r, err := s.Channel(ctx, change.ID)
		if errors.Is(err, ErrNotFound) {
			into.Channel(&ChannelRow{ID: change.ID}, true)
			return nil
		}
		if err == nil {
			into.Channel(r, false)
		}
		return err
	case ChangeOption:
		return s.View(ctx, func(tx *Tx) error { return tx.options(ctx, into) })
	}
	return nil // a kind of a newer release: the full reload will know
}

// User reads a user, deleted or not. ErrNotFound.
func (s *Store) User(ctx context.Context, id int64) (*UserRow, error) {
	return one(ctx, s, userRows, " WHERE id = ?", id)
}

// Token reads an API key, deleted or not. ErrNotFound.
func (s *Store) Token(ctx context.Context, id int64) (*TokenRow, error) {
	return one(ctx, s, tokenRows, " WHERE id = ?", id)
}

// Channel reads a channel. ErrNotFound.
func (s *Store) Channel(ctx context.Context, id int64) (*ChannelRow, error) {
	return one(ctx, s, channelRows, " WHERE id = ?", id)
}

// source says how rows of a table are read.
type source[R any] struct {
	table, columns string
	scan           func(func(...any) error) (*R, error)
	open           func(*Store, *R) // what is stored sealed; nil if nothing is
}

// row reads the next row.
func (from *source[R]) row(s *Store, scan func(...any) error) (*R, error) {
	r, err := from.scan(scan)
	if err == nil && from.open != nil {
		from.open(s, r)
	}
	return r, err
}

var (
	userRows    = source[UserRow]{"users", userColumns, scanUser, nil}
	tokenRows   = source[TokenRow]{"tokens", tokenColumns, scanToken, nil}
	channelRows = source[ChannelRow]{"channels", channelColumns, scanChannel, (*Store).reveal}
)

// selectFrom is the beginning of a query for rows.
func (s *Store) selectFrom(ctx context.Context, run runner, table, columns string) (string, error) {
	if slices.Contains(shapedTables, table) {
		var err error
		if columns, err = s.columnsOf(ctx, run, table, columns); err != nil {
			return "", err
		}
	}
	return "SELECT " + columns + " FROM " + table, nil
}

// eachOf calls fn for each row that the rest of the query selects.
func eachOf[R any](ctx context.Context, tx *Tx, from source[R], rest string, args []any, fn func(*R)) error {
	head, err := tx.s.selectFrom(ctx, tx.each, from.table, from.columns)
	if err != nil {
		return err
	}
	return tx.each(ctx, head+rest, args, func(scan func(...any) error) error {
		r, err := from.row(tx.s, scan)
		if err == nil {
			fn(r)
		}
		return err
	})
}

// rowsOf reads the rows that the rest of the query selects. The list is never nil.
func rowsOf[R any](ctx context.Context, tx *Tx, from source[R], rest string, args ...any) ([]*R, error) {
	list := []*R{}
	err := eachOf(ctx, tx, from, rest, args, func(r *R) { list = append(list, r) })
	return list, err
}

// pick reads a single row in a transaction. ErrNotFound.
func pick[R any](ctx context.Context, tx *Tx, from source[R], rest string, args ...any) (*R, error) {
	list, err := rowsOf(ctx, tx, from, rest, args...)
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// one reads a single row outside of a transaction. ErrNotFound.
func one[R any](ctx context.Context, s *Store, from source[R], rest string, args ...any) (*R, error) {
	head, err := s.selectFrom(ctx, s.read, from.table, from.columns)
	if err != nil {
		return nil, err
	}
	var out *R
	err = s.read(ctx, head+rest, args, func(scan func(...any) error) (err error) {
		out, err = from.row(s, scan)
		return err
	})
	if err == nil && out == nil {
		err = ErrNotFound
	}
	return out, err
}
