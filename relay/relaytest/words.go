package relaytest

import "strings"

const wordText = "the quick brown fox did not jump over the lazy dog today because it was too tired and would rather" +
	" sleep under a large green tree near the old river bank while other animals played in the open field until the" +
	" sun went down behind the hills and everyone went home for some food and rest at night"

// words is what the mock writes, one word a chunk, over and over. Each is one token of cl100k_base and of o200k_base,
// and any run of them has as many tokens as words, so that a count of the text can be held against one of the chunks.
var words = func() (list []string) {
	for w := range strings.FieldsSeq(wordText) {
		list = append(list, " "+w)
	}
	return list
}()

// appendWords appends the first n words.
func appendWords(dst []byte, n int64) []byte {
	for i := range n {
		dst = append(dst, words[i%int64(len(words))]...)
	}
	return dst
}
