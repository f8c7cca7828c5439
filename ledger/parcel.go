package ledger

import "time"

// Parcel is one journaled event on its way to the log: its canonical JSON, and beside it what a shipper needs to place
// and label it without decoding. Parcels of one producer and partition are shipped in ascending Seq (L5).
type Parcel struct {
	Producer  ID
	Partition int
	Seq, Prev uint64 // as in Event
	ID        ID     // the event's id
	Kind      Kind
	User      int64
	Time      int64     // Event.Time, Unix milliseconds
	At        time.Time // when it was journaled
	Value     []byte    // canonical JSON; shared, never to be written to
}

// Headers returns what Event.Headers returns for the event inside.
func (p *Parcel) Headers() []Header {
	e := Event{Kind: p.Kind, ID: p.ID, Producer: p.Producer, Time: p.Time, User: p.User}
	return e.Headers()
}

// Key returns the Kafka record key: the ordering key of the user.
func (p *Parcel) Key() []byte { return OrderingKey(p.User) }
