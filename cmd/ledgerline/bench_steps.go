package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// stepsRow is where the time of one target's requests went, at one load.
type stepsRow struct {
	target, kind string
	clients      int
	cpu          map[string]float64 // µs a request by step, of the target's own process
	allocations  map[string]float64 // a request, by step
	all          stepsTotals
}

// stepsTotals are for a request.
type stepsTotals struct {
	cpu, allocations, bytes float64 // µs; a number; bytes
	waited                  float64 // µs that goroutines waited for mutexes, all together
	collections             float64 // of garbage
	calls                   float64 // read and write calls of the system, sockets and files
	switches                float64 // times that a thread gave up its processor to wait
}

// benchSteps writes down where each microsecond of the relay's own process goes, from profiles at several loads, beside the bare reverse
// proxy's. It needs the go command, which reads the profiles.
func benchSteps(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var o benchOptions
	flags := newFlags("bench steps", "Where each microsecond of the relay's process goes, from profiles at several loads (make bench-steps).", stderr)
	flags.DurationVar(&o.duration, "duration", 8*time.Second, "of one profile, which has a hundred samples for each second of CPU time")
	flags.StringVar(&o.only, "only", "", "targets, separated by commas: proxy, embedded, engines; empty: all that can run")
	flags.StringVar(&o.readme, "readme", "", "file whose tables of steps are written anew")
	flags.BoolVar(&o.verbose, "v", false, "show what the processes log")
	pacedFlags(flags, &o)
	loads := flags.String("c", "1,32,128", "clients at once, separated by commas")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	clients, err := sizes("steps: -c", *loads)
	if err != nil {
		return err
	}
	if o.duration < 100*time.Millisecond || len(clients) == 0 || o.pause < time.Millisecond || o.paced < 1 {
		return usagef("bench steps: -duration from 100ms, a number of clients in -c, -pause from 1ms, and -paced from 1 are needed")
	}
	dir, err := os.MkdirTemp("", "ledgerline-bench-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	o.answerBytes, o.chunks, o.profile, o.concurrency = 1024, 256, dir, slices.Max(clients)
	b := &bench{o: o, dir: dir, getenv: getenv, out: stdout, errs: stderr}
	defer b.close()
	if b.upstream, err = b.start(ctx, "mock upstream", "bench", "upstream"); err != nil {
		return err
	}
	targets, err := b.targets(ctx)
	if err != nil {
		return err
	}
	rows, err := b.profileAll(ctx, targets, clients)
	if err != nil {
		return err
	}
	text := b.stepsText(rows)
	fmt.Fprint(stdout, text)
	if o.readme == "" {
		return nil
	}
	return rewrite(o.readme, stepsBegin, text, stepsEnd)
}

func (b *bench) profileAll(ctx context.Context, targets []target, clients []int) ([]stepsRow, error) {
	var rows []stepsRow
	profiles := 0
	for _, kind := range kinds {
		loads := clients
		if kind == kindPaced {
			loads = []int{b.o.paced}
		}
		for _, n := range loads {
			b.o.concurrency = n
			work, err := b.workload(kind)
			if err != nil {
				return nil, err
			}
			profiles++
			for i := range targets {
				if targets[i].child == nil {
					continue
				}
				r := stepsRow{target: targets[i].name, kind: kind, clients: n}
				if err := b.profileOne(ctx, &targets[i], &work, profiles, &r); err != nil {
					return nil, fmt.Errorf("profile %s: %w", r.target, err)
				}
				rows = append(rows, r)
			}
		}
	}
	return rows, nil
}

// profileOne loads a target while it profiles itself for the n-th time.
func (b *bench) profileOne(ctx context.Context, t *target, w *workload, n int, r *stepsRow) error {
	if _, err := b.load(ctx, t, w, benchWarmup); err != nil {
		return err
	}
	if err := settle(ctx, t); err != nil {
		return err
	}
	pid := t.child.pid()
	b.signal(t, beginProfile)
	before, err := usageOf(pid)
	if err != nil {
		return err
	}
	load, err := b.load(ctx, t, w, b.o.duration)
	if err != nil {
		return err
	}
	if err := settle(ctx, t); err != nil {
		return err
	}
	after, err := usageOf(pid)
	if err != nil {
		return err
	}
	b.signal(t, endProfile)
	path := fmt.Sprintf("%s-%d", b.profilePath(t.name), n)
	memory, err := profileMemory(ctx, path+".memory")
	if err != nil {
		return err
	}
	requests := float64(len(load.latencies))
	if requests == 0 {
		return errors.New("no request succeeded")
	}
	r.all = stepsTotals{
		cpu: (after.cpu - before.cpu) / requests, calls: (after.calls - before.calls) / requests, switches: (after.switches - before.switches) / requests,
		allocations: memory["allocations"] / requests, bytes: memory["bytes"] / requests,
		waited: memory["waited for mutexes, ns"] / 1e3 / requests, collections: memory["collections"] / requests,
	}
	monitor := (after.monitor - before.monitor) / requests // Go's profiles do not show it
	if r.cpu, err = b.shares(ctx, r.all.cpu-monitor, path+".cpu"); err != nil {
		return err
	}
	r.cpu[monitorStep] += monitor
	r.allocations, err = b.shares(ctx, r.all.allocations, "-sample_index=alloc_objects", "-base", path+".allocs-before", path+".allocs")
	return err
}

// shares divides a total among the steps as a profile says.
func (b *bench) shares(ctx context.Context, total float64, args ...string) (map[string]float64, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-traces", "-unit=ns"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read a profile with the go command: %w: %s", err, said.Bytes())
	}
	sums, err := readTraces(bytes.NewReader(out))
	if err != nil {
		return nil, err
	}
	whole := 0.0
	for _, v := range sums {
		whole += v
	}
	for name := range sums {
		sums[name] *= total / whole
	}
	return sums, nil
}

// usage is what a process has used so far: µs, and numbers.
type usage struct {
	cpu, calls, switches float64
	monitor              float64 // part of cpu: the runtime's monitor thread
}

func usageOf(pid int) (u usage, err error) {
	cpu, _ := procStat(pid)
	u.cpu = float64(cpu.Microseconds())
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	done, err := numbers(filepath.Join(dir, "io"))
	if err != nil {
		return u, err
	}
	u.calls = done["syscr"] + done["syscw"]
	threads, err := threadsOf(pid)
	if err != nil {
		return u, err
	}
	for _, tid := range threads {
		if status, err := numbers(filepath.Join(dir, "task", strconv.Itoa(tid), "status")); err == nil { // else the thread has ended
			u.switches += status["voluntary_ctxt_switches"]
		}
	}
	if len(threads) > 1 { // a Go program starts the monitor before it starts any other thread
		cpu, _ := readStat(filepath.Join(dir, "task", strconv.Itoa(threads[1]), "stat"))
		u.monitor = float64(cpu.Microseconds())
	}
	return u, nil
}

// threadsOf lists the threads of a process, the oldest first.
func threadsOf(pid int) ([]int, error) {
	paths, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*"))
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	tids := make([]int, len(paths))
	for i, path := range paths {
		if tids[i], err = strconv.Atoi(filepath.Base(path)); err != nil {
			return nil, fmt.Errorf("list threads: %w", err)
		}
	}
	slices.Sort(tids)
	return tids, nil
}

// profileMemory waits for the file that a process writes when its profile is complete.
func profileMemory(ctx context.Context, path string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, childPatience)
	defer cancel()
	for {
		if n, err := numbers(path); err == nil && len(n) > 0 {
			return n, nil
		}
		select {
		case <-time.After(idleLook):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a profile: %w", context.Cause(ctx))
		}
	}
}

// numbers reads a file of lines with a name and a number.
func numbers(path string) (map[string]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read figures of a process (Linux has them): %w", err)
	}
	out := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		if v, err := strconv.ParseFloat(f[len(f)-1], 64); err == nil {
			out[strings.TrimSuffix(strings.Join(f[:len(f)-1], " "), ":")] = v
		}
	}
	return out, nil
}

// The tables of steps stand between these lines.
const (
	stepsBegin = "<!-- steps: written by ledgerline bench steps -readme -->\n"
	stepsEnd   = "<!-- end of steps -->\n"
)

// stepsText is three tables: time and allocations by step, and what the steps do not show.
func (b *bench) stepsText(rows []stepsRow) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d cores, profiles of %s each; c is the number of clients.\n", runtime.NumCPU(), b.o.duration)
	for _, kind := range kinds {
		what, _ := b.o.describe(kind)
		of := slices.DeleteFunc(slices.Clone(rows), func(r stepsRow) bool { return r.kind != kind })
		stepsTable(&out, "µs/request, "+what, of, 1, func(r *stepsRow) (map[string]float64, float64) { return r.cpu, r.all.cpu })
		stepsTable(&out, "allocations/request, "+what, of, 0, func(r *stepsRow) (map[string]float64, float64) { return r.allocations, r.all.allocations })
	}
	out.WriteString("\n| a request | read and write calls | waits of a thread | collections | KB allocated | µs waited for mutexes |\n| --- | --- | --- | --- | --- | --- |\n")
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(&out, "| %s, %s, c = %d | %.1f | %.2f | %.4f | %.1f | %.1f |\n",
			r.kind, r.target, r.clients, r.all.calls, r.all.switches, r.all.collections, r.all.bytes/1024, r.all.waited)
	}
	return out.String()
}

// stepsTable has a line for each step and a column for each target and load.
func stepsTable(out *strings.Builder, title string, rows []stepsRow, digits int, figures func(*stepsRow) (byStep map[string]float64, all float64)) {
	fmt.Fprintf(out, "\n| %s |", title)
	for i := range rows {
		fmt.Fprintf(out, " %s, c = %d |", rows[i].target, rows[i].clients)
	}
	out.WriteString("\n| --- |" + strings.Repeat(" --- |", len(rows)) + "\n")
	line := func(name string, value func(*stepsRow) float64) {
		fmt.Fprintf(out, "| %s |", name)
		for i := range rows {
			if v := value(&rows[i]); v == 0 {
				out.WriteString(" |")
			} else {
				fmt.Fprintf(out, " %.*f |", digits, v)
			}
		}
		out.WriteString("\n")
	}
	for _, s := range append(slices.Clone(steps), step{name: otherStep}) {
		line(s.name, func(r *stepsRow) float64 { byStep, _ := figures(r); return byStep[s.name] })
	}
	line("all", func(r *stepsRow) float64 { _, all := figures(r); return all })
}
