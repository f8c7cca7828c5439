package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// slowEncode is the definition of the canonical form.
func slowEncode(t testing.TB, e *Event) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// sampleID returns an id that says where it stands.
func sampleID(n byte) ID {
	return ID{0x01, 0x93, 0x5d, 0x2a, 0x40, n, 0x70, 0x01, 0x80, 0, 0, 0, 0, 0, 0, n}
}

// samples are events of every kind, as the program makes them.
func samples() map[string]*Event {
	base := func(kind Kind, n byte) Event {
		return Event{
			Version: 1, Kind: kind, ID: sampleID(n), Producer: sampleID(0xff), Seq: uint64(n) + 100, Prev: uint64(n) + 97,
			Time: 1_732_320_000_123, Node: "relay-1", User: 42,
		}
	}
	usage := base(KindUsageSettled, 1)
	usage.Token, usage.Channel, usage.Charged, usage.Requests = 7, 3, 1234, 1
	usage.Hold = &HoldRef{ID: sampleID(0xa1), Epoch: 1_732_300_000_000, Amount: 5000, Token: true}
	usage.Request = &Request{
		ID: "20241123000000123456789abcdefgh", Username: "alice", TokenName: "laptop", UserGroup: "default", Group: "vip",
		Model: "gpt-4o-mini", Sent: "gpt-4o-mini-2024-07-18", Endpoint: "/v1/chat/completions", Stream: true, Status: 200,
		FirstMS: 412, TotalMS: 3180, IP: "203.0.113.9", Upstream: "chatcmpl-AbCdEf0123456789",
	}
	usage.Usage = &Usage{Prompt: 812, Completion: 301, CacheRead: 512, Reasoning: 64}
	usage.Source = SourceUpstream
	usage.Rating = &Rating{
		Book: "9f2c11d0", Mode: "ratio", ModelRatio: "0.075", CompletionRatio: "4", CacheRatio: "0.5", GroupRatio: "1", QuotaPerUnit: "500000",
	}
	recovered := usage
	recovered.Kind, recovered.ID, recovered.Source = KindUsageRecovered, sampleID(2), SourceRecovered
	recovered.Flags = []string{"possible_upstream_cost", "no_usage"}
	odd := usage
	odd.ID = sampleID(9)
	request := *usage.Request
	request.Username, request.Model = "Zoë <\"&\\>\u2028", "模型\x7f\ttab"
	odd.Request = &request
	odd.Usage = &Usage{Semantics: SemanticsAnthropic, Prompt: 1, CacheWrite5m: 2, Tools: []Tool{{Name: "web_search", Count: 3}}}
	odd.Rating = &Rating{Saturated: true, GroupSpecial: true}
	adjusted := base(KindUsageAdjusted, 3)
	adjusted.Token, adjusted.Channel, adjusted.Charged, adjusted.Key, adjusted.Note = 7, 3, -99, "rerate:R1:E1:42", "book 9f2c11d1"
	granted := base(KindCreditGranted, 4)
	granted.Granted, granted.Key = 500_000, "redeem:0123456789abcdef:42"
	adopted := base(KindCreditAdopted, 5)
	adopted.Account, adopted.Token, adopted.Granted, adopted.Key = TokenAccount, 7, -1, "adopt:x:42"
	limited := base(KindTokenLimited, 6)
	limited.Token, limited.Granted, limited.Redrive = 7, 1000, true
	opened := base(KindAccountOpened, 7)
	opened.Account, opened.Granted, opened.Charged, opened.Requests = UserAccount, math.MaxInt64, math.MinInt64, 12
	audit := base(KindAudit, 8)
	audit.Note = "root set option \"QuotaPerUnit\"\nto 500000"
	return map[string]*Event{
		"usage.settled": &usage, "usage.recovered": &recovered, "usage.odd": &odd, "usage.adjusted": &adjusted, "credit.granted": &granted,
		"credit.adopted": &adopted, "token.limited": &limited, "account.opened": &opened, "audit.recorded": &audit,
	}
}

// The golden files are the format of the log: a change that alters one breaks every log written before.
func TestGoldenEvents(t *testing.T) {
	seen := map[Kind]bool{}
	for name, e := range samples() {
		seen[e.Kind] = true
		got, err := e.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "events", name+".json")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.TrimSuffix(string(want), "\n"), string(got)); diff != "" {
			t.Errorf("%s changed (-golden +got):\n%s", name, diff)
		}
		back, err := Decode(got)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(*e, back); diff != "" {
			t.Errorf("%s does not come back (-want +got):\n%s", name, diff)
		}
	}
	for _, k := range []Kind{
		KindUsageSettled, KindUsageRecovered, KindUsageAdjusted, KindCreditGranted, KindCreditAdopted, KindTokenLimited, KindAccountOpened, KindAudit,
	} {
		if !seen[k] {
			t.Errorf("no golden file of kind %s", k)
		}
	}
}

// randomEvent fills every field that reflection finds, so that one the codec does not know shows up.
func randomEvent(r *rand.Rand) *Event {
	var e Event
	fill(r, reflect.ValueOf(&e).Elem())
	return &e
}

var oddStrings = []string{
	"", "plain", "quote\"", "back\\slash", "tab\tnewline\n\r\b\f", "\x00\x1f\x7f", "<html>&", "ünï", "\u2028\u2029", "bad\xff\xc3", "\U0001F600", "/",
}

func fill(r *rand.Rand, v reflect.Value) {
	if r.IntN(4) == 0 {
		return
	}
	if id, ok := v.Addr().Interface().(*ID); ok {
		for i := range id {
			id[i] = byte(r.Uint32())
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(oddStrings[r.IntN(len(oddStrings))] + oddStrings[r.IntN(len(oddStrings))])
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(r.Uint64()) >> r.IntN(64))
	case reflect.Uint64:
		v.SetUint(r.Uint64() >> r.IntN(64))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+r.IntN(3), 4))
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	default:
		panic("the codec test cannot fill a " + v.Kind().String())
	}
}

func TestEncodeIsEncodingJSON(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		e := randomEvent(r)
		got, err := e.Encode([]byte("before "))
		if err != nil {
			t.Fatal(err)
		}
		if want := "before " + string(slowEncode(t, e)); want != string(got) {
			t.Fatalf("seed %d: encoding differs\nwant %s\ngot  %s", seed, want, got)
		}
	}
}

func TestDecodeIsEncodingJSON(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	fast := 0
	for range 3000 {
		value := slowEncode(t, randomEvent(r))
		if checkDecode(t, value) {
			fast++
		}
	}
	if fast < 300 {
		t.Errorf("seed %d: only %d of 3000 events took the fast path", seed, fast)
	}
}

// decodeCanonical runs the fast path alone.
func decodeCanonical(value []byte) (e Event, ok bool) {
	c := codec{reading: true, in: value, text: string(value), plain: isPlain(value)}
	c.event(&e)
	return e, !c.bad && c.pos == len(value)
}

// A decoder that is used again leaves nothing of earlier events in later ones.
func TestDecoderReuse(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var d Decoder
	for round := range 3 {
		var got, want []Event
		for range 100 {
			e := randomEvent(r)
			e.Version, e.Kind = 1, KindAudit
			value := slowEncode(t, e)
			var g, w Event
			_ = d.Decode(value, &g)
			if err := json.Unmarshal(value, &w); err != nil {
				t.Fatal(err)
			}
			got, want = append(got, g), append(want, w)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d, round %d (-want +got):\n%s", seed, round, diff)
		}
		d.Reset()
	}
}

// checkDecode compares the fast decoder with encoding/json, and reports whether it answered.
func checkDecode(t *testing.T, value []byte) bool {
	t.Helper()
	got, ok := decodeCanonical(value)
	if !ok {
		return false
	}
	var want Event
	if err := json.Unmarshal(value, &want); err != nil {
		t.Fatalf("the fast decoder took what encoding/json refuses: %v\n%q", err, value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("decoding differs (-json +fast):\n%s\n%q", diff, value)
	}
	return true
}

// Usage events without lists, whatever their strings, must not fall back.
func TestCanonicalEventsTakeTheFastPath(t *testing.T) {
	for name, e := range samples() {
		_, ok := decodeCanonical(slowEncode(t, e))
		if want := name != "usage.odd"; ok != want { // it has tools
			t.Errorf("%s: fast path taken: %v, want %v", name, ok, want)
		}
	}
}

func TestDecodeRefusals(t *testing.T) {
	good, err := samples()["credit.granted"].Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	change := func(old, with string) []byte {
		s := strings.Replace(string(good), old, with, 1)
		if s == string(good) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return []byte(s)
	}
	cases := map[string]struct {
		value []byte
		newer bool
	}{
		"higher version":        {change(`"v":1`, `"v":2`), true},
		"unknown kind":          {change(`credit.granted`, `credit.lent`), true},
		"newer with new fields": {change(`"v":1,"kind":"credit.granted"`, `"v":3,"kind":{"n":1}`), true},
		"no version":            {change(`"v":1`, `"v":0`), false},
		"no user":               {change(`"user":42`, `"user":0`), false},
		"no sequence":           {change(`"seq":104`, `"seq":0`), false},
		"prev above seq":        {change(`"prev":101`, `"prev":104`), false},
		"wrong type":            {change(`"user":42`, `"user":"42"`), false},
		"float":                 {change(`"granted":500000`, `"granted":1.5`), false},
		"overflow":              {change(`"granted":500000`, `"granted":9223372036854775808`), false},
		"leading zero":          {change(`"granted":500000`, `"granted":0500000`), false},
		"trailing":              {append(bytes.Clone(good), 'x'), false},
		"empty":                 {nil, false},
		"cut off":               {good[:len(good)-1], false},
		"too large":             {append(bytes.Clone(good), bytes.Repeat([]byte(" "), MaxEventBytes)...), false},
	}
	for name, c := range cases {
		if _, err := Decode(c.value); err == nil || errors.Is(err, ErrNewer) != c.newer {
			t.Errorf("%s: error is %v, want one that is newer: %v", name, err, c.newer)
		}
	}
	// Anything that is good JSON of the right form is read, canonical or not.
	for name, value := range map[string][]byte{
		"spaces":        []byte(strings.ReplaceAll(string(good), `,"`, `, "`)),
		"unknown field": change(`"user":42`, `"new":[1],"user":42`),
		"escapes":       change(`redeem`, `redee\u006d`),
		"other order":   change(`"v":1,"kind":"credit.granted"`, `"kind":"credit.granted","v":1`),
	} {
		got, err := Decode(value)
		if err != nil || got.Granted != 500_000 || got.Key != "redeem:0123456789abcdef:42" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestEncodeRefusesWhatIsTooLarge(t *testing.T) {
	e := *samples()["audit.recorded"]
	e.Note = strings.Repeat("x", MaxEventBytes)
	if _, err := e.Encode(nil); err == nil {
		t.Error("no error")
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range samples() {
		value, err := e.Encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		checkDecode(t, value)
		e, err := Decode(value)
		if err != nil {
			return
		}
		again, err := e.Encode(nil)
		if err != nil {
			return // larger than it came, by escapes
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("what Encode wrote is refused: %v\n%q", err, again)
		}
		if diff := cmp.Diff(string(again), string(slowEncode(t, &back))); diff != "" {
			t.Fatalf("round trip differs:\n%s", diff)
		}
	})
}

func FuzzEncode(f *testing.F) {
	f.Add(uint64(1), "text", int64(1))
	f.Fuzz(func(t *testing.T, seed uint64, s string, n int64) {
		e := randomEvent(rand.New(rand.NewPCG(seed, 1)))
		e.Node, e.Note, e.Charged = s, s, n
		got, err := e.Encode(nil)
		if err != nil {
			return
		}
		if want := slowEncode(t, e); !bytes.Equal(want, got) {
			t.Fatalf("encoding differs\nwant %s\ngot  %s", want, got)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	value, err := samples()["usage.settled"].Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecoder(b *testing.B) {
	value, err := samples()["usage.settled"].Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	var (
		d Decoder
		e Event
	)
	for b.Loop() {
		d.Reset()
		if err := d.Decode(value, &e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeEncodingJSON(b *testing.B) {
	value, err := samples()["usage.settled"].Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		var e Event
		if err := json.Unmarshal(value, &e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	e := samples()["usage.settled"]
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Encode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
