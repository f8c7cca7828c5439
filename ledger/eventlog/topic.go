package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// Topic settings.
const (
	// DefaultPartitions is the number of partitions of a new ledger (KAFKA_PARTITIONS): consumers up to this many share the
	// work, and an idle partition costs next to nothing.
	DefaultPartitions = 12
	// wantedReplicas keeps the log through the loss of two brokers' disks.
	wantedReplicas = 3
	// topicReadyWithin bounds the wait for the leaders of a new topic; three slow brokers need about a second.
	topicReadyWithin = 30 * time.Second
)

// EnsureTopic creates the topic with partitions partitions if it is missing, waits until each has a leader, and returns
// what an operator should be warned of. Partitions beyond that number, which somebody added later, are left alone and never
// written to: P is fixed when the ledger is created (L5). Errors: ErrFewPartitions, a compacted topic, or no cluster.
func (c *Client) EnsureTopic(ctx context.Context, partitions int) (warnings []string, err error) {
	if partitions < 1 {
		return nil, fmt.Errorf("ensure topic %s: %d partitions", c.cfg.Topic, partitions)
	}
	ctx, cancel := context.WithTimeout(ctx, topicReadyWithin)
	defer cancel()
	var created bool
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		topic, brokers, err := c.describe(ctx)
		switch {
		case err == nil && len(topic.Partitions) < partitions && !created:
			return nil, fmt.Errorf("ensure topic %s: it has %d partitions, the ledger %d: %w",
				c.cfg.Topic, len(topic.Partitions), partitions, ErrFewPartitions)
		case err == nil && ready(topic, partitions):
			return c.inspect(ctx, topic, partitions)
		case errors.Is(err, kafka.UnknownTopicOrPartition) && !created:
			if err = c.create(ctx, partitions, brokers); err == nil {
				created = true
			}
		}
		if !pause(ctx, wait) {
			if err == nil {
				err = errors.New("not every partition has a leader")
			}
			return nil, fmt.Errorf("ensure topic %s: %w", c.cfg.Topic, err)
		}
		c.refresh()
	}
}

func ready(topic kafka.Topic, partitions int) bool {
	led := 0
	for _, p := range topic.Partitions {
		if p.ID < partitions && p.Error == nil && p.Leader.Host != "" {
			led++
		}
	}
	return led == partitions
}

// describe returns what the cluster says of the topic, and how many brokers it has.
func (c *Client) describe(ctx context.Context) (kafka.Topic, int, error) {
	res, err := c.kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.cfg.Topic}})
	if err != nil {
		return kafka.Topic{}, 0, err
	}
	if len(res.Topics) != 1 {
		return kafka.Topic{}, len(res.Brokers), kafka.UnknownTopicOrPartition
	}
	return res.Topics[0], len(res.Brokers), res.Topics[0].Error
}

func (c *Client) create(ctx context.Context, partitions, brokers int) error {
	replicas := max(1, min(wantedReplicas, brokers))
	res, err := c.kafka.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic:             c.cfg.Topic,
		NumPartitions:     partitions,
		ReplicationFactor: replicas,
		ConfigEntries: []kafka.ConfigEntry{
			{ConfigName: "retention.ms", ConfigValue: "-1"},
			{ConfigName: "retention.bytes", ConfigValue: "-1"},
			{ConfigName: "cleanup.policy", ConfigValue: "delete"},
			{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(min(2, replicas))},
			// A producer whose clock runs an hour ahead would be refused for ever under CreateTime.
			{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"},
		},
	}}})
	if err != nil {
		return err
	}
	if err := res.Errors[c.cfg.Topic]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return err
	}
	return nil
}

// inspect returns warnings for whatever lets acknowledged events be lost.
func (c *Client) inspect(ctx context.Context, topic kafka.Topic, partitions int) ([]string, error) {
	var warnings []string
	warn := func(format string, args ...any) {
		warnings = append(warnings, "topic "+c.cfg.Topic+": "+fmt.Sprintf(format, args...))
	}
	replicas := wantedReplicas
	for _, p := range topic.Partitions {
		if p.ID < partitions {
			replicas = min(replicas, len(p.Replicas))
		}
	}
	if replicas < wantedReplicas {
		warn("replication factor is %d, want at least %d: a lost broker can lose acknowledged events", replicas, wantedReplicas)
	}
	if len(topic.Partitions) > partitions {
		warn("it has %d partitions, the ledger writes to the first %d only", len(topic.Partitions), partitions)
	}
	settings, err := c.settings(ctx)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.Atoi(settings["min.insync.replicas"]); err != nil || n < 2 {
		warn("min.insync.replicas is %q, want at least 2", settings["min.insync.replicas"])
	}
	if v := settings["unclean.leader.election.enable"]; v == "true" {
		warn("unclean.leader.election.enable is on: an election can lose acknowledged events")
	}
	if v, ok := settings["retention.ms"]; ok && v != "-1" {
		warn("retention.ms is %s, want -1: events older than that cannot be replayed", v)
	}
	if v, ok := settings["retention.bytes"]; ok && v != "-1" {
		warn("retention.bytes is %s, want -1: the oldest events go when the log grows", v)
	}
	if v, ok := settings["cleanup.policy"]; ok && v != "delete" {
		return warnings, fmt.Errorf("ensure topic %s: cleanup.policy is %q: compaction would delete events, set it to \"delete\"", c.cfg.Topic, v)
	}
	return warnings, nil
}

func (c *Client) settings(ctx context.Context) (map[string]string, error) {
	var res *kafka.DescribeConfigsResponse
	err := again(ctx, func() (err error) {
		res, err = c.kafka.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{
			Resources: []kafka.DescribeConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: c.cfg.Topic}},
		})
		if err != nil {
			return c.failed("read settings of topic "+c.cfg.Topic, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, r := range res.Resources {
		if r.Error != nil {
			return nil, c.failed("read settings of topic "+c.cfg.Topic, r.Error)
		}
		for _, e := range r.ConfigEntries {
			settings[e.ConfigName] = e.ConfigValue
		}
	}
	return settings, nil
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
