package upstream

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ledgerline/relay/catalog"
)

// What http1 can do goes that way, and everything else through http.Transport.
func TestPlaces(t *testing.T) {
	for base, want := range map[string]string{ // "": http.Transport
		"http://a":               "a:80 a ",
		"http://a:8080/x/y":      "a:8080 a:8080 /x/y",
		"http://[::1]:80/x%2Fy":  "[::1]:80 [::1]:80 /x%2Fy",
		"https://a":              "",
		"http://user:pass@a":     "",
		"http://a/?b=c":          "",
		"http://a/#b":            "",
		"http://[fe80::1%25eth]": "",
		"http://ä.example":       "",
	} {
		at, ok := newPlace(base)
		if !ok {
			t.Fatalf("%s is refused", base)
		}
		got := ""
		if at.direct {
			got = at.addr + " " + at.host + " " + at.prefix
		}
		if got != want || at.base != base {
			t.Errorf("%s: %q, want %q", base, got, want)
		}
	}
	for _, base := range []string{"", "a", "ftp://a", "http://", "http://a b"} {
		if _, ok := newPlace(base); ok {
			t.Errorf("%q is taken", base)
		}
	}
}

// Both ways send the same request.
func TestSameRequest(t *testing.T) {
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := r.Header
		h.Del("Te") // what sends the second call through http.Transport
		got <- fmt.Sprintln(r.Method, r.RequestURI, r.Host, r.ContentLength, h, string(body))
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	client := New(Config{})
	defer client.Close()
	send := func(ch *catalog.Channel, call Call) string {
		call.Channel, call.Key, call.RequestID = ch, "k", "id"
		ch.BaseURL = server.URL
		resp, err := client.Do(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := ReadAnswer(resp, 100); err != nil || string(body) != "{}" {
			t.Errorf("the answer is %q, %v", body, err)
		}
		return <-got
	}
	for _, c := range []struct {
		channel *catalog.Channel
		call    Call
		holds   string
	}{
		{&catalog.Channel{Type: TypeOpenAI}, Call{Path: "/v1/chat/completions", Body: []byte("{1}"), Stream: true}, "POST /v1/chat/completions "},
		{&catalog.Channel{Type: TypeOpenAI, Organization: "o"}, Call{Path: "/v1/models", Get: true}, "GET /v1/models "},
		{&catalog.Channel{Type: TypeAzure}, Call{Path: "/v1/chat/completions", Model: "a b/ü", Body: []byte(strings.Repeat("x", 100_000))}, "/deployments/a%20b%2F%C3%BC/chat"},
		{&catalog.Channel{Type: TypeOpenAI, Headers: map[string]string{"x-own": "1", "user-agent": "me", "accept": "*/*"}}, Call{Path: "/v1/embeddings"}, "User-Agent:[me]"},
	} {
		direct := send(c.channel, c.call)
		headers := map[string]string{"TE": "trailers"}
		for k, v := range c.channel.Headers {
			headers[k] = v
		}
		c.channel.Headers = headers
		if other := send(c.channel, c.call); other != direct || !strings.Contains(direct, c.holds) {
			t.Errorf("http1:          %.600shttp.Transport: %.600s", direct, other)
		}
	}
}
