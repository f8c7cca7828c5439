package relaytest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// Options say what a mock upstream does when a request dictates nothing.
type Options struct {
	// Script is the base of every answer; the zero Script means DefaultScript.
	Script Script
	// Models is what GET /v1/models lists; empty means three names. Any model is answered.
	Models []string
	// OraclePath is the file that every record is appended to; "" keeps records in memory only.
	OraclePath string
	// Sync makes every line of the file durable before the answer ends: for tests that kill the machine's mock.
	Sync bool
	// ProgressEvery writes a line every so many content chunks of a stream; 0: at the beginning and the end only.
	ProgressEvery int64
	// APIKey, if not empty, is the only key accepted.
	APIKey string
}

// maxBodyBytes bounds a request body; the largest the relay takes by default.
const maxBodyBytes = 128 << 20

// Upstream is the mock, an http.Handler. Make it with New.
type Upstream struct {
	opts   Options
	oracle *oracle
	run    string // makes answer ids unique across mocks that share an oracle file
	mux    *http.ServeMux
}

// New returns a mock upstream. The error is that of opening the oracle file.
func New(opts Options) (*Upstream, error) {
	if opts.Script == (Script{}) {
		opts.Script = DefaultScript()
	}
	if len(opts.Models) == 0 {
		opts.Models = []string{"gpt-4o", "gpt-4o-mini", "text-embedding-3-small"}
	}
	o, err := openOracle(opts.OraclePath, opts.Sync)
	if err != nil {
		return nil, err
	}
	u := &Upstream{opts: opts, oracle: o, run: rand.Text()[:8], mux: http.NewServeMux()}
	u.mux.HandleFunc("POST /v1/chat/completions", u.generate("chat.completion"))
	u.mux.HandleFunc("POST /v1/completions", u.generate("text_completion"))
	u.mux.HandleFunc("POST /v1/embeddings", u.generate("embedding"))
	u.mux.HandleFunc("GET /v1/models", u.models)
	u.mux.HandleFunc("GET /oracle", u.report)
	u.mux.HandleFunc("GET /oracle/records", u.listRecords)
	return u, nil
}

// ServeHTTP answers like an OpenAI-compatible upstream, and GET /oracle with a Report.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) { u.mux.ServeHTTP(w, r) }

// Report returns the sums of what was served.
func (u *Upstream) Report() Report { return u.oracle.report() }

// Records returns the records of finished requests, oldest first, the newest 50,000 at least.
func (u *Upstream) Records() []Record {
	u.oracle.mu.Lock()
	defer u.oracle.mu.Unlock()
	return append([]Record(nil), u.oracle.records...)
}

// Record returns the record of a finished request by the id that the relay forwarded.
func (u *Upstream) Record(requestID string) (Record, bool) {
	u.oracle.mu.Lock()
	defer u.oracle.mu.Unlock()
	for i := len(u.oracle.records) - 1; i >= 0; i-- {
		if u.oracle.records[i].Request == requestID {
			return u.oracle.records[i], true
		}
	}
	return Record{}, false
}

// Close waits for the answers under way, so end their connections first, and closes the oracle file; the error is the
// first that writing it met.
func (u *Upstream) Close() error { return u.oracle.close() }

func (u *Upstream) models(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
	}
	list := make([]model, len(u.opts.Models))
	for i, name := range u.opts.Models {
		list[i] = model{name, "model", created, "mock"}
	}
	writeJSON(w, map[string]any{"object": "list", "data": list})
}

func (u *Upstream) report(w http.ResponseWriter, _ *http.Request) { writeJSON(w, u.Report()) }

func (u *Upstream) listRecords(w http.ResponseWriter, _ *http.Request) { writeJSON(w, u.Records()) }

// writeJSON answers a look at the mock; a client that left needs no answer.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// job is one request being answered.
type job struct {
	u      *Upstream
	w      http.ResponseWriter
	r      *http.Request
	script Script
	rec    Record
	object string // "chat.completion", "text_completion", "embedding"
	body   []byte

	choices  int64
	tokens   int64 // per choice
	finish   string
	askUsage bool
	bad      error // the request cannot be read
	buf      []byte
}

func (u *Upstream) generate(object string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		j := &job{u: u, w: w, r: r, object: object}
		j.rec = Record{
			Request: r.Header.Get("X-Oneapi-Request-Id"), Endpoint: r.URL.Path, Status: http.StatusOK,
			Key: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "),
		}
		j.bad = j.read()
		u.oracle.begin(&j.rec, u.run)
		defer u.oracle.end(&j.rec)
		j.answer()
	}
}

// read reads what the request dictates.
func (j *job) read() (err error) {
	if j.script, err = scriptOf(j.u.opts.Script, j.r.Header, nil); err != nil {
		return err
	}
	if !j.script.Early {
		if j.body, err = io.ReadAll(http.MaxBytesReader(j.w, j.r.Body, maxBodyBytes)); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if !gjson.ValidBytes(j.body) {
			return fmt.Errorf("read request: not JSON")
		}
		if j.script, err = scriptOf(j.u.opts.Script, j.r.Header, j.body); err != nil {
			return err
		}
	}
	if j.rec.Prompt = j.script.Prompt; j.rec.Prompt == 0 {
		j.rec.Prompt = max(1, int64(len(j.body))/4)
	}
	j.rec.User = j.script.User
	j.choices, j.tokens, j.finish = 1, j.script.Completion, j.script.Finish
	if j.script.Early {
		j.rec.Stream, j.askUsage = true, true
		return nil
	}
	in := gjson.GetManyBytes(j.body, "model", "stream", "stream_options.include_usage", "n", "max_tokens", "max_completion_tokens")
	j.rec.Model, j.rec.Stream, j.askUsage = in[0].String(), in[1].Bool(), in[2].Bool()
	j.choices = max(in[3].Int(), 1)
	for _, limit := range in[4:6] {
		if n := limit.Int(); limit.Exists() && n > 0 && n < j.tokens {
			j.tokens, j.finish = n, "length"
		}
	}
	return nil
}

func (j *job) answer() {
	s := &j.script
	if key := j.u.opts.APIKey; key != "" && j.rec.Key != key {
		j.fail(http.StatusUnauthorized, "invalid_api_key", "Incorrect API key provided")
		return
	}
	if s.First > 0 && !j.wait(s.First) {
		return
	}
	switch {
	case j.bad != nil:
		j.fail(http.StatusBadRequest, "invalid_request", j.bad.Error())
	case s.Status >= 400:
		j.fail(s.Status, "mock_code", "the script asked for "+strconv.Itoa(s.Status))
	case s.Reject && gjson.GetBytes(j.body, "stream_options").Exists():
		j.fail(http.StatusBadRequest, "unknown_parameter", "Unknown parameter: 'stream_options'.")
	case j.object == "embedding":
		j.embed()
	case j.rec.Stream:
		j.stream()
	default:
		j.whole()
	}
}

// fail answers an error as OpenAI does.
func (j *job) fail(status int, code, msg string) {
	j.rec.Status = status
	kind := "invalid_request_error"
	if status >= 500 {
		kind = "server_error"
	} else if status == http.StatusTooManyRequests {
		kind = "rate_limit_error"
		j.w.Header().Set("Retry-After", "1")
	}
	j.w.Header().Set("Content-Type", "application/json")
	j.w.WriteHeader(status)
	_, err := fmt.Fprintf(j.w, `{"error":{"message":%q,"type":%q,"param":null,"code":%q}}`, msg, kind, code)
	j.rec.Cut = err != nil
}

// wait waits unless the client leaves.
func (j *job) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-j.r.Context().Done():
		j.rec.Cut = true
		return false
	}
}

// OraclePath returns the file that the records are appended to, "" if there is none.
func (u *Upstream) OraclePath() string { return u.opts.OraclePath }
