package dialect

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAppendError(t *testing.T) {
	for _, tc := range []struct {
		name string
		d    Dialect
		p    Problem
		id   string
		want string
	}{
		{
			"middleware", OpenAI,
			Problem{Status: 401, Message: "Invalid token", Middleware: true},
			"R1",
			`{"error":{"message":"Invalid token (request id: R1)","type":"new_api_error","code":""}}`,
		},
		{
			"middleware keeps its shape everywhere", Anthropic,
			Problem{Status: 503, Message: "No channel", Code: "model_not_found", Middleware: true},
			"R1",
			`{"error":{"message":"No channel (request id: R1)","type":"new_api_error","code":"model_not_found"}}`,
		},
		{
			"relay", OpenAI,
			Problem{Status: 403, Message: "no \"quota\"\n\u4f60", Code: "insufficient_user_quota"},
			"R1",
			`{"error":{"message":"no \"quota\"\n你 (request id: R1)","type":"new_api_error","param":"","code":"insufficient_user_quota"}}`,
		},
		{
			"relay, Anthropic", Anthropic,
			Problem{Status: 403, Message: "no quota", Code: "insufficient_user_quota"},
			"R1",
			`{"type":"error","error":{"type":"new_api_error","message":"no quota (request id: R1)"}}`,
		},
		{
			"no id", OpenAI,
			Problem{Message: "x", Param: "n"},
			"",
			`{"error":{"message":"x","type":"new_api_error","param":"n","code":""}}`,
		},
		{
			"upstream", OpenAI,
			Problem{Message: "slow down", Type: "rate_limit_error", Code: "c", Verbatim: true},
			"R1",
			`{"error":{"message":"slow down","type":"rate_limit_error","param":"","code":"c"}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := AppendError([]byte("x"), tc.d, &tc.p, tc.id)[1:]
			var a, b any
			if err := json.Unmarshal(got, &a); err != nil {
				t.Fatalf("%s: %v", got, err)
			}
			if err := json.Unmarshal([]byte(tc.want), &b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b, a); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUpstreamProblem(t *testing.T) {
	for _, tc := range []struct {
		name   string
		d      Dialect
		status int
		body   string
		want   Problem
	}{
		{
			"OpenAI", OpenAI, 429, `{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":"mock_code"}}`,
			Problem{Status: 429, Message: "slow down", Type: "rate_limit_error", Code: "mock_code", Verbatim: true},
		},
		{
			"number as code", OpenAI, 400, `{"error":{"message":"m","type":"t","param":"n","code":400}}`,
			Problem{Status: 400, Message: "m", Type: "t", Param: "n", Code: "400", Verbatim: true},
		},
		{
			"Anthropic", Anthropic, 529, `{"type":"error","error":{"type":"overloaded_error","message":"overloaded"}}`,
			Problem{Status: 529, Message: "overloaded", Type: "overloaded_error"},
		},
		{
			"secrets", OpenAI, 401, `{"error":{"message":"Incorrect API key provided: sk-abcdefgh12345678. See https://host.internal/x?k=1.","type":"a"}}`,
			Problem{Status: 401, Message: "Incorrect API key provided: sk-***. See https://***", Type: "a", Verbatim: true},
		},
		{"bare text", OpenAI, 500, `{"error":"boom"}`, Problem{Status: 500, Message: "boom", Type: "upstream_error", Verbatim: true}},
		{
			"HTML", OpenAI, 500, `<html>`,
			Problem{Status: 500, Message: "openai_error", Type: "bad_response_status_code", Code: "bad_response_status_code", Verbatim: true},
		},
		{
			"HTML, Anthropic", Anthropic, 500, `<html>`,
			Problem{Status: 500, Message: "bad response status code 500", Type: "bad_response_status_code", Code: "bad_response_status_code"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(&tc.want, UpstreamProblem(tc.d, tc.status, []byte(tc.body))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzErrorIn(f *testing.F) {
	f.Add([]byte(`{"error":{"message":"sk-aaaaaaaaaaaa","code":{}}}`))
	f.Add([]byte(`{"error":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		p := UpstreamProblem(OpenAI, 500, body)
		if p.Message == "" || p.Type == "" {
			t.Fatalf("%+v", p)
		}
		if out := AppendError(nil, OpenAI, p, "R"); !json.Valid(out) {
			t.Fatalf("not JSON: %s", out)
		}
	})
}
