package main

import (
	"flag"
	"io"
	"slices"
	"strings"
	"time"
)

// benchOptions are the same for every target of a run, so that the figures are comparable.
type benchOptions struct {
	duration    time.Duration
	concurrency int
	runs        int
	answerBytes int
	chunks      int
	only        string
	kind        string
	pause       time.Duration
	paced       int
	profile     string
	base        string
	measure     []string
	streams     int
	hold        time.Duration
	idle        int
	readme      string
	json        bool
	verbose     bool
}

// What can be measured. The default is the tables: the rest takes minutes.
const (
	measureTables   = "tables"
	measureLatency  = "latency"
	measureStreams  = "streams"
	measureIdle     = "idle"
	measureOverload = "overload"
)

var measures = []string{measureTables, measureLatency, measureStreams, measureIdle, measureOverload}

func benchFlags(args []string, stderr io.Writer) (o benchOptions, err error) {
	flags := newFlags("bench", "Requests and CPU beside a bare reverse proxy (make bench). There are bench consumers, steps, growth and upstream, too; each has -h.", stderr)
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "of one measurement")
	flags.IntVar(&o.concurrency, "c", 32, "clients at once")
	flags.IntVar(&o.runs, "runs", 5, "measurements of each target, in turn; medians are printed, with the spread")
	flags.IntVar(&o.answerBytes, "bytes", 1024, "size of a plain answer's text")
	flags.IntVar(&o.chunks, "chunks", 256, "chunks of a streamed answer")
	flags.StringVar(&o.only, "only", "", "targets, separated by commas: direct, proxy, embedded, engines; empty: all that can run")
	flags.StringVar(&o.kind, "kind", "", strings.Join(kinds, ", ")+"; empty: all")
	pacedFlags(flags, &o)
	what := flags.String("measure", measureTables, "what to measure, separated by commas: "+strings.Join(measures, ", "))
	flags.IntVar(&o.streams, "streams", 1000, "streams of -measure streams, at two chunks a second each")
	flags.DurationVar(&o.hold, "hold", 20*time.Second, "how long the streams of -measure streams are all open together")
	flags.IntVar(&o.idle, "idle", 10_000, "connections of -measure idle")
	flags.StringVar(&o.readme, "readme", "", "file whose table of figures is written anew from the tables")
	flags.StringVar(&o.profile, "profile", "", "folder for CPU and allocation profiles of the relay; they cost it some percent")
	flags.StringVar(&o.base, "base", "", "another build of this program: its relay is measured in turn with this one's, and compared")
	flags.BoolVar(&o.json, "json", false, "print one JSON object instead of tables")
	flags.BoolVar(&o.verbose, "v", false, "show what the processes log")
	if err := parseFlags(flags, args); err != nil {
		return o, err
	}
	o.measure = strings.Split(*what, ",")
	return o, o.check()
}

func pacedFlags(flags *flag.FlagSet, o *benchOptions) {
	flags.DurationVar(&o.pause, "pause", 10*time.Millisecond, "between two chunks of a paced stream; models send 20 to 100 a second")
	flags.IntVar(&o.paced, "paced", 128, "clients at once of paced streams")
}

func (o *benchOptions) check() error {
	if o.duration < 100*time.Millisecond || o.concurrency < 1 || o.runs < 1 || o.answerBytes < 1 || o.chunks < 1 {
		return usagef("bench: -duration from 100ms, and -c, -runs, -bytes and -chunks from 1 are needed")
	}
	if o.streams < 1 || o.hold < time.Second || o.idle < 1 {
		return usagef("bench: -hold from 1s, and -streams and -idle from 1 are needed")
	}
	if o.kind != "" && !slices.Contains(kinds, o.kind) {
		return usagef("bench: -kind %q: %s are allowed", o.kind, strings.Join(kinds, ", "))
	}
	if o.pause < time.Millisecond || o.paced < 1 {
		return usagef("bench: -pause from 1ms, and -paced from 1 are needed")
	}
	for _, m := range o.measure {
		if !slices.Contains(measures, m) {
			return usagef("bench: -measure %q: %s are allowed", m, strings.Join(measures, ", "))
		}
	}
	if o.readme != "" && (o.kind != "" || !slices.Contains(o.measure, measureTables)) {
		return usagef("bench: -readme needs all tables: leave out -kind, and have tables in -measure")
	}
	return nil
}

// idleConns is how many connections a proxy or relay keeps to the upstream: enough for every client of a load.
func (o *benchOptions) idleConns() int { return 2 * max(o.concurrency, o.paced) }
