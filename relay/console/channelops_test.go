package console

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"ledgerline/relay/relaytest"
	"ledgerline/relay/upstream"
)

// A channel test asks the upstream and says what it answered.
func TestChannelTest(t *testing.T) {
	mock, err := relaytest.Start("", relaytest.Options{APIKey: "sk-right"})
	check(t, err)
	t.Cleanup(func() { check(t, mock.Close()) })
	s := newSite(t)
	client := upstream.New(upstream.Config{})
	t.Cleanup(client.Close)
	s.console.cfg.TestChannel = NewChannelTester(s.catalog, client)
	root := s.root()
	create := func(mode string, c map[string]any) int64 {
		t.Helper()
		if c["base_url"] == nil {
			c["base_url"] = mock.URL
		}
		c["name"] = "c"
		root.must("POST", "/api/channel/", map[string]any{"mode": mode, "channel": c})
		return int64(root.must("GET", "/api/channel/?id_sort=true", nil).items()[0].(map[string]any)["id"].(float64))
	}
	good := create("single", map[string]any{"type": 1, "key": "sk-right", "models": "gpt-4o,text-embedding-3-small", "model_mapping": `{"loop":"loop2","loop2":"loop"}`})
	wrong := create("single", map[string]any{"type": 1, "key": "sk-wrong", "models": "gpt-4o"})
	empty := create("single", map[string]any{"type": 1, "key": "sk-right"})
	other := create("single", map[string]any{"type": 2, "key": "k", "models": "mj"})
	away := create("single", map[string]any{"type": 1, "key": "sk-right", "models": "gpt-4o", "base_url": "http://127.0.0.1:1"})
	keyless := create("multi_to_single", map[string]any{"type": 1, "key": "a", "models": "gpt-4o"})
	check(t, s.store.DisableChannel(t.Context(), keyless, 0, "x"))
	check(t, s.catalog.Refresh(t.Context()))
	for _, c := range []struct {
		id          int64
		model, says string // says "" means success
	}{
		{good, "", ""},
		{good, "gpt-4o", ""},
		{good, "text-embedding-3-small", ""},
		{good, "loop", "circle"},
		{wrong, "", "401"},
		{empty, "", "serves no model"},
		{other, "", "cannot serve"},
		{away, "", "refused"},
		{keyless, "", "keys of the channel are disabled"},
	} {
		r := root.call("GET", fmt.Sprintf("/api/channel/test/%d?model=%s", c.id, c.model), nil)
		message, _ := r.body["message"].(string)
		if r.status != http.StatusOK || r.ok() != (c.says == "") || !strings.Contains(message, c.says) || strings.Contains(message, "sk-") {
			t.Errorf("channel %d, model %q: %s", c.id, c.model, r.raw)
		}
	}
	if c, err := s.store.Channel(t.Context(), good); err != nil || c.TestTime == 0 {
		t.Errorf("the test was not noted: %+v, %v", c, err)
	}
	root.refused(200, "", "GET", "/api/channel/test/999", nil)
}
