package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/joho/godotenv"

	"ledgerline/ledger/sqlstore"
	"ledgerline/ledger/usagelog"
)

// maxJournalKeep is a day less than consumers remember the marks of a closed incarnation: an older segment that is sent
// again would count twice (L2).
const maxJournalKeep = 6 * 24 * time.Hour

// The values of JOURNAL.
const (
	journalInFile  = "file"
	journalInKafka = "kafka"
)

// minOrphanAfter is three heartbeats and a bit: a node is not given up for one or two that came late. One whose heartbeats do not reach
// the database for as long is, whatever it does meanwhile.
const minOrphanAfter = 10 * time.Second

// config is everything that can be set, by environment variable. README.md lists them; a test keeps the two in step.
type config struct {
	Port          int    `env:"PORT" envDefault:"3000"`
	NodeType      string `env:"NODE_TYPE" envDefault:"master"`
	NodeName      string `env:"NODE_NAME"`
	FrontendURL   string `env:"FRONTEND_BASE_URL"`
	SessionSecret string `env:"SESSION_SECRET"`
	CryptoSecret  string `env:"CRYPTO_SECRET"`
	DataDir       string `env:"DATA_DIR" envDefault:"data"`
	LogDir        string `env:"LOG_DIR"`
	Debug         bool   `env:"DEBUG"`

	SQLDSN         string `env:"SQL_DSN"`
	SQLitePath     string `env:"SQLITE_PATH"`
	SQLMaxIdle     int    `env:"SQL_MAX_IDLE_CONNS" envDefault:"100"`
	SQLMaxOpen     int    `env:"SQL_MAX_OPEN_CONNS" envDefault:"1000"`
	SQLMaxLifetime int    `env:"SQL_MAX_LIFETIME" envDefault:"60"` // seconds
	LogSQLDSN      string `env:"LOG_SQL_DSN"`
	LogTTLDays     int    `env:"LOG_SQL_CLICKHOUSE_TTL_DAYS"`

	RedisURL          string `env:"REDIS_CONN_STRING"`
	RedisPassword     string `env:"REDIS_PASSWORD"`
	RedisMaster       string `env:"REDIS_MASTER_NAME"`
	RedisPoolSize     int    `env:"REDIS_POOL_SIZE"`
	RedisConnPoolSize int    `env:"REDIS_CONN_POOL_SIZE"`

	KafkaBrokers    []string `env:"KAFKA_BROKERS"`
	KafkaTopic      string   `env:"KAFKA_TOPIC" envDefault:"ledgerline"`
	KafkaPartitions int      `env:"KAFKA_PARTITIONS" envDefault:"12"`

	Journal      string        `env:"JOURNAL" envDefault:"file"`
	JournalDir   string        `env:"JOURNAL_DIR"`
	JournalMaxMB int64         `env:"JOURNAL_MAX_MB" envDefault:"1024"`
	JournalKeep  time.Duration `env:"JOURNAL_KEEP" envDefault:"24h"`
	OrphanAfter  time.Duration `env:"HOLD_ORPHAN_AFTER" envDefault:"15m"`

	SyncFrequency int  `env:"SYNC_FREQUENCY" envDefault:"60"` // seconds
	BatchEnabled  bool `env:"BATCH_UPDATE_ENABLED"`
	BatchInterval int  `env:"BATCH_UPDATE_INTERVAL" envDefault:"5"` // seconds

	StreamingTimeout int   `env:"STREAMING_TIMEOUT" envDefault:"300"` // seconds
	RelayTimeout     int   `env:"RELAY_TIMEOUT"`                      // seconds, 0 = none
	RelayIdleTimeout int   `env:"RELAY_IDLE_CONN_TIMEOUT" envDefault:"90"`
	RelayMaxIdle     int   `env:"RELAY_MAX_IDLE_CONNS" envDefault:"500"`
	RelayMaxIdleHost int   `env:"RELAY_MAX_IDLE_CONNS_PER_HOST" envDefault:"100"`
	MaxBodyMB        int64 `env:"MAX_REQUEST_BODY_MB" envDefault:"128"`
	MaxBodiesMB      int64 `env:"MAX_REQUEST_BODIES_MB" envDefault:"2048"`
	MaxEventMB       int   `env:"STREAM_SCANNER_MAX_BUFFER_MB" envDefault:"16"`
	ForceUsage       bool  `env:"FORCE_STREAM_OPTION" envDefault:"true"`
	OutputSlice      int64 `env:"MAX_OUTPUT_TOKENS_DEFAULT" envDefault:"4096"`
	SkipVerify       bool  `env:"TLS_INSECURE_SKIP_VERIFY"`
	ShutdownTimeout  int   `env:"SHUTDOWN_TIMEOUT_SECONDS" envDefault:"120"`

	TrustedProxies string `env:"TRUSTED_PROXIES" envDefault:"none"`
	CookieSecure   bool   `env:"SESSION_COOKIE_SECURE"`
	DefaultToken   bool   `env:"GENERATE_DEFAULT_TOKEN"`
	RootToken      string `env:"INITIAL_ROOT_TOKEN"`
	RootAccess     string `env:"INITIAL_ROOT_ACCESS_TOKEN"`
	TZ             string `env:"TZ"`

	trusted []netip.Prefix
	unused  []string // names of New API's that are set and do nothing here
	looksOn bool     // a command that looks at the stores of running nodes
}

// loadConfig reads the environment (after a .env file in the working directory, which never overrides it) and checks
// every value. The error names each variable that is wrong, its value and what is allowed.
func loadConfig(getenv func(string) string) (*config, error) {
	vars, err := environment(getenv)
	if err != nil {
		return nil, err
	}
	return configOf(vars)
}

// configOf is loadConfig of these variables and no others.
func configOf(vars map[string]string) (*config, error) {
	cfg := &config{}
	unreadable := readVars(cfg, vars)
	for name := range notHonoured {
		if vars[name] != "" {
			cfg.unused = append(cfg.unused, name)
		}
	}
	slices.Sort(cfg.unused)
	bad := slices.DeleteFunc(cfg.check(), func(text string) bool {
		name, _, _ := strings.Cut(text, "=")
		return slices.ContainsFunc(unreadable, func(of string) bool { return strings.HasPrefix(of, name+"=") }) // named already
	})
	if bad = append(unreadable, bad...); len(bad) > 0 {
		return nil, usagef("%s", strings.Join(bad, "; "))
	}
	return cfg, nil
}

// environment gathers the variables that are known, so that tests can pass their own.
func environment(getenv func(string) string) (map[string]string, error) {
	vars := map[string]string{}
	if file, err := godotenv.Read(".env"); err == nil {
		vars = file
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("the file .env cannot be read: %s", strings.ReplaceAll(err.Error(), `\n`, ""))
	}
	set := func(name string) {
		if value := getenv(name); value != "" {
			vars[name] = value
		}
	}
	for field := range reflect.TypeFor[config]().Fields() {
		if name := field.Tag.Get("env"); name != "" {
			set(name)
		}
	}
	for name := range notHonoured {
		set(name)
	}
	maps.DeleteFunc(vars, func(_, value string) bool { return value == "" })
	return vars, nil
}

// readVars fills the config. Of every value that cannot be read it says "NAME=value: what is allowed", and leaves zero
// in its field.
func readVars(cfg *config, vars map[string]string) (unreadable []string) {
	err := env.ParseWithOptions(cfg, env.Options{Environment: vars})
	if err == nil {
		return nil
	}
	var all env.AggregateError
	if !errors.As(err, &all) {
		return []string{describeEnvError(err, vars)}
	}
	for _, one := range all.Errors {
		unreadable = append(unreadable, describeEnvError(one, vars))
	}
	return unreadable
}

func describeEnvError(err error, vars map[string]string) string {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return err.Error()
	}
	field, ok := reflect.TypeFor[config]().FieldByName(parse.Name)
	if !ok {
		return err.Error()
	}
	allowed := map[reflect.Kind]string{
		reflect.Int: "a whole number", reflect.Int64: "a whole number", reflect.Bool: "true or false",
	}[parse.Type.Kind()]
	if parse.Type == reflect.TypeFor[time.Duration]() {
		allowed = "a duration such as 90s or 15m"
	}
	name := field.Tag.Get("env")
	for _, b := range new(config).bounds() {
		if b.name == name {
			allowed = b.String()
		}
	}
	return fmt.Sprintf("%s=%q: %s is needed", name, vars[name], allowed)
}

// check lists every value that is not allowed, and fills in what follows from other values.
func (c *config) check() (bad []string) {
	bad = c.outOfBounds()
	wrong := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if c.OrphanAfter != 0 && c.OrphanAfter < minOrphanAfter {
		wrong("HOLD_ORPHAN_AFTER=%s: 0 (never) or at least %s is needed", c.OrphanAfter, minOrphanAfter)
	}
	switch {
	case c.Journal != journalInFile && c.Journal != journalInKafka:
		wrong("JOURNAL=%q: %s or %s is needed", c.Journal, journalInFile, journalInKafka)
	case c.diskless() && c.embedded():
		wrong("JOURNAL=%s: KAFKA_BROKERS is needed with it; the embedded event log has no other disk to write to", journalInKafka)
	}
	if c.JournalKeep < 0 || c.JournalKeep > maxJournalKeep {
		wrong("JOURNAL_KEEP=%s: a duration from 0 to %s is needed, such as 24h", c.JournalKeep, maxJournalKeep)
	}
	if c.SessionSecret == "random_string" {
		wrong(`SESSION_SECRET="random_string": replace the example by a secret of your own, the same on every node`)
	}
	if key := strings.TrimPrefix(c.RootToken, "sk-"); key != "" && !isKey(key, sqlstore.KeyLength, sqlstore.KeyLength) {
		wrong("INITIAL_ROOT_TOKEN: %d letters and digits are needed, with or without sk- before them", sqlstore.KeyLength)
	}
	if c.RootAccess != "" && !isKey(c.RootAccess, 29, 32) {
		wrong("INITIAL_ROOT_ACCESS_TOKEN: 29 to 32 letters and digits are needed")
	}
	if c.FrontendURL != "" && !hasScheme(c.FrontendURL, "http", "https") {
		wrong("FRONTEND_BASE_URL=%q: a URL that begins with http:// or https:// is needed", c.FrontendURL)
	}
	for _, err := range append(c.checkStores(), c.finish()...) {
		wrong("%v", err)
	}
	return bad
}

// bound is what is allowed of a number, and what it is.
type bound struct {
	name               string
	value, least, most int64
}

func (b bound) String() string { return fmt.Sprintf("a whole number from %d to %d", b.least, b.most) }

// outOfBounds lists the numbers that are too small or too large.
func (c *config) outOfBounds() (bad []string) {
	for _, b := range c.bounds() {
		if b.value < b.least || b.value > b.most {
			bad = append(bad, fmt.Sprintf("%s=%d: %s is needed", b.name, b.value, b))
		}
	}
	return bad
}

// bounds are those of every number.
func (c *config) bounds() []bound {
	return []bound{
		{"PORT", int64(c.Port), 0, 65535},
		{"SQL_MAX_IDLE_CONNS", int64(c.SQLMaxIdle), 0, 100_000},
		{"SQL_MAX_OPEN_CONNS", int64(c.SQLMaxOpen), 1, 100_000},
		{"SQL_MAX_LIFETIME", int64(c.SQLMaxLifetime), 1, 86400},
		{"LOG_SQL_CLICKHOUSE_TTL_DAYS", int64(c.LogTTLDays), 0, 36500},
		{"REDIS_POOL_SIZE", int64(c.RedisPoolSize), 0, 10_000},
		{"REDIS_CONN_POOL_SIZE", int64(c.RedisConnPoolSize), 0, 10_000},
		{"KAFKA_PARTITIONS", int64(c.KafkaPartitions), 1, 1024},
		{"JOURNAL_MAX_MB", c.JournalMaxMB, 8, 1 << 20},
		{"SYNC_FREQUENCY", int64(c.SyncFrequency), 1, 86400},
		{"BATCH_UPDATE_INTERVAL", int64(c.BatchInterval), 1, 3600},
		{"STREAMING_TIMEOUT", int64(c.StreamingTimeout), 1, 86400},
		{"RELAY_TIMEOUT", int64(c.RelayTimeout), 0, 86400},
		{"RELAY_IDLE_CONN_TIMEOUT", int64(c.RelayIdleTimeout), 1, 86400},
		{"RELAY_MAX_IDLE_CONNS", int64(c.RelayMaxIdle), 1, 1_000_000},
		{"RELAY_MAX_IDLE_CONNS_PER_HOST", int64(c.RelayMaxIdleHost), 1, 1_000_000},
		{"MAX_REQUEST_BODY_MB", c.MaxBodyMB, 1, 4096},
		{"MAX_REQUEST_BODIES_MB", c.MaxBodiesMB, 1, 1 << 20},
		{"STREAM_SCANNER_MAX_BUFFER_MB", int64(c.MaxEventMB), 1, 1024},
		{"MAX_OUTPUT_TOKENS_DEFAULT", c.OutputSlice, 16, 1 << 24},
		{"SHUTDOWN_TIMEOUT_SECONDS", int64(c.ShutdownTimeout), 1, 86400},
	}
}

// topicName is what Kafka takes for the name of a topic.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// checkStores checks the addresses of the engines.
func (c *config) checkStores() (errs []error) {
	if err := sqlstore.CheckDSN(c.SQLDSN); err != nil {
		errs = append(errs, err)
	}
	if err := usagelog.CheckDSN(c.LogSQLDSN); err != nil {
		errs = append(errs, err)
	}
	if c.RedisURL != "" && !hasScheme(c.RedisURL, "redis", "rediss", "unix") {
		errs = append(errs, errors.New("REDIS_CONN_STRING: redis://[user:password@]host:port[/db] is needed, or rediss:// for TLS, or unix://"))
	}
	if !topicName.MatchString(c.KafkaTopic) || strings.Trim(c.KafkaTopic, ".") == "" {
		errs = append(errs, fmt.Errorf("KAFKA_TOPIC=%q: 1 to 249 letters, digits, dots, underscores and hyphens are needed", c.KafkaTopic))
	}
	for _, b := range c.KafkaBrokers {
		if host, port, ok := strings.Cut(b, ":"); !ok || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("KAFKA_BROKERS=%q: a comma list of host:port is needed", strings.Join(c.KafkaBrokers, ",")))
			break
		}
	}
	return errs
}

// hasScheme reports whether a URL begins with one of these schemes and something follows.
func hasScheme(url string, schemes ...string) bool {
	scheme, rest, ok := strings.Cut(url, "://")
	return ok && rest != "" && slices.Contains(schemes, scheme)
}

// isKey reports whether s is made of letters and digits and has a length from least to most.
func isKey(s string, least, most int) bool {
	plain := func(r rune) bool { return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' }
	return len(s) >= least && len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0
}

// finish fills in what follows from other values.
func (c *config) finish() (errs []error) {
	var err error
	if c.trusted, err = parseProxies(c.TrustedProxies); err != nil {
		errs = append(errs, err)
	}
	if c.NodeName == "" {
		if c.NodeName, err = os.Hostname(); err != nil {
			c.NodeName = "node"
		}
	}
	if c.TZ != "" {
		if place, err := time.LoadLocation(c.TZ); err != nil {
			errs = append(errs, usagef("TZ=%q: the name of a time zone is needed, such as Asia/Shanghai", c.TZ))
		} else {
			time.Local = place //nolint:gosmopolitan // what TZ means
		}
	}
	// New API's own default has a query part, which only its driver reads.
	c.SQLitePath, _, _ = strings.Cut(strings.TrimPrefix(c.SQLitePath, "file:"), "?")
	if c.SQLitePath == "" {
		c.SQLitePath = c.defaultSQLite()
	}
	if c.JournalDir == "" {
		c.JournalDir = filepath.Join(c.DataDir, "journal")
	}
	return errs
}

// diskless reports whether Kafka's acknowledgement stands in the journal's place.
func (c *config) diskless() bool { return c.Journal == journalInKafka }

// newAPIFile is the SQLite file of a New API that nobody told otherwise, in its working directory.
const newAPIFile = "one-api.db"

// defaultSQLite is our own file, or New API's where that is there and ours is not: so changing the image is all that a switch
// takes (P7).
func (c *config) defaultSQLite() string {
	own := filepath.Join(c.DataDir, "ledgerline.db")
	if _, err := os.Stat(own); err == nil {
		return own
	}
	for _, file := range []string{newAPIFile, filepath.Join(c.DataDir, newAPIFile)} {
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return own
}

// master reports whether the node runs migrations and one-per-cluster duties. As in New API, only the exact word "slave" makes a
// slave.
func (c *config) master() bool { return c.NodeType != "slave" }

// embedded reports whether the event log runs inside this process.
func (c *config) embedded() bool { return len(c.KafkaBrokers) == 0 }

// keepsFiles reports whether the node has anything in DATA_DIR: one without a disk may not be able to make it.
func (c *config) keepsFiles() bool {
	return !c.diskless() || c.alone() || isFile(c.SQLDSN) || c.LogSQLDSN != "" && isFile(c.LogSQLDSN)
}

// flushInterval is how long the quota consumer gathers: what BATCH_UPDATE_INTERVAL becomes.
func (c *config) flushInterval() time.Duration {
	if c.BatchEnabled {
		return time.Duration(c.BatchInterval) * time.Second
	}
	return 200 * time.Millisecond
}

// parseProxies reads TRUSTED_PROXIES: addresses and networks, or "none".
func parseProxies(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" || part == "none" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			ip, ipErr := netip.ParseAddr(part)
			if ipErr != nil {
				return nil, usagef("TRUSTED_PROXIES=%q: a comma list of addresses and networks (10.0.0.0/8) or the word none is needed", s)
			}
			prefix = netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen())
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}
