package sqlstore

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

// gathered is a catalog sink.
type gathered struct {
	users    map[int64]UserRow
	tokens   map[int64]TokenRow
	channels map[int64]ChannelRow
	options  map[string]string
}

func gather() *gathered {
	return &gathered{map[int64]UserRow{}, map[int64]TokenRow{}, map[int64]ChannelRow{}, map[string]string{}}
}

func (g *gathered) User(r *UserRow)   { g.users[r.ID] = *r }
func (g *gathered) Token(r *TokenRow) { g.tokens[r.ID] = *r }
func (g *gathered) Channel(r *ChannelRow, deleted bool) {
	g.channels[r.ID] = *r
	if deleted {
		g.channels[r.ID] = ChannelRow{}
	}
}
func (g *gathered) Option(key, value string) { g.options[key] = value }

// What the change log names, read row by row, is what a full load reads.
func TestCatalogFollowsChanges(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h", Group: "vip"}))
		gone := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "dave", Password: "h"}))
		followed := gather()
		seq := value[int64](t)(s.LoadCatalog(ctx, followed))
		tok, _, err := s.CreateToken(ctx, TokenRow{UserID: uid, Name: "n"}, 0)
		must(t, err)
		cid := value[int64](t)(s.CreateChannel(ctx, ChannelRow{Type: 1, Name: "c", Key: "k", Models: "a,b", Tag: "t"}))
		old := value[int64](t)(s.CreateChannel(ctx, ChannelRow{Type: 1, Name: "old", Key: "k"}))
		seen := value[int64](t)(s.LastChange(ctx))
		_, err = s.EditChannel(ctx, cid, "", func(c *ChannelRow) error { c.Weight = 9; return nil })
		must(t, err)
		diff(t, "changes", value[[]Change](t)(s.Changes(ctx, seen, 10)), []Change{{Seq: seen + 1, Kind: ChangeChannel, ID: cid}})
		must(t, s.SetOption(ctx, "RetryTimes", "3"))
		must(t, s.SetOption(ctx, "RetryTimes", "4"))
		_, _, err = s.EditUser(ctx, gone, func(e *UserEdit) error { e.Delete = true; return nil })
		must(t, err)
		value[int](t)(s.DeleteChannels(ctx, old))
		changes := value[[]Change](t)(s.Changes(ctx, seq, 100))
		for _, c := range append(changes, Change{Kind: "of a newer release", ID: 1}) {
			must(t, s.CatalogRow(ctx, c, followed))
		}
		maps.DeleteFunc(followed.users, func(_ int64, r UserRow) bool { return r.Deleted })
		maps.DeleteFunc(followed.channels, func(_ int64, r ChannelRow) bool { return r.ID == 0 })
		full := gather()
		if last := value[int64](t)(s.LoadCatalog(ctx, full)); last != changes[len(changes)-1].Seq {
			t.Errorf("a full load stands at %d", last)
		}
		diff(t, "users", followed.users, full.users)
		diff(t, "tokens", followed.tokens, full.tokens)
		diff(t, "channels", followed.channels, full.channels)
		diff(t, "options", followed.options, full.options)
		if len(full.users) != 1 || full.tokens[tok.ID].Key != tok.Key || full.channels[cid].Tag != "t" || full.options["RetryTimes"] != "4" || full.users[uid].AuthVersion != 1 {
			t.Errorf("loaded %+v", full)
		}
	})
}

// A database of an older New API lacks columns. It is read and written all the same.
func TestOlderShapes(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for table, columns := range map[string][]string{
			"users": {"auth_version", "last_login_at", "created_at", "discord_id"}, "tokens": {"auto_groups", "cross_group_retry"},
			"channels": {"settings", "header_override", "remark", "channel_info"},
		} {
			for _, c := range columns {
				if c == "discord_id" && s.IsMySQL() {
					exec(t, s, "ALTER TABLE users DROP INDEX idx_users_discord_id")
				}
				exec(t, s, "ALTER TABLE "+table+" DROP COLUMN "+c)
			}
		}
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h", Quota: 5}))
		newMover().apply(t, s)
		session := value[Session](t)(s.BeginSession(ctx, Session{User: uid, Method: "password", ExpiresAt: s.now().Unix() + 100}))
		got, user, err := s.Session(ctx, session.ID)
		if must(t, err); !got.InForce(s.now(), user.AuthVersion) || user.Quota != 5 {
			t.Errorf("session %+v of %+v", got, user)
		}
		_, _, err = s.EditUser(ctx, uid, func(e *UserEdit) error { e.Revoke, e.DisplayName = true, "Carol"; return nil })
		must(t, err)
		if got, user, err = s.Session(ctx, session.ID); err != nil || got.InForce(s.now(), user.AuthVersion) || user.DisplayName != "Carol" {
			t.Errorf("after a revocation: %+v, %+v, %v", got, user, err)
		}
		tok, _, err := s.CreateToken(ctx, TokenRow{UserID: uid, Name: "n", AutoGroups: `["a"]`}, 5)
		must(t, err)
		_, _, err = s.EditToken(ctx, uid, tok.ID, func(e *TokenEdit) error { e.Name = "m"; return nil })
		must(t, err)
		cid := value[int64](t)(s.CreateChannel(ctx, ChannelRow{Type: 1, Name: "c", Key: "k", Models: "a", Remark: "r"}))
		must(t, s.DisableChannel(ctx, cid, 0, "it failed"))
		g := gather()
		value[int64](t)(s.LoadCatalog(ctx, g))
		if g.users[uid].AuthVersion != 1 || g.tokens[tok.ID].Name != "m" || g.channels[cid].Status != ChannelAutoDisabled || g.channels[cid].Remark != "" {
			t.Errorf("loaded %+v", g)
		}
	})
}

func TestChannels(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := WithActor(t.Context(), Actor{User: 1, Username: "root"})
		full := ChannelRow{
			Type: 1, Key: "k", Organization: "org", TestModel: "tm", Status: ChannelEnabled, Name: "full", Weight: 3, BaseURL: "https://x", Other: "o",
			Models: "a,b, a", Group: "default,vip", ModelMapping: "{}", StatusCodeMapping: "{}", Priority: -2, AutoBan: true, OtherInfo: "{}", Tag: "t",
			Setting: "{}", ParamOverride: "{}", HeaderOverride: "{}", Remark: "r", ChannelInfo: plainChannelInfo, Settings: "{}",
		}
		full.ID = value[int64](t)(s.CreateChannel(ctx, full))
		got := value[*ChannelRow](t)(s.Channel(ctx, full.ID))
		full.CreatedTime = got.CreatedTime
		diff(t, "created", *got, full)
		abilities := func(id int64) string {
			var list []string
			must(t, s.read(ctx, "SELECT `group`, model, enabled FROM abilities WHERE channel_id = ? ORDER BY `group`, model", []any{id}, func(scan func(...any) error) error {
				var group, model string
				var on bool
				err := scan(&group, &model, &on)
				list = append(list, group+"/"+model+map[bool]string{true: "+", false: "-"}[on])
				return err
			}))
			return strings.Join(list, " ")
		}
		if a := abilities(full.ID); a != "default/a+ default/b+ vip/a+ vip/b+" {
			t.Errorf("abilities %s", a)
		}
		exec(t, s, "UPDATE channels SET used_quota = 77")
		_, err := s.EditChannel(ctx, full.ID, "updated channel", func(c *ChannelRow) error { c.Models, c.Group, c.Tag, c.Weight = "c", "default", "", -1; return nil })
		must(t, err)
		got = value[*ChannelRow](t)(s.Channel(ctx, full.ID))
		if got.Tag != "" || got.Weight != 0 || got.UsedQuota != 77 || abilities(full.ID) != "default/c+" {
			t.Errorf("edited %+v, abilities %s", got, abilities(full.ID))
		}
		must(t, s.DisableChannel(ctx, full.ID, 5, "401 from upstream"))
		must(t, s.DisableChannel(ctx, full.ID, 0, "later"))
		got = value[*ChannelRow](t)(s.Channel(ctx, full.ID))
		if got.Status != ChannelAutoDisabled || !strings.Contains(got.OtherInfo, "401 from upstream") || !strings.Contains(got.OtherInfo, "status_time") || abilities(full.ID) != "default/c-" {
			t.Errorf("disabled %+v, abilities %s", got, abilities(full.ID))
		}
		if n := value[int](t)(s.SetChannelStatus(ctx, []int64{full.ID, full.ID}, ChannelEnabled)); n != 1 {
			t.Errorf("enabled %d", n)
		}
		if err := s.DisableChannel(ctx, 999, 0, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("a channel that is not there: %v", err)
		}
		must(t, s.TestedChannel(ctx, full.ID, 12))
		exec(t, s, "DELETE FROM abilities")
		exec(t, s, "INSERT INTO abilities (`group`, model, channel_id) VALUES ('g', 'm', 999)")
		if n := value[int](t)(s.FixAbilities(ctx)); n != 1 || abilities(full.ID) != "default/c+" || abilities(999) != "" {
			t.Errorf("fixed %d, abilities %s", n, abilities(full.ID))
		}
		must(t, s.CreateChannels(ctx, []ChannelRow{
			{Type: 14, Name: "b1", Key: "k1", Models: "a", Group: "vip", Priority: 5, Tag: "x"},
			{Type: 14, Name: "b2", Key: "k2", Models: "b", Group: "svip,vip", Tag: "x"},
			{Type: 3, Name: "b3", Key: "k3", Models: "z", Status: ChannelDisabled, Tag: "a"},
		}))
		names := func(f ChannelFilter, page Page) (string, int) {
			r := value[Channels](t)(s.Channels(ctx, f, page))
			var list []string
			for _, c := range r.Items {
				list = append(list, c.Name)
			}
			return strings.Join(list, " "), r.Total
		}
		for _, c := range []struct {
			f    ChannelFilter
			want string
			n    int
		}{
			{ChannelFilter{}, "b1 b2 b3 full", 4},
			{ChannelFilter{ByID: true}, "b3 b2 b1 full", 4},
			{ChannelFilter{Group: "vip"}, "b1 b2", 2},
			{ChannelFilter{Group: "vi"}, "", 0},
			{ChannelFilter{Type: 14}, "b1 b2", 2},
			{ChannelFilter{Keyword: "b"}, "b1 b2 b3", 3},
			{ChannelFilter{Keyword: "k3"}, "b3", 1},
			{ChannelFilter{Model: "z"}, "b3", 1},
			{ChannelFilter{Tag: "x"}, "b1 b2", 2},
			{ChannelFilter{Enabled: new(false)}, "b3", 1},
			{ChannelFilter{Tags: true}, "b3 b1 b2", 2},
			{ChannelFilter{Tags: true, Type: 99}, "", 0},
		} {
			if got, n := names(c.f, Page{Limit: 10}); got != c.want || n != c.n {
				t.Errorf("%+v finds %q of %d, want %q of %d", c.f, got, n, c.want, c.n)
			}
		}
		if got, n := names(ChannelFilter{}, Page{Skip: 1, Limit: 2}); got != "b2 b3" || n != 4 {
			t.Errorf("a page: %q of %d", got, n)
		}
		diff(t, "types", value[Channels](t)(s.Channels(ctx, ChannelFilter{Type: 14}, Page{Limit: 1})).Types, map[int]int{1: 1, 3: 1, 14: 2})
		ids := value[[]int64](t)(s.ChannelIDs(ctx, "x"))
		diff(t, "names", value[map[int64]string](t)(s.ChannelNames(ctx, append(ids, 999))), map[int64]string{ids[0]: "b1", ids[1]: "b2"})
		if n := value[int](t)(s.DeleteChannels(ctx, append(ids, 999)...)); n != 2 || abilities(ids[0]) != "" {
			t.Errorf("deleted %d", n)
		}
		if list := value[[]int64](t)(s.ChannelIDs(ctx, "", ChannelDisabled, ChannelAutoDisabled)); len(list) != 1 {
			t.Errorf("disabled are %v", list)
		}
	})
}

func TestSeveralKeys(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		info := `{"is_multi_key":true,"multi_key_size":3,"multi_key_mode":"polling","of_a_newer_release":{"x":1}}`
		cid := value[int64](t)(s.CreateChannel(ctx, ChannelRow{Type: 1, Name: "m", Key: "a\nb\n\nc", ChannelInfo: info}))
		read := func() (ChannelInfo, int) {
			c := value[*ChannelRow](t)(s.Channel(ctx, cid))
			if !strings.Contains(c.ChannelInfo, `"of_a_newer_release":{"x":1}`) {
				t.Errorf("a member that is not known is lost: %s", c.ChannelInfo)
			}
			return value[ChannelInfo](t)(ParseChannelInfo(c.ChannelInfo)), c.Status
		}
		for _, step := range []struct {
			key    int
			reason string
			status int
		}{{1, "one", ChannelEnabled}, {1, "again", ChannelEnabled}, {0, "two", ChannelEnabled}, {2, "three", ChannelAutoDisabled}} {
			must(t, s.DisableChannel(ctx, cid, step.key, step.reason))
			if _, status := read(); status != step.status {
				t.Errorf("after key %d the status is %d", step.key, status)
			}
		}
		got, _ := read()
		diff(t, "reasons", got.Reason, map[string]string{"0": "two", "1": "one", "2": "three"})
		if !slices.Equal(slices.Sorted(maps.Keys(got.Status)), []string{"0", "1", "2"}) || got.Mode != "polling" || got.Size != 3 {
			t.Errorf("info %+v", got)
		}
		value[int](t)(s.SetChannelStatus(ctx, []int64{cid}, ChannelEnabled))
		if got, status := read(); len(got.Status) != 0 || status != ChannelEnabled {
			t.Errorf("enabled again: %+v", got)
		}
		if err := s.DisableChannel(ctx, cid, 3, ""); err == nil {
			t.Error("a key that is not there was disabled")
		}
	})
}

func TestSplitKeys(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, "a": {"a"}, "a\r\n b \n\n": {"a", "b"}, `["a","b"]`: {"a", "b"}, `[{"k":1},"b"]`: {`{"k":1}`, "b"}, "[oops\nx": {"[oops", "x"},
	} {
		diff(t, text, SplitKeys(text), want)
	}
}

func FuzzChannelInfo(f *testing.F) {
	f.Add(plainChannelInfo)
	f.Add(`{"multi_key_status_list":{"0":3},"x":[1]}`)
	f.Fuzz(func(t *testing.T, text string) {
		info, err := ParseChannelInfo(text)
		if err != nil {
			return
		}
		again, err := ParseChannelInfo(info.String())
		if err != nil || again.String() != info.String() {
			t.Errorf("%q becomes %q, then %q, %v", text, info.String(), again.String(), err)
		}
	})
}

func TestOptions(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		must(t, s.SetOptions(ctx, map[string]string{"a": "1", "b": "ü\x00"}))
		must(t, s.SetOption(ctx, "a", "2"))
		diff(t, "options", value[map[string]string](t)(s.Options(ctx)), map[string]string{"a": "2", "b": "ü\x00"})
		for _, bad := range []map[string]string{{"c": "1", "": "x"}, {strings.Repeat("k", 192): "x"}, {"c": strings.Repeat("x", MaxOptionBytes+1)}} {
			if err := s.SetOptions(ctx, bad); err == nil {
				t.Error("a bad option was stored")
			}
		}
		if n := len(value[map[string]string](t)(s.Options(ctx))); n != 2 {
			t.Errorf("%d options", n)
		}
	})
}
