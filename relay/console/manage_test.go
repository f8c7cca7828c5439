package console

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// The first user by hand, on a database that no start has touched.
func TestSetUpByHand(t *testing.T) {
	s := newSite(t)
	store, err := sqlstore.Open(t.Context(), sqlstore.Config{SQLitePath: filepath.Join(t.TempDir(), "db")})
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	check(t, store.Migrate(t.Context()))
	_, err = store.InitLog(t.Context(), sqlstore.LogInfo{Topic: "usage", Partitions: testPartitions})
	check(t, err)
	s.console.cfg.Store = store
	c := s.client()
	for _, x := range readRecording(t, "setup").Exchanges {
		got := c.call(x.Request.Method, x.Request.Path, x.Request.Body)
		want := x.Body.(map[string]any)
		for _, problem := range compareShape("", want, got.body, nil) {
			t.Errorf("%s: %s", x.Name, problem)
		}
		if got.status != x.Status || got.body["success"] != want["success"] {
			t.Errorf("%s: %d %s", x.Name, got.status, got.raw)
		}
		if d, ok := want["data"].(map[string]any); ok && d["status"] != got.data()["status"] {
			t.Errorf("%s: status %v, New API %v", x.Name, got.data()["status"], d["status"])
		}
	}
	if options, err := store.Options(t.Context()); err != nil || options["SelfUseModeEnabled"] != "false" {
		t.Errorf("options %v, %v", options, err)
	}
	c.must("POST", "/api/user/login", map[string]string{"username": "root", "password": "goldenpass1"})
}

// What is wrong in a request is named with what is allowed, after New API's words where it has some.
func TestWrongFieldsAreNamed(t *testing.T) {
	s := newSite(t)
	root := s.root()
	root.must("POST", "/api/token/", map[string]any{"name": "mine", "remain_quota": 5, "expired_time": -1})
	for _, c := range []struct {
		method, path string
		body         any
		says         string
	}{
		{"POST", "/api/user/", map[string]any{"username": 5}, "Invalid parameters: username must be a string, not a JSON number"},
		{"POST", "/api/token/", map[string]any{"name": "x", "remain_quota": "many"}, "Invalid parameters: remain_quota must be a whole number, not a JSON string"},
		{"POST", "/api/token/", map[string]any{"name": "x", "unlimited_quota": 1}, "Invalid parameters: unlimited_quota must be true or false"},
		{"POST", "/api/user/", []int{}, "Invalid parameters: the body must be a JSON object"},
		{"POST", "/api/user/manage", map[string]any{"id": 1, "action": "zap"}, "action must be enable, disable, delete, promote, demote or add_quota"},
		{"POST", "/api/user/manage", map[string]any{"id": 1, "action": "add_quota", "mode": "zap"}, "mode must be add, subtract or override"},
		{"POST", "/api/user/manage", map[string]any{"action": "enable"}, "id must be a whole number above 0"},
		{"PUT", "/api/token/?status_only=true", map[string]any{"id": 1, "status": 7}, "status must be 1 (enabled) or 2 (disabled)"},
		{"PUT", "/api/option/", map[string]any{"key": "QuotaForNewUser", "value": "abc"}, `option QuotaForNewUser: \"abc\" is no whole number from 0 to`},
		{"PUT", "/api/option/", map[string]any{"key": "QuotaForNewUser", "value": []int{}}, "value a string, a number, true or false"},
		{"GET", "/api/channel/test/abc", nil, "id must be a whole number above 0"},
	} {
		if r := root.call(c.method, c.path, c.body); r.ok() || !strings.Contains(r.raw, c.says) {
			t.Errorf("%s %s %v: %s, want %q", c.method, c.path, c.body, r.raw, c.says)
		}
	}
}

// A change of quota is seen by the next request, whichever way it is made.
func TestAddQuota(t *testing.T) {
	s := newSite(t)
	carol, id := s.user("carol", sqlstore.RoleUser)
	root := s.root()
	quota := func() float64 { return carol.must("GET", "/api/user/self", nil).data()["quota"].(float64) }
	for _, step := range []struct {
		mode  string
		value int64
		want  float64
	}{{"add", 500_000, 500_000}, {"subtract", 100, 499_900}, {"override", 777, 777}, {"override", 777, 777}, {"override", 0, 0}, {"subtract", 5, -5}, {"override", -7, -7}, {"", 10, 3}} {
		root.must("POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": step.mode, "value": step.value})
		if got := quota(); got != step.want {
			t.Errorf("after %s %d the quota is %v, want %v", step.mode, step.value, got, step.want)
		}
	}
	for _, body := range []map[string]any{
		{"mode": "add", "value": 0},
		{"mode": "add", "value": -1},
		{"mode": "subtract", "value": -1},
		{"mode": "add"},
		{"mode": "double", "value": 1},
		{"mode": "add", "value": 1.5},
		{"mode": "add", "value": "lots"},
		{"mode": "add", "value": 9_000_000_000_000_000_000},
		{"mode": "override", "value": 9_000_000_000_000_000_000},
	} {
		body["id"], body["action"] = id, "add_quota"
		root.refused(200, "", "POST", "/api/user/manage", body)
	}
	root.refused(200, "", "POST", "/api/user/manage", map[string]any{"id": 99, "action": "add_quota", "mode": "add", "value": 1})
	if got := quota(); got != 3 {
		t.Errorf("after refusals the quota is %v", got)
	}
	// The change of a user's form does not touch it.
	root.must("PUT", "/api/user/", map[string]any{"id": id, "quota": 99, "remark": "x"})
	if got := quota(); got != 3 {
		t.Errorf("after a change of the remark the quota is %v", got)
	}
	// Usage applied between reading and writing stays charged.
	s.mu.Lock()
	part := ledger.Partition(id, testPartitions)
	s.append(ledger.Event{
		Version: 1, Kind: ledger.KindUsageSettled, ID: ledger.ID{8, byte(s.seqs[part])}, User: id, Charged: 40, Requests: 1, Time: 1,
	})
	s.mu.Unlock()
	root.must("POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": "add", "value": 100})
	if got := quota(); got != 63 {
		t.Errorf("with usage the quota is %v", got)
	}
	// Who did it is in the log.
	rows := root.must("GET", "/api/log/?type=3&username=root&page_size=100", nil).items()
	if text := fmt.Sprint(rows); !strings.Contains(text, "set the quota of carol") || !strings.Contains(text, "added 500000 to the quota of carol") {
		t.Errorf("the log says %s", text)
	}
	if rows := root.must("GET", "/api/log/?type=7", nil).items(); len(rows) == 0 {
		t.Error("no login is in the log")
	}
}

// Two administrators who set a quota at once leave what one of them set.
func TestOverrideIsOneTransaction(t *testing.T) {
	s := newSite(t)
	_, id := s.user("carol", sqlstore.RoleUser)
	root := s.root()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			root.call("POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": "override", "value": 1000})
		})
	}
	wg.Wait()
	s.apply()
	u, err := s.store.UserView(t.Context(), id)
	check(t, err)
	if u.Quota != 1000 {
		t.Errorf("the quota is %d", u.Quota)
	}
}

// A change of quota is on its way before the catalog is read for its answer: both together must not take longer than the longer one.
func TestKickComesFirst(t *testing.T) {
	s := newSite(t)
	_, before, _ := s.catalog.Sizes()
	kicked, during := false, 0
	s.console.cfg.Kick = func() {
		kicked = true
		_, during, _ = s.catalog.Sizes()
		s.apply()
	}
	s.root().must("POST", "/api/token/", map[string]any{"name": "limited", "remain_quota": 500, "expired_time": -1})
	if _, after, _ := s.catalog.Sizes(); !kicked || during != before || after != before+1 {
		t.Errorf("kicked %v; the catalog has %d tokens, %d at the kick, %d after", kicked, before, during, after)
	}
}

// While nothing applies events, a change is answered after a bounded wait, and applied later.
func TestQuotaWhileTheLogIsDown(t *testing.T) {
	s := newSite(t)
	carol, id := s.user("carol", sqlstore.RoleUser)
	s.console.cfg.Kick, s.console.patience = func() {}, 30*time.Millisecond
	s.root().must("POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": "add", "value": 5})
	s.root().must("POST", "/api/user/manage", map[string]any{"id": id, "action": "add_quota", "mode": "override", "value": 50})
	carol.must("GET", "/api/user/self", nil)
	s.apply()
	if got := carol.must("GET", "/api/user/self", nil).data()["quota"]; got != 50.0 {
		t.Errorf("the quota is %v", got)
	}
}

func TestRegister(t *testing.T) {
	s := newSite(t)
	root := s.root()
	set := func(key, value string) {
		root.must("PUT", "/api/option/", map[string]string{"key": key, "value": value})
	}
	set("QuotaForNewUser", "1000")
	set("QuotaForInvitee", "200")
	set("QuotaForInviter", "700000")
	s.client().must("POST", "/api/user/register", map[string]string{"username": "carol", "password": "password1"})
	carol := s.login("carol", "password1")
	code := carol.must("GET", "/api/user/aff", nil).body["data"]
	s.client().must("POST", "/api/user/register", map[string]any{"username": "dave", "password": "password1", "aff_code": code})
	if got := s.login("dave", "password1").must("GET", "/api/user/self", nil).data()["quota"]; got != 1200.0 {
		t.Errorf("with an invitation the quota is %v", got)
	}
	for _, quota := range []int64{499_999, 700_001} {
		carol.refused(200, "", "POST", "/api/user/aff_transfer", map[string]any{"quota": quota})
	}
	carol.must("POST", "/api/user/aff_transfer", map[string]any{"quota": 600_000})
	if got := carol.must("GET", "/api/user/self", nil).data(); got["quota"] != 601_000.0 || got["aff_count"] != 1.0 || got["aff_quota"] != 100_000.0 {
		t.Errorf("the inviter is %v", got)
	}
	for _, body := range []map[string]string{
		{"username": "carol", "password": "password1"},
		{"username": "", "password": "password1"},
		{"username": strings.Repeat("x", 21), "password": "password1"},
		{"username": "x", "password": "short"},
		{"username": "x", "password": strings.Repeat("p", 73)},
		{"username": "a\nb", "password": "password1"},
	} {
		s.client().refused(200, "", "POST", "/api/user/register", body)
	}
	for i := range freeRegistrations + 1 {
		c := s.client()
		c.headers = map[string]string{"X-Test-Address": "10.0.0.9"}
		r := c.call("POST", "/api/user/register", map[string]string{"username": fmt.Sprint("u", i), "password": "password1"})
		if want := map[bool]int{true: 200, false: 429}[i < freeRegistrations]; r.status != want {
			t.Errorf("sign-up %d from one address: %d", i, r.status)
		}
	}
	set("RegisterEnabled", "false")
	s.client().refused(200, "", "POST", "/api/user/register", map[string]string{"username": "erin", "password": "password1"})
}

func TestTokens(t *testing.T) {
	s := newSite(t)
	carol, _ := s.user("carol", sqlstore.RoleUser)
	dave, _ := s.user("dave", sqlstore.RoleUser)
	make := func(body map[string]any) map[string]any {
		t.Helper()
		carol.must("POST", "/api/token/", body)
		return carol.must("GET", "/api/token/", nil).items()[0].(map[string]any)
	}
	row := make(map[string]any{"name": "one", "remain_quota": 500})
	id := int64(row["id"].(float64))
	if row["remain_quota"] != 500.0 || row["expired_time"] != -1.0 || row["status"] != 1.0 {
		t.Errorf("made %v", row)
	}
	path := fmt.Sprintf("/api/token/%d", id)
	key := carol.must("POST", path+"/key", nil).data()["key"].(string)
	if len(key) != sqlstore.KeyLength || !strings.HasPrefix(row["key"].(string), key[:4]+"***") || strings.Contains(fmt.Sprint(row), key) {
		t.Errorf("key %q, shown as %v", key, row["key"])
	}
	if found, user := s.catalog.Token(key); found == nil || user == nil {
		t.Error("the node does not know the key yet")
	}
	// The limit is set to what is asked, whatever was used, and stays if it is not mentioned.
	for _, step := range []struct {
		body map[string]any
		want float64
	}{
		{map[string]any{"remain_quota": 800}, 800},
		{map[string]any{"remain_quota": 10}, 10},
		{map[string]any{"name": "two"}, 10},
		{map[string]any{"unlimited_quota": true}, 10},
		{map[string]any{"unlimited_quota": false, "remain_quota": 77}, 77},
	} {
		step.body["id"] = id
		got := carol.must("PUT", "/api/token/", step.body).data()
		stored := carol.must("GET", path, nil).data()
		if got["remain_quota"] != step.want || stored["remain_quota"] != step.want {
			t.Errorf("after %v the limit is %v, answered %v", step.body, stored["remain_quota"], got["remain_quota"])
		}
	}
	for _, body := range []map[string]any{
		{"name": strings.Repeat("x", 51)},
		{"name": "x", "remain_quota": -1},
		{"remain_quota": 9_000_000_000_000_000_000},
		{"allow_ips": "10.0.0.1\nnonsense"},
		{"group": "elsewhere"},
		{"expired_time": -2},
		{"auto_groups": "nonsense"},
		{"allow_ips": strings.Repeat("10.0.0.1\n", 40)},
	} {
		carol.refused(200, "", "POST", "/api/token/", body)
		body["id"] = id
		carol.refused(200, "", "PUT", "/api/token/", body)
	}
	carol.refused(200, "", "POST", "/api/token/", "{oops")
	row = make(map[string]any{"name": "three", "allow_ips": "10.0.0.1\n10.1.0.0/16", "auto_groups": []string{"default"}, "model_limits": "a,b", "model_limits_enabled": true})
	if fmt.Sprint(row["auto_groups"]) != "[default]" || row["model_limits"] != "a,b" || row["model_limits_enabled"] != true {
		t.Errorf("made %v", row)
	}
	if got := fmt.Sprint(s.root().must("GET", "/api/log/?type=3&username=carol", nil).items()); !strings.Contains(got, fmt.Sprintf("limit of key %d changed by 500", id)) {
		t.Errorf("the log says %s", got)
	}
	// Another user's key is as one that is not there.
	dave.refused(200, "", "GET", path, nil)
	dave.refused(200, "", "DELETE", path, nil)
	dave.refused(200, "", "POST", path+"/key", nil)
	dave.refused(200, "", "PUT", "/api/token/", map[string]any{"id": id, "name": "mine"})
	if n := dave.must("POST", "/api/token/batch", map[string]any{"ids": []int64{id}}).body["data"]; n != 0.0 {
		t.Errorf("another user deleted %v keys", n)
	}
	// Status.
	carol.must("PUT", "/api/token/?status_only=true", map[string]any{"id": id, "status": 2, "name": "ignored"})
	if got := carol.must("GET", path, nil).data(); got["status"] != 2.0 || got["name"] != "two" {
		t.Errorf("after status only: %v", got)
	}
	carol.must("PUT", "/api/token/", map[string]any{"id": id, "remain_quota": 0})
	carol.refused(200, "", "PUT", "/api/token/?status_only=true", map[string]any{"id": id, "status": 1}) // used up
	carol.refused(200, "", "PUT", "/api/token/?status_only=true", map[string]any{"id": id, "status": 7})
	carol.must("DELETE", path, nil)
	if found, _ := s.catalog.Token(key); found != nil {
		t.Error("the node still knows a deleted key")
	}
	s.root().must("PUT", "/api/option/", map[string]string{"key": "token_setting.max_user_tokens", "value": "1"})
	carol.refused(200, "", "POST", "/api/token/", map[string]any{"name": "one too many"})
}

func TestPaging(t *testing.T) {
	s := newSite(t)
	root := s.root()
	for i := range 13 {
		root.must("POST", "/api/token/", map[string]any{"name": fmt.Sprint("k", i)})
	}
	for _, c := range []struct {
		query            string
		page, size, rows float64
	}{
		{"", 1, 10, 10},
		{"?p=1&page_size=5", 1, 5, 5},
		{"?p=3&page_size=5", 3, 5, 3},
		{"?p=2&ps=12", 2, 12, 1},
		{"?p=2&size=12", 2, 12, 1},
		{"?p=0", 1, 10, 10},
		{"?p=-3", 1, 10, 10},
		{"?p=x&page_size=y", 1, 10, 10},
		{"?page_size=100000", 1, 100, 13},
		{"?page_size=-1", 1, 10, 10},
		{"?p=99999999999999", 1 << 30, 10, 0},
		{"?p=2000000000&page_size=100", 1 << 30, 100, 0},
	} {
		d := root.must("GET", "/api/token/"+c.query, nil).data()
		if d["page"] != c.page || d["page_size"] != c.size || float64(len(d["items"].([]any))) != c.rows || d["total"] != 13.0 {
			t.Errorf("%s: page %v, size %v, %d rows of %v", c.query, d["page"], d["page_size"], len(d["items"].([]any)), d["total"])
		}
	}
}

func TestBodiesAreBounded(t *testing.T) {
	s := newSite(t)
	big := `{"username":"` + strings.Repeat("x", maxAnonymousBody) + `"}`
	s.client().refused(http.StatusRequestEntityTooLarge, "", "POST", "/api/user/login", big)
	root := s.root()
	root.refused(200, "", "POST", "/api/channel/", big)
	root.refused(http.StatusRequestEntityTooLarge, "", "POST", "/api/channel/", `{"mode":"`+strings.Repeat("x", maxBody)+`"}`)
}

func TestOptions(t *testing.T) {
	s := newSite(t)
	root := s.root()
	set := func(key string, value any) reply {
		return root.call("PUT", "/api/option/", map[string]any{"key": key, "value": value})
	}
	before := s.catalog.Routes().Book.Version()
	for key, values := range map[string][]any{
		ledger.OptionModelRatio:     {"{oops", `{"a":-1}`, `{"a":"x"}`, "[]"},
		ledger.OptionGroupRatio:     {`{"default":-1}`},
		ledger.OptionQuotaPerUnit:   {"0", "-1", "x", ""},
		"RetryTimes":                {"-1", "x", "1000", 1.5},
		"AutomaticRetryStatusCodes": {"500,abc", "99-700"},
		"AutoGroups":                {"{}", "x"},
		"UserUsableGroups":          {"[]", "x"},
		"RegisterEnabled":           {"yes", 1},
		"USDExchangeRate":           {"x", "NaN", "-1"},
	} {
		for _, v := range values {
			if r := set(key, v); r.ok() {
				t.Errorf("%s = %v was taken", key, v)
			}
		}
	}
	for _, body := range []any{"{oops", map[string]any{"value": "1"}, map[string]any{"key": "x"}, map[string]any{"key": "x", "value": map[string]any{}}, map[string]any{"key": strings.Repeat("k", 192), "value": ""}} {
		root.refused(200, "", "PUT", "/api/option/", body)
	}
	stored, err := s.store.Options(t.Context())
	check(t, err)
	if len(stored) != 0 || s.catalog.Routes().Book.Version() != before {
		t.Errorf("refused values left %v, book %s", stored, s.catalog.Routes().Book.Version())
	}
	for key, value := range map[string]any{
		ledger.OptionModelRatio: `{"gpt-x": 2.5}`, "RetryTimes": 3, "RegisterEnabled": true, "SMTPToken": "hush", "AnyOther": "text",
		"AutomaticRetryStatusCodes": "500-503, 429", "SystemName": "Acme",
	} {
		if r := set(key, value); !r.ok() {
			t.Errorf("%s = %v: %s", key, value, r.raw)
		}
	}
	if routes := s.catalog.Routes(); routes.Book.Version() == before || routes.Settings.RetryTimes != 3 {
		t.Error("the node has not taken the options over")
	}
	listed := map[string]string{}
	for _, o := range root.must("GET", "/api/option/", nil).body["data"].([]any) {
		o := o.(map[string]any)
		listed[o["key"].(string)] = o["value"].(string)
	}
	if listed["AnyOther"] != "text" || listed["RetryTimes"] != "3" || listed["RegisterEnabled"] != "true" || listed[ledger.OptionModelRatio] != `{"gpt-x": 2.5}` ||
		listed[ledger.OptionCacheRatio] == "" || listed["QuotaForNewUser"] != "0" {
		t.Errorf("listed %v", listed)
	}
	if _, ok := listed["SMTPToken"]; ok {
		t.Error("a secret is listed")
	}
	if got := s.client().must("GET", "/api/status", nil).data()["system_name"]; got != "Acme" {
		t.Errorf("the status says %v", got)
	}
}

func TestChannels(t *testing.T) {
	s := newSite(t)
	root := s.root()
	create := func(mode string, c map[string]any) reply {
		if c["type"] == nil {
			c["type"] = 1
		}
		return root.call("POST", "/api/channel/", map[string]any{"mode": mode, "multi_key_mode": "polling", "channel": c})
	}
	newest := func() map[string]any {
		return root.must("GET", "/api/channel/?id_sort=true", nil).items()[0].(map[string]any)
	}
	for _, c := range []map[string]any{
		{"name": "x", "key": "k", "models": "m", "model_mapping": "{oops"},
		{"name": "x", "key": " ", "models": "m"},
		{"name": strings.Repeat("x", 192), "key": "k"},
		{"name": "x", "key": "k", "weight": -1},
		{"name": "x", "key": "k", "models": "m", "base_url": "upstream.example"},
		{"name": "x", "key": "k", "models": strings.Repeat("m", 256)},
	} {
		if r := create("single", c); r.ok() {
			t.Errorf("%v was taken", c)
		}
	}
	if r := create("each", map[string]any{"name": "x", "key": "k"}); r.ok() {
		t.Error("an unknown mode was taken")
	}
	if r := create("batch", map[string]any{"name": "many", "key": "k1\nk2\n\nk3", "models": "m1,m2", "group": "default,vip"}); !r.ok() {
		t.Fatal(r.raw)
	}
	d := root.must("GET", "/api/channel/search?keyword=many", nil).data()
	if d["total"] != 3.0 || len(s.catalog.Routes().Models([]string{"vip"})) != 2 {
		t.Errorf("a batch made %v", d)
	}
	if r := create("multi_to_single", map[string]any{"name": "multi", "key": "a\nb\nc", "models": "m3"}); !r.ok() {
		t.Fatal(r.raw)
	}
	multi := newest()
	id := int64(multi["id"].(float64))
	info := multi["channel_info"].(map[string]any)
	if info["is_multi_key"] != true || info["multi_key_size"] != 3.0 || info["multi_key_mode"] != "polling" || multi["key"] != "" {
		t.Errorf("several keys: %v", multi)
	}
	// Keys go one by one; the channel goes with the last.
	for i := range 3 {
		check(t, s.store.DisableChannel(t.Context(), id, i, "it failed"))
		check(t, s.catalog.Refresh(t.Context()))
		if got := len(s.catalog.Routes().Channel(id).Keys); got != 2-i {
			t.Errorf("after %d keys went %d are left", i+1, got)
		}
	}
	if s.catalog.Routes().Has("default", "m3") {
		t.Error("a channel without keys still serves")
	}
	shown := root.must("GET", fmt.Sprintf("/api/channel/%d", id), nil).data()
	if shown["status"] != 3.0 || !strings.Contains(shown["other_info"].(string), "status_reason") {
		t.Errorf("disabled: %v", shown)
	}
	root.must("POST", fmt.Sprintf("/api/channel/%d/status", id), map[string]int{"status": 1})
	if got := len(s.catalog.Routes().Channel(id).Keys); got != 3 {
		t.Errorf("enabled again with %d keys", got)
	}
	root.must("PUT", "/api/channel/", map[string]any{"id": id, "key": "d", "key_mode": "append"})
	if got := len(s.catalog.Routes().Channel(id).Keys); got != 4 {
		t.Errorf("after appending %d keys", got)
	}
	root.must("PUT", "/api/channel/", map[string]any{"id": id, "key": "only", "key_mode": "replace", "tag": "", "multi_key_mode": "random"})
	if c := s.catalog.Routes().Channel(id); len(c.Keys) != 1 || c.Keys[0].Value != "only" || c.Polling {
		t.Errorf("after replacing: %+v", c)
	}
	root.refused(200, "", "PUT", "/api/channel/", map[string]any{"id": id, "status": 9})
	root.refused(200, "", "PUT", "/api/channel/", map[string]any{"id": 999, "name": "x"})
	root.refused(200, "", "POST", "/api/channel/999/status", map[string]int{"status": 1})
	// The rest of the operations.
	copied := root.must("POST", fmt.Sprintf("/api/channel/copy/%d", id), nil).data()["id"]
	if newest()["name"] != "multi_copy" || newest()["id"] != copied {
		t.Errorf("the copy is %v", newest())
	}
	if n := root.must("POST", "/api/channel/status/batch", map[string]any{"ids": []int64{1, 2}, "status": 2}).body["data"]; n != 2.0 {
		t.Errorf("disabled %v", n)
	}
	if n := root.must("DELETE", "/api/channel/disabled", nil).body["data"]; n != 2.0 {
		t.Errorf("deleted %v disabled ones", n)
	}
	if n := root.must("POST", "/api/channel/batch", map[string]any{"ids": []int64{3, 4, 77}}).body["data"]; n != 2.0 {
		t.Errorf("deleted %v of a batch", n)
	}
	if s.catalog.Routes().Channel(id) != nil {
		t.Error("the node still knows a deleted channel")
	}
}

func TestRedeem(t *testing.T) {
	s := newSite(t)
	carol, _ := s.user("carol", sqlstore.RoleUser)
	root := s.root()
	codes := root.must("POST", "/api/redemption/", map[string]any{"name": "gift", "quota": 100, "count": 5, "expired_time": s.clock.now().Add(time.Hour).Unix()}).body["data"].([]any)
	redeem := func(code any) reply { return carol.call("POST", "/api/user/topup", map[string]any{"key": code}) }
	if r := redeem(codes[0]); !r.ok() || r.body["data"] != 100.0 {
		t.Errorf("redeemed: %s", r.raw)
	}
	if got := carol.must("GET", "/api/user/self", nil).data()["quota"]; got != 100.0 {
		t.Errorf("the quota is %v", got)
	}
	row := root.must("GET", "/api/redemption/", nil).items()[1].(map[string]any)
	root.must("PUT", "/api/redemption/?status_only=true", map[string]any{"id": row["id"], "status": 2})
	for _, code := range []any{codes[0], row["key"], "unknown", ""} {
		if r := redeem(code); r.ok() {
			t.Errorf("code %v was redeemed", code)
		}
	}
	// One code, many at once: it counts once.
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { s.root().call("POST", "/api/user/topup", map[string]any{"key": codes[1]}) })
	}
	wg.Wait()
	s.apply()
	if u, err := s.store.UserView(t.Context(), 1); err != nil || u.Quota != 100_000_100 {
		t.Errorf("root has %+v, %v", u, err)
	}
	s.clock.forward(2 * time.Hour)
	carol = s.login("carol", "password1")
	if r := redeem(codes[2]); r.ok() {
		t.Error("an expired code was redeemed")
	}
	if n := s.root().must("DELETE", "/api/redemption/invalid", nil).body["data"]; n != 5.0 {
		t.Errorf("deleted %v", n)
	}
}

// A key's holder sees the figures of the key, whatever its state.
func TestUsageOfAKey(t *testing.T) {
	w := newWorld(t)
	app := w.caller("key app")
	d := app.call("GET", "/api/usage/token/", nil).data()
	if d["total_used"] != 105.0 || d["total_available"] != 3_349_300.0 || d["total_granted"] != 3_349_405.0 {
		t.Errorf("usage %v", d)
	}
	billing := func(c *client, what string) map[string]any {
		return c.call("GET", "/v1/dashboard/billing/"+what, nil).body
	}
	if got := billing(app, "subscription"); got["hard_limit_usd"] != 6.69881 {
		t.Errorf("subscription %v", got)
	}
	if got := billing(app, "usage"); got["total_usage"] != 0.021 {
		t.Errorf("usage %v", got)
	}
	if got := billing(w.caller("key 'main'"), "subscription"); got["hard_limit_usd"] != 100_000_000.0 {
		t.Errorf("subscription of an unlimited key %v", got)
	}
	if r := w.caller("expired key").call("GET", "/dashboard/billing/usage", nil); r.status != http.StatusUnauthorized {
		t.Errorf("billing of an expired key: %d", r.status)
	}
	root := w.root()
	root.must("PUT", "/api/option/", map[string]string{"key": "general_setting.quota_display_type", "value": "TOKENS"})
	if got := billing(app, "subscription"); got["hard_limit_usd"] != 3_349_405.0 {
		t.Errorf("subscription in tokens %v", got)
	}
	root.must("PUT", "/api/option/", map[string]string{"key": "DisplayTokenStatEnabled", "value": "false"})
	if got := billing(app, "usage"); got["total_usage"] != 20_500.0 { // the user's: 205 units
		t.Errorf("usage of the user %v", got)
	}
	// Rows of the key alone, without what only administrators see.
	rows := app.call("GET", "/api/log/token", nil).body["data"].([]any)
	used := slices.DeleteFunc(rows, func(v any) bool { return v.(map[string]any)["type"] != 2.0 })
	if len(used) != 3 || strings.Contains(fmt.Sprint(rows), "admin_info") {
		t.Errorf("log of the key: %v", rows)
	}
	own := w.once("carol", "password1").must("GET", "/api/log/self?username=bob&type=2&page_size=100", nil)
	if own.data()["total"] != 4.0 || strings.Contains(own.raw, `"bob"`) {
		t.Errorf("own log: %s", own.raw)
	}
	if got := root.must("GET", "/api/log/stat?type=2&username=bob", nil).data()["quota"]; got != 7.0 {
		t.Errorf("stat of bob: %v", got)
	}
	if got := w.once("carol", "password1").must("GET", "/api/log/self/stat?username=bob", nil).data()["quota"]; got != 205.0 {
		t.Errorf("own stat: %v", got)
	}
	root.refused(200, "", "GET", "/api/log/?model_name=%25%25%25%25", nil)
}

func TestPricing(t *testing.T) {
	w := newWorld(t)
	root := w.once("root", "rootpass1")
	root.must("PUT", "/api/option/", map[string]string{"key": "GroupGroupRatio", "value": `{"svip": {"vip": 0.55}}`})
	root.must("PUT", "/api/option/", map[string]string{"key": "ModelPrice", "value": `{"legacy-4": 0.1}`})
	find := func(c *client, model string) map[string]any {
		for _, v := range c.call("GET", "/api/pricing", nil).body["data"].([]any) {
			if v := v.(map[string]any); v["model_name"] == model {
				return v
			}
		}
		return nil
	}
	if v := find(w.client(), "gpt-4o"); v["model_ratio"] != 1.25 || v["completion_ratio"] != 4.0 || v["quota_type"] != 0.0 || v["cache_ratio"] != 0.5 {
		t.Errorf("gpt-4o: %v", v)
	}
	if v := find(w.client(), "legacy-4"); v["model_price"] != 0.1 || v["quota_type"] != 1.0 {
		t.Errorf("legacy-4: %v", v)
	}
	carol := w.once("carol", "password1")
	groups := carol.must("GET", "/api/user/self/groups", nil).data()
	if groups["vip"].(map[string]any)["ratio"] != 0.55 || groups["auto"].(map[string]any)["ratio"] != "auto" {
		t.Errorf("groups: %v", groups)
	}
	if got := w.client().call("GET", "/api/user/groups", nil).data()["vip"].(map[string]any)["ratio"]; got != 0.8 {
		t.Errorf("for anybody vip costs %v", got)
	}
	if r := w.client().call("GET", "/api/ratio_config", nil); r.status != http.StatusForbidden {
		t.Errorf("the tables are shown: %d", r.status)
	}
	root.must("PUT", "/api/option/", map[string]string{"key": "ExposeRatioEnabled", "value": "true"})
	if d := w.client().must("GET", "/api/ratio_config", nil).data(); d["model_price"].(map[string]any)["legacy-4"] != 0.1 {
		t.Errorf("the tables: %v", d)
	}
	carol.refused(200, "", "GET", "/api/user/models?group=elsewhere", nil)
}

// A fault is told in the log, not to the client; the status goes on.
func TestFaultsAreNotTold(t *testing.T) {
	s := newSite(t)
	root := s.root()
	check(t, s.store.Close())
	r := root.call("GET", "/api/user/", nil)
	if r.status != http.StatusInternalServerError || strings.Contains(r.raw, "sql") {
		t.Errorf("without a database: %d %s", r.status, r.raw)
	}
	if r := s.client().call("GET", "/api/status", nil); !r.ok() {
		t.Errorf("the status without a database: %d %s", r.status, r.raw)
	}
}
