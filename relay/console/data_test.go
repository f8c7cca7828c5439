package console

import (
	"fmt"
	"testing"
)

// The dashboard's figures are those of the log: per hour, model and user, and of nobody else for a user.
func TestDashboard(t *testing.T) {
	w := newWorld(t)
	at := w.clock.now().Unix()
	span := fmt.Sprintf("?start_timestamp=%d&end_timestamp=%d", at-7200, at+7200)
	sums := func(c *client, path string) map[string][3]float64 {
		t.Helper()
		out := map[string][3]float64{}
		for _, one := range c.must("GET", path, nil).body["data"].([]any) {
			row := one.(map[string]any)
			key := fmt.Sprint(row["username"], "/", row["model_name"])
			if hour, ok := row["created_at"].(float64); ok && (int64(hour)%3600 != 0 || int64(hour) > at || int64(hour) < at-7200) {
				t.Errorf("%s: the hour %v of %d", path, hour, at)
			}
			s := out[key]
			out[key] = [3]float64{s[0] + row["token_used"].(float64), s[1] + row["count"].(float64), s[2] + row["quota"].(float64)}
		}
		return out
	}
	carol, root := w.once("carol", "password1"), w.once("root", "rootpass1")
	// carol: three requests of 19 tokens and 35 units, and one of no tokens and 100 units; bob: one of 7 units.
	for path, want := range map[string]map[string][3]float64{
		"/api/data/" + span:                     {"/gpt-4o": {57, 5, 212}},
		"/api/data/" + span + "&username=bob":   {"/gpt-4o": {0, 1, 7}},
		"/api/data/users" + span:                {"bob/": {0, 1, 7}, "carol/": {57, 4, 205}},
		"/api/data/flow" + span:                 {"bob/gpt-4o": {0, 1, 7}, "carol/gpt-4o": {57, 4, 205}},
		"/api/data/?end_timestamp=1000":         {},
		"/api/data/flow" + span + "&username=x": {},
	} {
		if got := sums(root, path); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	for _, path := range []string{"/api/data/self" + span + "&username=bob", "/api/data/flow/self" + span} {
		if got := sums(carol, path); fmt.Sprint(got) != fmt.Sprint(map[string][3]float64{"carol/gpt-4o": {57, 4, 205}}) {
			t.Errorf("%s: %v", path, got)
		}
	}
	for _, path := range []string{"/api/data/self", "/api/data/flow/self?start_timestamp=5", "/api/data/", "/api/data/users", "/api/data/flow"} {
		if r := carol.call("GET", path, nil); r.ok() {
			t.Errorf("%s is answered to a user: %s", path, r.raw)
		}
	}
	root.refused(200, "", "GET", "/api/data/?username=%25", nil)
}
