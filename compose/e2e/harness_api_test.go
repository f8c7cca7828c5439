package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// admin is somebody who is logged in at a node's management API, with the session's cookie or with its access token.
type admin struct {
	t     testing.TB
	url   string
	id    int64
	token string // access token; "" when the cookie alone speaks
	http  *http.Client
}

// answer is New API's envelope.
type answer struct {
	Success bool            `json:"success"`
	Message string          `json:"message"`
	Code    json.RawMessage `json:"code"`
	Data    json.RawMessage `json:"data"`
}

// login logs in with a password and keeps both the cookie and the token.
func login(t testing.TB, url, name, password string) *admin {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &admin{t: t, url: url, http: &http.Client{Timeout: 30 * time.Second, Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}}
	var in struct {
		ID          int64  `json:"id"`
		AccessToken string `json:"access_token"`
	}
	a.must(http.MethodPost, "/api/user/login", map[string]any{"username": name, "password": password}, &in)
	a.id, a.token = in.ID, in.AccessToken
	return a
}

// at is the same login used on another node.
func (a *admin) at(url string) *admin {
	other := *a
	other.url = url
	return &other
}

// cookies carries the login's cookies to another node, as a browser behind a load balancer does.
func (a *admin) cookies(to string) *admin {
	a.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		a.t.Fatal(err)
	}
	from, target := parseURL(a.t, a.url), parseURL(a.t, to)
	jar.SetCookies(target, a.http.Jar.Cookies(from))
	return &admin{t: a.t, url: to, id: a.id, http: &http.Client{Timeout: a.http.Timeout, Jar: jar, Transport: a.http.Transport}}
}

func parseURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// call sends a request and returns status and envelope.
func (a *admin) call(method, path string, body any) (int, answer, error) {
	var reader io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, answer{}, err
		}
		reader = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, reader)
	if err != nil {
		return 0, answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	if a.id != 0 {
		req.Header.Set("New-Api-User", strconv.FormatInt(a.id, 10))
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, answer{}, err
	}
	var out answer
	if err := json.Unmarshal(text, &out); err != nil {
		return resp.StatusCode, answer{}, fmt.Errorf("%s %s: status %d, no JSON: %s", method, path, resp.StatusCode, text)
	}
	return resp.StatusCode, out, nil
}

// must calls, requires success, and decodes the data.
func (a *admin) must(method, path string, body, into any) {
	a.t.Helper()
	status, out, err := a.call(method, path, body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	if status != http.StatusOK || !out.Success {
		a.t.Fatalf("%s %s: status %d, %s", method, path, status, out.Message)
	}
	if into == nil {
		return
	}
	if err := json.Unmarshal(out.Data, into); err != nil {
		a.t.Fatalf("%s %s: %v in %s", method, path, err, out.Data)
	}
}

// page is New API's page of a list.
type page[T any] struct {
	Total int `json:"total"`
	Items []T `json:"items"`
}

// account is a user with a key, as the tests use them.
type account struct {
	name     string
	user     int64
	token    int64
	key      string // with sk-
	granted  int64  // what the user was given
	limit    int64  // what the key may spend, 0 if it is unlimited
	password string
	login    *admin
}

// tokenLimit says what a key may spend; unlimited needs no limit.
type tokenLimit struct {
	quota     int64
	unlimited bool
}

// addUser makes a user over the management API, gives quota and makes a key of the user's own.
func (s *site) addUser(name string, quota int64, limit tokenLimit) *account {
	s.t.Helper()
	u := &account{name: name, password: "pw-" + name + "-123"}
	s.root.must(http.MethodPost, "/api/user/", map[string]any{"username": name, "password": u.password, "display_name": name}, nil)
	var found page[struct {
		ID       int64  `json:"id"`
		Username string `json:"username"`
	}]
	s.root.must(http.MethodGet, "/api/user/search?keyword="+url.QueryEscape(name), nil, &found)
	for _, f := range found.Items {
		if f.Username == name {
			u.user = f.ID
		}
	}
	if u.user == 0 {
		s.t.Fatalf("the user %s is not found after it was made: %+v", name, found)
	}
	s.topUp(u, quota)
	u.login = login(s.t, s.root.url, name, u.password)
	u.token, u.key = s.addToken(u, name, limit)
	u.limit = limit.quota
	s.everywhere(u.key)
	s.funded(u)
	return u
}

// funded returns once the balances are there. The API answers when they are, but waits for that two seconds at most, and an event log that
// is still electing its leaders takes longer.
func (s *site) funded(u *account) {
	s.t.Helper()
	var self struct {
		Quota int64 `json:"quota"`
	}
	var keys page[struct {
		ID          int64 `json:"id"`
		RemainQuota int64 `json:"remain_quota"`
	}]
	eventually(s.t, "the quota of "+u.name+" is applied", func() error {
		for path, into := range map[string]any{"/api/user/self": &self, "/api/token/?p=1&page_size=100": &keys} {
			status, out, err := u.login.call(http.MethodGet, path, nil)
			if err != nil || status != http.StatusOK || !out.Success {
				return fmt.Errorf("%s: status %d, %s: %w", path, status, out.Message, err)
			}
			if err := json.Unmarshal(out.Data, into); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if self.Quota < u.granted {
			return fmt.Errorf("the user has %d of %d", self.Quota, u.granted)
		}
		for _, k := range keys.Items {
			if k.ID == u.token && k.RemainQuota < u.limit {
				return fmt.Errorf("the key has %d of %d", k.RemainQuota, u.limit)
			}
		}
		return nil
	})
}

// everywhere returns once a key is good for the model on every node: what changes on one reaches the others within a second.
func (s *site) everywhere(key string) {
	s.t.Helper()
	for _, n := range s.nodes {
		if n.relays() {
			eventually(s.t, "the key is known to "+n.name, func() error { return n.serves(key) })
		}
	}
}

// serves reports why a node would not serve the model to a key.
func (n *node) serves(key string) error {
	status, body, err := getWith(n.url()+"/v1/models", "Bearer "+key)
	if err != nil || status != http.StatusOK || !strings.Contains(body, `"`+model+`"`) {
		return fmt.Errorf("models: status %d, %s: %w", status, body, err)
	}
	return nil
}

// topUp gives a user quota.
func (s *site) topUp(u *account, quota int64) {
	s.t.Helper()
	if quota == 0 {
		return
	}
	u.granted += quota
	s.root.must(http.MethodPost, "/api/user/manage", map[string]any{"id": u.user, "action": "add_quota", "mode": "add", "value": quota}, nil)
}

// addToken makes a key for a user and reveals it.
func (s *site) addToken(u *account, name string, limit tokenLimit) (id int64, key string) {
	s.t.Helper()
	u.login.must(http.MethodPost, "/api/token/", map[string]any{
		"name": name, "expired_time": -1, "remain_quota": limit.quota, "unlimited_quota": limit.unlimited,
	}, nil)
	var list page[struct {
		ID   int64  `json:"id"`
		Name string `json:"name"`
	}]
	u.login.must(http.MethodGet, "/api/token/?p=1&page_size=100", nil, &list)
	for _, t := range list.Items {
		if t.Name == name {
			id = t.ID
		}
	}
	var revealed struct {
		Key string `json:"key"`
	}
	u.login.must(http.MethodPost, "/api/token/"+strconv.FormatInt(id, 10)+"/key", nil, &revealed)
	if revealed.Key == "" {
		s.t.Fatalf("the key of token %d is not revealed", id)
	}
	return id, "sk-" + revealed.Key
}

// addChannel makes a channel to the site's upstream. key tells channels apart in the oracle.
func (s *site) addChannel(name, key string, more map[string]any) int64 {
	s.t.Helper()
	channel := map[string]any{
		"type": 1, "name": name, "key": key, "base_url": s.upstream.URL, "models": model + ",text-embedding-3-small,gpt-3.5-turbo-instruct", "group": "default",
		"status": 1, "auto_ban": 0,
	}
	for k, v := range more {
		channel[k] = v
	}
	s.root.must(http.MethodPost, "/api/channel/", map[string]any{"mode": "single", "channel": channel}, nil)
	var list page[struct {
		ID   int64  `json:"id"`
		Name string `json:"name"`
	}]
	s.root.must(http.MethodGet, "/api/channel/?p=1&page_size=100", nil, &list)
	for _, c := range list.Items {
		if c.Name == name {
			return c.ID
		}
	}
	s.t.Fatalf("the channel %s is not found after it was made", name)
	return 0
}
