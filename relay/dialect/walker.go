package dialect

import "bytes"

// walker steps through one JSON value without decoding it. It is lenient about what it skips and strict about
// structure: on anything unexpected bad is set and every loop ends. It never recurses into what it does not know, so
// no nesting, however deep, costs stack.
type walker struct {
	b   []byte
	i   int
	bad bool
}

func (w *walker) space() {
	for w.i < len(w.b) && (w.b[w.i] == ' ' || w.b[w.i] == '\n' || w.b[w.i] == '\t' || w.b[w.i] == '\r') {
		w.i++
	}
}

// enter steps into an object or list if one begins here.
func (w *walker) enter(open byte) bool {
	if w.bad || w.i >= len(w.b) || w.b[w.i] != open {
		return false
	}
	w.i++
	return true
}

// more reports whether another member follows, and stands at its beginning; it steps over the end if none does.
func (w *walker) more(end byte) bool {
	w.space()
	if w.bad || w.i >= len(w.b) {
		w.bad = true
		return false
	}
	switch w.b[w.i] {
	case end:
		w.i++
		return false
	case ',':
		w.i++
		w.space()
	}
	return true
}

// key reads the name of a member and the colon behind it.
func (w *walker) key() []byte {
	if w.bad || w.i >= len(w.b) || w.b[w.i] != '"' {
		w.bad = true
		return nil
	}
	v := w.value()
	w.space()
	if w.bad || w.i >= len(w.b) || w.b[w.i] != ':' {
		w.bad = true
		return nil
	}
	w.i++
	w.space()
	return v[1 : len(v)-1]
}

// value steps over any value and returns it as it is written.
func (w *walker) value() []byte {
	from := w.i
	if w.bad || from >= len(w.b) {
		w.bad = true
		return nil
	}
	switch w.b[from] {
	case '"':
		w.quoted()
	case '{', '[':
		w.nested()
	default:
		for w.i < len(w.b) && !isEnd(w.b[w.i]) {
			w.i++
		}
		if w.i == from {
			w.bad = true
		}
	}
	if w.bad {
		return nil
	}
	return w.b[from:w.i:w.i]
}

func isEnd(c byte) bool {
	return c == ',' || c == '}' || c == ']' || c == ':' || c == '"' || c == '{' || c == '[' || c <= ' '
}

// quoted steps over a string.
func (w *walker) quoted() {
	for from := w.i + 1; ; {
		q := bytes.IndexByte(w.b[from:], '"')
		if q < 0 {
			w.bad = true
			return
		}
		end := from + q
		b := end
		for w.b[b-1] == '\\' {
			b--
		}
		from = end + 1
		if (end-b)%2 == 0 {
			w.i = from
			return
		}
	}
}

// nested steps over an object or list, whatever is in it.
func (w *walker) nested() {
	for depth := 0; w.i < len(w.b); {
		switch w.b[w.i] {
		case '"':
			if w.quoted(); w.bad {
				return
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				w.i++
				return
			}
		}
		w.i++
	}
	w.bad = true
}

// number reads a small whole number, 0 if it is none.
func number(v []byte) int {
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' || n > 1<<20 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}
