package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
)

const rateUsage = `usage: ledgerline rate -options DIR FILE.jsonl
       ledgerline rate -model NAME -usage JSON [flags]

The first form rates recorded bills (one JSON object per line) with the options in DIR, a file OPTIONS_SET.json for each
options_set that the bills name, and compares each with the quota that was charged. Exit code 1 if any differ.

The second form explains one bill: each factor and who set it, each kind of token, the rounding, the result. The prices
are those of the database (SQL_DSN, SQLITE_PATH), or of -options: a file of option values, or a directory with -set NAME.

`

// maxBillLine bounds a line of the file: a request with its answer, images included.
const maxBillLine = 32 << 20

// rateFlags is the command line of rate.
type rateFlags struct {
	options string
	one     explainFlags
}

// rateCommand is `ledgerline rate`.
func rateCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("rate", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // its mistakes are reported once, by main
	var f rateFlags
	flags.StringVar(&f.options, "options", "", "`directory` with the option files, or with -model a file of option values")
	f.one.define(flags)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		if _, err := io.WriteString(stdout, rateUsage); err != nil {
			return err //nolint:wrapcheck // standard output
		}
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usagef("rate: %v; see ledgerline rate -h", err)
	}
	explains := f.one.model != ""
	flags.Visit(func(set *flag.Flag) { explains = explains || set.Name != "options" })
	if explains {
		if flags.NArg() > 0 {
			return usagef("rate: unexpected argument %q: -model explains one bill, and a file is rated without it", flags.Arg(0))
		}
		return explainOne(ctx, f, getenv, stdout, stderr)
	}
	if f.options == "" || flags.NArg() != 1 {
		return usagef("rate wants -options DIR and one FILE.jsonl, or -model and -usage; see ledgerline rate -h")
	}
	if info, err := os.Stat(f.options); err != nil {
		return fmt.Errorf("read options: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("read options: %s is not a directory", f.options)
	}
	report, err := rateFile(ctx, f.options, flags.Arg(0))
	if err != nil {
		return err
	}
	if err := report.print(stdout); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	if n := len(report.different); n > 0 {
		return fmt.Errorf("%d of %d bills differ", n, report.total.bills)
	}
	return nil
}

// tally counts the bills of one tag.
type tally struct {
	bills, matched, recounted, different, unsupported int
}

// finding is a bill worth a line of its own.
type finding struct {
	id, tag, model string
	ours, theirs   string
	reason         string
}

// rateReport is the outcome of a file.
type rateReport struct {
	total       tally
	tags        map[string]*tally
	different   []finding
	unsupported []finding
}

// rateFile rates a file line by line.
func rateFile(ctx context.Context, dir, file string) (*rateReport, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read bills: %w", err)
	}
	defer f.Close()
	report := &rateReport{tags: make(map[string]*tally)}
	tariffs := make(map[string]tariff)
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 64<<10), maxBillLine)
	number := 0
	for lines.Scan() {
		number++
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		if err := report.line(lines.Bytes(), dir, tariffs); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: read bills: %w", file, number+1, err)
	}
	return report, nil
}

// line rates one line and files the result.
func (r *rateReport) line(text []byte, dir string, tariffs map[string]tariff) error {
	var bill billLine
	if err := json.Unmarshal(text, &bill); err != nil {
		return fmt.Errorf("decode bill: %w", err)
	}
	if bill.ID == "" || bill.OptionsSet == "" || bill.Model == "" {
		return errors.New("decode bill: id, model and options_set must be there")
	}
	prices, ok := tariffs[bill.OptionsSet]
	if !ok {
		var err error
		if prices, err = loadTariff(dir, bill.OptionsSet); err != nil {
			return err
		}
		tariffs[bill.OptionsSet] = prices
	}
	ours, err := prices.price(bill.billInput)
	if err != nil && !refusesToRate(err) {
		return fmt.Errorf("rate bill %s: %w", bill.ID, err)
	}
	r.file(bill, ours, err)
	return nil
}

func refusesToRate(err error) bool {
	if _, ok := errors.AsType[*ledger.UnpricedError](err); ok {
		return true
	}
	_, ok := errors.AsType[*ledger.UnsupportedError](err)
	return ok
}

// file counts one bill and keeps it if it differs or cannot be rated.
func (r *rateReport) file(bill billLine, ours priced, refused error) {
	t := r.tags[bill.Tag]
	if t == nil {
		t = &tally{}
		r.tags[bill.Tag] = t
	}
	found := finding{id: bill.ID, tag: bill.Tag, model: bill.Model, ours: "none", theirs: "none"}
	if ours.billed && refused == nil {
		found.ours = fmt.Sprint(ours.bill.Quota)
	}
	if bill.Log != nil {
		found.theirs = fmt.Sprint(bill.Log.Quota)
	}
	t.bills++
	r.total.bills++
	switch {
	case refused != nil:
		t.unsupported++
		r.total.unsupported++
		found.reason = refused.Error()
		r.unsupported = append(r.unsupported, found)
	case found.ours == found.theirs:
		t.matched++
		r.total.matched++
	case ours.recounted && bill.Log != nil && ours.tolerable(bill.Log.Quota):
		t.recounted++
		r.total.recounted++
	default:
		t.different++
		r.total.different++
		found.reason = ours.explain()
		r.different = append(r.different, found)
	}
}

// loadTariff reads DIR/SET.json.
func loadTariff(dir, set string) (tariff, error) {
	if set != filepath.Base(set) {
		return tariff{}, fmt.Errorf("read options: options_set %q is not a plain name", set)
	}
	return readTariff(filepath.Join(dir, set+".json"))
}

// readTariff reads a file of option keys and values, maps as JSON objects or as the text that the options table holds.
func readTariff(path string) (tariff, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return tariff{}, fmt.Errorf("read options: %w", err)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return tariff{}, fmt.Errorf("read options: %s: %w", path, err)
	}
	options := make(map[string]string, len(raw))
	for key, value := range raw {
		var s string
		if json.Unmarshal(value, &s) != nil {
			s = string(value)
		}
		options[key] = s
	}
	t, err := tariffOf(options)
	if err != nil {
		return tariff{}, fmt.Errorf("read options: %s: %w", path, err)
	}
	return t, nil
}

// tariffOf makes prices of option values.
func tariffOf(options map[string]string) (t tariff, err error) {
	if t.book, err = ledger.ParsePriceBookWith(options, rating.Compiler(time.Now)); err != nil {
		return tariff{}, err //nolint:wrapcheck // it names the option
	}
	t.autoGroups = []string{"default"} // New API's default
	if groups := options["AutoGroups"]; groups != "" {
		t.autoGroups = nil
		if err := json.Unmarshal([]byte(groups), &t.autoGroups); err != nil {
			return tariff{}, fmt.Errorf("option AutoGroups: a JSON list of groups is needed: %w", err)
		}
	}
	if groups := options["UserUsableGroups"]; groups != "" {
		if err := json.Unmarshal([]byte(groups), &t.usable); err != nil {
			return tariff{}, fmt.Errorf("option UserUsableGroups: a JSON object of labels is needed: %w", err)
		}
	}
	return t, nil
}

// auto resolves the group auto for a user: the first of AutoGroups that the user may use. Which of them has a channel for the
// model is not known here.
func (t *tariff) auto(userGroup string) (string, error) {
	for _, group := range t.autoGroups {
		_, usable := t.usable[group]
		if usable || t.usable == nil || group == userGroup {
			return group, nil
		}
	}
	return "", fmt.Errorf("the key's group is auto, and a user of group %s may use none of AutoGroups (%s)", userGroup, strings.Join(t.autoGroups, ", "))
}

// print writes the report: a table of tags, then each bill that differs or cannot be rated.
func (r *rateReport) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "tag\tbills\tmatched\trecounted\tdifferent\tunsupported")
	row := func(name string, t *tally) {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\n", name, t.bills, t.matched, t.recounted, t.different, t.unsupported)
	}
	for _, tag := range slices.Sorted(maps.Keys(r.tags)) {
		row(tag, r.tags[tag])
	}
	row("total", &r.total)
	for _, list := range []struct {
		title string
		found []finding
	}{{"different", r.different}, {"unsupported", r.unsupported}} {
		if len(list.found) == 0 {
			continue
		}
		fmt.Fprintf(table, "\n%s\tours\ttheirs\ttag\tmodel\treason\n", list.title)
		for _, f := range list.found {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", f.id, f.ours, f.theirs, f.tag, f.model, f.reason)
		}
	}
	fmt.Fprintf(table, "\nrecounted: the upstream reported no tokens, both sides estimate; they agree within %d%% and the price of %d tokens\n", recountPercent, recountTokens)
	return table.Flush()
}
