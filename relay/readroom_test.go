package relay

import "testing"

func TestReadRoomFollowsTheStream(t *testing.T) {
	const (
		small, middle, large = 2 << 10, 16 << 10, 64 << 10
		// what chunks of 200 bytes, with 6 of framing each, leave of a buffer that they fill
		smallFull, middleFull, largeFull = (small - unfinishedRoom) * 200 / 206, (middle - unfinishedRoom) * 200 / 206, (large - unfinishedRoom) * 200 / 206
	)
	var spare readBuffers
	for _, c := range []struct {
		came  bool // something, with the answer's head
		first int
		reads [][2]int // bytes, and the size of what the next read is into
	}{
		{false, small, [][2]int{
			{200, small},
			{smallFull * 3 / 4, small},
			{smallFull, middle}, // full
			{200, middle},       // one quiet read is chance
			{smallFull, middle},
			{200, middle},
			{200, small},
			{small - unfinishedRoom, middle}, // without framing
			{middleFull * 3 / 4, middle},
			{middleFull, large},
			{largeFull, large}, // there is none larger
			{middleFull, large},
			{200, large},
			{200, middle},
			{0, middle},
			{0, small},
		}},
		{false, small, [][2]int{{smallFull, middle}}},
		{true, large, [][2]int{{200, small}, {200, small}}},
		{true, large, [][2]int{{smallFull, middle}, {200, middle}, {200, small}}},
		{true, large, [][2]int{{middleFull, large}}},
		{true, large, [][2]int{{largeFull, large}}},
	} {
		room := newReadRoom(&spare, c.came)
		if got := len(*room.buf); got != c.first {
			t.Errorf("came %v: the first read is into %d bytes, want %d", c.came, got, c.first)
		}
		for i, step := range c.reads {
			room.took(step[0])
			if got := len(*room.buf); got != step[1] {
				t.Fatalf("came %v: after read %d, of %d bytes, the next is into %d bytes, want %d", c.came, i, step[0], got, step[1])
			}
		}
		if room.release(); room.buf != nil {
			t.Fatal("an ended stream keeps its buffer")
		}
	}
}
