package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"ledgerline/ledger"
)

// How long logins last, as in New API.
const (
	accessLife  = 15 * time.Minute
	sessionLife = 30 * 24 * time.Hour
)

// tickets signs and checks the three texts that a login hands out. Each has a key of its own, derived from
// SESSION_SECRET, so none can stand in for another. A ticket names a session; whether that is in force is in the database.
type tickets struct {
	access, session, refresh []byte
}

func newTickets(secret string) *tickets {
	derive := func(use string) []byte {
		m := hmac.New(sha256.New, []byte(secret))
		m.Write([]byte("ledgerline/console " + use))
		return m.Sum(nil)
	}
	return &tickets{access: derive("access token"), session: derive("session cookie"), refresh: derive("refresh cookie")}
}

// The ways a ticket is no good.
var (
	errTicket        = errors.New("not a ticket of ours")
	errTicketExpired = errors.New("the ticket has expired")
)

var encoding = base64.RawURLEncoding.Strict()

func sign(key []byte, text string) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return encoding.EncodeToString(m.Sum(nil))
}

// open splits a signed text and checks the signature in constant time.
func open(key []byte, signed string) (text string, ok bool) {
	i := strings.LastIndexByte(signed, '.')
	if i < 0 {
		return "", false
	}
	text = signed[:i]
	return text, hmac.Equal([]byte(sign(key, text)), []byte(signed[i+1:]))
}

// jwtHead is the only header that is written, and the only one that is accepted: no token chooses its algorithm.
var jwtHead = encoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

type claims struct {
	Subject string    `json:"sub"` // user id
	Session ledger.ID `json:"sid"`
	Issued  int64     `json:"iat"`
	Expires int64     `json:"exp"`
}

// accessToken makes a JWT for a session.
func (t *tickets) accessToken(user int64, session ledger.ID, now time.Time) (token string, expires time.Time) {
	expires = now.Add(accessLife)
	body, err := json.Marshal(claims{strconv.FormatInt(user, 10), session, now.Unix(), expires.Unix()})
	if err != nil {
		panic("console: claims cannot be encoded: " + err.Error())
	}
	text := jwtHead + "." + encoding.EncodeToString(body)
	return text + "." + sign(t.access, text), expires
}

// openAccess returns the session of an access token. Errors: errTicket, errTicketExpired.
func (t *tickets) openAccess(token string, now time.Time) (ledger.ID, error) {
	text, ok := open(t.access, token)
	head, body, _ := strings.Cut(text, ".")
	if !ok || head != jwtHead {
		return ledger.ID{}, errTicket
	}
	raw, err := encoding.DecodeString(body)
	if err != nil {
		return ledger.ID{}, errTicket
	}
	var c claims
	if json.Unmarshal(raw, &c) != nil {
		return ledger.ID{}, errTicket
	}
	if now.Unix() >= c.Expires {
		return ledger.ID{}, errTicketExpired
	}
	return c.Session, nil
}

// sessionCookie is the text of the cookie for clients of the generation before the access tokens: session id, expiry, signature.
func (t *tickets) sessionCookie(session ledger.ID, expires int64) string {
	text := session.String() + "." + strconv.FormatInt(expires, 10)
	return text + "." + sign(t.session, text)
}

// openSession returns the session of a cookie. Errors: errTicket, errTicketExpired.
func (t *tickets) openSession(cookie string, now time.Time) (ledger.ID, error) {
	id, expires, err := openPair(t.session, cookie)
	if err == nil && now.Unix() >= expires {
		err = errTicketExpired
	}
	return id, err
}

// refreshCookie is the text of the cookie that buys a new access token: session id, its number in the session, signature.
// Only the newest number is taken (see sqlstore.RotateSession).
func (t *tickets) refreshCookie(session ledger.ID, rotation int64) string {
	text := session.String() + "." + strconv.FormatInt(rotation, 10)
	return text + "." + sign(t.refresh, text)
}

// openRefresh returns the session and the number of a refresh cookie. Errors: errTicket.
func (t *tickets) openRefresh(cookie string) (ledger.ID, int64, error) {
	return openPair(t.refresh, cookie)
}

func openPair(key []byte, signed string) (ledger.ID, int64, error) {
	text, ok := open(key, signed)
	if !ok {
		return ledger.ID{}, 0, errTicket
	}
	first, second, _ := strings.Cut(text, ".")
	id, err := ledger.ParseID(first)
	n, err2 := strconv.ParseInt(second, 10, 64)
	if err != nil || err2 != nil {
		return ledger.ID{}, 0, errTicket
	}
	return id, n, nil
}
