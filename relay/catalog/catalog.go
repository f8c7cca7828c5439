// Package catalog is what a relay node knows in memory of users, API keys, channels and options, so that a request
// touches no database (DESIGN 12, hot path rule).
//
// It owns the copy, not the truth: rows come from the database at start, by the change log within a second, and in full
// every SYNC_FREQUENCY as a safety net. While the database is away the node goes on with what it has (P3). Everything it
// hands out is immutable; a change replaces the value.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
	"ledgerline/ledger/sqlstore"
)

// Source is where the catalog comes from; *sqlstore.Store satisfies it.
type Source interface {
	// LoadCatalog streams all rows that are not deleted and returns the sequence of the change log that they stand at.
	LoadCatalog(ctx context.Context, into sqlstore.CatalogSink) (seq int64, err error)
	// Changes returns the changes after a sequence, at most limit, oldest first.
	Changes(ctx context.Context, after int64, limit int) ([]sqlstore.Change, error)
	// CatalogRow reads one row again into the sink; a row that is gone or deleted is passed with Deleted set.
	CatalogRow(ctx context.Context, change sqlstore.Change, into sqlstore.CatalogSink) error
	// HashKey returns what stands for an API key where keys are stored sealed; "" if they cannot be.
	HashKey(key string) string
}

// pollEvery is how often the change log is read: a change is effective on every node within a second.
const pollEvery = 300 * time.Millisecond

// tellWithin bounds how long a write waits for the other nodes to be told.
const tellWithin = 200 * time.Millisecond

// changesAtOnce bounds one read of the change log; more than that is a full reload.
const changesAtOnce = 1000

// Catalog is the node's copy. All methods may be called from any goroutine.
type Catalog struct {
	source Source
	log    *slog.Logger
	resync time.Duration

	mu     sync.RWMutex
	users  map[int64]*User
	tokens map[string]*Token // by key, or by what stands for it
	keys   map[int64]string  // token id to key

	routes atomic.Pointer[Routes]
	news   atomic.Pointer[News]

	apply    sync.Mutex // one refresh at a time; guards the fields below
	seq      int64
	channels map[int64]*Channel
	options  map[string]string
}

// New builds an empty catalog; Load fills it. resync is SYNC_FREQUENCY.
func New(source Source, resync time.Duration, log *slog.Logger) *Catalog {
	c := &Catalog{
		source: source, log: log, resync: resync,
		users: map[int64]*User{}, tokens: map[string]*Token{}, keys: map[int64]string{},
	}
	return c
}

// Load reads everything. Options that do not parse keep their former meaning and are reported; at the first load they fall
// back to the defaults.
func (c *Catalog) Load(ctx context.Context) error {
	c.apply.Lock()
	defer c.apply.Unlock()
	fresh := &gather{
		users: map[int64]*User{}, tokens: map[string]*Token{}, keys: map[int64]string{},
		channels: map[int64]*Channel{}, options: map[string]string{}, log: c.log,
	}
	seq, err := c.source.LoadCatalog(ctx, fresh)
	if err != nil {
		return fmt.Errorf("load catalog: %w", err)
	}
	c.mu.Lock()
	c.users, c.tokens, c.keys = fresh.users, fresh.tokens, fresh.keys
	c.mu.Unlock()
	c.channels, c.options, c.seq = fresh.channels, fresh.options, seq
	c.rebuild()
	return nil
}

// Refresh applies what changed since the last look, and tells the other nodes to look. The management API calls it after a
// write, so that the write is effective on this node when it returns.
func (c *Catalog) Refresh(ctx context.Context) error {
	if err := c.refresh(ctx); err != nil {
		return err
	}
	if news := c.news.Load(); news != nil {
		ctx, cancel := context.WithTimeout(ctx, tellWithin)
		defer cancel()
		if err := (*news).Notify(ctx, nil); err != nil {
			c.log.Debug("other nodes were not told of a change; they find it within a second", "error", err)
		}
	}
	return nil
}

// News carries "something changed" between nodes; hold.Redis and hold.Local do. A lost message costs nothing but time.
type News interface {
	Notify(ctx context.Context, payload []byte) error
	Watch(ctx context.Context, fn func(payload []byte)) error
}

// Follow refreshes at every message of another node, and tells them of this node's writes, until ctx ends.
func (c *Catalog) Follow(ctx context.Context, news News) error {
	c.news.Store(&news)
	defer c.news.Store(nil)
	err := news.Watch(ctx, func([]byte) {
		if err := c.refresh(ctx); err != nil && ctx.Err() == nil {
			c.log.Debug("the catalog was not refreshed at once; the next look does it", "error", err)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Catalog) refresh(ctx context.Context) error {
	c.apply.Lock()
	changes, err := c.source.Changes(ctx, c.seq, changesAtOnce)
	if err != nil {
		c.apply.Unlock()
		return fmt.Errorf("read change log: %w", err)
	}
	// Numbers follow each other without gaps: what is missing was pruned while this node was away.
	missed := len(changes) > 0 && changes[0].Seq != c.seq+1
	if missed || len(changes) >= changesAtOnce || slices.ContainsFunc(changes, func(ch sqlstore.Change) bool {
		return ch.ID == 0 && ch.Kind != sqlstore.ChangeOption
	}) {
		c.apply.Unlock()
		return c.Load(ctx)
	}
	defer c.apply.Unlock()
	if len(changes) == 0 {
		return nil
	}
	rebuild, options := false, false
	got := &gather{
		users: map[int64]*User{}, tokens: map[string]*Token{}, keys: map[int64]string{},
		channels: map[int64]*Channel{}, options: map[string]string{}, log: c.log,
	}
	for _, ch := range changes {
		if err := c.source.CatalogRow(ctx, ch, got); err != nil {
			return fmt.Errorf("read changed %s %d: %w", ch.Kind, ch.ID, err)
		}
		options = options || ch.Kind == sqlstore.ChangeOption
		rebuild = rebuild || options || ch.Kind == sqlstore.ChangeChannel
	}
	c.merge(got)
	if options {
		c.options = got.options
	}
	c.seq = changes[len(changes)-1].Seq
	if rebuild {
		c.rebuild()
	}
	return nil
}

// merge puts changed rows in place; nil marks a row that is gone.
func (c *Catalog) merge(got *gather) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, u := range got.users {
		if u == nil {
			delete(c.users, id)
		} else {
			c.users[id] = u
		}
	}
	for _, id := range got.gone {
		delete(c.tokens, c.keys[id])
		delete(c.keys, id)
	}
	for key, t := range got.tokens {
		if old, ok := c.keys[t.ID]; ok && old != key {
			delete(c.tokens, old)
		}
		c.tokens[key], c.keys[t.ID] = t, key
	}
	channels := maps.Clone(c.channels)
	for id, ch := range got.channels {
		if ch == nil {
			delete(channels, id)
		} else {
			channels[id] = ch
		}
	}
	c.channels = channels
}

// Run keeps the catalog current until ctx ends.
func (c *Catalog) Run(ctx context.Context) error {
	poll, full := time.NewTicker(pollEvery), time.NewTicker(c.resync)
	defer poll.Stop()
	defer full.Stop()
	failed := false
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			err = c.refresh(ctx)
		case <-full.C:
			err = c.Load(ctx)
		}
		if err != nil && ctx.Err() == nil && !failed {
			c.log.Warn("the catalog is not refreshed; the node goes on with what it has", "error", err)
		}
		failed = err != nil
	}
}

func (c *Catalog) rebuild() {
	book, err := ledger.ParsePriceBookWith(c.options, rating.Compiler(time.Now))
	old := c.routes.Load()
	if err != nil {
		c.log.Error("the price options do not parse; the prices in force stay", "error", err)
		if old != nil {
			book = old.Book
		} else if book, err = ledger.ParsePriceBookWith(nil, rating.Compiler(time.Now)); err != nil {
			panic("catalog: the built-in price book does not parse: " + err.Error())
		}
	}
	if old != nil && old.Book.Version() == book.Version() {
		book = old.Book // with the quotes that it remembers
	}
	c.routes.Store(newRoutes(c.channels, c.options, book, c.log))
}

// Routes returns channels, options and prices as of now.
func (c *Catalog) Routes() *Routes { return c.routes.Load() }

// Token finds an API key (48 characters, without "sk-") and its user. The user is nil if it is deleted or unknown.
func (c *Catalog) Token(key string) (*Token, *User) {
	t, u := c.stored(key)
	switch {
	case t != nil && t.sealed:
		return nil, nil // what stands for a key is no key
	case t != nil:
		return t, u
	}
	if stands := c.source.HashKey(key); stands != "" {
		return c.stored(stands)
	}
	return nil, nil
}

// stored finds the token, and its user, whose row holds a value.
func (c *Catalog) stored(value string) (*Token, *User) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := c.tokens[value]
	if t == nil {
		return nil, nil
	}
	return t, c.users[t.UserID]
}

// User finds a user by id; nil if there is none.
func (c *Catalog) User(id int64) *User {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.users[id]
}

// Sizes returns how many users, tokens and channels are known.
func (c *Catalog) Sizes() (users, tokens, channels int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.users), len(c.tokens), len(c.channels)
}

var errNoRoutes = errors.New("the catalog was not loaded")

// Ready reports whether the catalog was loaded once.
func (c *Catalog) Ready() error {
	if c.routes.Load() == nil {
		return errNoRoutes
	}
	return nil
}
