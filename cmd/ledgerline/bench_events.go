package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
)

// benchEvents is a source of usage events of usual size, as a journal would be, without the journal: what is measured is what
// comes after it.
type benchEvents struct {
	producer   ledger.ID
	partitions int
	users      int
	channels   int
	perSecond  float64 // 0: as fast as they are taken
	left       int     // events that are still to come

	begun time.Time
	given int
	seq   uint64
	prev  map[int]uint64
}

// benchTick is how often a paced source hands out what is due.
const benchTick = 10 * time.Millisecond

// Next implements eventlog.Source.
func (s *benchEvents) Next(ctx context.Context, most int) ([]ledger.Parcel, error) {
	if s.left == 0 {
		return nil, io.EOF
	}
	if s.begun.IsZero() {
		s.begun = time.Now()
	}
	n := most
	for s.perSecond > 0 {
		if n = int(time.Since(s.begun).Seconds()*s.perSecond) - s.given; n > 0 {
			break
		}
		select {
		case <-time.After(benchTick):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	parcels := make([]ledger.Parcel, min(n, most, s.left))
	for i := range parcels {
		var err error
		if parcels[i], err = s.parcel(); err != nil {
			return nil, err
		}
	}
	s.left -= len(parcels)
	s.given += len(parcels)
	return parcels, nil
}

// Acked implements eventlog.Source. Ship returns when all are.
func (s *benchEvents) Acked(int, uint64) {}

// parcel makes the next event.
func (s *benchEvents) parcel() (ledger.Parcel, error) {
	s.seq++
	e, err := benchEvent(s.seq, s.users, s.channels)
	if err != nil {
		return ledger.Parcel{}, err
	}
	partition := ledger.Partition(e.User, s.partitions)
	e.Producer, e.Seq, e.Prev = s.producer, s.seq, s.prev[partition]
	e.Hold = &ledger.HoldRef{ID: e.ID, Epoch: uint64(e.Time), Amount: 5000, Token: true}
	value, err := e.Encode(nil)
	if err != nil {
		return ledger.Parcel{}, fmt.Errorf("encode event: %w", err)
	}
	s.prev[partition] = s.seq
	return ledger.Parcel{
		Producer: e.Producer, Partition: partition, Seq: e.Seq, Prev: e.Prev, ID: e.ID, Kind: e.Kind, User: e.User, Time: e.Time, At: time.Now(), Value: value,
	}, nil
}

// benchEvent makes the n-th usage event, without place and hold. Users and channels take turns; a user has one token of its number.
func benchEvent(n uint64, users, channels int) (ledger.Event, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return ledger.Event{}, fmt.Errorf("make event id: %w", err)
	}
	user := benchFirst + int64(n)%int64(users)
	return ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: ledger.ID(id), Time: time.Now().UnixMilli(), Node: "relay-1",
		User: user, Token: user, Channel: benchFirst + int64(n)%int64(channels), Charged: 1234, Requests: 1,
		Request: &ledger.Request{
			ID: "20241123000000123456789abcdefgh", Username: "user" + strconv.FormatInt(user, 10), TokenName: "production", UserGroup: "default", Group: "default",
			Model: demoModel, Endpoint: "/v1/chat/completions", Stream: true, Status: 200, FirstMS: 412, TotalMS: 3180, Upstream: "chatcmpl-AbCdEf0123456789",
		},
		Usage: &ledger.Usage{Prompt: 812, Completion: 301, CacheRead: 512}, Source: ledger.SourceUpstream,
		Rating: &ledger.Rating{Book: "9f2c11d0", Mode: "ratio", ModelRatio: "0.075", CompletionRatio: "4", CacheRatio: "0.5", GroupRatio: "1", QuotaPerUnit: "500000"},
	}, nil
}

// ship carries n events to the log, perSecond of them a second; 0: as fast as it goes. It returns when all are acknowledged.
func (s *benchEvents) ship(ctx context.Context, events *eventlog.Client, n int, perSecond float64) error {
	s.left, s.perSecond, s.given, s.begun = n, perSecond, 0, time.Time{}
	return eventlog.NewShipper(events, eventlog.ShipperConfig{Logger: discardLogger()}).Ship(ctx, s)
}

func newBenchEvents(partitions, users, channels int) (*benchEvents, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make incarnation: %w", err)
	}
	return &benchEvents{producer: ledger.ID(id), partitions: partitions, users: users, channels: channels, prev: map[int]uint64{}}, nil
}

// insertRows fills one of New API's tables: rows first to last, each as row writes it, many a statement.
func insertRows(ctx context.Context, exec func(ctx context.Context, statement string) error, head string, last int, row func(b *strings.Builder, n int)) error {
	const perStatement = 2000 // some 100 KB: below every engine's packet size
	for first := 1; first <= last; first += perStatement {
		var b strings.Builder
		b.WriteString(head)
		for n := first; n <= min(last, first+perStatement-1); n++ {
			if n > first {
				b.WriteByte(',')
			}
			row(&b, n)
		}
		if err := exec(ctx, b.String()); err != nil {
			return fmt.Errorf("insert rows: %w", err)
		}
	}
	return nil
}

// benchFirst is the number of the first user, token and channel of a benchmark: the root user and what a start makes are below.
const benchFirst = 1000

// seedAccounts puts users and tokens into New API's tables, as if New API had: each user with one token, plenty of quota and a
// key that benchKey knows.
func seedAccounts(ctx context.Context, exec func(ctx context.Context, statement string) error, users, tokens int) error {
	err := insertRows(ctx, exec, "INSERT INTO users (id, username, password, display_name, role, status, quota, aff_code) VALUES ", users, func(b *strings.Builder, n int) {
		fmt.Fprintf(b, "(%d,'user%d','x','user%d',1,1,%d,'a%d')", benchFirst+n-1, n, n, benchQuota, n)
	})
	if err != nil {
		return err
	}
	return insertRows(ctx, exec, "INSERT INTO tokens (id, user_id, `key`, status, name, created_time, accessed_time, expired_time, remain_quota, unlimited_quota) VALUES ", tokens,
		func(b *strings.Builder, n int) {
			fmt.Fprintf(b, "(%d,%d,'%s',1,'production',1700000000,1700000000,-1,%d,0)", benchFirst+n-1, benchFirst+(n-1)%users, benchKey(n), benchQuota)
		})
}

// benchKey is the key of the n-th token, without its sk-.
func benchKey(n int) string { return fmt.Sprintf("bench%043d", n) }

var errNeedsEngines = errors.New("TEST_KAFKA_BROKERS, TEST_MYSQL_DSN, TEST_REDIS_URL and TEST_CLICKHOUSE_DSN are needed (make bench-consumers sets them)")
