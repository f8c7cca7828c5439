package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"ledgerline/ledger/usagelog"
)

// progressEvery is how often a long command says how far it is.
const progressEvery = 3 * time.Second

// logsResult is what `ledgerline import -logs` did.
type logsResult struct {
	Source string `json:"source"`
	Rows   int64  `json:"rows"`   // of the source
	Read   int64  `json:"read"`   // by this run
	Copied int64  `json:"copied"` // rows in the usage log that were copied, by any run
	Shared bool   `json:"read_in_place"`
}

// logsMode is `ledgerline import -logs`.
func logsMode(*flag.FlagSet) importJob {
	return func(ctx context.Context, c *importCall) error {
		result, err := copyLogs(ctx, c)
		if err != nil {
			return err
		}
		if c.asJSON {
			return printJSON(c.stdout, result)
		}
		if result.Shared {
			fmt.Fprintf(c.stdout, "Nothing to copy: the usage log is in the same database as New API's table logs, and its %d rows are shown where they are.\n", result.Rows)
			return nil
		}
		fmt.Fprintf(c.stdout, "%d of %d rows were read now; the usage log has %d copied rows.\n", result.Read, result.Rows, result.Copied)
		return nil
	}
}

// copyLogs copies New API's logs into the usage log. Killed anywhere, it goes on where it was; rows are known by what is in
// them, so none is there twice.
func copyLogs(ctx context.Context, c *importCall) (*logsResult, error) {
	from, err := c.openOtherLogs(ctx)
	if errors.Is(err, usagelog.ErrNoLogs) {
		return nil, fmt.Errorf("import -logs: %w; -from names another database", err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { logClose(c.log, "New API's logs", from.Close()) }()
	c.cfg.NodeType = "slave" // it migrates nothing
	into, err := openUsage(ctx, c.cfg, c.log)
	if err != nil {
		return nil, err
	}
	defer func() { logClose(c.log, "usage log", into.Close()) }()
	if err := into.CheckSchema(ctx); err != nil {
		return nil, fmt.Errorf("%w; start a master first, or ledgerline migrate", err)
	}
	result := &logsResult{}
	if result.Source, err = from.Place(ctx); err != nil {
		return nil, err
	}
	if result.Rows, err = from.Count(ctx); err != nil {
		return nil, err
	}
	place, err := into.Place(ctx)
	if err != nil {
		return nil, err
	}
	if place == result.Source && into.HasLogs() {
		result.Shared = true
		return result, nil
	}
	if into.HasLogs() {
		c.log.Warn("the usage log's database has a table logs of New API's, too, which is shown as well: a row that somebody copied there before will be seen twice", "place", place)
	}
	next, _, err := into.Imported(ctx, result.Source)
	if err != nil {
		return nil, err
	}
	copied := &copier{call: c, into: into, result: result, began: time.Now(), most: 1}
	if _, big := into.(*usagelog.ClickHouse); big {
		copied.most = gatherRows
	}
	if err = from.Copy(ctx, next, func(rows []usagelog.Row, next int64) error { return copied.add(ctx, rows, next) }); err == nil {
		err = copied.store(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; run it again to go on", err)
	}
	_, result.Copied, err = into.Imported(ctx, result.Source)
	return result, err
}

// gatherRows make one INSERT into ClickHouse: each makes a part that must be merged later. At some kilobyte a row, they are what is
// in memory.
const gatherRows = 40_000

// copier stores rows and says how far it is.
type copier struct {
	call        *importCall
	into        usagelog.Importer
	result      *logsResult
	began, said time.Time
	most        int // rows to gather

	rows []usagelog.Row
	next int64
}

// add stores batches once they are enough. They are the caller's afterwards.
func (p *copier) add(ctx context.Context, rows []usagelog.Row, next int64) error {
	p.rows, p.next = append(p.rows, rows...), next
	if len(p.rows) < p.most {
		return nil
	}
	return p.store(ctx)
}

func (p *copier) store(ctx context.Context) error {
	if len(p.rows) == 0 {
		return nil
	}
	if err := p.into.Import(ctx, p.result.Source, p.rows, p.next); err != nil {
		return err
	}
	p.result.Read += int64(len(p.rows))
	p.rows = p.rows[:0]
	if now := time.Now(); now.Sub(p.said) >= progressEvery {
		p.said = now
		fmt.Fprintf(p.call.stderr, "import: %d of %d rows, %.0f rows/s\n", p.result.Read, p.result.Rows, float64(p.result.Read)/now.Sub(p.began).Seconds())
	}
	return nil
}
