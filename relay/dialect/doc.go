// Package dialect knows the shapes of the APIs that clients and upstreams speak: it reads what a request asks for,
// edits the few fields the relay must change, writes refusals as each API's clients expect them, and takes apart the
// payloads of an answer.
//
// It is pure: no I/O, no clock, no logging; a crash loses nothing of its own. The relay calls it for every request,
// relay/meter for every payload, so it peeks instead of decoding: what it does not know passes untouched, byte for
// byte. Everything it reads from outside has a bound (L7), in Limits or beside the constant it concerns.
//
//	request.go  Parse: the client's body → Request, or a Problem that names the field and what is allowed
//	prompt.go   how large the prompt can be at most, and its texts for counting
//	edit.go     Rewrite: model, max_tokens, stream_options; every other byte stays
//	errors.go   Problem → body, in the shape of each dialect
//	upstream.go an upstream's failure → Problem
//	chunk.go    one payload of an answer → Chunk
//	run.go      the next event of a stream, if it is like the one before
//	usage*.go   an upstream's usage object → ledger.Usage, and what is odd about it
//	stream.go   the end of a stream that the relay itself ends
package dialect

// Endpoint is one of the relayed API calls.
type Endpoint uint8

// The endpoints.
const (
	ChatCompletions Endpoint = iota + 1
	Completions
	Embeddings
)

// Path returns the endpoint's path, the same for clients and OpenAI-compatible upstreams.
func (e Endpoint) Path() string {
	switch e {
	case ChatCompletions:
		return "/v1/chat/completions"
	case Completions:
		return "/v1/completions"
	case Embeddings:
		return "/v1/embeddings"
	}
	return ""
}

// String returns the path, which names the endpoint in logs and events.
func (e Endpoint) String() string { return e.Path() }

// Generates reports whether the endpoint produces tokens that cost.
func (e Endpoint) Generates() bool { return e == ChatCompletions || e == Completions }

// Dialect is the family of APIs whose error bodies a client understands.
type Dialect uint8

// The dialects.
const (
	OpenAI Dialect = iota
	Anthropic
)
