package relay

import "testing"

func TestReadRoomFollowsTheStream(t *testing.T) {
	const (
		small, middle, large = 2 << 10, 16 << 10, 64 << 10
		// what chunks of 200 bytes, with 6 of framing each, leave of a buffer that they fill
		smallFull, middleFull, largeFull = (small - unfinishedRoom) * 200 / 206, (middle - unfinishedRoom) * 200 / 206, (large - unfinishedRoom) * 200 / 206
	)
	var spare readBuffers
	room := newReadRoom(&spare)
	for i, step := range []struct{ brought, next int }{
		{200, middle}, // what came with the head: the next may be much
		{200, small},  // it is not
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
	} {
		room.took(step.brought)
		if got := len(*room.buf); got != step.next {
			t.Fatalf("after read %d, of %d bytes, the next is into %d bytes, want %d", i, step.brought, got, step.next)
		}
	}
	room.took(smallFull)
	if room.release(); room.buf != room.small {
		t.Fatal("an ended stream keeps a large buffer")
	}
}
