package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"ledgerline/relay/relaytest"
)

// The kinds of request that the tables are made of. A stream costs most of what it costs by the reads and writes that it takes: one that
// comes as fast as the upstream can send it takes few, one at a model's pace takes a pair for each chunk.
const (
	kindPlain  = "plain"
	kindStream = "stream" // as fast as it comes
	kindPaced  = "paced"  // a stream at a model's pace
)

var kinds = []string{kindPlain, kindStream, kindPaced}

// inChunks reports whether a kind is answered in chunks. Then costs are told by the chunk.
func inChunks(kind string) bool { return kind != kindPlain }

// describe names what is asked for, and what the costs are told by.
func (o *benchOptions) describe(kind string) (what, unit string) {
	switch kind {
	case kindStream:
		return fmt.Sprintf("streams of %d chunks", o.chunks), "chunk"
	case kindPaced:
		return fmt.Sprintf("streams of %d chunks, one every %s", o.chunks, o.pause), "chunk"
	}
	return fmt.Sprintf("plain answers of %d bytes", o.answerBytes), "request"
}

// workload is what the clients of a load do.
type workload struct {
	body    []byte
	clients int
	stagger time.Duration // within which they begin, so that paced chunks do not all come at once
}

func (b *bench) workload(kind string) (workload, error) {
	const wordBytes = 5 // of the mock's words, with their space; about
	completion := int64(max(1, b.o.answerBytes/wordBytes))
	s := relaytest.DefaultScript()
	w := workload{clients: b.o.concurrency}
	if inChunks(kind) {
		completion = int64(b.o.chunks)
	}
	if kind == kindPaced {
		s.Delay, w.stagger, w.clients = b.o.pause, b.o.pause, b.o.paced
	}
	s.Prompt, s.Completion = 40, completion
	var err error
	w.body, err = chatBody(inChunks(kind), completion, s.String())
	return w, err
}

// chatBody is a request that tells the mock upstream what to answer.
func chatBody(stream bool, maxTokens int64, script string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"model": demoModel, "stream": stream, "max_tokens": maxTokens,
		"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("measure ", 25)}},
		"metadata": map[string]any{"mock": script},
	})
}
