package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"ledgerline/ledger"
)

// produceVersion is the version of the Produce call that is spoken: Kafka 2.1 and newer, the embedded broker too.
const produceVersion = 7

// maxProduceResponse bounds the answer to a Produce call (L7): 30 bytes a partition, and no sane topic has 30,000.
const maxProduceResponse = 1 << 20

// produceRequest is one Produce call to one broker for several partitions, each once, acknowledged by all in-sync replicas. It
// travels as fetchRequest does; kafka-go's own carries one partition, and a broker's cost is that of its requests.
type produceRequest struct {
	clientID string
	topic    string
	leader   int // the broker that it goes to
	loads    []*load

	version int16 // negotiated by the connection, set in Required
}

var (
	_ protocol.BrokerMessage = (*produceRequest)(nil)
	_ protocol.RawExchanger  = (*produceRequest)(nil)
)

// ApiKey implements protocol.Message.
func (r *produceRequest) ApiKey() protocol.ApiKey { return protocol.Produce }

// Broker routes the request to the leader.
func (r *produceRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	broker, ok := cluster.Brokers[int32(r.leader)]
	if !ok {
		return protocol.Broker{ID: -1}, kafka.LeaderNotAvailable
	}
	return broker, nil
}

// Required implements protocol.RawExchanger: always.
func (r *produceRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.version = versions[protocol.Produce]
	return true
}

// RawExchange writes the request and reads its response.
func (r *produceRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.version < produceVersion {
		return nil, errOldBroker
	}
	if _, err := rw.Write(r.encode(time.Now())); err != nil {
		return nil, fmt.Errorf("write produce request: %w", err)
	}
	body, err := readFrame(rw, "produce", maxProduceResponse, nil)
	if err != nil {
		return nil, err
	}
	return decodeProduce(body)
}

func (r *produceRequest) encode(now time.Time) []byte {
	size := 128 + len(r.topic) + len(r.clientID)
	for _, l := range r.loads {
		size += batchHeader + 8
		for i := range l.parcels {
			size += weight(&l.parcels[i])
		}
	}
	b := make([]byte, 4, size)
	be := binary.BigEndian
	b = appendRequestHeader(b, protocol.Produce, produceVersion, r.clientID)
	b = be.AppendUint16(b, ^uint16(0)) // no transaction
	b = be.AppendUint16(b, ^uint16(0)) // acknowledged by all in-sync replicas
	b = be.AppendUint32(b, uint32((requestTimeout / 2).Milliseconds()))
	b = be.AppendUint32(b, 1)
	b = appendText(b, r.topic)
	b = be.AppendUint32(b, uint32(len(r.loads)))
	for _, l := range r.loads {
		b = be.AppendUint32(b, uint32(l.partition))
		at := len(b)
		b = be.AppendUint32(b, 0)
		b = appendBatch(b, l.parcels, now)
		be.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

// appendBatch appends parcels as one record batch, see batch.go for its layout.
func appendBatch(b []byte, parcels []ledger.Parcel, now time.Time) []byte {
	be := binary.BigEndian
	start := len(b)
	b = be.AppendUint64(b, 0)                      // base offset: the broker's to say
	b = be.AppendUint32(b, 0)                      // length, below
	b = be.AppendUint32(b, ^uint32(0))             // leader epoch: unknown
	b = append(b, 2)                               // format
	b = be.AppendUint32(b, 0)                      // CRC, below
	b = be.AppendUint16(b, 0)                      // no compression
	b = be.AppendUint32(b, uint32(len(parcels)-1)) // last offset, less the first
	b = be.AppendUint64(b, uint64(now.UnixMilli()))
	b = be.AppendUint64(b, uint64(now.UnixMilli()))
	b = be.AppendUint64(b, ^uint64(0)) // no idempotent producer: duplicates are the consumers' to drop (L2)
	b = be.AppendUint16(b, ^uint16(0))
	b = be.AppendUint32(b, ^uint32(0))
	b = be.AppendUint32(b, uint32(len(parcels)))
	var r recordEncoder
	for i := range parcels {
		b = r.append(b, i, &parcels[i])
	}
	be.PutUint32(b[start+8:], uint32(len(b)-start-batchLengthEnd))
	be.PutUint32(b[start+17:], crc32.Checksum(b[start+batchCRCEnd:], castagnoli))
	return b
}

// produceResponse says per partition what became of its batch.
type produceResponse struct {
	codes map[int]int16
}

// ApiKey implements protocol.Message.
func (r *produceResponse) ApiKey() protocol.ApiKey { return protocol.Produce }

func decodeProduce(body []byte) (*produceResponse, error) {
	d := wire{b: body}
	if id := d.int32(); id != correlation && !d.short {
		return nil, fmt.Errorf("read produce response: correlation id is %d, not %d", id, correlation)
	}
	res := &produceResponse{codes: map[int]int16{}}
	if topics := d.int32(); topics != 1 && !d.short {
		return nil, fmt.Errorf("read produce response: it has %d topics", topics)
	}
	d.bytes(int(d.int16())) // topic
	for range max(0, d.int32()) {
		partition, code := d.int32(), d.int16()
		d.int64() // offset
		d.int64() // time
		d.int64() // log start
		if d.short {
			break
		}
		res.codes[int(partition)] = code
	}
	if d.short {
		return nil, fmt.Errorf("read produce response: %w", io.ErrUnexpectedEOF)
	}
	return res, nil
}

var errNotAnswered = errors.New("the broker's answer does not name the partition")

// outcome returns what became of the batch of one partition.
func (r *produceResponse) outcome(partition int) error {
	code, ok := r.codes[partition]
	switch {
	case !ok:
		return errNotAnswered
	case code != 0:
		return kafka.Error(code)
	}
	return nil
}
