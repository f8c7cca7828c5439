package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// maxFetchResponse bounds one fetch response (L7): a broker returns at most the bytes asked for, or one whole batch, and
// no sane topic allows batches of this size.
const maxFetchResponse = 64 << 20

// fetchVersion is the version of the Fetch call that is spoken: Kafka 2.3 and newer, the embedded broker too. It is the last one
// without tagged fields.
const fetchVersion = 11

var errOldBroker = errors.New("the broker is older than Kafka 2.3")

// fetchRequest is one Fetch call for one partition. It travels through kafka-go's transport, which routes it to the
// partition's leader and owns connections, TLS and SASL, but writes and reads its own bytes: kafka-go decodes each record with
// its headers into some 20 allocations, this leaves the values where they arrived.
type fetchRequest struct {
	clientID  string
	topic     string
	partition int
	offset    int64
	maxBytes  int
	maxWait   time.Duration
	reuse     []byte // may take the response, if it fits

	version int16 // negotiated by the connection, set in Required
}

var (
	_ protocol.BrokerMessage = (*fetchRequest)(nil)
	_ protocol.RawExchanger  = (*fetchRequest)(nil)
)

// ApiKey implements protocol.Message.
func (r *fetchRequest) ApiKey() protocol.ApiKey { return protocol.Fetch }

// Broker routes the request to the partition's leader.
func (r *fetchRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	partition, ok := cluster.Topics[r.topic].Partitions[int32(r.partition)]
	if !ok {
		return protocol.Broker{ID: -1}, kafka.UnknownTopicOrPartition
	}
	broker, ok := cluster.Brokers[partition.Leader]
	if !ok {
		return protocol.Broker{ID: -1}, kafka.LeaderNotAvailable
	}
	return broker, nil
}

// Required implements protocol.RawExchanger: always.
func (r *fetchRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.version = versions[protocol.Fetch]
	return true
}

// RawExchange writes the request and reads its response.
func (r *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.version < fetchVersion {
		return nil, errOldBroker
	}
	if _, err := rw.Write(r.encode()); err != nil {
		return nil, fmt.Errorf("write fetch request: %w", err)
	}
	body, err := readFrame(rw, "fetch", maxFetchResponse, r.reuse)
	if err != nil {
		return nil, err
	}
	res, err := decodeFetch(body)
	if err != nil {
		return nil, err
	}
	res.body = body
	return res, nil
}

func (r *fetchRequest) encode() []byte {
	b := make([]byte, 4, 128+len(r.topic)+len(r.clientID))
	be := binary.BigEndian
	b = appendRequestHeader(b, protocol.Fetch, fetchVersion, r.clientID)
	b = be.AppendUint32(b, ^uint32(0)) // replica: a consumer
	b = be.AppendUint32(b, uint32(r.maxWait.Milliseconds()))
	b = be.AppendUint32(b, 1) // min bytes: answer as soon as there is a record
	b = be.AppendUint32(b, uint32(r.maxBytes))
	b = append(b, 0)                   // isolation: nobody writes transactions here
	b = be.AppendUint32(b, 0)          // no fetch session
	b = be.AppendUint32(b, ^uint32(0)) //
	b = be.AppendUint32(b, 1)
	b = appendText(b, r.topic)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, uint32(r.partition))
	b = be.AppendUint32(b, ^uint32(0)) // leader epoch: unknown
	b = be.AppendUint64(b, uint64(r.offset))
	b = be.AppendUint64(b, ^uint64(0)) // log start: followers only
	b = be.AppendUint32(b, uint32(r.maxBytes))
	b = be.AppendUint32(b, 0) // forgotten topics
	b = appendText(b, "")     // rack
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

// fetchResponse is the part of a Fetch response that matters here; records aliases the response.
type fetchResponse struct {
	errorCode     int16
	highWatermark int64
	logStart      int64
	records       []byte
	body          []byte // the whole response
}

// ApiKey implements protocol.Message.
func (r *fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch }

// decodeFetch reads the response to a request for one partition.
func decodeFetch(body []byte) (*fetchResponse, error) {
	d := wire{b: body}
	if id := d.int32(); id != correlation && !d.short {
		return nil, fmt.Errorf("read fetch response: correlation id is %d, not %d", id, correlation)
	}
	d.int32() // throttle
	res := &fetchResponse{errorCode: d.int16()}
	d.int32() // session
	if topics := d.int32(); topics == 0 && !d.short {
		if res.errorCode == 0 {
			return nil, errors.New("read fetch response: it has no partition")
		}
		return res, nil
	}
	d.bytes(int(d.int16())) // topic
	if partitions := d.int32(); partitions != 1 && !d.short {
		return nil, fmt.Errorf("read fetch response: it has %d partitions", partitions)
	}
	d.int32() // partition
	if code := d.int16(); code != 0 {
		res.errorCode = code
	}
	res.highWatermark = d.int64()
	d.int64() // last stable offset
	res.logStart = d.int64()
	for range max(0, d.int32()) { // aborted transactions
		d.int64()
		d.int64()
		if d.short {
			break
		}
	}
	d.int32() // preferred replica
	res.records = d.bytes(int(max(0, d.int32())))
	if d.short {
		return nil, fmt.Errorf("read fetch response: %w", io.ErrUnexpectedEOF)
	}
	return res, nil
}
