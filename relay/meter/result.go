package meter

import (
	"slices"

	"ledgerline/ledger"
	"ledgerline/relay/dialect"
)

// Result is what an answer consumed.
type Result struct {
	Usage  ledger.Usage
	Source ledger.Source // SourceCounted if any figure was counted
	Flags  []string      // what was odd, sorted; nil if nothing
	Finish string        // the last finish reason, "" if none came
	// Failed tells that there was no answer: nothing is owed, whatever Usage says.
	Failed    bool
	ToolCalls int64 // calls of the client's own tools; informative
	Chunks    int64 // pieces of text
	Bytes     int64 // their UTF-8 bytes
}

// Finish closes the account. stopped tells that the relay ended the answer before the upstream did, because the client
// left or the quota ran out. Call it once, when nothing more will be fed; it may run the tokenizer.
func (m *Meter) Finish(stopped bool) Result {
	truncated := !stopped && !m.whole && !m.done && !m.failure && m.finish == ""
	r := Result{
		Usage: m.usage, Source: ledger.SourceUpstream, Finish: m.finish, ToolCalls: m.tools, Chunks: m.chunks, Bytes: m.bytes,
	}
	flag := func(when bool, name string) {
		if when {
			r.Flags = append(r.Flags, name)
		}
	}
	answered := m.chunks > 0 || m.credible
	r.Failed = !answered && (m.failure || !m.choices && !m.usageSeen || truncated)
	flag(m.failure, FlagError)
	flag(truncated, FlagTruncated)
	flag(m.garbage, FlagUndecodable)
	flag(m.late, FlagLate)
	flag(m.alone > 1, FlagRepeated)
	if !r.Failed {
		m.settle(&r, stopped)
	}
	slices.Sort(r.Flags)
	return r
}

// settle turns what was reported into what is billed.
func (m *Meter) settle(r *Result, stopped bool) {
	const noInput, noOutput = dialect.UsageNoInput, dialect.UsageNoOutput
	v := m.verdict
	switch {
	case !m.usageSeen:
		if !stopped {
			r.Flags = append(r.Flags, dialect.UsageMissing.Flags()...)
		}
		m.count(r, true, true)
		return
	case !m.credible:
		if v.Zero() && !v.Has(dialect.UsageMissing|impossible) {
			r.Flags = append(r.Flags, FlagZero)
		}
		r.Flags = append(r.Flags, (v &^ (noInput | noOutput)).Flags()...)
		m.count(r, true, true)
		return
	}
	input, output := v.Has(noInput), v.Has(noOutput) && m.chunks > 0
	r.Flags = append(r.Flags, (v &^ (noInput | noOutput)).Flags()...)
	if input {
		r.Flags = append(r.Flags, noInput.Flags()...)
	}
	if output {
		r.Flags = append(r.Flags, noOutput.Flags()...)
	}
	reported := r.Usage.Completion
	m.count(r, input, output)
	if m.since && !output {
		if n := m.counted(); n > reported {
			r.Usage.Completion, r.Source = n, ledger.SourceCounted
			r.Flags = append(r.Flags, FlagEarly)
		}
	}
	if m.exceeds(r.Usage) {
		r.Flags = append(r.Flags, FlagExceedsText)
	}
}

// count fills in the figures that the upstream owed.
func (m *Meter) count(r *Result, input, output bool) {
	if input {
		r.Source = ledger.SourceCounted
		if m.cfg.Prompt != nil {
			r.Usage.Prompt = m.cfg.Prompt()
		}
	}
	if output {
		r.Source = ledger.SourceCounted
		r.Usage.Completion = m.counted()
	}
}

// counted returns the tokens of the text that came. Call it once.
func (m *Meter) counted() int64 {
	n := m.first.total(m.cfg.Model) + perToolCall*m.tools
	for _, c := range m.side {
		n += c.total(m.cfg.Model)
	}
	return n
}

// exceeds reports whether the reported output is more than any tokenizer could make of the text: reasoning, images and
// sound, which are not in the text, left out, and what marks the ends of answers and calls left room for.
func (m *Meter) exceeds(u ledger.Usage) bool {
	if m.chunks == 0 {
		return false
	}
	const slack = 64
	hidden := u.Reasoning + u.ImageOut + u.AudioOut
	return u.Completion-hidden > m.bytes+slack*(1+m.tools+int64(len(m.side)))
}
