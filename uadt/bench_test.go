package uadt

import (
	"fmt"
	"testing"
)

// wide is a batch of the size that a large run shapes: groups x traces x tokens.
func wide(groups, traces, tokens int) Batch {
	var b Batch
	for q := range groups {
		g := Group{ID: fmt.Sprintf("q%d", q)}
		for i := range traces {
			h := make([]float32, tokens)
			for t := range h {
				h[t] = float32((q*31+i*17+t*7)%97) / 50
			}
			g.Traces = append(g.Traces, Trace{Reward: float64((q + i) % 2), Correct: (q+i)%2 == 1, Length: tokens, Entropies: h})
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// BenchmarkShape reports the time per trace, which must not matter beside the
// forward pass that the entropies come from.
func BenchmarkShape(b *testing.B) {
	for _, size := range []struct{ groups, traces, tokens int }{{16, 8, 64}, {16, 8, 2048}, {512, 8, 512}} {
		b.Run(fmt.Sprintf("%dx%dx%d", size.groups, size.traces, size.tokens), func(b *testing.B) {
			batch := wide(size.groups, size.traces, size.tokens)
			s := shaper(b, nil)
			b.ResetTimer()
			for b.Loop() {
				if _, err := s.Shape(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size.groups*size.traces), "ns/trace")
		})
	}
}

func BenchmarkTokenEntropy(b *testing.B) {
	logits := make([]float64, 1024)
	for i := range logits {
		logits[i] = float64((i*37)%101) / 10
	}
	for b.Loop() {
		if _, err := TokenEntropy(logits, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// A wide batch gives what its groups give one by one, once tau is known.
func TestWideBatch(t *testing.T) {
	batch := wide(40, 8, 16)
	s := shaper(t, nil)
	first := shape(t, s, batch)
	state := s.State()
	whole := shape(t, s, batch)
	if first.Counted != 320 || whole.Counted != 320 {
		t.Fatalf("counted %d and %d of 320", first.Counted, whole.Counted)
	}
	for q, g := range batch.Groups {
		if err := s.Restore(state); err != nil {
			t.Fatal(err)
		}
		nears(t, "A'", column(shape(t, s, batchOf(g)), 0, pickShaped), column(whole, q, pickShaped), 0)
	}
}
