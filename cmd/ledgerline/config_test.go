package main

import (
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func envOf(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// TestBadValues holds the start to its promise: the name, the value and what is allowed, in one line.
func TestBadValues(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, c := range map[string]struct {
		vars map[string]string
		want []string
	}{
		"no number":        {map[string]string{"PORT": "http"}, []string{"PORT", `"http"`, "whole number"}},
		"port too high":    {map[string]string{"PORT": "70000"}, []string{"PORT", "70000", "0 to 65535"}},
		"no bool":          {map[string]string{"BATCH_UPDATE_ENABLED": "yes please"}, []string{"BATCH_UPDATE_ENABLED", "yes please", "true or false"}},
		"no duration":      {map[string]string{"HOLD_ORPHAN_AFTER": "soon"}, []string{"HOLD_ORPHAN_AFTER", "soon", "duration"}},
		"short duration":   {map[string]string{"HOLD_ORPHAN_AFTER": "3s"}, []string{"HOLD_ORPHAN_AFTER", "3s", "10s"}},
		"postgres":         {map[string]string{"SQL_DSN": "postgres://u:secret@h/db"}, []string{"SQL_DSN", "MySQL"}},
		"log postgres":     {map[string]string{"LOG_SQL_DSN": "postgres://u:secret@h/db"}, []string{"LOG_SQL_DSN"}},
		"secret unchanged": {map[string]string{"SESSION_SECRET": "random_string"}, []string{"SESSION_SECRET", "random_string"}},
		"brokers":          {map[string]string{"KAFKA_BROKERS": "kafka"}, []string{"KAFKA_BROKERS", "kafka", "host:port"}},
		"proxies":          {map[string]string{"TRUSTED_PROXIES": "10.0.0.0/8,nginx"}, []string{"TRUSTED_PROXIES", "nginx"}},
		"time zone":        {map[string]string{"TZ": "Mars/Base"}, []string{"TZ", "Mars/Base"}},
		"root key":         {map[string]string{"INITIAL_ROOT_TOKEN": "sk-short"}, []string{"INITIAL_ROOT_TOKEN", "48"}},
		"root access":      {map[string]string{"INITIAL_ROOT_ACCESS_TOKEN": "not-a-token-because-of-dashes-x"}, []string{"INITIAL_ROOT_ACCESS_TOKEN", "29 to 32"}},
		"redis":            {map[string]string{"REDIS_CONN_STRING": "127.0.0.1:6379"}, []string{"REDIS_CONN_STRING", "redis://"}},
		"frontend":         {map[string]string{"FRONTEND_BASE_URL": "console.example"}, []string{"FRONTEND_BASE_URL", "console.example", "https://"}},
		"all at once":      {map[string]string{"SYNC_FREQUENCY": "0", "TRUSTED_PROXIES": "nginx", "KAFKA_BROKERS": "kafka"}, []string{"SYNC_FREQUENCY", "TRUSTED_PROXIES", "KAFKA_BROKERS"}},
		"of every sort": {
			map[string]string{
				"PORT": "http", "JOURNAL_MAX_MB": "1", "TRUSTED_PROXIES": "nginx", "TZ": "Mars/Base", "SQL_DSN": "x", "REDIS_CONN_STRING": "y",
			},
			[]string{`PORT="http": a`, "; JOURNAL_MAX_MB=1: a", "; TRUSTED_PROXIES", "; TZ=", "; SQL_DSN", "; REDIS_CONN_STRING"},
		},
		"no number, named once": {map[string]string{"SYNC_FREQUENCY": "often", "TZ": "Mars/Base"}, []string{`SYNC_FREQUENCY="often": a whole number from 1 to 86400 is needed; TZ`}},
		"no numbers":            {map[string]string{"PORT": "http", "RELAY_TIMEOUT": "long"}, []string{"PORT", "RELAY_TIMEOUT"}},
		"journal":               {map[string]string{"JOURNAL": "disk"}, []string{"JOURNAL", "disk", "file or kafka"}},
		"journal alone":         {map[string]string{"JOURNAL": "kafka"}, []string{"JOURNAL=kafka", "KAFKA_BROKERS"}},
		"interval":              {map[string]string{"BATCH_UPDATE_INTERVAL": "0"}, []string{"BATCH_UPDATE_INTERVAL", "0", "1 to 3600"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(envOf(c.vars))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is more than one line", err)
			}
			if strings.Contains(err.Error(), "secret@") {
				t.Errorf("error %q shows a password", err)
			}
			if got := exitCode(err, &strings.Builder{}); got != 2 {
				t.Errorf("exit code %d, want 2", got)
			}
		})
	}
}

func TestEnvFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile(".env", []byte("PORT=4000\nNODE_TYPE=slave\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(envOf(map[string]string{"PORT": "5000"}))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Port != 5000 || cfg.master() {
		t.Errorf("port %d, master %v: the environment wins over .env, and .env counts", cfg.Port, cfg.master())
	}
}

// New API's names that do nothing here are named, wherever they are set; a demo takes nothing from a .env file.
func TestUnusedNames(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile(".env", []byte("GLOBAL_API_RATE_LIMIT=5\nSQLITE_PATH=real.db\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(envOf(map[string]string{"GIN_MODE": "release"}))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"GIN_MODE", "GLOBAL_API_RATE_LIMIT"}, cfg.unused); d != "" {
		t.Errorf("unused names (-want +got):\n%s", d)
	}
	if err := demoCommand(t.Context(), []string{"-once", "-requests", "2"}, envOf(nil), io.Discard, io.Discard); err != nil {
		t.Errorf("demo: %v", err)
	}
	if _, err := os.Stat("real.db"); err == nil {
		t.Error("the demo worked on the database of the .env file")
	}
}

// TestReadmeListsEveryVariable keeps the README's table and the config struct in step.
func TestReadmeListsEveryVariable(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(readme), "## Environment")
	if !ok {
		t.Fatal("the README has no section Environment")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Za-z_]+)` ").FindAllStringSubmatch(table, -1) {
		listed[m[1]] = true
	}
	known := map[string]bool{}
	for field := range reflect.TypeFor[config]().Fields() {
		if name := field.Tag.Get("env"); name != "" {
			known[name] = true
		}
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(listed))); d != "" {
		t.Errorf("variables (-config +README):\n%s", d)
	}
	for name := range notHonoured {
		if known[name] {
			t.Errorf("%s is honoured and listed as not honoured", name)
		}
	}
}
