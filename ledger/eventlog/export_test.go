package eventlog

import "github.com/twmb/franz-go/pkg/kfake"

// Cluster gives tests the fault injection of the embedded broker.
func (e *Embedded) Cluster() *kfake.Cluster { return e.cluster }

// EachRecord and DecodeFetch are the decoders that tests fuzz and compare.
var (
	EachRecord = eachRecord
)

// DecodeFetch returns the fields of a fetch response.
func DecodeFetch(body []byte) (code int16, end int64, records []byte, err error) {
	res, err := decodeFetch(body)
	if err != nil {
		return 0, 0, nil, err
	}
	return res.errorCode, res.highWatermark, res.records, nil
}

// DecodeProduce returns the error codes of a produce response.
func DecodeProduce(body []byte) (map[int]int16, error) {
	res, err := decodeProduce(body)
	if err != nil {
		return nil, err
	}
	return res.codes, nil
}

// AppendBatch is the encoder of what is shipped.
var AppendBatch = appendBatch
