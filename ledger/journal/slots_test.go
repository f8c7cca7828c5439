package journal

import "testing"

// TestMarksSurviveATornStore: of the two copies of a mark one is whole at every moment, and the newer one counts.
func TestMarksSurviveATornStore(t *testing.T) {
	size, base := slotFileSize(2, 3)
	s := &slotFile{mem: make([]byte, size), base: base, count: 2, salt: slotsSalt(testProducer), ackGen: make([]int, 3)}
	if s.mark() != (syncedMark{}) || s.acked(2) != 0 {
		t.Fatal("a blank file says something")
	}
	for n := uint64(1); n < 5; n++ {
		s.setMark(syncedMark{n, int64(n), n})
		s.setAcked(2, n)
		if s.mark().Seq != n || s.acked(2) != n || s.acked(1) != 0 {
			t.Fatalf("after %d: %+v, %d", n, s.mark(), s.acked(2))
		}
		torn := *s
		torn.mem = append([]byte(nil), s.mem...)
		torn.mem[markAt+torn.markGen*markStride+3] ^= 1
		torn.ackPlace(2, torn.ackGen[2])[0] ^= 1
		if torn.mark().Seq != n-1 || torn.acked(2) != n-1 {
			t.Fatalf("torn at %d: %+v, %d", n, torn.mark(), torn.acked(2))
		}
	}
	if s.resume(7, testProducer) != nil {
		t.Fatal("a slot beyond the file")
	}
}
