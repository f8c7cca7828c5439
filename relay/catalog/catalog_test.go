package catalog

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// site is a catalog over a real SQLite database.
type site struct {
	t     testing.TB
	store *sqlstore.Store
	*Catalog
	said *logged
}

// logged is what the catalog wrote to its log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newSite(t testing.TB) *site {
	t.Helper()
	store, err := sqlstore.Open(t.Context(), sqlstore.Config{SQLitePath: filepath.Join(t.TempDir(), "db")})
	check(t, err)
	t.Cleanup(func() { _ = store.Close() })
	check(t, store.Migrate(t.Context()))
	_, err = store.InitLog(t.Context(), sqlstore.LogInfo{Topic: "usage", Partitions: 4})
	check(t, err)
	said := &logged{}
	s := &site{t: t, store: store, said: said, Catalog: New(store, time.Hour, slog.New(slog.NewTextHandler(said, nil)))}
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) user(name, group string) int64 {
	s.t.Helper()
	id, err := s.store.CreateUser(s.t.Context(), sqlstore.NewUser{Username: name, Password: "h", Group: group, Role: sqlstore.RoleUser})
	check(s.t, err)
	return id
}

func (s *site) token(row sqlstore.TokenRow) sqlstore.TokenRow {
	s.t.Helper()
	made, _, err := s.store.CreateToken(s.t.Context(), row, 0)
	check(s.t, err)
	return made
}

func (s *site) channel(row sqlstore.ChannelRow) int64 {
	s.t.Helper()
	row.Type = 1
	id, err := s.store.CreateChannel(s.t.Context(), row)
	check(s.t, err)
	return id
}

func (s *site) option(key, value string) {
	s.t.Helper()
	check(s.t, s.store.SetOption(s.t.Context(), key, value))
}

func (s *site) follow() {
	s.t.Helper()
	check(s.t, s.Refresh(s.t.Context()))
}

func TestChangesAreFollowed(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	if s.Ready() == nil {
		t.Error("ready before it was loaded")
	}
	uid := s.user("carol", "vip")
	one := s.token(sqlstore.TokenRow{UserID: uid, Name: "one", ExpiredTime: -1})
	ch := s.channel(sqlstore.ChannelRow{Name: "c", Key: "k", Models: "a", Group: "vip"})
	check(t, s.Load(ctx))
	check(t, s.Ready())
	if u, n, c := s.Sizes(); u != 1 || n != 1 || c != 1 {
		t.Errorf("sizes %d, %d, %d", u, n, c)
	}
	tok, user := s.Token(one.Key)
	if tok == nil || user == nil || tok.ID != one.ID || user.Group != "vip" || !user.Enabled() || user.Admin() {
		t.Fatalf("token %+v of %+v", tok, user)
	}
	two := s.token(sqlstore.TokenRow{UserID: uid, Name: "two", ExpiredTime: 5})
	_, _, err := s.store.EditToken(ctx, uid, one.ID, func(e *sqlstore.TokenEdit) error { e.Delete = true; return nil })
	check(t, err)
	_, err = s.store.EditChannel(ctx, ch, "", func(c *sqlstore.ChannelRow) error { c.Models, c.Group = "b", "vip,default"; return nil })
	check(t, err)
	s.option("RetryTimes", "7")
	s.follow()
	if tok, _ := s.Token(one.Key); tok != nil {
		t.Error("a deleted key is still known")
	}
	if tok, _ := s.Token(two.Key); tok == nil || tok.Expires != 5 {
		t.Errorf("a new key is %+v", tok)
	}
	r := s.Routes()
	if r.Has("vip", "a") || !r.Has("vip", "b") || !r.Has("default", "b") || r.Settings.RetryTimes != 7 {
		t.Error("channels or options are not followed")
	}
	key := strings.Repeat("x", sqlstore.KeyLength)
	check(t, s.store.Tx(ctx, func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE tokens SET `key` = ? WHERE id = ?", key, two.ID)
		tx.Changed(sqlstore.ChangeToken, two.ID)
		return err
	}))
	s.follow()
	if old, _ := s.Token(two.Key); old != nil {
		t.Error("a key that was replaced is still good")
	}
	two.Key = key
	_, _, err = s.store.EditUser(ctx, uid, func(e *sqlstore.UserEdit) error { e.Delete = true; return nil })
	check(t, err)
	_, err = s.store.DeleteChannels(ctx, ch)
	check(t, err)
	s.follow()
	if tok, user := s.Token(two.Key); tok == nil || user != nil || s.User(uid) != nil {
		t.Error("a deleted user is still known")
	}
	if s.Routes().Channel(ch) != nil || len(s.Routes().Models([]string{"vip", "default"})) != 0 {
		t.Error("a deleted channel is still known")
	}
}

// A node that was away while the change log was pruned, or that finds too much in it, reads everything.
func TestMissedChanges(t *testing.T) {
	t.Run("pruned", func(t *testing.T) {
		s := newSite(t)
		check(t, s.Load(t.Context()))
		uid := s.user("carol", "")
		_, err := s.store.PruneChanges(t.Context(), time.Now().Add(time.Hour))
		check(t, err)
		other := s.user("dave", "")
		s.follow()
		if s.User(uid) == nil || s.User(other) == nil {
			t.Error("a pruned change is lost")
		}
	})
	t.Run("many", func(t *testing.T) {
		s := newSite(t)
		check(t, s.Load(t.Context()))
		uid := s.user("carol", "")
		check(t, s.store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
			for range changesAtOnce {
				tx.Changed(sqlstore.ChangeUser, uid)
			}
			return nil
		}))
		s.follow()
		if s.User(uid) == nil {
			t.Error("a change among many is lost")
		}
	})
	t.Run("everything of a kind", func(t *testing.T) {
		s := newSite(t)
		uid := s.user("carol", "")
		check(t, s.Load(t.Context()))
		check(t, s.store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
			_, err := tx.Exec(t.Context(), "UPDATE users SET `group` = 'vip'")
			tx.Changed(sqlstore.ChangeUser, 0)
			return err
		}))
		s.follow()
		if s.User(uid).Group != "vip" {
			t.Error("a change of all users is lost")
		}
	})
}

// While the database is away the node goes on with what it has (P3).
func TestDatabaseAway(t *testing.T) {
	s := newSite(t)
	uid := s.user("carol", "")
	check(t, s.Load(t.Context()))
	check(t, s.store.Close())
	if s.Refresh(t.Context()) == nil || s.Load(t.Context()) == nil {
		t.Error("no error without a database")
	}
	if s.User(uid) == nil || s.Ready() != nil {
		t.Error("what was known is lost")
	}
}

// Run finds changes by itself, and ends with its context.
func TestRun(t *testing.T) {
	s := newSite(t)
	check(t, s.Load(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	uid := s.user("carol", "")
	deadline := time.Now().Add(10 * time.Second)
	for s.User(uid) == nil {
		if time.Now().After(deadline) {
			t.Fatal("a change was not found")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	check(t, <-done)
}

// Prices that do not parse leave those in force; what changes beside them counts.
func TestPricesThatDoNotParse(t *testing.T) {
	s := newSite(t)
	s.option(ledger.OptionModelRatio, `{"a": 3}`)
	check(t, s.Load(t.Context()))
	book := s.Routes().Book
	s.option("RetryTimes", "2")
	s.follow()
	if s.Routes().Book != book || s.Routes().Settings.RetryTimes != 2 {
		t.Error("an option that is no price changed the price book")
	}
	s.option(ledger.OptionModelRatio, "{oops")
	s.option("RetryTimes", "3")
	s.follow()
	if s.Routes().Book != book || s.Routes().Settings.RetryTimes != 3 || !strings.Contains(s.said.String(), "prices in force stay") {
		t.Errorf("the log says %s", s.said)
	}
	s.option(ledger.OptionModelRatio, `{"a": 4}`)
	s.follow()
	if s.Routes().Book.Version() == book.Version() {
		t.Error("a better price table is not taken")
	}
	// The first load falls back to the built-in prices.
	s.option(ledger.OptionModelRatio, "{oops")
	other := New(s.store, time.Hour, slog.New(slog.DiscardHandler))
	check(t, other.Load(t.Context()))
	if _, err := other.Routes().Book.Quote("gpt-4o", "default", "default"); err != nil {
		t.Error(err)
	}
	// The last option goes, and its default is back.
	check(t, s.store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(t.Context(), "DELETE FROM options")
		tx.Changed(sqlstore.ChangeOption, 0)
		return err
	}))
	s.follow()
	if s.Routes().Settings.RetryTimes != 0 {
		t.Error("a deleted option is still in force")
	}
}

func TestSettings(t *testing.T) {
	s := newSite(t)
	check(t, s.Load(t.Context()))
	d := s.Routes().Settings
	if d.RetryTimes != 0 || d.QuotaPerUnit != 500_000 || !d.DisableStatus.Has(401) || d.DisableStatus.Has(400) || !d.RetryStatus.Has(500) ||
		d.RetryStatus.Has(504) || d.RetryStatus.Has(408) || d.RetryStatus.Has(400) || !d.RetryStatus.Has(599) || !d.TokenStat || d.SelfUse {
		t.Errorf("defaults %+v", d)
	}
	for key, value := range map[string]string{
		"RetryTimes": "-1", "QuotaPerUnit": "x", "AutoGroups": "oops", "UserUsableGroups": "[]", "AutomaticRetryStatusCodes": "500-502, 429,x,600,9-99,503-501",
		"AutomaticDisableKeywords": " Credit too LOW \n\n", "AutomaticDisableChannelEnabled": "true", "DisplayTokenStatEnabled": "false", "SelfUseModeEnabled": "true",
	} {
		s.option(key, value)
	}
	s.follow()
	got := s.Routes().Settings
	got.Options = nil
	want := Settings{
		RetryStatus: StatusSet{{500, 502}, {429, 429}}, DisableEnabled: true, DisableStatus: StatusSet{{401, 401}}, DisableKeywords: []string{"credit too low"},
		AutoGroups: []string{"default"}, UsableGroups: map[string]string{"default": "Default group", "vip": "VIP group"}, SelfUse: true, QuotaPerUnit: 500_000,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
}

func TestPick(t *testing.T) {
	s := newSite(t)
	heavy := s.channel(sqlstore.ChannelRow{Name: "heavy", Key: "k", Models: "m,m, m", Priority: 10, Weight: 3})
	light := s.channel(sqlstore.ChannelRow{Name: "light", Key: "k", Models: "m", Priority: 10, Weight: 1})
	idle := s.channel(sqlstore.ChannelRow{Name: "idle", Key: "k", Models: "m", Priority: 10})
	spare := s.channel(sqlstore.ChannelRow{Name: "spare", Key: "k", Models: "m,rare", Priority: -5})
	s.channel(sqlstore.ChannelRow{Name: "off", Key: "k", Models: "m,only", Priority: 99, Status: sqlstore.ChannelDisabled})
	even := []int64{
		s.channel(sqlstore.ChannelRow{Name: "even", Key: "k", Models: "e"}), s.channel(sqlstore.ChannelRow{Name: "even", Key: "k", Models: "e"}),
	}
	check(t, s.Load(t.Context()))
	r := s.Routes()
	const draws = 4000
	count := func(model string, attempt int, tried ...int64) map[int64]int {
		n := map[int64]int{}
		for range draws {
			n[r.Pick("default", model, attempt, tried).ID]++
		}
		return n
	}
	// Weights 3 and 1; the model that one list names three times counts once; weight 0 beside others is not drawn.
	if n := count("m", 0); n[heavy] < draws*70/100 || n[heavy] > draws*80/100 || n[heavy]+n[light] != draws {
		t.Errorf("first attempt: %v", n)
	}
	if n := count("m", 0, heavy); n[light] != draws {
		t.Errorf("heavy was tried: %v", n)
	}
	if n := count("m", 0, heavy, light); n[idle] != draws {
		t.Errorf("heavy and light were tried: %v", n)
	}
	if n := count("m", 0, heavy, light, idle); n[spare] != 0 || len(n) != 3 {
		t.Errorf("all of the tier were tried: %v", n)
	}
	for attempt := 1; attempt < 4; attempt++ {
		if n := count("m", attempt, heavy); n[spare] != draws {
			t.Errorf("attempt %d: %v", attempt, n)
		}
	}
	if n := count("rare", 0, spare); n[spare] != draws {
		t.Errorf("the only channel was tried: %v", n)
	}
	if n := count("e", 0); n[even[0]] < draws*45/100 || n[even[1]] < draws*45/100 {
		t.Errorf("equal weights: %v", n)
	}
	if r.Pick("default", "only", 0, nil) != nil || r.Pick("elsewhere", "m", 0, nil) != nil || r.Has("default", "only") {
		t.Error("a disabled channel, or one of another group, was drawn")
	}
}

func TestGroups(t *testing.T) {
	s := newSite(t)
	s.option("UserUsableGroups", `{"default": "d", "vip": "v", "auto": "a"}`)
	s.option("AutoGroups", `["svip", "vip", "default"]`)
	check(t, s.Load(t.Context()))
	r := s.Routes()
	for _, c := range []struct {
		user, token string
		auto        []string
		want        []string
	}{
		{"default", "", nil, []string{"default"}},
		{"inner", "", nil, []string{"inner"}},
		{"inner", "inner", nil, []string{"inner"}},
		{"inner", "vip", nil, []string{"vip"}},
		{"inner", "svip", nil, nil},
		{"inner", "auto", nil, []string{"vip", "default"}},
		{"svip", "auto", nil, []string{"svip", "vip", "default"}},
		{"inner", "auto", []string{"default", "inner", "svip"}, []string{"default", "inner"}},
		{"inner", "auto", []string{"svip"}, nil},
	} {
		got := r.Groups(&User{Group: c.user}, &Token{Group: c.token, AutoGroups: c.auto})
		if len(got)+len(c.want) > 0 && !cmp.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestTokenLimits(t *testing.T) {
	s := newSite(t)
	uid := s.user("carol", "")
	open := s.token(sqlstore.TokenRow{UserID: uid, ExpiredTime: -1, ModelLimits: "a", AutoGroups: "oops"})
	none := s.token(sqlstore.TokenRow{UserID: uid, ExpiredTime: -1, ModelLimitsEnabled: true, AllowIPs: "nonsense"})
	some := s.token(sqlstore.TokenRow{
		UserID: uid, ExpiredTime: -1, ModelLimitsEnabled: true, ModelLimits: " a, b ,", AllowIPs: "10.0.0.1\n 10.1.0.0/16 \n\n2001:db8::/32", AutoGroups: `["x"]`,
	})
	check(t, s.Load(t.Context()))
	for _, c := range []struct {
		key       string
		model, ip string
		want      bool
	}{
		{open.Key, "a", "1.2.3.4", true},
		{open.Key, "z", "::1", true},
		{none.Key, "a", "1.2.3.4", false},
		{some.Key, "a", "10.0.0.1", true},
		{some.Key, "b", "10.1.200.7", true},
		{some.Key, "b", "::ffff:10.0.0.1", true},
		{some.Key, "b", "2001:db8:1::1", true},
		{some.Key, "c", "10.0.0.1", false},
		{some.Key, "a", "10.0.0.2", false},
		{some.Key, "a", "2001:db9::1", false},
	} {
		tok, _ := s.Token(c.key)
		if got := tok.AllowsModel(c.model) && tok.AllowsIP(netip.MustParseAddr(c.ip)); got != c.want {
			t.Errorf("model %s from %s: %v", c.model, c.ip, got)
		}
	}
	tok, _ := s.Token(none.Key)
	if tok.AllowsModel("a") || tok.AllowsIP(netip.MustParseAddr("1.2.3.4")) {
		t.Error("a limit to nothing allows something")
	}
	if tok, _ := s.Token(some.Key); !cmp.Equal(tok.AutoGroups, []string{"x"}) {
		t.Errorf("auto groups %v", tok.AutoGroups)
	}
	if !strings.Contains(s.said.String(), "allow-list") || !strings.Contains(s.said.String(), "auto groups") {
		t.Errorf("the log says %s", s.said)
	}
}

func TestKeysOfAChannel(t *testing.T) {
	s := newSite(t)
	info := func(mode, status string) string {
		return `{"is_multi_key": true, "multi_key_mode": "` + mode + `", "multi_key_status_list": ` + status + `}`
	}
	single := s.channel(sqlstore.ChannelRow{Name: "single", Key: " k\nx "})
	polling := s.channel(sqlstore.ChannelRow{Name: "polling", Key: "a\n\nb\nc", ChannelInfo: info("polling", "null")})
	random := s.channel(sqlstore.ChannelRow{Name: "random", Key: `["a","b"]`, ChannelInfo: info("random", `{"0": 1}`)})
	part := s.channel(sqlstore.ChannelRow{Name: "part", Key: "a\nb\nc", ChannelInfo: info("polling", `{"1": 3, "0": 2}`)})
	none := s.channel(sqlstore.ChannelRow{Name: "none", Key: "a", ChannelInfo: info("polling", `{"0": 3}`)})
	check(t, s.Load(t.Context()))
	draw := func(id int64, n int) (out string) {
		for range n {
			k, ok := s.Routes().Channel(id).Key()
			if !ok {
				return out + "-"
			}
			out += k.Value
		}
		return out
	}
	if got := draw(single, 2); got != "k\nxk\nx" {
		t.Errorf("one key: %q", got)
	}
	if got := draw(polling, 7); got != "abcabca" {
		t.Errorf("in turn: %q", got)
	}
	if got := draw(random, 200); !strings.Contains(got, "a") || !strings.Contains(got, "b") {
		t.Errorf("at random: %q", got)
	}
	if k, _ := s.Routes().Channel(part).Key(); k.Value != "c" || k.Index != 2 {
		t.Errorf("with two keys off: %+v", k)
	}
	if got := draw(none, 1); got != "-" {
		t.Errorf("with all keys off: %q", got)
	}
}

func TestFieldsOfAChannel(t *testing.T) {
	s := newSite(t)
	id := s.channel(sqlstore.ChannelRow{
		Name: "c", Key: "k", Models: "a", BaseURL: "https://x/v1//", ModelMapping: `{"a":"b","b":"c","x":"y","y":"x","e":"","s":"s"}`,
		StatusCodeMapping: `{"404": 500, "429": "503", "x": 1, "400": 9}`, HeaderOverride: `{"X-A": "1"}`,
	})
	bad := s.channel(sqlstore.ChannelRow{Name: "bad", Key: "k", ModelMapping: "oops", StatusCodeMapping: "[]", HeaderOverride: `{"a":{}}`})
	check(t, s.Load(t.Context()))
	c := s.Routes().Channel(id)
	if c.BaseURL != "https://x/v1" || c.Headers["X-A"] != "1" || !cmp.Equal(c.StatusMapping, map[int]int{404: 500, 429: 503}) || !cmp.Equal(c.Groups, []string{"default"}) {
		t.Errorf("channel %+v", c)
	}
	for model, want := range map[string]string{"a": "c", "b": "c", "z": "z", "e": "e", "s": "s"} {
		if got, ok := c.Sent(model); !ok || got != want {
			t.Errorf("%s is sent as %s, %v", model, got, ok)
		}
	}
	if _, ok := c.Sent("x"); ok {
		t.Error("a circle of mappings has an end")
	}
	if got, ok := s.Routes().Channel(bad).Sent("a"); !ok || got != "a" || strings.Count(s.said.String(), "is ignored") != 3 {
		t.Errorf("bad fields: %s, and the log says %s", got, s.said)
	}
}

// Readers never wait for a refresh, and see whole values.
func TestConcurrentUse(t *testing.T) {
	s := newSite(t)
	uid := s.user("carol", "vip")
	tok := s.token(sqlstore.TokenRow{UserID: uid, ExpiredTime: -1})
	s.channel(sqlstore.ChannelRow{Name: "c", Key: "a\nb", Models: "m", ChannelInfo: `{"is_multi_key":true,"multi_key_mode":"polling"}`})
	check(t, s.Load(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if found, user := s.Token(tok.Key); found == nil || user == nil {
					t.Error("a key is gone for a moment")
					return
				}
				c := s.Routes().Pick("default", "m", 0, nil)
				if c == nil {
					t.Error("a channel is gone for a moment")
					return
				}
				c.Key()
			}
		})
	}
	for i := range 20 {
		s.option("RetryTimes", []string{"1", "2"}[i%2])
		if i%5 == 0 {
			check(t, s.Load(t.Context()))
		}
		s.follow()
	}
	cancel()
	readers.Wait()
}
