package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"ledgerline/ledger"
)

// Body of a frame, integers little-endian:
//
//	0      1      17      25     33     41
//	+------+------+-------+------+------+- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
//	| kind | hold | epoch | user | at   |
//	|      |  16  |       |      | ms   |
//	+------+------+-------+------+------+- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
//	  open                              | slot u32 | amount i64 | token i64 | held u8 | JSON of the rest of OpenRecord
//	  event                             | id 16 | seq u64 | prev u64 | charge i64 | made i64 | n u8 | kind n | JSON of the event
//	  void                              |
//
// An event's hold is zero if it settles none. All that the journal itself needs stands in the binary part: it never decodes
// JSON to ship, settle or collect.
const (
	kindOpen  = 1
	kindEvent = 2
	kindVoid  = 3

	commonBytes = 41
	openBytes   = commonBytes + 4 + 8 + 8 + 1
	eventBytes  = commonBytes + 16 + 8 + 8 + 8 + 8 + 1
)

// record is one body, taken apart.
type record struct {
	Kind  byte
	Hold  ledger.ID
	Epoch uint64
	User  int64
	At    int64 // Unix milliseconds, when it was appended

	// open
	Slot      uint32
	Amount    int64
	Token     int64
	TokenHeld bool

	// event
	ID        ledger.ID
	Seq, Prev uint64
	Charge    int64
	Made      int64 // Event.Time
	EventKind ledger.Kind

	Payload []byte // JSON; aliases what was read
	// cut is used while encoding an event: Payload[cut:cut+len(unsetSeq)] is replaced by Seq and Prev. 0: none.
	cut int
}

// unsetSeq is how an event that has no place in the sequence yet shows it in canonical JSON. The text is encoded before the
// append lock is taken, and gets its numbers below it. It cannot occur inside a JSON string, where quotes are escaped.
var unsetSeq = []byte(`,"seq":0,"prev":0,`)

// size returns an upper bound of the encoded body.
func (r *record) size() int {
	switch r.Kind {
	case kindOpen:
		return openBytes + len(r.Payload)
	case kindEvent:
		return eventBytes + len(r.EventKind) + len(r.Payload) + 40
	}
	return commonBytes
}

// append appends the body to dst and returns it with the position in it at which the JSON begins.
func (r *record) append(dst []byte) (body []byte, payload int) {
	le := binary.LittleEndian
	dst = append(dst, r.Kind)
	dst = append(dst, r.Hold[:]...)
	dst = le.AppendUint64(dst, r.Epoch)
	dst = le.AppendUint64(dst, uint64(r.User))
	dst = le.AppendUint64(dst, uint64(r.At))
	switch r.Kind {
	case kindOpen:
		dst = le.AppendUint32(dst, r.Slot)
		dst = le.AppendUint64(dst, uint64(r.Amount))
		dst = le.AppendUint64(dst, uint64(r.Token))
		held := byte(0)
		if r.TokenHeld {
			held = 1
		}
		dst = append(dst, held)
	case kindEvent:
		dst = append(dst, r.ID[:]...)
		dst = le.AppendUint64(dst, r.Seq)
		dst = le.AppendUint64(dst, r.Prev)
		dst = le.AppendUint64(dst, uint64(r.Charge))
		dst = le.AppendUint64(dst, uint64(r.Made))
		dst = append(dst, byte(len(r.EventKind)))
		dst = append(dst, r.EventKind...)
	}
	payload = len(dst)
	if r.cut == 0 {
		return append(dst, r.Payload...), payload
	}
	dst = append(dst, r.Payload[:r.cut]...)
	dst = append(dst, `,"seq":`...)
	dst = strconv.AppendUint(dst, r.Seq, 10)
	dst = append(dst, `,"prev":`...)
	dst = strconv.AppendUint(dst, r.Prev, 10)
	dst = append(dst, ',')
	return append(dst, r.Payload[r.cut+len(unsetSeq):]...), payload
}

var errRecord = errors.New("record cannot be read")

// decodeRecord takes a body apart. The payload aliases it.
func decodeRecord(b []byte) (record, error) {
	le := binary.LittleEndian
	if len(b) < commonBytes {
		return record{}, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	r := record{
		Kind: b[0], Hold: ledger.ID(b[1:17]), Epoch: le.Uint64(b[17:]),
		User: int64(le.Uint64(b[25:])), At: int64(le.Uint64(b[33:])),
	}
	rest := b[commonBytes:]
	switch r.Kind {
	case kindOpen:
		if len(b) < openBytes || r.Hold.IsZero() {
			return record{}, fmt.Errorf("%w: short open record", errRecord)
		}
		r.Slot, r.Amount, r.Token = le.Uint32(rest), int64(le.Uint64(rest[4:])), int64(le.Uint64(rest[12:]))
		r.TokenHeld, r.Payload = rest[20] != 0, rest[21:]
	case kindEvent:
		if len(b) < eventBytes || len(rest) < 49+int(rest[48]) {
			return record{}, fmt.Errorf("%w: short event record", errRecord)
		}
		r.ID, r.Seq, r.Prev = ledger.ID(rest[:16]), le.Uint64(rest[16:]), le.Uint64(rest[24:])
		r.Charge, r.Made = int64(le.Uint64(rest[32:])), int64(le.Uint64(rest[40:]))
		n := 49 + int(rest[48])
		r.EventKind, r.Payload = kindOf(rest[49:n]), rest[n:]
		if r.Seq == 0 || r.Prev >= r.Seq {
			return record{}, fmt.Errorf("%w: seq %d after %d", errRecord, r.Seq, r.Prev)
		}
	case kindVoid:
		if len(rest) != 0 || r.Hold.IsZero() {
			return record{}, fmt.Errorf("%w: void record", errRecord)
		}
	default:
		return record{}, fmt.Errorf("%w: unknown kind %d", errRecord, r.Kind)
	}
	return r, nil
}

// kindOf avoids an allocation for the kinds that matter in number.
func kindOf(b []byte) ledger.Kind {
	if string(b) == string(ledger.KindUsageSettled) {
		return ledger.KindUsageSettled
	}
	return ledger.Kind(b)
}

// setEvent fills in r from ev, whose Producer is set and whose Seq and Prev are not, encoding it into buf, which is empty.
func (r *record) setEvent(ev *ledger.Event, buf []byte) error {
	if err := checkEvent(ev); err != nil {
		return err
	}
	value, err := ev.Encode(buf)
	if err != nil {
		return err
	}
	cut := bytes.Index(value[:min(len(value), 512)], unsetSeq)
	if cut <= 0 {
		return fmt.Errorf("%w: its canonical form shows no seq and prev", errRecord)
	}
	r.Kind, r.User, r.ID, r.Charge, r.Made = kindEvent, ev.User, ev.ID, ev.Charged, ev.Time
	r.EventKind, r.Payload, r.cut = ev.Kind, value, cut
	if settles(ev) {
		r.Hold, r.Epoch = ev.Hold.ID, ev.Hold.Epoch
	}
	return nil
}

// checkEvent refuses what every consumer would have to dead-letter, seen from before it has a place in the sequence.
func checkEvent(ev *ledger.Event) error {
	probe := *ev
	probe.Seq, probe.Prev = 1, 0
	if err := probe.Check(); err != nil {
		return err
	}
	if ev.Version > ledger.EventVersion || len(ev.Kind) > 255 {
		return fmt.Errorf("event of kind %q version %d cannot be written by this version", ev.Kind, ev.Version)
	}
	return nil
}

// parcel turns an event record into what is shipped.
func (r *record) parcel(incarnation ledger.ID, partitions int) ledger.Parcel {
	return ledger.Parcel{
		Producer: incarnation, Partition: ledger.Partition(r.User, partitions), Seq: r.Seq, Prev: r.Prev,
		ID: r.ID, Kind: r.EventKind, User: r.User, Time: r.Made, At: unixMilli(r.At), Value: r.Payload,
	}
}
