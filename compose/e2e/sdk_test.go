package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ledgerline/ledger/ledgertest"
)

// openaiSDK is the client that most programs use, as npm has it.
const openaiSDK = "openai@7.57.0"

// The official SDK works against the relay as it does against OpenAI, errors and an abort included, and what it used is
// billed.
func TestOpenAISDK(t *testing.T) {
	t.Parallel()
	modules := ledgertest.NodeModules(t, openaiSDK)
	onBoth(t, func(t *testing.T, s *site) {
		s.addChannel("first", "upstream-key-1", nil)
		rich := s.addUser("sdk", 100_000_000, tokenLimit{unlimited: true})
		poor := s.addUser("poor", 0, tokenLimit{unlimited: true})
		steps := runScript(t, modules, "openai.mjs", map[string]string{
			"RELAY_URL": s.nodes[len(s.nodes)-1].url(), "RELAY_KEY": rich.key, "POOR_KEY": poor.key,
		})
		var requests, least, most int64
		for _, step := range steps {
			requests += step.Requests
			if step.Prompt > 0 {
				least, most = least+price(step.Prompt, step.Completion), most+price(step.Prompt, step.Completion)
			}
			if step.Cut.Prompt > 0 {
				least, most = least+price(step.Cut.Prompt, step.Cut.Least), most+price(step.Cut.Prompt, step.Cut.Most)
			}
		}
		served := s.books.served()
		var charged int64
		eventually(t, "the SDK's requests are in every store", func() error {
			if n := s.books.number("SELECT request_count FROM users WHERE id = ?", rich.user); n != requests {
				return fmt.Errorf("%d requests are counted, want %d", n, requests)
			}
			bills, err := s.books.bills()
			if err != nil {
				return err
			}
			var billed int64
			charged = 0
			for id, bill := range bills {
				billed += bill.requests
				if up := served[id]; bill.user == rich.user && up.model == model {
					charged += bill.quota
				}
			}
			if billed != requests {
				return fmt.Errorf("%d requests are in the usage log, want %d", billed, requests)
			}
			return nil
		})
		if charged < least || charged > most {
			t.Errorf("the SDK's chats are billed %d, want %d to %d", charged, least, most)
		}
		if n := s.books.number("SELECT used_quota FROM users WHERE id = ?", poor.user); n != 0 {
			t.Errorf("the user without quota was charged %d", n)
		}
	})
}

// sdkStep is what a script says of one of its steps.
type sdkStep struct {
	Step               string
	Prompt, Completion int64
	Requests           int64
	Cut                struct{ Prompt, Least, Most int64 }
}

// runScript runs a script under node and returns its steps.
func runScript(t *testing.T, modules, script string, env map[string]string) []sdkStep {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	// ES modules are found beside the script, not by NODE_PATH.
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join("sdk", script))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, script), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, filepath.Join(dir, script))
	cmd.Env = append(os.Environ(), "NO_PROXY=127.0.0.1")
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", script, err, stdout.String(), stderr.String())
	}
	var out []sdkStep
	lines := bufio.NewScanner(&stdout)
	for lines.Scan() {
		var step sdkStep
		if err := json.Unmarshal(lines.Bytes(), &step); err != nil {
			t.Fatalf("%s: %v in %s", script, err, lines.Bytes())
		}
		out = append(out, step)
	}
	const atLeast = 10
	if len(out) < atLeast {
		t.Fatalf("%s took only %d steps", script, len(out))
	}
	return out
}
