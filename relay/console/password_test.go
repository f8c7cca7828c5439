package console

import (
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"ledgerline/ledger/sqlstore"
)

func TestHashes(t *testing.T) {
	hash, err := HashPassword("correct horse")
	check(t, err)
	again, err := HashPassword("correct horse")
	check(t, err)
	if hash == again || !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("hashes %s, %s", hash, again)
	}
	old, err := bcrypt.GenerateFromPassword([]byte("correct horse"), bcrypt.MinCost)
	check(t, err)
	long := strings.Repeat("x", maxPassword+1)
	for _, c := range []struct {
		name, hash, password string
		ok, old              bool
	}{
		{"right", hash, "correct horse", true, false},
		{"wrong", hash, "correct hors", false, false},
		{"empty", hash, "", false, false},
		{"bcrypt", string(old), "correct horse", true, true},
		{"bcrypt, wrong", string(old), "x", false, true},
		{"too long", string(old), long, false, false},
		{"nobody's", unknownUser, "correct horse", false, false},
		{"no hash", "", "", false, false},
		{"in the clear", "correct horse", "correct horse", false, false},
		{"argon2i", strings.Replace(hash, "argon2id", "argon2i", 1), "correct horse", false, false},
		{"greedy", strings.Replace(hash, "m=19456", "m=4294967295", 1), "correct horse", false, false},
		{"slow", strings.Replace(hash, "t=2", "t=4000000", 1), "correct horse", false, false},
		{"no lanes", strings.Replace(hash, "p=1", "p=0", 1), "correct horse", false, false},
		{"no key", hash[:strings.LastIndexByte(hash, '$')+1], "correct horse", false, false},
	} {
		if ok, old := verifyPassword(c.hash, c.password); ok != c.ok || old != c.old {
			t.Errorf("%s: %v, %v", c.name, ok, old)
		}
	}
	if _, err := parseArgon(unknownUser); err != nil {
		t.Errorf("the hash of nobody: %v", err)
	}
}

func FuzzParseArgon(f *testing.F) {
	f.Add(unknownUser)
	f.Add("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, hash string) {
		a, err := parseArgon(hash)
		if err == nil && (a.memory > maxArgonMemory || a.time > maxArgonTime || a.threads > maxArgonThreads || len(a.key) > 64) {
			t.Errorf("%q asks for too much: %+v", hash, a)
		}
	})
}

func FuzzTickets(f *testing.F) {
	good := newTickets("s")
	f.Add(good.sessionCookie([16]byte{1}, 5))
	f.Add(good.refreshCookie([16]byte{1}, 5))
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		other := newTickets("another")
		if _, _, err := other.openRefresh(text); err == nil {
			t.Errorf("%q opens as a refresh cookie", text)
		}
		if _, err := other.openSession(text, clockless); err == nil {
			t.Errorf("%q opens as a session cookie", text)
		}
		if _, err := other.openAccess(text, clockless); err == nil {
			t.Errorf("%q opens as an access token", text)
		}
	})
}

// New API's hashes are replaced at the next login, but not if the database may go back to New API.
func TestPasswordsOfNewAPI(t *testing.T) {
	for _, adopted := range []string{"false", "true"} {
		t.Run("adopted "+adopted, func(t *testing.T) {
			s := newSite(t)
			check(t, s.store.SetMeta(t.Context(), "adopted", adopted))
			hash, err := bcrypt.GenerateFromPassword([]byte("password1"), bcrypt.MinCost)
			check(t, err)
			_, err = s.store.CreateUser(t.Context(), sqlstore.NewUser{Username: "old", Password: string(hash), Role: 1, Email: "old@example.com"})
			check(t, err)
			c := s.login("old@example.com", "password1")
			s.login("old", "password1")
			form := map[string]string{"false": "$argon2id$", "true": "$2"}[adopted]
			if _, stored, err := s.store.UserPassword(t.Context(), "old"); err != nil || !strings.HasPrefix(stored, form) {
				t.Errorf("after a login the hash is %s, %v", stored, err)
			}
			c.must("PUT", "/api/user/self", map[string]string{"password": "password2", "original_password": "password1"})
			if _, stored, err := s.store.UserPassword(t.Context(), "old"); err != nil || !strings.HasPrefix(stored, form) {
				t.Errorf("a new password's hash is %s, %v", stored, err)
			}
			s.login("old", "password2")
		})
	}
}
