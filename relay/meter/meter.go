package meter

import (
	"bytes"

	"ledgerline/ledger"
	"ledgerline/relay/dialect"
)

// The flags of a Result, beside those that dialect.UsageVerdict names. They go into the event as they are.
const (
	FlagZero        = "usage_zero"
	FlagRepeated    = "usage_repeated"
	FlagLate        = "usage_late"
	FlagEarly       = "usage_early"
	FlagExceedsText = "usage_exceeds_text"
	FlagError       = "stream_error"
	FlagTruncated   = "stream_truncated"
	FlagUndecodable = "payload_undecodable"
)

// perToolCall is what a tool call costs beside its name and arguments when it is counted, in tokens; New API's figure.
const perToolCall = 7

// maxLanes bounds the choices whose text is told apart; dialect.Parse accepts no larger n.
const maxLanes = 128

// Config says what is being metered.
type Config struct {
	Kind  dialect.UsageKind // how the channel reports usage; zero: as OpenAI does
	Model string            // whose tokenizer counts
	// Prompt returns the prompt's tokens. It is called, once and in Finish, only if the upstream did not report them; nil
	// counts none.
	Prompt func() int64
}

// Step is what the relay needs to know of one payload before it passes it on.
type Step struct {
	Content   bool // it carries text: progress was made
	UsageOnly bool // it carries usage and nothing else: to be dropped if the client did not ask for it
	Done      bool // it is [DONE]
	Error     bool // it is an error object
	Finish    bool // a choice ends in it
}

// Meter meters one answer. It is for one goroutine; make it with New.
type Meter struct {
	cfg    Config
	reader dialect.ChunkReader

	chunks, bytes int64 // content so far
	pieces        int64 // tokens that it surely has
	tools         int64
	first         counter    // of choice 0
	side          []*counter // of choices 1, 2, …

	usage     ledger.Usage // the last credible one
	credible  bool
	verdict   dialect.UsageVerdict // of the worst seen
	usageSeen bool                 // a usage object came, whatever was in it
	alone     int                  // payloads that were usage only
	since     bool                 // text came after usage

	head     dialect.StreamHead
	finish   string
	finished [maxLanes/64 + 1]uint64
	choices  bool // a payload with choices came
	whole    bool // Body, not Data
	done     bool
	late     bool
	failure  bool
	garbage  bool
}

// New returns a meter for one answer.
func New(c Config) *Meter { return &Meter{cfg: c} }

// Data takes the payload of one event. It allocates nothing in the steady state and keeps nothing of the payload.
func (m *Meter) Data(payload []byte) Step {
	if len(payload) == 0 {
		return Step{}
	}
	if payload[0] != '{' && bytes.Equal(bytes.TrimSpace(payload), []byte("[DONE]")) {
		m.done = true
		return Step{Done: true}
	}
	c, ok := m.reader.Read(payload)
	if !ok {
		m.garbage = true
		return Step{}
	}
	return m.take(c)
}

// Body takes a whole answer.
func (m *Meter) Body(body []byte) {
	m.whole = true
	c, ok := m.reader.Read(body)
	if !ok {
		m.garbage = true
		return
	}
	m.take(c)
}

func (m *Meter) take(c *dialect.Chunk) Step {
	s := Step{Content: len(c.Texts) > 0, Error: c.Error, Finish: len(c.Finishes) > 0}
	m.choices = m.choices || c.HasChoices
	m.failure = m.failure || c.Error
	m.tools += int64(c.ToolCalls)
	if m.head.ID == "" && c.ID != nil {
		m.head = c.Head()
	}
	reported := len(c.Usage) > 0 && string(c.Usage) != "null"
	if reported {
		s.UsageOnly = c.NoChoices && !c.Error
	}
	if reported && m.whole { // first, for it may spare us the text
		m.report(c.Usage, s.UsageOnly)
	}
	keep := !m.whole || !m.credible || m.verdict.Has(dialect.UsageNoOutput)
	for i := range c.Texts {
		m.text(&c.Texts[i], keep)
	}
	for _, f := range c.Finishes {
		if f.Choice < maxLanes {
			m.finished[f.Choice/64] |= 1 << (f.Choice % 64)
		}
		if m.finish == "" || m.finish != string(f.Reason) {
			m.finish = string(f.Reason)
		}
	}
	if reported && !m.whole {
		m.report(c.Usage, s.UsageOnly)
	}
	return s
}

// text takes one piece of text, and keeps it if it may have to be counted.
func (m *Meter) text(t *dialect.Text, keep bool) {
	m.chunks++
	m.bytes += int64(t.Len())
	if !m.whole { // nothing of a whole answer is sent before it is billed
		m.pieces += leastTokens(t.Raw)
	}
	if keep {
		m.keep(t)
	}
	m.since = !m.whole
}

// keep takes text for the case that it has to be counted.
func (m *Meter) keep(t *dialect.Text) {
	if t.Choice == 0 || t.Choice >= maxLanes {
		m.first.add(m.cfg.Model, t, keepText)
		return
	}
	for len(m.side) < t.Choice {
		m.side = append(m.side, &counter{})
	}
	m.side[t.Choice-1].add(m.cfg.Model, t, keepSideText)
}

// report takes a usage object.
func (m *Meter) report(raw []byte, alone bool) {
	u, v := dialect.DecodeUsage(m.cfg.Kind, raw)
	if alone {
		m.alone++
	}
	m.usageSeen, m.late = true, m.late || m.done
	if v.Credible() {
		m.usage, m.credible, m.since = u, true, false
		// What a growing usage lacked before, the last one has: only impossible figures are remembered.
		m.verdict = m.verdict&impossible | v
		return
	}
	m.verdict |= v &^ (dialect.UsageInconsistent | dialect.UsageParts) // of figures that are not believed anyway
}

// impossible are the verdicts that no later usage takes back.
const impossible = dialect.UsageNegative | dialect.UsageAbsurd | dialect.UsageMalformed

// severalTokens is a length in bytes that no language's tokens have on average: about twice that of Thai in o200k_base, whose are the
// longest.
const severalTokens = 24

// Streamed returns the two figures of which a crash bills the larger: tokens, and bytes ÷ 4. The journal's slot is raised to them
// before the chunk is sent. An upstream that sends a token a chunk has produced as many as it has sent chunks, whatever their
// length, so the bytes count only where chunks hold several: then what is certain would be too little. Scripts without spaces
// show that by their length alone.
func (m *Meter) Streamed() (tokens, textBytes int64) {
	if 2*m.pieces > 3*m.chunks || m.bytes > severalTokens*m.chunks {
		return m.pieces, m.bytes
	}
	return m.pieces, 0
}

// Progress returns how far the answer has come, in tokens as a crash would bill them (DESIGN 5).
func (m *Meter) Progress() int64 {
	tokens, textBytes := m.Streamed()
	return max(tokens, textBytes/4)
}

// Content returns the pieces of text so far and their UTF-8 bytes.
func (m *Meter) Content() (chunks, textBytes int64) { return m.chunks, m.bytes }

// Head returns what all chunks of the stream have in common, for the chunks that the relay adds.
func (m *Meter) Head() dialect.StreamHead { return m.head }

// Reported tells whether a usage that can be billed has come, and which. A stream's may still change.
func (m *Meter) Reported() (ledger.Usage, bool) { return m.usage, m.credible }

// OpenChoices returns the choices below n that have not ended.
func (m *Meter) OpenChoices(n int64) []int {
	var open []int
	for i := range int(min(n, maxLanes)) {
		if m.finished[i/64]&(1<<(i%64)) == 0 {
			open = append(open, i)
		}
	}
	return open
}
