package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// MaxEventBytes bounds one encoded event (L7). A usage event is about 1 KB; tool lists and notes are bounded far below.
const MaxEventBytes = 256 << 10

// Record is one record of the log as a sink receives it.
type Record struct {
	Partition int
	Offset    int64
	Value     []byte // canonical JSON of Event
	Event     Event
	// Err is not nil if Value could not be decoded. ErrNewer means "stop and wait for a newer binary", anything else
	// is a dead letter (L6).
	Err error
}

// ErrNewer marks an event of a kind or version that this build does not know. It is no dead letter: the partition stops.
var ErrNewer = errors.New("event is newer than this binary")

// Encode appends the canonical JSON of e to dst: fields in the order of the struct, no white space, no HTML escaping.
func (e *Event) Encode(dst []byte) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	b := buf.Bytes()
	b = b[:len(b)-1] // the encoder's newline
	if len(b)-len(dst) > MaxEventBytes {
		return nil, fmt.Errorf("encode event: %d bytes, more than %d", len(b)-len(dst), MaxEventBytes)
	}
	return b, nil
}

// Decode reads an event. Errors: ErrNewer (wrapped) for an unknown kind or higher version, otherwise what is wrong.
func Decode(value []byte) (Event, error) {
	var head struct {
		V    int  `json:"v"`
		Kind Kind `json:"kind"`
	}
	if len(value) > MaxEventBytes {
		return Event{}, fmt.Errorf("decode event: %d bytes, more than %d", len(value), MaxEventBytes)
	}
	var e Event
	if err := json.Unmarshal(value, &e); err != nil {
		if json.Unmarshal(value, &head) == nil && (head.V > EventVersion || head.V > 0 && !head.Kind.Known()) {
			return Event{}, fmt.Errorf("decode event of kind %q version %d: %w", head.Kind, head.V, ErrNewer)
		}
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	if e.Version > EventVersion || e.Version > 0 && e.Kind != "" && !e.Kind.Known() {
		return Event{}, fmt.Errorf("decode event of kind %q version %d: %w", e.Kind, e.Version, ErrNewer)
	}
	return e, e.Check()
}

// Check reports what makes an event impossible to apply, whoever made it.
func (e *Event) Check() error {
	switch {
	case e.Version < 1:
		return errors.New("event has no version")
	case !e.Kind.Known():
		return errors.New("event has no kind")
	case e.ID.IsZero() || e.Producer.IsZero() || e.Seq == 0:
		return errors.New("event has no identity (id, producer, seq)")
	case e.Prev >= e.Seq:
		return fmt.Errorf("event has prev %d, not below its seq %d", e.Prev, e.Seq)
	case e.User <= 0:
		return errors.New("event has no user")
	case e.Kind.IsUsage() && e.Charged < 0:
		return fmt.Errorf("usage event charges %d", e.Charged)
	}
	return nil
}

// Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Headers returns the CloudEvents attributes of e for the Kafka protocol binding, binary mode.
func (e *Event) Headers() []Header {
	text := func(k, v string) Header { return Header{k, []byte(v)} }
	return []Header{
		text("content-type", "application/json"),
		text("ce_specversion", "1.0"),
		text("ce_id", e.ID.String()),
		text("ce_source", "/ledgerline/"+e.Producer.String()),
		text("ce_type", "ledgerline."+string(e.Kind)),
		text("ce_time", time.UnixMilli(e.Time).UTC().Format(time.RFC3339Nano)),
		text("ce_subject", "user/"+strconv.FormatInt(e.User, 10)),
	}
}
