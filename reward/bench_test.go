package reward

import (
	"context"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// BenchmarkScore scores a response of about 2,000 tokens.
func BenchmarkScore(b *testing.B) {
	s, err := New(DefaultOptions())
	if err != nil {
		b.Fatal(err)
	}
	trace := rollout.Trace{Text: "<think>" + strings.Repeat("The disc is cupped. ", 400) + "</think>\n<answer>B. Glaucoma</answer>"}
	q := rollout.Question{Kind: rollout.SingleChoice, Text: "A 60-year-old man was seen.\nA. AMD\nB. Glaucoma\nC. Cataract\nD. Normal", Gold: "B"}
	open := rollout.Question{Kind: rollout.Open, Text: q.Text, Gold: "Glaucoma"}
	for name, q := range map[string]rollout.Question{"single": q, "open": open} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(trace.Text)))
			for b.Loop() {
				if _, err := s.Score(context.Background(), q, trace); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
