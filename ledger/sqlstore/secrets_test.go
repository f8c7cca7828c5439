package sqlstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ledgerline/ledger/ledgertest"
)

const testSecret = "a secret of the test's own"

// sealedStores opens a database of each engine with a secret, and again with others.
func sealedStores(t *testing.T, fn func(t *testing.T, s *Store, again func(secret string) *Store)) {
	t.Run("sqlite", func(t *testing.T) {
		cfg := Config{SQLitePath: filepath.Join(t.TempDir(), "ledger.db"), Secret: testSecret}
		again := func(secret string) *Store { cfg.Secret = secret; return opened(t, cfg) }
		fn(t, initialised(t, opened(t, cfg)), again)
	})
	t.Run("mysql", func(t *testing.T) {
		cfg := Config{DSN: ledgertest.MySQL(t), Secret: testSecret}
		again := func(secret string) *Store { cfg.Secret = secret; return opened(t, cfg) }
		fn(t, initialised(t, opened(t, cfg)), again)
	})
}

// plainSecrets puts secrets in plain text into New API's tables: keys of New API's length and odd ones.
func plainSecrets(t *testing.T, s *Store) (keys []string, access, channels map[int64]string) {
	t.Helper()
	access, channels = map[int64]string{1: strings.Repeat("a", 32), 2: "short"}, map[int64]string{1: "sk-up", 2: "one\ntwo\nthree"}
	exec(t, s, "INSERT INTO users (id, username, password, access_token, aff_code) VALUES (1, 'a', '$2a$10$x', ?, 'a'), (2, 'b', '', ?, 'b'), (3, 'c', '', NULL, 'c')", access[1], access[2])
	for i := range 5 {
		keys = append(keys, strings.Repeat(fmt.Sprint(i), KeyLength))
	}
	keys = append(keys, "short", strings.Repeat("x", 128), "")
	for i, key := range keys {
		exec(t, s, "INSERT INTO tokens (id, user_id, `key`, deleted_at) VALUES (?, 1, ?, ?)", i+1, key, map[bool]any{true: "2025-01-02 03:04:05"}[i == 1])
	}
	for id, key := range channels {
		exec(t, s, "INSERT INTO channels (id, `key`, name) VALUES (?, ?, 'c')", id, key)
	}
	exec(t, s, "INSERT INTO channels (id, `key`, name) VALUES (3, '', 'c')")
	return keys, access, channels
}

// works requires that every secret does what it did, whether it is sealed or not.
func works(t *testing.T, s *Store, keys []string, access, channels map[int64]string) {
	t.Helper()
	for i, key := range keys {
		r := value[*TokenRow](t)(s.Token(t.Context(), int64(i+1)))
		if r.Sealed && r.Key != s.HashKey(key) || !r.Sealed && r.Key != key {
			t.Fatalf("token %d is %+v, the key %q", i+1, r, key)
		}
	}
	for id, token := range access {
		if u := value[*UserView](t)(s.UserByAccessToken(t.Context(), token)); u.ID != id {
			t.Fatalf("the access token of %d is that of %d", id, u.ID)
		}
	}
	for id, key := range channels {
		if c := value[*ChannelRow](t)(s.Channel(t.Context(), id)); c.Key != key {
			t.Fatalf("channel %d has the key %q, want %q", id, c.Key, key)
		}
	}
}

// TestSecretsAreSealedAnywhere kills the migration before every statement of it in turn: every secret works after each kill, the next run
// goes on, and in the end none is in plain text.
func TestSecretsAreSealedAnywhere(t *testing.T) {
	sealedStores(t, func(t *testing.T, s *Store, again func(string) *Store) {
		keys, access, channels := plainSecrets(t, s)
		plan := value[SecretsPlan](t)(s.PlanSecrets(t.Context()))
		diff(t, "plan", plan, SecretsPlan{Tokens: 7, Access: 2, Channels: 2, Passwords: 1})
		total, runs := SecretsPlan{}, 0
		for n, done := 1, false; !done; n++ {
			count := 0
			s.fault = func(string) error {
				if count++; count == n {
					return errKilled
				}
				return nil
			}
			r, err := s.MigrateSecrets(t.Context(), func(SecretsPlan) {})
			s.fault = nil
			if done = err == nil; !done && !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			runs++
			total.Tokens, total.Access, total.Channels = total.Tokens+r.Tokens, total.Access+r.Access, total.Channels+r.Channels
			works(t, s, keys, access, channels)
		}
		if runs < 10 {
			t.Errorf("%d runs: the test has lost its point", runs)
		}
		diff(t, "sealed in all", total, SecretsPlan{Tokens: 7, Access: 2, Channels: 2})
		diff(t, "once more", value[SecretsPlan](t)(s.MigrateSecrets(t.Context(), func(SecretsPlan) {})), SecretsPlan{Sealed: true})
		for _, q := range []string{
			"SELECT COUNT(*) FROM tokens WHERE `key` <> '' AND LENGTH(`key`) <> 48", "SELECT COUNT(*) FROM channels WHERE `key` <> '' AND `key` NOT LIKE 'sealed1:%'",
			"SELECT COUNT(*) FROM users WHERE access_token NOT LIKE '$%'",
		} {
			if n := number(t, s, q); n != 0 {
				t.Errorf("%d rows: %s", n, q)
			}
		}

		other := again("another secret, which is long")
		for _, stranger := range []*Store{other, again("")} {
			if err := stranger.CheckSecret(t.Context()); !errors.Is(err, ErrSecret) {
				t.Errorf("a process with another secret may start: %v", err)
			}
			if _, _, err := stranger.CreateToken(t.Context(), TokenRow{UserID: 1}, 0); !errors.Is(err, ErrSecret) {
				t.Errorf("a process with another secret makes a key: %v", err)
			}
		}
		if _, err := other.MigrateSecrets(t.Context(), func(SecretsPlan) {}); !errors.Is(err, ErrSecret) {
			t.Errorf("keys are sealed with two secrets: %v", err)
		}
		must(t, s.CheckSecret(t.Context()))
	})
}

// TestNewSecretsAreSealed: what is written afterwards is sealed, too, an edit keeps what is there, and what stands for a secret is none.
func TestNewSecretsAreSealed(t *testing.T) {
	sealedStores(t, func(t *testing.T, s *Store, _ func(string) *Store) {
		keys, access, channels := plainSecrets(t, s)
		value[SecretsPlan](t)(s.MigrateSecrets(t.Context(), func(SecretsPlan) {}))
		row, _, err := s.CreateToken(t.Context(), TokenRow{UserID: 1, Name: "new", ExpiredTime: -1}, 0)
		must(t, err)
		if len(row.Key) != KeyLength || !row.Sealed || isSealedToken(row.Key) {
			t.Errorf("a new key is returned as %+v", row)
		}
		if r := value[*TokenRow](t)(s.Token(t.Context(), row.ID)); r.Key != s.HashKey(row.Key) || !strings.HasSuffix(r.Key, row.Key[KeyLength-4:]) {
			t.Errorf("a new key is stored as %q", r.Key)
		}
		if _, _, err := s.CreateToken(t.Context(), TokenRow{UserID: 1, Key: keys[0]}, 0); !errors.Is(err, ErrExists) {
			t.Errorf("a key is made twice: %v", err)
		}
		list, _, err := s.Tokens(t.Context(), TokenFilter{Key: keys[2]}, Page{Limit: 10})
		if err != nil || len(list) != 1 || list[0].ID != 3 {
			t.Errorf("a search for a key: %v, %v", list, err)
		}
		_, _, err = s.EditUser(t.Context(), 1, func(e *UserEdit) error { e.Remark = "changed"; return nil })
		must(t, err)
		access[2] = strings.Repeat("n", 32)
		_, _, err = s.EditUser(t.Context(), 2, func(e *UserEdit) error { e.AccessToken = access[2]; return nil })
		must(t, err)
		_, err = s.EditChannel(t.Context(), 2, "changed", func(c *ChannelRow) error { c.Key += "\nfour"; return nil })
		must(t, err)
		channels[2] += "\nfour"
		works(t, s, keys, access, channels)
		for _, q := range []string{"SELECT access_token FROM users WHERE id = 2", "SELECT `key` FROM channels WHERE id = 2"} {
			var stored string
			must(t, s.db.QueryRowContext(t.Context(), q).Scan(&stored))
			if strings.Contains(stored, "nnn") || strings.Contains(stored, "four") {
				t.Errorf("%s: %q", q, stored)
			}
			if _, err := s.UserByAccessToken(t.Context(), stored); !errors.Is(err, ErrNotFound) {
				t.Errorf("what stands for a token is taken for one: %v", err)
			}
		}
	})
}

// TestSecretsWaitForEveryNode: keys are not sealed while a node runs that could not know them.
func TestSecretsWaitForEveryNode(t *testing.T) {
	sealedStores(t, func(t *testing.T, s *Store, again func(string) *Store) {
		plainSecrets(t, s)
		must(t, again("").RegisterProducer(t.Context(), Producer{ID: id(1), Node: "old"}))
		must(t, s.RegisterProducer(t.Context(), Producer{ID: id(2), Node: "new"}))
		if p := value[SecretsPlan](t)(s.PlanSecrets(t.Context())); len(p.Strangers) != 1 || p.Strangers[0] != "old" {
			t.Errorf("%+v", p)
		}
		if _, err := s.MigrateSecrets(t.Context(), func(SecretsPlan) {}); err == nil || !strings.Contains(err.Error(), "old") {
			t.Errorf("sealed beside a node that knows no sealed key: %v", err)
		}
		if _, err := again("too short").PlanSecrets(t.Context()); !errors.Is(err, ErrNoSecret) {
			t.Errorf("a secret of nine characters: %v", err)
		}
		exec(t, s, "UPDATE ledger_producers SET state = 'closed' WHERE node = 'old'")
		late := again("") // it looked before the keys are sealed, and registers after
		must(t, late.CheckSecret(t.Context()))
		value[SecretsPlan](t)(s.MigrateSecrets(t.Context(), func(SecretsPlan) {}))
		if err := late.RegisterProducer(t.Context(), Producer{ID: id(3), Node: "late"}); !errors.Is(err, ErrSecret) {
			t.Errorf("a node without the secret registers beside sealed keys: %v", err)
		}
		must(t, s.RegisterProducer(t.Context(), Producer{ID: id(4), Node: "with the secret"}))
	})
}
