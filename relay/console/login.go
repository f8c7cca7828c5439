package console

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// The refresh cookie, as New API names it.
const (
	refreshCookieName = "new_api_refresh"
	refreshCookiePath = "/api/user/auth"
)

const methodPassword = "password"

type sessionView struct {
	SID       string `json:"sid"`
	Current   bool   `json:"current"`
	Method    string `json:"login_method"`
	IP        string `json:"ip"`
	Agent     string `json:"user_agent"`
	CreatedAt int64  `json:"created_at"`
	ActiveAt  int64  `json:"last_active_at"`
	ExpiresAt int64  `json:"expires_at"`
}

func viewSession(s *sqlstore.Session, current ledger.ID) sessionView {
	return sessionView{s.ID.String(), s.ID == current, s.Method, s.IP, s.Agent, s.CreatedAt, s.ActiveAt, s.ExpiresAt}
}

// loginView is the newest generation's answer to a login, with the members that the one before had beside it.
type loginView struct {
	AccessExpiresAt int64       `json:"access_expires_at"`
	AccessToken     string      `json:"access_token"`
	Session         sessionView `json:"session"`
	TokenType       string      `json:"token_type"`
	User            selfView    `json:"user"`

	ID          int64  `json:"id"`
	Username    string `json:"username"`
	DisplayName string `json:"display_name"`
	Role        int    `json:"role"`
	Status      int    `json:"status"`
	Group       string `json:"group"`
}

func (x *call) viewLogin(user *sqlstore.UserView, session *sqlstore.Session) loginView {
	token, expires := x.console.tickets.accessToken(user.ID, session.ID, x.console.now())
	return loginView{
		AccessExpiresAt: expires.Unix(), AccessToken: token, Session: viewSession(session, session.ID), TokenType: "Bearer", User: viewSelf(user),
		ID: user.ID, Username: user.Username, DisplayName: user.DisplayName, Role: user.Role, Status: user.Status, Group: user.Group,
	}
}

var errLogin = no("Username or password is incorrect, or user has been banned")

// login answers POST /api/user/login.
func login(x *call) error {
	if err := x.checkOrigin(true); err != nil {
		return err
	}
	var in struct{ Username, Password string }
	if err := x.read(&in); err != nil {
		return err
	}
	if in.Username = strings.TrimSpace(in.Username); in.Username == "" || in.Password == "" {
		return wrong("username and password are needed")
	}
	if x.console.option("PasswordLoginEnabled") == "false" {
		return no("password login is turned off")
	}
	if wait := x.console.throttle.wait(in.Username, x.address()); wait > 0 {
		x.Response().Header().Set("Retry-After", fmt.Sprint(int(wait/time.Second)+1))
		return &refusal{status: http.StatusTooManyRequests, message: "too many failed logins, try again later"}
	}
	user, err := x.checkLogin(in.Username, in.Password)
	if errors.Is(err, errLogin) {
		x.console.throttle.failed(in.Username, x.address())
	}
	if err != nil {
		return err
	}
	x.console.throttle.succeeded(in.Username, x.address())
	return x.begun(user)
}

// checkLogin returns the user of a name (or e-mail) and password.
func (x *call) checkLogin(name, password string) (*sqlstore.UserView, error) {
	store := x.console.cfg.Store
	id, hash, err := store.UserPassword(x.ctx(), name)
	if errors.Is(err, sqlstore.ErrNotFound) {
		verifyPassword(unknownUser, password)
		return nil, errLogin
	}
	if err != nil {
		return nil, err
	}
	ok, old := verifyPassword(hash, password)
	if !ok {
		return nil, errLogin
	}
	user, err := store.UserView(x.ctx(), id)
	if errors.Is(err, sqlstore.ErrNotFound) || err == nil && user.Status != sqlstore.UserEnabled {
		return nil, errLogin
	}
	if err == nil && old {
		x.rehash(id, hash, password)
	}
	return user, err
}

// rehash replaces a bcrypt hash, unless New API can be started on the database again.
func (x *call) rehash(user int64, from, password string) {
	to, err := x.console.hash(x, password)
	if err == nil && !strings.HasPrefix(to, "$2") {
		err = x.console.cfg.Store.Rehash(x.ctx(), user, from, to)
	}
	if err != nil {
		x.console.log.Warn("a password keeps its old hash", "user", user, "error", err)
	}
}

// hash makes the hash of a new password in the form that the database asks for.
func (c *Console) hash(x *call, password string) (string, error) {
	asNewAPI, err := c.cfg.Store.WayBack(x.ctx())
	if err != nil {
		return "", err
	}
	if asNewAPI {
		return hashAsNewAPI(password)
	}
	return HashPassword(password)
}

// begun begins a session and answers with it.
func (x *call) begun(user *sqlstore.UserView) error {
	actor := sqlstore.Actor{User: user.ID, Username: user.Username, IP: x.address(), Request: x.id}
	session, err := x.console.cfg.Store.BeginSession(sqlstore.WithActor(x.ctx(), actor), sqlstore.Session{
		User: user.ID, Method: methodPassword, IP: x.address(), Agent: strings.ToValidUTF8(x.Request().UserAgent(), ""),
		ExpiresAt: x.console.now().Add(sessionLife).Unix(),
	})
	if err != nil {
		return err
	}
	x.setCookies(&session)
	return x.data(x.viewLogin(user, &session))
}

// setCookies hands out the session as cookies.
func (x *call) setCookies(s *sqlstore.Session) {
	t := x.console.tickets
	x.cookie(sessionCookieName, "/", t.sessionCookie(s.ID, s.ExpiresAt), s.ExpiresAt)
	x.cookie(refreshCookieName, refreshCookiePath, t.refreshCookie(s.ID, s.Rotation), s.ExpiresAt)
}

func (x *call) clearCookies() {
	x.cookie(sessionCookieName, "/", "", 0)
	x.cookie(refreshCookieName, refreshCookiePath, "", 0)
}

// cookie sets a cookie until a time, or deletes it if that is 0.
func (x *call) cookie(name, path, value string, expires int64) {
	c := &http.Cookie{ //nolint:gosec // Secure is the operator's choice (SESSION_COOKIE_SECURE): without TLS in front the cookie would never come back
		Name: name, Value: value, Path: path, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: x.console.cfg.SecureCookies,
		Expires: time.Unix(max(expires, 1), 0), MaxAge: -1,
	}
	if expires > 0 {
		c.MaxAge = int(max(1, expires-x.console.now().Unix()))
	}
	http.SetCookie(x.Response(), c)
}

// refresh answers POST /api/user/auth/refresh.
func refresh(x *call) error {
	if err := x.checkOrigin(true); err != nil {
		return err
	}
	user, session, err := x.refreshed()
	if err != nil {
		x.clearCookies()
		return err
	}
	x.setCookies(session)
	return x.data(x.viewLogin(user, session))
}

func (x *call) refreshed() (*sqlstore.UserView, *sqlstore.Session, error) {
	refused := unauthorized(codeUnauthorized, "Unauthorized")
	cookie, err := x.Request().Cookie(refreshCookieName)
	if err != nil {
		return nil, nil, refused
	}
	id, rotation, err := x.console.tickets.openRefresh(cookie.Value)
	if err != nil {
		return nil, nil, refused
	}
	store := x.console.cfg.Store
	session, user, err := store.Session(x.ctx(), id)
	switch {
	case errors.Is(err, sqlstore.ErrNotFound):
		return nil, nil, refused
	case err != nil:
		return nil, nil, err
	case user.Deleted || !session.InForce(x.console.now(), user.AuthVersion):
		return nil, nil, unauthorized(codeRevoked, "Unauthorized, the session has ended")
	case user.Status != sqlstore.UserEnabled:
		return nil, nil, forbidden(codeDisabled, "User has been banned")
	}
	session, err = store.RotateSession(x.ctx(), id, rotation)
	if errors.Is(err, sqlstore.ErrRotated) {
		x.console.log.Warn("a refresh cookie was presented that had been replaced; its session has ended", "request", x.id, "user", user.ID, "address", x.address())
		return nil, nil, unauthorized(codeRevoked, "Unauthorized, the session has ended")
	}
	return user, session, err
}

// logout answers POST /api/user/auth/logout, and GET /api/user/logout of the generation before. Without a login there is
// nothing to end, which is no error.
func logout(x *call) error {
	if err := x.checkOrigin(true); err != nil {
		return err
	}
	id, err := x.loggedIn()
	if err != nil {
		return err
	}
	var ended string
	if !id.IsZero() {
		if err := x.console.cfg.Store.EndSession(x.ctx(), id); err != nil {
			return err
		}
		ended = id.String()
	}
	x.clearCookies()
	return x.data(map[string]any{"cookie_cleared": true, "revoked_sid": ended})
}

// loggedIn returns the session of the request, be it named by an access token, the session cookie or the refresh cookie; the
// zero id if there is none.
func (x *call) loggedIn() (ledger.ID, error) {
	err := x.identify(sqlstore.RoleGuest)
	if err == nil {
		return x.me.keep(), nil
	}
	if _, refused := errors.AsType[*refusal](err); !refused {
		return ledger.ID{}, err
	}
	if cookie, err := x.Request().Cookie(refreshCookieName); err == nil {
		if id, _, err := x.console.tickets.openRefresh(cookie.Value); err == nil {
			return id, nil
		}
	}
	return ledger.ID{}, nil
}

// Lengths of names, as in New API.
const maxName = 20

func checkName(what, name string) error {
	if name == "" || utf8.RuneCountInString(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == utf8.RuneError }) {
		return no("the %s must have 1 to %d characters", what, maxName)
	}
	return nil
}

// register answers POST /api/user/register.
func register(x *call) error {
	c := x.console
	if c.option("RegisterEnabled") == "false" || c.option("PasswordRegisterEnabled") == "false" {
		return no("registration is turned off by the administrator")
	}
	// An e-mail address is a second name to log in with: one that nobody verified is not taken over.
	var in struct {
		Username string
		Password string
		AffCode  string `json:"aff_code"`
	}
	if err := x.read(&in); err != nil {
		return err
	}
	if c.option("EmailVerificationEnabled") == "true" {
		return no("registration asks for a verified e-mail address, which this server cannot verify")
	}
	if c.throttle.wait(registrations, x.address()) > 0 {
		return &refusal{status: http.StatusTooManyRequests, message: "too many registrations from this address, try again later"}
	}
	user, err := x.newUser(in.Username, in.Password, "")
	if err != nil {
		return err
	}
	user.Note = "new user registration bonus"
	if c.cfg.DefaultToken {
		user.FirstKey = "Initial token"
	}
	if in.AffCode != "" {
		inviter, err := c.cfg.Store.UserByAffCode(x.ctx(), in.AffCode)
		switch {
		case err == nil:
			user.InviterID = inviter
			user.Quota += c.optionQuota("QuotaForInvitee")
			user.Reward = c.optionQuota("QuotaForInviter")
		case !errors.Is(err, sqlstore.ErrNotFound):
			return err
		}
	}
	c.throttle.registered(x.address())
	x.SetRequest(x.Request().WithContext(sqlstore.WithActor(x.ctx(), sqlstore.Actor{Request: x.id})))
	return x.create(user)
}

// newUser checks what a new user needs.
func (x *call) newUser(name, password, display string) (sqlstore.NewUser, error) {
	u := sqlstore.NewUser{Username: strings.TrimSpace(name), DisplayName: strings.TrimSpace(display), Role: sqlstore.RoleUser}
	if err := checkName("user name", u.Username); err != nil {
		return u, err
	}
	if u.DisplayName != "" {
		if err := checkName("display name", u.DisplayName); err != nil {
			return u, err
		}
	}
	if err := checkPassword(password); err != nil {
		return u, err
	}
	hash, err := x.console.hash(x, password)
	u.Password, u.Quota = hash, x.console.optionQuota("QuotaForNewUser")
	return u, err
}

// create stores a new user and answers.
func (x *call) create(u sqlstore.NewUser) error {
	_, key, err := x.console.cfg.Store.CreateUserKey(x.ctx(), u)
	if errors.Is(err, sqlstore.ErrExists) {
		return no("Username already exists or has been deleted")
	}
	if err != nil {
		return err
	}
	x.effective(key)
	return x.done()
}
