package reward

import (
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

func TestGoldKey(t *testing.T) {
	choice := "What? A. AMD B. Glaucoma C. Cataract"
	for _, c := range []struct {
		kind             rollout.Kind
		text, gold, want string
	}{
		{rollout.SingleChoice, choice, "B", "B"},
		{rollout.SingleChoice, choice, "glaucoma", "B"},
		{rollout.SingleChoice, choice, "F", ""},
		{rollout.TrueFalse, "It is.", "Yes", "A"},
		{rollout.MultipleChoice, choice, "C and A", "A,C"},
		{rollout.Open, "", "AMD", "age related macular degeneration"},
		{rollout.Open, "", "senile macular degeneration.", "age related macular degeneration"},
		{rollout.Open, "", "something else", "something else"},
		{rollout.Open, "", " . ", ""},
	} {
		if got := GoldKey(rollout.Question{Kind: c.kind, Text: c.text, Gold: c.gold}); got != c.want {
			t.Errorf("GoldKey(%s, %q) = %q, want %q", c.kind, c.gold, got, c.want)
		}
	}
}
