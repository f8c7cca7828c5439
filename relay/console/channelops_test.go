package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
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

// The models of an upstream are asked for with a channel's key, or with the one in a form that is not stored yet.
func TestFetchModels(t *testing.T) {
	mock := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet || r.URL.Path != "/v1/models":
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("Authorization") != "Bearer sk-right":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write([]byte(`{"object": "list", "data": [{"id": "gpt-4o", "object": "model"}, {"id": "o3"}, {"object": "odd"}]}`))
		}
	}))
	t.Cleanup(mock.Close)
	s := newSite(t)
	client := upstream.New(upstream.Config{})
	t.Cleanup(client.Close)
	s.console.cfg.ListModels = NewModelLister(client)
	root := s.root()
	for _, c := range []struct {
		kind      int
		key, base string
		says      string // "": the models come
	}{
		{1, "sk-right", mock.URL, ""},
		{43, "\n sk-right \nsk-other", mock.URL + "/", ""}, // several keys: the first
		{1, "sk-wrong", mock.URL, "401"},
		{1, "sk-right", "http://127.0.0.1:1", "refused"},
		{1, "sk-right", "ftp://x", "base_url"},
		{3, "sk-right", mock.URL, "cannot be asked"},
		{14, "sk-right", mock.URL, "cannot"},
		{1, "", mock.URL, "no key"},
	} {
		form := root.call("POST", "/api/channel/fetch_models", map[string]any{"type": c.kind, "key": c.key, "base_url": c.base})
		answers := []reply{form}
		if c.key != "" && c.base != "ftp://x" {
			root.must("POST", "/api/channel/", map[string]any{"mode": "multi_to_single", "channel": map[string]any{"name": "c", "type": c.kind, "key": c.key, "base_url": c.base, "models": "m"}})
			id := root.must("GET", "/api/channel/?id_sort=true", nil).items()[0].(map[string]any)["id"]
			answers = append(answers, root.call("GET", fmt.Sprintf("/api/channel/fetch_models/%v", id), nil))
		}
		for _, r := range answers {
			message, _ := r.body["message"].(string)
			if r.status != http.StatusOK || r.ok() != (c.says == "") || !strings.Contains(message, c.says) || strings.Contains(message, "sk-") {
				t.Errorf("%+v: %s", c, r.raw)
			}
			if c.says == "" && fmt.Sprint(r.body["data"]) != "[gpt-4o o3]" {
				t.Errorf("%+v: %s", c, r.raw)
			}
		}
	}
	root.refused(200, "", "GET", "/api/channel/fetch_models/999", nil)
}
