package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
	"ledgerline/relay/console"
	"ledgerline/relay/upstream"
)

// plan is what `ledgerline import -plan` found.
type plan struct {
	*sqlstore.Survey
	Logs         logsPlan          `json:"logs"`
	ChannelTypes []channelTypePlan `json:"channel_types"`
	Steps        []string          `json:"steps"`
	counters     bool              // hold counters against logs
	sealed       bool              // secrets were migrated
}

// logsPlan is where New API's logs are, and what becomes of them.
type logsPlan struct {
	Place string `json:"place"` // "" if there are none
	Rows  int64  `json:"rows"`
	Read  bool   `json:"read_in_place"` // shown together with the usage log, without a copy
}

// channelTypePlan is a provider.
type channelTypePlan struct {
	Type     int    `json:"type"`
	Name     string `json:"name"`
	Channels int    `json:"channels"`
	Served   bool   `json:"served"`
}

// planMode is `ledgerline import -plan`.
func planMode(flags *flag.FlagSet) importJob {
	counters := flags.Bool("counters", true, "with -plan: hold New API's counters against its logs, which reads all of them")
	return func(ctx context.Context, c *importCall) error {
		p := &plan{counters: *counters}
		if err := p.look(ctx, c); err != nil {
			return err
		}
		if c.asJSON {
			return printJSON(c.stdout, p)
		}
		return p.print(c.stdout)
	}
}

func (p *plan) look(ctx context.Context, c *importCall) error {
	db, err := c.openReadOnly(ctx)
	if err != nil {
		return err
	}
	defer func() { logClose(c.log, "database", db.Close()) }()
	spent, err := p.lookAtLogs(ctx, c)
	if err != nil {
		return err
	}
	if p.Survey, err = db.Survey(ctx, spent); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if p.State == sqlstore.StateAdopted {
		back, err := db.WayBack(ctx)
		if err != nil {
			return fmt.Errorf("plan: %w", err)
		}
		p.sealed = !back
	}
	p.lookAtChannels()
	p.lookAtOptions()
	for _, name := range c.cfg.unused {
		p.find(sqlstore.LevelWarn, "environment_unused", 1, nil, "%s is set and not used here: %s", name, notHonoured[name])
	}
	p.Steps = p.steps()
	return nil
}

func (p *plan) find(level sqlstore.FindingLevel, code string, count int, examples []string, format string, args ...any) {
	if count > 0 {
		p.Findings = append(p.Findings, sqlstore.Finding{Level: level, Code: code, Count: count, Text: fmt.Sprintf(format, args...), Examples: examples})
	}
}

// lookAtLogs finds New API's logs and, if asked to, what they say was used.
func (p *plan) lookAtLogs(ctx context.Context, c *importCall) (*sqlstore.LogSums, error) {
	logs, err := c.openLogs(ctx)
	if errors.Is(err, usagelog.ErrNoLogs) {
		return nil, nil //nolint:nilnil // nothing to hold against, and nothing wrong
	}
	if err != nil {
		return nil, err
	}
	defer func() { logClose(c.log, "New API's logs", logs.Close()) }()
	if p.Logs.Place, err = logs.Place(ctx); err != nil {
		return nil, err
	}
	if p.Logs.Rows, err = logs.Count(ctx); err != nil {
		return nil, err
	}
	// The usage log is where LOG_SQL_DSN says, else in the main database; beside a SQLite file it is a file of its own.
	if usage := c.cfg.usageDSN(); !isFile(usage) {
		if same, err := c.openLogsAt(ctx, usage); err == nil {
			place, err := same.Place(ctx)
			p.Logs.Read = err == nil && place == p.Logs.Place
			_ = same.Close()
		}
	}
	if !p.counters || p.Logs.Rows == 0 {
		return nil, nil //nolint:nilnil // as asked, or nothing to hold against
	}
	spent := &sqlstore.LogSums{}
	for column, into := range map[string]*map[int64]sqlstore.LogSum{"user_id": &spent.Users, "token_id": &spent.Tokens, "channel_id": &spent.Channels} {
		sums, err := logs.Consumed(ctx, column)
		if err != nil {
			return nil, err
		}
		*into = make(map[int64]sqlstore.LogSum, len(sums))
		for id, sum := range sums {
			(*into)[id] = sqlstore.LogSum(sum)
		}
	}
	return spent, nil
}

// lookAtChannels counts channels by provider and names those that the relay cannot serve.
func (p *plan) lookAtChannels() {
	byType := map[int]*channelTypePlan{}
	examples := map[int][]string{}
	for _, ch := range p.Channels {
		t := byType[ch.Type]
		if t == nil {
			t = &channelTypePlan{Type: ch.Type, Name: upstream.TypeName(ch.Type), Served: upstream.OpenAICompatible(ch.Type)}
			byType[ch.Type] = t
		}
		t.Channels++
		examples[ch.Type] = append(examples[ch.Type], fmt.Sprintf("channel %d (%s)", ch.ID, ch.Name))
	}
	p.ChannelTypes = []channelTypePlan{}
	for _, kind := range slices.Sorted(maps.Keys(byType)) {
		t := byType[kind]
		p.ChannelTypes = append(p.ChannelTypes, *t)
		if !t.Served {
			p.find(sqlstore.LevelWarn, "channel_type_unsupported", t.Channels, examples[kind][:min(t.Channels, 10)],
				"channels of type %d (%s) cannot be served yet: requests to them get 503 channel:type_unsupported; they stay as they are", kind, t.Name)
		}
	}
}

// lookAtOptions finds options that nothing here reads, and prices that do not parse.
func (p *plan) lookAtOptions() {
	var unused []string
	for _, key := range slices.Sorted(maps.Keys(p.Options)) {
		if !console.KnownOption(key) {
			unused = append(unused, key)
		}
	}
	p.find(sqlstore.LevelInfo, "option_unused", len(unused), unused, "options are kept and not used here")
	if _, err := ledger.ParsePriceBookWith(p.Options, rating.Compiler(time.Now)); err != nil {
		p.find(sqlstore.LevelWarn, "option_prices_malformed", 1, nil, "the price options do not parse, the built-in prices would be used: %v", err)
	}
}

// steps says what would happen.
func (p *plan) steps() (steps []string) {
	say := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	switch p.State {
	case sqlstore.StateEmpty:
		say("serve makes its tables and the user root: the database has none of New API's")
		return steps
	case sqlstore.StateOwn:
		say("nothing: Ledgerline made this database itself, and New API could not check its passwords")
		return steps
	case sqlstore.StateAdopted:
		say("nothing new: the database is taken over already")
	case sqlstore.StateNewAPI:
		say("serve adds tables ledger_*; no table of New API's is altered")
	}
	if o := p.Opening; o.Users+o.Tokens+o.Channels > 0 {
		say("serve takes %d opening balances of users and %d of keys, once each, and notes what %d channels had used", o.Users, o.Tokens, o.Channels)
	}
	switch l := p.Logs; {
	case l.Place == "" || l.Rows == 0:
		say("there are no logs to show or to copy")
	case l.Read:
		say("the %d rows of logs are shown where they are; ledgerline import -logs has nothing to do", l.Rows)
	default:
		say("the %d rows of logs are shown after ledgerline import -logs, which copies them", l.Rows)
	}
	if p.sealed {
		say("keys are sealed (ledgerline secrets migrate): New API cannot be started again")
		return steps
	}
	say("keys stay in plain text and passwords bcrypt, so that New API can be started again; users.quota, used_quota, request_count, tokens.remain_quota, used_quota, accessed_time and channels.used_quota are kept current")
	return steps
}

func (p *plan) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s %s, %s: %s\n\n", p.Engine, p.Server, p.Database, p.State)
	fmt.Fprintf(t, "users\t%d\t%d deleted, %d disabled, %d administrators; %d quota units in all, %d owe something\n",
		p.Users.Total, p.Users.Deleted, p.Users.Disabled, p.Users.Admins, p.Users.Quota, p.Users.Negative)
	fmt.Fprintf(t, "keys\t%d\t%d deleted, %d disabled, %d unlimited, %d of no user\n", p.Tokens.Total, p.Tokens.Deleted, p.Tokens.Disabled, p.Tokens.Unlimited, p.Tokens.Orphans)
	fmt.Fprintf(t, "channels\t%d\n", len(p.Channels))
	for _, c := range p.ChannelTypes {
		served := "served"
		if !c.Served {
			served = "NOT SERVED YET"
		}
		fmt.Fprintf(t, "  type %d %s\t%d\t%s\n", c.Type, c.Name, c.Channels, served)
	}
	fmt.Fprintf(t, "options\t%d\n", len(p.Options))
	fmt.Fprintf(t, "redemption codes\t%d\tunused, of %d quota units; %d used, %d disabled\n", p.Redemptions.Unused, p.Redemptions.Quota, p.Redemptions.Used, p.Redemptions.Disabled)
	for _, status := range slices.Sorted(maps.Keys(p.TopUps)) {
		fmt.Fprintf(t, "orders %s\t%d\n", status, p.TopUps[status])
	}
	fmt.Fprintf(t, "logs\t%d\t%s\n", p.Logs.Rows, p.Logs.Place)
	fmt.Fprintf(t, "\ntable\trows\tuse\n")
	for _, table := range p.Tables {
		fmt.Fprintf(t, "%s\t%d\t%s\n", table.Name, table.Rows, table.Use)
	}
	fmt.Fprintf(t, "\nserved: read, and written as New API would; read: shown, never written; kept: stays, nothing here reads it; ledger: Ledgerline's own\n")
	fmt.Fprintln(t, "\nWhat would happen:")
	for i, step := range p.Steps {
		fmt.Fprintf(t, "%d. %s\n", i+1, step)
	}
	if len(p.Findings) > 0 {
		fmt.Fprintln(t, "\nWhat to know:")
	}
	for _, f := range p.Findings {
		fmt.Fprintf(t, "%s %s (%d): %s\n", f.Level, f.Code, f.Count, f.Text)
		for _, e := range f.Examples {
			fmt.Fprintf(t, "    %s\n", e)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print plan: %w", err)
	}
	return nil
}
