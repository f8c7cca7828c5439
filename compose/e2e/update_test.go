package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// previous builds the program of the commit before this one, or of -chaos.from.
func previous(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, step := range []string{
		"git -C ../.. archive --output " + filepath.Join(dir, "source.tar") + " " + *chaosFrom,
		"mkdir " + filepath.Join(dir, "source"),
		"tar -xf " + filepath.Join(dir, "source.tar") + " -C " + filepath.Join(dir, "source"),
		"cd " + filepath.Join(dir, "source") + " && go build -o " + filepath.Join(dir, "ledgerline") + " ./cmd/ledgerline",
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", step).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step, err, out)
		}
	}
	return filepath.Join(dir, "ledgerline")
}

// A cluster of the previous commit is updated node by node, the master first: both versions run beside each other on one log,
// one database and one Redis, clients that do not retry see nothing of it, and every bill is right.
func TestRollingUpdate(t *testing.T) {
	if *chaosFor == 0 {
		t.Skip("only with -chaos.for (make chaos): it builds another commit")
	}
	if _, err := os.Stat(filepath.Join("..", "..", ".git")); err != nil {
		t.Skipf("there is no other commit: %v", err)
	}
	const seed = 1
	g := newStageOf(t, seed, previous(t))
	g.begin(seed)
	g.served(meanwhile)
	for _, n := range g.nodes {
		n.binary = "" // from its next start on
	}
	g.inject(fault{"all relays and consumers updated from the previous commit in turn, clients do not retry", false, (*stage).rollingRestart})
	g.inject(fault{"relay: kill -9", false, (*stage).relayKilled})
	g.settle()
}
