package meter

// Run takes events from the front of an event stream as long as each is what nearly all events of a stream are: byte for byte what the last
// piece of text came in, with another text. It returns their bytes. It stops before the one with which the pieces of text or their bytes reach
// these bounds, and before anything that it does not know: that is for Data.
func (m *Meter) Run(fed []byte, pieces, textBytes int64) (size int) {
	if choice, ok := m.reader.Usual(); !ok || choice != 0 {
		return 0
	}
	for m.chunks+1 < pieces {
		text, n := m.reader.Next(fed[size:])
		if n == 0 || len(text) == 0 || m.bytes+int64(len(text)) >= textBytes || !m.first.append(text, keepText) {
			break
		}
		size += n
		m.chunks++
		m.bytes += int64(len(text))
		m.pieces += leastTokens(text)
		m.since = true
	}
	return size
}
