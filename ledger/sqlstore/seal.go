package sqlstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// How secrets look once they are sealed. API keys and management tokens are only ever compared, so a keyed hash stands for them,
// of the length that New API's columns have; keys of channels are sent upstream, so they are encrypted. No value of New API's
// begins like these.
//
//	tokens.key          $ 42 characters of HMAC-SHA256 $ the last 4 characters of the key     48 characters
//	users.access_token  $ 31 characters of HMAC-SHA256                                        32 characters
//	channels.key        sealed1: base64(nonce of 12 bytes, AES-256-GCM of the key)
const (
	sealMark        = "$"
	sealedTokenLen  = KeyLength
	sealedAccessLen = 32
	tokenHashLen    = 42 // characters of base64: 252 bits
	tailLen         = 4
	hiddenTail      = "----" // of a key so short that its end would tell too much
	shortestTailed  = 16
	channelMark     = "sealed1:"
)

// sealer seals with keys that are derived from CRYPTO_SECRET, one for each purpose.
type sealer struct {
	token, access []byte
	channel       cipher.AEAD
	fingerprint   string // tells secrets apart and says nothing about them
}

// newSealer derives the keys; nil without a secret.
func newSealer(secret string) (*sealer, error) {
	if secret == "" {
		return nil, nil //nolint:nilnil // nothing is sealed without a secret
	}
	derive := func(purpose string) []byte {
		key, err := hkdf.Key(sha256.New, []byte(secret), nil, "ledgerline "+purpose, sha256.Size)
		if err != nil {
			panic("sqlstore: HKDF refuses 32 bytes: " + err.Error())
		}
		return key
	}
	block, err := aes.NewCipher(derive("channel keys"))
	if err != nil {
		return nil, fmt.Errorf("derive keys from CRYPTO_SECRET: %w", err)
	}
	s := &sealer{token: derive("api keys"), access: derive("access tokens"), fingerprint: base64.RawURLEncoding.EncodeToString(derive("fingerprint"))}
	if s.channel, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("derive keys from CRYPTO_SECRET: %w", err)
	}
	return s, nil
}

func keyedHash(key []byte, text string, length int) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))[:length]
}

// sealToken returns what stands for an API key.
func (s *sealer) sealToken(key string) string {
	tail := hiddenTail
	if len(key) >= shortestTailed {
		tail = key[len(key)-tailLen:]
	}
	return sealMark + keyedHash(s.token, key, tokenHashLen) + sealMark + tail
}

// isSealedToken reports whether a value of tokens.key stands for a key.
func isSealedToken(value string) bool {
	return len(value) == sealedTokenLen && value[0] == sealMark[0] && value[1+tokenHashLen] == sealMark[0]
}

func (s *sealer) sealAccess(token string) string {
	return sealMark + keyedHash(s.access, token, sealedAccessLen-1)
}

func isSealedAccess(value string) bool {
	return len(value) == sealedAccessLen && value[0] == sealMark[0]
}

func (s *sealer) sealChannel(key string) (string, error) {
	nonce := make([]byte, s.channel.NonceSize(), s.channel.NonceSize()+len(key)+s.channel.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	return channelMark + base64.RawStdEncoding.EncodeToString(s.channel.Seal(nonce, nonce, []byte(key), []byte(channelMark))), nil
}

func isSealedChannel(value string) bool { return strings.HasPrefix(value, channelMark) }

var errSealed = errors.New("the key is sealed with another CRYPTO_SECRET, or damaged")

// openChannel returns the key behind a sealed one; any other value is the key itself.
func (s *sealer) openChannel(value string) (string, error) {
	if !isSealedChannel(value) {
		return value, nil
	}
	if s == nil {
		return "", errSealed
	}
	raw, err := base64.RawStdEncoding.DecodeString(value[len(channelMark):])
	if err != nil || len(raw) < s.channel.NonceSize() {
		return "", errSealed
	}
	n := s.channel.NonceSize()
	key, err := s.channel.Open(nil, raw[:n], raw[n:], []byte(channelMark))
	if err != nil {
		return "", errSealed
	}
	return string(key), nil
}

// HashKey returns what stands for an API key in a database whose keys are sealed; "" without CRYPTO_SECRET.
func (s *Store) HashKey(key string) string {
	if s.sealer == nil {
		return ""
	}
	return s.sealer.sealToken(key)
}
