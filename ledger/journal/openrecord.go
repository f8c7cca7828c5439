package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"ledgerline/ledger"
)

// maxOpenBytes bounds the JSON part of an open record (L7): names and ratios, about half a kilobyte.
const maxOpenBytes = 64 << 10

// OpenRecord is what recovery must know of a request whose node died: enough to price it and to bill it. The fields marked "-"
// are stored in the binary part of the record, the others as JSON, so that a field added here or in Request and Rating is
// kept by itself.
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

// openEncoder keeps a buffer and the encoder that writes to it.
type openEncoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

var openEncoders = sync.Pool{New: func() any {
	e := &openEncoder{}
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false)
	return e
}}

// encode returns the JSON part, valid until the encoder is put back.
func (e *openEncoder) encode(rec *OpenRecord) ([]byte, error) {
	e.buf.Reset()
	if err := e.enc.Encode(rec); err != nil {
		return nil, fmt.Errorf("encode open record: %w", err)
	}
	b := e.buf.Bytes()
	if len(b) > maxOpenBytes {
		return nil, fmt.Errorf("encode open record of %d bytes: %w", len(b), ErrTooLarge)
	}
	return b[:len(b)-1], nil // the encoder's newline
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
