package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ledgerline/consumers"
	"ledgerline/consumers/audit"
	"ledgerline/consumers/quota"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay"
	"ledgerline/relay/console"
	"ledgerline/relay/upstream"
)

// How long entries are kept that only running nodes need.
const keepChanges = 24 * time.Hour

// masterDuties does what one node of the cluster has to do: two masters do no harm, each duty is idempotent.
func (n *node) masterDuties(ctx context.Context) error {
	var duties errgroup.Group
	duties.Go(func() error { return quota.Observe(ctx, n.db, n.cfg.OrphanAfter, n.log) })
	duties.Go(func() error {
		n.periodically(ctx, time.Duration(n.cfg.SyncFrequency)*time.Second, "look for hand edits", func(ctx context.Context) error {
			r, err := n.db.ScanAll(ctx)
			if r.Adopted+r.Opened > 0 {
				n.log.Info("balances that somebody edited by hand were adopted", "edits", r.Adopted, "new_rows", r.Opened)
				n.moveNow()
			}
			if len(r.Alarms) > 0 {
				n.log.Warn("hand edits of balances were not adopted", "count", len(r.Alarms), "first", r.Alarms[0])
			}
			return err
		})
		return nil
	})
	duties.Go(func() error {
		if err := n.retain(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("snapshots or the life of usage rows could not be seen to; it is tried again", "error", err)
		}
		n.periodically(ctx, time.Hour, "snapshots and the life of usage rows", n.retain)
		return nil
	})
	duties.Go(func() error {
		n.periodically(ctx, time.Hour, "tidy up", func(ctx context.Context) error {
			if _, err := n.db.PruneChanges(ctx, time.Now().Add(-keepChanges)); err != nil {
				return err
			}
			_, err := n.db.PruneSessions(ctx)
			return err
		})
		return nil
	})
	return duties.Wait()
}

// sweepEvery is how long after JOURNAL_KEEP what a journal kept may stay.
const sweepEvery = time.Minute

// sweepJournals removes what no journal below JOURNAL_DIR needs any more, at the start and then again and again, until ctx ends. Every
// node that relays has such a folder, and every start leaves one journal in it.
func (n *node) sweepJournals(ctx context.Context) error {
	if n.cfg.JournalDir == "" {
		return nil // a node without a disk
	}
	sweep := func(context.Context) error { return journal.Sweep(n.journalConfig()) }
	if err := sweep(ctx); err != nil {
		n.log.Warn("old journals could not be removed; it is tried again", "error", err)
	}
	n.periodically(ctx, sweepEvery, "remove old journals", sweep)
	return nil
}

// retain takes the snapshots that LOG_SQL_CLICKHOUSE_TTL_DAYS needs, and lets older rows of the usage log expire.
func (n *node) retain(ctx context.Context) error {
	return audit.Retain(ctx, audit.Retention{DB: n.db, Usage: n.usage, Days: n.cfg.LogTTLDays, Log: n.log})
}

// creditNews is the message that a credit is on its way: whichever node consumes its partition hurries.
const creditNews = "credit"

// moveNow makes the outbox move at once, if this process has a desk, and tells the consumers that something urgent comes.
func (n *node) moveNow() {
	if n.desk == nil {
		return
	}
	n.desk.MoveNow()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := n.counters.Notify(ctx, []byte(creditNews)); err != nil {
			n.log.Debug("the consumers were not told of a credit; it waits for their pace", "error", err)
		}
	}()
}

// hurryForCredits makes the quota consumer fetch at once when a node says that a credit is on its way, until ctx ends.
func (n *node) hurryForCredits(ctx context.Context) error {
	err := n.counters.Watch(ctx, func(payload []byte) {
		if string(payload) == creditNews {
			n.quotas.Hurry()
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// periodically repeats f until ctx ends. A failure is said once until it has passed.
func (n *node) periodically(ctx context.Context, interval time.Duration, what string, f func(context.Context) error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := f(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			n.log.Warn("a periodic duty failed; it is tried again", "duty", what, "error", err)
		}
		failing = err != nil
	}
}

// firstStart makes the root user of a fresh database and takes the opening balances of one that New API made.
func (n *node) firstStart(ctx context.Context) error {
	password, err := console.RandomPassword()
	if err != nil {
		return err
	}
	// Only for a root user that is made: a hash takes 19 MiB and 30 ms.
	created, err := n.db.EnsureRoot(ctx, func() (string, error) { return console.HashPassword(password) })
	if err != nil {
		return fmt.Errorf("make the root user: %w", err)
	}
	if created {
		n.rootPassword = password
	}
	if err := n.initialKeys(ctx); err != nil {
		return err
	}
	opened, err := n.db.OpenAccounts(ctx)
	if err != nil {
		return fmt.Errorf("take opening balances: %w", err)
	}
	if opened.Users+opened.Tokens > 0 && !created {
		n.log.Info("opening balances were taken of an existing database", "users", opened.Users, "tokens", opened.Tokens, "channels", opened.Channels)
	}
	// What New API did while it ran in our place, before anything is served on balances of then.
	counters, err := n.db.AdoptCounters(ctx)
	if err != nil {
		return err
	}
	edits, err := n.db.ScanAll(ctx)
	if err != nil {
		return err
	}
	if counters+edits.Adopted > 0 {
		n.log.Info("what was changed while no node ran is adopted", "balances", edits.Adopted, "counters", counters)
	}
	return nil
}

// sayUnserved names the channels whose provider the relay cannot serve yet: they stay as they are, and requests to them are refused.
func (n *node) sayUnserved(ctx context.Context) {
	list, err := n.db.Channels(ctx, sqlstore.ChannelFilter{}, sqlstore.Page{Limit: 1})
	if err != nil {
		n.log.Warn("channels were not looked at for providers that cannot be served", "error", err)
		return
	}
	for _, kind := range slices.Sorted(maps.Keys(list.Types)) {
		if !upstream.OpenAICompatible(kind) {
			n.log.Warn("channels of a provider that the relay cannot serve yet: requests to them get 503 channel:type_unsupported", "type", kind, "provider", upstream.TypeName(kind), "channels", list.Types[kind])
		}
	}
}

// initialKeys gives root the keys of INITIAL_ROOT_TOKEN and INITIAL_ROOT_ACCESS_TOKEN. It does so at every start that names
// them, so a start that was killed in the middle is made good; what is there stays, and a deleted key does not come back.
func (n *node) initialKeys(ctx context.Context) error {
	if n.cfg.RootToken == "" && n.cfg.RootAccess == "" {
		return nil
	}
	root, _, err := n.db.UserPassword(ctx, "root")
	if err != nil {
		return fmt.Errorf("give root its initial keys: %w", err)
	}
	if n.cfg.RootToken != "" {
		key := strings.TrimPrefix(n.cfg.RootToken, "sk-")
		row := sqlstore.TokenRow{UserID: root, Key: key, Name: "Initial Root Token", ExpiredTime: -1, Unlimited: true}
		if _, _, err := n.db.CreateToken(ctx, row, 0); err != nil && !errors.Is(err, sqlstore.ErrExists) {
			return fmt.Errorf("give root its initial API key: %w", err)
		}
	}
	if n.cfg.RootAccess == "" {
		return nil
	}
	_, _, err = n.db.EditUser(ctx, root, func(e *sqlstore.UserEdit) error {
		if e.AccessToken == "" {
			e.AccessToken = n.cfg.RootAccess
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("give root its initial access token: %w", err)
	}
	return nil
}

// channelFailed disables a channel, or one of its keys, after an answer that New API's rules name. It must not hold up the request.
func (n *node) channelFailed(f relay.ChannelFailure) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.db.DisableChannel(ctx, f.Channel, f.KeyIndex, f.Reason); err != nil {
			n.log.Warn("a channel could not be disabled", "channel", f.Channel, "error", err)
			return
		}
		n.log.Warn("a channel, or one of its keys, was disabled", "channel", f.Channel, "key", f.KeyIndex, "status", f.Status, "reason", f.Reason)
		if err := n.catalog.Refresh(ctx); err != nil {
			n.log.Warn("the catalog was not refreshed", "error", err)
		}
	}()
}

// stopped lists the partitions of a projection that need an operator.
func stopped(name string, status []consumers.Status) []string {
	var out []string
	for _, s := range status {
		if s.State == consumers.StateStopped {
			out = append(out, fmt.Sprintf("%s partition %d is stopped: %s", name, s.Partition, s.Reason))
		}
	}
	return out
}
