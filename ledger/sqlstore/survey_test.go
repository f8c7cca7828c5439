package sqlstore

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"ledgerline/ledger/ledgertest"
)

// TestSurveyTellsWhatThereIs: every number of the survey is what the recorded facts say, and nothing is written.
func TestSurveyTellsWhatThereIs(t *testing.T) {
	_, dsn := newAPIDatabase(t)
	s := opened(t, Config{DSN: dsn, ReadOnly: true})
	var want struct {
		Users []struct {
			Role, Status int
			Quota        int64
			Deleted      bool
		}
		Tokens []struct {
			Status    int
			Unlimited bool
			Deleted   bool
		}
		Channels []struct {
			ID, Type, Status, Models, Keys int
			Name                           string
			Groups                         []string
		}
		Redemptions []struct {
			Status  int
			Quota   int64
			Deleted bool
		}
		TopUps    []struct{ Status string } `json:"top_ups"`
		Abilities int
		Options   map[string]string
	}
	raw := map[string]json.RawMessage{}
	text := value[[]byte](t)(os.ReadFile("testdata/newapi.facts.json"))
	must(t, json.Unmarshal(text, &raw))
	delete(raw, "options")
	must(t, json.Unmarshal(value[[]byte](t)(json.Marshal(raw)), &want))

	got := value[*Survey](t)(s.Survey(t.Context(), nil))
	if got.State != StateNewAPI || got.Engine != "mysql" {
		t.Errorf("state %s, engine %s", got.State, got.Engine)
	}
	var users UserSurvey
	for _, u := range want.Users {
		users.Total++
		if u.Deleted {
			users.Deleted++
			continue
		}
		users.Quota += u.Quota
		if u.Status != 1 {
			users.Disabled++
		}
		if u.Role >= 10 {
			users.Admins++
		}
	}
	diff(t, "users", got.Users, users)
	var tokens TokenSurvey
	for _, k := range want.Tokens {
		tokens.Total++
		switch {
		case k.Deleted:
			tokens.Deleted++
		case k.Status == TokenDisabled:
			tokens.Disabled++
		}
		if k.Unlimited && !k.Deleted {
			tokens.Unlimited++
		}
	}
	diff(t, "tokens", got.Tokens, tokens)
	var channels []ChannelSurvey
	for _, c := range want.Channels {
		channels = append(channels, ChannelSurvey{int64(c.ID), c.Type, c.Name, c.Status, c.Keys, c.Models, c.Groups})
	}
	diff(t, "channels", got.Channels, channels)
	var codes RedemptionSurvey
	for _, r := range want.Redemptions {
		switch {
		case r.Deleted:
		case r.Status == 1:
			codes.Unused, codes.Quota = codes.Unused+1, codes.Quota+r.Quota
		case r.Status == 2:
			codes.Disabled++
		case r.Status == 3:
			codes.Used++
		}
	}
	diff(t, "redemption codes", got.Redemptions, codes)
	orders := map[string]int{}
	for _, o := range want.TopUps {
		orders[o.Status]++
	}
	diff(t, "orders", got.TopUps, orders)
	diff(t, "opening balances", got.Opening, OpenResult{Users: len(want.Users), Tokens: len(want.Tokens), Channels: len(want.Channels)})
	for _, f := range got.Findings {
		if slices.Contains([]string{"abilities_stray", "abilities_missing", "token_orphan", "channel_malformed_json", "columns_lacking"}, f.Code) {
			t.Errorf("unexpected finding: %+v", f)
		}
	}
	if _, err := s.write.ExecContext(t.Context(), "CREATE TABLE ledger_x (a int)"); err == nil {
		t.Error("a store that was opened to be read only can write")
	}
}

// TestSurveyFindsOddRows: each kind of odd row is found, with an example.
func TestSurveyFindsOddRows(t *testing.T) {
	odd := []string{
		"INSERT INTO users (id, username, password, quota, status, role, aff_code) VALUES (1, 'a', '', -5, 1, 1, 'a'), (2, NULL, '', 7, NULL, NULL, 'b')",
		"INSERT INTO users (id, username, password, quota, deleted_at, aff_code) VALUES (3, 'gone', '', 9, '2025-01-02 03:04:05', 'c')",
		"INSERT INTO tokens (id, user_id, `key`, name) VALUES (1, 77, 'orphan', NULL), (2, NULL, 'nobody', 'n'), (3, 3, 'k3', 'of the deleted'), (4, 1, '', 'keyless')",
		"INSERT INTO channels (id, type, `key`, name, `group`, models, model_mapping) VALUES (1, 99, '', 'x', 'default', 'm1,m1, m2', '{broken')",
		"INSERT INTO abilities (`group`, model, channel_id, enabled) VALUES ('default', 'm1', 1, 1), ('vip', 'm9', 8, 1)",
		"INSERT INTO redemptions (user_id, `key`, status, quota, expired_time) VALUES (1, 'r', 1, 100, 5)",
		"INSERT INTO top_ups (user_id, trade_no, status) VALUES (1, 't', 'pending')",
	}
	want := map[string]int{
		"user_negative": 1, "user_without_name": 1, "token_orphan": 2, "token_of_deleted_user": 1, "token_without_key": 1, "channel_without_key": 1,
		"channel_malformed_json": 1, "abilities_stray": 1, "abilities_missing": 1, "redemption_expired": 1, "top_up_pending": 1,
		"user_used_quota_differs": 1,
	}
	each(t, func(t *testing.T, s *Store) {
		for _, q := range odd {
			exec(t, s, q)
		}
		survey := value[*Survey](t)(s.Survey(t.Context(), &LogSums{Users: map[int64]LogSum{1: {Quota: 4}}}))
		got := map[string]int{}
		for _, f := range survey.Findings {
			got[f.Code] = f.Count
		}
		diff(t, "findings", got, want)
		diff(t, "users", survey.Users, UserSurvey{Total: 3, Deleted: 1, Disabled: 1, Quota: 2, Negative: 1})
	})
}

func TestSurveyOfANarrowColumn(t *testing.T) {
	s := initialised(t, openMySQL(t, ledgertest.MySQL(t)))
	exec(t, s, "ALTER TABLE users MODIFY quota int DEFAULT 0")
	exec(t, s, "INSERT INTO users (id, username, password, quota, aff_code) VALUES (1, 'full', '', 2147483647, 'a'), (2, 'low', '', -2147483648, 'b'), (3, 'ok', '', 5, 'c')")
	survey := value[*Survey](t)(s.Survey(t.Context(), nil))
	for _, f := range survey.Findings {
		if f.Code == "near_ceiling" {
			diff(t, "near the end", f.Examples, []string{"users 1 (full): 2147483647", "users 2 (low): -2147483648"})
			return
		}
	}
	t.Errorf("no near_ceiling in %+v", survey.Findings)
}
