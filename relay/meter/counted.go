package meter

// Counted returns the tokens of the text so far, without ending the count. It runs the tokenizer over what was kept of
// the text (at most keepText bytes a choice), so it is for the end of a quota only.
func (m *Meter) Counted() int64 {
	n := m.first.tokens + count(m.cfg.Model, string(m.first.buf)) + perToolCall*m.tools
	for _, c := range m.side {
		n += c.tokens + count(m.cfg.Model, string(c.buf))
	}
	return n
}
