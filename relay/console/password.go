package console

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// The cost of a new hash: argon2id with 19 MiB and two passes, the least that OWASP recommends.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonKey     = 32
)

// What a stored hash may ask for (L7): it comes from the database and must not be able to take the node's memory.
const (
	maxArgonMemory  = 128 << 10 // KiB
	maxArgonTime    = 16
	maxArgonThreads = 16
)

// hashing bounds how many passwords are hashed at once (L7): each takes a core and 19 MiB.
var hashing = make(chan struct{}, max(1, runtime.NumCPU()))

// bcryptCost is New API's.
const bcryptCost = bcrypt.DefaultCost

// Lengths of a password: New API's least, and the most that bcrypt looks at.
const (
	minPassword = 8  // characters
	maxPassword = 72 // bytes
)

func checkPassword(password string) error {
	if utf8.RuneCountInString(password) < minPassword || len(password) > maxPassword {
		return no("a password has %d characters at the least and %d bytes at the most", minPassword, maxPassword)
	}
	return nil
}

// HashPassword returns the argon2id hash of a password, as it is stored.
func HashPassword(password string) (string, error) {
	salt := make([]byte, argonSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	hashing <- struct{}{}
	defer func() { <-hashing }()
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// hashAsNewAPI returns the bcrypt hash of a password, for databases that New API must be able to take back (P7).
func hashAsNewAPI(password string) (string, error) {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return string(hash), nil
}

// verifyPassword reports whether a password is the one of a hash, argon2id or bcrypt, and whether the hash is bcrypt's. A hash of
// another form fits nothing.
func verifyPassword(hash, password string) (ok, old bool) {
	if len(password) > maxPassword {
		return false, false
	}
	hashing <- struct{}{}
	defer func() { <-hashing }()
	if strings.HasPrefix(hash, "$2") {
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil, true
	}
	a, err := parseArgon(hash)
	if err != nil {
		return false, false
	}
	key := argon2.IDKey([]byte(password), a.salt, a.time, a.memory, a.threads, uint32(len(a.key)))
	return subtle.ConstantTimeCompare(key, a.key) == 1, false
}

type argonHash struct {
	time, memory uint32
	threads      uint8
	salt, key    []byte
}

var errHash = errors.New("no argon2id hash, or one that asks for too much")

func parseArgon(hash string) (argonHash, error) {
	var a argonHash
	var version int
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return a, errHash
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return a, errHash
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &a.memory, &a.time, &a.threads); err != nil {
		return a, errHash
	}
	var err1, err2 error
	a.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	a.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	switch {
	case err1 != nil || err2 != nil, len(a.salt) < 8 || len(a.salt) > 64, len(a.key) < 16 || len(a.key) > 64,
		a.memory < 8 || a.memory > maxArgonMemory, a.time < 1 || a.time > maxArgonTime, a.threads < 1 || a.threads > maxArgonThreads:
		return a, errHash
	}
	return a, nil
}

// unknownUser is a hash that no password fits in practice. A login for a user that does not exist verifies against it, so
// that it takes as long as one for a user that does.
const unknownUser = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// RandomPassword returns 26 random characters, 130 bits: for the first user, or as a secret.
func RandomPassword() (string, error) { return rand.Text(), nil }
