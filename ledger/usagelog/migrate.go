package usagelog

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// migration is one file of the schema.
type migration struct {
	version    int
	statements []string
}

// readMigrations returns the files in order. What is wrong with them is a bug of the build.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql") // sorted
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var all []migration
	for i, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s does not begin with number %d", name, i+1)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		all = append(all, migration{version, statementsOf(string(text))})
	}
	return all, nil
}

// statementsOf splits a file at the semicolons that end a line, and drops comment lines.
func statementsOf(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "--") {
			lines = append(lines, line)
		}
	}
	var all []string
	for _, s := range strings.Split(strings.Join(lines, ""), ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			all = append(all, s)
		}
	}
	return all
}

// schema is what a database can do for its migration.
type schema struct {
	files   fs.FS
	exec    func(ctx context.Context, statement string, args ...any) error
	version func(ctx context.Context) (int, error) // 0: nothing was migrated yet
	begin   string                                 // makes the table of versions
	done    string                                 // notes a version: (version, Unix milliseconds)
}

// migrate runs what is missing. Every statement can be run again, so a crash in the middle or a second master beside this
// one do no harm; the version is noted after the statements of its file.
func (s *schema) migrate(ctx context.Context, nowMS int64) error {
	all, err := readMigrations(s.files)
	if err != nil {
		return fmt.Errorf("migrate usage log: %w", err)
	}
	if err := s.exec(ctx, s.begin); err != nil {
		return fmt.Errorf("migrate usage log: make the table of versions: %w", err)
	}
	have, err := s.version(ctx)
	if err != nil {
		return fmt.Errorf("migrate usage log: read version: %w", err)
	}
	if have > len(all) {
		return fmt.Errorf("migrate usage log: version %d, this binary knows %d: %w", have, len(all), ErrSchemaNewer)
	}
	for _, m := range all[have:] {
		for _, statement := range m.statements {
			if err := s.exec(ctx, statement); err != nil {
				return fmt.Errorf("migrate usage log to version %d: %w", m.version, err)
			}
		}
		if err := s.exec(ctx, s.done, m.version, nowMS); err != nil {
			return fmt.Errorf("migrate usage log: note version %d: %w", m.version, err)
		}
	}
	return nil
}

func (s *schema) check(ctx context.Context) error {
	all, err := readMigrations(s.files)
	if err != nil {
		return fmt.Errorf("check usage log schema: %w", err)
	}
	have, err := s.version(ctx)
	if err != nil {
		return fmt.Errorf("check usage log schema: %w", err)
	}
	switch {
	case have > len(all):
		return fmt.Errorf("version %d, this binary knows %d: %w", have, len(all), ErrSchemaNewer)
	case have < len(all):
		return fmt.Errorf("version %d, this binary needs %d: %w", have, len(all), ErrSchemaOlder)
	}
	return nil
}

// logsView serves queries that were written for New API's table where there is none. id is a SQL expression.
func logsView(id, from string) string {
	return "CREATE VIEW IF NOT EXISTS logs AS SELECT " + id + " AS id, " + entryColumns + ", '' AS channel_name FROM " + from
}
