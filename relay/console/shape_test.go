package console

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// recording is a file of testdata/newapi-http.
type recording struct {
	Exchanges []exchange
}

type exchange struct {
	Name    string
	Request struct {
		Method, Path, Auth string
		Headers            map[string]string
		Body               any
		Text               string `json:"body_text"`
	}
	Status  int
	Headers map[string]any
	Body    any
}

func readRecording(t *testing.T, name string) recording {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "newapi-http", name+".json"))
	check(t, err)
	var r recording
	check(t, json.Unmarshal(text, &r))
	return r
}

// leftOut are exchanges that this package does not answer, or answers differently on purpose.
var leftOut = map[string]string{
	"user-self/PAT with another New-Api-User": "refused here: a script that names another user is wrong about who it is (TestWhoIsCalling)",
	"option/chat after the bad ratio JSON":    "the bad price table is not stored here (TestOptions), so there is nothing to see",
	"user-topup/amount":                       "online payment is not offered",
	"relay-not-implemented/files":             "the relay's",
	"relay-not-implemented/image variations":  "the relay's",
	"relay-not-implemented/unknown /v1 path":  "the relay's",
	"relay-not-implemented/CORS preflight":    "the relay's",
	"setup/before set-up":                     "on an empty database: TestSetUpByHand",
	"setup/passwords differ":                  "on an empty database: TestSetUpByHand",
	"setup/set up":                            "on an empty database: TestSetUpByHand",
}

// extra are members that answers have beside New API's, by path.
var extra = []string{
	// The generation before the access tokens answered a login with these.
	"data.id", "data.username", "data.display_name", "data.role", "data.status", "data.group",
}

// mayBeEmpty are lists that New API fills and this package never does.
var mayBeEmpty = []string{"vendors", "data.pay_methods"}

// anyName are objects whose names are data: one value stands for all.
var anyName = []string{"data.type_counts", "group_ratio", "usable_group", "supported_endpoint", "data.model_limits", "data.chats[]", "data.permissions.sidebar_modules", "data.user.permissions.sidebar_modules"}

// TestAnswersHaveNewAPIsShape sends the recorded requests and compares the answers.
func TestAnswersHaveNewAPIsShape(t *testing.T) {
	files, err := filepath.Glob("testdata/newapi-http/*.json")
	check(t, err)
	if len(files) < 20 {
		t.Fatalf("only %d recordings", len(files))
	}
	w := newWorld(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			for _, x := range readRecording(t, name).Exchanges {
				key := name + "/" + x.Name
				if _, ok := leftOut[key]; ok {
					continue
				}
				t.Run(x.Name, func(t *testing.T) { w.replay(t, key, x) })
			}
		})
	}
}

func (w *world) replay(t *testing.T, key string, x exchange) {
	c := w.caller(x.Request.Auth)
	for name, value := range x.Request.Headers {
		c.headers = map[string]string{name: value}
	}
	method, path := x.Request.Method, w.rename(key, x.Request.Path)
	body := w.renameBody(key, x.Request.Body)
	if x.Request.Text != "" {
		body = x.Request.Text
	}
	got := c.call(method, path, body)
	if got.status != x.Status {
		t.Fatalf("%s %s: status %d, New API %d: %s", method, path, got.status, x.Status, got.raw)
	}
	want, ok := x.Body.(map[string]any)
	if !ok {
		t.Fatalf("the recorded body is a %T", x.Body)
	}
	for _, name := range []string{"success", "code"} { // their values are part of the contract
		if name == "code" && want["code"] == true {
			continue
		}
		if want[name] != got.body[name] {
			t.Errorf("%s %s: %s is %v, New API %v: %s", method, path, name, got.body[name], want[name], got.raw)
		}
	}
	open := anyName
	if strings.HasSuffix(path, "/groups") {
		open = append(slices.Clone(anyName), "data")
	}
	for _, problem := range compareShape("", want, got.body, open) {
		t.Errorf("%s %s: %s", method, path, problem)
	}
	if t.Failed() {
		t.Logf("answer: %s", got.raw)
	}
	w.compareHeaders(t, x, got)
}

// compareHeaders looks at what clients read of the headers: the request id, and names and attributes of cookies.
func (w *world) compareHeaders(t *testing.T, x exchange, got reply) {
	if got.header.Get("X-Oneapi-Request-Id") == "" || got.header.Get("X-New-Api-Version") == "" {
		t.Errorf("headers %v", got.header)
	}
	list, _ := x.Headers["Set-Cookie"].([]any)
	for _, c := range list {
		want := c.(string)
		name, _, _ := strings.Cut(want, "=")
		set := (&http.Response{Header: got.header}).Cookies()
		i := slices.IndexFunc(set, func(c *http.Cookie) bool { return c.Name == name })
		if i < 0 {
			t.Errorf("no cookie %s", name)
			continue
		}
		c := set[i]
		if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != refreshCookiePath || (c.MaxAge < 0) != strings.Contains(want, "Max-Age=0;") {
			t.Errorf("cookie %s, New API %s", c, want)
		}
	}
}

// compareShape says where names or types differ.
func compareShape(path string, want, got any, open []string) (problems []string) {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s is a %T, not an object", path, got)}
		}
		if slices.Contains(open, path) {
			return compareAny(path, want, got, open)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if v, ok := got[name]; ok {
				problems = append(problems, compareShape(strings.TrimPrefix(path+"."+name, "."), want[name], v, open)...)
			} else {
				problems = append(problems, path+"."+name+" is missing")
			}
		}
		for name := range got {
			full := strings.TrimPrefix(path+"."+name, ".")
			if _, ok := want[name]; !ok && !slices.Contains(extra, full) {
				problems = append(problems, full+" is not New API's")
			}
		}
	case []any:
		got, ok := got.([]any)
		if !ok {
			return []string{path + " is no list"}
		}
		return compareLists(path, want, got, open)
	default:
		if got != nil && want != nil && fmt.Sprintf("%T", want) != fmt.Sprintf("%T", got) {
			return []string{fmt.Sprintf("%s is a %T, not a %T", path, got, want)}
		}
		if got == nil && want != nil {
			return []string{fmt.Sprintf("%s is null, not a %T", path, want)}
		}
	}
	return problems
}

func compareAny(path string, want, got map[string]any, open []string) []string {
	if len(want) > 0 && len(got) == 0 {
		return []string{path + " is empty"}
	}
	for name, g := range got {
		w, ok := want[name]
		if !ok {
			for _, w = range want {
				break
			}
		}
		if len(want) == 0 {
			return nil
		}
		if problems := compareShape(path+".*", w, g, open); len(problems) > 0 {
			return problems
		}
	}
	return nil
}

// compareLists compares the elements with those that were recorded: of objects, every name that all of those have must be
// there, and none that none of them has.
func compareLists(path string, want, got []any, open []string) (problems []string) {
	want = slices.DeleteFunc(slices.Clone(want), func(v any) bool { s, ok := v.(string); return ok && strings.HasPrefix(s, "…") })
	if len(want) == 0 {
		return nil
	}
	if len(got) == 0 && slices.Contains(mayBeEmpty, path) {
		return nil
	}
	if len(got) == 0 {
		return []string{path + " is empty: the test has no such rows"}
	}
	if _, ok := want[0].(map[string]any); !ok || slices.Contains(open, path+"[]") {
		return compareShape(path+"[]", want[0], got[0], open)
	}
	every, some := maps.Clone(want[0].(map[string]any)), map[string]any{}
	for _, w := range want {
		w := w.(map[string]any)
		maps.DeleteFunc(every, func(name string, _ any) bool { _, ok := w[name]; return !ok })
		for name, v := range w {
			if some[name] == nil {
				some[name] = v
			}
		}
	}
	for i, g := range got {
		g, ok := g.(map[string]any)
		if !ok {
			return append(problems, path+"[] is no object")
		}
		model := maps.Clone(some)
		for name := range some {
			_, must := every[name]
			if _, ok := g[name]; !ok && !must {
				delete(model, name)
			}
			if v, ok := g[name]; ok && v == nil && want[min(i, len(want)-1)].(map[string]any)[name] == nil {
				model[name] = nil // null there, too
			}
		}
		problems = append(problems, compareShape(path+"[]", model, g, open)...)
	}
	return problems
}

// world is a site with the users, keys, channels and events that the recordings speak of.
type world struct {
	*site
	ids  map[string]int64
	keys map[string]string

	tokens map[string]string // access tokens by user name
	pat    string
}

func newWorld(t *testing.T) *world {
	s := newSite(t)
	w := &world{site: s, ids: map[string]int64{}, keys: map[string]string{}, tokens: map[string]string{}}
	root := s.root()
	for key, value := range map[string]string{
		"UserUsableGroups": `{"default": "default group", "vip": "vip group", "svip": "svip group", "auto": "auto"}`,
		"GroupRatio":       `{"default": 1, "vip": 0.8, "svip": 0.6}`, "AutoGroups": `["default", "vip"]`, "QuotaForNewUser": "250000",
		"Chats": `[{"Some client":"client://"}]`,
	} {
		root.must("PUT", "/api/option/", map[string]string{"key": key, "value": value})
	}
	for _, u := range []struct {
		name, group string
		role        int
	}{{"bob", "vip", 10}, {"carol", "svip", 1}, {"heidi", "default", 1}} {
		root.must("POST", "/api/user/", map[string]any{"username": u.name, "password": "password1", "role": u.role, "group": u.group})
		id, _, err := s.store.UserPassword(t.Context(), u.name)
		check(t, err)
		w.ids[u.name] = id
	}
	root.must("POST", "/api/user/manage", map[string]any{"id": w.ids["heidi"], "action": "disable"})
	for _, c := range []map[string]any{
		{"name": "acme-primary", "models": "gpt-4o,gpt-4o-mini,text-embedding-3-small", "tag": "east", "test_model": "gpt-4o-mini", "priority": 10},
		{"name": "acme-second", "models": "gpt-4o", "tag": "east"},
		{"name": "acme-backup", "models": "gpt-4o,legacy-4", "tag": "west", "remark": "cold spare", "model_mapping": `{"legacy-4": "gpt-4o"}`},
		{"name": "acme-claude", "models": "claude-3-5-sonnet-20241022", "type": 14},
	} {
		if c["type"] == nil {
			c["type"] = 1
		}
		c["key"], c["group"] = "sk-mock", "default,vip,svip"
		root.must("POST", "/api/channel/", map[string]any{"mode": "single", "channel": c})
	}
	w.pat = root.must("GET", "/api/user/token", nil).body["data"].(string)
	w.makeKeys(t)
	w.makeEvents(t)
	return w
}

func (w *world) makeKeys(t *testing.T) {
	carol := w.login("carol", "password1")
	past, future := w.clock.now().Add(-time.Hour).Unix(), w.clock.now().Add(time.Hour).Unix()
	for _, k := range []struct {
		name    string
		quota   int64
		expires int64
		endless bool
	}{{"expired", 500_000, past, false}, {"expiring", 500_000, future, false}, {"main", 0, -1, true}, {"app", 3_349_405, -1, false}} {
		carol.must("POST", "/api/token/", map[string]any{"name": k.name, "remain_quota": k.quota, "expired_time": k.expires, "unlimited_quota": k.endless})
		row := carol.must("GET", "/api/token/search?keyword="+k.name, nil).items()[0].(map[string]any)
		id := int64(row["id"].(float64))
		w.ids["key "+k.name] = id
		w.keys[k.name] = carol.must("POST", fmt.Sprintf("/api/token/%d/key", id), nil).data()["key"].(string)
	}
}

// makeEvents puts rows of every type into the usage log.
func (w *world) makeEvents(t *testing.T) {
	u := w.ids["carol"]
	request := &ledger.Request{ID: "r", Username: "carol", TokenName: "app", Model: "gpt-4o", Group: "svip", Endpoint: "/v1/chat/completions", Status: 200}
	for range 3 {
		w.put(ledger.Event{
			Kind: ledger.KindUsageSettled, User: u, Token: w.ids["key app"], Channel: 1, Charged: 35, Requests: 1, Request: request,
			Usage: &ledger.Usage{Prompt: 10, Completion: 9}, Rating: &ledger.Rating{Mode: "ratio", ModelRatio: "1.25", GroupRatio: "0.6"},
		})
		w.put(ledger.Event{Kind: ledger.KindAudit, User: u, Note: "upstream failed", Flags: []string{"error"}, Request: request})
	}
	w.put(ledger.Event{Kind: ledger.KindUsageSettled, User: u, Token: w.ids["key main"], Charged: 100, Requests: 1, Request: request})
	bob := *request
	bob.Username = "bob"
	w.put(ledger.Event{Kind: ledger.KindUsageSettled, User: w.ids["bob"], Charged: 7, Requests: 1, Request: &bob})
	root := w.root()
	codes := root.must("POST", "/api/redemption/", map[string]any{"name": "spring", "quota": 11, "count": 2}).body["data"].([]any)
	w.login("carol", "password1").must("POST", "/api/user/topup", map[string]any{"key": codes[0]})
	w.order(u, 10, "USR4NO1", "epay", sqlstore.OrderDone)
	w.order(u, 20, "USR4NO2", "epay", sqlstore.OrderPending)
}

// put appends an event as a node would have journaled it.
func (w *world) put(e ledger.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	part := ledger.Partition(e.User, testPartitions)
	e.Version, e.ID, e.Time = ledger.EventVersion, ledger.ID{9, byte(part), byte(w.seqs[part])}, w.clock.now().UnixMilli()
	w.append(e)
}

// caller is the client that an exchange's auth names.
func (w *world) caller(auth string) *client {
	switch {
	case strings.HasPrefix(auth, "PAT"):
		c := w.client()
		c.token = w.pat
		return c
	case auth == "none", auth == "":
		return w.client()
	case auth == "invalid":
		c := w.client()
		c.token = "nonsense"
		return c
	case auth == "root":
		return w.once("root", "rootpass1")
	case auth == "admin":
		return w.once("bob", "password1")
	case auth == "user":
		return w.once("carol", "password1")
	case strings.HasPrefix(auth, "session"), auth == "refresh cookie":
		return w.login("carol", "password1")
	case auth == "revoked session":
		c := w.login("carol", "password1")
		token := c.token
		c.must("POST", "/api/user/auth/logout", map[string]any{})
		c.token = token
		return c
	case auth == "unknown key":
		c := w.client()
		c.token = "Bearer sk-" + strings.Repeat("x", 48)
		return c
	}
	for _, k := range []struct{ word, key string }{{"expired", "expired"}, {"expires", "expiring"}, {"app", "app"}, {"main", "main"}} {
		if strings.Contains(auth, "key") && strings.Contains(auth, k.word) {
			c := w.client()
			c.token = "Bearer sk-" + w.keys[k.key]
			return c
		}
	}
	panic("the test knows no caller " + auth)
}

// once is login for a caller that does not end its session: it logs in the first time only.
func (w *world) once(name, password string) *client {
	if w.tokens[name] == "" {
		w.tokens[name] = w.login(name, password).token
	}
	c := w.client()
	c.token = w.tokens[name]
	return c
}

// rename puts this site's ids into a recorded path.
func (w *world) rename(key, path string) string {
	file, _, _ := strings.Cut(key, "/")
	for _, r := range []struct {
		file, from string
		id         func() int64
	}{
		{"user-list", "/api/user/3", func() int64 { return w.ids["bob"] }},
		{"user-write", "/api/user/15", w.gone},
		{"token-write", "/api/token/35", func() int64 { return w.newest("tokens") }},
		{"channel-write", "/api/channel/11", func() int64 { return w.newest("shape") }},
		{"channel-write", "/api/channel/test/11", func() int64 { return w.newest("shape") }},
		{"channel-write", "/api/channel/fetch_models/11", func() int64 { return w.newest("shape") }},
		{"channel-write", "/api/channel/copy/11", func() int64 { return w.newest("shape") }},
	} {
		if rest, ok := strings.CutPrefix(path, r.from); ok && file == r.file {
			i := strings.LastIndexByte(r.from, '/')
			return fmt.Sprintf("%s/%d%s", r.from[:i], r.id(), rest)
		}
	}
	if file == "data" { // the rows are of now
		at := w.clock.now().Unix()
		path = strings.Replace(path, "start_timestamp=1795186404&end_timestamp=1795276404", fmt.Sprintf("start_timestamp=%d&end_timestamp=%d", at-3600, at+3600), 1)
	}
	if key == "token-write/foreign token" {
		id, _, err := w.store.CreateToken(w.t.Context(), sqlstore.TokenRow{UserID: w.ids["bob"], Name: "b", ExpiredTime: -1}, 0)
		check(w.t, err)
		return fmt.Sprintf("/api/token/%d", id.ID)
	}
	return path
}

// renameBody does the same for a body, and makes what it speaks of if it is not there.
func (w *world) renameBody(key string, body any) any {
	m, ok := body.(map[string]any)
	if !ok {
		return body
	}
	m = maps.Clone(m)
	file, name, _ := strings.Cut(key, "/")
	switch {
	case key == "login/ok":
		m["password"] = "rootpass1"
	case file == "user-manage":
		m["id"] = w.made("managed")
	case key == "user-write/update":
		m["id"] = w.made("madeup")
	case file == "token-write" && m["id"] != nil:
		m["id"] = w.newest("tokens")
	case file == "channel-write" && m["id"] != nil:
		m["id"] = w.newest("shape")
	case file == "redemption" && m["id"] != nil:
		list, _, err := w.store.Redemptions(w.t.Context(), "shape", sqlstore.Page{Limit: 1})
		check(w.t, err)
		m["id"] = list[0].ID
	case file == "user-topup" && strings.HasPrefix(name, "redeem"):
		if w.ids["code"] == 0 {
			w.ids["code"] = 1
			codes, err := w.store.CreateRedemptions(w.t.Context(), sqlstore.Redemption{UserID: 1, Name: "x", Quota: 1234}, 1)
			check(w.t, err)
			w.keys["code"] = codes[0]
		}
		m["key"] = w.keys["code"]
	}
	return m
}

// made returns the id of a user, who is made if there is none.
func (w *world) made(name string) int64 {
	if id, _, err := w.store.UserPassword(w.t.Context(), name); err == nil {
		return id
	}
	id, err := w.store.CreateUser(w.t.Context(), sqlstore.NewUser{Username: name, Password: "x", Role: 1})
	check(w.t, err)
	return id
}

// gone returns the id of a user that was deleted.
func (w *world) gone() int64 {
	id := w.made("madeup")
	_, _, err := w.store.EditUser(w.t.Context(), id, func(e *sqlstore.UserEdit) error { e.Delete = true; return nil })
	check(w.t, err)
	return id
}

// newest returns the id of the newest key of carol, or of the newest channel whose name begins with shape.
func (w *world) newest(what string) int64 {
	if what == "tokens" {
		list, _, err := w.store.Tokens(w.t.Context(), sqlstore.TokenFilter{User: w.ids["carol"]}, sqlstore.Page{Limit: 1})
		check(w.t, err)
		if w.ids["token"] == 0 {
			w.ids["token"] = list[0].ID
		}
		return w.ids["token"]
	}
	if w.ids["channel"] == 0 {
		got, err := w.store.Channels(w.t.Context(), sqlstore.ChannelFilter{Keyword: "shape", ByID: true}, sqlstore.Page{Limit: 1})
		check(w.t, err)
		w.ids["channel"] = got.Items[0].ID
	}
	return w.ids["channel"]
}

// The comparison finds what it is for.
func TestShapeComparisonCatches(t *testing.T) {
	want := map[string]any{"data": map[string]any{"id": 1.0, "name": "", "list": []any{map[string]any{"a": 1.0}, "… 3 more"}}, "success": true}
	for name, got := range map[string]map[string]any{
		"a type":       {"data": map[string]any{"id": "1", "name": "", "list": []any{map[string]any{"a": 1.0}}}, "success": true},
		"a missing":    {"data": map[string]any{"id": 1.0, "list": []any{map[string]any{"a": 1.0}}}, "success": true},
		"one too many": {"data": map[string]any{"id": 1.0, "name": "", "more": 1.0, "list": []any{map[string]any{"a": 1.0}}}, "success": true},
		"an element":   {"data": map[string]any{"id": 1.0, "name": "", "list": []any{map[string]any{"b": 1.0}}}, "success": true},
		"an empty":     {"data": map[string]any{"id": 1.0, "name": "", "list": []any{}}, "success": true},
		"a null":       {"data": map[string]any{"id": nil, "name": "", "list": []any{map[string]any{"a": 1.0}}}, "success": true},
	} {
		if len(compareShape("", want, got, nil)) == 0 {
			t.Errorf("%s is not noticed", name)
		}
	}
	same := map[string]any{"data": map[string]any{"id": 2.0, "name": "x", "list": []any{map[string]any{"a": 7.0}, map[string]any{"a": 8.0}}}, "success": true}
	if p := compareShape("", want, same, nil); len(p) > 0 {
		t.Errorf("equal shapes: %v", p)
	}
}
