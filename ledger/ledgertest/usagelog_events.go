package ledgertest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"ledgerline/ledger"
)

// usageSource makes a log of one partition, record by record.
type usageSource struct {
	t         testing.TB
	rng       *rand.Rand
	partition int
	next      int64 // offset
	ids       uint64
	producers []ledger.ID
	seq       []uint64
	records   []ledger.Record
}

func newUsageSource(t testing.TB, seed uint64, partition int) *usageSource {
	s := &usageSource{t: t, rng: rand.New(rand.NewPCG(seed, uint64(partition))), partition: partition}
	for range 3 {
		s.producers = append(s.producers, s.id())
		s.seq = append(s.seq, 0)
	}
	return s
}

// id returns a new id of the form of a UUIDv7.
func (s *usageSource) id() ledger.ID {
	var id ledger.ID
	s.ids++
	binary.BigEndian.PutUint64(id[:], 0x0190_0000_0000_7000+s.ids<<16)
	binary.BigEndian.PutUint64(id[8:], 0x8000_0000_0000_0000|s.rng.Uint64()>>2)
	id[6] = 0x70
	id[15] = byte(s.partition)
	return id
}

// usageEpoch is the time of the first event, Unix milliseconds: two days before a month ends.
const usageEpoch = 1_764_374_400_000

// send appends an event as some producer's next.
func (s *usageSource) send(e ledger.Event) ledger.Record {
	p := s.rng.IntN(len(s.producers))
	e.Version = ledger.EventVersion
	e.Producer, e.Prev = s.producers[p], s.seq[p]
	s.seq[p] += 1 + s.rng.Uint64N(3)
	e.Seq = s.seq[p]
	if e.ID.IsZero() {
		e.ID = s.id()
	}
	if e.Time == 0 {
		e.Time = usageEpoch + s.next*61_000
	}
	value, err := e.Encode(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.put(value)
}

// put appends a raw value.
func (s *usageSource) put(value []byte) ledger.Record {
	r := ledger.Record{Partition: s.partition, Offset: s.next, Value: value}
	r.Event, r.Err = ledger.Decode(value)
	s.next++
	s.records = append(s.records, r)
	return r
}

// usage returns a settled request of a random user, token, channel and model.
func (s *usageSource) usage() ledger.Event {
	user := 1 + s.rng.Int64N(5) + int64(s.partition)*100
	return ledger.Event{
		Kind: ledger.KindUsageSettled, User: user, Token: user*10 + s.rng.Int64N(3), Channel: 1 + s.rng.Int64N(4),
		Charged: s.rng.Int64N(10_000), Requests: 1, Node: "node-1", Source: ledger.SourceUpstream,
		Request: &ledger.Request{
			ID: fmt.Sprintf("req-%d-%d", s.partition, s.next), Username: fmt.Sprintf("user%d", user), TokenName: "app",
			Group: "default", Model: []string{"gpt-4o", "gpt-4o-mini", "claude-sonnet_4"}[s.rng.IntN(3)],
			Endpoint: "/v1/chat/completions", Status: 200, TotalMS: 2_300, FirstMS: 210, Stream: s.rng.IntN(2) == 0,
		},
		Usage:  &ledger.Usage{Prompt: s.rng.Int64N(1000), Completion: s.rng.Int64N(500), CacheRead: 3},
		Rating: &ledger.Rating{Mode: "ratio", ModelRatio: "1.25", CompletionRatio: "4", GroupRatio: "1", CacheRatio: "0.5"},
	}
}

// any appends a record of a random kind, now and then a copy or rubbish.
func (s *usageSource) any() {
	e := s.usage()
	switch s.rng.IntN(16) {
	case 0:
		e.Kind = ledger.KindUsageRecovered
	case 1:
		e.Kind, e.Charged, e.Requests = ledger.KindUsageAdjusted, s.rng.Int64N(2000)-1000, 0
		e.Key = fmt.Sprintf("rerate:R:%d:%d", s.next, e.User)
	case 2, 3:
		e.Kind, e.Granted, e.Charged, e.Requests = ledger.KindCreditGranted, s.rng.Int64N(1_000_000)-1000, 0, 0
		e.Key = fmt.Sprintf("topup:T%d:%d", s.rng.IntN(40), e.User)
	case 4:
		e.Kind, e.Granted, e.Charged = ledger.KindTokenLimited, s.rng.Int64N(100_000), 0
	case 5:
		e.Kind, e.Granted, e.Charged = ledger.KindCreditAdopted, s.rng.Int64N(1000)-500, 0
		e.Account = []ledger.AccountKind{"", ledger.UserAccount, ledger.TokenAccount}[s.rng.IntN(3)]
	case 6:
		e.Kind, e.Granted = ledger.KindAccountOpened, s.rng.Int64N(100_000)
		e.Account = []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount, ledger.ChannelAccount}[s.rng.IntN(3)]
	case 7:
		e.Kind, e.Charged, e.Requests, e.Note = ledger.KindAudit, 0, 0, "option changed"
	case 8:
		s.put([]byte(`{"v":1,"kind":"usage.settled","broken`))
		return
	case 9, 10:
		s.copyOf()
		return
	}
	s.send(e)
}

// copyOf appends an earlier record again: as Kafka doubles it, as the outbox moves a row again, or as a re-drive.
func (s *usageSource) copyOf() {
	if len(s.records) == 0 {
		return
	}
	r := s.records[s.rng.IntN(len(s.records))]
	if r.Err != nil {
		return
	}
	switch s.rng.IntN(3) {
	case 0:
		s.put(r.Value)
	case 1:
		if r.Event.Key != "" {
			s.send(r.Event)
		}
	default:
		r.Event.Redrive = true
		s.send(r.Event)
	}
}
