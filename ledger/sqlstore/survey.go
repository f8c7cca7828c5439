package sqlstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Survey is what is in a database, what a first start would take over, and what an operator should know before it. It is
// read from one snapshot; nothing is written (open the Store with Config.ReadOnly, and nothing can be).
type Survey struct {
	Engine      string            `json:"engine"` // mysql or sqlite
	Server      string            `json:"server"` // the engine's version
	Database    string            `json:"database"`
	State       SurveyState       `json:"state"`
	Tables      []TableSurvey     `json:"tables"`
	Lacking     []string          `json:"columns_lacking"` // columns of newer versions of New API, as table.column
	Users       UserSurvey        `json:"users"`
	Tokens      TokenSurvey       `json:"tokens"`
	Channels    []ChannelSurvey   `json:"channels"`
	Redemptions RedemptionSurvey  `json:"redemptions"`
	TopUps      map[string]int    `json:"top_ups"` // by status
	Opening     OpenResult        `json:"opening_balances"`
	Findings    []Finding         `json:"findings"`
	Options     map[string]string `json:"-"` // as they are stored
}

// SurveyState says whose database it is.
type SurveyState string

// The values of SurveyState.
const (
	StateEmpty   SurveyState = "empty"   // none of New API's tables: a start makes them
	StateNewAPI  SurveyState = "new-api" // New API's, to be taken over by the first start
	StateAdopted SurveyState = "adopted" // New API's, taken over already
	StateOwn     SurveyState = "own"     // made by Ledgerline
)

// TableSurvey is one table.
type TableSurvey struct {
	Name string   `json:"name"`
	Rows int64    `json:"rows"`
	Use  TableUse `json:"use"`
}

// TableUse says what becomes of a table.
type TableUse string

// The values of TableUse.
const (
	UseServed TableUse = "served" // read, and written as New API would
	UseRead   TableUse = "read"   // shown with the usage log, never written
	UseKept   TableUse = "kept"   // stays as it is; nothing here reads it
	UseLedger TableUse = "ledger" // Ledgerline's own
)

// Finding is something that an operator should know, with a few examples.
type Finding struct {
	Level    FindingLevel `json:"level"`
	Code     string       `json:"code"` // stable, for programs
	Count    int          `json:"count"`
	Text     string       `json:"text"`
	Examples []string     `json:"examples,omitempty"`
}

// FindingLevel says how much a finding matters.
type FindingLevel string

// The values of FindingLevel.
const (
	LevelInfo FindingLevel = "info"
	LevelWarn FindingLevel = "warn" // something will not work as it did
	LevelStop FindingLevel = "stop" // a start would fail
)

// maxExamples bounds the examples of a finding (L7): enough to see the pattern.
const maxExamples = 10

// servedTables are the tables of New API's that are read and written. The first ones must be there.
var (
	neededTables = []string{"users", "tokens", "channels", "abilities", "options"}
	servedTables = append(neededTables[:len(neededTables):len(neededTables)], "redemptions", "top_ups", "setups")
)

// surveyor is a survey in the making.
type surveyor struct {
	*Survey
	tx      *Tx
	columns map[string]map[string]string // table to column to type, all lower case
	spent   *LogSums
}

// add notes a finding, if there is anything to it. Examples beyond maxExamples are left out.
func (v *surveyor) add(level FindingLevel, code string, count int, examples []string, text string, args ...any) {
	if count > 0 {
		v.Findings = append(v.Findings, Finding{level, code, count, fmt.Sprintf(text, args...), examples[:min(len(examples), maxExamples)]})
	}
}

// has reports whether a table has a column.
func (v *surveyor) has(table, column string) bool { return v.columns[table][column] != "" }

// column returns a column of table t as an expression, or the fallback if this version of New API has none.
func (v *surveyor) column(table, column, fallback string) string {
	if v.has(table, column) {
		return "t.`" + column + "`"
	}
	return fallback
}

// Survey looks at the database. spent, if given, is what New API's logs say was used, to be held against its counters.
func (s *Store) Survey(ctx context.Context, spent *LogSums) (*Survey, error) {
	out := &Survey{Engine: "sqlite", Database: s.name, TopUps: map[string]int{}, Options: map[string]string{}, Channels: []ChannelSurvey{}, Lacking: []string{}}
	if s.mysql {
		out.Engine = "mysql"
	}
	err := s.View(ctx, func(tx *Tx) error {
		v := &surveyor{Survey: out, tx: tx, spent: spent}
		return v.run(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("look at the database: %w", err)
	}
	return out, nil
}

func (v *surveyor) run(ctx context.Context) error {
	if err := v.inventory(ctx); err != nil {
		return err
	}
	if v.State == StateEmpty {
		return nil
	}
	if err := v.tx.s.loadColumns(ctx, v.tx); err != nil {
		v.add(LevelStop, "columns_missing", 1, nil, "%v", err)
		return nil
	}
	for _, look := range []func(context.Context) error{
		v.users, v.tokens, v.channels, v.options, v.redemptions, v.topUps, v.kept, v.widths, v.counters, v.openings,
	} {
		if err := look(ctx); err != nil {
			return err
		}
	}
	return nil
}

// inventory lists the tables and their columns.
func (v *surveyor) inventory(ctx context.Context) error {
	q, version := "SELECT m.name, p.name, p.type FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite!_%' ESCAPE '!'", "SELECT sqlite_version()"
	if v.tx.s.mysql {
		version = "SELECT VERSION()"
		q = "SELECT c.table_name, c.column_name, c.column_type FROM information_schema.columns c JOIN information_schema.tables t" +
			" ON t.table_schema = c.table_schema AND t.table_name = c.table_name WHERE c.table_schema = DATABASE() AND t.table_type = 'BASE TABLE'"
	}
	if err := v.tx.QueryRow(ctx, version, nil, &v.Server); err != nil {
		return fmt.Errorf("read the server's version: %w", err)
	}
	v.columns = map[string]map[string]string{}
	err := v.tx.each(ctx, q, nil, func(scan func(...any) error) error {
		var table, column, kind string
		if err := scan(&table, &column, &kind); err != nil {
			return err
		}
		table, column = strings.ToLower(table), strings.ToLower(column)
		if v.columns[table] == nil {
			v.columns[table] = map[string]string{}
		}
		v.columns[table][column] = strings.ToLower(kind) + " " // never empty
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(v.columns)) {
		t := TableSurvey{Name: name, Use: useOf(name)}
		if err := v.tx.QueryRow(ctx, "SELECT COUNT(*) FROM `"+strings.ReplaceAll(name, "`", "``")+"`", nil, &t.Rows); err != nil {
			return fmt.Errorf("count the rows of %s: %w", name, err)
		}
		v.Tables = append(v.Tables, t)
	}
	return v.whose(ctx)
}

func useOf(table string) TableUse {
	switch {
	case strings.HasPrefix(table, "ledger_"):
		return UseLedger
	case slices.Contains(servedTables, table):
		return UseServed
	case table == "logs":
		return UseRead
	}
	return UseKept
}

// whose finds out whose database it is, and which columns it lacks.
func (v *surveyor) whose(ctx context.Context) error {
	var missing []string
	for _, table := range neededTables {
		if v.columns[table] == nil {
			missing = append(missing, table)
		}
	}
	switch {
	case len(missing) == len(neededTables):
		v.State = StateEmpty
		return nil
	case v.columns["ledger_meta"] == nil:
		v.State = StateNewAPI
	default:
		var adopted string
		err := v.tx.QueryRow(ctx, metaQuery, []any{adoptedMeta}, &adopted)
		if err != nil && !isMissing(err) {
			return fmt.Errorf("read whose database it is: %w", err)
		}
		v.State = map[string]SurveyState{"true": StateAdopted, "false": StateOwn, "": StateNewAPI}[adopted]
	}
	v.add(LevelWarn, "tables_missing", len(missing), missing, "tables that every version of New API has are missing; they are made")
	if v.columns["users"] == nil || v.columns["tokens"] == nil || v.columns["channels"] == nil {
		v.State = StateEmpty // what is left cannot be surveyed; the finding above says why
		return nil
	}
	for table, list := range map[string]string{"users": userColumns, "tokens": tokenColumns, "channels": channelColumns} {
		for part := range strings.SplitSeq(list, ", ") {
			if name := strings.Trim(part, "`"); len(name) == len(part)-2 && !v.has(table, name) {
				v.Lacking = append(v.Lacking, table+"."+name)
			}
		}
	}
	slices.Sort(v.Lacking)
	v.add(LevelInfo, "columns_lacking", len(v.Lacking), v.Lacking, "columns of newer versions are not there; they are read as empty and not written")
	return nil
}
