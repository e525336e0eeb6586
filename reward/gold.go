package reward

import "github.com/uadt-train/uadt-train/rollout"

// GoldKey names the class of a question's gold answer, equal for gold answers
// that mean the same: the letters of a choice such as "B,E", or the main name of
// a diagnosis. It is empty when the record has no usable gold answer.
func GoldKey(q rollout.Question) string {
	switch q.Kind {
	case rollout.SingleChoice, rollout.TrueFalse, rollout.MultipleChoice:
		return newChoiceSet(q).gold(q).String()
	}
	if Fold(q.Gold) == "" {
		return ""
	}
	return builtinSynonyms().canonical(q.Gold).concepts[0]
}
