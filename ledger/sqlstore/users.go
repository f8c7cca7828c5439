package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"

	"ledgerline/ledger"
)

// NewUser is a user to create. Quota is granted by an event, in the same transaction.
type NewUser struct {
	Username    string
	DisplayName string
	Password    string // hashed already
	Role        int
	Group       string // "" means "default"
	Email       string
	InviterID   int64 // 0: nobody
	Reward      int64 // quota units that the inviter may take over (TransferReward), 0 to MaxGrant
	Remark      string
	Quota       int64  // quota units to start with, 0 to MaxGrant
	Note        string // why, for the event of the quota
	FirstKey    string // name of an API key to start with, unlimited and without an end; "": none
}

// MaxGrant bounds what one change may add to a balance or take from it, in quota units (L7): two billion US dollars, so that
// a slip of the keyboard cannot come near the limits of 64 bits.
const MaxGrant = 1_000_000_000_000_000

// CreateUser inserts a user, its account and, if it starts with quota, the credit event. ErrExists: the name is taken.
func (s *Store) CreateUser(ctx context.Context, u NewUser) (id int64, err error) {
	id, _, err = s.CreateUserKey(ctx, u)
	return id, err
}

// CreateUserKey is CreateUser, and also returns the outbox key of the credit event, "" if there is none.
func (s *Store) CreateUserKey(ctx context.Context, u NewUser) (id int64, key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		id, key, err = tx.createUser(ctx, u)
		return err
	})
	if err != nil {
		return 0, "", fmt.Errorf("create user %q: %w", u.Username, err)
	}
	return id, key, nil
}

func (tx *Tx) createUser(ctx context.Context, u NewUser) (id int64, key string, err error) {
	if u.Group == "" {
		u.Group = "default"
	}
	if u.DisplayName == "" {
		u.DisplayName = u.Username
	}
	if u.Quota < 0 || u.Quota > MaxGrant || u.Reward < 0 || u.Reward > MaxGrant {
		return 0, "", ErrGrant
	}
	if id, err = tx.insertUser(ctx, u); err != nil {
		return 0, "", err
	}
	if err := tx.EnsureAccount(ctx, ledger.Account{Kind: ledger.UserAccount, ID: id}, id); err != nil {
		return 0, "", err
	}
	if u.Quota != 0 {
		if key, err = tx.grant(ctx, credit{id, u.Username, u.Quota, "signup", u.Note}); err != nil {
			return 0, "", err
		}
	}
	if u.InviterID > 0 {
		_, err := tx.Exec(ctx, "UPDATE users SET aff_count = COALESCE(aff_count, 0) + 1, aff_quota = COALESCE(aff_quota, 0) + ?, "+
			"aff_history = COALESCE(aff_history, 0) + ? WHERE id = ?", u.Reward, u.Reward, u.InviterID)
		if err != nil {
			return 0, "", fmt.Errorf("count the invitation: %w", err)
		}
	}
	tx.Changed(ChangeUser, id)
	if u.FirstKey != "" {
		if _, _, err := tx.createToken(ctx, TokenRow{UserID: id, Name: u.FirstKey, ExpiredTime: -1, Unlimited: true}, 0); err != nil {
			return 0, "", fmt.Errorf("make the first key: %w", err)
		}
	}
	return id, key, tx.audit(ctx, fmt.Sprintf("created user %s (ID: %d, role: %d)", u.Username, id, u.Role))
}

// The lengths of invitation codes: New API's, and one that is never taken.
const shortAffCode, longAffCode = 4, 16

// insertUser inserts the row. Invitation codes are short, so with many users one may be taken: then a longer one is made.
func (tx *Tx) insertUser(ctx context.Context, u NewUser) (int64, error) {
	var found int64
	err := tx.QueryRow(ctx, "SELECT id FROM users WHERE username = ?", []any{u.Username}, &found)
	if err == nil {
		return 0, ErrExists
	}
	if !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	for length := shortAffCode; ; length += shortAffCode {
		aff, err := randomText(length)
		if err != nil {
			return 0, err
		}
		id, err := tx.insert(ctx, "users", []assignment{
			{"username", u.Username},
			{"password", u.Password},
			{"display_name", u.DisplayName},
			{"role", u.Role},
			{"status", UserEnabled},
			{"email", u.Email},
			{"quota", 0},
			{"used_quota", 0},
			{"request_count", 0},
			{"group", u.Group},
			{"aff_code", aff},
			{"inviter_id", u.InviterID},
			{"setting", ""},
			{"remark", u.Remark},
			{"created_at", tx.s.now().Unix()},
			{"auth_version", firstAuthVersion},
			// New API writes these empty, and asks for them so.
			{"github_id", ""},
			{"discord_id", ""},
			{"oidc_id", ""},
			{"wechat_id", ""},
			{"telegram_id", ""},
			{"linux_do_id", ""},
			{"stripe_customer", ""},
			{"last_login_at", 0},
		})
		if isDuplicate(err) && length < longAffCode {
			continue
		}
		if isDuplicate(err) {
			return 0, ErrExists // the name, taken since we looked
		}
		return id, err
	}
}

// ErrGrant means that a change of quota is larger than MaxGrant.
var ErrGrant = fmt.Errorf("a change of quota is at most %d units", int64(MaxGrant))

// credit is quota to give to a user, or to take if the amount is negative.
type credit struct {
	user     int64
	username string
	amount   int64
	word     string // first word of the key: signup, admin, redeem …
	note     string
}

// grant puts a credit into the outbox under the key WORD:RANDOM:USER and returns the key.
func (tx *Tx) grant(ctx context.Context, c credit) (key string, err error) {
	random, err := randomText(20)
	if err != nil {
		return "", err
	}
	return tx.grantOnce(ctx, c, random)
}

// grantOnce is grant for a business fact that has a name of its own: it can count only once.
func (tx *Tx) grantOnce(ctx context.Context, c credit, name string) (key string, err error) {
	if c.amount > MaxGrant || c.amount < -MaxGrant {
		return "", ErrGrant
	}
	key = businessKey(c.user, c.word, name)
	_, err = tx.Outbox(ctx, ledger.Event{
		Kind: ledger.KindCreditGranted, User: c.user, Account: ledger.UserAccount, Granted: c.amount, Note: cut(c.note, maxNote), Request: by(ctx, c.username),
	}, key)
	return key, err
}

// GrantQuota puts a credit (or, if amount < 0, a deduction) for a user into the outbox and returns its key. note says why.
func (s *Store) GrantQuota(ctx context.Context, user, amount int64, note string) (key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var name sql.NullString
		if err := tx.QueryRow(ctx, "SELECT username FROM users WHERE id = ? AND deleted_at IS NULL", []any{user}, &name); err != nil {
			return err
		}
		key, err = tx.grant(ctx, credit{user, name.String, amount, "admin", note})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("grant quota to user %d: %w", user, err)
	}
	return key, nil
}

const textLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// randomText returns n random letters and digits, fit for secrets.
func randomText(n int) (string, error) {
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		if _, err := rand.Read(buf[:]); err != nil {
			return "", fmt.Errorf("read random bytes: %w", err)
		}
		for _, b := range buf {
			// 248 = 4 × 62: higher bytes would favour the first letters.
			if int(b) < 4*len(textLetters) && len(out) < n {
				out = append(out, textLetters[int(b)%len(textLetters)])
			}
		}
	}
	return string(out), nil
}

// UserPassword returns the id and the stored hash of the password of a user that is not deleted, by user name, or else by e-mail.
// ErrNotFound.
func (s *Store) UserPassword(ctx context.Context, name string) (id int64, hash string, err error) {
	found := false
	err = s.read(ctx, "SELECT id, password FROM users WHERE (username = ? OR (email = ? AND email <> '')) AND deleted_at IS NULL ORDER BY username = ? DESC, id LIMIT 1",
		[]any{name, name, name}, func(scan func(...any) error) error {
			var stored sql.NullString
			found = true
			err := scan(&id, &stored)
			hash = stored.String
			return err
		})
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return 0, "", fmt.Errorf("find user %q: %w", name, err)
	}
	return id, hash, nil
}
