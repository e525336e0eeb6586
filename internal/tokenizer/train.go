package tokenizer

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// DefaultAdded lists the added tokens of Qwen2.5-VL in the order of their ids;
// the last two are not special.
var DefaultAdded = []Added{
	{Content: EndOfText, Special: true}, {Content: StartOfTurn, Special: true}, {Content: EndOfTurn, Special: true},
	{Content: "<|object_ref_start|>", Special: true}, {Content: "<|object_ref_end|>", Special: true},
	{Content: "<|box_start|>", Special: true}, {Content: "<|box_end|>", Special: true},
	{Content: "<|quad_start|>", Special: true}, {Content: "<|quad_end|>", Special: true},
	{Content: VisionStart, Special: true}, {Content: VisionEnd, Special: true}, {Content: VisionPad, Special: true},
	{Content: ImagePad, Special: true}, {Content: VideoPad, Special: true},
	{Content: "<tool_call>"}, {Content: "</tool_call>"},
}

// MinVocab is the smallest vocabulary that Train makes: all bytes and the added
// tokens.
func MinVocab() int { return 256 + len(DefaultAdded) }

// Train learns a byte-level BPE vocabulary of at most vocabSize tokens (the 256
// bytes and DefaultAdded included, so at least MinVocab) from a corpus: again
// and again the most frequent pair of neighbours within the words of the corpus
// becomes a token, until the vocabulary is full or no pair occurs twice. Ties go
// to the pair whose bytes come first, so the result depends only on the counts
// of the words, not on their order. Added tokens in the corpus are left out.
func Train(corpus []string, vocabSize int) (*Tokenizer, error) {
	if vocabSize < MinVocab() {
		return nil, fmt.Errorf("tokenizer: vocabulary of %d tokens, want at least %d (bytes and added tokens)", vocabSize, MinVocab())
	}
	l := newLearner(countWords(corpus))
	for len(l.spelling) < vocabSize-len(DefaultAdded) {
		best, ok := l.best()
		if !ok {
			break
		}
		l.merge(best)
	}
	data, err := l.file()
	if err != nil {
		return nil, err
	}
	return Load(data)
}

// countWords cuts the corpus as Encode does and counts the words.
func countWords(corpus []string) map[string]int {
	var marks []string
	for _, a := range DefaultAdded {
		marks = append(marks, a.Content, "\x00") // a word never spans a NUL that stands for a token
	}
	cut := strings.NewReplacer(marks...)
	counts := map[string]int{}
	for _, text := range corpus {
		for piece := range strings.SplitSeq(cut.Replace(strings.ToValidUTF8(text, "\uFFFD")), "\x00") {
			piece = normalize(piece)
			for i := 0; i < len(piece); {
				j := wordEnd(piece, i)
				counts[piece[i:j]]++
				i = j
			}
		}
	}
	return counts
}

// learner is the state of Train. Tokens are numbered in the order in which they
// are learnt, the bytes first.
type learner struct {
	words    [][]int32 // distinct words as tokens
	counts   []int     // how often each occurs
	spelling []string  // token -> its bytes
	merges   []pair
	pairs    map[pair]int              // how often each pair occurs in the corpus
	where    map[pair]map[int]struct{} // words in which it may occur
}

func newLearner(counts map[string]int) *learner {
	l := &learner{pairs: map[pair]int{}, where: map[pair]map[int]struct{}{}}
	for b := range 256 {
		l.spelling = append(l.spelling, string([]byte{byte(b)}))
	}
	distinct := make([]string, 0, len(counts))
	for w := range counts {
		distinct = append(distinct, w)
	}
	sort.Strings(distinct)
	for i, w := range distinct {
		word := make([]int32, len(w))
		for j := range len(w) {
			word[j] = int32(w[j])
		}
		l.words, l.counts = append(l.words, word), append(l.counts, counts[w])
		l.count(i, 1)
	}
	return l
}

// count adds the pairs of word i, times sign, to the tables.
func (l *learner) count(i, sign int) {
	w := l.words[i]
	for j := 0; j+1 < len(w); j++ {
		p := pair{w[j], w[j+1]}
		l.pairs[p] += sign * l.counts[i]
		if sign > 0 {
			if l.where[p] == nil {
				l.where[p] = map[int]struct{}{}
			}
			l.where[p][i] = struct{}{}
		}
	}
}

// best finds the most frequent pair that occurs at least twice.
func (l *learner) best() (pair, bool) {
	var best pair
	most := 1
	for p, n := range l.pairs {
		if n > most || n == most && n > 1 && l.before(p, best) {
			best, most = p, n
		}
	}
	return best, most > 1
}

// before orders pairs by the bytes of their left, then their right token.
func (l *learner) before(a, b pair) bool {
	if l.spelling[a.left] != l.spelling[b.left] {
		return l.spelling[a.left] < l.spelling[b.left]
	}
	return l.spelling[a.right] < l.spelling[b.right]
}

// merge makes p a token everywhere.
func (l *learner) merge(p pair) {
	token := int32(len(l.spelling))
	joined := l.spelling[p.left] + l.spelling[p.right]
	// Two ways to the same bytes share one token: ids and spellings are one to one.
	if at := slices.Index(l.spelling, joined); at >= 0 {
		token = int32(at)
	} else {
		l.spelling = append(l.spelling, joined)
	}
	l.merges = append(l.merges, p)
	for i := range l.where[p] {
		l.count(i, -1)
		w := l.words[i]
		out := w[:0]
		for j := 0; j < len(w); j++ {
			if j+1 < len(w) && w[j] == p.left && w[j+1] == p.right {
				out = append(out, token)
				j++
			} else {
				out = append(out, w[j])
			}
		}
		l.words[i] = out
		l.count(i, 1)
	}
	delete(l.pairs, p)
	delete(l.where, p)
}
