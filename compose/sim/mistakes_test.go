package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	mistakeSeeds = flag.Int("mistake-histories", 3000, "histories in which a planted mistake must be found")
	blind        = flag.Bool("blind", false, "look for planted mistakes from seed 1 on, to see how many seeds each needs")
)

// mistake is one way to get the protocol wrong. It is planted by replacing text of a source file, when the test of the test is
// built (go build -overlay): what ships knows nothing of it.
type mistake struct {
	name  string
	edits []edit
	near  uint64 // a seed that found it when the simulation was last changed: where to look first. 0: at the beginning
}

type edit struct {
	file, old, new string
}

// The simulation finds every mistake that is planted in it, one at a time: those that the issue names, and those of the models.
func TestMistakesAreFound(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a test binary")
	}
	binary := buildPlanted(t)
	// The same binary without a mistake holds.
	if out, err := runPlanted(t, binary, &mistake{}, 20); err != nil {
		t.Fatalf("with nothing planted: %v\n%s", err, out)
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			out, err := runPlanted(t, binary, &m, *mistakeSeeds)
			if err == nil && m.near > 0 { // it has moved
				m.near = 0
				out, err = runPlanted(t, binary, &m, *mistakeSeeds)
			}
			var exit *exec.ExitError
			switch {
			case err == nil:
				t.Errorf("not found in %d histories", *mistakeSeeds)
			case !errors.As(err, &exit):
				t.Fatal(err)
			default:
				t.Logf("%s (%.1f s)", how(out), time.Since(begun).Seconds())
			}
		})
	}
}

var foundAt = regexp.MustCompile(`found: (seed \d+: .*)|panic: (.*)|(directed_test.go:\d+: .*)`)

// how cuts the finding out of what the binary said.
func how(out []byte) string {
	if m := foundAt.FindSubmatch(out); m != nil {
		return "found by " + string(m[1]) + string(m[2]) + string(m[3])
	}
	return "found: " + string(out[:min(len(out), 500)])
}

func runPlanted(t *testing.T, binary string, m *mistake, histories int) ([]byte, error) {
	t.Helper()
	first := max(1, m.near)
	if *blind {
		first = 1
	} else if m.near > 0 {
		histories = min(histories, 40)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^TestHistories$|^TestDirected", "-test.failfast", "-find", "-workers", "1", "-histories", fmt.Sprint(histories), "-first", fmt.Sprint(first))
	cmd.Env = append(os.Environ(), "SIM_MISTAKE="+m.name)
	return cmd.CombinedOutput()
}

const plantedSource = `// Package planted exists only in the test of the simulation.
package planted

import "os"

var name = os.Getenv("SIM_MISTAKE")

// Is reports whether a mistake is planted.
func Is(mistake string) bool { return name == mistake }
`

// buildPlanted builds this test with all mistakes in it, each behind its name.
func buildPlanted(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	dir := t.TempDir()
	replace := map[string]string{}
	put := func(file, text string) {
		to := filepath.Join(dir, fmt.Sprintf("%d-%s", len(replace), filepath.Base(file)))
		must(t, os.WriteFile(to, []byte(text), 0o600))
		replace[filepath.Join(root, file)] = to
	}
	put("compose/sim/planted/planted.go", plantedSource)
	texts := map[string]string{}
	for _, m := range mistakes {
		for _, e := range m.edits {
			text, known := texts[e.file]
			if !known {
				b, err := os.ReadFile(filepath.Join(root, e.file))
				must(t, err)
				text = strings.Replace(string(b), "import (\n", "import (\n\t\"ledgerline/compose/sim/planted\"\n", 1)
				if !strings.Contains(text, "sim/planted") {
					text = regexp.MustCompile(`(?m)^import ("[^"]*")$`).ReplaceAllString(text, "import (\n\t\"ledgerline/compose/sim/planted\"\n\t$1\n)")
				}
			}
			if n := strings.Count(text, e.old); n != 1 {
				t.Fatalf("%s: the text to replace is %d times in %s: the code has changed, plant it anew:\n%s", m.name, n, e.file, e.old)
			}
			is := fmt.Sprintf("planted.Is(%q)", m.name)
			texts[e.file] = strings.Replace(text, e.old, strings.ReplaceAll(e.new, "PLANTED", is), 1)
		}
	}
	for file, text := range texts {
		put(file, text)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	config := filepath.Join(dir, "overlay.json")
	must(t, os.WriteFile(config, overlay, 0o600))
	binary := filepath.Join(dir, "sim.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", config, "-o", binary, "./compose/sim")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}
