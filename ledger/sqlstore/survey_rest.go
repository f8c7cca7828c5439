package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
)

// ChannelSurvey is what an operator looks for in a channel.
type ChannelSurvey struct {
	ID     int64    `json:"id"`
	Type   int      `json:"type"`
	Name   string   `json:"name"`
	Status int      `json:"status"`
	Keys   int      `json:"keys"`
	Models int      `json:"models"`
	Groups []string `json:"groups"`
}

// RedemptionSurvey counts codes that are not deleted.
type RedemptionSurvey struct {
	Unused   int   `json:"unused"`
	Used     int   `json:"used"`
	Disabled int   `json:"disabled"`
	Quota    int64 `json:"unused_quota"`
}

// channels lists the channels and holds `abilities` against them.
func (v *surveyor) channels(ctx context.Context) error {
	want := map[string]bool{}
	var malformed, keyless []string
	err := eachOf(ctx, v.tx, channelRows, " ORDER BY id", nil, func(r *ChannelRow) {
		c := ChannelSurvey{ID: r.ID, Type: r.Type, Name: r.Name, Status: r.Status, Groups: []string{}}
		seen := map[string]bool{}
		for group := range strings.SplitSeq(r.Group, ",") {
			if group = strings.TrimSpace(group); group != "" {
				c.Groups = append(c.Groups, group)
			}
		}
		for model := range strings.SplitSeq(r.Models, ",") {
			if model = strings.TrimSpace(model); model == "" || seen[model] {
				continue
			}
			seen[model] = true
			for _, group := range c.Groups {
				want[fmt.Sprintf("%s %s %d", group, model, r.ID)] = true
			}
		}
		c.Models, c.Keys = len(seen), countKeys(r)
		if c.Keys == 0 {
			keyless = append(keyless, fmt.Sprintf("channel %d (%s)", r.ID, cut(r.Name, maxExampleText)))
		}
		for _, bad := range malformedFields(r) {
			malformed = append(malformed, fmt.Sprintf("channel %d (%s): %s", r.ID, cut(r.Name, maxExampleText), bad))
		}
		v.Channels = append(v.Channels, c)
	})
	if err != nil {
		return fmt.Errorf("read channels: %w", err)
	}
	v.add(LevelWarn, "channel_without_key", len(keyless), keyless, "channels have no key: upstreams will refuse them")
	v.add(LevelWarn, "channel_malformed_json", len(malformed), malformed, "fields of channels are no JSON objects: they are ignored")
	if v.columns["abilities"] == nil {
		return nil
	}
	have, stray := 0, []string(nil)
	err = v.tx.each(ctx, "SELECT COALESCE(`group`, ''), COALESCE(`model`, ''), COALESCE(channel_id, 0) FROM abilities", nil, func(scan func(...any) error) error {
		var group, model string
		var id int64
		if err := scan(&group, &model, &id); err != nil {
			return err
		}
		key := fmt.Sprintf("%s %s %d", group, model, id)
		if want[key] {
			have++
		} else {
			stray = append(stray, key)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read abilities: %w", err)
	}
	v.add(LevelInfo, "abilities_stray", len(stray), stray, "rows of abilities (group, model, channel) that no channel stands for: routing goes by the channels")
	v.add(LevelInfo, "abilities_missing", len(want)-have, nil, "groups and models of channels have no row in abilities: routing goes by the channels, so they are served here")
	return nil
}

func countKeys(r *ChannelRow) (n int) {
	var info struct {
		Multi bool `json:"is_multi_key"`
	}
	if json.Unmarshal([]byte(r.ChannelInfo), &info) != nil || !info.Multi {
		return min(1, len(strings.TrimSpace(r.Key)))
	}
	var list []json.RawMessage
	if json.Unmarshal([]byte(r.Key), &list) == nil {
		return len(list)
	}
	for line := range strings.SplitSeq(r.Key, "\n") {
		if strings.TrimSpace(line) != "" {
			n++
		}
	}
	return n
}

// malformedFields names the columns that should hold a JSON object and do not.
func malformedFields(r *ChannelRow) (bad []string) {
	for _, f := range []struct{ name, text string }{
		{"model_mapping", r.ModelMapping},
		{"status_code_mapping", r.StatusCodeMapping},
		{"setting", r.Setting},
		{"param_override", r.ParamOverride},
		{"header_override", r.HeaderOverride},
		{"channel_info", r.ChannelInfo},
		{"settings", r.Settings},
	} {
		var object map[string]json.RawMessage
		if strings.TrimSpace(f.text) != "" && json.Unmarshal([]byte(f.text), &object) != nil {
			bad = append(bad, f.name)
		}
	}
	return bad
}

func (v *surveyor) options(ctx context.Context) error {
	if v.columns["options"] == nil {
		return nil
	}
	err := v.tx.each(ctx, "SELECT `key`, `value` FROM options", nil, func(scan func(...any) error) error {
		var key string
		var value sql.NullString
		err := scan(&key, &value)
		v.Options[key] = value.String
		return err
	})
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	return nil
}

func (v *surveyor) redemptions(ctx context.Context) error {
	if v.columns["redemptions"] == nil {
		return nil
	}
	now := v.tx.s.now().Unix()
	expired := "COALESCE(" + v.column("redemptions", "expired_time", "0") + ", 0) BETWEEN 1 AND ?"
	r := &v.Redemptions
	q := "SELECT COALESCE(SUM(t.status = 1), 0), COALESCE(SUM(t.status = 3), 0), COALESCE(SUM(t.status = 2), 0), COALESCE(SUM(CASE WHEN t.status = 1 THEN t.quota END), 0)," +
		" COALESCE(SUM(t.status = 1 AND " + expired + "), 0) FROM redemptions t WHERE t.deleted_at IS NULL"
	var late int
	if err := v.tx.QueryRow(ctx, q, []any{now}, &r.Unused, &r.Used, &r.Disabled, &r.Quota, &late); err != nil {
		return fmt.Errorf("count redemption codes: %w", err)
	}
	v.add(LevelInfo, "redemption_expired", late, nil, "unused redemption codes have expired")
	n, examples, err := v.listed(ctx, "SELECT MIN(t.id), MIN(t.name), COUNT(*) FROM redemptions t WHERE t.deleted_at IS NULL AND COALESCE(t.`key`, '') <> '' GROUP BY t.`key` HAVING COUNT(*) > 1 ORDER BY 1",
		"code %d (%s): %d times")
	if err != nil {
		return fmt.Errorf("look for duplicate redemption codes: %w", err)
	}
	v.add(LevelWarn, "redemption_duplicate", n, examples, "redemption codes are there more than once")
	return nil
}

// features are what stands behind tables that nothing here reads, where an operator would miss it.
var features = []struct{ table, text string }{
	{"user_subscriptions", "subscriptions are not served: their holders pay from their quota"},
	{"subscription_plans", "subscription plans are not served"},
	{"tasks", "asynchronous tasks are not relayed: let them end in New API first"},
	{"midjourneys", "Midjourney tasks are not relayed: let them end in New API first"},
	{"two_fas", "second factors are not asked for: these users log in with their password alone"},
	{"passkey_credentials", "passkeys are not served: these users log in with their password"},
	{"user_oauth_bindings", "logins through other providers are not served"},
	{"prefill_groups", "prefill groups are not served"},
	{"quota_data", "the dashboard's sums are not read; what is shown comes from the usage log"},
}

// kept tells of tables with rows that nothing here reads.
func (v *surveyor) kept(context.Context) error {
	for _, t := range v.Tables {
		for _, f := range features {
			if f.table != t.Name {
				continue
			}
			level := LevelWarn
			if t.Name == "quota_data" || t.Name == "prefill_groups" {
				level = LevelInfo
			}
			v.add(level, "kept_"+t.Name, int(t.Rows), nil, "%s", f.text)
		}
	}
	return nil
}

func (v *surveyor) topUps(ctx context.Context) error {
	if v.columns["top_ups"] == nil {
		return nil
	}
	err := v.tx.each(ctx, "SELECT COALESCE(status, ''), COUNT(*) FROM top_ups GROUP BY status", nil, func(scan func(...any) error) error {
		var status string
		var n int
		err := scan(&status, &n)
		v.TopUps[status] += n
		return err
	})
	if err != nil {
		return fmt.Errorf("count orders: %w", err)
	}
	v.add(LevelInfo, "top_up_pending", v.TopUps["pending"], nil, "orders are pending: an administrator can complete them here (POST /api/user/topup/complete), payment providers are not served")
	return nil
}
