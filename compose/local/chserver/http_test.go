package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
)

func TestPrepareQuotes(t *testing.T) {
	got := prepare(url.Values{
		"database": {"a`b"}, "query": {"SELECT 1"}, "max_threads": {"2"}, "param_who": {`it's \ me`},
		"insert_deduplication_token": {"x"}, "bad name": {"1"}, "http_write_timeout": {"3"},
	})
	want := []string{
		"USE `a\\`b`", "SET insert_deduplication_token = 'x'", "SET max_threads = '2'", `SET param_who = 'it\'s \\ me'`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("prepare = %q, want %q", got, want)
	}
}

func TestFailCarriesTheCode(t *testing.T) {
	for text, want := range map[string]struct {
		code   string
		status int
	}{
		"Code: 60. DB::Exception: Unknown table. (UNKNOWN_TABLE)": {"60", 404},
		"Code: 62. DB::Exception: Syntax error. (SYNTAX_ERROR)":   {"62", 400},
		"Code: 241. DB::Exception: memory (MEMORY_LIMIT)":         {"241", 500},
		"something else": {"1000", 500},
	} {
		w := httptest.NewRecorder()
		fail(w, errors.New(text))
		if got := w.Header().Get("X-ClickHouse-Exception-Code"); got != want.code || w.Code != want.status {
			t.Errorf("%s: code %s, status %d, want %s and %d", text, got, w.Code, want.code, want.status)
		}
		if !strings.HasPrefix(w.Body.String(), text) {
			t.Errorf("%s: body %q", text, w.Body)
		}
	}
}

func TestStatementDecompressesTheData(t *testing.T) {
	blocks, err := compressBlocks([]byte("the data"), "LZ4")
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write([]byte("the data"))
	z.Close()
	for name, c := range map[string]struct {
		body     []byte
		target   string
		encoding string
	}{
		"plain":  {[]byte("the data"), "/?query=INSERT", ""},
		"blocks": {blocks, "/?query=INSERT&decompress=1", ""},
		"gzip":   {zipped.Bytes(), "/?query=INSERT", "gzip"},
	} {
		r := httptest.NewRequest(http.MethodPost, c.target, bytes.NewReader(c.body))
		if c.encoding != "" {
			r.Header.Set("Content-Encoding", c.encoding)
		}
		got, err := statement(r, r.URL.Query())
		if err != nil || string(got) != "INSERT\nthe data" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x"))
	r.Header.Set("Content-Encoding", "br")
	if _, err := statement(r, r.URL.Query()); err == nil {
		t.Error("an unknown encoding was taken")
	}
}

func TestAnswerCompresses(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), blockBytes/16+1) // two blocks
	for _, method := range []string{"LZ4", "ZSTD"} {
		r := httptest.NewRequest(http.MethodPost, "/?compress=1&network_compression_method="+method, nil)
		w := httptest.NewRecorder()
		answer(w, r, r.URL.Query(), result{body: body, rowsRead: 3})
		got, err := io.ReadAll(blockReader{compress.NewReader(w.Body)})
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes, %v", method, len(got), err)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	answer(w, r, r.URL.Query(), result{body: body, rowsRead: 3})
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, body) {
		t.Errorf("gzip: %d bytes, %v", len(got), err)
	}
	if s := w.Header().Get("X-ClickHouse-Summary"); !strings.Contains(s, `"read_rows":"3"`) {
		t.Errorf("summary %s", s)
	}
}

func TestListenLoopbackOnly(t *testing.T) {
	if l, err := listenLoopback(t.Context(), "0.0.0.0:0"); err == nil {
		l.Close()
		t.Error("listened on every address")
	}
	l, err := listenLoopback(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestCutInsert(t *testing.T) {
	for text, want := range map[string]struct {
		head insertHead
		data string
	}{
		"INSERT INTO t FORMAT Native\n\n\nx":                       {insertHead{"INSERT INTO t", "", "Native"}, "\n\nx"},
		"insert into `d`.`t` (a, `b`) SETTINGS x='1' FORMAT CSV 1": {insertHead{"insert into `d`.`t` (a, `b`)", "SETTINGS x='1'", "CSV"}, "1"},
		"INSERT INTO t(a)\nFORMAT JSONEachRow\n{}":                 {insertHead{"INSERT INTO t(a)", "", "JSONEachRow"}, "{}"},
	} {
		head, data, ok := cutInsert([]byte(text))
		if !ok || head != want.head || string(data) != want.data {
			t.Errorf("%q: %v %+v %q", text, ok, head, data)
		}
	}
	for _, text := range []string{"SELECT 1 FORMAT CSV", "INSERT INTO t VALUES ('a FORMAT b')", "INSERT INTO t SELECT 1", "INSERT INTO t (a) VALUES (' FORMAT x')"} {
		if _, _, ok := cutInsert([]byte(text)); ok {
			t.Errorf("%q was taken for an INSERT with data", text)
		}
	}
}
