package reward

import (
	"regexp"
	"strings"
)

var (
	negation = regexp.MustCompile(`(?i)(?:^|[\s,;(])(?:not|no|nor|never|cannot|without|absence of|lack of|free of|absent|neither|negative for|rule[sd]? out|exclude[sd]?|unlikely|denies)(?:$|[\s,;)])|n['’]t\s`)
	hedge    = regexp.MustCompile(`(?i)(?:^|[\s,;(])(?:or|and/or|either|probabl[ey]|possibl[ey]|likely|maybe|perhaps|might|may be|could be|suspected|suspicion of|suspicious for|vs|versus|cannot (?:be )?exclude[d]?|differential)(?:$|[\s.,;:)])|\?`)
	listing  = regexp.MustCompile(`(?i)[,;、/|·•>]|(?:^|\s)(?:\d{1,2}[.)]|and|as well as|plus)\s|[&+]|与|和|及`)
)

// chineseNegation and chineseHedge stand anywhere in a CJK answer, because
// there are no blanks to look for.
var (
	chineseNegation = []string{"不是", "没有", "排除", "并非", "未见", "无"}
	chineseHedge    = []string{"可能", "疑似", "或者", "或", "待排", "考虑", "也许"}
)

// negated says whether text denies something.
func negated(text string) bool {
	return negation.MatchString(text) || containsAny(text, chineseNegation)
}

// hedged says whether text leaves a choice open.
func hedged(text string) bool {
	return hedge.MatchString(text) || containsAny(text, chineseHedge)
}

// listed says whether text names more than one thing.
func listed(text string) bool { return listing.MatchString(text) }

func containsAny(text string, words []string) bool {
	for _, w := range words {
		if strings.Contains(text, w) {
			return true
		}
	}
	return false
}
