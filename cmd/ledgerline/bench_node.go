package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"syscall"
	"time"
)

// The signals that begin and end a profile of the node being measured.
const (
	beginProfile = syscall.SIGUSR1
	endProfile   = syscall.SIGUSR2
)

// benchNode serves like the node itself, and writes profiles of the time between two signals. It exists so that the
// product needs no door for profiles.
func benchNode(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := newFlags("bench node", "A node that writes profiles of the time between the signals USR1 and USR2.", stderr)
	path := flags.String("profile", "", "path of the profiles, without -N.cpu and -N.allocs")
	half := flags.String("role", wholeNode.command, "serve, relay or consume")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	r, ok := map[string]role{wholeNode.command: wholeNode, relayHalf.command: relayHalf, consumeHalf.command: consumeHalf}[*half]
	if !ok {
		return usagef("bench node: -role %q: serve, relay or consume is needed", *half)
	}
	if *path == "" {
		return usagef("bench node: -profile is needed")
	}
	defer profileOnSignal(ctx, *path, stderr)()
	return serveRole(ctx, r, nil, getenv, stdout, stderr)
}

// profileOnSignal profiles from each beginProfile to the next endProfile, until ctx ends. The function returned frees the signals.
func profileOnSignal(ctx context.Context, path string, stderr io.Writer) (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, beginProfile, endProfile)
	go profiles(ctx, signals, path, stderr)
	return func() { signal.Stop(signals) }
}

func profiles(ctx context.Context, signals <-chan os.Signal, path string, stderr io.Writer) {
	var p *profile
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			var err error
			switch {
			case s == beginProfile && p == nil:
				p, err = startProfile(fmt.Sprintf("%s-%d", path, n))
			case s == endProfile && p != nil:
				err = p.end()
				p = nil
				n++
			}
			if err != nil {
				fmt.Fprintln(stderr, "bench node:", err)
			}
		}
	}
}

// profile is one under way.
type profile struct {
	path   string
	cpu    *os.File
	before runtime.MemStats
	waited time.Duration // for mutexes, all goroutines together, until it began
}

func startProfile(path string) (*profile, error) {
	p := &profile{path: path}
	var err error
	if err = writeProfile(path+".allocs-before", "allocs"); err != nil {
		return nil, err
	}
	if p.cpu, err = os.Create(path + ".cpu"); err != nil {
		return nil, fmt.Errorf("make CPU profile: %w", err)
	}
	runtime.SetMutexProfileFraction(100)
	runtime.ReadMemStats(&p.before)
	p.waited = mutexWait()
	if err := pprof.StartCPUProfile(p.cpu); err != nil {
		return nil, errors.Join(fmt.Errorf("start CPU profile: %w", err), p.cpu.Close())
	}
	return p, nil
}

// end writes the profiles, and last what was allocated in between as a line of text: pprof's figures are samples.
func (p *profile) end() error {
	pprof.StopCPUProfile()
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	text := fmt.Sprintf("allocations %d\nbytes %d\ncollections %d\nwaited for mutexes, ns %d\n",
		after.Mallocs-p.before.Mallocs, after.TotalAlloc-p.before.TotalAlloc, after.NumGC-p.before.NumGC, mutexWait()-p.waited)
	text += fmt.Sprintf("heap in use %d\nheap kept beside %d\nstacks in use %d\nruntime %d\n", after.HeapInuse, after.HeapIdle-after.HeapReleased,
		after.StackSys, after.MSpanSys+after.MCacheSys+after.BuckHashSys+after.GCSys+after.OtherSys)
	err := errors.Join(p.cpu.Close(), writeProfile(p.path+".allocs", "allocs"), writeProfile(p.path+".mutex", "mutex"), writeProfile(p.path+".goroutines", "goroutine"))
	runtime.GC() // so that what lives can be told from what waits to be collected
	runtime.ReadMemStats(&after)
	text += fmt.Sprintf("heap alive %d\nstacks alive %d\ngoroutines %d\n", after.HeapAlloc, after.StackInuse, runtime.NumGoroutine())
	if err := errors.Join(err, writeProfile(p.path+".heap", "heap")); err != nil {
		return err
	}
	return os.WriteFile(p.path+".memory", []byte(text), 0o600)
}

// mutexWait is how long goroutines have waited for mutexes so far, all together.
func mutexWait() time.Duration {
	sample := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(sample)
	return time.Duration(sample[0].Value.Float64() * float64(time.Second))
}

func writeProfile(path, name string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make %s profile: %w", name, err)
	}
	if err := pprof.Lookup(name).WriteTo(f, 0); err != nil {
		return errors.Join(fmt.Errorf("write %s profile: %w", name, err), f.Close())
	}
	return f.Close()
}
