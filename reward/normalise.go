package reward

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// longestAnswer is the most bytes that an answer block may have. What is longer
// is no answer but an essay; the bound also keeps normalisation cheap.
const longestAnswer = 4096

var (
	specialToken = regexp.MustCompile(`<\|[^|<>]{0,64}\|>|</?s>|[\x{200B}-\x{200F}\x{2060}\x{FEFF}]`)
	latexCommand = regexp.MustCompile(`\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|rm)\s*\{`)
	latexMath    = strings.NewReplacer("$", "", `\(`, "", `\)`, "", `\[`, "", `\]`, "")
	markdown     = strings.NewReplacer("*", "", "`", "", "__", "", "~~", "")
	lineMark     = regexp.MustCompile(`(?m)^\s*(?:#{1,6}\s|>\s?|[-•]\s)`)
)

// leadIns are phrases before an answer that are no part of it. Each is anchored
// at the start and removed as often as it applies.
var leadIns = []*regexp.Regexp{
	regexp.MustCompile(`(?i)^(?:so|thus|therefore|hence|in conclusion)\s*,?\s+`),
	regexp.MustCompile(`(?i)^(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best|most|likely|probable|appropriate|single)\s+)*` +
		`(?:answers?|options?|choices?|diagnosis|letters?)\s*(?:(?:is|are|would be|should be)\s*:?|:|=)\s*`),
	regexp.MustCompile(`(?i)^(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)*(?:answers?|options?|choices?)(?:\s+|$)`),
	regexp.MustCompile(`(?i)^(?:it|this|that)\s+is\s+`),
	regexp.MustCompile(`(?i)^i\s+(?:would\s+)?(?:choose|select|pick)\s+`),
	regexp.MustCompile(`^(?:因此|所以|综上所述|综上|故)\s*[,、]?\s*`),
	regexp.MustCompile(`^(?:本题|该题|我的)?(?:最终|正确|最佳|最可能)?的?(?:答案|选项|选择|诊断)\s*(?:应该是|应为|是|为|:)\s*`),
	regexp.MustCompile(`^(?:答案|选项)\s*`),
}

// chineseChoose is "choose" directly before a letter.
var chineseChoose = regexp.MustCompile(`^(?:应该|应|故)?选择?\s*([A-Z])`)

// Normalise brings an answer into the form in which answers are compared:
// NFKC (so that full-width letters and punctuation become plain), without
// special tokens, markdown, TeX wrappers, lead-ins such as "the answer is",
// quotes, enclosing brackets and closing punctuation, white space collapsed.
// It keeps the case. It is idempotent and never longer than NFKC makes it. What
// mostRounds of unwrapping do not lay bare is no answer but a puzzle: "".
func Normalise(text string) string {
	text = norm.NFKC.String(strings.ToValidUTF8(text, ""))
	for range mostRounds {
		next := normaliseOnce(text)
		if next == text {
			return text
		}
		text = next
	}
	return ""
}

// mostRounds bounds the time: each round reads the whole text, and a thousand
// nested brackets need a thousand rounds.
const mostRounds = 64

// normaliseOnce only ever removes: every rule deletes bytes or leaves the text
// alone (white space becomes one plain blank), and NFKC of a part of an NFKC
// text at most composes. So repeating it ends.
func normaliseOnce(text string) string {
	text = norm.NFKC.String(text)
	text = specialToken.ReplaceAllString(text, "")
	text = unwrapLatex(text)
	text = latexMath.Replace(text)
	text = lineMark.ReplaceAllString(text, "")
	text = markdown.Replace(text)
	text = strings.Join(strings.Fields(text), " ")
	text = strings.Trim(text, "_\"'“”‘’「」『』 ")
	text = strings.TrimRight(text, ".。!,;:、 ")
	text = unwrapBrackets(text)
	for _, lead := range leadIns {
		// One a round: "answer" without "is" may only go when "answer is" did not fit.
		if rest := lead.ReplaceAllString(text, ""); rest != text {
			return rest
		}
	}
	return chineseChoose.ReplaceAllString(text, "$1")
}

// unwrapLatex replaces \boxed{x}, \text{x} and their like by x.
func unwrapLatex(text string) string {
	for {
		at := latexCommand.FindStringIndex(text)
		if at == nil {
			return text
		}
		depth, end := 1, len(text)
		for i := at[1]; i < len(text); i++ {
			if text[i] == '{' {
				depth++
			} else if text[i] == '}' {
				depth--
			}
			if depth == 0 {
				end = i
				break
			}
		}
		rest := ""
		if end < len(text) {
			rest = text[end+1:]
		}
		text = text[:at[0]] + text[at[1]:end] + rest
	}
}

var closing = map[rune]rune{'(': ')', '[': ']', '{': '}', '【': '】', '<': '>'}

// unwrapBrackets removes one pair of brackets that encloses all of text.
func unwrapBrackets(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	shut, ok := closing[first]
	if !ok {
		return text
	}
	depth := 0
	for i, r := range text {
		switch r {
		case first:
			depth++
		case shut:
			depth--
		}
		if depth == 0 {
			if i+utf8.RuneLen(shut) == len(text) {
				return strings.TrimSpace(text[size:i])
			}
			return text
		}
	}
	return text
}

// Fold brings a name into the form in which names are equal: normalised, lower
// case, hyphens and slashes as blanks, apostrophes and other punctuation gone,
// leading article dropped. A minus sign before a number stays: -2 is not 2.
func Fold(text string) string {
	var b strings.Builder
	b.Grow(len(text))
	text = strings.ToLower(Normalise(text))
	for _, article := range []string{"a ", "an ", "the "} {
		if rest, ok := strings.CutPrefix(text, article); ok {
			text = rest
			break
		}
	}
	for i, r := range text {
		switch {
		case r == '-' || r == '−':
			if negativeSign(text[:i], text[i+utf8.RuneLen(r):]) {
				b.WriteByte('-')
			} else {
				b.WriteByte(' ')
			}
		case r == '\'' || r == '’' || r == '`':
		case unicode.IsLetter(r), unicode.IsDigit(r), unicode.Is(unicode.M, r), unicode.IsSymbol(r), r == '%':
			b.WriteRune(r)
		default:
			b.WriteByte(' ')
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// negativeSign says whether a minus between before and after is that of a
// number and no hyphen or range.
func negativeSign(before, after string) bool {
	digit, _ := utf8.DecodeRuneInString(strings.TrimPrefix(after, "."))
	last, _ := utf8.DecodeLastRuneInString(before)
	return unicode.IsDigit(digit) && (before == "" || unicode.IsSpace(last) || strings.ContainsRune("([=:,;", last))
}

// isCJK says whether r belongs to a script that is written without blanks.
func isCJK(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul)
}

// Tokens splits folded text into words, and CJK text into characters.
func Tokens(folded string) []string {
	var tokens []string
	for _, word := range strings.Fields(folded) {
		start := 0
		for i, r := range word {
			if !isCJK(r) {
				continue
			}
			if start < i {
				tokens = append(tokens, word[start:i])
			}
			start = i + utf8.RuneLen(r)
			tokens = append(tokens, word[i:start])
		}
		if start < len(word) {
			tokens = append(tokens, word[start:])
		}
	}
	return tokens
}
