package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger"
)

// Bounds of reading (L7).
const (
	// DefaultFetchBytes is how much one fetch asks for: about a thousand usage events, large enough to hide the round trip.
	DefaultFetchBytes = 1 << 20
	// pollWait is how long a broker holds a fetch open when there is nothing new: brokers in use close connections that are silent
	// for minutes, and an idle partition shall cost next to nothing.
	pollWait = 5 * time.Second
	// recordOverhead is about what a record of ours has beside its value; it only sizes an allocation.
	recordOverhead = 250
)

// Batch is what one fetch returned, decoded.
type Batch struct {
	Records []ledger.Record
	Next    int64 // the offset to fetch from next; everything below it is in Records or before
	End     int64 // the offset after the partition's last committed record
	First   int64 // the first offset that the partition still holds
	Bytes   int   // size of the response, which Records keep alive
}

// page is the memory of one response and what it decodes to. Only Read uses one twice.
type page struct {
	body    []byte
	records []ledger.Record
	decoder ledger.Decoder
}

// Fetch reads records of partition from offset on, waiting up to pollWait for the first. A record that cannot be decoded
// is in the batch with its Err. An empty batch means that there is nothing new. Errors: ErrOutOfRange (wrapped) if the
// partition does not hold offset and it is not its end; others are worth repeating.
func (c *Client) Fetch(ctx context.Context, partition int, offset int64) (Batch, error) {
	return c.fetch(ctx, partition, offset, &page{})
}

// fetch fills p. After an error p must not be used again: an abandoned request may still be writing to it.
func (c *Client) fetch(ctx context.Context, partition int, offset int64, p *page) (Batch, error) {
	res, err := c.fetchRaw(ctx, partition, offset, pollWait, p.body)
	if err != nil {
		return Batch{}, err
	}
	p.body = res.body
	p.records = p.records[:0]
	p.decoder.Reset()
	batch := Batch{Next: offset, End: res.highWatermark, First: res.logStart, Bytes: len(res.records)}
	next, err := eachRecord(res.records, offset, func(offset int64, value []byte) {
		if cap(p.records) == 0 {
			p.records = make([]ledger.Record, 0, len(res.records)/(len(value)+recordOverhead)+1)
		}
		p.records = append(p.records, ledger.Record{Partition: partition, Offset: offset, Value: value})
	})
	if err != nil {
		return Batch{}, fmt.Errorf("read %s[%d] at %d: %w", c.cfg.Topic, partition, offset, err)
	}
	for i := range p.records {
		r := &p.records[i]
		r.Err = p.decoder.Decode(r.Value, &r.Event)
	}
	batch.Records = p.records
	batch.Next = max(batch.Next, next)
	return batch, nil
}

func (c *Client) fetchRaw(ctx context.Context, partition int, offset int64, wait time.Duration, reuse []byte) (*fetchResponse, error) {
	doing := fmt.Sprintf("fetch %s[%d] at %d", c.cfg.Topic, partition, offset)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout+wait)
	defer cancel()
	m, err := c.transport.RoundTrip(ctx, c.addr, &fetchRequest{
		clientID:  c.cfg.ClientID,
		topic:     c.cfg.Topic,
		partition: partition,
		offset:    offset,
		maxBytes:  DefaultFetchBytes,
		maxWait:   wait,
		reuse:     reuse,
	})
	if err != nil {
		return nil, c.failed(doing, err)
	}
	res := m.(*fetchResponse)
	switch err := kafka.Error(res.errorCode); {
	case res.errorCode == 0:
		return res, nil
	case errors.Is(err, kafka.OffsetOutOfRange):
		return nil, fmt.Errorf("%s: %w", doing, ErrOutOfRange)
	default:
		return nil, c.failed(doing, err)
	}
}

// ReadAt returns the record at exactly offset. Errors: ErrOutOfRange if the partition does not hold it (any more, or yet),
// ErrNoRecord if that offset carries no record. The record's own Err is not an error of ReadAt.
func (c *Client) ReadAt(ctx context.Context, partition int, offset int64) (ledger.Record, error) {
	doing := fmt.Sprintf("read record %d of %s[%d]", offset, c.cfg.Topic, partition)
	var res *fetchResponse
	err := again(ctx, func() (err error) {
		res, err = c.fetchRaw(ctx, partition, offset, time.Millisecond, nil)
		return err
	})
	if err != nil {
		return ledger.Record{}, err
	}
	if offset >= res.highWatermark {
		return ledger.Record{}, fmt.Errorf("%s: the partition ends at %d: %w", doing, res.highWatermark, ErrOutOfRange)
	}
	found := ledger.Record{Offset: -1}
	_, err = eachRecord(res.records, offset, func(at int64, value []byte) {
		if at == offset {
			found = ledger.Record{Partition: partition, Offset: at, Value: append([]byte(nil), value...)}
		}
	})
	switch {
	case err != nil:
		return ledger.Record{}, fmt.Errorf("%s: %w", doing, err)
	case found.Offset < 0:
		return ledger.Record{}, fmt.Errorf("%s: %w", doing, ErrNoRecord)
	}
	found.Event, found.Err = ledger.Decode(found.Value)
	return found, nil
}

// Read calls fn with the records of partition from offset from up to but without offset to, in order, in batches that fn must
// not keep: about two responses are in memory at a time. It fetches and decodes ahead while fn works, and repeats what fails
// for a passing reason. It returns fn's error, ErrOutOfRange if the partition does not reach from from to to, or ctx's.
func (c *Client) Read(ctx context.Context, partition int, from, to int64, fn func([]ledger.Record) error) error {
	if from >= to {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type ahead struct {
		batch Batch
		err   error
	}
	batches := make(chan ahead)
	go func() {
		defer close(batches)
		pages := [2]*page{{}, {}} // when one is handed over, fn is done with the other
		for offset, n := from, 0; offset < to; n++ {
			batch, err := c.fetchPatiently(ctx, partition, offset, &pages[n%2])
			if err == nil && batch.End < to {
				err = fmt.Errorf("read %s[%d]: it ends at %d, before %d: %w", c.cfg.Topic, partition, batch.End, to, ErrOutOfRange)
			}
			offset = batch.Next
			select {
			case batches <- ahead{batch, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for a := range batches {
		if a.err != nil {
			return a.err
		}
		records := a.batch.Records
		for len(records) > 0 && records[len(records)-1].Offset >= to {
			records = records[:len(records)-1]
		}
		if len(records) == 0 {
			continue
		}
		if err := fn(records); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// fetchPatiently repeats a fetch until it succeeds, the offset proves to be gone, or ctx ends. It replaces the page after a
// failure.
func (c *Client) fetchPatiently(ctx context.Context, partition int, offset int64, p **page) (Batch, error) {
	for wait := newBackoff(jitter); ; {
		batch, err := c.fetch(ctx, partition, offset, *p)
		if err == nil || errors.Is(err, ErrOutOfRange) || errors.Is(err, errBadRecords) {
			return batch, err
		}
		*p = &page{}
		if !pause(ctx, wait.next()) {
			return Batch{}, errors.Join(ctx.Err(), err)
		}
	}
}
