package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// Timing of group membership.
const (
	// sessionTimeout is how long the group waits for a member that fell silent: Kafka's lower bound, since its partitions
	// stand still meanwhile. A member wrongly given up loses nothing: sinks fence (L2).
	sessionTimeout = 6 * time.Second
	// heartbeatEvery is also how soon a member learns of a rebalance.
	heartbeatEvery = 500 * time.Millisecond
	// rebalanceTimeout bounds the wait for members that are busy in a flush when a rebalance begins.
	rebalanceTimeout = 10 * time.Second
	// joinBackoff is the pause after a failed join. A new cluster answers "no coordinator" a few times.
	joinBackoff = 250 * time.Millisecond
	// commitEvery spaces the advisory commits: they serve lag displays only.
	commitEvery = 5 * time.Second
	// topicLook is how often a member without partitions looks whether there is something to share again.
	topicLook = 2 * time.Second
	// complainEvery spaces log lines while joining keeps failing.
	complainEvery = 30 * time.Second
)

// GroupConfig describes one consumer group: one projection.
type GroupConfig struct {
	ID         string // the group's name in Kafka
	Partitions int    // P: partitions beyond are not consumed
	Logger     *slog.Logger
}

// Group shares the partitions among the processes that run a projection. Offsets come from the sink, never from Kafka; those
// committed to Kafka are for dashboards.
type Group struct {
	client *Client
	cfg    GroupConfig

	mu      sync.Mutex
	offsets map[int]int64 // to be committed

	surplus bool // Run's: the member got nothing though the topic is there, and asked again
}

// NewGroup returns a group that reads client's topic. It joins in Run.
func NewGroup(client *Client, cfg GroupConfig) *Group {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Group{client: client, cfg: cfg, offsets: map[int]int64{}}
}

// Run is a member of the group until ctx ends, and leaves it before it returns nil. For every partition assigned it runs handle
// in a goroutine of its own; handle must return soon after its context ended, and not before. No handle of one assignment
// runs beside one of the next. Another process may briefly own the same partition all the same (a paused process wakes
// up), which is why sinks fence. The only error is a configuration that kafka-go refuses.
func (g *Group) Run(ctx context.Context, handle func(ctx context.Context, partition int)) error {
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID:                g.cfg.ID,
		Brokers:           g.client.cfg.Brokers,
		Dialer:            g.client.dialer(),
		Topics:            []string{g.client.cfg.Topic},
		SessionTimeout:    sessionTimeout,
		HeartbeatInterval: heartbeatEvery,
		RebalanceTimeout:  rebalanceTimeout,
		JoinGroupBackoff:  joinBackoff,
	})
	if err != nil {
		return fmt.Errorf("join consumer group %s: %w", g.cfg.ID, err)
	}
	defer group.Close() //nolint:errcheck // it only waits
	var complained time.Time
	for {
		generation, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafka.RebalanceInProgress):
		case err != nil:
			if now := time.Now(); now.Sub(complained) >= complainEvery {
				complained = now
				g.cfg.Logger.Warn("cannot join the consumer group yet, trying again", "group", g.cfg.ID, "err", err)
			}
		default:
			complained = time.Time{}
			g.start(ctx, generation, handle)
		}
	}
}

// start runs handle for the partitions of one generation. The generation ends when a heartbeat fails, and kafka-go joins the next one
// only after everything started here has returned.
func (g *Group) start(ctx context.Context, generation *kafka.Generation, handle func(ctx context.Context, partition int)) {
	mine := generation.Assignments[g.client.cfg.Topic]
	partitions := make([]int, 0, len(mine))
	for _, a := range mine {
		if a.ID < g.cfg.Partitions {
			partitions = append(partitions, a.ID)
		}
	}
	g.cfg.Logger.Info("partitions assigned", "group", g.cfg.ID, "generation", generation.ID, "partitions", partitions)
	g.mu.Lock()
	g.offsets = map[int]int64{}
	g.mu.Unlock()
	for _, partition := range partitions {
		generation.Start(func(alive context.Context) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(alive, cancel)()
			handle(ctx, partition)
			// Returning first would end the generation for all partitions, and join another one while we are leaving.
			<-alive.Done()
		})
	}
	generation.Start(func(alive context.Context) { g.commit(ctx, alive, generation) })
	if len(partitions) > 0 {
		g.surplus = false
		return
	}
	ask := !g.surplus
	g.surplus = true
	generation.Start(func(alive context.Context) {
		if !g.awaitTopic(ctx, alive, ask) {
			<-alive.Done()
		}
	})
}

// awaitTopic returns true when the topic is there that was missing, which ends the generation: a group that was formed without a
// topic (a cluster that came back without its data) shares nothing, and Kafka does not tell it when there is something. With
// ask it does so too if the topic is there at once: it may have come just after the partitions were shared. A member that is
// one too many asks once, in vain.
func (g *Group) awaitTopic(ctx, alive context.Context, ask bool) bool {
	for {
		topic, _, err := g.client.describe(alive)
		switch {
		case err == nil && ready(topic, g.cfg.Partitions):
			if ask {
				return true
			}
		case err == nil, errors.Is(err, kafka.UnknownTopicOrPartition):
			ask, g.surplus = true, false
		}
		timer := time.NewTimer(topicLook)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-alive.Done():
			timer.Stop()
			return false
		}
		g.client.refresh() // what is cached may speak of the cluster as it was
	}
}

// Committed notes that a sink has everything of partition below offset, to be told to Kafka at leisure.
func (g *Group) Committed(partition int, offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.offsets[partition] = offset
}

func (g *Group) commit(ctx, alive context.Context, generation *kafka.Generation) {
	ticker := time.NewTicker(commitEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			g.commitOnce(generation)
			<-alive.Done()
			return
		case <-alive.Done():
			return
		case <-ticker.C:
			g.commitOnce(generation)
		}
	}
}

// commitOnce ignores errors: the next tick repeats what is still true by then.
func (g *Group) commitOnce(generation *kafka.Generation) {
	g.mu.Lock()
	offsets := maps.Clone(g.offsets)
	g.mu.Unlock()
	if len(offsets) == 0 {
		return
	}
	if err := generation.CommitOffsets(map[string]map[int]int64{g.client.cfg.Topic: offsets}); err != nil {
		g.cfg.Logger.Debug("advisory commit failed", "group", g.cfg.ID, "err", err)
	}
}
