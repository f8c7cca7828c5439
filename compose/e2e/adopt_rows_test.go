package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// ownRows are tables with a row that the management API made on New API's database, and the row of New API's own making that is most
// like it.
func (a *adoption) ownRows() []likeness {
	t := a.site.t
	a.root.must(http.MethodPost, "/api/user/", map[string]any{"username": "newcomer", "password": "password3", "display_name": "Newcomer"}, nil)
	var aff string
	login(t, a.nodes[0].url(), "carol", "password1").must(http.MethodGet, "/api/user/aff", nil, &aff)
	stranger := &admin{t: t, url: a.nodes[0].url(), http: client}
	stranger.must(http.MethodPost, "/api/user/register", map[string]any{"username": "olga", "password": "password1", "aff_code": aff}, nil)
	u := &account{name: "newcomer", login: login(t, a.nodes[0].url(), "newcomer", "password3")}
	limited, _ := a.addToken(u, "app", tokenLimit{quota: 1000})
	unlimited, _ := a.addToken(u, "main", tokenLimit{unlimited: true})
	channel := a.addChannel("ours", "sk-ours", map[string]any{"weight": 1, "priority": 10, "auto_ban": 1, "tag": "east", "group": "default,vip,svip"})
	a.root.must(http.MethodPost, "/api/redemption/", map[string]any{"name": "ours", "quota": 5, "count": 1}, nil)
	a.root.must(http.MethodPut, "/api/option/", map[string]any{"key": "RetryTimes", "value": "2"}, nil)
	return []likeness{
		{"users", "username = 'newcomer'", "username = 'dave'"},
		{"users", "username = 'olga'", "username = 'nina'"},
		{"tokens", fmt.Sprint("id = ", limited), "id = 2"},
		{"tokens", fmt.Sprint("id = ", unlimited), "id = 1"},
		{"channels", fmt.Sprint("id = ", channel), "id = 2"},
		{"abilities", fmt.Sprint("channel_id = ", channel), "channel_id = 2"},
		{"redemptions", "name = 'ours'", "id = 3"},
		{"options", "`key` = 'RetryTimes'", "`key` = 'QuotaForInvitee'"},
	}
}

type likeness struct{ table, ours, theirs string }

// differ names the columns in which a row that Ledgerline made is of another kind than New API's.
func (a *adoption) differ(l likeness) (problems []string) {
	columns, ours := a.query("SELECT * FROM " + l.table + " WHERE " + l.ours + " LIMIT 1")
	_, theirs := a.query("SELECT * FROM " + l.table + " WHERE " + l.theirs + " LIMIT 1")
	if len(ours) != 1 || len(theirs) != 1 {
		return []string{fmt.Sprintf("%s: %d rows of ours, %d of theirs", l.table, len(ours), len(theirs))}
	}
	for i, name := range columns {
		// A user's setting is JSON, or empty, as New API left that of its own first user.
		if is, was := kind(ours[0][i]), kind(theirs[0][i]); is != was && (name != "setting" || is != "empty") {
			problems = append(problems, fmt.Sprintf("%s.%s of %s is %#v, New API wrote %#v", l.table, name, l.ours, ours[0][i], theirs[0][i]))
		}
	}
	return problems
}

// change is a change that the management API makes to a row of New API's, and the columns that it may touch.
type change struct {
	table, row, columns string
	method, path        string
	body                map[string]any
}

func (a *adoption) edits() []change {
	channel := func(more map[string]any) map[string]any {
		body := map[string]any{"id": 3, "name": "acme-renamed"}
		for k, v := range more {
			body[k] = v
		}
		return body
	}
	return []change{
		{"users", "id = 6", "remark", http.MethodPut, "/api/user/", map[string]any{"id": 6, "username": "erin", "display_name": "Erin", "group": "vip", "remark": "changed"}},
		{"users", "id = 6", "status auth_version", http.MethodPost, "/api/user/manage", map[string]any{"id": 6, "action": "disable"}},
		{"users", "id = 6", "quota", http.MethodPost, "/api/user/manage", map[string]any{"id": 6, "action": "add_quota", "mode": "add", "value": 5}},
		{"tokens", "id = 2", "status", http.MethodPut, "/api/token/?status_only=true", map[string]any{"id": 2, "status": 2}},
		{"tokens", "id = 1", "name", http.MethodPut, "/api/token/", map[string]any{
			"id": 1, "name": "renamed", "expired_time": -1, "unlimited_quota": true, "model_limits_enabled": false, "model_limits": "", "allow_ips": "", "group": "",
		}},
		{"channels", "id = 3", "name", http.MethodPut, "/api/channel/", channel(nil)},
		{"channels", "id = 3", "priority", http.MethodPut, "/api/channel/", channel(map[string]any{"priority": 3})},
		{"channels", "id = 3", "status other_info", http.MethodPost, "/api/channel/3/status", map[string]any{"status": 2}},
		{"redemptions", "id = 4", "name", http.MethodPut, "/api/redemption/", map[string]any{"id": 4, "name": "summer", "quota": 500000, "expired_time": 0}},
		{"redemptions", "id = 4", "status", http.MethodPut, "/api/redemption/?status_only=true", map[string]any{"id": 4, "status": 2}},
		{"top_ups", "id = 3", "status complete_time", http.MethodPost, "/api/user/topup/complete", map[string]any{"trade_no": "USR7NO8binkI1795272440"}},
	}
}

// edited makes a change and names the columns that changed and should not have.
func (a *adoption) edited(c change) (problems []string) {
	columns, before := a.query("SELECT * FROM " + c.table + " WHERE " + c.row)
	a.root.must(c.method, c.path, c.body, nil)
	_, after := a.query("SELECT * FROM " + c.table + " WHERE " + c.row)
	changed := false
	for i, name := range columns {
		if before[0][i] == after[0][i] {
			continue
		}
		changed = true
		if !slices.Contains(strings.Fields(c.columns), name) {
			problems = append(problems, fmt.Sprintf("%s %s %v: %s.%s was %#v, is %#v", c.method, c.path, c.body, c.table, name, before[0][i], after[0][i]))
		}
	}
	if !changed {
		problems = append(problems, fmt.Sprintf("%s %s %v changed nothing", c.method, c.path, c.body))
	}
	return problems
}

// kind is what a reader of a cell depends on.
func kind(cell any) string {
	text, ok := cell.(string)
	switch {
	case !ok:
		return "NULL"
	case text == "":
		return "empty"
	case strings.HasPrefix(text, "{"):
		return "a JSON object"
	case strings.Trim(text, "-0123456789") == "":
		return "a number"
	case strings.HasPrefix(text, "$2a$10$"):
		return "a bcrypt hash"
	}
	return "text"
}

// What the management API writes on a database of New API's is what New API would have written.
func TestOurRowsAreNewAPIs(t *testing.T) {
	t.Parallel()
	a := adopt(t, "recorded", false)
	n := a.nodes[0]
	n.start()
	n.ready()
	a.root = login(t, n.url(), "root", "mockpass-1")
	var problems []string
	for _, l := range a.ownRows() {
		problems = append(problems, a.differ(l)...)
	}
	for _, e := range a.edits() {
		problems = append(problems, a.edited(e)...)
	}
	slices.Sort(problems)
	for _, p := range problems {
		t.Error(p)
	}
}
