package relaytest

import (
	"net/http"
	"strconv"
)

// pieces are the bytes around a choice's text in a chunk, made once per answer.
type pieces struct{ before, after []byte }

// stream answers with one token a chunk.
func (j *job) stream() {
	h := j.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	rc := http.NewResponseController(j.w)
	j.rec.Cut = true // until the end is reached
	if j.script.Early {
		// Without it the server would read the body before the first byte leaves. A server that cannot is not early.
		_ = rc.EnableFullDuplex()
		// Nobody will read the rest, so nothing else can come over this connection.
		h.Set("Connection", "close")
	}
	around := make([]pieces, j.choices)
	for c := range around {
		around[c] = j.pieces(int64(c))
		if j.object == "chat.completion" {
			j.buf = j.chunk(j.buf, int64(c), `"role":"assistant","content":""`, "null", nil)
		}
	}
	if !j.send(rc) {
		return
	}
	inside := j.script.Usage == UsageInside
	for k := range j.tokens {
		if !j.fault(rc, k) || j.script.Delay > 0 && !j.wait(j.script.Delay) {
			return
		}
		word := words[k%int64(len(words))]
		for c := range around {
			if last := k == j.tokens-1; last && inside || j.script.Usage == UsageCumulative {
				j.buf = j.contentWithUsage(int64(c), k, last && inside)
			} else {
				j.buf = append(append(append(j.buf, around[c].before...), word...), around[c].after...)
			}
		}
		if (k+1)%max(j.script.Burst, 1) == 0 || k == j.tokens-1 {
			if !j.send(rc) {
				return
			}
			j.rec.Chunks = (k + 1) * j.choices
			j.rec.Completion = j.rec.Chunks
		}
		if every := j.u.opts.ProgressEvery; every > 0 && (k+1)%every == 0 {
			j.u.oracle.progress(&j.rec)
		}
	}
	if !j.fault(rc, j.tokens) {
		return
	}
	j.end()
	if j.send(rc) {
		j.rec.Finished, j.rec.Cut = true, false
	}
}

// end appends all that follows the content.
func (j *job) end() {
	if j.script.Usage != UsageInside || j.tokens == 0 {
		for c := range j.choices {
			var tail []byte
			if j.script.Usage == UsageCumulative || j.script.Usage == UsageInside {
				tail = j.usage(nil, j.tokens)
			}
			j.buf = j.chunk(j.buf, c, "", strconv.Quote(j.finish), tail)
		}
	}
	const done = "data: [DONE]\n\n"
	last := func() {
		if !j.askUsage {
			return
		}
		b := append(j.head(append(j.buf, "data: "...), j.chunkObject()), `,"choices":[]`...)
		j.buf = append(j.usage(b, j.tokens), "}\n\n"...)
	}
	switch j.script.Usage {
	case UsageInside, UsageCumulative, UsageNever:
	case UsageLate:
		j.buf = append(j.buf, done...)
		last()
		return
	case UsageTwice:
		last()
		last()
	default:
		last()
	}
	j.buf = append(j.buf, done...)
}

// fault does what the script asks for after k content chunks. False ends the answer.
func (j *job) fault(rc *http.ResponseController, k int64) bool {
	s := &j.script
	if k != s.Cut && k != s.Error && k != s.Silence && k != s.Garbage {
		return true
	}
	if len(j.buf) > 0 && !j.send(rc) { // a burst under way
		return false
	}
	j.rec.Chunks = k * j.choices
	j.rec.Completion = j.rec.Chunks
	switch k {
	case s.Garbage:
		j.buf = append(j.buf, "data: {\"choices\": oops\n\n"...)
		return j.send(rc)
	case s.Error:
		j.buf = append(j.buf, `data: {"error":{"message":"the script asked for an error","type":"server_error","param":null,"code":"mock_code"}}`+"\n\n"...)
		j.send(rc)
		return false
	case s.Silence:
		<-j.r.Context().Done()
		return false
	}
	panic(http.ErrAbortHandler)
}

// send writes what has gathered and flushes it. False means that the client is gone.
func (j *job) send(rc *http.ResponseController) bool {
	_, err := j.w.Write(j.buf)
	j.buf = j.buf[:0]
	if err == nil {
		err = rc.Flush()
	}
	return err == nil && j.r.Context().Err() == nil
}

func (j *job) chunkObject() string {
	if j.object == "chat.completion" {
		return "chat.completion.chunk"
	}
	return j.object
}

// chunk appends an event of one choice; delta is the inside of its delta, tail goes behind the choices.
func (j *job) chunk(dst []byte, choice int64, delta, finish string, tail []byte) []byte {
	dst = j.head(append(dst, "data: "...), j.chunkObject())
	dst = strconv.AppendInt(append(dst, `,"choices":[{"index":`...), choice, 10)
	if j.object == "chat.completion" {
		dst = append(append(append(dst, `,"delta":{`...), delta...), '}')
	} else {
		dst = append(append(append(dst, `,"text":"`...), delta...), '"')
	}
	dst = append(append(dst, `,"logprobs":null,"finish_reason":`...), finish...)
	dst = append(dst, "}]"...)
	switch {
	case tail != nil:
		dst = append(dst, tail...)
	case j.askUsage && j.script.Usage != UsageNever:
		dst = append(dst, `,"usage":null`...)
	}
	return append(dst, "}\n\n"...)
}

// content is the inside of a delta that carries text.
func (j *job) content(text string) string {
	if j.object == "chat.completion" {
		return `"content":"` + text + `"`
	}
	return text
}

// pieces makes the bytes around a text by rendering one and cutting it out.
func (j *job) pieces(choice int64) pieces {
	const mark = "\x00"
	b := j.chunk(nil, choice, j.content(mark), "null", nil)
	for i, c := range b {
		if c == mark[0] {
			return pieces{b[:i:i], b[i+1:]}
		}
	}
	panic("relaytest: a chunk without its text")
}

// contentWithUsage appends the content chunk of token k with the usage up to it.
func (j *job) contentWithUsage(choice, k int64, last bool) []byte {
	finish := "null"
	if last {
		finish = strconv.Quote(j.finish)
	}
	return j.chunk(j.buf, choice, j.content(words[k%int64(len(words))]), finish, j.usage(nil, k+1))
}
