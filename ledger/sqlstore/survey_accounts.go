package sqlstore

import (
	"context"
	"fmt"
	"math"

	"ledgerline/ledger"
)

// UserSurvey counts users. Sums are of users that are not deleted, in quota units.
type UserSurvey struct {
	Total    int   `json:"total"` // deleted ones included
	Deleted  int   `json:"deleted"`
	Disabled int   `json:"disabled"`
	Admins   int   `json:"admins"` // root included
	Quota    int64 `json:"quota"`
	Negative int   `json:"negative"` // owe something
}

// TokenSurvey counts API keys.
type TokenSurvey struct {
	Total     int `json:"total"` // deleted ones included
	Deleted   int `json:"deleted"`
	Disabled  int `json:"disabled"`
	Unlimited int `json:"unlimited"`
	Orphans   int `json:"orphans"` // keys of no user
}

// LogSums is what New API's logs say was used, by id: requests of type consume.
type LogSums struct {
	Users, Tokens, Channels map[int64]LogSum
}

// LogSum is a sum over log rows.
type LogSum struct{ Quota, Requests int64 }

// nearCeiling is the part of a column's range, in percent, from which an operator is told.
const nearCeiling = 90

// listedCount runs a query of (id, text, number) and returns how many rows it has and how they read.
func (v *surveyor) listed(ctx context.Context, query, format string) (count int, examples []string, err error) {
	err = v.tx.each(ctx, query, nil, func(scan func(...any) error) error {
		var id, number int64
		var text []byte
		if err := scan(&id, &text, &number); err != nil {
			return err
		}
		if count++; count <= maxExamples {
			examples = append(examples, fmt.Sprintf(format, id, cut(string(text), maxExampleText), number))
		}
		return nil
	})
	return count, examples, err
}

// maxExampleText bounds a name in an example.
const maxExampleText = 40

func (v *surveyor) users(ctx context.Context) error {
	u := &v.Users
	q := "SELECT COUNT(*), COALESCE(SUM(deleted_at IS NOT NULL), 0), COALESCE(SUM(deleted_at IS NULL AND COALESCE(status, 0) <> 1), 0)," +
		" COALESCE(SUM(deleted_at IS NULL AND role >= 10), 0), COALESCE(SUM(deleted_at IS NULL AND quota < 0), 0) FROM users"
	if err := v.tx.QueryRow(ctx, q, nil, &u.Total, &u.Deleted, &u.Disabled, &u.Admins, &u.Negative); err != nil {
		return fmt.Errorf("count users: %w", err)
	}
	// Added up here: a sum that leaves 64 bits is an error in SQLite.
	err := v.tx.each(ctx, "SELECT COALESCE(quota, 0) FROM users WHERE deleted_at IS NULL", nil, func(scan func(...any) error) error {
		var quota int64
		err := scan(&quota)
		u.Quota = clampedAdd(u.Quota, quota)
		return err
	})
	if err != nil {
		return fmt.Errorf("sum the quotas of users: %w", err)
	}
	for _, f := range []struct{ code, level, query, format, text string }{
		{
			"user_negative", "info", "SELECT id, COALESCE(username, ''), quota FROM users WHERE quota < 0 AND deleted_at IS NULL ORDER BY quota, id",
			"user %d (%s): %d", "users owe something: it is carried over, and they are refused until it is paid",
		},
		{
			"user_without_name", "warn", "SELECT id, COALESCE(username, ''), COALESCE(quota, 0) FROM users WHERE COALESCE(username, '') = '' AND deleted_at IS NULL ORDER BY id",
			"user %d%s: quota %d", "users have no name: their keys work, they cannot log in",
		},
		{
			"user_duplicate", "warn", "SELECT MIN(id), username, COUNT(*) FROM users WHERE COALESCE(username, '') <> '' AND deleted_at IS NULL GROUP BY username HAVING COUNT(*) > 1 ORDER BY 1",
			"user %d (%s): %d times", "user names are there more than once: the lowest id logs in under the name",
		},
	} {
		n, examples, err := v.listed(ctx, f.query, f.format)
		if err != nil {
			return fmt.Errorf("look for %s: %w", f.code, err)
		}
		v.add(FindingLevel(f.level), f.code, n, examples, "%s", f.text)
	}
	return nil
}

func (v *surveyor) tokens(ctx context.Context) error {
	k := &v.Tokens
	const orphan = "t.deleted_at IS NULL AND u.id IS NULL"
	const from = " FROM tokens t LEFT JOIN users u ON u.id = t.user_id"
	q := "SELECT COUNT(*), COALESCE(SUM(t.deleted_at IS NOT NULL), 0), COALESCE(SUM(t.deleted_at IS NULL AND COALESCE(t.status, 0) = 2), 0)," +
		" COALESCE(SUM(t.deleted_at IS NULL AND COALESCE(t.unlimited_quota, 0) <> 0), 0), COALESCE(SUM(" + orphan + "), 0)" + from
	if err := v.tx.QueryRow(ctx, q, nil, &k.Total, &k.Deleted, &k.Disabled, &k.Unlimited, &k.Orphans); err != nil {
		return fmt.Errorf("count keys: %w", err)
	}
	for _, f := range []struct{ code, level, query, format, text string }{
		{
			"token_orphan", "warn", "SELECT t.id, t.name, COALESCE(t.user_id, 0)" + from + " WHERE " + orphan + " ORDER BY t.id",
			"key %d (%s) of user %d", "keys belong to no user: they are refused, as New API does",
		},
		{
			"token_of_deleted_user", "info", "SELECT t.id, t.name, t.user_id" + from + " WHERE t.deleted_at IS NULL AND u.deleted_at IS NOT NULL ORDER BY t.id",
			"key %d (%s) of user %d", "keys belong to deleted users: they answer 401",
		},
		{
			"token_without_key", "warn", "SELECT t.id, t.name, COALESCE(t.user_id, 0) FROM tokens t WHERE COALESCE(t.`key`, '') = '' AND t.deleted_at IS NULL ORDER BY t.id",
			"key %d (%s) of user %d", "rows of keys hold no key: nobody can use them",
		},
		{
			"token_duplicate", "warn", "SELECT MIN(t.id), MIN(t.name), COUNT(*) FROM tokens t WHERE COALESCE(t.`key`, '') <> '' AND t.deleted_at IS NULL GROUP BY t.`key` HAVING COUNT(*) > 1 ORDER BY 1",
			"key %d (%s): %d times", "the same key is there more than once: which row counts is not defined, make it unique first",
		},
	} {
		n, examples, err := v.listed(ctx, f.query, f.format)
		if err != nil {
			return fmt.Errorf("look for %s: %w", f.code, err)
		}
		v.add(FindingLevel(f.level), f.code, n, examples, "%s", f.text)
	}
	return nil
}

// widths tells of integer columns that are narrow, and of what is near their end.
func (v *surveyor) widths(ctx context.Context) error {
	for _, name := range newAPIColumns {
		r := v.tx.s.column(name)
		if r.high == math.MaxInt64 {
			continue
		}
		table, column, text := "users", name[len("users."):], "t.username"
		if name[:5] != "users" {
			table, column, text = "tokens", name[len("tokens."):], "t.name"
		}
		if name[:5] == "chann" {
			table, column = "channels", name[len("channels."):]
		}
		v.add(LevelInfo, "narrow_column", 1, nil, "%s holds at most %d: more is kept in ledger_accounts, the column stands at its end meanwhile", name, r.high)
		low := r.low - r.low*(100-nearCeiling)/100
		n, examples, err := v.listed(ctx, fmt.Sprintf("SELECT t.id, COALESCE(%s, ''), t.%s FROM %s t WHERE t.%s > %d OR t.%s < %d ORDER BY t.%s DESC, t.id",
			text, column, table, column, r.high/100*nearCeiling, column, low, column), table+" %d (%s): %d")
		if err != nil {
			return fmt.Errorf("look at the range of %s: %w", name, err)
		}
		v.add(LevelWarn, "near_ceiling", n, examples, "values of %s are within %d%% of its end", name, 100-nearCeiling)
	}
	return nil
}

// counters holds New API's counters against its logs.
func (v *surveyor) counters(ctx context.Context) error {
	if v.spent == nil {
		return nil
	}
	for _, c := range []struct {
		code, query string
		sums        map[int64]LogSum
		requests    bool
	}{
		{"user_used_quota_differs", "SELECT id, COALESCE(username, ''), COALESCE(used_quota, 0) FROM users ORDER BY id", v.spent.Users, false},
		{"user_request_count_differs", "SELECT id, COALESCE(username, ''), COALESCE(request_count, 0) FROM users ORDER BY id", v.spent.Users, true},
		{"token_used_quota_differs", "SELECT id, COALESCE(name, ''), COALESCE(used_quota, 0) FROM tokens ORDER BY id", v.spent.Tokens, false},
		{"channel_used_quota_differs", "SELECT id, COALESCE(name, ''), COALESCE(used_quota, 0) FROM channels ORDER BY id", v.spent.Channels, false},
	} {
		count, examples := 0, []string(nil)
		err := v.tx.each(ctx, c.query, nil, func(scan func(...any) error) error {
			var id, counter int64
			var name []byte
			if err := scan(&id, &name, &counter); err != nil {
				return err
			}
			logged := c.sums[id].Quota
			if c.requests {
				logged = c.sums[id].Requests
			}
			if logged == counter {
				return nil
			}
			if count++; count <= maxExamples {
				examples = append(examples, fmt.Sprintf("%d (%s): counter %d, logs %d", id, cut(string(name), maxExampleText), counter, logged))
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("compare counters with logs: %w", err)
		}
		v.add(LevelInfo, c.code, count, examples, "counters differ from the sums over the logs; the counters are carried over as they are")
	}
	return nil
}

// openings counts the accounts that a start would open.
func (v *surveyor) openings(ctx context.Context) error {
	for _, o := range []struct {
		kind  ledger.AccountKind
		where string
		slot  int
		count *int
	}{
		{ledger.UserAccount, "", 0, &v.Opening.Users},
		{ledger.TokenAccount, " AND t.user_id > 0", 0, &v.Opening.Tokens},
		{ledger.ChannelAccount, "", -1, &v.Opening.Channels},
	} {
		q := "SELECT COUNT(*) FROM " + string(o.kind) + "s t WHERE 1 = 1" + o.where
		if v.columns["ledger_accounts"] != nil {
			q = fmt.Sprintf("SELECT COUNT(*) FROM %ss t LEFT JOIN ledger_accounts a ON a.kind = '%s' AND a.id = t.id AND a.slot = %d WHERE a.id IS NULL%s", o.kind, o.kind, o.slot, o.where)
		}
		if err := v.tx.QueryRow(ctx, q, nil, o.count); err != nil {
			return fmt.Errorf("count %ss without an account: %w", o.kind, err)
		}
	}
	return nil
}
