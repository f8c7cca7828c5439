//go:build unix

package engines

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

func clickhouseConn(t *testing.T, s *Server, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	o, err := clickhouse.ParseDSN(s.ClickHouseDSN("default"))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(o)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func insert(ctx context.Context, conn driver.Conn, from, n int) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO rows (n, text)")
	if err != nil {
		return err
	}
	for i := range n {
		if err := batch.Append(uint64(from+i), fmt.Sprintf("row '%d' \x00 \n", from+i)); err != nil {
			return err
		}
	}
	return batch.Send()
}

func sum(ctx context.Context, conn driver.Conn) (count, total uint64, err error) {
	err = conn.QueryRow(ctx, "SELECT count(), sum(n) FROM rows").Scan(&count, &total)
	return count, total, err
}

const rowsTable = "CREATE TABLE rows (n UInt64, text String) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100"

// What was acknowledged is there after kill -9, with and without a stop in between.
func TestClickHouseKeepsRowsThroughKill(t *testing.T) {
	s := testServer(t, StartClickHouse)
	conn := clickhouseConn(t, s, nil)
	must(t, conn.Exec(t.Context(), rowsTable))
	must(t, insert(t.Context(), conn, 0, 10_000))
	s.Kill()
	must(t, s.Start(t.Context()))
	if count, total, err := sum(t.Context(), conn); err != nil || count != 10_000 || total != 10_000*9_999/2 {
		t.Fatalf("after kill -9: %d rows, sum %d, %v", count, total, err)
	}
	must(t, insert(t.Context(), conn, 10_000, 1))
	stopped := time.Now()
	must(t, s.Restart(t.Context()))
	if took := time.Since(stopped); took > stopTimeout {
		t.Errorf("a stop and start took %v: SIGTERM was not obeyed", took)
	}
	if count, _, err := sum(t.Context(), conn); err != nil || count != 10_001 {
		t.Fatalf("after SIGTERM: %d rows, %v", count, err)
	}
}

func TestClickHouseServesClients(t *testing.T) {
	s := testServer(t, StartClickHouse)
	conn := clickhouseConn(t, s, nil)
	must(t, conn.Exec(t.Context(), rowsTable))

	t.Run("settings", func(t *testing.T) {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": "it's one"}))
		for range 3 {
			must(t, insert(ctx, conn, 5, 1))
		}
		if count, _, err := sum(t.Context(), conn); err != nil || count != 1 {
			t.Errorf("three inserts with one token left %d rows, %v", count, err)
		}
		must(t, conn.Exec(t.Context(), "TRUNCATE TABLE rows"))
	})
	t.Run("parameters", func(t *testing.T) {
		var got string
		ctx := clickhouse.Context(t.Context(), clickhouse.WithParameters(clickhouse.Parameters{"who": `it's \ me`}))
		if err := conn.QueryRow(ctx, "SELECT {who:String}").Scan(&got); err != nil || got != `it's \ me` {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("at once", func(t *testing.T) {
		const clients, batches = 8, 5
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				for b := range batches {
					if err := insert(t.Context(), conn, (c*batches+b)*100, 100); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		const n = clients * batches * 100
		if count, total, err := sum(t.Context(), conn); err != nil || count != n || total != n*(n-1)/2 {
			t.Errorf("%d rows, sum %d, %v", count, total, err)
		}
	})
	for _, method := range []clickhouse.CompressionMethod{
		clickhouse.CompressionLZ4, clickhouse.CompressionZSTD, clickhouse.CompressionGZIP, clickhouse.CompressionDeflate,
	} {
		t.Run(method.String(), func(t *testing.T) {
			conn := clickhouseConn(t, s, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: method, Level: 3} })
			must(t, conn.Exec(t.Context(), "TRUNCATE TABLE rows"))
			must(t, insert(t.Context(), conn, 0, 1_000))
			if count, total, err := sum(t.Context(), conn); err != nil || count != 1_000 || total != 1_000*999/2 {
				t.Errorf("%d rows, sum %d, %v", count, total, err)
			}
		})
	}
	t.Run("exceptions", func(t *testing.T) {
		for query, want := range map[string]int32{"SELECT * FROM nowhere": 60, "SELEC 1": 62, "SELECT throwIf(1)": 395} {
			e, ok := errors.AsType[*clickhouse.Exception](conn.Exec(t.Context(), query))
			if !ok || e.Code != want {
				t.Errorf("%s: %v, want code %d", query, e, want)
			}
		}
		other := clickhouseConn(t, s, func(o *clickhouse.Options) { o.Auth.Database = "nowhere" })
		if e, ok := errors.AsType[*clickhouse.Exception](other.Exec(t.Context(), "SELECT 1")); !ok || e.Code != 81 {
			t.Errorf("unknown database: %v, want code 81", e)
		}
	})
	t.Run("ping", func(t *testing.T) {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr+"/ping", nil)
			must(t, err)
			res, err := http.DefaultClient.Do(req)
			must(t, err)
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s /ping: %s", method, res.Status)
			}
		}
		if out, err := clickhouseDo(t.Context(), s.Addr, "SELECT 1 + 1"); err != nil || strings.TrimSpace(out) != "2" {
			t.Errorf("plain HTTP: %q, %v", out, err)
		}
	})
}
