package journal_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
	"ledgerline/ledger/journal/journaltest"
)

// FuzzDirectory puts any bytes in the place of a file of a dead node's journal: it is adopted with what can be read of it, or refused,
// and what is adopted can be written to.
func FuzzDirectory(f *testing.F) {
	f.Add(true, uint16(0), []byte("LLJSLOT\n"))
	f.Add(true, uint16(64), make([]byte, 64))
	f.Add(false, uint16(0), []byte{})
	f.Add(false, uint16(100), []byte("\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add(false, uint16(400), []byte(`{"request":{},"rating":{}}`))
	f.Add(false, uint16(300), make([]byte, 100))
	f.Add(false, uint16(700), make([]byte, 2000))
	f.Add(false, uint16(1020), []byte{1})
	f.Fuzz(func(t *testing.T, slots bool, at uint16, bytes []byte) {
		synctest.Test(t, func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			p := disk.Process()
			j := create(t, config(p))
			wait(t)(j.Open(openRecord(1)))
			wait(t)(j.Open(openRecord(2)))
			wait(t)(j.Settle(settleEvent(1)))
			p.Kill() // the rest of a block is behind the records
			name := "/data/journal/" + incarnation.String() + "/0000000000000001.seg"
			if slots {
				name = "/data/journal/" + incarnation.String() + "/slots"
			}
			data, err := disk.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			where := min(int(at), len(data))
			data = append(data[:where:where], append(bytes, data[min(len(data), where+len(bytes)):]...)...)
			if err := disk.WriteFile(name, data); err != nil {
				t.Fatal(err)
			}
			adopted, found, err := journal.Adopt(config(disk.Process()), incarnation)
			if err != nil {
				return
			}
			for i := range found.Opens {
				if o := &found.Opens[i]; o.Hold.IsZero() || o.User < 0 {
					t.Errorf("open: %+v", o)
				}
			}
			wait(t)(adopted.Event(credit(9, 1)))
			if err := adopted.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

// FuzzOpenRecord reads any JSON as that of an open record, and writes it again.
func FuzzOpenRecord(f *testing.F) {
	f.Add(`{"time":1,"node":"n","prompt_tokens":3,"request":{"id":"r"},"rating":{"mode":"ratio","model_ratio":"1"}}`)
	f.Add(`{"prompt_tokens":-9223372036854775808,"request":{"status":-1},"rating":{"tools":[{}]}}`)
	f.Add("{\"node\":\"\xff\\ud800\",\"node\":\"twice\"}")
	f.Fuzz(func(t *testing.T, text string) {
		var rec journal.OpenRecord
		if json.Unmarshal([]byte(text), &rec) != nil {
			return
		}
		rec.Hold, rec.User, rec.Amount = ledger.ID{1}, 1, 1
		synctest.Test(t, func(t *testing.T) {
			disk := journaltest.NewDisk(1)
			j := create(t, config(disk.Process()))
			c, err := j.Open(&rec)
			if err != nil {
				_ = j.Close()
				return // too large, say
			}
			if err := c.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = j.Close()
			adopted, found := adopt(t, config(disk.Process()))
			if len(found.Opens) != 1 || len(found.Damage) > 0 || found.Opens[0].PromptTokens != rec.PromptTokens {
				t.Errorf("found %+v", found)
			}
			_ = adopted.Close()
		})
	})
}
