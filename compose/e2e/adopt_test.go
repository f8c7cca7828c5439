package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// adoption is a node on a database that New API made.
type adoption struct {
	*site
	*newAPIDatabase
	facts  *newAPIFacts
	made   map[string]string // how the tables were made, before anything of ours ran
	before contents
}

func adopt(t *testing.T, version string, sqlite bool) *adoption {
	t.Helper()
	s := newSite(t)
	a := &adoption{site: s, newAPIDatabase: loadDump(t, version, s.upstream.URL), facts: readFacts(t)}
	if sqlite {
		a.newAPIDatabase = a.toSQLite()
	}
	maps.Copy(s.env, a.newAPIDatabase.env)
	s.addNode(nil)
	a.made = a.tables()
	a.before = a.contents(a.made)
	return a
}

// untouched requires that New API's tables are as they were, and their rows but for the cells that may have changed.
func (a *adoption) untouched(what string, may map[string][2]any) {
	a.site.t.Helper()
	now := a.tables()
	for name, made := range a.made {
		if now[name] != made {
			a.site.t.Errorf("%s: %s was altered (-before +after):\n%s", what, name, cmp.Diff(made, now[name]))
		}
	}
	for name, made := range now { // on SQLite an index is an object of its own
		for table := range a.made {
			if a.made[name] == "" && strings.Contains(made, "INDEX") && strings.Contains(made, "ON `"+table+"`") {
				a.site.t.Errorf("%s: %s was made on %s: %s", what, name, table, made)
			}
		}
	}
	if may == nil {
		may = map[string][2]any{}
	}
	if diff := cmp.Diff(may, a.before.changes(a.contents(a.made))); diff != "" {
		a.site.t.Errorf("%s: cells (-expected +changed):\n%s", what, diff)
	}
}

func (a *adoption) digest() string {
	a.site.t.Helper()
	if a.file == "" {
		return ""
	}
	text, err := os.ReadFile(a.file)
	if err != nil {
		a.site.t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// key returns an existing key as an account of the tests'.
func (a *adoption) key(token int64) *account {
	a.site.t.Helper()
	u := &account{token: token}
	for _, k := range a.facts.Tokens {
		if k.ID == token {
			u.user = k.UserID
		}
	}
	for _, f := range a.facts.Users {
		if f.ID == u.user {
			u.name = f.Username
		}
	}
	u.key = "sk-" + strings.TrimSpace(fmt.Sprint(a.before["tokens"][strconv.FormatInt(token, 10)]["key"]))
	return u
}

// TestNewAPIDatabases starts on what each version, engine and operator of New API has: nothing of it is altered, keys, channels, groups,
// options and codes count as they did, traffic changes the columns that New API reads and nothing else, all books agree, and
// what New API needs to be started again is there.
func TestNewAPIDatabases(t *testing.T) {
	if testing.Short() {
		t.Skip("needs MySQL")
	}
	for version := range newAPIVersions {
		t.Run(version, func(t *testing.T) { adopt(t, version, false).switchOver() })
	}
	for _, version := range []string{"recorded", "v0.6.3", "odd rows"} {
		t.Run("SQLite, "+version, func(t *testing.T) { adopt(t, version, true).switchOver() })
	}
}

func (a *adoption) switchOver() {
	t, n := a.site.t, a.nodes[0]
	digest := a.digest()
	a.planned()
	if a.digest() != digest {
		t.Error("import -plan changed the file")
	}
	a.untouched("import -plan", nil)
	if now := slices.Sorted(maps.Keys(a.tables())); !slices.Equal(now, slices.Sorted(maps.Keys(a.made))) {
		t.Errorf("import -plan made tables: %v", now)
	}

	n.start()
	n.ready()
	a.opened()
	if code := n.terminate(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	a.untouched("a start and a stop", nil)

	n.start()
	n.ready()
	a.keysCount()
	paid := a.traffic()
	a.verified()
	if code := n.terminate(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	a.untouched("traffic", paid)

	n.start()
	n.ready()
	a.agreesWithFacts(paid)
	if a.file != "" {
		a.copiesLogs()
	}
	a.wayBackStaysOpen()
	a.verified()
	if code := n.terminate(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	a.thereAndBack()
}

// thereAndBack is New API at work in between, as its tables show it: requests, a new user with a key, a log row. The next start adopts it.
func (a *adoption) thereAndBack() {
	t, n := a.site.t, a.nodes[0]
	t.Helper()
	a.exec("UPDATE users SET quota = quota - 1234, used_quota = used_quota + 1234, request_count = request_count + 5 WHERE id = 2")
	a.exec("UPDATE tokens SET remain_quota = remain_quota - 1234, used_quota = used_quota + 1234 WHERE id = 4")
	a.exec("UPDATE channels SET used_quota = used_quota + 1234 WHERE id = 1")
	a.exec("INSERT INTO logs (user_id, created_at, type, username, quota, token_id, channel_id, model_name) VALUES (2, 1795300000, 2, 'alice', 1234, 4, 1, 'of New API')")
	a.exec("INSERT INTO users (id, username, password, quota, used_quota, request_count, status, role, `group`, aff_code) VALUES (9001, 'meanwhile', '', 500000, 7, 1, 1, 1, 'default', 'zzzz')")
	key := strings.Repeat("M", 48)
	a.exec("INSERT INTO tokens (id, user_id, `key`, status, name, expired_time, remain_quota, unlimited_quota, used_quota) VALUES (9001, 9001, '" + key + "', 1, 'meanwhile', -1, 0, 1, 7)")
	made, before := a.tables(), a.contents(a.tables())
	n.start()
	n.ready()
	eventually(t, "what New API changed is adopted", func() error {
		if k := a.number("SELECT COUNT(*) FROM ledger_accounts WHERE pending_adopt <> 0") + a.number("SELECT COUNT(*) FROM ledger_outbox WHERE state <> 'applied'"); k != 0 {
			return fmt.Errorf("%d rows wait", k)
		}
		got := a.number("SELECT a.granted - a.charged FROM ledger_accounts a WHERE a.kind = 'user' AND a.id = 2 AND a.slot = 0")
		if want := a.number("SELECT quota FROM users WHERE id = 2"); got != want {
			return fmt.Errorf("the account of user 2 has %d, the column %d", got, want)
		}
		return nil
	})
	if diff := cmp.Diff(map[string][2]any{}, before.changes(a.contents(made))); diff != "" {
		t.Errorf("the start after New API was at work changed (-want +got):\n%s", diff)
	}
	if status, body, err := getWith(n.url()+"/v1/models", "Bearer sk-"+key); err != nil || status != http.StatusOK {
		t.Errorf("a key that New API made: status %d, %v: %.200s", status, err, body)
	}
	a.verified()
	a.root = login(t, n.url(), "root", "mockpass-1")
	var st struct{ Quota int64 }
	if a.file != "" {
		a.copiesLogs()
	}
	a.root.must(http.MethodGet, "/api/log/stat?type=2&model_name=of%20New%20API", nil, &st)
	if st.Quota != 1234 {
		t.Errorf("the log shows %d of what New API billed meanwhile, want 1234", st.Quota)
	}
	n.terminate()
}

// planned checks what import -plan says.
func (a *adoption) planned() {
	t := a.site.t
	t.Helper()
	got := a.run("import", "-plan", "-json")
	if got.code != 0 {
		t.Fatalf("import -plan: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	var p struct {
		State   string
		Opening struct{ Users, Tokens, Channels int64 } `json:"opening_balances"`
		Logs    struct {
			Rows int64
			Read bool `json:"read_in_place"`
		}
		Findings []struct {
			Code  string
			Count int
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &p); err != nil {
		t.Fatalf("import -plan: %v in %s", err, got.stdout)
	}
	if p.State != "new-api" || p.Opening.Users != a.number("SELECT COUNT(*) FROM users") || p.Opening.Tokens != a.number("SELECT COUNT(*) FROM tokens WHERE user_id > 0") ||
		p.Logs.Rows != a.number("SELECT COUNT(*) FROM logs") || p.Logs.Read != (a.file == "") {
		t.Errorf("import -plan: %+v", p)
	}
	unsupported := 0
	for _, f := range p.Findings {
		if f.Code == "channel_type_unsupported" {
			unsupported += f.Count
		}
	}
	t.Logf("import -plan: %d channels of unsupported types, %d findings", unsupported, len(p.Findings))
	if table := a.run("import", "-plan"); table.code != 0 || !strings.Contains(table.stdout, "What would happen:") {
		t.Errorf("import -plan: exit code %d\n%s%s", table.code, table.stdout, table.stderr)
	}
}

// opened checks that there is one opening balance for every user and key, and that it is what the columns say.
func (a *adoption) opened() {
	t := a.site.t
	t.Helper()
	eventually(t, "the opening balances are applied", func() error {
		if n := a.number("SELECT COUNT(*) FROM ledger_outbox WHERE kind = 'account.opened' AND state <> 'applied'"); n != 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
	users, tokens := a.number("SELECT COUNT(*) FROM users"), a.number("SELECT COUNT(*) FROM tokens WHERE user_id > 0")
	if n := a.number("SELECT COUNT(*) FROM ledger_outbox WHERE kind = 'account.opened'"); n != users+tokens {
		t.Errorf("%d opening balances, want %d + %d", n, users, tokens)
	}
	if n := a.number("SELECT COUNT(*) FROM ledger_accounts WHERE pending_adopt <> 0"); n != 0 {
		t.Errorf("%d accounts still have something pending", n)
	}
	for _, q := range []string{
		"SELECT COUNT(*) FROM users u JOIN ledger_accounts a ON a.kind = 'user' AND a.id = u.id WHERE a.granted - a.charged <> COALESCE(u.quota, 0) OR a.charged <> COALESCE(u.used_quota, 0) OR a.requests <> COALESCE(u.request_count, 0)",
		"SELECT COUNT(*) FROM tokens k JOIN ledger_accounts a ON a.kind = 'token' AND a.id = k.id WHERE a.granted - a.charged <> COALESCE(k.remain_quota, 0) OR a.charged <> COALESCE(k.used_quota, 0)",
		"SELECT COUNT(*) FROM channels c LEFT JOIN ledger_accounts a ON a.kind = 'channel' AND a.id = c.id AND a.slot = -1 WHERE COALESCE(a.charged, -1) <> COALESCE(c.used_quota, 0)",
	} {
		if n := a.number(q); n != 0 {
			t.Errorf("%d rows do not agree: %s", n, q)
		}
	}
}

// keysCount asks for the models with every key: those that New API would serve are served, the others refused.
func (a *adoption) keysCount() {
	t := a.site.t
	t.Helper()
	users := map[int64]bool{}
	for _, u := range a.facts.Users {
		users[u.ID] = u.Status == 1 && !u.Deleted
	}
	now := time.Now().Unix()
	for _, k := range a.facts.Tokens {
		alive := users[k.UserID] && k.Status == 1 && !k.Deleted && (k.ExpiredTime == -1 || k.ExpiredTime > now) && (k.Unlimited || k.RemainQuota > 0) && !strings.Contains(k.AllowIPs, "192.0.2.7")
		status, body, err := getWith(a.nodes[0].url()+"/v1/models", "Bearer "+a.key(k.ID).key)
		if err != nil {
			t.Fatal(err)
		}
		if served := status == http.StatusOK; served != alive {
			t.Errorf("key %d (%+v): status %d, want served %v: %.200s", k.ID, k, status, alive, body)
		}
		if alive && k.ModelLimits != "" && strings.Contains(body, "gpt-3.5-turbo") {
			t.Errorf("key %d is limited to %s and shown %s", k.ID, k.ModelLimits, body)
		}
	}
}

// traffic sends requests with existing keys and returns which cells they must have changed.
func (a *adoption) traffic() map[string][2]any {
	t := a.site.t
	t.Helper()
	c := newClients(t)
	keys := []int64{3, 4, 8, 12} // unlimited and limited, of groups default, svip and vip
	var accounts []*account
	for _, k := range keys {
		accounts = append(accounts, a.key(k))
	}
	began := time.Now().Unix()
	a.play(c, 4, traceOrders(t, 60, accounts))
	answered := c.answered()
	if len(answered) != 60 {
		t.Fatalf("%d of 60 requests were answered: %+v", len(answered), c.all)
	}
	type sum struct{ quota, requests int64 }
	paid := map[string]sum{}
	ask := a.usage()
	eventually(t, "the usage log has every request", func() error {
		_, rows := ask.query("SELECT request_id, user_id, token_id, channel_id, quota FROM ledger_usage WHERE kind = 'usage.settled'")
		if len(rows) != len(answered) {
			return fmt.Errorf("%d of %d", len(rows), len(answered))
		}
		served := map[string]servedRequest{}
		for _, r := range a.upstream.Records() {
			served[r.Request] = servedRequest{prompt: r.Prompt, completion: r.Completion}
		}
		clear(paid)
		for _, r := range rows {
			quota, err := strconv.ParseInt(r[4].(string), 10, 64)
			if err != nil {
				return err
			}
			if up := served[r[0].(string)]; r[1] == "2" && quota != price(up.prompt, up.completion) {
				return fmt.Errorf("request %s of group default is billed %d, want %d", r[0], quota, price(up.prompt, up.completion))
			}
			for i, table := range []string{"users", "tokens", "channels"} {
				key := table + "/" + r[i+1].(string)
				paid[key] = sum{paid[key].quota + quota, paid[key].requests + 1}
			}
		}
		return nil
	})
	may := map[string][2]any{}
	for key, p := range paid {
		table, id, _ := strings.Cut(key, "/")
		row := a.before[table][id]
		move := func(column string, by int64) {
			was, err := strconv.ParseInt(fmt.Sprint(row[column]), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			may[key+"/"+column] = [2]any{row[column], strconv.FormatInt(was+by, 10)}
		}
		move("used_quota", p.quota)
		switch table {
		case "users":
			move("quota", -p.quota)
			move("request_count", p.requests)
		case "tokens":
			move("remain_quota", -p.quota)
		}
	}
	eventually(t, "the columns are written", func() error {
		for cell, v := range may {
			part := strings.Split(cell, "/")
			if now := a.number("SELECT " + part[2] + " FROM " + part[0] + " WHERE id = " + part[1]); fmt.Sprint(now) != v[1] {
				return fmt.Errorf("%s is %d, want %v", cell, now, v[1])
			}
		}
		return nil
	})
	for _, k := range keys { // the time of the last use is within the test
		at := a.number("SELECT accessed_time FROM tokens WHERE id = ?", k)
		if at < began || at > time.Now().Unix() {
			t.Errorf("key %d was last used at %d, want %d or later", k, at, began)
		}
		id := strconv.FormatInt(k, 10)
		may["tokens/"+id+"/accessed_time"] = [2]any{a.before["tokens"][id]["accessed_time"], strconv.FormatInt(at, 10)}
	}
	return may
}
