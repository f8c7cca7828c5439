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
	if err := from.Copy(ctx, next, c.storeCopied(ctx, into, result)); err != nil {
		return nil, fmt.Errorf("%w; run it again to go on", err)
	}
	_, result.Copied, err = into.Imported(ctx, result.Source)
	return result, err
}

// storeCopied stores batches and says how far it is.
func (c *importCall) storeCopied(ctx context.Context, into usagelog.Importer, result *logsResult) func([]usagelog.Row, int64) error {
	began := time.Now()
	said := began
	return func(rows []usagelog.Row, next int64) error {
		if err := into.Import(ctx, result.Source, rows, next); err != nil {
			return err
		}
		result.Read += int64(len(rows))
		if now := time.Now(); now.Sub(said) >= progressEvery {
			said = now
			fmt.Fprintf(c.stderr, "import: %d of %d rows, %.0f rows/s\n", result.Read, result.Rows, float64(result.Read)/now.Sub(began).Seconds())
		}
		return nil
	}
}
