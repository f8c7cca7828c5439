package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Bounds of a request.
const (
	// maxBodyBytes holds the largest batch of the usage log many times over.
	maxBodyBytes = 512 << 20
	// maxQueries run at once; more wait their turn. ClickHouse spreads one query over all cores.
	maxQueries = 8
)

// server answers HTTP requests from an engine.
type server struct {
	engine   *engine
	version  string
	timezone string
	inbox    string        // where the data of INSERTs is handed over
	running  chan struct{} // holds a token per request that is being answered
}

func newServer(e *engine) (*server, error) {
	r, err := e.base.query([]byte("SELECT version(), timezone()"), "TabSeparated")
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its version: %w", err)
	}
	version, timezone, _ := strings.Cut(strings.TrimSpace(string(r.body)), "\t")
	inbox := filepath.Join(e.path, "chserver_inbox")
	if err := os.RemoveAll(inbox); err != nil { // what a killed process left
		return nil, fmt.Errorf("clear the inbox: %w", err)
	}
	if err := os.Mkdir(inbox, 0o700); err != nil {
		return nil, fmt.Errorf("make the inbox: %w", err)
	}
	return &server{engine: e, version: version, timezone: timezone, inbox: inbox, running: make(chan struct{}, maxQueries)}, nil
}

// ServeHTTP answers /ping and, on any other path, a query, as ClickHouse does: the text of the statement is the parameter
// `query`, the body, or both, the body then being the data of an INSERT.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-ClickHouse-Server-Display-Name", "chserver")
	w.Header().Set("X-ClickHouse-Timezone", s.timezone)
	parameters := r.URL.Query()
	switch {
	case r.URL.Path == "/ping", (r.Method == http.MethodGet || r.Method == http.MethodHead) && !parameters.Has("query"):
		fmt.Fprint(w, "Ok.\n")
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	text, err := statement(r, parameters)
	if err != nil {
		fail(w, err)
		return
	}
	if isHello(text) {
		answer(w, r, parameters, result{body: s.hello(parameters.Get("client_protocol_version"))})
		return
	}
	select {
	case s.running <- struct{}{}:
		defer func() { <-s.running }()
	case <-r.Context().Done():
		return
	}
	out, err := s.query(parameters, text)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, r, parameters, out)
}

// statement puts the query and the data of an INSERT together.
func statement(r *http.Request, parameters url.Values) ([]byte, error) {
	body, err := readBody(r, parameters)
	if err != nil {
		return nil, err
	}
	query := parameters.Get("query")
	if query == "" {
		return body, nil
	}
	return slices.Concat([]byte(query), []byte("\n"), body), nil
}

// query runs one request in a session of its own.
func (s *server) query(parameters url.Values, text []byte) (result, error) {
	session, err := s.engine.session()
	if err != nil {
		return result{}, err
	}
	defer session.close()
	for _, q := range prepare(parameters) {
		if _, err := session.query([]byte(q), "Null"); err != nil {
			return result{}, err
		}
	}
	format := parameters.Get("default_format")
	if format == "" {
		format = "TabSeparated"
	}
	if insert, data, ok := cutInsert(text); ok {
		return s.insert(session, insert, data)
	}
	return session.query(text, format)
}

// insertRule matches the head of an INSERT whose data follows in a format: table, columns, settings, format.
var insertRule = regexp.MustCompile(`(?is)^\s*(INSERT\s+INTO\s+(?:TABLE\s+)?[^\s(]+\s*(?:\([^)]*\))?)\s*(SETTINGS\s.*?)?\s*FORMAT\s+(\w+)[ \t]*\r?\n?`)

// insertHead is an INSERT statement without its data.
type insertHead struct{ into, settings, format string }

func cutInsert(text []byte) (insertHead, []byte, bool) {
	m := insertRule.FindSubmatch(text)
	if m == nil {
		return insertHead{}, nil, false
	}
	return insertHead{into: strings.TrimSpace(string(m[1])), settings: string(m[2]), format: string(m[3])}, text[len(m[0]):], true
}

// insert hands the data over in a file: behind a statement the engine takes an empty line for the end of the data, and
// the bytes of an empty line are somewhere in any larger block.
func (s *server) insert(session *session, head insertHead, data []byte) (result, error) {
	f, err := os.CreateTemp(s.inbox, "in")
	if err != nil {
		return result{}, fmt.Errorf("hand over the data: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return result{}, fmt.Errorf("hand over the data: %w", err)
	}
	query := head.into + " FROM INFILE " + quote(f.Name()) + " " + head.settings + " FORMAT " + head.format
	return session.query([]byte(query), "Null")
}

// reserved are the parameters that are no settings. Those about compression of blocks are, but mean nothing to the engine
// behind this server.
var reserved = map[string]bool{
	"query": true, "query_id": true, "database": true, "default_format": true, "client_protocol_version": true,
	"compress": true, "decompress": true, "network_compression_method": true, "network_zstd_compression_level": true,
	"user": true, "password": true, "quota_key": true, "role": true, "session_id": true, "session_timeout": true,
	"session_check": true, "stacktrace": true, "buffer_size": true, "wait_end_of_query": true, "close_session": true,
}

// prepare returns the statements that give a session what the request's parameters say: the database, then the settings
// and the parameters of the query, in the order of their names.
func prepare(parameters url.Values) []string {
	var sets []string
	for name, values := range parameters {
		if !reserved[name] && isName(name) && !strings.HasPrefix(name, "http_") {
			sets = append(sets, "SET "+name+" = "+quote(values[0]))
		}
	}
	slices.Sort(sets)
	if db := parameters.Get("database"); db != "" {
		return append([]string{"USE `" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(db) + "`"}, sets...)
	}
	return sets
}

var nameRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func isName(s string) bool { return nameRule.MatchString(s) }

func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

var codeRule = regexp.MustCompile(`^Code: (\d+)\.`)

// fail answers with ClickHouse's text, its code in a header, and the status that ClickHouse has for the code.
func fail(w http.ResponseWriter, err error) {
	text, code := err.Error(), "1000"
	if m := codeRule.FindStringSubmatch(text); m != nil {
		code = m[1]
	}
	w.Header().Set("X-ClickHouse-Exception-Code", code)
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.WriteHeader(statusOf(code))
	fmt.Fprintln(w, text)
}

// statusOf maps an exception code to a status, for the codes that a client of ours meets.
func statusOf(code string) int {
	switch code {
	case "60", "81", "47", "46": // no such table, database, identifier, function
		return http.StatusNotFound
	case "62", "27", "26", "6", "53", "115", "36": // syntax, values, types, an unknown setting, bad arguments
		return http.StatusBadRequest
	case "159": // timeout exceeded
		return http.StatusRequestTimeout
	case "202": // too many queries at once
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
