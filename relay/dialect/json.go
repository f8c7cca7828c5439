package dialect

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// depthOf returns how deeply the arrays and objects of text nest, stopping once it is more than limit. It needs no
// valid JSON: it runs before every recursive reader, whose stack it protects.
func depthOf(text string, limit int) int {
	depth, deepest := 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i += stringEnd(text[i+1:])
		case '{', '[':
			if depth++; depth > deepest {
				if deepest = depth; deepest > limit {
					return deepest
				}
			}
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// stringEnd returns how far the interior of a string that begins at text[0] reaches, its closing quote included.
func stringEnd(text string) int {
	for i := 0; ; {
		q := strings.IndexByte(text[i:], '"')
		if q < 0 {
			return len(text)
		}
		i += q
		b := i
		for b > 0 && text[b-1] == '\\' {
			b--
		}
		i++
		if (i-1-b)%2 == 0 {
			return i
		}
	}
}

// decodedLen returns the UTF-8 length of a JSON string, given its raw interior without quotes.
func decodedLen[T string | []byte](raw T) int {
	n := len(raw)
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 >= len(raw) {
			continue
		}
		if raw[i+1] != 'u' {
			i++
			n--
			continue
		}
		r, size := unicodeEscape(raw[i:])
		n -= size - utf8.RuneLen(r)
		i += size - 1
	}
	return n
}

// AppendDecoded appends the text of a JSON string to dst, given its raw interior without quotes. Lone surrogates
// become U+FFFD, as in every JSON decoder.
func AppendDecoded[T string | []byte](dst []byte, raw T) []byte {
	for i := 0; i < len(raw); {
		j := i
		for j < len(raw) && raw[j] != '\\' {
			j++
		}
		dst = append(dst, raw[i:j]...)
		if i = j; i+1 >= len(raw) {
			break
		}
		switch c := raw[i+1]; c {
		case 'u':
			r, size := unicodeEscape(raw[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
			continue
		case 'n':
			dst = append(dst, '\n')
		case 't':
			dst = append(dst, '\t')
		case 'r':
			dst = append(dst, '\r')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		default:
			dst = append(dst, c)
		}
		i += 2
	}
	return dst
}

// unicodeEscape reads the \uXXXX at the start of raw, with the low surrogate that may follow, and returns the rune
// and the bytes it took. A malformed escape is U+FFFD over what is there.
func unicodeEscape[T string | []byte](raw T) (rune, int) {
	hi, ok := hex4(raw)
	if !ok {
		return utf8.RuneError, min(6, len(raw))
	}
	if hi < 0xD800 || hi > 0xDFFF {
		return hi, 6
	}
	if lo, ok := hex4(raw[6:]); ok && hi < 0xDC00 && lo >= 0xDC00 && lo <= 0xDFFF {
		return (hi-0xD800)<<10 + (lo - 0xDC00) + 0x10000, 12
	}
	return utf8.RuneError, 6
}

// hex4 reads \uXXXX.
func hex4[T string | []byte](raw T) (rune, bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return 0, false
	}
	var r rune
	for i := 2; i < 6; i++ {
		c := raw[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ' || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // an invalid byte becomes U+FFFD
			i += size
			continue
		}
		i++
	}
	return append(dst, '"')
}

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }
