package ledger

import "time"

// Parcel is one event on its way from a journal to the log.
type Parcel struct {
	Partition int       // Partition(User, P)
	Seq       uint64    // the producer's sequence number
	User      int64     // the record key, see OrderingKey
	Value     []byte    // canonical JSON of the event; nobody changes or reuses these bytes afterwards
	At        time.Time // when the event was appended, for the age of what waits
}
