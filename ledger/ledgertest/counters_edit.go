//go:build unix

package ledgertest

import (
	"context"
	"encoding/binary"
	"strconv"
	"testing"

	"ledgerline/ledger"
)

// EditHotAccount adds to what an account was granted and charged in Redis, behind everybody's back, so that verify has something
// to find. prefix is that of the keys; the account must be there.
func EditHotAccount(t testing.TB, url, prefix string, partition int, a ledger.Account, granted, charged int64) {
	t.Helper()
	client := redisClient(t, url)
	key, field := prefix+"{p"+strconv.Itoa(partition)+"}:a", string(a.Kind[:1])+strconv.FormatInt(a.ID, 10)
	record, err := client.HGet(context.Background(), key, field).Bytes()
	if err != nil || len(record) < 16 {
		t.Fatalf("read %s of %s: %d bytes, %v", field, key, len(record), err)
	}
	for at, more := range []int64{granted, charged} {
		place := record[8*at : 8*at+8]
		binary.LittleEndian.PutUint64(place, binary.LittleEndian.Uint64(place)+uint64(more))
	}
	if err := client.HSet(context.Background(), key, field, record).Err(); err != nil {
		t.Fatalf("write %s of %s: %v", field, key, err)
	}
}
