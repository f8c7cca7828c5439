package relay

import "testing"

func TestReadRoomFollowsTheStream(t *testing.T) {
	const small, middle, large = 2 << 10, 16 << 10, 64 << 10
	var spare readBuffers
	room := newReadRoom(&spare)
	for i, step := range []struct{ brought, next int }{
		{200, middle}, // what came with the head: the next may be much
		{200, small},  // it is not
		{small - unfinishedRoom - 1, small},
		{small - unfinishedRoom, middle}, // full
		{200, middle},                    // one quiet read is chance
		{small - unfinishedRoom + 1, middle},
		{200, middle},
		{200, small},
		{small - unfinishedRoom, middle},
		{middle - unfinishedRoom, large},
		{large - unfinishedRoom, large}, // there is none larger
		{middle - unfinishedRoom, large},
		{200, middle},
		{0, middle},
		{0, small},
	} {
		room.took(step.brought)
		if got := len(*room.buf); got != step.next {
			t.Fatalf("after read %d, of %d bytes, the next is into %d bytes, want %d", i, step.brought, got, step.next)
		}
	}
	room.took(small - unfinishedRoom)
	if room.release(); room.buf != room.small {
		t.Fatal("an ended stream keeps a large buffer")
	}
}
