package eventlog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
)

// Bounds and intervals of the client (L7).
const (
	// requestTimeout bounds one request, so that a half-open connection costs one attempt; brokers are told half of it.
	requestTimeout = 10 * time.Second
	// metadataTTL is the longest that a leader is believed without asking again; failures ask at once, see refresh.
	metadataTTL = 4 * time.Second
	// refreshEvery spaces forced metadata refreshes: each one opens new connections, and an election takes longer anyway.
	refreshEvery = 200 * time.Millisecond
	// connIdle closes connections before brokers do (Kafka's default is 10 minutes).
	connIdle = 2 * time.Minute
)

// Errors that callers tell apart.
var (
	// ErrOutOfRange means that an offset lies outside what the partition holds: it was truncated, expired or recreated.
	ErrOutOfRange = errors.New("offset is outside the partition")
	// ErrNoRecord means that there is no record at an offset that lies inside the partition.
	ErrNoRecord = errors.New("no record at this offset")
	// ErrFewPartitions means that the topic has fewer partitions than the ledger was created with.
	ErrFewPartitions = errors.New("topic has fewer partitions than the ledger")
)

// Config says how to reach the log.
type Config struct {
	Brokers  []string       // host:port of one or more brokers
	Topic    string         // the one topic of the ledger
	ClientID string         // shown in the broker's logs; "ledgerline" if empty
	TLS      *tls.Config    // nil: plain text
	SASL     sasl.Mechanism // nil: none
}

// Client reads and describes the topic. It is safe for concurrent use; it dials on first use.
type Client struct {
	cfg       Config
	addr      net.Addr
	transport *kafka.Transport
	kafka     *kafka.Client

	mu        sync.Mutex
	refreshed time.Time
}

// NewClient returns a client for cfg. It does not connect.
func NewClient(cfg Config) (*Client, error) {
	if len(cfg.Brokers) == 0 || cfg.Topic == "" {
		return nil, errors.New("configure event log: a broker address and a topic are needed")
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "ledgerline"
	}
	transport := &kafka.Transport{
		ClientID:       cfg.ClientID,
		TLS:            cfg.TLS,
		SASL:           cfg.SASL,
		DialTimeout:    5 * time.Second,
		IdleTimeout:    connIdle,
		MetadataTTL:    metadataTTL,
		MetadataTopics: []string{cfg.Topic},
	}
	addr := kafka.TCP(cfg.Brokers...)
	return &Client{
		cfg:       cfg,
		addr:      addr,
		transport: transport,
		kafka:     &kafka.Client{Addr: addr, Timeout: requestTimeout, Transport: transport},
	}, nil
}

// Topic returns the name of the topic.
func (c *Client) Topic() string { return c.cfg.Topic }

// Brokers returns the configured broker addresses.
func (c *Client) Brokers() []string { return c.cfg.Brokers }

// Close releases idle connections. Requests under way end by themselves.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// refresh makes the next request ask the cluster who leads what. kafka-go caches that and has no call to forget it; dropping
// its connection pool does. Requests under way keep their connections.
func (c *Client) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.refreshed) >= refreshEvery {
		c.refreshed = now
		c.transport.CloseIdleConnections()
	}
}

// failed wraps err and, unless it speaks of something else than the cluster's layout, asks for the layout anew.
func (c *Client) failed(doing string, err error) error {
	switch {
	case errors.Is(err, context.Canceled),
		errors.Is(err, kafka.MessageSizeTooLarge),
		errors.Is(err, kafka.OffsetOutOfRange),
		errors.Is(err, kafka.NotEnoughReplicas),
		errors.Is(err, kafka.NotEnoughReplicasAfterAppend):
	default:
		c.refresh()
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Bounds returns the first offset that partition still holds and the offset after its last record.
func (c *Client) Bounds(ctx context.Context, partition int) (first, end int64, err error) {
	err = again(ctx, func() error {
		first, end, err = c.bounds(ctx, partition)
		return err
	})
	return first, end, err
}

func (c *Client) bounds(ctx context.Context, partition int) (first, end int64, err error) {
	doing := fmt.Sprintf("read bounds of %s[%d]", c.cfg.Topic, partition)
	res, err := c.kafka.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{
			c.cfg.Topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)},
		},
	})
	if err != nil {
		return 0, 0, c.failed(doing, err)
	}
	for _, p := range res.Topics[c.cfg.Topic] {
		if p.Partition != partition {
			continue
		}
		if p.Error != nil {
			return 0, 0, c.failed(doing, p.Error)
		}
		return p.FirstOffset, p.LastOffset, nil
	}
	return 0, 0, c.failed(doing, kafka.UnknownTopicOrPartition)
}

// dialer returns the connection settings in the form that consumer groups use.
func (c *Client) dialer() *kafka.Dialer {
	return &kafka.Dialer{
		ClientID:      c.cfg.ClientID,
		Timeout:       5 * time.Second,
		DualStack:     true,
		TLS:           c.cfg.TLS,
		SASLMechanism: c.cfg.SASL,
	}
}
