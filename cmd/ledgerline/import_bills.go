package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// billsFlags are the flags that only -check-bills has.
type billsFlags struct {
	since, until, html, state string
	restart                   bool
}

// billsState is the file that a check goes on from after it was stopped, in DATA_DIR unless -state names another.
const billsState = "check-bills.json"

// saveEvery is how often the state is written: so much work is done again after a kill.
const saveEvery = 5 * time.Second

// billsMode is `ledgerline import -check-bills`: it rates the rows of New API's logs again, with the database's own options, and
// writes nowhere but into its state file and the report.
func billsMode(flags *flag.FlagSet) importJob {
	var f billsFlags
	flags.StringVar(&f.since, "since", "", "with -check-bills: only bills since a `time`: 2026-11-01 (midnight in TZ), 2026-11-01T08:00:00Z, or an age such as 30d or 12h")
	flags.StringVar(&f.until, "until", "", "with -check-bills: only bills before a `time`")
	flags.StringVar(&f.html, "html", "", "with -check-bills: write the report as a page to a `file`, too")
	flags.StringVar(&f.state, "state", "", "with -check-bills: the `file` to go on from after a stop (default: "+billsState+" in DATA_DIR)")
	flags.BoolVar(&f.restart, "restart", false, "with -check-bills: begin anew, whatever the state file says")
	return func(ctx context.Context, c *importCall) error {
		report, err := checkBills(ctx, c, f)
		if err != nil {
			return err
		}
		if f.html != "" {
			if err := report.writePage(f.html); err != nil {
				return err
			}
			fmt.Fprintf(c.stderr, "import: the report is in %s\n", f.html)
		}
		if c.asJSON {
			err = printJSON(c.stdout, report.view())
		} else {
			err = report.print(c.stdout)
		}
		if err != nil {
			return err
		}
		if report.of(ledger.BillDiffers).Bills > 0 {
			return errReported
		}
		return nil
	}
}

// billsCheck is one run.
type billsCheck struct {
	call    *importCall
	checker *ledger.Checker
	db      *sqlstore.Store
	logs    *usagelog.Logs
	path    string
	state   billsRun
	groups  map[int64]string // of users; bounded by maxGroups
	began   time.Time
	spent   float64 // seconds of earlier runs
	rows    int64   // by this run
	said    time.Time
	saved   time.Time
	next    int64 // where this run began
}

// maxGroups bounds the users whose groups are remembered (L7). Beyond it they are asked for again.
const maxGroups = 200_000

// billsRun is what the state file holds: which check it is, how far it came, and what it found so far.
type billsRun struct {
	Kind   string            `json:"kind"` // billsKind
	Span   usagelog.BillSpan `json:"span"`
	At     usagelog.BillsAt  `json:"at"` // the whole check
	Next   int64             `json:"next"`
	Report *billsReport      `json:"report"`
}

const billsKind = "ledgerline import -check-bills, version 1"

func checkBills(ctx context.Context, c *importCall, f billsFlags) (*billsReport, error) {
	run, err := openBillsCheck(ctx, c, f)
	if err != nil {
		return nil, err
	}
	defer run.close()
	if err := run.read(ctx); err != nil {
		return nil, err
	}
	// The check is done: the next one is of other rows and begins anew.
	if err := os.Remove(run.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("the state file stays; -restart passes over it", "file", run.path, "error", err)
	}
	return run.state.Report, nil
}

// openBillsCheck opens what a check reads and takes up the one that was stopped, if there is any.
func openBillsCheck(ctx context.Context, c *importCall, f billsFlags) (_ *billsCheck, err error) {
	span, err := f.span(time.Now())
	if err != nil {
		return nil, err
	}
	run := &billsCheck{call: c, path: f.state, groups: make(map[int64]string)}
	if run.path == "" {
		run.path = dataPath(c.cfg, billsState)
	}
	defer func() {
		if err != nil {
			run.close()
		}
	}()
	if run.db, err = c.openReadOnly(ctx); err != nil {
		return nil, err
	}
	options, err := run.db.Options(ctx)
	if err != nil {
		return nil, fmt.Errorf("check bills: %w; is SQL_DSN or SQLITE_PATH New API's database?", err)
	}
	if run.checker, err = ledger.NewChecker(options, rating.Compiler); err != nil {
		return nil, fmt.Errorf("check bills: the prices in the database cannot be used: %w", err)
	}
	if run.logs, err = c.openLogs(ctx); err != nil {
		return nil, fmt.Errorf("check bills: %w; -from names another database", err)
	}
	return run, run.resume(ctx, span, f.restart)
}

func (b *billsCheck) close() {
	if b.logs != nil {
		logClose(b.call.log, "New API's logs", b.logs.Close())
	}
	if b.db != nil {
		logClose(b.call.log, "database", b.db.Close())
	}
}

// span reads -since and -until.
func (f *billsFlags) span(now time.Time) (span usagelog.BillSpan, err error) {
	if span.Since, err = timeOf("-since", f.since, now); err != nil {
		return span, err
	}
	if span.Until, err = timeOf("-until", f.until, now); err != nil {
		return span, err
	}
	if span.Until != 0 && span.Until <= span.Since {
		return span, usagef("import: -until %s is not after -since %s", f.until, f.since)
	}
	return span, nil
}

// timeOf reads a time of the command line as Unix seconds; 0 if there is none.
func timeOf(name, text string, now time.Time) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02T15:04:05", time.DateOnly} {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil && at.Unix() > 0 {
			return at.Unix(), nil
		}
	}
	age, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n int
		n, err = strconv.Atoi(days)
		const most = 36500 // a hundred years
		if age = time.Duration(n) * 24 * time.Hour; n < 0 || n > most {
			err = errors.New("out of range")
		}
	}
	if err != nil || age < 0 {
		return 0, usagef("import %s %q: a date (2026-11-01), a time (2026-11-01T08:00:00Z), or an age (30d, 12h) is needed", name, text)
	}
	return max(now.Add(-age).Unix(), 1), nil
}

// resume takes up the check that the state file holds, if it is this one and its prices are still those of the database.
func (b *billsCheck) resume(ctx context.Context, span usagelog.BillSpan, restart bool) error {
	place, err := b.logs.Place(ctx)
	if err != nil {
		return err
	}
	fresh := newBillsReport(b.checker.Book(), place, span)
	b.state = billsRun{Kind: billsKind, Span: span, Report: fresh}
	text, err := os.ReadFile(b.path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && restart && isBillsState(text):
		return nil
	case err != nil:
		return fmt.Errorf("check bills: read the state file: %w", err)
	case !isBillsState(text):
		return usagef("import: %s is no state file of -check-bills and is left alone; name another with -state", b.path)
	}
	var old billsRun
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("check bills: read the state file %s: %w; -restart begins anew", b.path, err)
	}
	if old.Report == nil || old.Span != span || old.Report.Source != fresh.Source || old.Report.Book != fresh.Book {
		fmt.Fprintln(b.call.stderr, "import: the check that was stopped was of another time, database or price table; this one begins anew")
		return nil
	}
	b.state = old
	fmt.Fprintf(b.call.stderr, "import: going on after %d bills\n", old.Report.Bills)
	return nil
}

func isBillsState(text []byte) bool {
	var head struct{ Kind string }
	return json.Unmarshal(text, &head) == nil && head.Kind == billsKind
}

// read rates what is left.
func (b *billsCheck) read(ctx context.Context) error {
	span := b.state.Span
	b.began = time.Now()
	b.said, b.saved = b.began, b.began
	if b.state.At == (usagelog.BillsAt{}) {
		at, any, err := b.logs.FindBills(ctx, span)
		if err != nil || !any {
			return err
		}
		b.state.At, b.state.Next = at, at.First
	}
	b.next, b.spent = b.state.Next, b.state.Report.Seconds
	rest := usagelog.BillsAt{First: b.state.Next, Last: b.state.At.Last}
	err := b.logs.Bills(ctx, span, rest, func(bills []ledger.LoggedBill, next int64) error { return b.batch(ctx, bills, next) })
	b.state.Report.Seconds = b.spent + time.Since(b.began).Seconds()
	if err != nil {
		return fmt.Errorf("%w; run it again to go on", err)
	}
	return nil
}

// batch rates some bills, and from time to time says how far it is and writes that down.
func (b *billsCheck) batch(ctx context.Context, bills []ledger.LoggedBill, next int64) error {
	if err := b.findGroups(ctx, bills); err != nil {
		return err
	}
	for i := range bills {
		bill := &bills[i]
		bill.UserGroup = b.groups[bill.UserID]
		out := b.checker.Check(bill)
		b.state.Report.add(bill, &out)
	}
	b.rows += int64(len(bills))
	now := time.Now()
	if now.Sub(b.said) >= progressEvery {
		b.said = now
		b.say(now)
	}
	// The state may only be written where reading can go on: see usagelog.Logs.Bills.
	if next == 0 {
		return ctx.Err()
	}
	b.state.Next = next
	if now.Sub(b.saved) >= saveEvery || ctx.Err() != nil {
		b.saved = now
		if err := b.save(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// say prints the progress. The share is of ids, or of seconds, which are dense enough for that.
func (b *billsCheck) say(now time.Time) {
	at := b.state.At
	done := float64(b.state.Next-at.First) / float64(at.Last+1-at.First)
	here := float64(b.state.Next-b.next) / float64(at.Last+1-b.next)
	passed := now.Sub(b.began)
	left := "?"
	if here > 0 {
		left = time.Duration(float64(passed) * (1 - here) / here).Round(time.Second).String()
	}
	fmt.Fprintf(b.call.stderr, "import: %d bills, %.0f%%, %.0f rows/s, about %s left; %d differ\n",
		b.state.Report.Bills, 100*done, float64(b.rows)/passed.Seconds(), left, b.state.Report.of(ledger.BillDiffers).Bills)
}

// save writes the state so that a kill leaves the old file or the new one.
func (b *billsCheck) save() error {
	b.state.Report.Seconds = b.spent + time.Since(b.began).Seconds()
	text, err := json.Marshal(&b.state)
	if err != nil {
		return fmt.Errorf("check bills: %w", err)
	}
	if err := writeFile(b.path, text); err != nil {
		return fmt.Errorf("check bills: write the state file: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole.
func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err //nolint:wrapcheck // the caller says what it was for
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err //nolint:wrapcheck // the caller says what it was for
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err //nolint:wrapcheck // the caller says what it was for
}

// findGroups looks up the groups of the users of some bills.
func (b *billsCheck) findGroups(ctx context.Context, bills []ledger.LoggedBill) error {
	var missing []int64
	if len(b.groups) > maxGroups {
		b.groups = make(map[int64]string)
	}
	for i := range bills {
		id := bills[i].UserID
		if _, known := b.groups[id]; !known {
			b.groups[id] = "" // of a user that is gone: no group has a ratio of its own for it
			missing = append(missing, id)
		}
	}
	found, err := b.db.UserGroups(ctx, missing)
	if err != nil {
		return fmt.Errorf("check bills: %w", err)
	}
	for id, group := range found {
		b.groups[id] = group
	}
	return nil
}
