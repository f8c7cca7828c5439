package ledgertest_test

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The rules that keep the tree in layers: the domain is pure, an adapter knows one outside dependency, adapters do not know
// each other, and the data plane and the consumers meet only through the log.

const (
	module       = "ledgerline/"
	maxFileLines = 600 // outside tests; a file that says what it owns in its first 20 lines is not longer
)

// drivers lists, for each adapter of the domain, the outside modules that are its business. Those of common serve all.
var drivers = map[string][]string{
	"ledger":          {},
	"ledger/journal":  {"golang.org/x/sys"},
	"ledger/eventlog": {"github.com/segmentio/kafka-go", "github.com/twmb/franz-go"},
	"ledger/hold":     {"github.com/redis/go-redis"},
	"ledger/rating":   {"github.com/expr-lang/expr", "github.com/shopspring/decimal", "github.com/tidwall/gjson"},
	"ledger/sqlstore": {"github.com/go-sql-driver/mysql", "modernc.org/sqlite", "github.com/pressly/goose"},
	"ledger/usagelog": {"github.com/ClickHouse/", "github.com/go-sql-driver/mysql", "modernc.org/sqlite", "github.com/pressly/goose"},
}

// common are outside modules that bind a package to nothing.
var common = []string{"github.com/google/uuid", "github.com/prometheus/client_golang", "golang.org/x/sync", "golang.org/x/time"}

// outsideDomain are the outside modules of package ledger itself: exact decimals, ids, and peeking at JSON.
var outsideDomain = []string{"github.com/shopspring/decimal", "github.com/google/uuid", "github.com/tidwall/"}

// ours lists what of this module the packages below ledger may import beside the domain and their own subfolders.
var ours = map[string][]string{
	"ledger/sqlstore": {"migrations"},
	"ledger/usagelog": {"migrations"},
}

// inputOutput are standard packages that pure code does without.
var inputOutput = []string{"net", "os", "database/sql", "syscall", "io/ioutil", "log"}

// pure packages compute and do nothing else.
var pure = []string{"ledger", "relay/dialect", "relay/sse", "relay/meter"}

// file is one source file by what the rules look at.
type file struct {
	pkg     string // folder below the module's root
	name    string
	test    bool
	imports []string
	lines   int
}

func TestDependencyRules(t *testing.T) {
	files := sources(t)
	if len(files) < 10 {
		t.Fatalf("found only %d source files", len(files))
	}
	for _, f := range files {
		for _, problem := range problems(f) {
			t.Errorf("%s/%s: %s", f.pkg, f.name, problem)
		}
	}
}

// The rules find what they are for.
func TestDependencyRulesCatch(t *testing.T) {
	for _, c := range []struct {
		file file
		want string
	}{
		{file{pkg: "ledger", imports: []string{"ledgerline/ledger/hold"}}, "imports ledger/hold"},
		{file{pkg: "ledger", imports: []string{"net/http"}}, "does I/O"},
		{file{pkg: "ledger", imports: []string{"github.com/redis/go-redis/v9"}}, "not named beside it"},
		{file{pkg: "ledger/hold", imports: []string{"ledgerline/ledger/sqlstore"}}, "imports ledger/sqlstore"},
		{file{pkg: "ledger/hold", imports: []string{"github.com/segmentio/kafka-go"}}, "not named beside it"},
		{file{pkg: "ledger/hold", imports: []string{"ledgerline/ledger/ledgertest"}}, "only tests import"},
		{file{pkg: "relay/catalog", imports: []string{"ledgerline/consumers/quota"}}, "imports consumers"},
		{file{pkg: "consumers", imports: []string{"ledgerline/relay"}}, "imports relay"},
		{file{pkg: "relay", imports: []string{"ledgerline/cmd/ledgerline"}}, "imports cmd"},
		{file{pkg: "relay/sse", imports: []string{"os"}}, "does I/O"},
		{file{pkg: "relay/limit", imports: []string{"github.com/labstack/echo/v4"}}, "echo"},
		{file{pkg: "relay", lines: maxFileLines + 1}, "lines"},
	} {
		if got := strings.Join(problems(c.file), "; "); !strings.Contains(got, c.want) {
			t.Errorf("%s importing %v: found %q, want %q", c.file.pkg, c.file.imports, got, c.want)
		}
	}
	for _, f := range []file{
		{pkg: "ledger/hold", imports: []string{"ledgerline/ledger", "github.com/redis/go-redis/v9", "net"}},
		{pkg: "ledger/hold", test: true, lines: 5000, imports: []string{"ledgerline/ledger/ledgertest"}},
		{pkg: "ledger/journal/journaltest", imports: []string{"ledgerline/ledger/journal"}},
		{pkg: "relay/console", imports: []string{"github.com/labstack/echo/v4/middleware"}},
		{pkg: "cmd/ledgerline", imports: []string{"ledgerline/relay", "ledgerline/consumers"}},
	} {
		if got := problems(f); len(got) > 0 {
			t.Errorf("%s importing %v: found %q, want nothing", f.pkg, f.imports, got)
		}
	}
}

// problems applies every rule to a file.
func problems(f file) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if !f.test && f.lines > maxFileLines {
		say("has %d lines, more than %d", f.lines, maxFileLines)
	}
	for _, imported := range f.imports {
		own, isOwn := strings.CutPrefix(imported, module)
		switch {
		case isOwn:
			found = append(found, ownProblems(f, own)...)
		case strings.Contains(strings.SplitN(imported, "/", 2)[0], "."):
			found = append(found, outsideProblems(f, imported)...)
		case !f.test && slices.Contains(pure, f.pkg) && within(imported, inputOutput):
			say("imports %s, but %s does no I/O: what it does I/O with comes from its caller", imported, f.pkg)
		}
	}
	return found
}

// ownProblems judges an import of a package of this module.
func ownProblems(f file, own string) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	top, ownTop := topOf(f.pkg), topOf(own)
	if ownTop == "cmd" && top != "cmd" {
		say("imports cmd: nothing does")
	}
	if top == "relay" && ownTop == "consumers" || top == "consumers" && ownTop == "relay" {
		say("imports %s: the relay and the consumers never import each other", ownTop)
	}
	if f.test {
		return found
	}
	if strings.HasPrefix(own, "ledger/ledgertest") && top != "compose" && !strings.HasPrefix(f.pkg, "ledger/ledgertest") {
		say("imports %s: only tests import it", own)
	}
	allowed := f.pkg != "ledger" && (own == "ledger" || adapter(own) == adapter(f.pkg))
	if top == "ledger" && !allowed && !within(own, ours[adapter(f.pkg)]) {
		say("imports %s: packages below ledger import ledger and not each other", own)
	}
	return found
}

// outsideProblems judges an import of another module.
func outsideProblems(f file, imported string) []string {
	var found []string
	if strings.HasPrefix(imported, "github.com/labstack/echo") && f.pkg != "relay" && f.pkg != "relay/console" {
		found = append(found, "imports echo: only relay and relay/console know it")
	}
	allowed, isAdapter := drivers[adapter(f.pkg)]
	if f.test || !isAdapter {
		return found
	}
	if f.pkg == "ledger" {
		allowed = outsideDomain
	} else {
		allowed = slices.Concat(allowed, common)
	}
	if !within(imported, allowed) {
		found = append(found, "imports "+imported+", which is not named beside it")
	}
	return found
}

// adapter cuts a package below ledger to the folder that the rules name.
func adapter(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

func topOf(pkg string) string { return strings.SplitN(pkg, "/", 2)[0] }

// within says whether a path is one of the given ones or lies below it.
func within(imported string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		rest, ok := strings.CutPrefix(imported, root)
		return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(root, "/"))
	})
}

// sources reads all source files of the module, without test data and modules of their own.
func sources(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	var files []file
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, err := os.Stat(filepath.Join(root, name, "go.mod"))
			if name != "." && (err == nil || d.Name() == "testdata" || d.Name()[0] == '.' || d.Name()[0] == '_') {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		f, err := readSource(root, name)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func readSource(root, name string) (file, error) {
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return file{}, err
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly)
	if err != nil {
		return file{}, err
	}
	f := file{pkg: path.Dir(name), name: path.Base(name), test: strings.HasSuffix(name, "_test.go"), lines: bytes.Count(text, []byte("\n"))}
	for _, i := range parsed.Imports {
		f.imports = append(f.imports, strings.Trim(i.Path.Value, `"`))
	}
	return f, nil
}
