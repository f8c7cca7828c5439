package hold

import (
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// The bounds of everything that waits for Redis (L7).
const (
	// TripTimeout bounds one attempt of a trip of reserves, extensions and releases. A script takes microseconds, so a second
	// means that the server or the way to it is gone.
	TripTimeout = time.Second
	// CallTimeout bounds a reserve, an extension or a release as a whole: a wait for other trips and two attempts.
	CallTimeout = 2500 * time.Millisecond
	// ControlTimeout bounds every other call. The longest of them, an Apply of 10,000 accounts, takes about 20 ms.
	ControlTimeout = 5 * time.Second
	// MaxWaiting bounds the calls that wait for a trip: at 10,000 calls a second what gathers in the time of two lost trips is
	// refused by their own timeouts before it is refused by this.
	MaxWaiting = 1 << 14
	// MaxTrip bounds the calls of one trip: about 2 ms of work for a server, during which it answers nobody else.
	MaxTrip = 256
	// MaxSums bounds the accounts of one Apply: about 100 ms of work for a server.
	MaxSums = 50_000
	// maxPerScript bounds accounts and holds of the other scripts; longer lists are sent in parts.
	maxPerScript = 4000
	// tripsAtOnce is how many trips may be on their way, the second only if the first takes long. More would carry fewer calls each.
	tripsAtOnce = 2
	// releasePatience is how long releases wait for a reserve's trip to take them along. The next reserve of the account is one,
	// so nobody of this node finds the hold still there; and under load half of the trips are spared.
	releasePatience = 2 * time.Millisecond
	// defaultPool is New API's number of connections.
	defaultPool = 10
)

// RedisConfig says which server holds the counters.
type RedisConfig struct {
	// URL is redis:// or rediss://[user[:password]@]host:port[,host:port…][/db], or unix://. Several hosts are nodes of a Redis
	// Cluster, or, with MasterName, sentinels.
	URL              string
	Password         string // used if URL has none
	MasterName       string // Sentinel's name of the primary
	SentinelPassword string
	PoolSize         int    // connections per server; 0: 10
	Prefix           string // of every key and channel; "": "ledgerline:"
	Logger           *slog.Logger
	Metrics          prometheus.Registerer // nil: none
}

// Redis is the counters in Redis. It is safe for concurrent use.
type Redis struct {
	client  redis.UniversalClient
	cluster bool // partitions lie on several servers
	prefix  string
	log     *slog.Logger
	ways    sync.Map  // int to *way; see Redis.way
	looks   *combiner // of State, unless cluster
	repeats atomic.Uint64
}

// NewRedis returns a client. It does not connect: see [Redis.Check].
func NewRedis(cfg RedisConfig) (*Redis, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, fmt.Errorf("configure redis: %w", err)
	}
	if strings.ContainsAny(cfg.Prefix, "{}") {
		return nil, errors.New("configure redis: the key prefix may not contain braces: they mark the hash tag")
	}
	r := &Redis{prefix: cmp.Or(cfg.Prefix, "ledgerline:"), log: cfg.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	// A trip does not end with the context of the caller whose turn it is, because it carries others' questions too.
	r.looks = newCombiner(1, func(calls []*call) { r.look(context.Background(), calls) })
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(collector{r}); err != nil {
			return nil, fmt.Errorf("register the metrics of redis: %w", err)
		}
	}
	// The library has one log for the process, and writes a line to it for every connection that fails.
	redis.SetLogger(libraryLog{r.log})
	r.client = redis.NewUniversalClient(options)
	_, r.cluster = r.client.(*redis.ClusterClient)
	return r, nil
}

// options reads the URL. Attempts are counted here, not in the client: whatever it repeats by itself would multiply the bounds.
func (cfg *RedisConfig) options() (*redis.UniversalOptions, error) {
	first, hosts := splitHosts(cfg.URL)
	one, err := redis.ParseURL(first)
	if err != nil {
		return nil, err
	}
	o := &redis.UniversalOptions{
		Addrs: append([]string{one.Addr}, hosts...), MasterName: cfg.MasterName, DB: one.DB,
		Username: one.Username, Password: one.Password, SentinelPassword: cfg.SentinelPassword, TLSConfig: one.TLSConfig,
		PoolSize: cfg.PoolSize, MinIdleConns: tripsAtOnce,
		MaxRetries: -1, DialerRetries: 1, DialTimeout: TripTimeout, ContextTimeoutEnabled: true,
		ReadTimeout: ControlTimeout, WriteTimeout: ControlTimeout, PoolTimeout: TripTimeout,
		PipelinePoolSize:         -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if o.Password == "" {
		o.Password = cfg.Password
	}
	if o.PoolSize == 0 {
		o.PoolSize = max(one.PoolSize, defaultPool)
	}
	if one.Network == "unix" {
		o.Dialer = func(ctx context.Context, _, addr string) (net.Conn, error) {
			return (&net.Dialer{Timeout: TripTimeout}).DialContext(ctx, "unix", addr)
		}
	}
	if len(o.Addrs) > 1 && cfg.MasterName == "" && o.DB != 0 {
		return nil, fmt.Errorf("database %d: a Redis Cluster has only database 0", o.DB)
	}
	return o, nil
}

// splitHosts takes all hosts but the first out of a URL.
func splitHosts(address string) (first string, hosts []string) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok || scheme == "unix" {
		return address, nil
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndexByte(rest[:end], '@') + 1
	hosts = strings.Split(rest[at:end], ",")
	return scheme + "://" + rest[:at] + hosts[0] + rest[end:], hosts[1:]
}

// Close ends all connections; calls on their way fail.
func (r *Redis) Close() error { return r.client.Close() }

// key returns the first key of a partition, from which the scripts derive the others.
func (r *Redis) key(partition int) string { return r.base(partition) + "c" }

func (r *Redis) base(partition int) string {
	return r.prefix + "{p" + strconv.Itoa(partition) + "}:"
}

//go:embed lua/*.lua
var luaFiles embed.FS

// script is one of lua/*.lua with common.lua before it.
type script struct{ source, sha string }

func newScript(name string) *script {
	read := func(name string) string {
		text, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic("embedded script: " + err.Error())
		}
		return string(text)
	}
	source := read("common") + read(name)
	sum := sha1.Sum([]byte(source)) //nolint:gosec // see above
	return &script{source, hex.EncodeToString(sum[:])}
}

var (
	callsScript    = newScript("calls")
	stateScript    = newScript("state")
	beginScript    = newScript("begin")
	openScript     = newScript("open")
	reassertScript = newScript("reassert")
	reportScript   = newScript("report")
	loadScript     = newScript("load")
	applyScript    = newScript("apply")
	dropScript     = newScript("drop")
	accountsScript = newScript("accounts")
	scanScript     = newScript("scan")
)

// request is one run of a script and, afterwards, its answer.
type request struct {
	partitions []int
	args       []any
	calls      int    // of callsScript
	reply      []any  // of a script that returns a table
	text       string // of one that returns a string
	err        error
}

// exec runs a script for each request in one pipeline. What failed, and may do better the second time, is sent once more with
// the script's text: a server that restarted does not know its hash any more. Every script may be repeated.
func (r *Redis) exec(ctx context.Context, timeout time.Duration, s *script, requests []*request) {
	r.attempt(ctx, timeout, "EVALSHA", s.sha, requests)
	var again []*request
	for _, q := range requests {
		if q.err != nil && repeatable(q.err) && ctx.Err() == nil {
			again = append(again, q)
		}
	}
	if len(again) > 0 {
		r.repeats.Add(uint64(len(again)))
		r.attempt(ctx, timeout, "EVAL", s.source, again)
	}
}

func (r *Redis) attempt(ctx context.Context, timeout time.Duration, command, script string, requests []*request) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	commands := make([]*redis.Cmd, len(requests))
	var err error
	if len(requests) == 1 {
		commands[0] = r.client.Do(ctx, r.args(command, script, requests[0])...)
	} else {
		pipe := r.client.Pipeline()
		for i, q := range requests {
			commands[i] = pipe.Do(ctx, r.args(command, script, q)...)
		}
		_, err = pipe.Exec(ctx)
	}
	for i, q := range requests {
		var reply any
		reply, q.err = commands[i].Result()
		switch v := reply.(type) {
		case []any:
			q.reply = v
		case string:
			q.text = v
		default:
			if q.err == nil {
				q.err = errors.Join(errNoReply, err)
			}
		}
	}
}

func (r *Redis) args(command, script string, q *request) []any {
	args := make([]any, 0, 3+len(q.partitions)+len(q.args))
	args = append(args, command, script, len(q.partitions))
	for _, partition := range q.partitions {
		args = append(args, r.key(partition))
	}
	return append(args, q.args...)
}

var errNoReply = errors.New("redis gave no reply")

// repeatable reports whether an error may be gone at once: not if a script ran into a fault of its own or was refused memory.
func repeatable(err error) bool {
	text := err.Error()
	return !strings.HasPrefix(text, "ERR ") && !strings.HasPrefix(text, "OOM ") && !strings.HasPrefix(text, "WRONGTYPE ") &&
		!strings.HasPrefix(text, "NOPERM ")
}

// run executes one script once, as exec does.
func (r *Redis) run(ctx context.Context, s *script, partition int, args ...any) ([]any, error) {
	q := &request{partitions: []int{partition}, args: args}
	r.exec(ctx, ControlTimeout, s, []*request{q})
	return q.reply, q.err
}

// yes runs a script that answers 0 or 1.
func (r *Redis) yes(ctx context.Context, s *script, partition int, args ...any) (bool, error) {
	reply, err := r.run(ctx, s, partition, args...)
	if err != nil {
		return false, err
	}
	n, err := readInt(reply, 0)
	return n == 1, err
}

func readInt(reply []any, at int) (int64, error) {
	if at < len(reply) {
		switch v := reply[at].(type) {
		case int64:
			return v, nil
		case string:
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("reply %d of %d: %w", at, len(reply), errBadRecord)
}

// readText reads a bulk string; a nil is "".
func readText(reply []any, at int) (string, error) {
	if at < len(reply) {
		switch v := reply[at].(type) {
		case string:
			return v, nil
		case nil:
			return "", nil
		}
	}
	return "", fmt.Errorf("reply %d of %d: %w", at, len(reply), errBadRecord)
}
