package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	chaosSeed  = flag.Uint64("chaos.seed", 0, "seed of TestChaos; 0: a new one, which is printed, or excerptSeed for the excerpt")
	chaosFor   = flag.Duration("chaos.for", 0, "how long TestChaos goes on beginning rounds of all faults; 0: one round of the excerpt")
	chaosOnly  = flag.String("chaos.only", "", "only the faults of TestChaos whose names contain this")
	chaosTable = flag.Bool("chaos.table", false, "write the table of what TestChaos tried into README.md")
	chaosFrom  = flag.String("chaos.from", "HEAD~1", "the commit that TestRollingUpdate updates from")
)

// excerptSeed is the excerpt's, so that two changes are judged by the same faults in the same order. New ones are make chaos's to find.
const excerptSeed = 1

// Everything is killed, stopped, frozen, cut off, delayed, filled, emptied and set back, in the order of a seed, under
// traffic: streams and plain requests, three relays behind nginx, two consumers of each kind. Requests go on being served
// while Kafka, MySQL or ClickHouse are away (P3). After every round each bill equals what the upstream served, or lies between
// what the client got and what the upstream produced where a request was cut, nothing is lost, doubled or overspent, and all
// stores agree (P1, P2, P4).
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	switch {
	case seed != 0:
	case *chaosFor == 0:
		seed = excerptSeed
	default:
		seed = rand.Uint64()
	}
	t.Logf("go test ./compose/e2e -run TestChaos -chaos.seed=%d -chaos.for=%s", seed, *chaosFor)
	g := newStage(t, seed)
	began := time.Now()
	for round := uint64(1); round == 1 || time.Since(began) < *chaosFor; round++ {
		g.begin(seed + round)
		g.served(goesOn)
		g.redisSaved()
		for _, f := range g.round() {
			g.inject(f)
		}
		g.settle()
		g.table.calm()
		if t.Failed() {
			break
		}
		g.table.rounds++
		t.Logf("round %d: all books agree", round)
	}
	g.table.end(g)
}

// round is the faults of one round, in an order of the seed's.
func (g *stage) round() []fault {
	all := slices.DeleteFunc(faults(), func(f fault) bool {
		return *chaosFor == 0 && *chaosOnly == "" && !f.excerpt || !strings.Contains(f.name, *chaosOnly)
	})
	g.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// inject plays a fault and waits until the traffic goes on.
func (g *stage) inject(f fault) {
	g.t.Helper()
	g.table.begin(f.name)
	began, before := time.Now(), g.load.done.Load()
	f.play(g)
	repaired, done := time.Now(), int(g.load.done.Load()-before)
	g.served(goesOn)
	g.table.ended(done, time.Since(repaired))
	g.t.Logf("%s: %s, %d requests meanwhile, went on %s later", f.name, repaired.Sub(began).Round(time.Millisecond), done, time.Since(repaired).Round(time.Millisecond))
}

// faultTable gathers what was tried and what came of it.
type faultTable struct {
	t      testing.TB
	seed   uint64
	rounds int
	began  time.Time
	played []playing // in order of time
	rows   map[string]*faultRow
}

// playing is a fault from its beginning until the next one begins.
type playing struct {
	from time.Time
	name string // "": none
}

type faultRow struct {
	times, done int
	longest     time.Duration
	bills       findings
	once        int // requests of clients that do not retry; none of them failed
	note        string
}

func (f *faultTable) times() (n int) {
	for _, r := range f.rows {
		n += r.times
	}
	return n
}

func newFaultTable(t testing.TB, seed uint64) *faultTable {
	return &faultTable{t: t, seed: seed, began: time.Now(), rows: map[string]*faultRow{}}
}

func (f *faultTable) begin(name string) {
	if f.rows[name] == nil {
		f.rows[name] = &faultRow{}
	}
	f.played = append(f.played, playing{time.Now(), name})
}

// current is the row of the fault that is being played.
func (f *faultTable) current() *faultRow { return f.rows[f.played[len(f.played)-1].name] }

// calm says that no fault is being played any more.
func (f *faultTable) calm() { f.played = append(f.played, playing{from: time.Now()}) }

// judge gives every bill to the fault in whose time it falls: from a fault's beginning until the next one's.
func (f *faultTable) judge(all []finding) {
	for _, r := range f.rows {
		r.bills = findings{}
	}
	for _, v := range all {
		after, _ := slices.BinarySearchFunc(f.played, v.when, func(p playing, t time.Time) int { return p.from.Compare(t) })
		if after > 0 && f.played[after-1].name != "" {
			f.rows[f.played[after-1].name].bills.add(v)
		}
	}
}

// ended counts a fault that was played and made good.
func (f *faultTable) ended(done int, wentOn time.Duration) {
	r := f.current()
	r.times++
	r.done += done
	r.longest = max(r.longest, wentOn)
}

// The table lies between these lines of README.md.
const tableBegins, tableEnds = "<!-- the table of faults: written by make chaos -->\n", "<!-- end of the table -->\n"

// end prints the table, and writes it down if that was asked for and nothing failed.
func (f *faultTable) end(g *stage) {
	f.judge(g.books.judged)
	all := tallied(g.books.judged)
	var b strings.Builder
	fmt.Fprintf(&b, "%s, seed %d, %d rounds with %d faults in %s, %d requests. After every round: none lost, none doubled, nothing overspent, and log, MySQL, Redis and ClickHouse agree. "+
		"In the end %s.\n\n", time.Now().UTC().Format(time.DateOnly), f.seed, f.rounds, f.times(), time.Since(f.began).Round(time.Second), len(g.load.all), all)
	b.WriteString("| fault | times | answers meanwhile | traffic went on after, at most | bills of its time: exact | cut, within bounds | recovered | wrong | |\n" +
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, fault := range faults() {
		r := f.rows[fault.name]
		if r == nil || r.times == 0 {
			continue
		}
		note := r.note
		if r.once > 0 {
			note = fmt.Sprintf("%d requests of such clients, none failed", r.once)
		}
		// A wrong bill ends the run: a table that has one is printed, and not written down.
		wrong := "0"
		if f.t.Failed() {
			wrong = "?"
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %.1f s | %d | %d | %d | %s | %s |\n", fault.name, r.times, r.done, r.longest.Seconds(), r.bills.exact, r.bills.bounded, r.bills.recovered, wrong, note)
	}
	f.t.Log("\n" + b.String())
	if !*chaosTable || f.t.Failed() {
		return
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		f.t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), tableBegins)
	_, after, ends := strings.Cut(rest, tableEnds)
	if !found || !ends {
		f.t.Fatal("README.md has no place for the table")
	}
	if err := os.WriteFile("README.md", []byte(before+tableBegins+"\n"+b.String()+"\n"+tableEnds+after), 0o644); err != nil {
		f.t.Fatal(err)
	}
}
