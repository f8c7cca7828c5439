package dialect

// DoneEvent ends a stream of OpenAI's shape.
const DoneEvent = "data: [DONE]\n\n"

// maxHeadBytes bounds each value of a stream's head that is kept for a synthetic chunk; ids seen are below 100 bytes.
const maxHeadBytes = 512

// StreamHead is what all chunks of a stream have in common, as raw JSON values; an empty one was never seen.
type StreamHead struct{ ID, Model, Created string }

// Head takes the common fields from a chunk.
func (c *Chunk) Head() StreamHead {
	keep := func(v []byte) string {
		if len(v) > maxHeadBytes {
			return ""
		}
		return string(v)
	}
	return StreamHead{keep(c.ID), keep(c.Model), keep(c.Created)}
}

// AppendLengthEnd appends the events with which the relay ends a stream that the account cannot pay any further: one
// final chunk, with finish reason "length", for every choice still open. DoneEvent has to follow, and the usage chunk
// before it if the client asked for one.
func AppendLengthEnd(dst []byte, e Endpoint, h StreamHead, open []int) []byte {
	for _, i := range open {
		dst = appendHead(append(dst, "data: "...), e, h)
		dst = appendInt(append(dst, `,"choices":[{"index":`...), int64(i))
		if e == Completions {
			dst = append(dst, `,"text":"","logprobs":null`...)
		} else {
			dst = append(dst, `,"delta":{},"logprobs":null`...)
		}
		dst = append(dst, ",\"finish_reason\":\"length\"}]}\n\n"...)
	}
	return dst
}

// AppendUsageChunk appends the event that carries usage after the last choice ended, in tokens.
func AppendUsageChunk(dst []byte, e Endpoint, h StreamHead, prompt, completion int64) []byte {
	dst = appendHead(append(dst, "data: "...), e, h)
	dst = appendInt(append(dst, `,"choices":[],"usage":{"prompt_tokens":`...), prompt)
	dst = appendInt(append(dst, `,"completion_tokens":`...), completion)
	dst = appendInt(append(dst, `,"total_tokens":`...), prompt+completion)
	return append(dst, "}}\n\n"...)
}

func appendHead(dst []byte, e Endpoint, h StreamHead) []byte {
	object := "chat.completion.chunk"
	if e == Completions {
		object = "text_completion"
	}
	or := func(v, instead string) string {
		if v == "" {
			return instead
		}
		return v
	}
	dst = append(append(dst, `{"id":`...), or(h.ID, `""`)...)
	dst = append(append(append(dst, `,"object":"`...), object...), '"')
	dst = append(append(dst, `,"created":`...), or(h.Created, "0")...)
	return append(append(dst, `,"model":`...), or(h.Model, `""`)...)
}
