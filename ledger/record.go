package ledger

import (
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
