package main

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzConfig reads any environment, a variable a line: it is taken, or refused with an error that a person can act on.
func FuzzConfig(f *testing.F) {
	f.Add("PORT=3000\nSYNC_FREQUENCY=60")
	f.Add("PORT=-1\nSYNC_FREQUENCY=9223372036854775807\nHOLD_ORPHAN_AFTER=1h1h")
	f.Add("TRUSTED_PROXIES=10.0.0.0/8,::1\nKAFKA_BROKERS=a:1,b\nREDIS_CONN_STRING=redis://x")
	f.Add("SQL_DSN=root:x@tcp(127.0.0.1:3306)/newapi?tls=true\nLOG_SQL_DSN=clickhouse://a\nTZ=Mars/Olympus")
	f.Add("JOURNAL=kafka\nJOURNAL_KEEP=-1s\nSTREAMING_TIMEOUT=NaN\nMAX_REQUEST_BODY_MB=1e9\nBATCH_UPDATE_ENABLED=yes")
	known := map[string]bool{}
	for field := range reflect.TypeFor[config]().Fields() {
		known[field.Tag.Get("env")] = true
	}
	f.Fuzz(func(t *testing.T, text string) {
		vars := map[string]string{}
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			if known[name] && value != "" {
				vars[name] = value
			}
		}
		cfg, err := configOf(vars)
		if err == nil {
			if cfg.Port < 0 || cfg.Port > 65535 || cfg.KafkaPartitions < 1 || cfg.JournalMaxMB < 1 {
				t.Errorf("taken: %+v", cfg)
			}
			return
		}
		var usage *usageError
		if !errors.As(err, &usage) {
			t.Errorf("%T is no error of the user's", err)
		}
		named := false
		for name := range vars {
			named = named || strings.Contains(err.Error(), name)
		}
		if !named {
			t.Errorf("the error names none of %v: %v", vars, err)
		}
	})
}
