package dialect

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/tidwall/gjson"
)

// maxUpstreamMessage bounds the text of an upstream's error that is passed on, in bytes: an error page of megabytes
// helps nobody.
const maxUpstreamMessage = 4 << 10

// masks are what must not reach a client of another tenant: keys in the forms providers give them, and addresses.
var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\bhttps?://[^\s"'<>]+`), "https://***"},
	{regexp.MustCompile(`\bsk-[-_A-Za-z0-9]{8,}`), "sk-***"},
	{regexp.MustCompile(`\bAIza[-_A-Za-z0-9]{8,}`), "AIza***"},
	{regexp.MustCompile(`\bBearer [-._~+/A-Za-z0-9]{8,}`), "Bearer ***"},
}

// UpstreamProblem turns an upstream's failed answer into what the client of d sees: its own status, text, type and
// code where the body is an error in either API's shape, else a general one. Addresses and keys in the text are
// masked.
func UpstreamProblem(d Dialect, status int, body []byte) *Problem {
	if p := ErrorIn(body); p != nil {
		p.Status = status
		p.Verbatim = d == OpenAI
		return p
	}
	p := &Problem{
		Status: status, Code: "bad_response_status_code", Type: "bad_response_status_code",
		Message: "openai_error", Verbatim: d == OpenAI,
	}
	if d == Anthropic {
		p.Message = fmt.Sprintf("bad response status code %d", status)
	}
	return p
}

// ErrorIn returns the error object of an upstream's body or stream payload, nil if it holds none that is readable.
// Status is left to the caller: a stream's error has none.
func ErrorIn(body []byte) *Problem {
	const maxDepth = 64 // an error object is flat; see depthOf
	text := string(body)
	if depthOf(text, maxDepth) > maxDepth || !gjson.Valid(text) {
		return nil
	}
	e := gjson.Get(text, "error")
	switch {
	case e.Type == gjson.String && e.Str != "":
		return &Problem{Message: maskMessage(e.Str), Type: "upstream_error"}
	case e.IsObject():
	default:
		return nil
	}
	msg := e.Get("message").String()
	if msg == "" {
		return nil
	}
	p := &Problem{Message: maskMessage(msg), Type: e.Get("type").String(), Param: scalar(e.Get("param")), Code: scalar(e.Get("code"))}
	if p.Type == "" {
		p.Type = "upstream_error"
	}
	return p
}

// scalar returns a string or number as text and anything else as "".
func scalar(v gjson.Result) string {
	if v.Type == gjson.String || v.Type == gjson.Number {
		return v.String()
	}
	return ""
}

func maskMessage(s string) string {
	if len(s) > maxUpstreamMessage {
		s = strings.ToValidUTF8(s[:maxUpstreamMessage], "") + "…"
	}
	for _, m := range masks {
		s = m.pattern.ReplaceAllString(s, m.with)
	}
	return s
}
