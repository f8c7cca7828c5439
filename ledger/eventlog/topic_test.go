package eventlog_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"ledgerline/ledger/eventlog"
)

func TestEnsureTopic(t *testing.T) {
	onEveryLog(t, 3, func(t *testing.T, client *eventlog.Client) {
		ctx := t.Context()
		warnings, err := client.EnsureTopic(ctx, 3) // it exists by now
		if err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(warnings, "\n"); !strings.Contains(all, "replication factor is 1") || !strings.Contains(all, "min.insync.replicas") {
			t.Errorf("one broker is not warned of: %q", all)
		}
		settings := topicSettings(t, client)
		for name, want := range map[string]string{
			"retention.ms": "-1", "min.insync.replicas": "1", "message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete",
		} {
			if settings[name] != want {
				t.Errorf("%s is %q, want %q", name, settings[name], want)
			}
		}
		if _, err := client.EnsureTopic(ctx, 4); !errors.Is(err, eventlog.ErrFewPartitions) {
			t.Errorf("a topic with too few partitions: %v", err)
		}
		warnings, err = client.EnsureTopic(ctx, 2)
		if err != nil || !strings.Contains(strings.Join(warnings, "\n"), "writes to the first 2 only") {
			t.Errorf("a topic with more partitions: %q, %v", warnings, err)
		}
	})
}

func TestEnsureTopicWarnsOfLossySettings(t *testing.T) {
	onEveryLog(t, 1, func(t *testing.T, client *eventlog.Client) {
		alter(t, client, map[string]string{"retention.ms": "86400000", "unclean.leader.election.enable": "true"})
		warnings, err := client.EnsureTopic(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Join(warnings, "\n")
		for _, want := range []string{"retention.ms is 86400000", "unclean.leader.election.enable is on"} {
			if !strings.Contains(all, want) {
				t.Errorf("no warning %q in %q", want, all)
			}
		}
		alter(t, client, map[string]string{"cleanup.policy": "compact"})
		if _, err := client.EnsureTopic(t.Context(), 1); err == nil {
			t.Error("a compacted topic was accepted")
		}
	})
}

func TestEnsureTopicWithoutBroker(t *testing.T) {
	client := newClient(t, "events", "127.0.0.1:1")
	ctx, cancel := contextFor(t, 300*time.Millisecond)
	defer cancel()
	if _, err := client.EnsureTopic(ctx, 1); err == nil {
		t.Error("no error")
	}
}

func alter(t *testing.T, client *eventlog.Client, settings map[string]string) {
	t.Helper()
	var configs []kafka.IncrementalAlterConfigsRequestConfig
	for name, value := range settings {
		configs = append(configs, kafka.IncrementalAlterConfigsRequestConfig{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet})
	}
	res, err := direct(t, client).IncrementalAlterConfigs(t.Context(), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: client.Topic(), Configs: configs}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			t.Fatal(r.Error)
		}
	}
	// The controller has taken it; what looks at the topic asks a broker, which learns of it a moment later.
	for deadline := time.Now().Add(10 * time.Second); ; {
		now := topicSettings(t, client)
		if !slices.ContainsFunc(slices.Collect(maps.Keys(settings)), func(name string) bool { return now[name] != settings[name] }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the broker does not know %v: %v", settings, now)
		}
	}
}

func topicSettings(t *testing.T, client *eventlog.Client) map[string]string {
	t.Helper()
	res, err := direct(t, client).DescribeConfigs(t.Context(), &kafka.DescribeConfigsRequest{
		Resources: []kafka.DescribeConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: client.Topic()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, e := range res.Resources[0].ConfigEntries {
		settings[e.ConfigName] = e.ConfigValue
	}
	return settings
}
