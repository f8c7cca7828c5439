package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Every engine goes away in turn while traffic runs. Redis's loss costs a new epoch; MariaDB, Kafka and ClickHouse are not
// on the path of accounts in use, which go on meanwhile (P3). In the end everything is billed once, and verify says so.
func TestEnginesFail(t *testing.T) {
	t.Parallel()
	s := privateCluster(t)
	s.open()
	users := s.cast(3)
	tr := s.background(8, users)
	tr.moreDone(t, 20)
	for _, outage := range []struct {
		name string
		play func()
	}{
		{"Redis is emptied", func() {
			options, err := redis.ParseURL(s.redis.RedisURL())
			if err != nil {
				t.Fatal(err)
			}
			c := redis.NewClient(options)
			defer c.Close()
			if err := c.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}},
		{"Redis restarts", s.redis.Restart},
		{"MariaDB is away", func() {
			s.mysql.Stop()
			tr.moreDone(t, 40)
			s.mysql.Start()
		}},
		{"Kafka is killed", func() {
			s.kafka.Kill()
			tr.moreDone(t, 40)
			s.kafka.Start()
		}},
		{"ClickHouse is away", func() {
			s.click.Stop()
			tr.moreDone(t, 40)
			s.click.Start()
		}},
	} {
		t.Log(outage.name)
		before := s.epochs()
		outage.play()
		tr.moreDone(t, 30)
		if strings.HasPrefix(outage.name, "Redis") {
			eventually(t, "new epochs are open", func() error {
				if n := s.epochs(); n < before+1 {
					return fmt.Errorf("%d epochs, %d before", n, before)
				}
				return nil
			})
		}
	}
	tr.stop()
	for _, r := range tr.all {
		switch {
		case r.status == http.StatusOK && r.whole, r.status == http.StatusTooManyRequests, r.status == http.StatusServiceUnavailable:
		default:
			t.Errorf("an engine's outage reached a client: status %d %q, whole %v", r.status, r.code, r.whole)
		}
	}
	s.books.settled(tr.answered(), users...)
	s.verified()
}

// epochs counts the counter epochs that were opened.
func (s *site) epochs() int64 { return s.books.number("SELECT COUNT(*) FROM ledger_epochs") }
