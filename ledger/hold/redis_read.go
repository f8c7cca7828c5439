package hold

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"ledgerline/ledger"
)

// scanPage is about how many entries one page of a scan returns: some 100 µs of work for the server.
const scanPage = 250

func (r *Redis) holdsKey(partition int, inc ledger.ID) string {
	return r.base(partition) + "h:" + inc.String()
}

// Holds implements [Membership].
func (r *Redis) Holds(ctx context.Context, partition int, inc ledger.ID) ([]ledger.OpenHold, error) {
	seen := map[ledger.ID]ledger.OpenHold{}
	err := checkPartition(partition)
	if err == nil {
		err = r.scanHolds(ctx, partition, inc, func(h ledger.OpenHold) error {
			seen[h.Hold] = h
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	var list []ledger.OpenHold
	for _, h := range seen {
		list = append(list, h)
	}
	sortHolds(list)
	return list, nil
}

func (r *Redis) scanHolds(ctx context.Context, partition int, inc ledger.ID, fn func(ledger.OpenHold) error) error {
	var cursor uint64
	for {
		page, next, err := r.scanPage(ctx, r.holdsKey(partition, inc), cursor)
		if err != nil {
			return err
		}
		for i := 0; i+1 < len(page); i += 2 {
			h, err := decodeHold(inc, page[i], page[i+1])
			if err != nil {
				return err
			}
			if err := fn(h); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

func (r *Redis) scanPage(ctx context.Context, key string, cursor uint64) ([]string, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, ControlTimeout)
	defer cancel()
	return r.client.HScan(ctx, key, cursor, "", scanPage).Result()
}

// Accounts implements [Inspection].
func (r *Redis) Accounts(ctx context.Context, partition int, accounts []ledger.Account) ([]ledger.HotAccount, error) {
	args := make([]any, len(accounts))
	for i, a := range accounts {
		args[i] = appendField(nil, a)
	}
	err := checkPartition(partition)
	var reply []any
	if err == nil {
		reply, err = r.run(ctx, accountsScript, partition, args...)
	}
	if err != nil {
		return nil, fmt.Errorf("read hot accounts: %w", err)
	}
	list := make([]ledger.HotAccount, len(accounts))
	for i, a := range accounts {
		if list[i], err = decodeHot(reply, a, i+1); err != nil {
			return nil, fmt.Errorf("read hot account %s: %w", a, err)
		}
	}
	return list, nil
}

// decodeHot reads the record at a place of a reply that begins with done.
func decodeHot(reply []any, name ledger.Account, at int) (ledger.HotAccount, error) {
	done, err := readInt(reply, 0)
	if err != nil {
		return ledger.HotAccount{}, err
	}
	text, err := readText(reply, at)
	if err != nil {
		return ledger.HotAccount{}, err
	}
	a, err := decodeRecord(text)
	if err != nil {
		return ledger.HotAccount{}, err
	}
	return a.hot(name, done), nil
}

// All implements [Inspection].
func (r *Redis) All(ctx context.Context, partition int, visit func(ledger.HotAccount) error, hold func(ledger.OpenHold) error) error {
	if err := checkPartition(partition); err != nil {
		return fmt.Errorf("read hot accounts: %w", err)
	}
	if err := r.scanAccounts(ctx, partition, visit); err != nil {
		return err
	}
	states, err := r.State(ctx, partition)
	if err != nil {
		return err
	}
	for _, inc := range states[0].Members {
		if err := r.scanHolds(ctx, partition, inc, hold); err != nil {
			return fmt.Errorf("read holds: %w", err)
		}
	}
	return nil
}

func (r *Redis) scanAccounts(ctx context.Context, partition int, visit func(ledger.HotAccount) error) error {
	for cursor := "0"; ; {
		reply, err := r.run(ctx, scanScript, partition, cursor, scanPage)
		if err != nil {
			return fmt.Errorf("read hot accounts: %w", err)
		}
		if cursor, err = readText(reply, 1); err != nil {
			return fmt.Errorf("read hot accounts: %w", err)
		}
		for i := 2; i+1 < len(reply); i += 2 {
			field, err := readText(reply, i)
			if err != nil {
				return fmt.Errorf("read hot accounts: %w", err)
			}
			name, err := decodeField(field)
			if err != nil {
				return fmt.Errorf("read hot accounts: %w", err)
			}
			a, err := decodeHot(reply, name, i+1)
			if err != nil {
				return fmt.Errorf("read hot account %s: %w", name, err)
			}
			if err := visit(a); err != nil {
				return err
			}
		}
		if cursor == "0" || cursor == "" {
			return nil
		}
	}
}

// Check implements [Inspection]. It refuses
//   - a server that evicts keys (maxmemory-policy other than noeviction): an evicted hold is an overspend;
//   - a version below 6.2: it is the oldest that is still maintained, and scripts here write after they read INFO, which needs
//     the replication of effects that older servers have only as an option;
//   - a node of a cluster that was configured as a single server: it would redirect most partitions;
//   - a server that does not run the scripts, for want of permissions or because it is a replica.
func (r *Redis) Check(ctx context.Context) error {
	var err error
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, server *redis.Client) error {
			return r.checkServer(ctx, server, "cluster")
		})
	} else {
		err = r.checkServer(ctx, r.client, "standalone")
	}
	if err == nil {
		_, err = r.run(ctx, stateScript, 0)
	}
	if err != nil {
		return fmt.Errorf("check redis: %w", err)
	}
	return nil
}

// ErrUnfit marks a server that answers and cannot hold the counters: waiting does not help.
var ErrUnfit = errors.New("this Redis server cannot hold the counters")

func (r *Redis) checkServer(ctx context.Context, server redis.Cmdable, mode string) error {
	ctx, cancel := context.WithTimeout(ctx, ControlTimeout)
	defer cancel()
	text, err := server.Info(ctx).Result()
	if err != nil {
		return fmt.Errorf("read INFO: %w", err)
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	if version := info["redis_version"]; olderThan(version, 6, 2) {
		return fmt.Errorf("%w: version %q is too old, 6.2 or newer is needed", ErrUnfit, version)
	}
	if is := info["redis_mode"]; is == "cluster" && mode != "cluster" {
		return fmt.Errorf("%w: it is a node of a Redis Cluster, so name two or more of its nodes in the URL, separated by commas", ErrUnfit)
	}
	if role := info["role"]; role == "slave" {
		return fmt.Errorf("%w: it is a replica, so name its primary, or sentinels and the name of the primary", ErrUnfit)
	}
	switch policy, known := info["maxmemory_policy"]; {
	case !known:
		r.log.WarnContext(ctx, "redis does not tell its maxmemory-policy; make sure that it is noeviction")
	case policy != "noeviction":
		return fmt.Errorf("%w: maxmemory-policy is %q, which throws holds away; set it to noeviction", ErrUnfit, policy)
	}
	return nil
}

func olderThan(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return true
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA != nil || errB != nil || a < major || a == major && b < minor
}

// The pace of a watch.
const (
	// watchPing is how long a subscription may be silent before it is asked for a sign of life, and how long that may take.
	watchPing = 10 * time.Second
	// watchPause is the time between two attempts to subscribe.
	watchPause = 200 * time.Millisecond
)

func (r *Redis) channel() string { return r.prefix + "changes" }

// Notify implements [News].
func (r *Redis) Notify(ctx context.Context, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, ControlTimeout)
	defer cancel()
	if err := r.client.Publish(ctx, r.channel(), payload).Err(); err != nil {
		return fmt.Errorf("publish change: %w", err)
	}
	return nil
}

// Watch implements [News].
func (r *Redis) Watch(ctx context.Context, fn func(payload []byte)) error {
	for {
		err := r.subscribe(ctx, fn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.log.WarnContext(ctx, "the subscription to changes ended; it begins again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchPause):
		}
	}
}

// subscribe watches over one connection until it fails.
func (r *Redis) subscribe(ctx context.Context, fn func(payload []byte)) error {
	sub := r.client.Subscribe(ctx, r.channel())
	end := func() { _ = sub.Close() }
	defer end()
	defer context.AfterFunc(ctx, end)()
	asked := false
	for {
		message, err := sub.ReceiveTimeout(ctx, watchPing)
		var timeout interface{ Timeout() bool }
		switch {
		case err == nil:
			asked = false
		case errors.As(err, &timeout) && timeout.Timeout() && !asked:
			if err := sub.Ping(ctx); err != nil {
				return fmt.Errorf("ping the subscription: %w", err)
			}
			asked = true
			continue
		default:
			return fmt.Errorf("receive changes: %w", err)
		}
		switch m := message.(type) {
		case *redis.Subscription:
			fn(nil)
		case *redis.Message:
			fn([]byte(m.Payload))
		}
	}
}
