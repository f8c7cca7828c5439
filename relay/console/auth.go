package console

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// New API's codes for what is wrong with who is asking.
const (
	codeUnauthorized = "AUTH_UNAUTHORIZED"
	codeExpired      = "AUTH_TOKEN_EXPIRED"
	codeRevoked      = "AUTH_SESSION_REVOKED"
	codeDisabled     = "AUTH_USER_DISABLED"
	codePrivilege    = "AUTH_INSUFFICIENT_PRIVILEGE"
	codeCrossOrigin  = "CROSS_ORIGIN" // ours
)

func unauthorized(code, message string) error {
	return &refusal{http.StatusUnauthorized, code, message}
}

func forbidden(code, message string) error {
	return &refusal{http.StatusForbidden, code, message}
}

var errPrivilege = forbidden(codePrivilege, "Unauthorized, insufficient privileges")

// identity is who is calling.
type identity struct {
	*sqlstore.UserView
	session *sqlstore.Session // nil: a management access token
	cookie  bool              // the session was named by a cookie, which browsers send by themselves
}

// root reports whether the caller may do everything.
func (i *identity) root() bool { return i.Role >= sqlstore.RoleRoot }

// mayManage reports whether the caller may change a user of that role: an administrator only users below, root all.
func (i *identity) mayManage(role int) bool { return i.root() || i.Role > role }

// keep is the session that a change of the caller's own password leaves in force.
func (i *identity) keep() ledger.ID {
	if i.session == nil {
		return ledger.ID{}
	}
	return i.session.ID
}

// sessionCookieName is New API's of the generation with cookies.
const sessionCookieName = "session"

// allowed serves an endpoint to users of a role and above. A request named by a cookie is checked for its origin: always if
// it writes, whatever its method.
func (c *Console) allowed(role int, writes bool, h handler) echo.HandlerFunc {
	return func(e echo.Context) error {
		x := c.begin(e, maxBody)
		if err := x.identify(role); err != nil {
			return x.fail(err)
		}
		if x.me.cookie {
			if err := x.checkOrigin(writes); err != nil {
				return x.fail(err)
			}
		}
		actor := sqlstore.Actor{User: x.me.ID, Username: x.me.Username, IP: x.address(), Request: x.id}
		x.SetRequest(x.Request().WithContext(sqlstore.WithActor(x.ctx(), actor)))
		if err := h(x); err != nil {
			return x.fail(err)
		}
		return nil
	}
}

// checkOrigin refuses what another site makes a browser send. Some of New API's GET paths write; they are checked as if they
// were a POST.
func (x *call) checkOrigin(writes bool) error {
	probe := x.Request()
	if writes && (probe.Method == http.MethodGet || probe.Method == http.MethodHead) {
		probe = probe.Clone(x.ctx())
		probe.Method = http.MethodPost
	}
	if err := x.console.origins.Check(probe); err != nil {
		return forbidden(codeCrossOrigin, "a page of another origin may not do this")
	}
	return nil
}

// address is the client's address as text.
func (x *call) address() string {
	ip := x.console.cfg.ClientIP(x.Request())
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// identify finds out who is calling, by Authorization (an access token of a session, or a management access token, with or
// without "Bearer"), or else by the session cookie.
func (x *call) identify(role int) error {
	token := strings.TrimSpace(x.Request().Header.Get("Authorization"))
	if len(token) > 7 && strings.EqualFold(token[:7], "bearer ") {
		token = strings.TrimSpace(token[7:])
	}
	var err error
	switch {
	case strings.HasPrefix(token, jwtHead+"."):
		var id ledger.ID
		if id, err = x.console.tickets.openAccess(token, x.console.now()); err == nil {
			err = x.bySession(id)
		}
	case token != "":
		err = x.byAccessToken(token)
	default:
		err = x.byCookie()
	}
	switch {
	case errors.Is(err, errTicketExpired):
		return unauthorized(codeExpired, "Unauthorized, the access token has expired")
	case errors.Is(err, errTicket), errors.Is(err, sqlstore.ErrNotFound):
		return unauthorized(codeUnauthorized, "Unauthorized, invalid access token")
	case err != nil:
		return err
	}
	// The newest New API ignores New-Api-User, the ones before demand it. A script that names another user than the one it is
	// would have failed there, and had better fail here.
	if named := x.Request().Header.Get("New-Api-User"); named != "" && named != strconv.FormatInt(x.me.ID, 10) {
		return unauthorized(codeUnauthorized, "Unauthorized, New-Api-User names another user")
	}
	if x.me.Status != sqlstore.UserEnabled {
		return forbidden(codeDisabled, "User has been banned")
	}
	if x.me.Role < role {
		return errPrivilege
	}
	return nil
}

func (x *call) byAccessToken(token string) error {
	user, err := x.console.cfg.Store.UserByAccessToken(x.ctx(), token)
	x.me = &identity{UserView: user}
	return err
}

func (x *call) byCookie() error {
	cookie, err := x.Request().Cookie(sessionCookieName)
	if err != nil {
		return errTicket
	}
	id, err := x.console.tickets.openSession(cookie.Value, x.console.now())
	if err == nil {
		err = x.bySession(id)
	}
	if err == nil {
		x.me.cookie = true
	}
	return err
}

// bySession looks the session up: it is what makes a logout, a new password or a deletion count at once on every node.
func (x *call) bySession(id ledger.ID) error {
	session, user, err := x.console.cfg.Store.Session(x.ctx(), id)
	if err != nil {
		return err
	}
	if user.Deleted || !session.InForce(x.console.now(), user.AuthVersion) {
		return unauthorized(codeRevoked, "Unauthorized, not logged in and no access token provided")
	}
	x.me = &identity{UserView: user, session: session}
	return nil
}
