package journaltest

import (
	"maps"
	"slices"
)

// PowerLoss kills every process and leaves what a disk may hold after the power came back.
func (d *Disk) PowerLoss() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.powerLoss()
}

func (d *Disk) powerLoss() {
	for p := range d.procs {
		d.kill(p)
	}
	d.revert(d.root, map[*node]bool{})
}

func (d *Disk) revert(n *node, seen map[*node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	n.lock = nil
	if !n.isDir {
		n.data = d.survivors(n)
		n.synced = append([]byte(nil), n.data...)
		n.unsynced, n.mapped, n.mapper = nil, false, nil
		return
	}
	for _, apply := range n.pending {
		if d.rand.IntN(2) == 0 {
			apply(n.durable)
		}
	}
	n.pending = nil
	n.names = maps.Clone(n.durable)
	for _, name := range slices.Sorted(maps.Keys(n.names)) { // in order, so that one seed is one outcome
		d.revert(n.names[name], seen)
	}
}

const sector, page = 512, 4096

// survivors returns what is left of a file: what was synced, and some of what was not.
func (d *Disk) survivors(n *node) []byte {
	left := append([]byte(nil), n.synced...)
	if n.mapped {
		for at := 0; at < len(left); at += page {
			if d.rand.IntN(2) == 0 {
				copy(left[at:min(at+page, len(left))], n.data[at:])
			}
		}
		return left
	}
	mode := d.rand.IntN(4)
	if mode == 0 {
		return left
	}
	for i, c := range n.unsynced {
		switch {
		case c.data == nil:
			left = resize(left, c.off)
		case mode == 1 || mode == 2 && i < len(n.unsynced)-1:
			left = overwrite(left, c.data, c.off)
		case mode == 2:
			left = overwrite(left, c.data[:d.rand.IntN(len(c.data)+1)], c.off)
		default:
			for at := 0; at < len(c.data); at += sector {
				if d.rand.IntN(2) == 0 {
					left = overwrite(left, c.data[at:min(at+sector, len(c.data))], c.off+int64(at))
				}
			}
		}
	}
	return left
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func overwrite(b, data []byte, off int64) []byte {
	if end := off + int64(len(data)); end > int64(len(b)) && len(data) > 0 {
		b = resize(b, end)
	}
	copy(b[min(off, int64(len(b))):], data)
	return b
}
