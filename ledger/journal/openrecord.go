package journal

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"ledgerline/ledger"
)

// maxOpenBytes bounds the JSON part of an open record (L7): names and ratios, about half a kilobyte.
const maxOpenBytes = 64 << 10

// OpenRecord is what recovery must know of a request whose node died: enough to price it and to bill it. The fields marked "-"
// are stored in the binary part of the record, the others as JSON, so that older records can be read when a field is added.
type OpenRecord struct {
	Hold      ledger.ID `json:"-"`
	Epoch     uint64    `json:"-"` // counter epoch the hold lives in, as last reopened
	Amount    int64     `json:"-"` // quota units held when it was opened or last reopened
	User      int64     `json:"-"`
	Token     int64     `json:"-"`
	TokenHeld bool      `json:"-"` // the hold covers the token's account too (a limited token)

	Time         int64          `json:"time,omitempty"` // arrival of the request, Unix milliseconds
	Node         string         `json:"node,omitempty"`
	PromptTokens int64          `json:"prompt_tokens,omitempty"` // estimate, for a request that was forwarded and never answered
	Request      ledger.Request `json:"request"`
	Rating       ledger.Rating  `json:"rating"`
}

// openBuffers holds buffers for open records, which are encoded before the append lock is taken.
var openBuffers = sync.Pool{New: func() any { return new([]byte) }}

// appendJSON appends the JSON part: what encoding/json would write, without HTML escaping. It is written by hand because it
// runs for every request; a test fills every field, so that none is forgotten.
func (rec *OpenRecord) appendJSON(dst []byte) ([]byte, error) {
	begun := len(dst)
	number := func(key string, n int64) {
		if n != 0 {
			dst = strconv.AppendInt(append(dst, key...), n, 10)
		}
	}
	number(`,"time":`, rec.Time)
	if rec.Node != "" {
		dst = ledger.AppendString(append(dst, `,"node":`...), rec.Node)
	}
	number(`,"prompt_tokens":`, rec.PromptTokens)
	dst = rec.Request.Append(append(dst, `,"request":`...))
	dst, err := rec.Rating.Append(append(dst, `,"rating":`...))
	if err != nil {
		return nil, fmt.Errorf("encode open record: %w", err)
	}
	dst[begun] = '{'
	dst = append(dst, '}')
	if len(dst)-begun > maxOpenBytes {
		return nil, fmt.Errorf("encode open record of %d bytes: %w", len(dst)-begun, ErrTooLarge)
	}
	return dst, nil
}

// open rebuilds the OpenRecord of an open record.
func (r *record) open() (OpenRecord, error) {
	var o OpenRecord
	if err := json.Unmarshal(r.Payload, &o); err != nil {
		return OpenRecord{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	o.Hold, o.Epoch, o.Amount, o.User, o.Token, o.TokenHeld = r.Hold, r.Epoch, r.Amount, r.User, r.Token, r.TokenHeld
	return o, nil
}

func unixMilli(ms int64) time.Time { return time.UnixMilli(ms) }
