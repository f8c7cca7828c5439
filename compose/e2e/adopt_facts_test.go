package e2e

import (
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// usage is the usage log's database: the same, or beside a SQLite file one of its own.
func (a *adoption) usage() *newAPIDatabase {
	a.site.t.Helper()
	if a.file == "" {
		return a.newAPIDatabase
	}
	file := filepath.Join(a.nodes[0].dir, "data", "usage.db")
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: file, RawQuery: "_pragma=busy_timeout(30000)"}).String())
	if err != nil {
		a.site.t.Fatal(err)
	}
	a.site.t.Cleanup(func() { _ = db.Close() })
	return &newAPIDatabase{t: a.site.t, db: db, file: file}
}

// moved returns by how much a cell was moved.
func moved(cells map[string][2]any, cell string) int64 {
	v, ok := cells[cell]
	if !ok {
		return 0
	}
	was, _ := strconv.ParseInt(fmt.Sprint(v[0]), 10, 64)
	is, _ := strconv.ParseInt(fmt.Sprint(v[1]), 10, 64)
	return is - was
}

// agreesWithFacts asks the management API for everything that the facts say.
func (a *adoption) agreesWithFacts(paid map[string][2]any) {
	t := a.site.t
	t.Helper()
	root := login(t, a.nodes[0].url(), "root", "mockpass-1")
	a.root = root
	for _, u := range a.facts.Users {
		if u.Deleted {
			continue
		}
		cell := fmt.Sprintf("users/%d/", u.ID)
		want := map[string]any{
			"id": float64(u.ID), "username": u.Username, "role": float64(u.Role), "status": float64(u.Status), "group": u.Group, "quota": float64(u.Quota + moved(paid, cell+"quota")),
			"used_quota": float64(u.UsedQuota + moved(paid, cell+"used_quota")), "request_count": float64(u.RequestCount + moved(paid, cell+"request_count")),
		}
		a.shows(root, fmt.Sprintf("/api/user/%d", u.ID), want)
	}
	for _, c := range a.facts.Channels {
		a.shows(root, fmt.Sprintf("/api/channel/%d", c.ID), map[string]any{
			"id": float64(c.ID), "name": c.Name, "type": float64(c.Type), "status": float64(c.Status), "priority": float64(c.Priority), "weight": float64(c.Weight),
			"group": strings.Join(c.Groups, ","), "used_quota": float64(c.UsedQuota + moved(paid, fmt.Sprintf("channels/%d/used_quota", c.ID))),
		})
	}
	for _, r := range a.facts.Redemptions {
		if !r.Deleted {
			a.shows(root, fmt.Sprintf("/api/redemption/%d", r.ID), map[string]any{
				"id": float64(r.ID), "name": r.Name, "status": float64(r.Status), "quota": float64(r.Quota), "used_user_id": float64(r.UsedUserID),
			})
		}
	}
	var orders page[struct {
		ID     int64
		Status string
	}]
	root.must(http.MethodGet, "/api/user/topup?p=1&page_size=100", nil, &orders)
	states := map[int64]string{}
	for _, o := range orders.Items {
		states[o.ID] = o.Status
	}
	for _, o := range a.facts.TopUps {
		if states[o.ID] != o.Status {
			t.Errorf("order %d is %q, want %q", o.ID, states[o.ID], o.Status)
		}
	}
	var options []struct{ Key, Value string }
	root.must(http.MethodGet, "/api/option/", nil, &options)
	shown := map[string]string{}
	for _, o := range options {
		shown[o.Key] = o.Value
	}
	_, rows := a.query("SELECT `key`, `value` FROM options")
	for _, r := range rows {
		key := r[0].(string)
		if value, ok := r[1].(string); ok && shown[key] != value && !strings.HasSuffix(strings.ToLower(key), "key") {
			t.Errorf("option %s is shown as %q, stored as %q", key, shown[key], value)
		}
	}
	if a.file == "" {
		a.logsAgree(paid)
	}
}

func (a *adoption) shows(as *admin, path string, want map[string]any) {
	a.site.t.Helper()
	var all map[string]any
	as.must(http.MethodGet, path, nil, &all)
	got := map[string]any{}
	for k := range want {
		got[k] = all[k]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		a.site.t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// logsAgree compares the listing and its sums with the facts: old rows and new ones, each once.
func (a *adoption) logsAgree(paid map[string][2]any) {
	t := a.site.t
	t.Helper()
	var quota, requests int64
	for cell := range paid {
		if strings.HasPrefix(cell, "users/") && strings.HasSuffix(cell, "/used_quota") {
			quota += moved(paid, cell)
		}
		if strings.HasSuffix(cell, "/request_count") {
			requests += moved(paid, cell)
		}
	}
	stat := func(query string) (n int64) {
		t.Helper()
		var st struct{ Quota int64 }
		a.root.must(http.MethodGet, "/api/log/stat?type=2&"+query, nil, &st)
		return st.Quota
	}
	total := func(query string) int {
		t.Helper()
		var list page[struct{ ID int64 }]
		a.root.must(http.MethodGet, "/api/log/?p=1&page_size=10&"+query, nil, &list)
		return list.Total
	}
	ours := map[int]int64{2: requests} // consume
	for _, f := range a.facts.Logs.ByType {
		if f.Type == 3 || f.Type == 4 || f.Type == 7 {
			continue // of these our own events of opening, logins and changes are listed, too
		}
		if got := total("type=" + strconv.Itoa(f.Type)); got != f.Count+int(ours[f.Type]) {
			t.Errorf("%d rows of type %d are listed, want %d + %d", got, f.Type, f.Count, ours[f.Type])
		}
		if f.Type == 2 {
			if got := stat(""); got != f.Quota+quota {
				t.Errorf("the sum is %d, want %d + %d", got, f.Quota, quota)
			}
		}
	}
	names := map[int64]string{}
	for _, u := range a.facts.Users {
		names[u.ID] = u.Username
	}
	for _, f := range a.facts.Logs.ByUser {
		if got, want := stat("username="+names[f.UserID]), f.Quota+moved(paid, fmt.Sprintf("users/%d/used_quota", f.UserID)); got != want {
			t.Errorf("user %d used %d by the logs, want %d", f.UserID, got, want)
		}
	}
	for _, f := range a.facts.Logs.ByChannel {
		if got, want := stat("channel="+strconv.FormatInt(f.ChannelID, 10)), f.Quota+moved(paid, fmt.Sprintf("channels/%d/used_quota", f.ChannelID)); got != want {
			t.Errorf("channel %d used %d by the logs, want %d", f.ChannelID, got, want)
		}
	}
	for _, f := range a.facts.Logs.ByModel {
		want := f.Quota
		if f.ModelName == model {
			want += quota
		}
		if got := stat("model_name=" + url.QueryEscape(f.ModelName)); got != want {
			t.Errorf("model %s used %d by the logs, want %d", f.ModelName, got, want)
		}
	}
}

// copiesLogs runs import -logs, killed on its way, until it has come to its end, and once more.
func (a *adoption) copiesLogs() {
	t := a.site.t
	t.Helper()
	rows := a.number("SELECT COUNT(*) FROM logs")
	env := a.environment(nil)
	env["DATA_DIR"], env["JOURNAL_DIR"] = filepath.Join(a.nodes[0].dir, "data"), filepath.Join(a.nodes[0].dir, "journal")
	for range 3 {
		p := start(t, command{args: []string{"import", "-logs"}, env: env})
		p.kill()
	}
	for range 2 {
		got := a.run("import", "-logs")
		if want := fmt.Sprintf("the usage log has %d copied rows", rows); got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Fatalf("import -logs: exit code %d\n%s%s; want %q", got.code, got.stdout, got.stderr, want)
		}
	}
}

// wayBackStaysOpen changes what the management API can, and requires that New API could use it: passwords bcrypt, keys in plain text.
func (a *adoption) wayBackStaysOpen() {
	t := a.site.t
	t.Helper()
	stored := func(user string) string {
		_, rows := a.query("SELECT password FROM users WHERE username = ? ORDER BY id", user)
		return fmt.Sprint(rows[0][0])
	}
	before := stored("bob")
	bob := login(t, a.nodes[0].url(), "bob", "password1")
	if stored("bob") != before {
		t.Error("a login changed the stored password")
	}
	bob.must(http.MethodPut, "/api/user/self", map[string]any{"username": "bob", "display_name": "bob", "original_password": "password1", "password": "password2"}, nil)
	a.root.must(http.MethodPost, "/api/user/", map[string]any{"username": "newcomer", "password": "password3", "display_name": "newcomer"}, nil)
	for user, password := range map[string]string{"bob": "password2", "newcomer": "password3"} {
		if hash := stored(user); !strings.HasPrefix(hash, "$2a$10$") {
			t.Errorf("%s's password is stored as %q, New API wants bcrypt", user, hash)
		}
		login(t, a.nodes[0].url(), user, password)
	}
	u := &account{name: "newcomer", login: login(t, a.nodes[0].url(), "newcomer", "password3")}
	id, key := a.addToken(u, "first", tokenLimit{quota: 1000})
	if _, rows := a.query("SELECT `key`, remain_quota FROM tokens WHERE id = ?", id); "sk-"+strings.TrimSpace(fmt.Sprint(rows[0][0])) != key {
		t.Errorf("a new key is stored as %v", rows[0])
	}
	dave, before2 := login(t, a.nodes[0].url(), "dave", "password1"), int64(0)
	before2 = a.number("SELECT quota FROM users WHERE username = 'dave'")
	_, code := a.query("SELECT `key` FROM redemptions WHERE id = 9")
	dave.must(http.MethodPost, "/api/user/topup", map[string]any{"key": strings.TrimSpace(fmt.Sprint(code[0][0]))}, nil)
	eventually(t, "the code's quota is in the column", func() error {
		if now := a.number("SELECT quota FROM users WHERE username = 'dave'"); now != before2+777 {
			return fmt.Errorf("%d, want %d + 777", now, before2)
		}
		return nil
	})
	if n := a.number("SELECT COUNT(*) FROM redemptions WHERE id = 9 AND status = 3 AND used_user_id = 5"); n != 1 {
		t.Error("the code is not marked as used")
	}
}
