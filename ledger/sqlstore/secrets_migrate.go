package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// SecretsPlan is what `secrets migrate` has to do, or did.
type SecretsPlan struct {
	Tokens    int      `json:"tokens"`        // API keys in plain text
	Access    int      `json:"access_tokens"` // management tokens in plain text
	Channels  int      `json:"channels"`      // keys of channels in plain text
	Passwords int      `json:"passwords"`     // bcrypt hashes: replaced at the next login of each user
	Sealed    bool     `json:"sealed"`        // it was done before
	Strangers []string `json:"nodes_without_the_secret"`
}

// minSecret is the least length of CRYPTO_SECRET: 16 random characters are more than can be guessed.
const minSecret = 16

// ErrNoSecret means that CRYPTO_SECRET is missing or too short to seal with.
var ErrNoSecret = fmt.Errorf("CRYPTO_SECRET of at least %d characters is needed, the same on every node", minSecret)

// The conditions of rows that are not sealed yet. LIKE's wildcards are not in the marks.
const (
	plainTokens   = "`key` <> '' AND NOT (`key` LIKE '" + sealMark + "%' AND LENGTH(`key`) = 48)"
	plainAccess   = "access_token <> '' AND NOT (access_token LIKE '" + sealMark + "%' AND LENGTH(access_token) = 32)"
	plainChannels = "`key` <> '' AND `key` NOT LIKE '" + channelMark + "%'"
)

// PlanSecrets counts what MigrateSecrets would seal.
func (s *Store) PlanSecrets(ctx context.Context) (p SecretsPlan, err error) {
	if s.sealer == nil || len(s.secret) < minSecret {
		return p, ErrNoSecret
	}
	err = s.View(ctx, func(tx *Tx) error {
		state, err := tx.sealState(ctx, "")
		if err != nil {
			return err
		}
		if state.State != "" && state.Fingerprint != s.sealer.fingerprint {
			return ErrSecret
		}
		p.Sealed = state.State == stateSealed
		for _, c := range []struct {
			query string
			into  *int
		}{
			{"SELECT COUNT(*) FROM tokens WHERE " + plainTokens, &p.Tokens},
			{"SELECT COUNT(*) FROM users WHERE " + plainAccess, &p.Access},
			{"SELECT COUNT(*) FROM channels WHERE " + plainChannels, &p.Channels},
			{"SELECT COUNT(*) FROM users WHERE password LIKE '$2%'", &p.Passwords},
		} {
			if err := tx.QueryRow(ctx, c.query, nil, c.into); err != nil {
				return err
			}
		}
		p.Strangers, err = tx.strangers(ctx)
		return err
	})
	if err != nil {
		return p, fmt.Errorf("look at secrets: %w", err)
	}
	return p, nil
}

// sealChunk rows are sealed in one transaction: their locks are short, and a kill costs little.
const sealChunk = 200

// MigrateSecrets seals every secret that is in plain text, under the database lock. It returns how many it sealed. Nodes go on:
// they know sealed secrets and plain ones. Killed anywhere, it goes on when it is run again; what is sealed stays.
func (s *Store) MigrateSecrets(ctx context.Context, progress func(SecretsPlan)) (done SecretsPlan, err error) {
	lock, ok, err := s.TryLock(ctx, "secrets")
	if err != nil {
		return done, fmt.Errorf("seal secrets: %w", err)
	}
	if !ok {
		return done, errors.New("seal secrets: another process does it")
	}
	defer lock.Unlock()
	if err := s.beginSealing(ctx); err != nil {
		return done, fmt.Errorf("seal secrets: %w", err)
	}
	for _, c := range []sealedColumn{
		{"tokens", "key", plainTokens, func(v string) (string, error) { return s.sealer.sealToken(strings.TrimSpace(v)), nil }, &done.Tokens},
		{"users", "access_token", plainAccess, func(v string) (string, error) { return s.sealer.sealAccess(strings.TrimSpace(v)), nil }, &done.Access},
		{"channels", "key", plainChannels, s.sealer.sealChannel, &done.Channels},
	} {
		for more := true; more; {
			if more, err = s.sealSome(ctx, c); err != nil {
				return done, fmt.Errorf("seal %s.%s: %w", c.table, c.column, err)
			}
			progress(done)
		}
	}
	// The commit point: nothing is in plain text any more, and nodes drop what they remember of it.
	err = s.Tx(ctx, func(tx *Tx) error {
		tx.Changed(ChangeToken, 0)
		return tx.setSealState(ctx, stateSealed)
	})
	if err != nil {
		return done, fmt.Errorf("seal secrets: %w", err)
	}
	done.Sealed = true
	return done, nil
}

// beginSealing makes writers seal from now on. The row is locked while it is changed, so who wrote in plain text has committed.
func (s *Store) beginSealing(ctx context.Context) error {
	if s.sealer == nil || len(s.secret) < minSecret {
		return ErrNoSecret
	}
	return s.Tx(ctx, func(tx *Tx) error {
		state, err := tx.sealState(ctx, tx.ForUpdate())
		if err != nil {
			return err
		}
		if state.State != "" && state.Fingerprint != s.sealer.fingerprint {
			return ErrSecret
		}
		strangers, err := tx.strangers(ctx)
		if err != nil {
			return err
		}
		if len(strangers) > 0 {
			return fmt.Errorf("these nodes run without this CRYPTO_SECRET, and would refuse every key: %s; set it there and start them again", strings.Join(strangers, ", "))
		}
		return tx.setSealState(ctx, stateSealing)
	})
}

func (tx *Tx) setSealState(ctx context.Context, state string) error {
	text, err := json.Marshal(sealState{state, tx.s.sealer.fingerprint})
	if err != nil {
		return err
	}
	return tx.setMeta(ctx, secretsMeta, string(text))
}

// sealedColumn is a column to seal.
type sealedColumn struct {
	table, column, plain string
	seal                 func(string) (string, error)
	count                *int
}

// sealSome seals some rows and reports whether there may be more.
func (s *Store) sealSome(ctx context.Context, c sealedColumn) (more bool, err error) {
	sealed := 0
	err = s.Tx(ctx, func(tx *Tx) error {
		values := map[int64]string{}
		q := fmt.Sprintf("SELECT id, `%s` FROM %s WHERE %s ORDER BY id LIMIT %d", c.column, c.table, c.plain, sealChunk)
		err := tx.each(ctx, q+tx.ForUpdate(), nil, func(scan func(...any) error) error {
			var id int64
			var value string
			err := scan(&id, &value)
			values[id] = value
			return err
		})
		if err != nil {
			return err
		}
		for id, value := range values {
			to, err := c.seal(value)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "UPDATE "+c.table+" SET `"+c.column+"` = ? WHERE id = ?", to, id); err != nil {
				return err
			}
		}
		sealed = len(values)
		return nil
	})
	if err != nil {
		return false, err
	}
	*c.count += sealed
	return sealed == sealChunk, nil
}
