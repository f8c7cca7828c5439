package relaytest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// UsageMode is how the mock reports usage.
type UsageMode string

// The modes. Where a mode speaks of the stream, a whole answer carries the usual figures.
const (
	UsageFinal      UsageMode = "final"      // stream: a last chunk without choices, if the request asked for it
	UsageInside     UsageMode = "inside"     // stream: within the last content chunk, always
	UsageCumulative UsageMode = "cumulative" // stream: in every chunk, growing, always
	UsageNever      UsageMode = "never"      // not at all
	UsageNull       UsageMode = "null"       // as null
	UsageZero       UsageMode = "zero"       // all figures 0
	UsageNegative   UsageMode = "negative"   // completion below 0
	UsageDoubled    UsageMode = "doubled"    // both figures twice the truth
	UsageAbsurd     UsageMode = "absurd"     // completion of 10^15
	UsageTwice      UsageMode = "twice"      // stream: the last chunk is sent a second time
	UsageLate       UsageMode = "late"       // stream: the last chunk comes after [DONE]
)

var usageModes = []UsageMode{
	UsageFinal, UsageInside, UsageCumulative, UsageNever, UsageNull, UsageZero, UsageNegative, UsageDoubled, UsageAbsurd,
	UsageTwice, UsageLate,
}

// never is the value of a fault that does not happen.
const never = -1

// Script dictates one answer. DefaultScript is a well-behaved one; its text form (String, ParseScript) is
// "completion=12;prompt=40;usage=never;cut=3", and travels to the mock in the header X-Mock-Script, in the field
// metadata.mock, or in the field user behind "mock:".
type Script struct {
	User       string // whom the oracle books the answer to
	Prompt     int64  // prompt tokens to report; 0: a quarter of the body's bytes
	Completion int64  // tokens to write per choice, unless max_tokens is lower
	Usage      UsageMode
	Finish     string // finish reason of an answer that max_tokens does not cut; "stop"

	Status int  // answer with this error status instead
	Reject bool // answer 400 to stream_options
	Early  bool // stream an answer without reading the body; only Options or the header can ask for it

	// Faults in mid-stream, after so many content chunks; -1: not at all.
	Cut     int64 // close the connection
	Error   int64 // send an error object and end
	Silence int64 // send nothing more until the client leaves
	Garbage int64 // send a payload that is not JSON, and go on; a whole answer is garbage altogether

	First time.Duration // wait before the first byte
	Delay time.Duration // wait before each content chunk
	Burst int64         // content chunks per flush; 1
}

// DefaultScript returns the script of a request that dictates nothing.
func DefaultScript() Script {
	return Script{
		Completion: 16, Usage: UsageFinal, Finish: "stop",
		Cut: never, Error: never, Silence: never, Garbage: never, Burst: 1,
	}
}

// fields lists the numeric parts of a script by name.
func (s *Script) fields() map[string]*int64 {
	return map[string]*int64{
		"prompt": &s.Prompt, "completion": &s.Completion, "cut": &s.Cut, "error": &s.Error, "silence": &s.Silence,
		"garbage": &s.Garbage, "burst": &s.Burst,
	}
}

// ParseScript reads the text form on top of base. The error names the part that is wrong.
func ParseScript(base Script, text string) (Script, error) {
	s := base
	numbers := s.fields()
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		key, val, _ := strings.Cut(part, "=")
		var err error
		switch {
		case numbers[key] != nil:
			*numbers[key], err = strconv.ParseInt(val, 10, 64)
		case key == "user":
			s.User = val
		case key == "finish":
			s.Finish = val
		case key == "status":
			s.Status, err = strconv.Atoi(val)
		case key == "reject":
			s.Reject = true
		case key == "early":
			s.Early = true
		case key == "first":
			s.First, err = time.ParseDuration(val)
		case key == "delay":
			s.Delay, err = time.ParseDuration(val)
		case key == "usage" && slices.Contains(usageModes, UsageMode(val)):
			s.Usage = UsageMode(val)
		default:
			err = fmt.Errorf("unknown; see relaytest.Script")
		}
		if err != nil {
			return base, fmt.Errorf("read mock script, part %q: %w", part, err)
		}
	}
	return s, nil
}

// String returns the text form, leaving out what is as in DefaultScript.
func (s Script) String() string {
	var parts []string
	add := func(name string, differs bool, val any) {
		if differs {
			parts = append(parts, fmt.Sprintf("%s=%v", name, val))
		}
	}
	d := DefaultScript()
	add("user", s.User != d.User, s.User)
	mine, theirs := s.fields(), d.fields()
	for _, k := range []string{"prompt", "completion", "cut", "error", "silence", "garbage", "burst"} {
		add(k, *mine[k] != *theirs[k], *mine[k])
	}
	add("usage", s.Usage != d.Usage, s.Usage)
	add("finish", s.Finish != d.Finish, s.Finish)
	add("status", s.Status != d.Status, s.Status)
	add("first", s.First != d.First, s.First)
	add("delay", s.Delay != d.Delay, s.Delay)
	if s.Reject {
		parts = append(parts, "reject")
	}
	if s.Early {
		parts = append(parts, "early")
	}
	return strings.Join(parts, ";")
}

// ScriptHeader carries a script.
const ScriptHeader = "X-Mock-Script"

// ScriptPrefix marks a user field that carries a script.
const ScriptPrefix = "mock:"

// scriptOf finds the script of a request; body may be nil, and then only the header counts.
func scriptOf(base Script, h http.Header, body []byte) (Script, error) {
	user := gjson.GetBytes(body, "user").String()
	text, scripted := strings.CutPrefix(user, ScriptPrefix)
	if m := gjson.GetBytes(body, "metadata.mock"); m.Exists() {
		text, scripted = m.String(), true
	}
	if v := h.Get(ScriptHeader); v != "" {
		text, scripted = v, true
	}
	if !scripted {
		s := base
		if s.User == "" {
			s.User = user
		}
		return s, nil
	}
	return ParseScript(base, text)
}
