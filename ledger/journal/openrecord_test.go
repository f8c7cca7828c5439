package journal

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"testing"
)

// fill sets every field to a value of its own.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString("<\"ünï\u2028\x01" + strconv.Itoa(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Array: // an id
		v.Index(0).SetUint(uint64(*n % 256))
	default:
		panic("fill: " + v.Kind().String())
	}
}

// The JSON of an open record is what encoding/json writes: no field is forgotten, none is new.
func TestOpenRecordJSON(t *testing.T) {
	var full OpenRecord
	n := 0
	fill(reflect.ValueOf(&full).Elem(), &n)
	for name, rec := range map[string]*OpenRecord{"full": &full, "empty": {}} {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(rec); err != nil {
			t.Fatal(err)
		}
		got, err := rec.appendJSON([]byte("before"))
		if err != nil || string(got)+"\n" != "before"+want.String() {
			t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, want.String())
		}
	}
}

func TestOpenRecordTooLarge(t *testing.T) {
	rec := OpenRecord{Node: string(make([]byte, maxOpenBytes))}
	if _, err := rec.appendJSON(nil); err == nil {
		t.Error("an open record above the bound was taken")
	}
}

func BenchmarkOpenRecordJSON(b *testing.B) {
	var rec OpenRecord
	n := 0
	fill(reflect.ValueOf(&rec).Elem(), &n)
	rec.Rating.Tools = nil
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = rec.appendJSON(buf[:0])
	}
}
