package relay_test

import (
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/relaytest"
)

// exchange is one recorded request and its answer.
type exchange struct {
	Name    string
	Request struct {
		Method, Path, Auth string
		Body               json.RawMessage
		BodyText           *string `json:"body_text"`
		Headers            map[string]string
	}
	Status  int
	Headers map[string]string
	Body    json.RawMessage
	Note    string
	Banned  *int `json:"channels_disabled_by_it"`
}

func recorded(t *testing.T, name string) []exchange {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/newapi", name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Exchanges []exchange }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file.Exchanges
}

func (e *exchange) body() string {
	if e.Request.BodyText != nil {
		return *e.Request.BodyText
	}
	if string(e.Request.Body) == "null" {
		return ""
	}
	return string(e.Request.Body)
}

// recordedStack is a node whose keys and upstream are those of the recordings.
type recordedStack struct {
	*node
	upstream atomic.Pointer[http.HandlerFunc]
	keys     map[string]string
	channel  int64
}

func newRecorded(t *testing.T) *recordedStack {
	s := newStack(t, relaytest.Script{})
	r := &recordedStack{keys: map[string]string{"none": "", "unknown key": "sk-" + strings.Repeat("x", 48), "empty key": "sk-"}}
	s.options("AutomaticDisableChannelEnabled", "true", "GroupRatio", `{"default":1,"svip":1}`)
	r.channel = s.channel2(sqlstore.ChannelRow{
		Name: "recorded", Models: "gpt-4o,gpt-4.1", Group: "default,svip",
		BaseURL: s.upstreamOf(func(w http.ResponseWriter, req *http.Request) { (*r.upstream.Load())(w, req) }),
	})
	r.node = s.start(func(c *nodeConfig) { c.relay = func(rc *relay.Config) { rc.RelayTimeout = 300 * time.Millisecond } })
	const plenty = 100_000_000
	r.keys["key"] = r.account(plenty, plenty).key
	r.keys["key with -1 appended"] = r.keys["key"] + "-1"
	r.keys["key with 5 quota left"] = r.account(plenty, 5).key
	r.keys["unlimited key of a user with quota 0"] = r.account(0, -1).key
	r.keys["key bound to other IPs"] = r.account(plenty, plenty, func(t *sqlstore.TokenRow) { t.AllowIPs = "192.0.2.7\n198.51.100.0/24" }).key
	r.keys["key with model limits"] = r.account(plenty, plenty, func(t *sqlstore.TokenRow) {
		t.ModelLimitsEnabled, t.ModelLimits = true, "gpt-4o,gpt-4o-mini"
	}).key
	r.keys["expired key"] = r.account(plenty, plenty, func(t *sqlstore.TokenRow) { t.ExpiredTime = time.Now().Unix() - 1 }).key
	for name, sql := range map[string]string{
		"disabled key":               "UPDATE tokens SET status = 2 WHERE id = ?",
		"exhausted key (status 4)":   "UPDATE tokens SET status = 4 WHERE id = ?",
		"key of a disabled user":     "UPDATE users SET status = 2 WHERE id = (SELECT user_id FROM tokens WHERE id = ?)",
		"key of a soft-deleted user": "UPDATE users SET deleted_at = '2026-01-01 00:00:00' WHERE id = (SELECT user_id FROM tokens WHERE id = ?)",
	} {
		a := r.account(plenty, plenty)
		r.sql(sql, a.token)
		r.keys[name] = a.key
	}
	r.must(r.catalog.Load(t.Context()))
	return r
}

// channel2 replaces the stack's own channel.
func (s *stack) channel2(row sqlstore.ChannelRow) int64 {
	_, err := s.db.DeleteChannels(s.Context(), 1)
	s.must(err)
	return s.channel(row)
}

func (s *stack) sql(query string, args ...any) {
	s.Helper()
	s.must(s.db.Tx(s.Context(), func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(s.Context(), query, args...)
		return err
	}))
}

// respond makes the upstream answer as in the recording.
func (r *recordedStack) respond(e *exchange) {
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, found := strings.CutPrefix(e.Note, "upstream body: ")
		status := e.Status
		switch {
		case e.Name == "upstream 500, HTML body":
			body = "<html><body>Internal Server Error</body></html>"
		case e.Name == "upstream 200, not JSON":
			status, body = 200, "not json"
		case e.Name == "upstream 429, stream asked":
			body = `{"error": {"message": "slow down", "type": "rate_limit_error", "param": null, "code": "mock_code"}}`
		case strings.HasPrefix(e.Name, "upstream timeout"):
			_, _ = io.Copy(io.Discard, req.Body)
			<-req.Context().Done()
			return
		case !found:
			r.Errorf("%s: the upstream should not have been asked", e.Name)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	r.upstream.Store(&h)
	if e.Name == "upstream refuses the connection" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		r.must(err)
		r.must(ln.Close())
		r.sql("UPDATE channels SET base_url = ? WHERE id = ?", "http://"+ln.Addr().String(), r.channel)
		r.must(r.catalog.Load(r.Context()))
	}
}

// send sends a recorded request.
func (r *recordedStack) send(e *exchange) *reply {
	r.Helper()
	key, ok := r.keys[e.Request.Auth]
	if !ok {
		r.Fatalf("%s: no key for %q", e.Name, e.Request.Auth)
	}
	req := r.newRequest(r.Context(), key, e.Request.Path, e.body())
	req.Method = e.Request.Method
	if req.Method == http.MethodGet {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	for k, v := range e.Request.Headers {
		req.Header.Set(k, v)
	}
	return r.do(req)
}

// wantStatus is the status of a recorded answer with the deliberate differences applied.
func (e *exchange) wantStatus() int {
	switch {
	case e.Name == "user soft-deleted":
		return http.StatusUnauthorized
	case e.Status == 500 && differs(e.Name):
		return http.StatusBadRequest
	}
	return e.Status
}

// errorObject returns the error object of an answer; recorded streams are a list of lines.
func errorObject(t *testing.T, body []byte) map[string]any {
	t.Helper()
	var lines []string
	if json.Unmarshal(body, &lines) == nil && len(lines) == 1 {
		body = []byte(lines[0])
	}
	var answer map[string]map[string]any
	if err := json.Unmarshal(body, &answer); err != nil || len(answer) != 1 {
		t.Fatalf("%s is not an error and nothing else: %v", body, err)
	}
	return answer["error"]
}

// Refusals and upstream failures are New API's: status, code, type and shape; never the wording.
func TestRecordedErrors(t *testing.T) {
	r := newRecorded(t)
	for _, e := range slices.Concat(recorded(t, "relay-errors-openai.json"), recorded(t, "relay-not-implemented.json")[:3]) {
		t.Run(e.Name, func(t *testing.T) {
			r.TB = t
			r.respond(&e)
			got := r.send(&e)
			if got.status != e.wantStatus() {
				t.Fatalf("status %d, want %d (New API: %d): %s", got.status, e.wantStatus(), e.Status, got.body)
			}
			ours, theirs := errorObject(t, []byte(got.body)), errorObject(t, e.Body)
			if a, b := slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(theirs)); !slices.Equal(a, b) {
				t.Errorf("the error has %v, New API's %v", a, b)
			}
			if ours["code"] != theirs["code"] || ours["type"] != theirs["type"] {
				t.Errorf("code %q and type %q, New API's are %q and %q", ours["code"], ours["type"], theirs["code"], theirs["type"])
			}
			if ct := got.header.Get("Content-Type"); ct != "application/json; charset=utf-8" || ct != e.Headers["Content-Type"] && !differs(e.Name) {
				t.Errorf("Content-Type %q, New API's is %q", ct, e.Headers["Content-Type"])
			}
			ended := strings.HasSuffix(ours["message"].(string), "(request id: "+got.request()+")")
			if theirs := strings.Contains(theirs["message"].(string), "(request id: "); ended != theirs || got.request() == "" {
				t.Errorf("message %q: request id %v, New API %v", ours["message"], ended, theirs)
			}
			r.checkBanned(t, &e)
		})
	}
	r.TB = t
	r.drain()
	if events := r.clerk.usage(); len(events) != 0 {
		t.Errorf("failed requests were billed: %+v", events)
	}
}

// checkBanned compares the channels that an answer disables.
func (r *recordedStack) checkBanned(t *testing.T, e *exchange) {
	banned := 0
	for {
		select {
		case f := <-r.failed:
			if banned++; f.Channel != r.channel || f.Status != e.Status || f.Reason == "" {
				t.Errorf("blamed %+v", f)
			}
			continue
		default:
		}
		break
	}
	want := 0
	if e.Banned != nil {
		want = *e.Banned
	}
	if banned != want {
		t.Errorf("%d channels disabled, New API disabled %d", banned, want)
	}
}

// Answers to good requests have the recorded shape; the models list, too.
func TestRecordedModels(t *testing.T) {
	r := newRecorded(t)
	for _, e := range recorded(t, "v1-models.json") {
		if e.Name == "Anthropic" || e.Name == "Gemini" {
			continue // shapes of other APIs
		}
		t.Run(e.Name, func(t *testing.T) {
			r.TB = t
			got := r.send(&e)
			if got.status != e.Status {
				t.Fatalf("status %d, want %d", got.status, e.Status)
			}
			var ours, theirs map[string]any
			r.must(json.Unmarshal([]byte(got.body), &ours))
			r.must(json.Unmarshal(e.Body, &theirs))
			if a, b := slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(theirs)); !slices.Equal(a, b) {
				t.Errorf("fields %v, New API's are %v", a, b)
			}
			ids := []string{}
			list, _ := ours["data"].([]any)
			for _, m := range list {
				ids = append(ids, m.(map[string]any)["id"].(string))
			}
			want := map[string][]string{"OpenAI": {"gpt-4.1", "gpt-4o"}, "limited token": {"gpt-4o"}}[e.Name]
			if !slices.Equal(ids, want) && len(want)+len(ids) > 0 {
				t.Errorf("models %v, want %v", ids, want)
			}
			if object, ok := theirs["error"].(map[string]any); ok && e.Status == 200 {
				ours, _ := ours["error"].(map[string]any)
				if ours["code"] != object["code"] || ours["type"] != object["type"] || ours["param"] != object["param"] {
					t.Errorf("error %v, New API's is %v", ours, object)
				}
			}
		})
	}
}
