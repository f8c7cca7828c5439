package sim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

var (
	workers  = flag.Int("workers", runtime.GOMAXPROCS(0), "processes that run histories, each on one processor")
	stride   = flag.Uint64("stride", 1, "of a worker: from one seed to the next")
	totalsTo = flag.String("totals", "", "of a worker: the file for what it counted")
)

const (
	// collectEvery is how many histories run between two runs of the garbage collector; each leaves some 5 MB.
	collectEvery = 16
	// memoryLimit is where the collector runs all the same: the heap of a history that has gone wild.
	memoryLimit = 1 << 30
)

// TestMain gives this process one processor, and lets no garbage collector into a history. With that, goroutines that could go on at the same
// time do so in one order nearly always, so that a seed is one history; and it is a third cheaper: most of what a history does is to wake
// another goroutine, and with several processors each time one of them is woken for it. More histories at once are more processes.
func TestMain(m *testing.M) {
	flag.Parse()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	os.Exit(m.Run())
}

// seededIDs makes the ids that a history gives out the same each time. It stands in for crypto/rand.Reader.
type seededIDs struct {
	mu     sync.Mutex
	chacha *rand.ChaCha8
}

func seedIDs(seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	uuid.SetRand(&seededIDs{chacha: rand.NewChaCha8(key)})
}

// Read implements io.Reader.
func (s *seededIDs) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chacha.Read(b) //nolint:wrapcheck // it never fails
}

// runSeeds runs the histories of this process, one after the other, until one fails.
func runSeeds(t *testing.T) (total totals) {
	for n := range uint64(*histories) {
		if n%collectEvery == 0 {
			runtime.GC()
		}
		seed := *firstSeed + n**stride
		w := history(t, seed, false)
		total.add(w)
		if w.violated == nil {
			continue
		}
		if *find {
			t.Errorf("found: seed %d: %v", seed, w.violated)
		} else {
			report(t, w)
		}
		break
	}
	return total
}

// runWorkers shares the histories out among processes. One that fails ends the others.
func runWorkers(t *testing.T) (total totals) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	var (
		mu  sync.Mutex
		all sync.WaitGroup
	)
	count := min(*workers, *histories)
	for n := range count {
		all.Go(func() {
			share := (*histories - n + count - 1) / count
			one, out, err := runWorker(ctx, filepath.Join(dir, fmt.Sprint(n)), *firstSeed+uint64(n), uint64(count), share)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				total.plus(&one)
			case ctx.Err() == nil:
				cancel()
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	all.Wait()
	return total
}

func runWorker(ctx context.Context, file string, first, step uint64, count int) (total totals, out []byte, err error) {
	exe, err := os.Executable()
	if err != nil {
		return total, nil, fmt.Errorf("find the test binary: %w", err)
	}
	timeout := time.Duration(0)
	if until, ok := ctx.Deadline(); ok {
		timeout = time.Until(until)
	}
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestHistories$", fmt.Sprint("-test.timeout=", timeout), "-workers=1", fmt.Sprint("-first=", first),
		fmt.Sprint("-stride=", step), fmt.Sprint("-histories=", count), fmt.Sprint("-find=", *find), "-totals="+file)
	if out, err = cmd.CombinedOutput(); err != nil {
		return total, out, fmt.Errorf("histories from seed %d on: %w", first, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return total, out, fmt.Errorf("read what a worker counted: %w", err)
	}
	if err := json.Unmarshal(text, &total); err != nil {
		return total, out, fmt.Errorf("read what a worker counted: %w", err)
	}
	return total, out, nil
}
