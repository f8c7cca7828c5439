package relay_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// upstreams are hand-written upstreams that note who was asked with what.
type upstreams struct {
	mu    sync.Mutex
	asked []string // names
	keys  []string
	body  string
}

// add starts an upstream that answers with a status; 200 is a good answer, 0 none.
func (u *upstreams) add(s *stack, name string, status int) string {
	return s.upstreamOf(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		u.mu.Lock()
		u.asked = append(u.asked, name)
		u.keys = append(u.keys, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		u.body = string(body)
		u.mu.Unlock()
		switch status {
		case 0:
			<-r.Context().Done()
		case 200:
			_, _ = io.WriteString(w, `{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":10}}`)
		default:
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"error":{"message":"Your credit balance is too low","type":"t","code":"c"}}`)
		}
	})
}

func (u *upstreams) take() (asked, keys []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	asked, keys = u.asked, u.keys
	u.asked, u.keys = nil, nil
	return asked, keys
}

// A channel that fails is followed by one of the next priority, as often as RetryTimes allows, for the statuses that New API retries.
func TestRetries(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.must(refused.Close())
	for status, name := range map[int]string{500: "m500", 429: "m429", 401: "m401", 400: "m400", 504: "m504", 408: "m408", 0: "m0", -1: "m-1"} {
		url := "http://" + refused.Addr().String()
		if status >= 0 {
			url = u.add(s, "bad", status)
		}
		s.channel(sqlstore.ChannelRow{Name: name, BaseURL: url, Models: name, Priority: 10})
		s.channel(sqlstore.ChannelRow{Name: name, BaseURL: u.add(s, "worse", 500), Models: name, Priority: 5})
		s.channel(sqlstore.ChannelRow{Name: name, BaseURL: u.add(s, "good", 200), Models: name})
	}
	s.options("RetryTimes", "2", "SelfUseModeEnabled", "true")
	n := s.start(impatient)
	a := n.account(start*100, -1)
	for _, c := range []struct {
		model  string
		more   string
		asked  []string
		status int
	}{
		{"m500", `"n":1`, []string{"bad", "worse", "good"}, 200},
		{"m429", `"n":1`, []string{"bad", "worse", "good"}, 200},
		{"m401", `"n":1`, []string{"bad", "worse", "good"}, 200},
		{"m400", `"n":1`, []string{"bad"}, 400},
		{"m408", `"n":1`, []string{"bad"}, 408},
		{"m504", `"n":1`, []string{"bad"}, 504},
		{"m-1", `"n":1`, []string{"worse", "good"}, 200},
		{"m0", streamed, []string{"bad", "worse", "good"}, 200},
	} {
		t.Run(c.model, func(t *testing.T) {
			got := n.post(a.key, chatPath, strings.Replace(chat("", c.more), model, c.model, 1))
			if asked, _ := u.take(); got.status != c.status || !slices.Equal(asked, c.asked) {
				t.Errorf("%d %s after asking %v, want %d after %v", got.status, got.body, asked, c.status, c.asked)
			}
			if c.status != 200 {
				return
			}
			if ev := n.event(got.request()); ev.Request.Retries != 2 {
				t.Errorf("%d retries are noted", ev.Request.Retries)
			}
		})
	}
	if events := n.clerk.usage(); len(events) != 5 {
		t.Errorf("%d bills for 5 answers", len(events))
	}
	n.drain()
}

// Once something of a stream was sent there is no other channel.
func TestNoRetryInMidStream(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	s.sql("UPDATE channels SET priority = 10 WHERE id = 1")
	s.channel(sqlstore.ChannelRow{Name: "second", BaseURL: u.add(s, "second", 200)})
	s.options("RetryTimes", "3")
	n := s.start()
	a := n.account(start, -1)
	for _, script := range []string{"error=2", "cut=2"} {
		got := n.post(a.key, chatPath, chat(script, streamed))
		if ev := n.event(got.request()); ev.Channel != 1 || ev.Usage.Completion != 2 {
			t.Errorf("event %+v of %+v", ev, ev.Usage)
		}
	}
	if asked, _ := u.take(); len(asked) > 0 {
		t.Errorf("asked %v", asked)
	}
}

// Without RetryTimes there is one try.
func TestNoRetries(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.channel(sqlstore.ChannelRow{Name: "second", BaseURL: s.up.URL})
	n := s.start()
	a := n.account(start, -1)
	if got := n.post(a.key, chatPath, chat("status=500")); got.status != 500 || n.up.Report().Requests != 1 {
		t.Errorf("%d after %d requests", got.status, n.up.Report().Requests)
	}
	n.wantNothing(t, a, 0)
}

// Priority first, then weight; what was tried is avoided; a channel without weight serves only where none has any.
func TestPick(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	add := func(priority, weight int64) int64 {
		return s.channel(sqlstore.ChannelRow{Name: "c", BaseURL: "http://x", Models: "m", Priority: priority, Weight: weight})
	}
	heavy, light, none := add(5, 30), add(5, 10), add(5, 0)
	low, low2 := add(1, 0), add(1, 0)
	off := s.channel(sqlstore.ChannelRow{Name: "off", BaseURL: "http://x", Models: "m", Priority: 9, Status: sqlstore.ChannelDisabled})
	s.channel(sqlstore.ChannelRow{Name: "other group", BaseURL: "http://x", Models: "m", Group: "vip", Priority: 9})
	routes := s.start().catalog.Routes()
	const draws = 4000
	count := func(attempt int, tried ...int64) map[int64]int {
		got := map[int64]int{}
		for range draws {
			got[routes.Pick("default", "m", attempt, tried).ID]++
		}
		return got
	}
	near := func(got, want int) bool { return got > want-300 && got < want+300 }
	if got := count(0); !near(got[heavy], draws*3/4) || !near(got[light], draws/4) || got[none]+got[low]+got[off] > 0 {
		t.Errorf("first tries went to %v", got)
	}
	if got := count(0, heavy); got[light] != draws {
		t.Errorf("with %d tried, %v", heavy, got)
	}
	if got := count(0, heavy, light); got[none] != draws {
		t.Errorf("with %d and %d tried, %v", heavy, light, got)
	}
	for attempt := 1; attempt < 4; attempt++ {
		if got := count(attempt); !near(got[low], draws/2) || !near(got[low2], draws/2) {
			t.Errorf("tries number %d went to %v", attempt+1, got)
		}
	}
	if routes.Pick("nowhere", "m", 0, nil) != nil || routes.Pick("default", "unknown", 0, nil) != nil || routes.Has("vip", model) || !routes.Has("vip", "m") {
		t.Error("a channel was found where there is none")
	}
}

// model_mapping is followed through chains; bills keep the client's name; a cycle is the channel's mistake.
func TestModelMapping(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	s.channel2(sqlstore.ChannelRow{
		Name: "mapped", BaseURL: u.add(s, "up", 200), Models: model + ",embedder,instruct",
		ModelMapping: `{"` + model + `":"step","step":"final","embedder":"instruct","instruct":"embedder","final":"final"}`,
	})
	s.options("AutomaticDisableChannelEnabled", "true")
	n := s.start()
	a := n.account(start, -1)
	got := n.post(a.key, chatPath, chat(""))
	if !strings.Contains(u.body, `"model":"final"`) {
		t.Errorf("sent up %s", u.body)
	}
	if ev := n.event(got.request()); ev.Request.Sent != "final" || ev.Request.Model != model || ev.Charged != price(10, 10) {
		t.Errorf("event %+v of %+v", ev, ev.Request)
	}
	got = n.post(a.key, "/v1/embeddings", `{"model":"embedder","input":"x"}`)
	if got.status != 500 || got.fault() != "channel:model_mapped_error" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if f := <-n.failed; f.KeyIndex != -1 || f.Channel != 2 {
		t.Errorf("blamed %+v", f)
	}
	n.wantNothing(t, a, 1)
}

// status_code_mapping rewrites what the client sees, not what the rules for retries and disabling look at.
func TestStatusMapping(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	s.channel2(sqlstore.ChannelRow{
		Name: "mapped", BaseURL: u.add(s, "up", 401), StatusCodeMapping: `{"401":"503","x":"1","429":700}`,
	})
	s.options("AutomaticDisableChannelEnabled", "true", "AutomaticDisableKeywords", "nothing\nCREDIT balance")
	n := s.start()
	a := n.account(start, -1)
	if got := n.post(a.key, chatPath, chat("")); got.status != 503 || got.fault() != "c" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if f := <-n.failed; f.Status != 401 || f.Channel != 2 || f.KeyIndex != 0 || !strings.Contains(f.Reason, "credit balance") {
		t.Errorf("blamed %+v", f)
	}
}

// A failure disables a channel by its status or by a keyword, if both the option and the channel allow it.
func TestAutoDisable(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	s.channel(sqlstore.ChannelRow{Name: "m401", Models: "m401", BaseURL: u.add(s, "", 401)})
	s.channel(sqlstore.ChannelRow{Name: "m429", Models: "m429", BaseURL: u.add(s, "", 429)})
	kept := s.channel(sqlstore.ChannelRow{Name: "kept", Models: "kept", BaseURL: u.add(s, "", 401)})
	s.sql("UPDATE channels SET auto_ban = 0 WHERE id = ?", kept)
	s.options("SelfUseModeEnabled", "true")
	n := s.start()
	a := n.account(start*100, -1)
	blamed := func(model string) bool {
		n.post(a.key, chatPath, strings.Replace(chat(""), "gpt-4o-mini", model, 1))
		select {
		case <-n.failed:
			return true
		default:
			return false
		}
	}
	for _, c := range []struct {
		enabled, keywords string
		want              []string
	}{
		{"false", "credit balance", nil},
		{"true", "", []string{"m401"}},
		{"true", "some\nCredit Balance is\n", []string{"m401", "m429"}},
	} {
		s.options("AutomaticDisableChannelEnabled", c.enabled, "AutomaticDisableKeywords", c.keywords)
		n.must(n.catalog.Refresh(t.Context()))
		var got []string
		for _, model := range []string{"m401", "m429", "kept"} {
			if blamed(model) {
				got = append(got, model)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v were blamed", c, got)
		}
	}
}

// A channel with several keys uses them in turn or at random, but not those that are disabled.
func TestMultiKey(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	url := u.add(s, "up", 200)
	info := func(mode string) string {
		return `{"is_multi_key":true,"multi_key_size":4,"multi_key_status_list":{"1":2},"multi_key_mode":"` + mode + `"}`
	}
	s.channel(sqlstore.ChannelRow{Name: "turn", Models: "turn", BaseURL: url, Key: "k0\nk1\n\n k2 \nk3", ChannelInfo: info("polling")})
	s.channel(sqlstore.ChannelRow{Name: "dice", Models: "dice", BaseURL: url, Key: `["k0","k1","k2","k3"]`, ChannelInfo: info("random")})
	off := strings.Replace(info("polling"), `{"1":2}`, `{"0":2,"1":2,"2":3,"3":3}`, 1)
	s.channel(sqlstore.ChannelRow{Name: "off", Models: "off", BaseURL: url, Key: "k0\nk1\nk2\nk3", ChannelInfo: off})
	s.channel(sqlstore.ChannelRow{Name: "one", Models: "one", BaseURL: url, Key: " k0 \n"})
	s.options("SelfUseModeEnabled", "true")
	n := s.start()
	a := n.account(start*100, -1)
	used := func(model string, times int) []string {
		for range times {
			n.post(a.key, chatPath, strings.Replace(chat(""), "gpt-4o-mini", model, 1))
		}
		_, keys := u.take()
		return keys
	}
	if got := used("turn", 7); !slices.Equal(got, []string{"k0", "k2", "k3", "k0", "k2", "k3", "k0"}) {
		t.Errorf("in turn: %v", got)
	}
	dice := used("dice", 60)
	slices.Sort(dice)
	if got := slices.Compact(dice); !slices.Equal(got, []string{"k0", "k2", "k3"}) {
		t.Errorf("at random: %v", got)
	}
	if got := used("one", 1); !slices.Equal(got, []string{"k0"}) {
		t.Errorf("a single key: %q", got)
	}
	got := n.post(a.key, chatPath, strings.Replace(chat(""), model, "off", 1))
	if got.status != 500 || got.fault() != "channel:no_available_key" {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// An administrator's key may name the channel.
func TestPinnedChannel(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var u upstreams
	second := s.channel(sqlstore.ChannelRow{Name: "second", BaseURL: u.add(s, "second", 200), Models: "something", Priority: -5})
	off := s.channel(sqlstore.ChannelRow{Name: "off", BaseURL: u.add(s, "off", 200), Status: sqlstore.ChannelDisabled})
	failing := s.channel(sqlstore.ChannelRow{Name: "failing", BaseURL: u.add(s, "failing", 500)})
	s.options("RetryTimes", "3")
	n := s.start()
	a := n.account(start, -1)
	n.sql("UPDATE users SET role = ? WHERE id = ?", sqlstore.RoleAdmin, a.user)
	n.must(n.catalog.Load(t.Context()))
	for _, c := range []struct {
		pin    string
		status int
		asked  []string
	}{
		{fmt.Sprint("-", second), 200, []string{"second"}},
		{fmt.Sprint("-", failing), 500, []string{"failing"}},
		{fmt.Sprint("-", off), 403, nil},
		{"-999", 403, nil},
		{"-x", 400, nil},
		{"-0", 400, nil},
	} {
		got := n.post(a.key+c.pin, chatPath, chat(""))
		if asked, _ := u.take(); got.status != c.status || !slices.Equal(asked, c.asked) {
			t.Errorf("%s: %d %s, asked %v; want %d, %v", c.pin, got.status, got.body, asked, c.status, c.asked)
		}
	}
}

// The group decides on channels and price: the user's, the key's if the user may use it, or the first of auto that has one.
func TestGroups(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	for group, models := range map[string]string{"vip": model, "b": model, "c": model + ",only-c"} {
		s.channel(sqlstore.ChannelRow{Name: group, BaseURL: s.up.URL, Models: models, Group: group})
	}
	s.options("GroupRatio", `{"default":1,"vip":2,"b":3,"c":4}`, "UserUsableGroups", `{"default":"","vip":"","b":"","c":""}`,
		"AutoGroups", `["a","hidden","b","c"]`, "SelfUseModeEnabled", "true")
	n := s.start()
	group := func(name string) func(*sqlstore.TokenRow) {
		return func(row *sqlstore.TokenRow) { row.Group = name }
	}
	for _, c := range []struct {
		change func(*sqlstore.TokenRow)
		model  string
		group  string
		ratio  int64
		status int
	}{
		{group(""), model, "default", 1, 200},
		{group("vip"), model, "vip", 2, 200},
		{group("hidden"), model, "", 0, 403},
		{group("auto"), model, "b", 3, 200},
		{group("auto"), "only-c", "c", 4, 200},
		{group("vip"), "only-c", "", 0, 503},
		{func(row *sqlstore.TokenRow) { row.Group, row.AutoGroups = "auto", `["c","vip"]` }, model, "c", 4, 200},
	} {
		a := n.account(start*100, -1, c.change)
		got := n.post(a.key, chatPath, strings.Replace(chat("completion=5;prompt=40"), model, c.model, 1))
		if got.status != c.status {
			t.Errorf("%+v: %d %s", c, got.status, got.body)
			continue
		}
		if c.status != 200 {
			continue
		}
		ev := n.event(got.request())
		if ev.Request.Group != c.group || c.model == model && ev.Charged != c.ratio*price(40, 5) {
			t.Errorf("served from %q for %d, want %q for %d", ev.Request.Group, ev.Charged, c.group, c.ratio*price(40, 5))
		}
	}
}

// Allow-lists look at the peer, and at X-Forwarded-For only behind proxies that are trusted.
func TestClientAddress(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	limited := func(row *sqlstore.TokenRow) { row.AllowIPs = "198.51.100.7\n2001:db8::/32" }
	plain := s.start()
	a := plain.account(start, -1, limited)
	if got := plain.post(a.key, chatPath, chat(""), "X-Forwarded-For", "198.51.100.7"); got.status != 403 || got.fault() != "access_denied" {
		t.Errorf("an untrusted peer may say who it is: %d %s", got.status, got.body)
	}
	plain.stop()
	behind := s.start(func(c *nodeConfig) {
		c.relay = func(rc *relay.Config) { rc.TrustedProxies = prefixes("127.0.0.0/8", "10.0.0.0/8") }
	})
	for forwarded, status := range map[string]int{
		"198.51.100.7":                        200,
		"203.0.113.9, 198.51.100.7":           200, // the client's own lie stands to the left
		"198.51.100.7, 203.0.113.9":           403,
		"198.51.100.7, 10.1.1.1":              200, // another proxy of ours
		"2001:db8:1::1":                       200,
		"::ffff:198.51.100.7":                 200,
		"198.51.100.7, garbage":               403,
		"":                                    403,
		"198.51.100.7,10.0.0.1,127.0.0.1":     200,
		"198.51.100.7, 203.0.113.9, 10.0.0.1": 403,
	} {
		if got := behind.post(a.key, chatPath, chat(""), "X-Forwarded-For", forwarded); got.status != status {
			t.Errorf("X-Forwarded-For %q: %d, want %d", forwarded, got.status, status)
		}
	}
}

// The ways to present a key.
func TestKeyForms(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(start, -1)
	bare := strings.TrimPrefix(a.key, "sk-")
	for _, h := range [][2]string{
		{"Authorization", "Bearer " + a.key},
		{"Authorization", "Bearer " + bare},
		{"Authorization", "bearer  " + a.key},
		{"Authorization", a.key},
		{"X-Api-Key", a.key},
	} {
		if got := n.post("", chatPath, chat(""), h[0], h[1]); got.status != 200 {
			t.Errorf("%s: %s: %d %s", h[0], h[1], got.status, got.body)
		}
	}
	for _, key := range []string{bare[1:], "sk-sk-" + bare, bare + " x", "Basic " + bare} {
		if got := n.post("", chatPath, chat(""), "Authorization", key); got.status != 401 {
			t.Errorf("%q: %d", key, got.status)
		}
	}
}

// A bill that no book can price is refused before anything is held or sent.
func TestUnpriced(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	s.channel(sqlstore.ChannelRow{Name: "more", BaseURL: s.up.URL, Models: "unpriced"})
	n := s.start()
	a := n.account(start*100, -1)
	body := strings.Replace(chat(""), model, "unpriced", 1)
	if got := n.post(a.key, chatPath, body); got.status != 400 || got.fault() != "model_price_error" {
		t.Errorf("%d %s", got.status, got.body)
	}
	n.sql("UPDATE users SET setting = ? WHERE id = ?", `{"accept_unset_model_ratio_model":true,"record_ip_log":true}`, a.user)
	n.must(n.catalog.Load(t.Context()))
	got := n.post(a.key, chatPath, body)
	if ev := n.event(got.request()); got.status != 200 || ev.Request.IP != "127.0.0.1" || ev.Rating.ModelRatio != "37.5" {
		t.Errorf("%d, event %+v of %+v", got.status, ev.Rating, ev.Request)
	}
}

// A key expires while the node runs.
func TestKeyExpires(t *testing.T) {
	s := newStack(t, relaytest.Script{})
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	n := s.start(func(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.Now = clock } })
	a := n.account(start, -1, func(row *sqlstore.TokenRow) { row.ExpiredTime = clock().Unix() + 60 })
	if got := n.post(a.key, chatPath, chat("")); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	ahead.Store(int64(61 * time.Second))
	if got := n.post(a.key, chatPath, chat("")); got.status != 401 {
		t.Errorf("%d %s", got.status, got.body)
	}
	n.wantNothing(t, a, 1)
}
