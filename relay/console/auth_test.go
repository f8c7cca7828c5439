package console

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger/sqlstore"
)

const (
	unauthorizedStatus = http.StatusUnauthorized
	forbiddenStatus    = http.StatusForbidden
)

// The ways to say who is calling, and what is made of them.
func TestWhoIsCalling(t *testing.T) {
	s := newSite(t)
	root := s.root()
	pat := root.must("GET", "/api/user/token", nil).body["data"].(string)
	if len(pat) < 29 || len(pat) > 32 {
		t.Errorf("a token of %d characters", len(pat))
	}
	cookies := s.login("root", "rootpass1").cookies
	for _, c := range []struct {
		name, token string
		cookies     map[string]string
		user        string // New-Api-User
		status      int
		code        string
	}{
		{name: "access token, raw", token: pat, status: 200},
		{name: "access token, bearer", token: "Bearer " + pat, status: 200},
		{name: "access token, own user", token: pat, user: "1", status: 200},
		{name: "access token, other user", token: pat, user: "2", status: 401, code: codeUnauthorized},
		{name: "access token, in other letters", token: strings.ToUpper(pat), status: 401, code: codeUnauthorized},
		{name: "session token", token: "bearer " + root.token, status: 200},
		{name: "session token, raw", token: root.token, status: 200},
		{name: "session token, other user", token: root.token, user: "2", status: 401, code: codeUnauthorized},
		{name: "session token, forged", token: root.token[:len(root.token)-2] + "xx", status: 401, code: codeUnauthorized},
		{name: "session token without algorithm", token: "eyJhbGciOiJub25lIn0." + strings.Split(root.token, ".")[1] + ".", status: 401, code: codeUnauthorized},
		{name: "cookie", cookies: map[string]string{"session": cookies["session"]}, status: 200},
		{name: "cookie, own user", cookies: map[string]string{"session": cookies["session"]}, user: "1", status: 200},
		{name: "cookie, other user", cookies: map[string]string{"session": cookies["session"]}, user: "2", status: 401, code: codeUnauthorized},
		{name: "refresh cookie as session", cookies: map[string]string{"session": cookies["new_api_refresh"]}, status: 401, code: codeUnauthorized},
		{name: "a bad token beside a good cookie", token: "x", cookies: cookies, status: 401, code: codeUnauthorized},
		{name: "nothing", status: 401, code: codeUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			caller := s.client()
			caller.token, caller.headers = c.token, map[string]string{}
			for name, value := range c.cookies {
				caller.cookies[name] = value
			}
			if c.user != "" {
				caller.headers["New-Api-User"] = c.user
			}
			r := caller.call("GET", "/api/user/self", nil)
			if code, _ := r.body["code"].(string); r.status != c.status || code != c.code {
				t.Errorf("%d %s", r.status, r.raw)
			}
		})
	}
}

// What a login hands out is honoured by every node with the same secret, and by no other.
func TestLoginsOnOtherNodes(t *testing.T) {
	s := newSite(t)
	one := s.root()
	same := serve(t, s.node(t))
	other := s.node(t)
	other.tickets = newTickets("another secret")
	foreign := serve(t, other)
	for _, caller := range []*client{
		{site: s, token: one.token, cookies: map[string]string{}},
		{site: s, cookies: map[string]string{"session": one.cookies["session"]}},
	} {
		caller.base = same.URL
		caller.must("GET", "/api/user/self", nil)
		caller.base = foreign.URL
		caller.refused(unauthorizedStatus, codeUnauthorized, "GET", "/api/user/self", nil)
	}
	refresher := &client{site: s, base: same.URL, cookies: one.cookies}
	refresher.token = refresher.must("POST", "/api/user/auth/refresh", nil).data()["access_token"].(string)
	refresher.base = s.http.URL
	refresher.must("GET", "/api/user/self", nil)
	refresher.must("POST", "/api/user/auth/logout", nil)
	one.base = same.URL
	one.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
}

func TestSessionsEnd(t *testing.T) {
	s := newSite(t)
	carol, id := s.user("carol", sqlstore.RoleUser)

	t.Run("the access token after 15 minutes", func(t *testing.T) {
		c := s.login("carol", "password1")
		s.clock.forward(accessLife + time.Second)
		c.refused(unauthorizedStatus, codeExpired, "GET", "/api/user/self", nil)
		c.token = c.must("POST", "/api/user/auth/refresh", nil).data()["access_token"].(string)
		c.must("GET", "/api/user/self", nil)
	})
	t.Run("logout by the cookie of old", func(t *testing.T) {
		c := s.login("carol", "password1")
		c.token = ""
		session := c.cookies["session"]
		c.must("GET", "/api/user/logout", nil)
		if len(c.cookies) != 0 {
			t.Errorf("cookies are left: %v", c.cookies)
		}
		c.cookies["session"] = session
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
	})
	t.Run("logout with the refresh cookie alone", func(t *testing.T) {
		c := s.login("carol", "password1")
		token := c.token
		c.token = ""
		delete(c.cookies, "session")
		c.must("POST", "/api/user/auth/logout", nil)
		c.token = token
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
	})
	t.Run("a refresh cookie used again after a while", func(t *testing.T) {
		c := s.login("carol", "password1")
		stolen := c.cookies["new_api_refresh"]
		c.must("POST", "/api/user/auth/refresh", nil)
		c.must("POST", "/api/user/auth/refresh", nil)
		thief := s.client()
		thief.cookies["new_api_refresh"] = stolen
		thief.refused(unauthorizedStatus, codeRevoked, "POST", "/api/user/auth/refresh", nil)
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
	})
	t.Run("a new password of one's own", func(t *testing.T) {
		c, elsewhere := s.login("carol", "password1"), s.login("carol", "password1")
		c.refused(200, "", "PUT", "/api/user/self", map[string]string{"password": "password2", "original_password": "wrong-one"})
		c.must("PUT", "/api/user/self", map[string]string{"password": "password2", "original_password": "password1"})
		c.must("GET", "/api/user/self", nil)
		elsewhere.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
		s.client().refused(200, "", "POST", "/api/user/login", map[string]string{"username": "carol", "password": "password1"})
		c.must("PUT", "/api/user/self", map[string]string{"password": "password1", "original_password": "password2"})
	})
	t.Run("one of several", func(t *testing.T) {
		c, other := s.login("carol", "password1"), s.login("carol", "password1")
		list := other.must("GET", "/api/user/sessions", nil).body["data"].([]any)
		if first := list[0].(map[string]any); first["current"] != true {
			t.Errorf("the newest session is %v", first)
		}
		sid := list[1].(map[string]any)["sid"].(string)
		other.must("DELETE", "/api/user/sessions/"+sid, nil)
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
		s.root().refused(200, "", "DELETE", "/api/user/sessions/"+sid, nil) // another's
	})
	t.Run("disabled", func(t *testing.T) {
		c := s.login("carol", "password1")
		pat := c.must("GET", "/api/user/token", nil).body["data"].(string)
		s.root().must("POST", "/api/user/manage", map[string]any{"id": id, "action": "disable"})
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
		c.token = pat
		c.refused(forbiddenStatus, codeDisabled, "GET", "/api/user/self", nil)
		s.root().must("POST", "/api/user/manage", map[string]any{"id": id, "action": "enable"})
		c.must("GET", "/api/user/self", nil)
	})
	t.Run("deleted", func(t *testing.T) {
		c := s.login("carol", "password1")
		s.root().must("POST", "/api/user/manage", map[string]any{"id": id, "action": "delete"})
		c.refused(unauthorizedStatus, codeRevoked, "GET", "/api/user/self", nil)
		c.refused(unauthorizedStatus, codeRevoked, "POST", "/api/user/auth/refresh", nil)
	})
	_ = carol
}

// A page of another site can make a browser send cookies' requests only in ways that are refused.
func TestCrossOrigin(t *testing.T) {
	s := newSite(t)
	login := s.root()
	browser := func(headers map[string]string) *client {
		c := s.client()
		c.headers, c.cookies["session"], c.cookies["new_api_refresh"] = headers, login.cookies["session"], login.cookies["new_api_refresh"]
		return c
	}
	evil := []map[string]string{
		{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example.com"},
		{"Sec-Fetch-Site": "same-site", "Origin": "https://other.example.com"},
		{"Origin": "https://evil.example.com"}, // a browser without Sec-Fetch-Site
	}
	for _, headers := range evil {
		for _, r := range [][2]string{
			{"PUT", "/api/user/self"},
			{"POST", "/api/token/"},
			{"DELETE", "/api/channel/1"},
			{"GET", "/api/user/token"},
			{"GET", "/api/channel/test/1"},
			{"GET", "/api/user/logout"},
			{"POST", "/api/user/auth/logout"},
			{"POST", "/api/user/auth/refresh"},
			{"POST", "/api/user/login"},
		} {
			browser(headers).refused(forbiddenStatus, codeCrossOrigin, r[0], r[1], map[string]any{"display_name": "x"})
		}
		browser(headers).must("GET", "/api/user/self", nil) // reading is harmless: the page cannot see the answer
	}
	for _, headers := range []map[string]string{
		{"Sec-Fetch-Site": "same-origin"},
		{"Sec-Fetch-Site": "none"},
		{"Origin": s.http.URL},
		{"Sec-Fetch-Site": "cross-site", "Origin": "https://panel.example.com"}, // FRONTEND_BASE_URL
		{}, // no browser
	} {
		browser(headers).must("PUT", "/api/user/self", map[string]any{"display_name": "x"})
		browser(headers).must("GET", "/api/user/token", nil)
	}
	// A token that the caller puts in by itself needs no such care.
	c := s.client()
	c.token, c.headers = login.token, evil[0]
	c.must("PUT", "/api/user/self", map[string]any{"display_name": "y"})
}

// Every endpoint is closed to those below its role.
func TestRoles(t *testing.T) {
	s := newSite(t)
	carol, _ := s.user("carol", sqlstore.RoleUser)
	admin, _ := s.user("bob", sqlstore.RoleAdmin)
	callers := map[int]*client{sqlstore.RoleUser: carol, sqlstore.RoleAdmin: admin}
	checked := 0
	for _, r := range routes() {
		if r.role == sqlstore.RoleGuest {
			continue
		}
		path := strings.NewReplacer(":id", "1", ":sid", "x").Replace(r.path)
		s.client().refused(unauthorizedStatus, codeUnauthorized, r.method, path, map[string]any{})
		for role, c := range callers {
			if role < r.role {
				c.refused(forbiddenStatus, codePrivilege, r.method, path, map[string]any{})
				checked++
			}
		}
	}
	if checked < 35 {
		t.Errorf("only %d refusals", checked)
	}
}

// An administrator manages users below, not peers, not root; nobody unmakes root.
func TestWhoManagesWhom(t *testing.T) {
	s := newSite(t)
	admin, adminID := s.user("bob", sqlstore.RoleAdmin)
	_, peer := s.user("mallory", sqlstore.RoleAdmin)
	_, user := s.user("carol", sqlstore.RoleUser)
	root := s.root()
	for _, id := range []int64{1, peer, adminID} {
		for _, action := range []string{"disable", "enable", "delete", "promote", "demote"} {
			admin.refused(200, "", "POST", "/api/user/manage", map[string]any{"id": id, "action": action})
		}
		for _, mode := range []string{"add", "subtract", "override"} {
			admin.refused(200, "", "POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": mode, "value": 5})
		}
		admin.refused(200, "", "DELETE", "/api/user/"+strconv.FormatInt(id, 10), nil)
		if id != adminID {
			admin.refused(200, "", "PUT", "/api/user/", map[string]any{"id": id, "display_name": "x", "password": "password9"})
			admin.refused(200, "", "GET", "/api/user/"+strconv.FormatInt(id, 10), nil)
		}
	}
	admin.refused(200, "", "PUT", "/api/user/", map[string]any{"id": adminID, "role": 100})
	admin.refused(200, "", "POST", "/api/user/manage", map[string]any{"id": user, "action": "promote"})
	admin.refused(200, "", "POST", "/api/user/", map[string]any{"username": "x", "password": "password1", "role": 10})
	admin.must("POST", "/api/user/manage", map[string]any{"id": user, "action": "disable"})
	admin.must("POST", "/api/user/manage", map[string]any{"id": user, "action": "enable"})
	for _, action := range []string{"disable", "delete", "demote", "promote"} {
		root.refused(200, "", "POST", "/api/user/manage", map[string]any{"id": 1, "action": action})
	}
	root.refused(200, "", "DELETE", "/api/user/self", nil)
	root.must("POST", "/api/user/manage", map[string]any{"id": peer, "action": "demote"})
	root.must("POST", "/api/user/manage", map[string]any{"id": user, "action": "promote"})
	if got := root.must("GET", fmt.Sprintf("/api/user/%d", user), nil).data()["role"]; got != 10.0 {
		t.Errorf("after a promotion the role is %v", got)
	}
}

func TestFailedLoginsAreSlowed(t *testing.T) {
	s := newSite(t)
	s.user("carol", sqlstore.RoleUser)
	try := func(name, password, address string) reply {
		c := s.client()
		c.headers = map[string]string{"X-Test-Address": address}
		return c.call("POST", "/api/user/login", map[string]string{"username": name, "password": password})
	}
	for range freeFailures {
		if r := try("carol", "wrong-one", "10.0.0.1"); r.status != 200 {
			t.Fatalf("a first mistake: %d %s", r.status, r.raw)
		}
	}
	r := try("CAROL", "password1", "10.0.0.1")
	if r.status != http.StatusTooManyRequests || r.header.Get("Retry-After") == "" {
		t.Errorf("after %d mistakes: %d %s", freeFailures, r.status, r.raw)
	}
	if r := try("carol", "password1", "10.0.0.2"); !r.ok() {
		t.Errorf("from elsewhere: %s", r.raw)
	}
	s.clock.forward(2 * time.Second)
	if r := try("carol", "password1", "10.0.0.1"); !r.ok() {
		t.Errorf("after the pause: %s", r.raw)
	}
	if r := try("carol", "wrong-one", "10.0.0.1"); r.status != 200 {
		t.Errorf("a mistake after a success: %d", r.status)
	}
	for i := range freeAddressFailures {
		try(fmt.Sprintf("nobody%d", i), "wrong-one", "10.0.0.3")
	}
	if r := try("carol", "password1", "10.0.0.3"); r.status != http.StatusTooManyRequests {
		t.Errorf("one password tried on many users: %d", r.status)
	}
}

func TestThrottleIsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	th := newThrottle(func() time.Time { return now })
	for range freeFailures + 8 {
		th.failed("carol", "a")
	}
	if w := th.wait("carol", "a"); w < time.Minute || w > longestPause {
		t.Errorf("pause %s", w)
	}
	for range 100 {
		th.failed("carol", "a")
	}
	if w := th.wait("carol", "a"); w != longestPause {
		t.Errorf("the longest pause is %s", w)
	}
	for i := range 2 * maxThrottled {
		th.failed("u", strconv.Itoa(i))
	}
	if len(th.entries) != maxThrottled || th.order.Len() != maxThrottled {
		t.Errorf("%d entries, %d in order", len(th.entries), th.order.Len())
	}
	if w := th.wait("carol", "a"); w > 0 {
		t.Errorf("the oldest entry is still there: %s", w)
	}
	th.failed("late", "a")
	now = now.Add(failuresKept + time.Second)
	for range freeFailures - 1 {
		th.failed("late", "a")
	}
	if w := th.wait("late", "a"); w > 0 {
		t.Errorf("a failure of long ago counts: %s", w)
	}
}
