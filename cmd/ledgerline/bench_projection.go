package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"ledgerline/consumers"
	"ledgerline/consumers/audit"
)

// projected is what one projection cost for the events it folded. Times are CPU.
type projected struct {
	Events  int64                    `json:"events"`
	Wall    time.Duration            `json:"wall_ns"`
	Own     time.Duration            `json:"own_ns"`
	Engines map[string]time.Duration `json:"engines_ns"`
}

// statusEvery is how often a projection is asked how far it is; the answer is in memory.
const statusEvery = 20 * time.Millisecond

// benchProjection is a process of its own that takes one projection from where it stands to the end of the log, and prints what that
// cost: the projection alone, without what else a node does.
func benchProjection(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("bench projection", "One projection in a process of its own, from where it stands to the end of the log.", stderr)
	name := flags.String("name", "", "quota, usagelog or replay")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	n, err := newNode(ctx, cfg, consumeHalf, discardLogger())
	if err != nil {
		return err
	}
	defer n.close()
	work := map[string]func(context.Context) (int64, error){
		"quota": func(ctx context.Context) (int64, error) {
			return n.catchUp(ctx, n.quotas, func(ctx context.Context, p int) (int64, error) {
				st, err := n.db.Partition(ctx, p)
				return st.Offset, err
			})
		},
		"usagelog": func(ctx context.Context) (int64, error) {
			return n.catchUp(ctx, n.usages, func(ctx context.Context, p int) (int64, error) {
				at, err := n.usage.Position(ctx, p)
				return at.Offset, err
			})
		},
		"replay": func(ctx context.Context) (int64, error) {
			report, err := audit.Replay(ctx, n.auditStores(), audit.ReplayOptions{Source: audit.FromLog, Target: audit.ToBalances})
			if err != nil {
				return 0, err
			}
			return report.Events, nil
		},
	}[*name]
	if work == nil {
		return usagef("bench projection: -name %q: quota, usagelog or replay is needed", *name)
	}
	pids := map[string]int{}
	for variable, engine := range engineNames {
		if pid := listenerOf(getenv(variable)); pid > 0 {
			pids[engine] = pid
		}
	}
	before, own := cpuByName(pids), cpuOf([]int{os.Getpid()})
	begun := time.Now()
	p := projected{Engines: map[string]time.Duration{}}
	if p.Events, err = work(ctx); err != nil {
		return err
	}
	p.Wall, p.Own = time.Since(begun), cpuOf([]int{os.Getpid()})-own
	for name, cpu := range cpuByName(pids) {
		p.Engines[name] = cpu - before[name]
	}
	return json.NewEncoder(stdout).Encode(p)
}

func cpuByName(pids map[string]int) map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, pid := range pids {
		out[name] = cpuOf([]int{pid})
	}
	return out
}

// catchUp runs one projection until it has all that is in the log now, and returns how many records that were.
func (n *node) catchUp(ctx context.Context, runner *consumers.Runner, position func(context.Context, int) (int64, error)) (total int64, err error) {
	ends := make([]int64, n.stores.log.Partitions)
	for p := range ends {
		begin, err := position(ctx, p)
		if err != nil {
			return 0, fmt.Errorf("read position: %w", err)
		}
		if _, ends[p], err = n.events.Bounds(ctx, p); err != nil {
			return 0, fmt.Errorf("read the end of the log: %w", err)
		}
		total += ends[p] - begin
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	defer func() {
		stop()
		<-done //nolint:errcheck // it ended because it was told to
	}()
	for {
		select {
		case <-time.After(statusEvery):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		reached := 0
		for _, s := range runner.Status() {
			if s.State != consumers.StateStarting && s.Offset >= ends[s.Partition] {
				reached++
			}
		}
		if reached == len(ends) {
			return total, nil
		}
	}
}

// project runs benchProjection in a process of its own.
func (b *bench) project(ctx context.Context, env map[string]string, name string) (p projected, err error) {
	self, err := os.Executable()
	if err != nil {
		return p, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, "bench", "projection", "-name", name)
	var said lastWords
	cmd.Stderr = &said
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.Output()
	if err != nil {
		return p, fmt.Errorf("measure %s: %w: %s", name, err, &said)
	}
	if err := json.Unmarshal(out, &p); err != nil {
		return p, fmt.Errorf("measure %s: read what it printed: %w", name, err)
	}
	return p, nil
}
