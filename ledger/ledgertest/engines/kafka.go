package engines

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go"
)

var (
	//go:embed kafka/pom.xml
	kafkaPOM []byte
	//go:embed kafka/log4j2.yaml
	kafkaLog4j []byte
	//go:embed kafka/server.properties
	kafkaProperties string
)

// kafkaClusterID is any 16 bytes in base64: the clusters that this package starts never meet.
const kafkaClusterID = "bGVkZ2VybGluZS1lbmdpbg"

// kafkaHeap bounds a broker's heap: 200,000 events of 400 bytes went through it at full speed.
const kafkaHeap = "-Xmx512m"

// kafka returns the cache entry that holds Kafka's jars below libs.
func (c *Cache) kafka(ctx context.Context) (string, error) {
	if _, err := need("java", "install Java 17 or newer"); err != nil {
		return "", err
	}
	return c.entry(ctx, "kafka-4.3.1", "Apache Kafka 4.3.1 (Maven)", func(ctx context.Context, dir string) error {
		mvn, err := need("mvn", "install Maven")
		if err != nil {
			return err
		}
		for name, text := range map[string][]byte{"pom.xml": kafkaPOM, "log4j2.yaml": kafkaLog4j} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return err
			}
		}
		_, err = output(ctx, dir, mvn, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs")
		return err
	})
}

// StartKafka starts a cluster of one broker.
func StartKafka(ctx context.Context, o Options) (*Server, error) {
	servers, err := StartKafkaCluster(ctx, 1, o)
	if err != nil {
		return nil, err
	}
	return servers[0], nil
}

// StartKafkaCluster starts a cluster of n brokers (1 or 3), each a controller too, all topics replicated to all of them
// with one of three allowed to be away. With n > 1 Options.Port must be 0, and Options.Dir gets a folder per broker.
func StartKafkaCluster(ctx context.Context, n int, o Options) ([]*Server, error) {
	home, err := o.Cache.kafka(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make([]*kafkaNode, n)
	servers := make([]*Server, n)
	closeAll := func() {
		for _, s := range servers {
			if s != nil {
				_ = s.Close()
			}
		}
	}
	for i := range nodes {
		if nodes[i], err = newKafkaNode(ctx, home, i+1, n, o); err != nil {
			closeAll()
			return nil, err
		}
		servers[i] = nodes[i].server
	}
	voters := make([]string, n)
	for i, node := range nodes {
		voters[i] = fmt.Sprintf("%d@%s", node.id, loopback(node.controllerPort))
	}
	for _, node := range nodes {
		lines := o.Args
		if o.Advertise != nil {
			addr, err := o.Advertise(node.server.Addr)
			if err != nil {
				closeAll()
				return nil, fmt.Errorf("advertise %s: %w", node.server.Addr, err)
			}
			lines = append(slices.Clone(lines), "advertised.listeners=PLAINTEXT://"+addr)
		}
		if err := node.configure(strings.Join(voters, ","), n, lines); err != nil {
			closeAll()
			return nil, err
		}
	}
	// No broker is ready before a majority of controllers is there, so they start together.
	errs := make(chan error, n)
	for _, s := range servers {
		go func() { errs <- s.Start(ctx) }()
	}
	for range servers {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		closeAll()
		return nil, err
	}
	return servers, nil
}

// kafkaNode is one broker while it is being set up.
type kafkaNode struct {
	server         *Server
	id             int
	cache          *Cache
	home           string // the cache entry of the jars
	port           int
	controllerPort int
}

func newKafkaNode(ctx context.Context, home string, id, n int, o Options) (*kafkaNode, error) {
	if n > 1 && o.Dir != "" {
		o.Dir = filepath.Join(o.Dir, strconv.Itoa(id))
	}
	s, port, err := newServer(ctx, "kafka", o)
	if err != nil {
		return nil, err
	}
	controllerPort, err := s.claim()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	node := &kafkaNode{server: s, id: id, cache: o.Cache, home: home, port: port, controllerPort: controllerPort}
	s.command = func() *exec.Cmd {
		return node.java("kafka.Kafka", node.properties())
	}
	s.ready = func(ctx context.Context) error { return kafkaReady(ctx, s.Addr, n) }
	// Without data the node is a new one: what a start finds empty it formats.
	s.prepare = func(ctx context.Context) error { return node.formatted(ctx) }
	return node, nil
}

func (n *kafkaNode) properties() string { return filepath.Join(n.server.Dir, "server.properties") }

// java builds the command for one of Kafka's main classes. The serial collector and the first compiler tier alone start a
// broker in about half the time and half the memory; LEDGERLINE_KAFKA_JVM replaces them (make bench does).
func (n *kafkaNode) java(class string, args ...string) *exec.Cmd {
	jvm := strings.Fields(os.Getenv("LEDGERLINE_KAFKA_JVM"))
	if len(jvm) == 0 {
		jvm = []string{"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	}
	all := append([]string{kafkaHeap, "-Dlog4j2.configurationFile=" + filepath.Join(n.home, "log4j2.yaml")}, jvm...)
	all = append(all, "-cp", filepath.Join(n.home, "libs", "*"), class)
	cmd := child(os.Environ(), "java", append(all, args...)...)
	cmd.Dir = n.server.Dir
	return cmd
}

// configure writes the node's settings.
func (n *kafkaNode) configure(voters string, replicas int, lines []string) error {
	data := filepath.Join(n.server.Dir, "data")
	text := strings.NewReplacer(
		"%NODE%", strconv.Itoa(n.id), "%VOTERS%", voters, "%PORT%", strconv.Itoa(n.port),
		"%CONTROLLER_PORT%", strconv.Itoa(n.controllerPort), "%DATA%", data,
		"%REPLICAS%", strconv.Itoa(replicas), "%IN_SYNC%", strconv.Itoa(min(2, replicas)),
	).Replace(kafkaProperties)
	text += strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(n.properties(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write Kafka's settings: %w", err)
	}
	return nil
}

// formatted formats the node's data folder, unless there is one.
func (n *kafkaNode) formatted(ctx context.Context) error {
	data := filepath.Join(n.server.Dir, "data")
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	if err := n.format(ctx, data); err != nil {
		return fmt.Errorf("format Kafka's data folder: %w", err)
	}
	return nil
}

// format makes what Kafka's StorageTool makes, without its second of Java: the first records of the cluster's metadata,
// which are the same for all clusters and lie in the cache, and the identity of this node and folder.
func (n *kafkaNode) format(ctx context.Context, data string) error {
	formatted, err := n.cache.entry(ctx, "kafka-4.3.1-bootstrap", "the first records of a Kafka cluster", func(ctx context.Context, dir string) error {
		settings := strings.NewReplacer("%NODE%", "1", "%VOTERS%", "1@127.0.0.1:2", "%PORT%", "1", "%CONTROLLER_PORT%", "2",
			"%DATA%", dir, "%REPLICAS%", "1", "%IN_SYNC%", "1").Replace(kafkaProperties)
		file := filepath.Join(n.server.Dir, "format.properties")
		if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
			return err
		}
		cmd := n.java("kafka.tools.StorageTool", "format", "-t", kafkaClusterID, "-c", file)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run StorageTool: %w: %s", err, tail(string(out)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	first, err := os.ReadFile(filepath.Join(formatted, "bootstrap.checkpoint"))
	if err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	meta := fmt.Sprintf("version=1\nnode.id=%d\ncluster.id=%s\ndirectory.id=%s\n", n.id, kafkaClusterID, base64.RawURLEncoding.EncodeToString(id[:]))
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(data, "bootstrap.checkpoint"), first, 0o644),
		os.WriteFile(filepath.Join(data, "meta.properties"), []byte(meta), 0o644),
	)
}

// kafkaReady makes sure that the brokers have found each other and that the group coordinator works: on a new cluster the
// first look creates the topic of the offsets, and until it has a leader every member of a group would be refused with
// error 15 and come back only seconds later.
func kafkaReady(ctx context.Context, addr string, brokers int) error {
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(addr), Timeout: lookTimeout, Transport: transport}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		return err
	}
	if len(meta.Brokers) < brokers {
		return fmt.Errorf("%d of %d brokers are there", len(meta.Brokers), brokers)
	}
	const group = "warm-up"
	found, err := client.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: group, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err != nil {
		return err
	}
	if found.Error != nil {
		return found.Error
	}
	fetched, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{"warm-up": {0}}})
	if err != nil {
		return err
	}
	for _, partitions := range fetched.Topics {
		for _, p := range partitions {
			err = errors.Join(err, p.Error)
		}
	}
	return errors.Join(fetched.Error, err)
}
