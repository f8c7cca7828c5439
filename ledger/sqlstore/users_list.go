package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ledgerline/ledger"
)

// UserView is a user as lists and forms show it.
type UserView struct {
	UserRow
	Quota        int64 // what is left, quota units
	UsedQuota    int64
	RequestCount int64
	AffCount     int64
	AffQuota     int64
	AffHistory   int64
	GitHubID     string
	DiscordID    string
	OIDCID       string
	WeChatID     string
	TelegramID   string
	LinuxDOID    string
	Stripe       string
	DeletedAt    time.Time // zero if it is not deleted
}

var userViews = source[UserView]{"users", userColumns + ", `quota`, `used_quota`, `request_count`, `aff_count`, `aff_quota`, `aff_history`, " +
	"`github_id`, `discord_id`, `oidc_id`, `wechat_id`, `telegram_id`, `linux_do_id`, `stripe_customer`, `deleted_at`", scanUserView, nil}

func scanUserView(scan func(...any) error) (*UserView, error) {
	var v UserView
	var numbers [6]looseInt
	var names [7]sql.NullString
	var deleted looseTime
	row, err := scanUser(func(dest ...any) error {
		for i := range numbers {
			dest = append(dest, &numbers[i])
		}
		for i := range names {
			dest = append(dest, &names[i])
		}
		return scan(append(dest, &deleted)...)
	})
	if err != nil {
		return nil, err
	}
	v.UserRow = *row
	for i, into := range []*int64{&v.Quota, &v.UsedQuota, &v.RequestCount, &v.AffCount, &v.AffQuota, &v.AffHistory} {
		*into = numbers[i].Int64
	}
	for i, into := range []*string{&v.GitHubID, &v.DiscordID, &v.OIDCID, &v.WeChatID, &v.TelegramID, &v.LinuxDOID, &v.Stripe} {
		*into = names[i].String
	}
	v.DeletedAt = deleted.Time
	return &v, nil
}

// UserFilter selects users. Zero fields select all.
type UserFilter struct {
	Keyword string // an id, or a part of user name, e-mail or display name
	Group   string
	Role    int
	Status  int
}

func (f *UserFilter) where() *conditions {
	w := &conditions{}
	if f.Keyword != "" {
		pattern := like(f.Keyword)
		text, args := "`username` LIKE ? ESCAPE '!' OR `email` LIKE ? ESCAPE '!' OR `display_name` LIKE ? ESCAPE '!'", []any{pattern, pattern, pattern}
		if id, err := strconv.ParseInt(f.Keyword, 10, 64); err == nil {
			text, args = text+" OR `id` = ?", append(args, id)
		}
		w.add("("+text+")", args...)
	}
	if f.Group != "" {
		w.add("`group` = ?", f.Group)
	}
	if f.Role != 0 {
		w.add("`role` = ?", f.Role)
	}
	if f.Status != 0 {
		w.add("`status` = ?", f.Status)
	}
	return w
}

// Users lists users, deleted ones too, newest first, with the number of all that match.
func (s *Store) Users(ctx context.Context, f UserFilter, page Page) (list []*UserView, total int, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		list, total, err = listed(ctx, tx, query[UserView]{userViews, f.where(), "`id` DESC", page})
		if err != nil {
			return err
		}
		return tx.freshenUsers(ctx, list)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list users: %w", err)
	}
	return list, total, nil
}

func (tx *Tx) freshenUsers(ctx context.Context, list []*UserView) error {
	columns := make(map[int64]*int64, len(list))
	for _, v := range list {
		columns[v.ID] = &v.Quota
	}
	return tx.freshen(ctx, ledger.UserAccount, columns)
}

// UserView reads a user that is not deleted, with its balance as of now. ErrNotFound.
func (s *Store) UserView(ctx context.Context, id int64) (*UserView, error) {
	return s.userView(ctx, "`id` = ?", id)
}

// UserByAccessToken finds the user, not deleted, of a management token. The comparison is of bytes, whatever the column's collation.
// ErrNotFound.
func (s *Store) UserByAccessToken(ctx context.Context, token string) (*UserView, error) {
	v, err := s.userView(ctx, "`access_token` = ?", token)
	if errors.Is(err, ErrNotFound) && s.sealer != nil {
		token = s.sealer.sealAccess(token)
		v, err = s.userView(ctx, "`access_token` = ?", token)
	} else if isSealedAccess(token) {
		return nil, fmt.Errorf("read user: %w", ErrNotFound) // what stands for a token is no token
	}
	if err == nil && (token == "" || v.AccessToken != token) {
		return nil, fmt.Errorf("read user: %w", ErrNotFound)
	}
	return v, err
}

// UserByAffCode finds the id of the user, not deleted, with an invitation code. ErrNotFound.
func (s *Store) UserByAffCode(ctx context.Context, code string) (int64, error) {
	v, err := s.userView(ctx, "`aff_code` = ? AND `aff_code` <> ''", code)
	if err != nil {
		return 0, err
	}
	return v.ID, nil
}

func (s *Store) userView(ctx context.Context, where string, arg any) (v *UserView, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		v, err = pick(ctx, tx, userViews, " WHERE deleted_at IS NULL AND "+where, arg)
		if err != nil {
			return err
		}
		return tx.freshenUsers(ctx, []*UserView{v})
	})
	if err != nil {
		return nil, fmt.Errorf("read user: %w", err)
	}
	return v, nil
}

// conditions is the WHERE of a list.
type conditions struct {
	parts []string
	args  []any
}

func (w *conditions) add(text string, args ...any) {
	w.parts = append(w.parts, text)
	w.args = append(w.args, args...)
}

func (w *conditions) String() string {
	if len(w.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.parts, " AND ")
}

// like returns the pattern for "contains", for LIKE … ESCAPE '!'.
func like(part string) string {
	return "%" + strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(part) + "%"
}

// query is one page of a table.
type query[R any] struct {
	from  source[R]
	where *conditions
	order string
	page  Page
}

// listed counts what matches and reads one page of it.
func listed[R any](ctx context.Context, tx *Tx, q query[R]) (list []*R, total int, err error) {
	if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM "+q.from.table+q.where.String(), q.where.args, &total); err != nil {
		return nil, 0, err
	}
	limit, args := q.page.clause()
	list, err = rowsOf(ctx, tx, q.from, q.where.String()+" ORDER BY "+q.order+limit, append(slices.Clone(q.where.args), args...)...)
	return list, total, err
}
